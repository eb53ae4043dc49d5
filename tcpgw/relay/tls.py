"""TLS between a transport and a protocol that see nothing of it: records one way, bytes the other.

OpenSSL works on memory here (`ssl.SSLObject`); the bytes in and out are ours. uvloop's own TLS was left out:
its transports cannot end one direction, and a refused client is closed without its alert.

Ends. close_notify is to TLS what FIN is to TCP: `write_eof` sends it and FIN behind it, and reading goes on;
the peer's is told as `eof_received`. OpenSSL allows that for TLS 1.2 as well, where the RFC did not yet. A
bare FIN says nothing about the peer, since anybody on the way can send it. It is taken for an end all the
same, as HAProxy and nginx do: Python's `ssl` sends no close_notify on close, so neither do requests, urllib3
and `http.server`; for many it is how connections end, which OpenSSL had to allow again. A reset would drop
what they sent last. With `strict` it is a reset: where a cut-off answer must not look like a finished one.

Memory. A read is decrypted as far as the upper protocol wants it, and the rest is kept while the lower
transport is not read: at most one read of 256 KiB. What is written is encrypted as far as the lower transport
takes it, and waits as it is for the rest; `get_write_buffer_size` counts both. OpenSSL's buffers never
shrink, so they are filled by slices: with whole reads, each connection that was busy once would keep 340 KiB
more, and not 50.
"""

import asyncio
import os
import socket
import ssl
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

from tcpgw.errors import TcpgwError
from tcpgw.relay.handshake import Conversation, explain, notify
from tcpgw.relay.layers import Layer

P = TypeVar("P", bound=asyncio.Protocol)

# Bytes in a record, at most (RFC 8446 5.1); OpenSSL gives and takes one at a time.
_RECORD = 16 * 1024
# Bytes that are decrypted before they are passed on, and encrypted in one turn of the loop: about 0.1 ms.
_BURST = 256 * 1024
# Ciphertext that OpenSSL is given at a time.
_SLICE = 32 * 1024
# asyncio's.
_HIGH_WATER = 64 * 1024

_NOTHING = memoryview(b"")
_CUT_OFF = "TLS: FIN without close_notify: cut off, or the peer ends its connections without saying so"

# Where records are decrypted, one after another, to be copied out before anybody else may use it.
_room = memoryview(bytearray(_BURST + _RECORD))


class TlsConnectError(TcpgwError, ConnectionError):
    """An instance was reached, but not by TLS. Nothing was sent, so another try is safe."""

    blame = "instance"
    retry_safe = True


