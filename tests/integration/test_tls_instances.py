"""TLS to instances: verified unless somebody says otherwise, and the log says why one is not believed."""

import asyncio
import os
import ssl
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.certificates import AUTHORITY, Authority, Issued, client_side, now
from tests.support.framed import U32BE, u32be
from tests.support.secure import PLAIN_TLS, SecureBed, Secured, bed, instance_side, put, versions
from tests.support.streams import MiB, in_time, until

EXPIRED = AUTHORITY.issue("127.0.0.1", "localhost", expires=now() - timedelta(hours=1))
ELSEWHERE = AUTHORITY.issue("elsewhere.example.com", "192.0.2.1")
STRANGER = Authority().issue("127.0.0.1", "localhost")
OWN = AUTHORITY.issue("gateway.example.com")

TLS = '[service.tls]\nca = "ca.pem"\n'


async def asked(b: SecureBed, context: ssl.SSLContext | None = None, number: int = 0) -> None:
    """A client without TLS is served by an instance with it."""
    client = b.dial()
    instance = await b.instance(context or instance_side(), number)
    await client.send(u32be(b"question"))
    assert await instance.read(12) == u32be(b"question")
    await instance.send(u32be(b"answer"))
    assert await client.read(10) == u32be(b"answer")


async def refused(b: SecureBed, context: ssl.SSLContext, number: int = 0) -> str:
    """The alert that an instance reads in place of a client's connection."""
    try:
        await (await b.instance(context, number)).read_some()
    except ssl.SSLError as exc:
        return str(exc.reason)
    return ""


@pytest.mark.parametrize("version", versions)
@pytest.mark.parametrize("mode", ["", U32BE], ids=["stream", "framed"])
async def test_an_instance_that_is_believed(tmp_path: Path, mode: str, version: str) -> None:
    """By the authority, and by its address where no name is said."""
    async with bed(tmp_path, listener=mode, service=TLS) as b:
        await asked(b, instance_side(version=version))


@pytest.mark.parametrize("version", versions)
async def test_tls_on_both_sides(tmp_path: Path, version: str) -> None:
    """Megabytes each way, and each direction ends for itself."""
    async with bed(tmp_path, listener=PLAIN_TLS, service=TLS) as b:
        client = await b.client(client_side(version=version))
        instance = await b.instance(instance_side(version=version))
        asked, answered = os.urandom(5 * MiB), os.urandom(5 * MiB)

        async def ask() -> None:
            await client.send(asked)
            await client.end()

        _, got = await in_time(asyncio.gather(ask(), instance.read_to_end()))
        assert got == asked
        _, got = await in_time(asyncio.gather(instance.send(answered), client.read(len(answered))))
        assert got == answered
        await instance.end()
        assert await client.read_to_end() == b""
        assert (await b.line())["reason"] == "client_fin"


@pytest.mark.parametrize("version", versions)
@pytest.mark.parametrize(
    ("shown", "alert", "error"),
    [
        (STRANGER, "UNKNOWN_CA", "unable to get local issuer certificate"),
        (ELSEWHERE, "BAD_CERTIFICATE", "IP address mismatch"),
        (EXPIRED, "CERTIFICATE_EXPIRED", "certificate has expired"),
    ],
    ids=["stranger", "elsewhere", "expired"],
)
async def test_instances_that_are_not_believed(
    tmp_path: Path, shown: Issued, alert: str, error: str, version: str
) -> None:
    """The client gets no byte of them, the instance none of the client's; both it and the log know why."""
    async with bed(tmp_path, service=f"connect.candidates = 1\n{TLS}", listener="") as b:
        client = b.dial()
        await client.send(b"secret")
        assert alert in await refused(b, instance_side(shown, version))
        line = await b.line()
        assert line["reason"] == "connect_failed"
        assert line["error"].startswith(f"{b.endpoint()}: TLS: the certificate is refused: ")
        assert error in line["error"]
        assert (line["bytes_in"], line["tries"]) == (0, 1)


