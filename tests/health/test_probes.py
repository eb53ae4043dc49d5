"""Every kind of check, of real servers."""

import asyncio
import contextlib
import resource
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web

from tcpgw.endpoints import Endpoint
from tcpgw.errors import OverloadError
from tcpgw.health import probes
from tcpgw.health.exchange import Secure
from tcpgw.service import Service
from tests.conftest import Need
from tests.support.processes import free_port, running
from tests.support.rpc_ends import nothing_left
from tests.support.streams import dial, in_time

LOCAL = "127.0.0.1"
# Seconds: never over, and soon; yet a loop that is late by half of it is too busy to judge.
LONG, SHORT = 10.0, 0.2


@pytest.fixture(autouse=True)
async def leaves_nothing() -> AsyncIterator[None]:
    async with nothing_left():
        yield


async def checked(probe: probes.Probe, endpoint: Endpoint, seconds: float = LONG) -> str | None:
    return await in_time(probe(endpoint, seconds))


@pytest.fixture
def closed() -> Endpoint:
    return Endpoint.of(LOCAL, free_port())


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


def tls_of(ca: trustme.CA) -> tuple[ssl.SSLContext, Secure]:
    """An instance's TLS and a gateway's."""
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert(LOCAL).configure_cert(theirs)
    ours = ssl.create_default_context()
    ca.configure_trust(ours)
    return theirs, Secure(ours)


# ---- all kinds ----


def every_kind(ca: trustme.CA) -> list[probes.Probe]:
    _, secure = tls_of(ca)
    return [
        probes.tcp,
        probes.tls(secure),
        probes.http(),
        probes.rpc("tcpgw.ping"),
        probes.send_expect(b"PING\r\n", b"+PONG"),
    ]


async def test_refused(ca: trustme.CA, closed: Endpoint) -> None:
    """Where nobody listens every kind says so."""
    for probe in every_kind(ca):
        assert await checked(probe, closed) == "refused"


async def test_full_backlog(ca: trustme.CA) -> None:
    """An instance that accepts nobody any more gives no answer, though it listens."""
    with socket.create_server((LOCAL, 0), backlog=0) as sock, contextlib.closing(dial(sock.getsockname())):
        endpoint = Endpoint.of(*sock.getsockname())
        reasons = await asyncio.gather(*(checked(probe, endpoint, SHORT) for probe in every_kind(ca)))
        assert set(reasons) == {"no connection within 0.2 s"}


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_no_descriptors(ca: trustme.CA, closed: Endpoint) -> None:
    """Where this process may open nothing more it is not the endpoint that is to blame."""
    for probe in every_kind(ca):
        with no_descriptors(), pytest.raises(OverloadError, match="Too many open files"):
            await probe(closed, LONG)


# ---- tcp ----


