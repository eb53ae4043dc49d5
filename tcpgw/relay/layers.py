"""What stands between a transport and a protocol, and looks like the other to each.

    kernel ⇄ transport ⇄ layer ⇄ … ⇄ upper protocol

To the transport below, the lower one, a layer is an `asyncio.Protocol`; to the protocol above an
`asyncio.Transport`. So a plane relays through any number of layers without knowing, and a connection without
layers costs nothing.

Flow control, in both directions: the lower transport is read while neither the upper protocol has paused it
nor the layer `holds` it; the upper protocol may write while neither the lower transport is full nor the layer
is `choked`.

States: made → ended (the upper protocol has been told of the end of what comes) → lost. Closing may come at
any time, after which nothing is received any more.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterable
from typing import Any, cast

_READ = 65536  # bytes


class Layer(asyncio.Protocol, asyncio.Transport):
    """Passes everything on, both ways. Subclasses change what they are for.

    `upper` hears of `connection_lost` once, and of nothing after it.
    """

    __slots__ = ("_choked", "_closing", "_ended", "_full", "_held", "_told", "_unwanted", "lower", "upper")

    def __init__(self, upper: asyncio.BaseProtocol) -> None:
        super().__init__()
        self.upper = cast("asyncio.Protocol", upper)
        self.lower: asyncio.Transport
        self._unwanted = False  # the upper protocol has paused reading
        self._held = False  # this layer has
        self._full = False  # the lower transport has paused writing
        self._choked = False  # this layer has
        self._told = False  # the upper protocol knows of either
        self._ended = False
        self._closing = False

    # ---- for subclasses ----

    def hold(self, held: bool) -> None:
        """Do not read the lower transport, or do again as far as the upper protocol wants it. Idempotent."""
        if held != self._held:
            self._held = held
            self._steer()

    def choke(self, choked: bool) -> None:
        """Have the upper protocol write no more, or again if the lower transport takes it. Idempotent."""
        self._choked = choked
        self._tell()

    def _steer(self) -> None:
        # After the end too: uvloop would read on when told to, and tell of the end again.
        if self._unwanted or self._held or self._ended or self._closing:
            self.lower.pause_reading()
        else:
            self.lower.resume_reading()

    def _tell(self) -> None:
        paused = self._full or self._choked
        if paused != self._told:
            self._told = paused
            if paused:
                self.upper.pause_writing()
            else:
                self.upper.resume_writing()

    # ---- the lower transport's protocol ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.lower = cast("asyncio.Transport", transport)
        self.upper.connection_made(self)
        if self._unwanted or self._held:
            # uvloop starts to read after this, whatever it was told here.
            asyncio.get_running_loop().call_soon(self._steer)

    def data_received(self, data: bytes) -> None:
        self.upper.data_received(data)

    def eof_received(self) -> bool | None:
        self._ended = True
        return self.upper.eof_received()

    def pause_writing(self) -> None:
        self._full = True
        self._tell()

    def resume_writing(self) -> None:
        self._full = False
        self._tell()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass on what was received before the loss, and then the loss.

        A failed write ends uvloop's reading, but the peer has mostly said why before. Upper protocols may
        know that and read the socket themselves; what it holds need not be for them as it is, so it is read
        here, and from now on they get no socket.
        """
        if exc is not None and not self._ended and not self._closing:
            self._unwanted = self._held = False
            self._read_rest()
        self._closing = True
        upper, self.upper = self.upper, _NOBODY  # no cycle for the collector
        upper.connection_lost(exc)

    def _read_rest(self) -> None:
        """Take what the kernel still holds. Finite, since after an error nothing more arrives."""
        sock: socket.socket | None = self.lower.get_extra_info("socket")
        if sock is None:
            return
        with contextlib.suppress(OSError):
            while not self._closing and (data := os.read(sock.fileno(), _READ)):
                self.data_received(data)

    # ---- the upper protocol's transport ----

    def pause_reading(self) -> None:
        self._unwanted = True
        self._steer()

    def resume_reading(self) -> None:
        self._unwanted = False
        self._steer()

    def is_reading(self) -> bool:
        return not self._unwanted and not self._closing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._closing:
            self.lower.write(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        if not self._closing:
            self.lower.writelines(list_of_data)

    def write_eof(self) -> None:
        self.lower.write_eof()

    def can_write_eof(self) -> bool:
        return True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.lower.set_write_buffer_limits(high, low)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self.lower.get_write_buffer_limits()

    def get_write_buffer_size(self) -> int:
        return self.lower.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As the lower transport's. There is no "socket" from connection_lost on."""
        if name == "socket" and self.upper is _NOBODY:
            return default
        return self.lower.get_extra_info(name, default)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.upper

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.upper = cast("asyncio.Protocol", protocol)

    def is_closing(self) -> bool:
        return self._closing or self.lower.is_closing()

    def close(self) -> None:
        self._closing = True
        self.lower.close()

    def abort(self) -> None:
        self._closing = True
        self.lower.abort()


_NOBODY = asyncio.Protocol()
"""Stands above a layer whose connection is lost."""
