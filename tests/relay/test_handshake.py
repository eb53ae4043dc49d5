"""Handshakes that come about, and refusals that reach whom they are for."""

import asyncio
import contextlib
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tcpgw.access.tls import ServerTls
from tcpgw.relay.handshake import Conversation, TlsHandshakeError, accept_tls
from tests.conftest import Need
from tests.support.certificates import AUTHORITY, HOUR, Authority, Issued, client_side, now, server_side
from tests.support.hellos import message, openssl_hello, records
from tests.support.streams import PATIENCE, in_time
from tests.support.tls import pair, shaken, versions

OTHERS = Authority()
GOOD = AUTHORITY.issue("client.example", cn="bob")
REVOKED = AUTHORITY.issue("revoked.example")
EXPIRED = AUTHORITY.issue("expired.example", expires=now() - HOUR)
STRANGER = OTHERS.issue("stranger.example")
CRL = AUTHORITY.crl([REVOKED])


def mutual(crl: bytes | None = CRL, **settings: Any) -> ServerTls:
    return server_side(client_ca=AUTHORITY.pem, client_crl=crl, **settings)


both = pytest.mark.parametrize("version", versions)


# ---- what is agreed on ----


@both
async def test_a_handshake(version: str) -> None:
    """Both ends know the host, the protocol and each other's names."""
    async with pair() as ends:
        tls = mutual(alpn=["h2", "http/1.1"])
        server, client = await shaken(*ends, tls, client_side(GOOD, version, ["http/1.1"]))
        assert server.ssl.version() == f"TLSv{version}"
        assert server.server_name == "localhost"
        assert server.alpn == client.alpn == "http/1.1"
        assert server.names == ("client.example", "bob")
        assert client.names == ("localhost",)


async def test_the_certificate_is_that_of_the_host_asked_for() -> None:
    """Of several, the client gets the one that it can believe."""
    tls = server_side(AUTHORITY.issue("second.example"))
    async with pair() as (here, there):
        loop = asyncio.get_running_loop()
        client = Conversation(loop, there, client_side(), "Second.Example", server_side=False)
        server, _ = await in_time(asyncio.gather(accept_tls(loop, here, tls), client.shake()))
        assert server.server_name == "second.example"
        assert client.names == ("second.example",)


async def test_a_client_without_a_certificate_where_it_is_optional() -> None:
    """It has no names then."""
    async with pair() as ends:
        server, _ = await shaken(*ends, mutual(client_required=False), client_side())
        assert server.names == ()
        assert server.alpn == ""


@both
async def test_a_hello_that_comes_byte_by_byte(version: str) -> None:
    """However the client's bytes are cut, and with the first of them read before."""
    async with pair() as (here, there):
        loop = asyncio.get_running_loop()
        client = Conversation(loop, there, client_side(version=version), "localhost", server_side=False)
        with contextlib.suppress(ssl.SSLWantReadError):
            client.ssl.do_handshake()
        sent = client.outgoing.read()
        accepting = asyncio.ensure_future(accept_tls(loop, here, server_side(), sent[:3]))

        async def dribble(data: bytes) -> None:
            for at in range(len(data)):
                there.send(data[at : at + 1])
                await asyncio.sleep(0)

        await dribble(sent[3:])
        while not accepting.done():
            client.incoming.write(await in_time(loop.sock_recv(there, 1 << 16)))
            with contextlib.suppress(ssl.SSLWantReadError):
                client.ssl.do_handshake()
            await dribble(client.outgoing.read())
            await asyncio.sleep(0.01)
        assert accepting.result().server_name == "localhost"


@both
async def test_what_is_said_before_a_layer_takes_over(version: str) -> None:
    """A preamble is read and answered; bytes that came with it are kept in their order, and then both end."""
    async with pair() as ends:
        server, client = await shaken(*ends, client=client_side(version=version))
        client.ssl.write(b"one\n")
        client.ssl.write(b"two\n")
        await client.send(b"three\n")
        assert [await in_time(server.receive()) for _ in range(3)] == [b"one\n", b"two\n", b"three\n"]
        await server.send(b"DENIED\n")
        assert await in_time(client.receive()) == b"DENIED\n"
        ending = asyncio.ensure_future(server.end())
        assert await in_time(client.receive()) == b""
        await in_time(client.end())
        await in_time(ending)
        assert await in_time(server.receive()) == b""


async def test_a_peer_that_is_gone_has_nothing_more_to_say() -> None:
    """FIN without close_notify is an end too, here."""
    async with pair() as ends:
        server, _ = await shaken(*ends)
        ends[1].shutdown(socket.SHUT_WR)
        assert await in_time(server.receive()) == b""


# ---- refusals ----


@contextlib.asynccontextmanager
async def refusing(tls: ServerTls) -> AsyncIterator[tuple[int, "asyncio.Future[str]"]]:
    """A listener that shakes one hand, and the reason for which it does not. The socket is closed at once."""
    loop = asyncio.get_running_loop()

    async def serve() -> str:
        accepted, _ = await loop.sock_accept(sock)
        with accepted:
            try:
                await accept_tls(loop, accepted, tls)
            except TlsHandshakeError as exc:
                return str(exc)
            return ""

    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setblocking(False)
        task = loop.create_task(serve())
        yield sock.getsockname()[1], task
        await in_time(task)


