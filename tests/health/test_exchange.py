"""One connection of a check, seen from the instance's end: what it is asked, and how it is left."""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator

import pytest
import trustme

from tcpgw.endpoints import Endpoint
from tcpgw.errors import OverloadError
from tcpgw.health import probes
from tcpgw.health.exchange import Secure, in_words
from tests.support.rpc_ends import nothing_left
from tests.support.streams import Peer, dial, in_time, until

PING = probes.send_expect(b"PING\r\n", b"+PONG")
# Seconds: never over, and soon; yet a loop that is late by half of it is too busy to judge.
LONG, SHORT = 10.0, 0.2


@pytest.fixture(autouse=True)
async def leaves_nothing() -> AsyncIterator[None]:
    async with nothing_left():
        yield


class Instance:
    """A listening socket, and a probe of it that runs."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.endpoint = Endpoint.of(*sock.getsockname()[:2])

    async def accept(self) -> Peer:
        sock, _ = await in_time(asyncio.get_running_loop().sock_accept(self.sock))
        return Peer(sock)

    def probed(self, probe: probes.Probe, seconds: float = LONG) -> asyncio.Task[str | None]:
        return asyncio.create_task(probe(self.endpoint, seconds))


@pytest.fixture
def instance() -> Iterator[Instance]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setblocking(False)
        yield Instance(sock)


@contextlib.asynccontextmanager
async def accepted(
    instance: Instance, probe: probes.Probe, seconds: float = LONG
) -> AsyncIterator[tuple[Peer, asyncio.Task[str | None]]]:
    """A probe's connection as the instance has it, and the probe."""
    probed = instance.probed(probe, seconds)
    peer = await instance.accept()
    with contextlib.closing(peer):
        yield peer, probed
        await in_time(asyncio.wait([probed]))


# ---- plain ----


async def test_an_answer(instance: Instance) -> None:
    """Once the answer is there, in whatever pieces, both sides end by FIN."""
    async with accepted(instance, PING) as (peer, probed):
        assert await peer.read(6) == b"PING\r\n"
        await peer.send(b"+PO")
        await peer.send(b"NG\r\n")
        assert await peer.read_to_end() == b""
        peer.fin()
        assert await in_time(probed) is None


async def test_a_wrong_answer_at_the_end(instance: Instance) -> None:
    """An answer that was another until the connection ended is shown."""
    async with accepted(instance, PING) as (peer, probed):
        await peer.send(b"-LOADING\r\n")
        peer.fin()
        assert await in_time(probed) == "answered b'-LOADING' instead of b'+PONG'"


async def test_the_instance_ends_first(instance: Instance) -> None:
    """Where the question asks for the end, FIN is awaited, so that TIME_WAIT stays with the instance."""
    async with accepted(instance, probes.http()) as (peer, probed):
        await peer.read(10)
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
        await peer.send(b"and a body")
        peer.fin()
        assert await in_time(probed) is None
        assert not await peer.is_reset()


@pytest.mark.parametrize("probe", [PING, probes.http()])
async def test_an_instance_that_does_not_end(instance: Instance, probe: probes.Probe) -> None:
    """A right answer is one even if no FIN follows it: nobody waits long for that."""
    async with accepted(instance, probe) as (peer, probed):
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\n+PONG\r\n")
        assert await in_time(probed) is None


