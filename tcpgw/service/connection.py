"""One connection of a service, and what all of them share while it is served.

Reading stops (and with it, by TCP, the client) at three bounds: as many requests of this connection in work
or waiting to be written, as many in all, and as many bytes that the client has not read. Work in progress is
counted for all connections together only until its answer is known, so a client that reads slowly holds its
own connection back and no other.

A gateway shares a connection among many clients, so a message that came whole and cannot be read harms its
sender alone. A request whose head, `[0, id`, can be read is answered with `bad_frame`; all else is dropped,
and not answered without an id, which would end the connection at the other side. In frames that holds for
whatever stands in one: its length says where the next begins. A raw stream ends with bytes that are no
MessagePack (nesting beyond the decoder's depth among them), and with a value whose head cannot be read, for
that is what a stream looks like that has lost its order. Both end with a frame that is too large.

A connection's end: the last answer, FIN, and the client's FIN. Closing at once would have the kernel send RST
if anything more had come, and the client lose answers it has not read yet.
"""

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import structlog

from tcpgw.address import Address
from tcpgw.errors import Code, FrameTooLargeError, ProtocolError
from tcpgw.wire.codec import Kind
from tcpgw.wire.messages import (
    INSTANCE_ERROR,
    LENGTH,
    MAX_FRAME,
    LengthFrames,
    MessageError,
    RpcError,
    StreamFrames,
    pack_frame,
    unpack_call,
)

log = structlog.get_logger()

Method = Callable[..., Awaitable[Any]]

UNKNOWN_METHOD = "unknown_method"
PING = "tcpgw.ping"

# Bytes that a client has not read, from which on no more of its requests are begun and no answers written.
_HIGH = 256 << 10
# Seconds that a client has to close its side after the last answer.
_LINGER = 1.0
# Seconds from one line about bad messages to a connection's next: whoever sends them sends many.
_QUIET = 10.0
# First bytes: of a length that max_frame can allow, and of the arrays that a message can be.
_FRAMED, _ARRAYS = range(0x10), (0x93, 0x94, 0xDC, 0xDD)
_RESET = struct.pack("ii", 1, 0)  # struct linger: on, no time
_SHOWN = 64  # characters of a foreign text that go into logs and errors


@dataclass
class Shared:
    """`free` is how many more methods may run; `waiting` are the connections whose next request waits until
    one more may, longest first. `changed` is set when a connection or a task has gone.
    """

    methods: Mapping[str, Method]
    max_frame: int
    per_connection: int
    free: int
    stall_timeout: float
    stopping: bool = False
    connections: set["Connection"] = field(default_factory=set)
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    waiting: deque["Connection"] = field(default_factory=deque)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def release(self) -> None:
        """Give the place of a method that has ended to whoever waits longest."""
        self.free += 1
        while self.free and self.waiting:
            self.waiting.popleft().proceed()