def alert_at(port: int, context: ssl.SSLContext) -> str:
    """Connect as a client that sends much at once, and return the alert that it reads."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as raw:
        try:
            with context.wrap_socket(raw, server_hostname="localhost") as sock:
                sock.sendall(b"x" * 100_000)
                while sock.recv(1000):
                    pass
        except ssl.SSLError as exc:
            return exc.reason or str(exc)
    return ""


CASES: list[tuple[str, Issued | None, Callable[[], ServerTls], str, str]] = [
    ("absent", None, mutual, "certificate required", "no certificate was shown, and one is required"),
    ("unknown ca", STRANGER, mutual, "unknown ca", "unable to get local issuer certificate"),
    ("revoked", REVOKED, mutual, "certificate revoked", "certificate revoked"),
    ("expired", EXPIRED, mutual, "certificate expired", "certificate has expired"),
    (
        "stale list",
        GOOD,
        lambda: mutual(AUTHORITY.crl(until=now() - HOUR)),
        "certificate expired",
        "CRL has expired: client_crl is out of date, so every client is refused; renew it",
    ),
    (
        "no list of the issuer",
        GOOD,
        lambda: mutual(OTHERS.crl()),
        "unknown ca",
        "unable to get certificate CRL: client_crl has none of this certificate's issuer; add it",
    ),
]
cases = pytest.mark.parametrize(
    ("own", "tls", "alert", "text"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)


@both
@cases
async def test_a_refused_client_reads_the_alert(
    own: Issued | None, tls: Callable[[], ServerTls], alert: str, text: str, version: str
) -> None:
    """Why, though with TLS 1.3 it has been sending for long; the operator reads it too."""
    if own is None and version == "1.2":
        alert = "handshake failure"  # certificate_required is of TLS 1.3
    async with refusing(tls()) as (port, reason):
        told = await asyncio.to_thread(alert_at, port, client_side(own, version))
    assert alert in told.lower().replace("_", " ")
    assert reason.result().endswith(text)


@both
@cases
async def test_the_openssl_command_reads_the_alert(
    own: Issued | None,
    tls: Callable[[], ServerTls],
    alert: str,
    text: str,
    version: str,
    need: Need,
    tmp_path: Path,
) -> None:
    """The same, of a client that is not Python's."""
    if own is None and version == "1.2":
        alert = "handshake failure"
    command = [need("openssl"), "s_client", f"-tls{version.replace('.', '_').removesuffix('_0')}"]
    if own:
        (tmp_path / "pem").write_bytes(own.chain + own.key)
        command += ["-cert", str(tmp_path / "pem")]
    async with refusing(tls()) as (port, reason):
        command += ["-connect", f"127.0.0.1:{port}"]
        client = await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(b"x\n")
        out = await in_time(client.stdout.read())
        client.stdin.close()
        await in_time(client.wait())
    assert f"alert {alert}" in out.decode()
    assert reason.result().endswith(text)


@pytest.mark.parametrize(
    ("said", "text", "least", "told"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "plain HTTP instead of TLS", "1.2", b""),
        (b"TCPGW AUTH token\n", "something else than TLS", "1.2", b""),
        (openssl_hello(version=ssl.TLSVersion.TLSv1_2), "no version of TLS in common", "1.3", b"\x15"),
        (records(message()), "no cipher in common", "1.2", b"\x15"),
    ],
)
async def test_who_speaks_something_else(said: bytes, text: str, least: str, told: bytes) -> None:
    """The operator is told what it was; the client gets an alert, where it may know what that is, and FIN."""
    async with refusing(server_side(min_version=least)) as (port, reason):
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.settimeout(PATIENCE)
            sock.send(said)
            alert = await asyncio.to_thread(sock.recv, 100)
    assert reason.result() == text
    assert alert[:1] == told


async def test_a_host_name_that_is_none_gets_the_first_certificate() -> None:
    """A name that cannot be a certificate's is not a reason to refuse; nothing is said of it on stderr."""
    hello = openssl_hello("good.example").replace(b"good.example", b"g\xff\xff\xff.example")
    async with refusing(server_side()) as (port, reason):
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.settimeout(PATIENCE)
            sock.send(hello)
            assert (await asyncio.to_thread(sock.recv, 16384))[:1] == b"\x16"
            sock.shutdown(socket.SHUT_WR)
            await in_time(asyncio.wait([reason]))
    assert reason.result() == "closed within the handshake"


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (b"", "closed at byte 0, within the ClientHello"),
        (openssl_hello()[:50], "closed at byte 50, within the ClientHello"),
        (openssl_hello(), "closed within the handshake"),
    ],
)
async def test_a_client_that_leaves(said: bytes, text: str) -> None:
    """Where it left is told."""
    async with refusing(server_side()) as (port, reason):
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.send(said)
            sock.shutdown(socket.SHUT_WR)
            await in_time(asyncio.wait([reason]))
    assert reason.result() == text


async def test_a_client_that_does_not_believe_us() -> None:
    """Its alert is what the operator reads."""
    stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    async with refusing(server_side()) as (port, reason):
        told = await asyncio.to_thread(alert_at, port, stranger)
    assert told == "CERTIFICATE_VERIFY_FAILED"
    assert reason.result() == "tlsv1 alert unknown ca"


async def test_a_refused_client_that_stays_is_left() -> None:
    """It has a second to read why."""
    async with pair() as (here, there):
        there.send(b"GET / HTTP/1.1\r\n\r\n")
        began = asyncio.get_running_loop().time()
        with pytest.raises(TlsHandshakeError):
            await in_time(accept_tls(asyncio.get_running_loop(), here, server_side()))
        assert 0.9 < asyncio.get_running_loop().time() - began < 5


async def test_a_client_that_resets() -> None:
    """That is its socket's failure."""
    async with pair() as (here, there):
        there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        there.close()
        with pytest.raises(ConnectionResetError):
            await in_time(accept_tls(asyncio.get_running_loop(), here, server_side()))


async def test_a_cancelled_handshake_leaves_the_socket_to_the_caller() -> None:
    """A time-out round it is enough."""
    async with pair() as (here, _):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await accept_tls(asyncio.get_running_loop(), here, server_side())
        assert here.fileno() >= 0