class TlsLayer(Layer):
    """Takes over a conversation whose hands are shaken. `strict`: FIN without close_notify is a reset."""

    __slots__ = (
        "_aside", "_end_sent", "_eof", "_failure", "_fin", "_high", "_incoming", "_loop", "_low", "_outgoing",
        "_over", "_pumping", "_ssl", "_strict", "_unread", "_waiting", "_waiting_size",
    )  # fmt: skip

    def __init__(self, upper: asyncio.BaseProtocol, conversation: Conversation, *, strict: bool) -> None:
        super().__init__(upper)
        self._loop: asyncio.AbstractEventLoop
        self._ssl = conversation.ssl
        self._incoming = conversation.incoming
        self._outgoing = conversation.outgoing
        self._strict = strict
        self._unread = _NOTHING  # ciphertext that OpenSSL does not have yet
        self._aside: list[bytes] = []  # decrypted before it was wanted
        self._fin = False  # the lower transport has ended
        self._over = False  # nothing more can be decrypted
        self._failure: Exception | None = None  # why, unless the peer has ended
        self._waiting: deque[bytes | memoryview] = deque()  # to be encrypted
        self._waiting_size = 0
        self._pumping = False  # it goes on in the next turn
        self._high, self._low = _HIGH_WATER, _HIGH_WATER // 4
        self._eof = False  # the upper protocol has ended
        self._end_sent = False  # nothing can be sent any more

    # ---- reading ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._loop = asyncio.get_running_loop()
        super().connection_made(transport)
        if self._incoming.pending:
            self._loop.call_soon(self._deliver)  # in a turn of its own, as transports do

    def data_received(self, data: bytes) -> None:
        if self._over:
            return
        if self._unread:
            self._unread = memoryview(b"".join((self._unread, data)))
        elif len(data) <= _SLICE:
            self._incoming.write(data)
        else:
            self._unread = memoryview(data)
        self._deliver()

    def eof_received(self) -> bool:
        self._fin = True
        self._deliver()
        return True  # it is closed here

    def resume_reading(self) -> None:
        super().resume_reading()
        if self._incoming.pending or self._unread or self._aside or self._fin or self._over:
            self._loop.call_soon(self._deliver)  # who says this may be in the middle of something

    def _deliver(self) -> None:
        """Pass on what can be decrypted, while it is wanted."""
        while not (self._unwanted or self._ended or self._closing):
            data = self._aside.pop(0) if self._aside else self._decrypt()
            if data:
                self.upper.data_received(data)
                if not (self._incoming.pending or self._unread or self._fin or self._over or self._aside):
                    break
            elif self._over:
                self._finish()
            else:
                break
        if self._outgoing.pending:
            self._answer()

    def _decrypt(self) -> bytes:
        """Decrypt a burst, or what there is. Sets `_over` where that is the end."""
        size = 0
        while size < _BURST and not self._over:
            if not self._incoming.pending and not self._feed():
                if self._fin:
                    self._over = True
                    self._failure = ConnectionResetError(_CUT_OFF) if self._strict else None
                break
            try:
                got = cast("int", self._ssl.read(_RECORD, _room[size:] if size else _room))
            except ssl.SSLWantReadError:
                continue  # part of a record
            except ssl.SSLError as exc:
                got = 0
                if not isinstance(exc, ssl.SSLZeroReturnError):
                    self._failure = ConnectionAbortedError(f"TLS: {explain(exc)}")
            if not got:
                self._over = True
                self._unread = _NOTHING
            size += got
        return bytes(_room[:size])

    def _feed(self) -> bool:
        if not self._unread:
            return False
        self._incoming.write(self._unread[:_SLICE])
        # An empty view would keep the whole read.
        self._unread = self._unread[_SLICE:] if len(self._unread) > _SLICE else _NOTHING
        return True

    def _finish(self) -> None:
        """Tell the upper protocol that nothing more comes, or why."""
        if self._failure is not None:
            self._fail(self._failure)
            return
        self._ended = True
        self._steer()
        if not self.upper.eof_received():
            self.close()

    def _answer(self) -> None:
        """Send what OpenSSL says for itself. Who asks for much of that and reads nothing is read no more."""
        data = self._outgoing.read()
        if not self._end_sent and not self._closing:
            self.lower.write(data)
            self.hold(self._full)

    def resume_writing(self) -> None:
        self._full = False
        self.hold(False)
        self._pump()
        self._tell()

    # ---- writing ----

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        size = len(data)
        if self._closing or not size:
            return
        if size > _RECORD or self._waiting or self._full:
            self._wait(data)
            self._pump()
            return
        try:
            self._ssl.write(data)
        except ssl.SSLError as exc:
            self._fail(ConnectionAbortedError(f"TLS: {explain(exc)}"))
        else:
            self.lower.write(self._outgoing.read())

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        if self._eof:
            raise RuntimeError("Cannot call writelines() after write_eof()")
        if not self._closing:
            for data in list_of_data:
                self._wait(data)
            self._pump()

    def _wait(self, data: bytes | bytearray | memoryview) -> None:
        if len(data) > _RECORD:
            data = memoryview(bytes(data) if isinstance(data, bytearray) else data)
        self._waiting.append(bytes(data) if isinstance(data, bytearray) else data)
        self._waiting_size += len(data)

    def _pump(self) -> None:
        """Encrypt what waits: as far as the lower transport takes it, and a burst in each turn."""
        if not self._waiting or self._pumping:
            return
        if not self._full:
            records = []
            burst = max(0, self._waiting_size - _BURST)
            try:
                while self._waiting_size > burst:
                    self._ssl.write(self._take())
                    records.append(self._outgoing.read())
            except ssl.SSLError as exc:
                self._fail(ConnectionAbortedError(f"TLS: {explain(exc)}"))
                return
            self.lower.writelines(records)
            if self._waiting and not self._full:
                self._pumping = True
                self._loop.call_soon(self._go_on)
        self.choke(self._waiting_size > (self._low if self._choked else self._high))
        if not self._waiting and (self._eof or self._closing):
            self._send_end()

    def _go_on(self) -> None:
        self._pumping = False
        self._pump()

    def _take(self) -> bytes | memoryview:
        """What waits, as much as goes into a record: small pieces joined, large ones cut."""
        parts = []
        room = _RECORD
        while self._waiting and room:
            piece = self._waiting.popleft()
            if len(piece) > room:
                self._waiting.appendleft(piece[room:])
                piece = piece[:room]
            parts.append(piece)
            room -= len(piece)
        self._waiting_size -= _RECORD - room
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        super().set_write_buffer_limits(high, low)
        self._low, self._high = self.lower.get_write_buffer_limits()

    def get_write_buffer_size(self) -> int:
        return self.lower.get_write_buffer_size() + self._waiting_size

    # ---- ends ----

    def write_eof(self) -> None:
        if not self._eof and not self._closing:
            self._eof = True
            if not self._waiting:
                self._send_end()

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._unread = _NOTHING
            self._steer()
            if not self._waiting:
                self._send_end()

    def _send_end(self) -> None:
        """Say that nothing more comes, behind all that does."""
        if not self._end_sent:
            self._end_sent = True
            # What is there must not be found by OpenSSL when it looks for the peer's close_notify.
            while not self._closing and (data := self._decrypt()):
                self._aside.append(data)
            notify(self._ssl)
            self.lower.write(self._outgoing.read())
        if self._closing:
            self.lower.close()
        else:
            self.lower.write_eof()

    def _fail(self, why: Exception) -> None:
        """End with an error. The peer is told, if it reads."""
        self._failure = why
        alert = self._outgoing.read()
        self._closing = True
        self._drop()
        if alert and not self._end_sent and not self.lower.get_write_buffer_size():
            self.lower.write(alert)
            self.lower.close()
        else:
            self.lower.abort()

    def abort(self) -> None:
        self._drop()
        super().abort()

    def _drop(self) -> None:
        self._waiting.clear()
        self._waiting_size = 0

    def connection_lost(self, exc: Exception | None) -> None:
        self._drop()
        super().connection_lost(exc or self._failure)
        self._unread = _NOTHING
        self._aside.clear()

    def _read_rest(self) -> None:
        self._deliver()
        super()._read_rest()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As the lower transport's, and "ssl_object"."""
        return self._ssl if name == "ssl_object" else super().get_extra_info(name, default)


