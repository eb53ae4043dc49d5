"""Each kind of active check against a real server of its kind, which is well, then is not, then is again."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from tcpgw.app.gateway import Gateway
from tcpgw.service import Service
from tests.conftest import Need
from tests.support.certificates import AUTHORITY, SERVER, Authority
from tests.support.instances import Logs, serving
from tests.support.processes import free_port, running
from tests.support.sick import instances, of
from tests.support.streams import until

TIMES = 'interval = "100ms", fast_interval = "50ms", timeout = "90ms"'


class Checked:
    """A gateway whose only service has one endpoint."""

    def __init__(self, gateway: Gateway, logs: Logs) -> None:
        self._gateway = gateway
        self._logs = logs

    async def until(self, wanted: str) -> str:
        """Return the reason once the endpoint has that state."""
        await until(lambda: wanted in self._gateway.health.status()["s"]["states"].values())
        return str([line["why"] for line in of(self._logs, "endpoint_state")][-1])


@contextlib.asynccontextmanager
async def checked(
    endpoint: str, check: str, service: str = "", folder: Path = Path()
) -> AsyncIterator[Checked]:
    config = f"""
        [[service]]
        name = "s"
        discovery = {{ type = "static", endpoints = ["{endpoint}"] }}
        health = {{ active = {{ {check}, {TIMES} }}, passive = "off" }}
        {service}
        [[listener]]
        name = "l"
        bind = "127.0.0.1:0"
        route = "s"
    """
    async with serving(config, folder) as (gateway, logs):
        yield Checked(gateway, logs)


async def test_tcp() -> None:
    """A connection that comes up."""
    async with instances(1) as (one,), checked(one.endpoint, 'type = "tcp"') as c:
        assert await c.until("healthy") == "a check passed"
        one.down()
        assert await c.until("unhealthy") == "3 checks in a row failed: refused"
        one.up()
        assert await c.until("healthy") == "2 checks in a row passed"


async def test_another_port() -> None:
    """What listens at `port` of the endpoint's host decides, whatever the endpoint itself does."""
    async with instances(2) as (one, judge):
        one.down()
        port = judge.endpoint.rpartition(":")[2]
        async with checked(one.endpoint, f'type = "tcp", port = {port}') as c:
            await c.until("healthy")
            one.up()
            judge.down()
            await c.until("unhealthy")


def contexts(folder: Path, ca: bytes) -> ssl.SSLContext:
    """A server's; the authority that the gateway is to trust is in ca.pem."""
    (folder / "ca.pem").write_bytes(ca)
    (folder / "server.pem").write_bytes(SERVER.chain + SERVER.key)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "server.pem")
    return context


async def _hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


@pytest.mark.parametrize(
    ("theirs", "more", "wanted"),
    [
        (AUTHORITY, "", "a check passed"),
        (AUTHORITY, 'server_name = "localhost",', "a check passed"),
        (AUTHORITY, 'server_name = "elsewhere",', "certificate refused: Hostname mismatch"),
        (Authority(), "", "certificate refused: unable to get local issuer certificate"),
    ],
)
async def test_tls(theirs: Authority, more: str, wanted: str, tmp_path: Path) -> None:
    """A handshake with a certificate of an authority in `ca`, for the name or the address."""
    context = contexts(tmp_path, theirs.pem)
    async with await asyncio.start_server(_hang_up, "127.0.0.1", 0, ssl=context) as server:
        endpoint = "{}:{}".format(*server.sockets[0].getsockname())
        check = f'type = "tls", {more} ca = "ca.pem"'
        async with checked(endpoint, check, folder=tmp_path) as c:
            assert wanted in await c.until("healthy" if "passed" in wanted else "unhealthy")


async def test_tls_that_is_none() -> None:
    """A port that takes connections and speaks no TLS does not pass."""
    async with instances(1) as (one,), checked(one.endpoint, 'type = "tls", verify = false') as c:
        assert "TLS: " in await c.until("unhealthy")


@pytest.mark.parametrize("tls", [False, True])
async def test_http(tls: bool, tmp_path: Path) -> None:
    """A GET of `path` whose status is one of `status`; over TLS where [service.tls] says so."""
    status, asked = 200, []

    async def answer(request: web.Request) -> web.Response:
        asked.append((request.path_qs, request.headers["Host"]))
        return web.Response(status=status)

    app = web.Application()
    app.router.add_get("/ready", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        context = contexts(tmp_path, AUTHORITY.pem) if tls else None
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        endpoint = "{}:{}".format(*runner.addresses[0])
        check = 'type = "http", path = "/ready?deep=1", host = "a.example.com", status = ["200-299", 404]'
        service = 'tls = { ca = "ca.pem" }' if tls else ""
        async with checked(endpoint, check, service, tmp_path) as c:
            await c.until("healthy")
            assert set(asked) == {("/ready?deep=1", "a.example.com")}
            status = 503
            assert await c.until("unhealthy") == "3 checks in a row failed: status 503"
            status = 404
            await c.until("healthy")
    finally:
        await runner.cleanup()


async def test_rpc() -> None:
    """A call whose result is the expected one; without one any answer will do, an error too."""
    stock = [0]
    service = Service({"ready": lambda what: {"left": stock[0], "of": what}})
    async with service.serving("127.0.0.1:0") as endpoint:
        async with checked(endpoint, 'type = "rpc"') as c:
            await c.until("healthy")
        async with checked(endpoint, 'type = "rpc", method = "nobody.knows"') as c:
            await c.until("healthy")
        check = 'type = "rpc", method = "ready", params = ["gpu"], expect = { left = 0, of = "gpu" }'
        async with checked(endpoint, check) as c:
            await c.until("healthy")
            stock[0] = 1
            why = await c.until("unhealthy")
            assert "answered {'left': 1, 'of': 'gpu'} instead of {'left': 0, 'of': 'gpu'}" in why
            stock[0] = 0
            await c.until("healthy")


async def test_send_expect(need: Need, tmp_path: Path) -> None:
    """A redis that answers PING is well; another answer than the expected one is none."""
    address = ("127.0.0.1", free_port())
    endpoint = "{}:{}".format(*address)
    command = [need("redis-server"), "--port", str(address[1]), "--bind", address[0], "--save", ""]
    ping = r'type = "send_expect", send = "PING\r\n", expect = "+PONG"'
    async with contextlib.AsyncExitStack() as stack:
        with running(command, tmp_path / "redis.log", address):
            c = await stack.enter_async_context(checked(endpoint, ping))
            await c.until("healthy")
            async with checked(endpoint, ping.replace("+PONG", "hex:00")) as other:
                assert "answered b'+PONG' instead of b'\\x00'" in await other.until("unhealthy")
        await c.until("unhealthy")
        with running(command, tmp_path / "redis.log", address):
            await c.until("healthy")
