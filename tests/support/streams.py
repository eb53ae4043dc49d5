"""A gateway between a test's own sockets: the test plays every client and every instance itself."""

import asyncio
import contextlib
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from structlog.testing import capture_logs

from tcpgw.app.gateway import Gateway
from tcpgw.config.load import loads
from tcpgw.config.log import ConnectionLog
from tcpgw.pool import Pool
from tcpgw.relay.lines import ConnectionLines
from tcpgw.relay.listener import Listener
from tcpgw.relay.session import Connection
from tcpgw.relay.stream import Relay

# Seconds after which something that should have happened has not: long, so that a busy machine fails nothing.
PATIENCE = 10.0
MiB = 1 << 20
# A receive buffer with which a reader that stalls is noticed soon.
SMALL = 64 * 1024

# Where a test is about something else: which instances are used is then what it says itself.
UNJUDGED = 'active = "off", passive = "off"'

Line = MutableMapping[str, Any]
T = TypeVar("T")

# What README promises of a closing line; the second set stands only where there is something to say.
_FIELDS = {
    "event", "log_level", "conn", "client", "listener", "service", "endpoint", "bytes_in", "bytes_out",
    "duration", "connect_time", "tries", "reason",
}  # fmt: skip
_OPTIONAL_FIELDS = {"error", "peer", "requests", "answers"}


def new_lines(**settings: Any) -> ConnectionLines:
    """What a listener logs, with these settings."""
    return ConnectionLines(ConnectionLog(**settings))


async def in_time(awaitable: Awaitable[T], seconds: float = PATIENCE) -> T:
    async with asyncio.timeout(seconds):
        return await awaitable


async def until(condition: Callable[[], object]) -> None:
    """Return once `condition()` is true; for what nothing can be awaited for."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - it is the other side of a socket that will change it
            await asyncio.sleep(0.002)


class Reads(ABC):
    """Reads by `read_some`, which is empty at what the protocol calls its `END`."""

    END: ClassVar[str]

    @abstractmethod
    async def read_some(self, size: int = MiB) -> bytes: ...

    async def read(self, size: int) -> bytes:
        """Exactly `size` bytes. Raises EOFError where the end comes before them."""
        data = bytearray()
        while len(data) < size:
            chunk = await self.read_some(size - len(data))
            if not chunk:
                raise EOFError(f"{self.END} after {len(data)} of {size} bytes")
            data += chunk
        return bytes(data)

    async def read_to_end(self) -> bytes:
        """Everything up to the end. Raises ConnectionResetError at RST."""
        data = bytearray()
        while chunk := await self.read_some():
            data += chunk
        return bytes(data)


class Peer(Reads):
    """One end of a connection, as exact as the socket API: nothing is read, buffered or closed unasked."""

    END = "FIN"

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock

    @property
    def address(self) -> str:
        return "{}:{}".format(*self.sock.getsockname()[:2])

    async def send(self, data: bytes) -> None:
        await in_time(asyncio.get_running_loop().sock_sendall(self.sock, data))

    async def read_some(self, size: int = MiB) -> bytes:
        """What is there now or comes next; empty at FIN."""
        return await in_time(asyncio.get_running_loop().sock_recv(self.sock, size))

    async def is_reset(self) -> bool:
        """Read until the connection ends, and say whether RST ended it rather than FIN."""
        try:
            await self.read_to_end()
        except ConnectionResetError:
            return True
        return False

    async def send_until_stalled(self, quiet: float = 0.1) -> int:
        """Send zeros until nothing moves for `quiet` seconds. Returns how many bytes the kernel took."""
        loop, sent = asyncio.get_running_loop(), 0
        last = loop.time()
        async with asyncio.timeout(PATIENCE):
            while loop.time() - last < quiet:
                try:
                    sent += self.sock.send(bytes(MiB))
                    last = loop.time()
                    await asyncio.sleep(0)
                except BlockingIOError:
                    await asyncio.sleep(0.002)
        return sent

    def fin(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        self.sock.close()


def dial(address: tuple[str, int] | str, receive_buffer: int | None = None, source: str = "") -> Peer:
    """Connect to a TCP address or a Unix path, blocking: on loopback the kernel answers at once."""
    if isinstance(address, str):
        family = socket.AF_UNIX
    else:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family)
    try:
        if receive_buffer:  # before connecting, or the window scale is settled already (tcp(7))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source:
            sock.bind((source, 0))
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return Peer(sock)


class Bed:
    """A running gateway, the listening sockets of its instances, and what it logs.

    The first listener is `listener`; the only service is `s`. What `connect` and `accept` opened is closed
    by `bed`.
    """

    def __init__(self, gateway: Gateway, instances: Sequence[socket.socket], logs: list[Line]) -> None:
        self.gateway = gateway
        self.instances = instances
        self.logs = logs
        self._peers: list[Peer] = []

    @property
    def listener(self) -> Listener:
        return next(iter(self.gateway.listeners.values()))

    @property
    def pool(self) -> Pool:
        return self.gateway.pools["s"]

    @property
    def lines(self) -> list[Line]:
        """The closing lines so far."""
        return [line for line in self.logs if line["event"] == "connection_closed"]

    @property
    def about(self) -> list[Line]:
        """All lines about connections so far."""
        return [line for line in self.logs if line["event"].startswith("connection_")]

    def endpoint(self, number: int = 0) -> str:
        return "{}:{}".format(*self.instances[number].getsockname())

    def dial(self, *, receive_buffer: int | None = None, source: str = "") -> Peer:
        """Connect a client without giving the gateway a turn: the kernel answers for it."""
        address = self.listener.address
        if address.startswith("unix:"):
            return self._keep(dial(address.removeprefix("unix:")))
        host, _, port = address.rpartition(":")
        # A listener on all addresses of IPv6 is dialled by IPv4: it must take both.
        host = "127.0.0.1" if host == "[::]" else host.strip("[]")
        return self._keep(dial((host, int(port)), receive_buffer, source))

    async def accept(self, number: int = 0) -> Peer:
        """Take the gateway's next connection to an instance."""
        sock, _ = await in_time(asyncio.get_running_loop().sock_accept(self.instances[number]))
        return self._keep(Peer(sock))

    async def pair(self, *, receive_buffer: int | None = None) -> tuple[Peer, Peer]:
        """Make a client's connection and the instance's end of it."""
        client = self.dial(receive_buffer=receive_buffer)
        return client, await self.accept()

    async def line(self) -> Line:
        """The only closing line, as soon as there is one."""
        await until(lambda: self.lines)
        (line,) = self.lines
        return line

    async def closed(self, count: int) -> None:
        """Return when so many connections have ended."""
        await until(lambda: len(self.lines) >= count)

    @property
    def connection(self) -> Connection:
        """The only connection that is open."""
        (connection,) = self.listener.connections.values()
        return connection

    async def relay(self) -> Relay:
        """The relay of the only connection, as soon as it stands."""
        await until(lambda: self.connection.session)
        relay = self.connection.session
        assert isinstance(relay, Relay)
        return relay

    def close_peers(self) -> None:
        for peer in self._peers:
            peer.close()

    def _keep(self, peer: Peer) -> Peer:
        self._peers.append(peer)
        return peer