async def connect_tls(
    loop: asyncio.AbstractEventLoop,
    factory: Callable[[], P],
    host: str,
    port: int,
    context: ssl.SSLContext,
    server_name: str = "",
    *,
    first: bytes = b"",
    strict: bool = True,
) -> tuple[TlsLayer, P]:
    """Connect to an instance's IP address, as `loop.create_connection` does, and shake hands.

    `server_name`: the name that its certificate must have; "": the address. `first` is sent before the
    handshake: a PROXY header stands outside of TLS, as HAProxy and nginx write and read it. The protocol
    hears of the connection once hands are shaken. Raises TlsConnectError, an OSError, with a text for the
    operator, or another OSError. Has no time-out of its own; when that strikes, nothing is left open.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await loop.sock_connect(sock, (host, port))
        except OSError as exc:
            # uvloop's text names the address, which its caller does as well.
            raise OSError(exc.errno, os.strerror(exc.errno)) if exc.errno else exc from exc
        if first:
            await loop.sock_sendall(sock, first)
        conversation = Conversation(loop, sock, context, server_name or host, server_side=False)
        try:
            await conversation.shake()
        except EOFError:
            raise TlsConnectError("TLS: the instance closed the connection within the handshake") from None
        except ssl.SSLError as exc:
            raise TlsConnectError(f"TLS: {explain(exc)}") from exc
        protocol = factory()
        layer = TlsLayer(protocol, conversation, strict=strict)
        await loop.connect_accepted_socket(lambda: layer, sock)
    except BaseException:
        sock.close()
        raise
    return layer, protocol