@pytest.mark.parametrize("host", [LOCAL, "::1"])
async def test_tcp(host: str) -> None:
    """Who listens passes; its program never hears of it, and nothing stays in TIME_WAIT."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as sock:
        sock.setblocking(False)
        endpoint = Endpoint.of(*sock.getsockname()[:2])
        before = in_time_wait(endpoint.port)
        for _ in range(20):
            assert await checked(probes.tcp, endpoint) is None
        # Not one, unless a busy machine took longer than the kernel holds back an ACK.
        assert heard(sock) < 10
    assert in_time_wait(endpoint.port) <= before


def heard(sock: socket.socket) -> int:
    """How many connections there are to be accepted."""
    number = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.accept()[0].close()
            number += 1
    return number


def in_time_wait(port: int) -> set[str]:
    """Both ends of all connections to or from a port that are in that state (6: proc_net_tcp)."""
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()
    ]
    ends = [f"{line[1]} {line[2]} " for line in lines if line[3] == "06"]
    return {both for both in ends if f":{port:04X} " in both}


async def test_tcp_of_one_that_resets() -> None:
    """A connection that is taken and then reset was taken: only questions find out more."""

    def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    server = await asyncio.start_server(reset, LOCAL, 0)
    async with server:
        endpoint = Endpoint.of(*server.sockets[0].getsockname())
        assert await checked(probes.tcp, endpoint) is None
        why = await checked(probes.send_expect(b"PING\r\n", b"+PONG"), endpoint)
        assert why in {"no answer, connection reset", "no answer, connection closed"}


# ---- http ----


async def _status(request: web.Request) -> web.Response:
    return web.Response(status=int(request.match_info["status"]), text=request.headers["Host"])


async def _large(_: web.Request) -> web.Response:
    return web.Response(body=bytes(1 << 20))


async def _slow(_: web.Request) -> web.Response:
    await asyncio.sleep(LONG)
    return web.Response()


@contextlib.asynccontextmanager
async def web_server(tls: ssl.SSLContext | None = None) -> AsyncIterator[Endpoint]:
    app = web.Application()
    app.router.add_get("/status/{status}", _status)
    app.router.add_get("/large", _large)
    app.router.add_get("/slow", _slow)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, LOCAL, 0, ssl_context=tls).start()
        yield Endpoint.of(*runner.addresses[0])
    finally:
        await runner.cleanup()


async def test_http() -> None:
    """A web server is judged by its status."""
    async with web_server() as endpoint:
        assert await checked(probes.http("/status/200"), endpoint) is None
        assert await checked(probes.http("/status/302"), endpoint) is None
        assert await checked(probes.http("/status/503"), endpoint) == "status 503"
        assert await checked(probes.http("/status/503", statuses=[range(500, 504)]), endpoint) is None
        assert await checked(probes.http("/large"), endpoint) is None
        assert await checked(probes.http("/slow"), endpoint, SHORT) == "no answer within 0.2 s"


async def test_https(ca: trustme.CA) -> None:
    """So it is through TLS, which the other side must speak as well."""
    theirs, secure = tls_of(ca)
    async with web_server(theirs) as endpoint:
        assert await checked(probes.http("/status/200", secure=secure), endpoint) is None
        assert await checked(probes.http("/status/500", secure=secure), endpoint) == "status 500"
    async with web_server() as endpoint:
        why = await checked(probes.http("/status/200", secure=secure), endpoint)
        assert why is not None
        assert why.startswith("TLS: ")


# ---- rpc ----


def _fail(*_: Any) -> None:
    raise RuntimeError("not yet")


async def test_rpc() -> None:
    """A service answers its ping, or any other method as expected."""
    async with Service({"add": lambda a, b: a + b, "fail": _fail}).serving(f"{LOCAL}:0") as address:
        endpoint = Endpoint.parse(address)
        assert await checked(probes.rpc("tcpgw.ping"), endpoint) is None
        assert await checked(probes.rpc("tcpgw.ping", expect="pong"), endpoint) is None
        assert await checked(probes.rpc("add", [1, 2], expect=3), endpoint) is None
        assert await checked(probes.rpc("add", [1, 2], expect=4), endpoint) == "answered 3 instead of 4"
        assert await checked(probes.rpc("nowhere"), endpoint) is None
        for method in ("nowhere", "fail"):
            why = await checked(probes.rpc(method, expect=1), endpoint)
            assert why is not None
            assert why.startswith("error ")


async def test_rpc_through_tls(ca: trustme.CA) -> None:
    """So does one behind TLS."""
    theirs, secure = tls_of(ca)
    async with Service(tls=theirs).serving(f"{LOCAL}:0") as address:
        probe = probes.rpc("tcpgw.ping", expect="pong", secure=secure)
        assert await checked(probe, Endpoint.parse(address)) is None
        assert await checked(probes.tls(secure), Endpoint.parse(address)) is None


async def test_rpc_of_a_web_server() -> None:
    """A server of another protocol fails, and its answer is shown."""
    async with web_server() as endpoint:
        why = await checked(probes.rpc("tcpgw.ping"), endpoint)
        assert why is not None
        assert why.startswith("answered b'HTTP/1.")


# ---- send_expect ----


async def test_redis(need: Need, tmp_path: Path) -> None:
    """Redis answers PING by PONG, and what it says instead of anything else is shown."""
    port = free_port()
    command = [
        need("redis-server"),
        "--port",
        str(port),
        "--bind",
        LOCAL,
        "--save",
        "",
        "--dir",
        str(tmp_path),
    ]
    with running(command, tmp_path / "redis.log", (LOCAL, port)):
        endpoint = Endpoint.of(LOCAL, port)
        assert await checked(probes.tcp, endpoint) is None
        assert await checked(probes.send_expect(b"PING\r\n", b"+PONG\r\n"), endpoint) is None
        why = await checked(probes.send_expect(b"AUTH x\r\n", b"+OK"), endpoint, 0.3)
        assert why is not None
        assert why.startswith("answered b'-ERR")
        assert why.endswith("instead of b'+OK'")
        assert await checked(probes.http(), endpoint) is not None
