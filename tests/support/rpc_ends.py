"""The other side of tcpgw.client and tcpgw.service, played by the test byte by byte."""

import asyncio
import contextlib
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import uvloop

from tcpgw.address import Address
from tcpgw.service import Service
from tests.support.streams import Peer, dial, in_time, listening, open_sockets


def frame(*message: Any) -> bytes:
    body = msgpack.packb(message)
    return struct.pack(">I", len(body)) + bytes(body)


async def read_message(peer: Peer) -> Any:
    """The next message, in a frame."""
    (size,) = struct.unpack(">I", await peer.read(4))
    return msgpack.unpackb(await peer.read(size), strict_map_key=False)


class Server:
    """A listening socket: the test accepts, reads and answers."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.peers: list[Peer] = []

    @property
    def address(self) -> str:
        return "{}:{}".format(*self._sock.getsockname())

    async def accept(self) -> Peer:
        sock, _ = await in_time(asyncio.get_running_loop().sock_accept(self._sock))
        self.peers.append(Peer(sock))
        return self.peers[-1]


@contextlib.contextmanager
def server(receive_buffer: int | None = None) -> Iterator[Server]:
    with listening(receive_buffer=receive_buffer) as sock:
        played = Server(sock)
        try:
            yield played
        finally:
            for peer in played.peers:
                peer.close()


@contextlib.contextmanager
def peer_of(address: str, receive_buffer: int | None = None) -> Iterator[Peer]:
    """A client's end of a connection to a service, played by the test."""
    where = Address.parse(address)
    peer = dial(where.path or (where.host, where.port), receive_buffer)
    try:
        yield peer
    finally:
        peer.close()


@contextlib.asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """Fail where tasks or sockets are left, or something raised where nobody hears it."""
    # Counted: a loop has another pair of its own in a test than in the fixture around it.
    before, tasks = len(open_sockets()), asyncio.all_tasks()
    bugs: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: bugs.append(context))
    yield
    await asyncio.sleep(0.01)
    assert not bugs
    assert not asyncio.all_tasks() - tasks - {asyncio.current_task()}
    assert len(open_sockets()) <= before


@contextlib.contextmanager
def served(service: Service) -> Iterator[str]:
    """Serve in a thread, for tests without a loop of their own."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        loop, end = runner.get_loop(), asyncio.Event()
        context = service.serving("127.0.0.1:0")
        address = loop.run_until_complete(context.__aenter__())

        async def until_end() -> None:
            await end.wait()
            await context.__aexit__(None, None, None)

        thread = threading.Thread(target=loop.run_until_complete, args=(until_end(),))
        thread.start()
        try:
            yield address
        finally:
            loop.call_soon_threadsafe(end.set)
            thread.join()


class Certificate(NamedTuple):
    file: Path
    key: Path

    def server(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.file, self.key)
        return context

    def client(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.file)


def certificate(openssl: str, folder: Path, name: str) -> Certificate:
    """A certificate that is its own authority, for a name such as `DNS:gateway` or `IP:127.0.0.1`."""
    made = Certificate(folder / "cert.pem", folder / "key.pem")
    subject = ["-subj", "/CN=test", "-addext", f"subjectAltName={name}"]
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-out", str(made.file), "-keyout", str(made.key)]
    subprocess.run([openssl, "req", "-x509", *curve, *subject, *files], check=True, capture_output=True)
    return made
