"""The hot path: bytes from one transport to another, in both directions.

A `Relay` owns two `Side`s, the client's and the instance's. States of a side: not yet connected → open →
ended (it sent FIN; nothing more comes from it) → lost (its transport is gone). Invariants:

- A side reads only while the other side's write buffer is below its high-water mark, so a stalled reader
  costs one buffer, whatever is sent to it.
- FIN is passed on when it comes, after the bytes before it. Both sides ended: both are closed, flushed.
- RST is passed on as RST. A cut-off answer must not look like a finished one.
- There is no task, no timer and no await per connection; `idle_seconds` lets the owner sweep instead,
  from the byte counts that are kept anyway.

Protocol classes rather than streams: a pump on `StreamReader`s costs 1.5 times HAProxy's CPU per request
where protocols cost 1.1 times.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from typing import cast

from tcpgw.relay.reasons import Reason
from tcpgw.relay.session import OnEnd
from tcpgw.relay.sockets import drop, set_options

_READ = 65536  # bytes
DEFAULT_BUFFER = 65536  # bytes: every transport's high-water mark, so not set for each anew


class Side(asyncio.Protocol):
    """One end of a relay. `received` counts the bytes that came from it."""

    __slots__ = ("early", "ended", "fin", "lost", "other", "received", "relay", "reset", "transport", "write")

    def __init__(self, relay: "Relay", fin: Reason, reset: Reason) -> None:
        self.relay = relay
        self.fin = fin
        self.reset = reset
        self.received = 0
        self.ended = False
        self.lost = False
        self.other: Side
        self.transport: asyncio.Transport | None = None
        # An instance may speak first, before the client's transport stands. The loop gets one turn between
        # the two, so this holds what one turn can read.
        early: list[bytes] = []
        self.early: Sequence[bytes] = early
        self.write: Callable[[bytes], object] = early.append

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        if self.other.transport is not None:
            self.relay.join()

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        self.relay.last = self
        self.write(data)

    def discard(self, data: bytes) -> None:
        """Stand in for `write` once the other has got FIN: what comes now goes nowhere and does not count."""
        self.received -= len(data)

    def eof_received(self) -> bool:
        self.ended = True
        self.relay.pass_fin(self)
        return True  # keep our half open: the other direction may still flow

    def pause_writing(self) -> None:
        other = self.other.transport
        if other is not None and not other.is_closing():
            other.pause_reading()

    def resume_writing(self) -> None:
        other = self.other.transport
        if other is not None and not other.is_closing():
            other.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None and not self.ended:
            self._read_rest()
        self.lost = True
        self.relay.lose(self, exc)

    def _read_rest(self) -> None:
        """Take what the kernel still holds: a failed write ends uvloop's reading.

        An instance that refuses the rest of a request has mostly sent its answer before. Finite, since after
        the error nothing more arrives.
        """
        other = self.other.transport
        sock: socket.socket | None = self.transport.get_extra_info("socket") if self.transport else None
        if sock is None or other is None or other.is_closing():
            return
        with contextlib.suppress(OSError):
            while data := os.read(sock.fileno(), _READ):
                self.data_received(data)


class Relay:
    """Two sides and the one reason for which they ended.

    The owner connects `instance` first and then `client`, each through an event loop call that takes a
    protocol; bytes flow from then on. `buffer` is the high-water mark of each direction, in bytes. `on_end`
    is called exactly once, after both transports are gone.
    """

    __slots__ = (
        "_buffer", "_delivered", "_first_fin", "_on_end", "_quiet_since", "client", "error", "instance",
        "last", "reason",
    )  # fmt: skip

    def __init__(self, on_end: OnEnd, now: float, buffer: int = DEFAULT_BUFFER) -> None:
        self.client = self._new_side(Reason.CLIENT_FIN, Reason.CLIENT_RESET)
        self.instance = self._new_side(Reason.INSTANCE_FIN, Reason.INSTANCE_RESET)
        self.client.other, self.instance.other = self.instance, self.client
        self.last: Side | None = None  # who sent last; None: nobody sent yet
        self.reason: Reason | None = None
        self.error = ""
        self._first_fin: Reason | None = None
        self._on_end = on_end
        self._buffer = buffer
        self._delivered = 0
        self._quiet_since = now

    def _new_side(self, fin: Reason, reset: Reason) -> Side:
        return Side(self, fin, reset)

    def join(self) -> None:
        """Both transports stand: connect the two directions, and deliver what one side did meanwhile."""
        if self.reason is not None:  # the instance was lost before
            self.abort(self.reason, reset=True)
            return
        for side in (self.client, self.instance):
            assert side.other.transport is not None  # noqa: S101 - join() is called when both stand
            if self._buffer != DEFAULT_BUFFER:
                side.other.transport.set_write_buffer_limits(high=self._buffer)
            side.write = side.other.transport.write
            if side.early:
                side.write(b"".join(side.early))
            side.early = ()
            if side.ended:
                self.pass_fin(side)

    def pass_fin(self, side: Side) -> None:
        """`side` will send nothing more. Idempotent."""
        other = side.other
        self._first_fin = self._first_fin or side.fin
        if other.transport is None or other.transport.is_closing():
            return
        if not other.ended:
            other.transport.write_eof()
            return
        for end in (self.client, self.instance):
            if end.transport is not None:
                end.transport.close()  # sends FIN after what is still buffered

    def lose(self, side: Side, exc: Exception | None) -> None:
        """`side`'s transport is gone; the other has nobody left to talk to."""
        # An instance may answer early and refuse the rest of the request; its answer was whole. A client that
        # refuses the rest of its answer was not served.
        cut = exc is not None and not (side.ended and side is self.instance)
        self.reason = self.reason or (side.reset if cut else self._first_fin or side.fin)
        other = side.other
        if other.lost:
            self._finish(self.reason)
        elif other.transport is not None and not other.transport.is_closing():
            if exc is not None and not side.ended:
                drop(other.transport, reset=True)
            else:  # everything that it had to say was received, so deliver it
                other.transport.close()

    def _finish(self, reason: Reason) -> None:
        """Both transports are gone. Breaks the reference cycles, so that nothing waits for the collector."""
        self._on_end(reason, self.error)
        for side in (self.client, self.instance):
            side.transport = None
            del side.relay, side.other, side.write

    def abort(self, reason: Reason, *, reset: bool) -> None:
        """End both sides now, with RST if `reset` or if it drops bytes, else with FIN. Idempotent."""
        self.reason = self.reason or reason
        for side in (self.client, self.instance):
            if side.transport is not None and not side.lost:
                drop(side.transport, reset=reset or side.transport.get_write_buffer_size() > 0)

    def keep_alive(self, seconds: float) -> None:
        """Let the kernel probe the instance; the client's socket has it from the listening one."""
        transport = self.instance.transport
        if transport is None or self.instance.lost:
            return  # uvloop may then answer with a socket of descriptor -1
        sock: socket.socket | None = transport.get_extra_info("socket")
        if sock is not None:
            set_options(sock, seconds)

    @property
    def half_closed(self) -> bool:
        return self._first_fin is not None

    def idle_seconds(self, now: float) -> float:
        """How long no byte was delivered and no FIN came, to the accuracy of the calls to this method."""
        delivered = self.client.received + self.instance.received
        for side in (self.client, self.instance):
            if side.transport is not None and not side.lost:
                delivered += side.ended - side.transport.get_write_buffer_size()
        if delivered != self._delivered:
            self._delivered = delivered
            self._quiet_since = now
        return now - self._quiet_since