async def test_other_candidates_are_tried(tmp_path: Path) -> None:
    """An instance that is not believed is as good as one that is dead: the next one is asked."""
    async with bed(tmp_path, listener="", service=TLS, instances=2, balance='policy = "round_robin"') as b:
        refusals = []

        async def disbelieved() -> None:
            while True:
                refusals.append(await refused(b, instance_side(STRANGER), 0))

        refusing = asyncio.create_task(disbelieved())
        for _ in range(4):
            await asked(b, number=1)
        refusing.cancel()
        await asyncio.gather(refusing, return_exceptions=True)
        assert len(refusals) >= 1
        b.close_peers()
        await b.closed(4)
        assert {line["tries"] for line in b.lines} == {1, 2}


async def test_the_name_that_is_asked_for(tmp_path: Path) -> None:
    """`server_name` is sent, and the certificate must have it instead of the address."""
    named = AUTHORITY.issue("model.internal")
    asked_for = []
    context = instance_side(named)
    context.sni_callback = lambda _, name, __: asked_for.append(name)
    async with bed(tmp_path, listener="", service=f'{TLS}server_name = "model.internal"') as b:
        await asked(b, context)
        assert asked_for == ["model.internal"]
    async with bed(
        tmp_path, listener="", service=f'connect.candidates = 1\n{TLS}server_name = "x.internal"'
    ) as b:
        b.dial()
        assert "BAD_CERTIFICATE" in await refused(b, context)
        assert "Hostname mismatch" in (await b.line())["error"]


async def test_no_name_is_asked_for_by_address(tmp_path: Path) -> None:
    """RFC 6066 allows names alone."""
    context, asked_for = instance_side(), []
    context.sni_callback = lambda _, name, __: asked_for.append(name)
    async with bed(tmp_path, listener="", service=TLS) as b:
        await asked(b, context)
        assert asked_for in ([], [None])


async def test_without_verification(tmp_path: Path) -> None:
    """Whoever answers is believed, when the operator says so."""
    async with bed(tmp_path, listener="", service="tls = { verify = false }") as b:
        for shown in (STRANGER, EXPIRED, ELSEWHERE):
            await asked(b, instance_side(shown))


async def test_true_is_verified_by_the_system_s_authorities(tmp_path: Path) -> None:
    """An authority of one's own has to be named."""
    async with bed(tmp_path, listener="", service="connect.candidates = 1\ntls = true") as b:
        b.dial()
        assert "UNKNOWN_CA" in await refused(b, instance_side())
        assert "unable to get local issuer certificate" in (await b.line())["error"]


@pytest.mark.parametrize("version", versions)
async def test_the_gateway_s_own_certificate(tmp_path: Path, version: str) -> None:
    """It is shown to instances that want one."""
    put(tmp_path, own=OWN)
    own = f'{TLS}certificate = "own.pem"\nkey = "own.key"'
    async with bed(tmp_path, listener="", service=own) as b:
        context = instance_side(version=version, ca=AUTHORITY.pem)
        client = b.dial()
        instance = await b.instance(context)
        assert ("DNS", "gateway.example.com") in (instance.ssl.getpeercert() or {})["subjectAltName"]
        await client.send(b"x")
        assert await instance.read(1) == b"x"


@pytest.mark.parametrize("version", versions)
async def test_an_instance_that_wants_a_certificate_and_gets_none(tmp_path: Path, version: str) -> None:
    """With TLS 1.2 connecting fails; with 1.3 it is known too late for that, and is a reset."""
    async with bed(tmp_path, listener="", service=f"connect.candidates = 1\n{TLS}") as b:
        client = b.dial()
        context = instance_side(version=version, ca=AUTHORITY.pem)
        instance = Secured(await b.accept(), context, None, server_side=True)
        with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
            await instance.shake()
        await instance.flush()
        instance.peer.fin()
        reason = "connect_failed" if version == "1.2" else "instance_reset"
        assert (await b.line())["reason"] == reason
        if version == "1.3":
            assert await client.is_reset()


async def test_an_instance_without_tls(tmp_path: Path) -> None:
    """It is not sent what the client says."""
    async with bed(tmp_path, listener="", service=f"connect.candidates = 1\n{TLS}") as b:
        client = b.dial()
        await client.send(b"secret")
        instance = await b.accept()
        hello = await instance.read_some()
        assert hello[0] == 0x16
        await instance.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        line = await b.line()
        assert (line["reason"], line["error"]) == (
            "connect_failed",
            f"{b.endpoint()}: TLS: something else than TLS",
        )
        assert b"secret" not in await instance.read_to_end()


