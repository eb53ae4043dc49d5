"""The admin HTTP server. It shares the supervisor's loop, so everything it does is small, bounded and timed.

A connection has `_IDLE` seconds until a request's head is whole, and a reader `_SLOWEST` for what he was
sent; what does not keep to it is cut off. Bodies are timed where they are read.
"""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import cast

import structlog
from aiohttp import web

from tcpgw.admin import assets
from tcpgw.admin.actions import BadRequestError
from tcpgw.admin.connections import Connections
from tcpgw.admin.guard import Guard, Refused
from tcpgw.admin.handlers import Handler, Handlers, json_error
from tcpgw.admin.source import Source
from tcpgw.config.admin import Admin
from tcpgw.errors import TcpgwError
from tcpgw.observe.faults import Faults

log = structlog.get_logger()

# Seconds, above the 15 between two questions of Prometheus.
_IDLE = 20.0
# Seconds in which a reader must take what it was sent: 10 MB at 3 Mbit/s.
_SLOWEST = 30.0
# Bytes of a request's body: the longest silence has some kilobytes.
_LONGEST = 16 << 10
# Seconds for requests under way when the server ends; both parts of aiohttp's end take as much at most.
_ENDING = 0.5

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'; object-src 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

# aiohttp logs each request that it cannot read, with a traceback: a client's fault, as often as it likes. Our
# own are logged below.
_SILENT = logging.getLogger("tcpgw.admin.http")
_SILENT.setLevel(logging.CRITICAL + 1)


class AdminServer:
    """Shows what `source` knows, to whom `settings` allow it, and passes on what operators do."""

    def __init__(
        self, settings: Admin, source: Source, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._source = source
        self._guard = Guard(settings, clock)
        self._faults = Faults("admin_failed", log.error, clock=clock)

    @contextlib.asynccontextmanager
    async def serving(self, sock: socket.socket) -> AsyncIterator[None]:
        """Serve on a socket that is bound, for as long as the context lasts, and end within two seconds.

        The socket stays the caller's: it goes on listening until he closes it, so that a successor may take
        it over. Raises OSError where it cannot be listened on.
        """
        over = asyncio.Event()
        handlers = Handlers(self._settings, self._source, self._guard, over, self._faults)
        connections = Connections()
        app = web.Application(client_max_size=_LONGEST, middlewares=[connections.stay, self._answer])
        app.on_response_prepare.append(_add_headers)
        app.add_routes(handlers.routes(await asyncio.to_thread(assets.load)))
        runner = web.AppRunner(
            app,
            access_log=None,
            logger=_SILENT,
            keepalive_timeout=_IDLE,
            lingering_time=1.0,
            shutdown_timeout=_ENDING,
        )
        await runner.setup()
        connections.server = cast(web.Server, runner.server)
        try:
            server = await _listen(sock.dup(), connections)
            try:
                yield
            finally:
                server.close()
        finally:
            over.set()
            await runner.cleanup()
            self._faults.tell()

    @web.middleware
    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Make every error JSON, and have the answer taken in time."""
        transport = request.transport
        if transport is not None:
            # So that who waits for a write waits until the kernel has all of it.
            transport.set_write_buffer_limits(high=0)
        response = await self._response(request, handler)
        if response.prepared or transport is None:
            return response
        try:
            async with asyncio.timeout(_SLOWEST):
                await response.prepare(request)
                await response.write_eof()
        except TimeoutError:
            transport.abort()
        return response

    async def _response(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except Refused as exc:
            return json_error(exc.status, str(exc), wait=exc.wait)
        except BadRequestError as exc:
            return json_error(400, str(exc))
        except TcpgwError as exc:
            return json_error(409 if exc.blame == "operator" else 503, str(exc))
        except web.HTTPException as exc:
            return json_error(exc.status, _told(exc), allow=exc.headers.get("Allow", ""))
        except web.RequestPayloadError:
            return json_error(400, "the body cannot be read: it is not encoded as its head says")
        except TimeoutError:
            return json_error(504, "the gateway did not answer in time: what was asked for may still be done")
        except ConnectionError:
            raise
        except Exception as exc:  # noqa: BLE001 - told of as often as is good
            self._faults.add(exc, path=request.path)
            return json_error(500, "a fault of the gateway's: its log has the details")


async def _listen(sock: socket.socket, connection: Callable[[], asyncio.Protocol]) -> asyncio.Server:
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    try:
        if sock.family == socket.AF_UNIX:
            return await loop.create_unix_server(connection, sock=sock)
        return await loop.create_server(connection, sock=sock)
    except BaseException:
        sock.close()
        raise


async def _add_headers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)
    response.headers.pop("Server", None)


def _told(exc: web.HTTPException) -> str:
    match exc.status:
        case 404:
            return "there is nothing here: / is the page, /status, /view and /metrics have figures"
        case 405:
            return f"not by this method: {exc.headers.get('Allow', '')}"
        case 413:
            return f"the body is longer than {_LONGEST} bytes"
    return exc.reason
