"""What is said with a client before a plane has its connection: a few bytes each way, over the bare socket.

The client's bytes are read here only as far as somebody wants them, and wait in the kernel otherwise. What
was read and is nobody's yet is `data`: whoever takes the connection over gets it as its first bytes.
"""

import asyncio
import contextlib
import socket
import ssl

from tcpgw.errors import ProtocolError
from tcpgw.relay import handshake
from tcpgw.relay.tls import TlsLayer

# What is read here comes in one segment; what follows it in the same read is the instance's.
READ = 4096  # bytes


class Conversation:
    """With one client, over a socket that stays its owner's. Used in one running event loop.

    `names` are whom its certificate is for, () without one.
    """

    names: tuple[str, ...] = ()

    def __init__(self, sock: socket.socket) -> None:
        self.data = b""
        self._reads = 0
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        sock.setblocking(False)  # otherwise the transport sees to it

    async def read(self, awaited: str) -> None:
        """Add what the client sends next to `data`. Raises ProtocolError where it ends before that."""
        self._reads += 1
        await handshake.pace(self._reads)
        chunk = await self.receive()
        if not chunk:
            raise ProtocolError(f"closed at byte {len(self.data)}, before the end of its {awaited}")
        self.data += chunk

    async def receive(self) -> bytes:
        """Return what the client sends next, b"" at its end."""
        return await self._loop.sock_recv(self._socket, READ)

    async def say(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._socket, data)

    async def dismiss(self, last: bytes, seconds: float) -> None:
        """Say `last` and FIN, and give the client so long to read it. Never raises but when cancelled.

        A close with unread bytes of the client's would answer with RST, which may overtake what was said.
        """
        with contextlib.suppress(OSError):  # TimeoutError and ssl.SSLError are such
            async with asyncio.timeout(seconds):
                if last:
                    await self.say(last)
                await self._end()

    async def _end(self) -> None:
        await handshake.linger(self._loop, self._socket)


class SecureConversation(Conversation):
    """The same within TLS, after its handshake. `layer` takes its place when a plane takes the connection."""

    def __init__(self, sock: socket.socket, tls: handshake.Conversation) -> None:
        super().__init__(sock)
        self.names = tls.names
        self.server_name = tls.server_name
        self._tls = tls

    async def receive(self) -> bytes:
        try:
            return await self._tls.receive()
        except ssl.SSLError as exc:
            raise ProtocolError(f"TLS: {handshake.explain(exc)}") from None

    async def say(self, data: bytes) -> None:
        await self._tls.send(data)

    async def _end(self) -> None:
        await self._tls.end()

    def layer(self, protocol: asyncio.Protocol) -> TlsLayer:
        # A client's FIN without close_notify is its end, and no reset: many do not say goodbye.
        return TlsLayer(protocol, self._tls, strict=False)
