"""TLS on the rpc plane: of clients, each with a connection of its own, and of the few to each instance."""

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest

from tcpgw.client import Client as RealClient
from tcpgw.client import SyncClient
from tcpgw.errors import ConnectError
from tcpgw.wire.messages import RpcError
from tests.support.certificates import AUTHORITY, SERVER, Authority, Issued, client_side
from tests.support.rpc import Bed, Instance, Link, bed
from tests.support.rpc_thrift import CODEC, ThriftClient, ThriftInstance, ThriftLink
from tests.support.secure import instance_side, put
from tests.support.streams import in_time, until

LARGE = 12 << 20
STRANGER = Authority().issue("127.0.0.1", "localhost")
ALICE = AUTHORITY.issue("alice.example.com", cn="alice")


def ended_here(folder: Path, more: str = "", *, mutual: bool = False) -> str:
    """A listener's lines for TLS."""
    put(folder, server=SERVER)
    (folder / "ca.pem").write_bytes(AUTHORITY.pem)
    ca = f', client_ca = "{folder}/ca.pem"' if mutual else ""
    chain = f'{{ chain = "{folder}/server.pem", key = "{folder}/server.key" }}'
    return f"tls = {{ certificates = [{chain}]{ca} }}\n{more}"


def to_instances(folder: Path, more: str = "") -> str:
    (folder / "ca.pem").write_bytes(AUTHORITY.pem)
    return f'[service.tls]\nca = "{folder}/ca.pem"\n{more}'


def make_secure(instance: Instance, context: ssl.SSLContext) -> Instance:
    """Have it speak TLS at its address."""
    start = instance.start

    async def start_secure() -> None:
        await start()
        instance.stop_listening()
        loop = asyncio.get_running_loop()
        link = ThriftLink if isinstance(instance, ThriftInstance) else Link
        instance._server = await loop.create_server(
            lambda: link(instance), "127.0.0.1", instance._port, ssl=context, reuse_address=True
        )

    instance.start = start_secure  # type: ignore[method-assign]
    return instance


def real(b: Bed, own: Issued | None = None, **options: Any) -> RealClient:
    context = client_side(own)
    return RealClient(b.listener.address, tls=context, server_name="localhost", **options)


async def test_calls_of_the_client(tmp_path: Path) -> None:
    """A thousand at once, and one of 12 MB, come back as they were sent."""
    async with bed(Instance(), Instance(), listener=ended_here(tmp_path)) as b, real(b) as client:
        answers = await in_time(asyncio.gather(*(client.call("m", number) for number in range(1000))))
        assert answers == [[number] for number in range(1000)]
        large = bytes(LARGE)
        assert await client.call("m", large) == [large]


async def test_clients_that_are_not_believed(tmp_path: Path) -> None:
    """One without TLS and one with doubts about the certificate are told so."""
    async with bed(Instance(), listener=ended_here(tmp_path)) as b:
        with pytest.raises(ConnectError, match="certificate verify failed"):
            async with RealClient(b.listener.address, tls=True, server_name="localhost"):
                pass
        plain = await b.client()
        plain.ask(1, "x")
        await in_time(plain.ended.wait())
        assert plain.answers == []
        await until(lambda: b.listener.ended.total() == 2)
        assert b.listener.ended == {"tls_error": 2}
        count_denials(b)


async def test_from_another_thread(tmp_path: Path) -> None:
    """The client without asyncio does the same."""

    def use(address: str) -> Any:
        with SyncClient(address, tls=client_side(), server_name="localhost") as client:
            return client.call("m", "x")

    async with bed(Instance(), listener=ended_here(tmp_path)) as b:
        assert await asyncio.to_thread(use, b.listener.address) == ["x"]


@pytest.mark.parametrize("encoding", ["binary", "compact"])
async def test_thrift(tmp_path: Path, encoding: str) -> None:
    """Calls in both encodings, over TLS on both sides."""
    instance = make_secure(ThriftInstance(), instance_side())
    async with bed(instance, listener=CODEC + ended_here(tmp_path), service=to_instances(tmp_path)) as b:
        host, _, port = b.listener.address.rpartition(":")
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(
            ThriftClient, host, int(port), ssl=client_side(), server_hostname="localhost"
        )
        client.encoding = encoding
        b._clients.append(client)
        for number in range(50):
            client.ask(number, f"text {number}", bytes(10_000))
        answers = await client.got(50)
        assert {answer[1]: answer[2:] for answer in answers} == {
            number: [None, [f"text {number}", bytes(10_000)]] for number in range(50)
        }


