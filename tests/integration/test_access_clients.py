"""The client library and `tcpgw call` at a gateway that asks for credentials."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tcpgw.access import jwks as jwks_url
from tcpgw.client import Client, ConnectionLostError, RpcError, SyncClient, connect
from tcpgw.relay.reasons import Reason
from tests.support.access import KINDS, Book, bad_tokens, configuration, gate, now_claims, started
from tests.support.issuer import Issuer
from tests.support.rpc import Instance
from tests.support.streams import in_time, until
from tests.support.tokens import jwks, public_ec, public_rsa, signed

RPC = 'mode = "rpc"\n'


@pytest.mark.parametrize("kind", KINDS)
async def test_a_token(kind: str, tmp_path: Path) -> None:
    """It is shown on each connection, also on one that is made after a loss."""
    book, instance = Book(tmp_path), Instance()
    async with gate(configuration(await started(instance), RPC + book.access()), instance) as g:
        async with connect(g.listener.address, token=book.token(kind).decode()) as client:
            assert await client.call("m", 1) == [1]
            (connection,) = g.listener.connections.values()
            assert connection.session is not None
            connection.session.abort(Reason.INTERNAL, reset=True)
            await until(lambda: not g.listener.connections)
            answers = await asyncio.gather(*(client.call("m", number) for number in range(50)))
            assert answers == [[number] for number in range(50)]
        await until(lambda: g.listener.ended.total() == 2)
        assert {line["subject"] for line in g.events("connection_closed")} == {"alice"}


async def test_a_wrong_token(tmp_path: Path) -> None:
    """Entering and calling raise what the gateway says, the same for all causes; so does no token."""
    book, instance = Book(tmp_path), Instance()
    async with gate(configuration(await started(instance), RPC + book.access()), instance) as g:
        for token in bad_tokens(book).values():
            client = Client(g.listener.address, token=token.decode())
            with pytest.raises(RpcError) as caught:
                await client.__aenter__()
            assert (caught.value.code, caught.value.message) == ("unauthenticated", "access denied")
        async with connect(g.listener.address) as client:
            with pytest.raises(RpcError, match="unauthenticated"):
                await client.call("m", 1)
        assert not instance.requests


async def test_who_may_use_nothing_here(tmp_path: Path) -> None:
    """A good token for other services is refused as such at once, and an address where it is not allowed."""
    book, instance = Book(tmp_path), Instance()
    other = book.add("other", services=["else*"])
    endpoints = await started(instance)
    async with gate(configuration(endpoints, RPC + book.access('deny = ["127.0.0.2"]')), instance) as g:
        with pytest.raises(RpcError, match="denied: access denied"):
            await connect(g.listener.address, token=other.decode()).__aenter__()
        limited = book.token("api_key").decode()
        async with connect(g.listener.address, token=limited) as client:
            assert await client.call("m", 1) == [1]
    async with gate(configuration(endpoints, RPC + '[listener.access]\nallow = ["192.0.2.1"]')) as g:
        with pytest.raises(RpcError, match="denied: access denied"):
            await connect(g.listener.address, token="t").__aenter__()


async def test_a_token_that_expires(tmp_path: Path) -> None:
    """Its connections are ended then, at a moment without a request under way; the next one is refused."""
    book, instance = Book(tmp_path), Instance()
    lines = RPC + 'idle_timeout = "800ms"\n' + book.access(leeway="100ms")
    async with gate(configuration(await started(instance), lines), instance) as g:
        token = signed(now_claims(exp=time.time() + 0.4), "ES256").decode()
        async with connect(g.listener.address, token=token) as client:
            served, refused = 0, None
            async with asyncio.timeout(10):
                while refused is None:
                    try:
                        assert await client.call("m", 1) == [1]
                        served += 1
                    except ConnectionLostError:  # it was sent as FIN came
                        pass
                    except RpcError as exc:
                        refused = exc
                    await asyncio.sleep(0.01)
            assert refused.code == "unauthenticated"
            assert served > 10
        await until(lambda: g.ended() == {"access_ended": 1, "denied_credentials": 1})


async def test_without_asyncio(tmp_path: Path) -> None:
    """SyncClient does the same."""
    book, instance = Book(tmp_path), Instance()

    def talk(address: str) -> None:
        with SyncClient(address, token=book.token("HS256").decode()) as client:
            assert client.call("m", 1) == [1]
        with pytest.raises(RpcError, match="unauthenticated"), SyncClient(address, token="x"):
            pass

    async with gate(configuration(await started(instance), RPC + book.access()), instance) as g:
        await in_time(asyncio.to_thread(talk, g.listener.address))


async def test_the_command(tmp_path: Path) -> None:
    """`tcpgw call --token` takes it from the environment or a file, and says when it is refused."""
    book, instance = Book(tmp_path), Instance()
    (tmp_path / "token").write_bytes(book.token("RS256"))

    def call(address: str, where: str, **env: bytes) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "tcpgw", "call", address, "m", "5", "--token", where]
        shown = {name: value.decode() for name, value in env.items()}
        return subprocess.run(
            command, env={**os.environ, **shown}, capture_output=True, text=True, timeout=30, check=False
        )

    async with gate(configuration(await started(instance), RPC + book.access()), instance) as g:
        address = g.listener.address
        good, from_file, wrong = await asyncio.gather(
            asyncio.to_thread(call, address, "env:A_TOKEN", A_TOKEN=book.key),
            asyncio.to_thread(call, address, f"file:{tmp_path / 'token'}"),
            asyncio.to_thread(call, address, "env:A_TOKEN", A_TOKEN=book.expired),
        )
        for done in (good, from_file):
            assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["[", "5", "]"], "")
        assert (wrong.returncode, wrong.stdout) == (1, "")
        assert "unauthenticated: access denied" in wrong.stderr
        assert book.expired.decode() not in wrong.stderr


# ---- keys behind a URL, in one process ----


async def test_a_key_that_the_issuer_has_just_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients wait while it is asked for once, and get in; nobody can have it asked for more often."""
    issuer, instance = Issuer(jwks(public_rsa())), Instance()
    async with issuer.serving():
        lines = f"""
            [listener.access.jwt]
            algorithms = ["RS256", "ES256"]
            jwks = "{issuer.url}"
            audience = "tcpgw"
        """
        async with gate(configuration(await started(instance), RPC + lines), instance) as g:
            address = g.listener.address
            await (await g.client(signed(now_claims(), "RS256"))).is_served()
            assert issuer.asked == 1
            issuer.text = jwks(public_rsa(), public_ec())
            new = signed(now_claims(), "ES256").decode()
            with pytest.raises(RpcError, match="unauthenticated"):  # it was asked a moment ago
                await connect(address, token=new).__aenter__()
            assert issuer.asked == 1
            monkeypatch.setattr(jwks_url, "AT_MOST_EVERY", 0.0)
            issuer.delay = 0.2
            clients = [Client(address, token=new) for _ in range(20)]
            assert await asyncio.gather(*(client.call("m", 1) for client in clients)) == [[1]] * 20
            assert issuer.asked == 2
            for client in clients:
                await client.close()
            monkeypatch.setattr(jwks_url, "AT_MOST_EVERY", 30.0)
            stranger = signed(now_claims(), "RS256", kid="r9").decode()
            for _ in range(5):
                with pytest.raises(RpcError, match="unauthenticated"):
                    await connect(address, token=stranger).__aenter__()
            assert issuer.asked == 2
