"""How many may be connected to the admin server, and who makes room.

At the bound one goes that waits for no answer: the oldest of those that never had any, so that who only holds
connections keeps nobody out, else the one whose last answer is longest ago. Where all wait, whoever comes is
told to try again.
"""

import asyncio
from itertools import chain
from typing import cast

from aiohttp import web
from aiohttp.typedefs import Handler

# Pages that listen (32), probes and scrapes, and some to spare; each costs a descriptor and some kilobytes.
MOST = 128

_NO_ROOM = b'{"error": "too many connections: try again in some seconds"}'
_EXCESS = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 5\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(_NO_ROOM), _NO_ROOM)
)


class Connections:
    """Those of `server`, which is set before the first comes. Calling it makes a new one's protocol."""

    server: web.Server

    def __init__(self) -> None:
        self._asking: set[web.RequestHandler] = set()
        # Those that had one, the one whose last is longest ago first.
        self._answered: dict[web.RequestHandler, None] = {}

    def __call__(self) -> asyncio.Protocol:
        # The oldest first; those that were let go are listed until the loop has closed them.
        there = dict.fromkeys(one for one in self.server.connections if one.transport is not None)
        self._answered = dict.fromkeys(one for one in self._answered if one in there)
        if len(there) >= MOST:
            never = (one for one in there if one not in self._answered)
            silent = next((one for one in chain(never, self._answered) if one not in self._asking), None)
            if silent is None:
                return _Excess()
            silent.force_close()
        return self.server()

    @web.middleware
    async def stay(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let a connection stay for as long as its request is answered."""
        self._asking.add(request.protocol)
        try:
            return await handler(request)
        finally:
            self._asking.discard(request.protocol)
            self._answered.pop(request.protocol, None)
            self._answered[request.protocol] = None  # the last one now


class _Excess(asyncio.Protocol):
    """A connection too many: told so without having been read."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(_EXCESS)
        transport.close()