async def test_an_instance_that_is_silent(tmp_path: Path) -> None:
    """The time-out for connecting holds for both: the connection and the handshake."""
    service = f'connect = {{ candidates = 1, timeout = "300ms" }}\n{TLS}'
    async with bed(tmp_path, listener="", service=service) as b:
        b.dial()
        await b.accept()
        line = await b.line()
        assert (line["reason"], line["error"]) == (
            "connect_failed",
            f"{b.endpoint()}: no answer within 0.3 s",
        )


async def test_an_instance_that_says_no_goodbye(tmp_path: Path) -> None:
    """Its FIN without close_notify is its end, and where the service is strict a reset: it may be cut off."""
    async with bed(tmp_path, listener="", service=TLS) as b:
        client = b.dial()
        instance = await b.instance()
        await instance.send(b"an answer")
        instance.peer.fin()
        assert await client.read_to_end() == b"an answer"
        client.close()
        assert (await b.line())["reason"] == "instance_fin"
    async with bed(tmp_path, listener="", service=f"{TLS}strict = true\n") as b:
        client = b.dial()
        instance = await b.instance()
        await instance.send(b"half of an ans")
        assert await client.read(14) == b"half of an ans"
        instance.peer.fin()
        assert await client.is_reset()
        assert (await b.line())["reason"] == "instance_reset"


async def test_a_proxy_header_before_tls(tmp_path: Path) -> None:
    """`send_proxy` is the first that is said, before the handshake, as HAProxy and nginx have it."""
    async with bed(tmp_path, listener="", service=f'send_proxy = "v1"\n{TLS}') as b:
        client = b.dial()
        peer = await b.accept(0)
        host, port = client.sock.getsockname()
        header = f"PROXY TCP4 {host} 127.0.0.1 {port} {client.sock.getpeername()[1]}\r\n".encode()
        assert await peer.read(len(header)) == header
        instance = await Secured(peer, instance_side(), None, server_side=True).shake()
        await client.send(b"hello")
        assert await instance.read(5) == b"hello"


async def test_an_instance_that_speaks_with_its_handshake(tmp_path: Path) -> None:
    """Its first bytes come in one segment with the last of the handshake, and arrive."""
    async with bed(tmp_path, listener="", service=TLS) as b:
        client = b.dial()
        instance = await b.instance()
        await instance.send(b"220 ready")
        assert await client.read(9) == b"220 ready"


# ---- checks ----

CHECKED = "interval = '1s', fast_interval = '50ms', timeout = '1s', jitter = 0.0, rise = 1, fall = 2"


@pytest.mark.parametrize(
    "check",
    [
        f'type = "tls", ca = "ca.pem", {CHECKED}',
        f'type = "http", path = "/healthz", {CHECKED}',
    ],
    ids=["tls", "http"],
)
async def test_checks_over_tls(tmp_path: Path, check: str) -> None:
    """An instance whose certificate is good is used, one whose certificate is not gets no client."""
    health = f"panic = 0.0, passive = 'off', active = {{ {check} }}"
    contexts = (instance_side(), instance_side(EXPIRED))
    servers = []
    async with bed(tmp_path, listener="", service=TLS, health=health, instances=2) as b:

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            line = await reader.readline()
            if line.startswith(b"GET /healthz"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            elif line:
                writer.write(line)
            await writer.drain()
            writer.close()

        for sock, context in zip(b.instances, contexts, strict=True):
            servers.append(await asyncio.start_server(answer, sock=sock.dup(), ssl=context))
        endpoints = [b.endpoint(0), b.endpoint(1)]

        def states() -> list[str]:
            told = b.gateway.health.status()["s"]["states"]
            return [str(told.get(endpoint)) for endpoint in endpoints]

        await until(lambda: states() == ["healthy", "unhealthy"])
        for _ in range(5):
            client = b.dial()
            await client.send(b"hello\n")
            assert await client.read_to_end() == b"hello\n"
            client.close()
        await b.closed(5)
        assert {(line["endpoint"], line["tries"]) for line in b.lines} == {(endpoints[0], 1)}
        for server in servers:
            server.close()
        await b.gateway.drain(hard=1.0)
