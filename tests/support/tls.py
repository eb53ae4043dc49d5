"""TLS between two ends of one loopback connection, each as a conversation, a layer or raw."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator

from tcpgw.access.tls import ServerTls
from tcpgw.relay.handshake import Conversation, accept_tls
from tcpgw.relay.tls import TlsLayer
from tests.support.certificates import client_side, server_side
from tests.support.layering import Above
from tests.support.streams import in_time, until

# The layers of this test: uvloop does not end while a transport is open.
_layers: list[TlsLayer] = []


@contextlib.asynccontextmanager
async def closing_layers() -> AsyncIterator[None]:
    """End every layer that `layer_on` has made at the end of the block."""
    try:
        yield
    finally:
        for layer in _layers:
            layer.abort()
        await until(lambda: all(type(layer.upper) is asyncio.Protocol for layer in _layers))
        _layers.clear()


@contextlib.asynccontextmanager
async def pair(receive_buffer: int = 0) -> AsyncIterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a TCP connection, not blocking; closed with the block, and so are the layers on them."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as there:
        if receive_buffer:
            for one in (server, there):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        there.connect(server.getsockname())
        with server.accept()[0] as here:
            here.setblocking(False)
            there.setblocking(False)
            async with closing_layers():
                yield here, there


async def shaken(
    here: socket.socket,
    there: socket.socket,
    tls: ServerTls | None = None,
    client: ssl.SSLContext | None = None,
) -> tuple[Conversation, Conversation]:
    """The server's end and the client's, once hands are shaken."""
    loop = asyncio.get_running_loop()
    other = Conversation(loop, there, client or client_side(), "localhost", server_side=False)
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        accepted = tasks.create_task(accept_tls(loop, here, tls or server_side()))
        tasks.create_task(other.shake())
    return accepted.result(), other


async def layer_on(
    sock: socket.socket, conversation: Conversation, above: Above | None = None, *, strict: bool = False
) -> Above:
    """Put a layer on that end, and return what is above it."""
    above = above or Above()
    layer = TlsLayer(above, conversation, strict=strict)
    await in_time(asyncio.get_running_loop().connect_accepted_socket(lambda: layer, sock))
    _layers.append(layer)
    return above


versions = ("1.2", "1.3")
