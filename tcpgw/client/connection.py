"""One connection of a client: requests go out, and each answer to the future of the request it belongs to.

What is sent within one turn of the loop leaves in one write: of many concurrent calls, that is most of the
cost. A connection that is lost is not mended; the client makes another.
"""

import asyncio
import socket
from typing import Any, cast

from tcpgw.errors import Code, ProtocolError, TcpgwError
from tcpgw.wire.codec import Kind
from tcpgw.wire.messages import LengthFrames, RpcError, unpack

# Bytes that wait to be sent, from which on calls wait. Twice asyncio's mark: two of its largest reads.
_HIGH = 128 << 10
# Seconds until a peer that is gone without a word is noticed: of an idle connection by probes, of one with
# unsent or unacknowledged bytes by TCP_USER_TIMEOUT (the kernel would try for a quarter of an hour). A call's
# default time-out, since an instance that is merely busy may leave its window closed as long.
_IDLE, _INTERVAL, _PROBES, _UNACKNOWLEDGED = 30, 10, 3, 60
# What a server says of a client, and would say of it again.
_REFUSALS = frozenset({Code.UNAUTHENTICATED, Code.DENIED})


class ConnectionLostError(TcpgwError):
    """The connection ended before the answer came. The instance may have done the work."""


class UnsentError(ConnectionLostError):
    """The connection ended before the request was written. Does not leave the package."""

    retry_safe = True


class Connection(asyncio.Protocol):
    """`ended` is set once the connection is lost, and `answered` once it has proved of use."""

    def __init__(self, name: str, max_frame: int) -> None:
        self.ended = asyncio.Event()
        self.answered = False
        self._name = name
        self._frames = LengthFrames(max_frame)
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._unsent: dict[int, bytes] = {}  # by id, to be written at the end of this turn
        self._unsent_bytes = 0
        self._paused = False
        self._room = asyncio.Event()
        self._room.set()
        self._fault = ""
        self._refusal: Any = None

    # ---- what the client uses ----

    @property
    def usable(self) -> bool:
        return not self.ended.is_set() and not self._transport.is_closing()

    @property
    def refusal(self) -> RpcError | None:
        """Why the server will have nothing to do with this client, if it said so in place of any answer."""
        return None if self._refusal is None else RpcError.read(self._refusal)

    async def room(self) -> None:
        """Wait until more may be sent, or the connection is lost."""
        while not self._room.is_set():
            await self._room.wait()

    def request(self, number: int, frame: bytes) -> asyncio.Future[Any]:
        """Send a request and return its answer to come. `forget` the number when it is done with."""
        future = self._loop.create_future()
        self._waiting[number] = future
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent[number] = frame
        self._unsent_bytes += len(frame)
        self._mark()
        return future

    def forget(self, number: int) -> None:
        """Drop the answer of a request if it comes yet. Twice does no harm."""
        self._waiting.pop(number, None)

    def notify(self, frame: bytes) -> None:
        """Write a notification at once: nobody would hear of one that is lost before it is written."""
        self._flush()
        self._transport.write(frame)

    async def close(self, patience: float) -> None:
        """Write what waits, for at most so many seconds, and end. Calls in flight raise."""
        if not self.ended.is_set():
            self._flush()
            self._end("the client was closed")
        try:
            async with asyncio.timeout(patience):
                await self.ended.wait()
        except TimeoutError:
            pass
        finally:
            self._transport.abort()

    def abort(self) -> None:
        self._transport.abort()

    # ---- what the loop calls ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_HIGH)
        sock = transport.get_extra_info("socket")
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _INTERVAL)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED * 1000)

    def data_received(self, data: bytes) -> None:
        self._frames.feed(data)
        try:
            while not self._fault and (body := self._frames.take()) is not None:
                self._take(unpack(body))
        except ProtocolError as exc:
            self._fault = f"{self._name} sent no answer that can be read: {exc}"
        if self._fault:
            self._end(self._fault)
            self._transport.abort()

    def pause_writing(self) -> None:
        self._paused = True
        self._mark()

    def resume_writing(self) -> None:
        self._paused = False
        self._mark()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"the connection to {self._name} was lost" + (f": {exc}" if exc else ""))
        self.ended.set()
        self._room.set()

    # ---- within ----

    def _take(self, message: Any) -> None:
        match message:
            case [Kind.ANSWER, None, error, _]:  # what nobody can answer otherwise: what follows is the end
                told = RpcError.read(error)
                self._fault = f"{self._name} ended the connection: {told}"
                if not self.answered and told.code in _REFUSALS:
                    self._refusal = error
            case [Kind.ANSWER, int(number), error, result]:
                self.answered = True
                future = self._waiting.pop(number, None)
                if future is None or future.done():
                    return  # late: its call has been cancelled or timed out
                if error is None:
                    future.set_result(result)
                else:
                    future.set_exception(RpcError.read(error))
            case [Kind.NOTIFY, *_]:
                pass  # servers may notify; here nobody listens
            case _:
                raise ProtocolError("a message that is no answer")

    def _flush(self) -> None:
        if not self._unsent or not self.usable:
            return
        frames = list(self._unsent.values())
        self._unsent.clear()
        self._unsent_bytes = 0
        if len(frames) == 1:
            self._transport.write(frames[0])
        else:
            self._transport.writelines(frames)
        self._mark()

    def _mark(self) -> None:
        if self._paused or self._unsent_bytes > _HIGH:
            self._room.clear()
        else:
            self._room.set()

    def _end(self, reason: str) -> None:
        """Fail every call in flight, and close. The first reason counts."""
        waiting, self._waiting = self._waiting, {}
        for number, future in waiting.items():
            if future.done():
                continue
            if refusal := self.refusal:
                future.set_exception(refusal)
            elif number in self._unsent:
                future.set_exception(UnsentError(reason))
            else:
                future.set_exception(
                    ConnectionLostError(f"{reason}; this call was in flight and may have been done")
                )
        self._unsent.clear()
        self._transport.close()
