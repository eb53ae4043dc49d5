"""Views as server-sent events: each second what is going on, for as long as somebody listens.

A subscriber takes the newest view when it is ready for one. Nothing waits for who reads slowly: it misses
views, and is cut off where it takes none for some seconds.
"""

import asyncio
from collections.abc import Callable

from aiohttp import web

from tcpgw.admin.encoding import encoded
from tcpgw.admin.source import Json, Source
from tcpgw.observe.faults import Faults

# Browsers allow six connections to a server and people have few screens; each costs an encoded view a second.
MOST = 32
# Seconds between two looks for a newer view, which is made as often.
_EVERY = 1.0
# Seconds without a view after which a comment tells proxies on the way, and the page, that this one lives.
_QUIET = 10.0
# Seconds in which a subscriber must take what was sent.
_SLOWEST = 5.0
# Milliseconds after which a browser comes back.
_RETRY = b"retry: 1000\n\n"


class Events:
    """Subscribers of one source's views, which end when `over` is set."""

    def __init__(self, source: Source, over: asyncio.Event, faults: Faults) -> None:
        self._source = source
        self._over = over
        self._faults = faults
        self._subscribers = 0
        self._view: Json | None = None
        self._encoded = b""

    @property
    def full(self) -> bool:
        """Whether no more subscribers are taken."""
        return self._subscribers >= MOST

    async def serve(self, request: web.Request, may_go_on: Callable[[], bool]) -> web.StreamResponse:
        """Send views until the subscriber leaves or is cut off, `may_go_on` denies it, or all is over."""
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"}
        )
        self._subscribers += 1
        try:
            await self._send(request, response, may_go_on)
        except (TimeoutError, ConnectionError):
            _abort(request)
        except Exception as exc:  # noqa: BLE001 - the server would begin an answer in the middle of this one
            self._faults.add(exc, path=request.path)
            _abort(request)
        finally:
            self._subscribers -= 1
        return response

    async def _send(
        self, request: web.Request, response: web.StreamResponse, may_go_on: Callable[[], bool]
    ) -> None:
        async with asyncio.timeout(_SLOWEST):
            await response.prepare(request)
            await response.write(_RETRY)
        sent: Json | None = None
        quiet = 0.0
        while not self._over.is_set() and may_go_on():
            view = self._source.view()
            quiet += _EVERY
            if view is not None and view is not sent:
                await _write(response, self._frame(view))
                sent, quiet = view, 0.0
            elif quiet >= _QUIET:
                await _write(response, b": still here\n\n")
                quiet = 0.0
            await _passed(self._over, _EVERY)
        async with asyncio.timeout(_SLOWEST):
            await response.write_eof()

    def _frame(self, view: Json) -> bytes:
        """Encode a view once for all subscribers."""
        if view is not self._view:
            self._view, self._encoded = view, b"event: view\ndata: %b\n\n" % encoded(view)
        return self._encoded


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


async def _write(response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(_SLOWEST):
        await response.write(data)


async def _passed(event: asyncio.Event, seconds: float) -> None:
    """Wait for so long, or until the event is set."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