# ---- credentials ----


async def test_certificates_and_methods(tmp_path: Path) -> None:
    """What the certificate's subject may not call is refused, call by call."""
    rules = '[listener.access.subjects]\nalice = { methods = ["predict", "rank.*"] }\n'
    listener = ended_here(tmp_path, rules, mutual=True)
    async with bed(Instance(), listener=listener) as b, real(b, ALICE) as client:
        assert await client.call("predict", 1) == [1]
        assert await client.call("rank.top", 2) == [2]
        with pytest.raises(RpcError) as refused:
            await client.call("admin", 3)
        assert refused.value.code == "denied"
        assert await client.call("predict", 4) == [4]


async def test_a_certificate_without_a_rule(tmp_path: Path) -> None:
    """The client is told by an error of its own protocol, within TLS."""
    rules = "[listener.access.subjects]\nbob = {}\n"
    async with bed(Instance(), listener=ended_here(tmp_path, rules, mutual=True)) as b:
        async with real(b, ALICE) as client:
            with pytest.raises(RpcError, match="unauthenticated: access denied"):
                await client.call("m", 1)
        await until(lambda: b.events("denied"))
        count_denials(b)


def count_denials(b: Bed) -> None:
    """The bed wants a closing line for each connection, and a denial has none."""
    b.logs += [{"event": "connection_closed"}] * (b.listener.accepted - len(b.lines))


# ---- instances ----


async def test_instances_with_tls(tmp_path: Path) -> None:
    """Requests of many clients share the connections to instances, within TLS on both sides."""
    instances = [make_secure(Instance(), instance_side()) for _ in range(2)]
    async with bed(*instances, listener=ended_here(tmp_path), service=to_instances(tmp_path)) as b:
        async with asyncio.TaskGroup() as group:
            for _ in range(20):
                group.create_task(_use(b))
        assert sum(len(one.requests) for one in instances) == 20 * 50
        assert all(one.requests for one in instances)
        large = bytes(LARGE)
        async with real(b) as client:
            assert await client.call("m", large) == [large]


async def _use(b: Bed) -> None:
    async with real(b) as client:
        answers = await asyncio.gather(*(client.call("m", number) for number in range(50)))
        assert answers == [[number] for number in range(50)]


async def test_one_that_is_not_believed(tmp_path: Path) -> None:
    """It gets no request, the log says why, and the others do the work."""
    strange = make_secure(Instance(), instance_side(STRANGER))
    good = make_secure(Instance(), instance_side())
    async with bed(strange, good, listener=ended_here(tmp_path), service=to_instances(tmp_path)) as b:
        await until(lambda: b.events("channel_failed"))
        (line,) = {(line["endpoint"], line["error"]) for line in b.events("channel_failed")}
        assert line[0] == strange.endpoint
        assert line[1].startswith("TLS: the certificate is refused: unable to get local issuer certificate")
        await _use(b)
        assert not strange.requests


async def test_none_is_believed(tmp_path: Path) -> None:
    """The caller is told that nobody can serve it, by the code for that."""
    strange = make_secure(Instance(), instance_side(STRANGER))
    listener = 'request_timeout = "1s"\n' + ended_here(tmp_path)
    async with bed(strange, listener=listener, service=to_instances(tmp_path)) as b, real(b) as client:
        with pytest.raises(RpcError) as refused:
            await client.call("m", 1)
        assert refused.value.code == "no_endpoint"


async def test_a_certificate_of_the_gateway_s_own(tmp_path: Path) -> None:
    """Instances that want one get it, on every connection."""
    put(tmp_path, own=ALICE)
    instance = make_secure(Instance(), instance_side(ca=AUTHORITY.pem))
    own = f'certificate = "{tmp_path}/own.pem"\nkey = "{tmp_path}/own.key"'
    async with bed(instance, listener=ended_here(tmp_path), service=to_instances(tmp_path, own)) as b:
        await _use(b)


async def test_an_instance_that_dies_and_returns(tmp_path: Path) -> None:
    """Its connections are made anew, with their handshakes."""
    instance = make_secure(Instance(), instance_side())
    async with bed(instance, listener=ended_here(tmp_path), service=to_instances(tmp_path)) as b:
        await _use(b)
        instance.kill()
        await until(lambda: not instance.links)
        await instance.start()
        await in_time(_until_served(b))


async def _until_served(b: Bed) -> None:
    async with real(b) as client:
        while True:
            try:
                assert await client.call("m", "x") == ["x"]
            except RpcError:
                await asyncio.sleep(0.05)
            else:
                return
