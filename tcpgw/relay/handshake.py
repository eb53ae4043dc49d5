"""TLS before there is a transport: handshakes, and what else is said while a connection is being set up.

Over raw non-blocking sockets, as the listener's conversation is. It ends with a `TlsLayer`, or with the alert
that tells the peer why not.

With TLS 1.3 a client has finished its handshake when its certificate is refused, and may be sending already.
Closing would answer that with RST, which can take the alert back before it is read; so a refusal sends FIN
behind it, and what still comes is thrown away for a while.
"""

import asyncio
import contextlib
import itertools
import socket
import ssl
from collections.abc import Callable
from typing import TypeVar

from tcpgw.access.tls import ServerTls, names, refusal
from tcpgw.errors import ProtocolError, TcpgwError
from tcpgw.wire import client_hello

_T = TypeVar("_T")

# Bytes of a read: more than a flight of a handshake.
_READ = 16 * 1024
# Seconds that a refused peer has to read why, and to stop sending.
_LINGER = 1.0
# Reads after which a client is read with pauses, in seconds, which grow by a step with each to the longest.
_FREE_READS, _STEP, _LONGEST = 16, 0.005, 0.25
# What OpenSSL says of frequent mistakes, for the operator.
_REASONS = {
    "HTTP_REQUEST": "plain HTTP instead of TLS",
    "NO_SHARED_CIPHER": "no cipher in common",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "no certificate was shown, and one is required",
    "UNSUPPORTED_PROTOCOL": "no version of TLS in common",
    "WRONG_VERSION_NUMBER": "something else than TLS",
}


class TlsHandshakeError(TcpgwError):
    """A client's handshake failed. It has been told why, as far as it was there to listen."""

    blame = "client"


class Conversation:
    """TLS over a raw socket, from the handshake until a `TlsLayer` takes it over. The socket stays the
    caller's.

    `server_name` is what the client asked for, in lower case, or "". From `shake` on, `alpn` is the protocol
    agreed on, or "", and `names` is whom the peer's certificate is for, () if it showed none.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        context: ssl.SSLContext,
        server_name: str,
        *,
        server_side: bool,
    ) -> None:
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.ssl = context.wrap_bio(
            self.incoming,
            self.outgoing,
            server_side=server_side,
            server_hostname=None if server_side else server_name,
        )
        self.server_name = server_name
        self.alpn = ""
        self.names: tuple[str, ...] = ()
        self._loop = loop
        self._sock = sock

    async def shake(self) -> None:
        """Do the handshake. Raises ssl.SSLError once the alert is sent, OSError, or EOFError at FIN."""
        try:
            await self._advance(self.ssl.do_handshake)
        except ssl.SSLError:
            with contextlib.suppress(OSError):
                await self._flush()
            raise
        await self._flush()  # with session tickets
        self.alpn = self.ssl.selected_alpn_protocol() or ""
        self.names = names(self.ssl.getpeercert() or {})

    async def receive(self) -> bytes:
        """What the peer says next; b"" once it has ended. Raises ssl.SSLError or OSError.

        What came beyond that stays here, for the next call or for the layer.
        """
        try:
            return await self._advance(lambda: self.ssl.read(_READ))
        except (EOFError, ssl.SSLZeroReturnError):
            return b""

    async def send(self, data: bytes) -> None:
        """Say something short. Raises ssl.SSLError or OSError."""
        self.ssl.write(data)
        await self._flush()

    async def end(self) -> None:
        """Say that this was all (close_notify, FIN), and wait a little while it is read. Raises OSError."""
        notify(self.ssl)
        await self._flush()
        await linger(self._loop, self._sock)

    async def _advance(self, step: Callable[[], _T]) -> _T:
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                await self._flush()
            data = await self._loop.sock_recv(self._sock, _READ)
            if not data:
                raise EOFError
            self.incoming.write(data)

    async def _flush(self) -> None:
        if self.outgoing.pending:
            await self._loop.sock_sendall(self._sock, self.outgoing.read())


async def accept_tls(
    loop: asyncio.AbstractEventLoop,
    sock: socket.socket,
    context: ServerTls,
    early: bytes = b"",
    patience: float = _LINGER,
) -> Conversation:
    """Shake hands with a client that has sent `early` already. Has no time-out of its own.

    But for who is refused: `patience` seconds are given to read why, and to stop sending.

    Raises TlsHandshakeError with a text for the operator, or OSError where the client's socket fails; then,
    and when cancelled, the caller closes the socket.
    """
    hello = early
    server_name: str | None = None
    for reads in itertools.count():
        # Read here and not by OpenSSL's callback, which knows no host name but ASCII and says so on stderr.
        # What is refused here OpenSSL refuses as well, with its alert, or knows better.
        try:
            parsed = client_hello.parse(hello)
        except ProtocolError:
            server_name = ""
        else:
            server_name = parsed.server_name if parsed else None
        if server_name is not None:
            break
        await pace(reads)
        data = await loop.sock_recv(sock, _READ)
        if not data:
            raise TlsHandshakeError(f"closed at byte {len(hello)}, within the ClientHello")
        hello += data
    chosen = context.choose(server_name or "")
    conversation = Conversation(loop, sock, chosen, server_name or "", server_side=True)
    conversation.incoming.write(hello)
    try:
        await conversation.shake()
    except EOFError:
        raise TlsHandshakeError("closed within the handshake") from None
    except ssl.SSLError as exc:
        await linger(loop, sock, patience)
        raise TlsHandshakeError(explain(exc)) from exc
    return conversation


async def pace(reads: int) -> None:
    """Wait before the next read of a client that has sent bit by bit so many times.

    All that came is looked at anew each time, so a drip of bytes would cost most.
    """
    if reads > _FREE_READS:
        await asyncio.sleep(min((reads - _FREE_READS) * _STEP, _LONGEST))


async def linger(loop: asyncio.AbstractEventLoop, sock: socket.socket, seconds: float = _LINGER) -> None:
    """Send FIN, and give the peer time to do the same; what it sends meanwhile is thrown away."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(seconds):
            while await loop.sock_recv(sock, _READ):
                pass


def notify(tls: ssl.SSLObject) -> None:
    """Write close_notify, once. OpenSSL also looks for the peer's, and what else it finds then is lost."""
    with contextlib.suppress(ssl.SSLError):
        tls.unwrap()


def explain(exc: ssl.SSLError) -> str:
    """Say what is wrong, for the operator."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"the certificate is refused: {refusal(exc)}"
    reason = exc.reason or str(exc)
    return _REASONS.get(reason) or reason.lower().replace("_", " ")