@contextlib.asynccontextmanager
async def bed(
    *,
    listener: str = "",
    service: str = "",
    balance: str = "table_size = 1021",  # small, so that hundreds of gateways start quickly
    instances: int = 1,
    endpoints: Sequence[str] = (),
    weight: int = 1,
    health: str = UNJUDGED,
    bind: str = "127.0.0.1:0",
    gateway: str = "",
) -> AsyncIterator[Bed]:
    """Run a gateway with one listener and one service. `listener`, `service` and `gateway` are lines of TOML.

    The endpoints are `endpoints` and those of as many `instances`. At the end everything is ended and these
    must hold: as many closing lines as connections, complete; no load, no task and no socket left; nothing
    raised where nobody hears it.
    """
    before = open_sockets()
    tasks = asyncio.all_tasks()
    bugs: list[dict[str, Any]] = []  # exceptions in callbacks and protocols, which asyncio only logs
    asyncio.get_running_loop().set_exception_handler(lambda _, context: bugs.append(context))
    with contextlib.ExitStack() as stack, capture_logs() as logs:
        sockets = [stack.enter_context(listening(receive_buffer=SMALL)) for _ in range(instances)]
        addresses = [*endpoints, *("{}:{}".format(*sock.getsockname()) for sock in sockets)]
        members = ", ".join(f'{{ address = "{address}", weight = {weight} }}' for address in addresses)
        text = f"""
            [gateway]
            {gateway}
            [[service]]
            name = "s"
            discovery = {{ type = "static", endpoints = [{members}] }}
            balance = {{ {balance} }}
            health = {{ {health} }}
            {service}
            [[listener]]
            name = "l"
            route = "s"
            bind = "{bind}"
            {listener}
        """
        made = Gateway(loads(text, Path()))
        running = Bed(made, sockets, logs)
        await in_time(made.__aenter__())
        try:
            yield running
        finally:
            await in_time(made.__aexit__(None, None, None))
            running.close_peers()
    _check_accounts(running)
    await asyncio.sleep(0)
    assert not bugs
    assert asyncio.all_tasks() == tasks
    assert open_sockets() <= before


def _check_accounts(running: Bed) -> None:
    listener = running.listener
    assert not listener.connections
    assert not listener.draining
    assert listener.draining._timer is None
    assert listener.accepted == len(running.lines) == listener.ended.total()
    for line in running.lines:
        assert _FIELDS <= line.keys() <= _FIELDS | _OPTIONAL_FIELDS, line
    assert sorted(line["conn"] for line in running.lines) == list(range(1, listener.accepted + 1))
    for name in ("bytes_in", "bytes_out"):
        assert listener.status()[name] == sum(line[name] for line in running.lines)
    loads_ = running.pool.loads
    assert loads_.total == 0
    assert not any(loads_.inflight(member.endpoint) for member in running.pool.members)


def open_sockets() -> set[str]:
    """This process' sockets, by inode."""
    found = set()
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found.add(str(fd.readlink()))
    return {link for link in found if link.startswith("socket:")}


@contextlib.contextmanager
def listening(backlog: int = 128, *, receive_buffer: int | None = None) -> Iterator[socket.socket]:
    """A socket that listens on a port of 127.0.0.1 chosen by the kernel.

    With `receive_buffer` an accepted socket that is not read from holds that much, instead of what the kernel
    thinks right for a fast network: tens of megabytes.
    """
    with socket.create_server(("127.0.0.1", 0), backlog=backlog) as sock:
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        yield sock


@contextlib.contextmanager
def refusing() -> Iterator[str]:
    """An address that refuses connections for as long as the context lasts: bound, but not listening."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield "{}:{}".format(*sock.getsockname())


@contextlib.contextmanager
def silent() -> Iterator[str]:
    """An address that does not answer: its accept queue is full, so Linux drops what else comes."""
    with listening(backlog=0) as sock, contextlib.ExitStack() as stack:
        for _ in range(2):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(sock.getsockname())
        yield "{}:{}".format(*sock.getsockname())
