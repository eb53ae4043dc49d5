"""A client that reads its answers more slowly than they come: how many may be unread, and for how long.

Its answers wait in the transport, and what waits there is counted in `Memory`. It is cut off when that is
more than its share, or when it has not read as much as its buffer takes within `frame_timeout`: then it is
not slow but stuck, or wants to be.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

from tcpgw.relay.sockets import unacknowledged

if TYPE_CHECKING:
    from tcpgw.relay.rpc.plane import RpcPlane
    from tcpgw.relay.rpc.session import RpcSession

# Of rpc_memory, what one client's unread answers may take.
_SHARE = 4
# Seconds in which nobody's reading is judged.
_MOMENT = 0.5


class SlowReader:
    """One client, from `pause_writing` to `resume_writing` or its end. It is only ever `cut` here."""

    __slots__ = ("_client", "_plane", "_read", "_since", "_transport")

    def __init__(self, client: RpcSession, plane: RpcPlane, transport: asyncio.Transport) -> None:
        self._client = client
        self._plane = plane
        self._transport = transport
        self._since = monotonic()
        self._read = delivered(client.sent, transport)

    def reads(self, now: float, rate: int) -> bool:
        """As `memory.Client.reads`. A moment is needed to tell."""
        took = now - self._since
        if took < _MOMENT or not self._unread:
            return True
        return delivered(self._client.sent, self._transport) - self._read >= took * rate

    def overflows(self) -> bool:
        """Whether what it has not read is too much, alone or with what all others have not; ends it."""
        client, plane, unread = self._client, self._plane, self._unread
        plane.memory.owe(client, unread)
        if client.gone:
            return True
        # One answer always, as nobody can read it faster than it comes.
        share = max(plane.memory.limit // _SHARE, plane.settings.max_frame + plane.settings.buffer)
        if unread > share:
            client.cut(f"{unread} bytes of its answers are unread")
        return client.gone

    def tend(self, now: float) -> None:
        """Look at the time; ends it where it is stuck."""
        settings = self._plane.settings
        # What it has read meanwhile is others' to use.
        self._plane.memory.owe(self._client, self._unread)
        read = delivered(self._client.sent, self._transport)
        # Where all is read, what it waits for is not its own doing: its limit of bytes per second.
        if read - self._read >= settings.buffer or not self._unread:
            self._since, self._read = now, read
        elif now - self._since >= settings.frame_timeout:
            within = f"within {settings.frame_timeout:g} s"
            self._client.cut(f"{read - self._read} bytes of its answers were read {within}")

    @property
    def _unread(self) -> int:
        """Bytes of answers that wait here for it to read."""
        return self._transport.get_write_buffer_size()


def delivered(sent: int, transport: asyncio.Transport) -> int:
    """Of so many bytes those that have left this host, where some still wait here; else all.

    The kernel alone does not tell: it takes more only when a third of its megabytes is free.
    """
    waiting = transport.get_write_buffer_size()
    return sent - waiting - unacknowledged(transport) if waiting else sent
