"""Messages between a supervisor and its worker, over a pair of Unix sockets: descriptors can go with them.

MessagePack-RPC in frames, both ways, in this project's own codec. asyncio's transports cannot carry
descriptors (SCM_RIGHTS, unix(7)), so the socket is read and written here.
"""

import asyncio
import contextlib
import itertools
import os
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from tcpgw.errors import ProtocolError, TcpgwError
from tcpgw.wire.codec import Kind
from tcpgw.wire.messages import LengthFrames, RpcError, pack_frame, unpack

log = structlog.get_logger()

# Bytes of a message: a configuration, or the endpoints of many services.
_MAX_FRAME = 64 << 20
# Bytes that may wait for the other side to read. Who lets so much pile up does not run any more.
_MOST = 128 << 20
_READ = 65536
MOST_FDS = 253
"""Descriptors that the kernel carries with one message: SCM_MAX_FD."""

Handler = Callable[..., object]
"""Takes a call's parameters; if it takes descriptors too, they are its own from then on. May be async."""


class ChannelError(TcpgwError):
    """The other side is gone, or did not do what it was asked."""


class Channel:
    """One end. `run` it as a task for as long as it is to be used; `closed` is set when that has ended.

    `handlers` are what the other side may call or tell, by name; one is done after the other, in the order
    of coming. A name in `with_fds` is also given the descriptors that came with its message, as a list in
    front of its parameters.
    """

    def __init__(
        self, sock: socket.socket, handlers: Mapping[str, Handler], *, with_fds: Sequence[str] = ()
    ) -> None:
        sock.setblocking(False)
        self.closed = asyncio.Event()
        self._socket = sock
        self._handlers = handlers
        self._with_fds = frozenset(with_fds)
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._frames = LengthFrames(_MAX_FRAME)
        self._fds: deque[int] = deque()  # that came, and whose message is not whole yet
        self._out: deque[tuple[memoryview, list[int]]] = deque()
        self._waiting = 0  # bytes in _out
        self._writing = False
        self._sent = asyncio.Event()  # all, or closed
        self._ready: asyncio.Future[None] | None = None  # while `run` waits for what comes

    async def run(self) -> None:
        """Serve until the other side is gone or speaks nonsense. Cancelled, it closes the socket too."""
        try:
            with contextlib.suppress(OSError, ProtocolError):
                while data := await self._receive():
                    self._frames.feed(data)
                    while (body := self._frames.take()) is not None:
                        await self._take(unpack(body))
        finally:
            self.close()

    async def call(self, name: str, *params: Any, fds: Sequence[int] = (), timeout: float) -> Any:  # noqa: ASYNC109
        """Have the other side do something, and return what it says, within `timeout` seconds.

        `fds`, at most MOST_FDS, are copied, so the caller's stay its own. Raises ChannelError.
        """
        number = next(self._numbers)
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._calls[number] = answer
        try:
            self._send([Kind.REQUEST, number, name, [len(fds), *params]], fds)
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError:
            raise ChannelError(f"{name}: no answer within {timeout:g} s") from None
        finally:
            del self._calls[number]

    def tell(self, name: str, *params: Any) -> None:
        """Tell the other side something, if it is still there."""
        with contextlib.suppress(ChannelError):
            self._send([Kind.NOTIFY, name, [0, *params]])

    def close(self) -> None:
        """Idempotent. Calls under way raise ChannelError."""
        if self.closed.is_set():
            return
        self.closed.set()
        if self._writing:
            self._loop.remove_writer(self._socket)
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self._wake()
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(ChannelError("the other process is gone"))
        for _, fds in self._out:
            _close(fds)
        self._out.clear()
        self._sent.set()
        _close(self._fds)

    async def flushed(self) -> None:
        """Return when the kernel has all that was told: it delivers that even after a close."""
        while self._out and not self.closed.is_set():
            self._sent.clear()
            await self._sent.wait()

    # ---- in ----

    async def _receive(self) -> bytes:
        while not self.closed.is_set():
            try:
                data, fds, _, _ = socket.recv_fds(self._socket, _READ, MOST_FDS, socket.MSG_CMSG_CLOEXEC)
            except (BlockingIOError, InterruptedError):
                await self._readable()
            else:
                self._fds += fds
                return data
        return b""

    async def _readable(self) -> None:
        self._ready = self._loop.create_future()
        self._loop.add_reader(self._socket, self._wake)
        try:
            await self._ready
        finally:
            self._ready = None
            if not self.closed.is_set():
                self._loop.remove_reader(self._socket)

    def _wake(self) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(None)

    async def _take(self, message: Any) -> None:
        match message:
            case [Kind.ANSWER, int(number), error, result]:
                answer = self._calls.get(number)
                if answer is not None and not answer.done():
                    if error is None:
                        answer.set_result(result)
                    else:
                        answer.set_exception(ChannelError(str(RpcError.read(error))))
            case [Kind.REQUEST, int(number), str(name), [int(count), *params]]:
                error, result = await self._handle(name, count, params)
                with contextlib.suppress(ChannelError):
                    self._send([Kind.ANSWER, number, error, result])
            case [Kind.NOTIFY, str(name), [int(count), *params]]:
                await self._handle(name, count, params)
            case _:
                raise ProtocolError("the other process speaks another protocol: is it of another version?")

    async def _handle(self, name: str, count: int, params: list[Any]) -> tuple[object, object]:
        """What the handler says, as the error and the result of an answer."""
        if count > len(self._fds):  # the kernel drops what finds no room in this process
            raise ProtocolError(f"{count} descriptors were sent with {name}, and {len(self._fds)} came")
        fds = [self._fds.popleft() for _ in range(count)]
        handler = self._handlers.get(name)
        if handler is None:
            _close(fds)
            return {"code": "unknown_method", "message": name}, None
        try:
            result = handler(fds, *params) if name in self._with_fds else handler(*params)
            if asyncio.iscoroutine(result):
                result = await result
        except TcpgwError as exc:
            return {"code": type(exc).__name__, "message": str(exc)}, None
        except Exception as exc:  # a bug that one message meets must not take the others with it
            log.exception("channel_error", message=name)
            return {"code": "internal", "message": repr(exc)}, None
        return None, result

    # ---- out ----

    def _send(self, message: list[Any], fds: Sequence[int] = ()) -> None:
        if self.closed.is_set():
            raise ChannelError("the other process is gone")
        data = pack_frame(message, _MAX_FRAME)
        if self._waiting + len(data) > _MOST:
            self.close()
            raise ChannelError(f"the other process reads nothing: {self._waiting} bytes wait for it")
        # Copies, because a listener that is removed closes its own before this may be sent.
        self._out.append((memoryview(data), _copies(fds)))
        self._waiting += len(data)
        if not self._writing:
            self._flush()

    def _flush(self) -> None:
        while self._out:
            data, fds = self._out[0]
            try:
                sent = socket.send_fds(self._socket, [data], fds) if fds else self._socket.send(data)
            except (BlockingIOError, InterruptedError):
                if not self._writing:
                    self._writing = True
                    self._loop.add_writer(self._socket, self._flush)
                return
            except OSError:
                self.close()
                return
            self._waiting -= sent
            _close(fds)
            if sent < len(data):
                self._out[0] = (data[sent:], [])
            else:
                self._out.popleft()
        self._sent.set()
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._socket)


def _copies(fds: Sequence[int]) -> list[int]:
    copies: list[int] = []
    try:
        for fd in fds:
            copies.append(os.dup(fd))  # noqa: PERF401 - what there is when one fails is to be closed
    except OSError as exc:
        _close(copies)
        raise ChannelError(f"no descriptor can be passed: {exc.strerror}") from exc
    return copies


def _close(fds: Sequence[int] | deque[int]) -> None:
    for fd in fds:
        os.close(fd)