class Connection(asyncio.Protocol):
    """States: open; ending (all that comes is dropped, FIN goes out after the last answer); gone."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._loop = asyncio.get_running_loop()
        self._frames: LengthFrames | StreamFrames | None = None
        self._held: list[Any] | None = None  # the next request, while it waits for a free place
        self._tasks: set[asyncio.Task[Any]] = set()  # those of requests
        self._inflight = 0
        self._results: deque[tuple[int, Any, Any]] = deque()  # that wait for the client to read
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._paused = False  # writing, by the transport
        self._reading = True
        self._eof = self._ending = False
        # When a frame began that is not whole, and since when the client has read nothing of what waits.
        self._began: float | None = None
        self._stuck: float | None = None
        self._unread = 0
        self._bad = 0  # messages that no log line has told of
        self._told = -_QUIET  # when the last line did

    # ---- what the loop calls ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_HIGH)
        self._client = _shown_peer(transport.get_extra_info("peername"))
        self._tls = transport.get_extra_info("ssl_object") is not None
        self._shared.connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self._ending:
            return
        if self._frames is None:
            if data[0] in _FRAMED:
                self._frames = LengthFrames(self._shared.max_frame)
            elif data[0] in _ARRAYS:
                self._frames = StreamFrames(self._shared.max_frame)
            else:
                self.abort("neither a frame nor a MessagePack array")
                return
        self._frames.feed(data)
        self.proceed()

    def eof_received(self) -> bool:
        self._eof = True
        if self._ending:
            return False
        self.proceed()
        # TLS has no half-open connections: there, what is not answered by now never is.
        return not self._tls

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._write_results()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - clients come and go
        """Cancel the requests: nobody can be told of their results. Notifications are carried out."""
        self._ending = True
        self._results.clear()
        for task in self._tasks:
            task.cancel()
        if self in self._shared.waiting:
            self._shared.waiting.remove(self)
        self._shared.connections.discard(self)
        self._shared.changed.set()

    # ---- what the service calls ----

    def proceed(self) -> None:
        """Begin what has come, up to the bounds; then read on, wait, or end."""
        try:
            while not self._blocked() and self._step():
                pass
        except ProtocolError as exc:
            self._refuse(exc)
        if self._ending:
            return
        blocked = self._blocked()
        if not blocked and not self._inflight and (self._eof or self._shared.stopping):
            self._end()
        else:
            self._read(not blocked)

    def abort(self, reason: str) -> None:
        """Cut with RST: what the client has not read is freed now, and looks to nobody like the whole."""
        log.warning("client_aborted", client=self._client, reason=reason, requests=self._inflight)
        self._ending = True
        # Of a transport that is about to be gone, the descriptor may be another connection's already.
        if self._transport.get_write_buffer_size() or not self._transport.is_closing():
            with contextlib.suppress(OSError):
                sock = self._transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    def check(self, now: float) -> None:
        """Abort where nothing has moved for too long though something should."""
        unread = self._transport.get_write_buffer_size()
        if unread != self._unread or not unread:
            self._stuck = None
        elif self._stuck is None:
            self._stuck = now
        self._unread = unread
        since = self._stuck if self._stuck is not None else self._began
        if since is not None and now - since > self._shared.stall_timeout:
            self.abort("the client reads no answers" if unread else "a frame did not become whole in time")

    # ---- requests ----

    def _blocked(self) -> bool:
        return (
            self._ending
            or self._full()
            or self._inflight >= self._shared.per_connection
            or (self._held is not None and self in self._shared.waiting)
        )

    def _step(self) -> bool:
        """Begin the next message, or have it wait. False: none is whole. Raises ProtocolError."""
        message = self._held
        if message is None:
            body = self._frames.take() if self._frames is not None else None
            if body is None:
                if self._frames is not None and self._frames.partial and self._began is None:
                    self._began = self._loop.time()
                return False
            self._began = None
            try:
                message = unpack_call(body)
            except MessageError as exc:
                self._pass_over(exc)
                return True
        self._held = None
        if not self._begin(message):
            self._held = message
            self._shared.waiting.append(self)
        return True

    def _pass_over(self, exc: MessageError) -> None:
        """Answer it, where somebody waits for that, and go on. Raises it where no message can follow."""
        if exc.kind is None and isinstance(self._frames, StreamFrames):
            raise exc
        self._bad += 1
        now = self._loop.time()
        if now - self._told >= _QUIET:
            log.warning("messages_unreadable", client=self._client, count=self._bad, error=str(exc))
            self._bad, self._told = 0, now
        self._answer(exc.number, RpcError(Code.BAD_FRAME, str(exc)).written(), None)

    def _begin(self, message: list[Any]) -> bool:
        """Answer at once, or start the method. False: no place is free."""
        number = message[1] if message[0] == Kind.REQUEST else None
        name, params = message[-2:]
        name = name.decode(errors="replace") if isinstance(name, bytes) else name
        method = self._shared.methods.get(name)
        if self._shared.stopping:
            self._refuse_one(number, name, Code.OVERLOADED, "this instance is stopping; nothing was done")
        elif method is None and name == PING:
            self._answer(number, None, "pong")
        elif method is None:
            self._refuse_one(number, name, UNKNOWN_METHOD, f"there is no method {name[:_SHOWN]!r}")
        elif not self._shared.free:
            return False
        else:
            self._shared.free -= 1
            self._inflight += 1
            task = self._loop.create_task(_run(method, params))
            self._shared.tasks.add(task)
            if number is not None:
                self._tasks.add(task)
            task.add_done_callback(partial(self._done, number, name))
        return True

    def _refuse_one(self, number: int | None, name: str, code: str, message: str) -> None:
        if number is None:
            log.warning("notification_dropped", client=self._client, method=name[:_SHOWN], reason=code)
        self._answer(number, RpcError(code, message).written(), None)

    def _done(self, number: int | None, name: str, task: asyncio.Task[Any]) -> None:
        self._shared.tasks.discard(task)
        self._tasks.discard(task)
        error, result = self._outcome(name, task)
        if self._ending or number is None:
            self._inflight -= 1
        else:
            self._results.append((number, error, result))
        self._write_results()
        self._shared.changed.set()
        self._shared.release()

    def _outcome(self, name: str, task: asyncio.Task[Any]) -> tuple[Any, Any]:
        if task.cancelled():
            return RpcError(INSTANCE_ERROR, f"{name} was cancelled").written(), None
        exc = task.exception()
        if exc is None:
            return None, task.result()
        if isinstance(exc, RpcError):
            return exc.written(), None
        log.error("method_failed", method=name, client=self._client, exc_info=exc)
        return RpcError(INSTANCE_ERROR, _sentence(exc)).written(), None

    # ---- writing ----

    def _full(self) -> bool:
        return self._paused or self._out_bytes > _HIGH

    def _write_results(self) -> None:
        """Write what is known as far as the client reads, and go on with what that had stopped."""
        if self._ending:
            return
        while self._results and not self._full():
            self._inflight -= 1
            self._answer(*self._results.popleft())
        if not self._reading or self._eof or self._shared.stopping:
            self.proceed()

    def _answer(self, number: int | None, error: Any, result: Any) -> None:
        if number is None:
            return
        try:
            frame = pack_frame((Kind.ANSWER, number, error, result), self._shared.max_frame)
        except (ValueError, FrameTooLargeError) as exc:
            log.error("result_unusable", client=self._client, error=str(exc))
            code = INSTANCE_ERROR if isinstance(exc, ValueError) else Code.FRAME_TOO_LARGE
            failure = RpcError(code, f"the method was done, but its result cannot be sent: {exc}")
            frame = pack_frame((Kind.ANSWER, number, failure.written(), None), MAX_FRAME)
        self._send(frame)

    def _send(self, frame: bytes) -> None:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(frame if isinstance(self._frames, LengthFrames) else frame[LENGTH.size :])
        self._out_bytes += len(frame)

    def _flush(self) -> None:
        out, self._out = self._out, []
        self._out_bytes = 0
        if not out or self._transport.is_closing():
            return
        self._transport.writelines(out)
        self._write_results()

    def _read(self, wanted: bool) -> None:
        if wanted == self._reading:
            return
        self._reading = wanted
        if wanted:
            self._transport.resume_reading()
        else:
            self._began = None  # it is not the client that waits
            self._transport.pause_reading()

    # ---- ending ----

    def _refuse(self, exc: ProtocolError) -> None:
        """Say what was wrong, to whom that may concern, and end."""
        code = Code.FRAME_TOO_LARGE if isinstance(exc, FrameTooLargeError) else Code.BAD_FRAME
        log.warning("client_refused", client=self._client, reason=code, error=str(exc))
        answer = (Kind.ANSWER, None, RpcError(code, str(exc)).written(), None)
        self._send(pack_frame(answer, MAX_FRAME))
        self._end()

    def _end(self) -> None:
        """Send what waits, then FIN. What is in work is dropped."""
        self._ending = True
        self._began = None
        self._flush()
        if self._eof or self._tls:
            self._transport.close()
            return
        self._transport.write_eof()
        self._read(True)
        self._loop.call_later(_LINGER, self._linger)

    def _linger(self) -> None:
        if self._transport.get_write_buffer_size():
            self._loop.call_later(_LINGER, self._linger)  # `check` bounds it
        else:
            self._transport.abort()


async def _run(method: Method, params: list[Any]) -> Any:
    return await method(*params)


def _sentence(exc: BaseException) -> str:
    try:
        return f"{type(exc).__name__}: {exc}"
    except Exception:  # noqa: BLE001 - anything can be in a __str__, and the caller waits
        return type(exc).__name__


def _shown_peer(peer: Any) -> str:
    return str(Address(*peer[:2])) if isinstance(peer, tuple) else "unix"
