"""One connection of a check: it asks one question, judges the answer and parts from the instance.

States: connecting → (TLS handshake) → asked → parting → ended. A verdict leads to parting from wherever it
falls; the connection's end leads to ended, and is the verdict where there was none.
"""

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import struct
from dataclasses import dataclass
from typing import cast

from tcpgw.endpoints import Endpoint
from tcpgw.health.questions import MAX_ANSWER, Question, unlike

# SO_LINGER on, 0 s: closing sends RST (socket(7)).
RESET_ON_CLOSE = struct.pack("ii", 1, 0)

# Seconds that the instance has for its FIN after its answer. Most send it at once; of those that never do,
# 500 checks a second keep 50 connections by this, less than may be open at a time.
_PARTING = 0.1
_IN_WORDS = {errno.ECONNREFUSED: "refused", errno.ECONNRESET: "reset", errno.EPIPE: "closed"}


def in_words(exc: BaseException) -> str:
    number = getattr(exc, "errno", None)
    return str(exc) if number is None else _IN_WORDS.get(number) or os.strerror(number).lower()


@dataclass(frozen=True, slots=True)
class Secure:
    """TLS to an instance. `server_name` is sent (SNI) and verified; by default, the endpoint's address is.

    Whether it is verified, and by whose authority, is the context's. Raises ValueError for what can be no
    server's name.
    """

    context: ssl.SSLContext
    server_name: str = ""

    def __post_init__(self) -> None:
        if self.server_name:
            self.context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=self.server_name)


class Tls:
    """TLS between bytes and bytes: what came goes to `receive`, and what `outgoing` holds must be sent."""

    def __init__(self, secure: Secure, host: str) -> None:
        self.shaken = False
        self.outgoing = ssl.MemoryBIO()
        self._incoming = ssl.MemoryBIO()
        self._object = secure.context.wrap_bio(
            self._incoming, self.outgoing, server_hostname=secure.server_name or host
        )

    def receive(self, data: bytes) -> bytes:
        """Return what the data says, once the handshake is done. Raises ssl.SSLError, its alert outgoing."""
        self._incoming.write(data)
        parts = []
        # No bytes, or this error after our own `close`: the other side has said all.
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            if not self.shaken:
                self._object.do_handshake()
                self.shaken = True
            while part := self._object.read(MAX_ANSWER):
                parts.append(part)
        return b"".join(parts)

    def send(self, data: bytes) -> None:
        self._object.write(data)

    def close(self) -> None:
        """Say that we have said all (close_notify), if there is anybody to say it to."""
        with contextlib.suppress(ssl.SSLError):
            self._object.unwrap()


class Exchange(asyncio.Protocol):
    """`ended` is done once the connection has ended; no later than a moment after there is a verdict."""

    def __init__(self, question: Question, endpoint: Endpoint, secure: Secure | None) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._question = question
        self._endpoint = endpoint
        self._tls = None if secure is None else Tls(secure, endpoint.host)
        self._transport: asyncio.Transport | None = None
        self._lost = False
        self._asked = False
        self._answer = b""
        self._verdict: str | None = None
        self._parting: asyncio.TimerHandle | None = None

    def conclude(self, how: str) -> str:
        """Return the verdict; where there is none yet, that the answer was missing when it all ended so."""
        if self._verdict is None:
            stage = "connection" if self._transport is None else "answer" if self._asked else "TLS handshake"
            missing = f"no {stage}{how}"
            self._verdict = unlike(self._answer, self._question.wanted) if self._answer else missing
        return self._verdict

    def drop(self) -> None:
        """End the connection at once if it has not ended: by RST, unless it is about to end by FIN."""
        if self._transport is None or self._lost:
            return
        sock: socket.socket | None = self._transport.get_extra_info("socket")
        if self._parting is None and sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self._transport.abort()

    # ---- what the loop calls ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._go_on(b"")  # with TLS to the handshake, else to the question

    def data_received(self, data: bytes) -> None:
        self._go_on(data)

    def eof_received(self) -> None:
        self.conclude(", connection closed")

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self.conclude(f", connection {in_words(exc) if exc else 'closed'}")
        if self._parting is not None:
            self._parting.cancel()
        if not self.ended.done():  # whoever awaited it may have been cancelled, and it with them
            self.ended.set_result(None)

    # ---- within ----

    def _go_on(self, data: bytes) -> None:
        if self._verdict:
            return
        try:
            heard = self._tls.receive(data) if self._tls else data
        except ssl.SSLError as exc:
            # Also in place of a verdict without an answer: in TLS 1.3 the handshake is done on our side
            # before the instance refuses our certificate.
            if self._verdict is None or not self._answer:
                self._verdict = _tls_reason(exc)
        else:
            if self._tls is None or self._tls.shaken:
                self._hear(heard)
        if self._verdict is not None and self._parting is None:
            self._part()
        self._flush()

    def _hear(self, data: bytes) -> None:
        if not self._asked:
            self._asked = True
            self._send(self._question.ask(self._endpoint))
        if self._verdict is None:
            self._answer += data
            self._verdict = self._question.judge(self._answer)
            if self._verdict is None and len(self._answer) > MAX_ANSWER:
                self._verdict = unlike(self._answer, self._question.wanted)

    def _part(self) -> None:
        assert self._transport is not None  # noqa: S101 - only what is connected comes to a verdict here
        self._parting = self._loop.call_later(_PARTING, self._transport.abort)
        if not self._question.they_end:
            if self._tls is not None:
                self._tls.close()
            self._flush()
            self._transport.write_eof()

    def _send(self, data: bytes) -> None:
        if self._tls is not None:
            self._tls.send(data)
        elif self._transport is not None:
            self._transport.write(data)

    def _flush(self) -> None:
        if self._tls is not None and self._transport is not None and (data := self._tls.outgoing.read()):
            self._transport.write(data)


def _tls_reason(exc: ssl.SSLError) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"certificate refused: {exc.verify_message}"
    return f"TLS: {(exc.reason or str(exc)).lower().replace('_', ' ')}"