async def test_a_right_answer_at_the_last_moment(instance: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    """A right answer counts, though the time-out comes before the instance's FIN."""
    monkeypatch.setattr("tcpgw.health.exchange._PARTING", LONG)
    async with accepted(instance, PING, SHORT) as (peer, probed):
        await peer.send(b"+PONG\r\n")
        assert await in_time(probed) is None


async def test_no_answer(instance: Instance) -> None:
    """A black hole takes the whole time-out, and is left by RST."""
    async with accepted(instance, PING, SHORT) as (peer, probed):
        assert await in_time(probed) == "no answer within 0.2 s"
        assert await peer.is_reset()


async def test_half_an_answer(instance: Instance) -> None:
    """What came until the time-out is shown."""
    async with accepted(instance, PING, SHORT) as (peer, probed):
        await peer.send(b"-LOADING\r\n")
        assert await in_time(probed) == "answered b'-LOADING' instead of b'+PONG'"
        assert await peer.is_reset()


async def test_an_endless_answer(instance: Instance) -> None:
    """No more than 64 KiB are kept of an answer that does not come to the point."""
    async with accepted(instance, PING) as (peer, probed):
        await peer.send(bytes((64 << 10) + 1))
        assert "instead of b'+PONG'" in (await in_time(probed) or "")


async def test_closed(instance: Instance) -> None:
    """A connection that is closed without a word is no answer."""
    async with accepted(instance, PING) as (peer, probed):
        peer.fin()
        assert await in_time(probed) == "no answer, connection closed"


async def test_reset(instance: Instance) -> None:
    """Nor is one that is reset."""
    async with accepted(instance, PING) as (peer, probed):
        peer.reset()
        assert await in_time(probed) == "no answer, connection reset"


async def test_cancelled(instance: Instance) -> None:
    """A cancelled check is left by RST at once."""
    async with accepted(instance, PING) as (peer, probed):
        await peer.read(6)
        probed.cancel()
        assert await peer.is_reset()
        assert probed.cancelled()


@pytest.mark.parametrize("probe", [PING, probes.tcp])
async def test_cancelled_while_connecting(probe: probes.Probe) -> None:
    """Nor does one leave anything that was cancelled before it was connected."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as sock:
        instance = Instance(sock)
        with contextlib.closing(dial(sock.getsockname())):
            probed = instance.probed(probe)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(probed, SHORT)


@pytest.mark.parametrize("probe", [PING, probes.tcp])
async def test_held_up(probe: probes.Probe) -> None:
    """A time-out that came much too late says nothing of the instance: it was we who did not listen."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as sock:
        instance = Instance(sock)
        with contextlib.closing(dial(sock.getsockname())):
            probed = instance.probed(probe, SHORT)
            await asyncio.sleep(0)
            time.sleep(3 * SHORT)  # noqa: ASYNC251 - the loop is to be held up
            with pytest.raises(OverloadError, match="too busy to judge"):
                await in_time(probed)


# ---- TLS ----


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


def secure(ca: trustme.CA, name: str = "instance.example") -> Secure:
    context = ssl.create_default_context()
    ca.configure_trust(context)
    return Secure(context, name)


def theirs(ca: trustme.CA, *, wants: bool = False) -> ssl.SSLContext:
    """An instance's TLS; `wants` makes it insist on a certificate of the gateway's."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("instance.example", "127.0.0.1").configure_cert(context)
    if wants:
        ca.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@contextlib.asynccontextmanager
async def serving(ca: trustme.CA, *, wants: bool = False) -> AsyncIterator[tuple[Instance, list[str]]]:
    """An instance that speaks TLS, and answers a line by PONG; and how its connections ended."""
    ends: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readline():
                writer.write(b"+PONG\r\n")
            ends.append("eof")
        except (OSError, ssl.SSLError) as exc:
            ends.append(type(exc).__name__)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=theirs(ca, wants=wants))
    async with server:
        yield Instance(server.sockets[0]), ends


TLS_PING = b"PING\n"


async def test_tls_answer(ca: trustme.CA) -> None:
    """Questions are asked through TLS as well, and it ends by close_notify on both sides."""
    async with serving(ca) as (instance, ends):
        probe = probes.send_expect(TLS_PING, b"+PONG", secure=secure(ca))
        assert await in_time(instance.probed(probe)) is None
        await until(lambda: ends)
        assert ends == ["eof"]


async def test_tls_alone(ca: trustme.CA) -> None:
    """A handshake is enough where nothing else is asked."""
    async with serving(ca) as (instance, ends):
        assert await in_time(instance.probed(probes.tls(secure(ca)))) is None
        await until(lambda: ends)
        assert ends == ["eof"]


async def test_tls_of_an_address(ca: trustme.CA) -> None:
    """Without a server's name, the certificate must be one of the endpoint's address."""
    async with serving(ca) as (instance, _):
        assert await in_time(instance.probed(probes.tls(secure(ca, "")))) is None


@pytest.mark.parametrize(
    ("name", "trusted", "why"),
    [
        (
            "other.example",
            True,
            "certificate refused: Hostname mismatch, certificate is not valid for 'other.example'.",
        ),
        ("instance.example", False, "certificate refused: unable to get local issuer certificate"),
    ],
)
async def test_tls_certificate_refused(ca: trustme.CA, name: str, trusted: bool, why: str) -> None:
    """A certificate of another name or authority fails the check, and the reason says which."""
    async with serving(ca) as (instance, ends):
        probe = probes.tls(secure(ca if trusted else trustme.CA(), name))
        assert await in_time(instance.probed(probe)) == why
        assert not ends


async def alert_of(tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, peer: Peer) -> str:
    """Shake hands as the instance until it fails, send what it has to say to that, and return the error."""
    while True:
        incoming.write(await peer.read_some())
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            await peer.send(outgoing.read())
        except ssl.SSLError as exc:
            if outgoing.pending:
                await peer.send(outgoing.read())
            peer.fin()
            return str(exc.reason)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_tls_certificate_refused_is_told(
    ca: trustme.CA, instance: Instance, version: ssl.TLSVersion
) -> None:
    """The instance whose certificate is refused gets an alert that says so."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = theirs(ca).wrap_bio(incoming, outgoing, server_side=True)
    ours = secure(ca, "other.example")
    ours.context.maximum_version = version
    async with accepted(instance, probes.tls(ours)) as (peer, probed):
        assert "ALERT" in await in_time(alert_of(tls, incoming, outgoing, peer))
        assert (await in_time(probed) or "").startswith("certificate refused: Hostname mismatch")


@pytest.mark.parametrize(
    ("version", "why"),
    [
        (ssl.TLSVersion.TLSv1_2, "TLS: sslv3 alert handshake failure"),
        (ssl.TLSVersion.TLSv1_3, "TLS: tlsv13 alert certificate required"),
    ],
)
async def test_tls_wants_our_certificate(
    ca: trustme.CA, instance: Instance, version: ssl.TLSVersion, why: str
) -> None:
    """An instance that refuses us fails the check, also where it does so after our side of the handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = theirs(ca, wants=True).wrap_bio(incoming, outgoing, server_side=True)
    ours = secure(ca)
    ours.context.maximum_version = version
    async with accepted(instance, probes.tls(ours)) as (peer, probed):
        await in_time(alert_of(tls, incoming, outgoing, peer))
        assert await in_time(probed) == why


async def test_tls_with_our_certificate(ca: trustme.CA) -> None:
    """The context's certificate is presented where the instance asks for one."""
    async with serving(ca, wants=True) as (instance, _):
        s = secure(ca)
        ca.issue_cert("gateway.example").configure_cert(s.context)
        assert await in_time(instance.probed(probes.tls(s))) is None


async def test_no_tls(ca: trustme.CA, instance: Instance) -> None:
    """An instance that does not speak TLS fails the check by what it says, or by its silence."""
    async with accepted(instance, probes.tls(secure(ca))) as (peer, probed):
        await peer.send(b"-ERR unknown command\r\n")
        peer.fin()
        assert await in_time(probed) == "TLS: wrong version number"
    async with accepted(instance, probes.tls(secure(ca)), SHORT) as (peer, probed):
        assert await in_time(probed) == "no TLS handshake within 0.2 s"
    async with accepted(instance, probes.tls(secure(ca))) as (peer, probed):
        peer.fin()
        assert await in_time(probed) == "no TLS handshake, connection closed"


def test_no_servers_name(ca: trustme.CA) -> None:
    """What can be no server's name is refused before any check is made with it."""
    with pytest.raises(ValueError, match="label empty"):
        secure(ca, ".example")


# ---- words ----


def test_errors_in_words() -> None:
    """Errors of the system read as an operator says them, and others as they are."""
    assert in_words(ConnectionRefusedError(111, "Connection refused")) == "refused"
    assert in_words(OSError(113, "")) == "no route to host"
    assert in_words(OSError("no number")) == "no number"
