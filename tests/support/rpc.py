"""MessagePack-RPC instances that misbehave, clients that say what they are told, and a gateway between them.

All in one event loop.
"""

import asyncio
import contextlib
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgpack
from structlog.testing import capture_logs

from tcpgw.app.gateway import Gateway
from tcpgw.config.load import loads
from tcpgw.endpoints import Endpoint, Member, Snapshot
from tcpgw.pool import Pool
from tcpgw.relay.listener import Listener
from tcpgw.relay.rpc.plane import RpcPlane
from tcpgw.relay.rpc.service import RpcService
from tcpgw.relay.rpc.target import Target
from tests.support.rpc_ends import frame
from tests.support.streams import UNJUDGED, Line, Peer, dial, in_time, open_sockets, until

REQUEST, ANSWER, NOTIFY = range(3)


def bare(*message: Any) -> bytes:
    packed: bytes = msgpack.packb(message)
    return packed


class End(asyncio.Protocol):
    """One end of a connection; what comes in is given to `take`, message by message."""

    transport: asyncio.Transport

    def __init__(self, *, framed: bool = True) -> None:
        self.framed = framed
        self.ended = asyncio.Event()  # FIN or RST came
        self.error: Exception | None = None
        self._data = bytearray()
        self._objects = msgpack.Unpacker(max_buffer_size=0, strict_map_key=False)

    def take(self, message: list[Any]) -> None:
        raise NotImplementedError

    def send(self, *message: Any) -> None:
        self.transport.write(frame(*message) if self.framed else bare(*message))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if not self.framed:
            self._objects.feed(data)
            for message in self._objects:
                self.take(message)
            return
        self._data += data
        at = 0
        while len(self._data) - at >= 4:
            end = at + 4 + struct.unpack_from(">I", self._data, at)[0]
            if end > len(self._data):
                break
            self.take(_decoded(bytes(self._data[at + 4 : end])))
            at = end
        del self._data[:at]

    def eof_received(self) -> bool:
        self.ended.set()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.error = exc
        self.ended.set()


def _decoded(body: bytes) -> list[Any]:
    """What cannot be decoded is told apart as a message of type -1, with its own type and id."""
    try:
        return cast("list[Any]", msgpack.unpackb(body, strict_map_key=False))
    except (ValueError, TypeError):  # a key that is a list
        scan = msgpack.Unpacker(max_buffer_size=0, raw=True)
        scan.feed(body)
        scan.read_array_header()
        return [-1, scan.unpack(), scan.unpack()]


# ---- instances ----


class Request(NamedTuple):
    link: "Link"
    id: Any
    method: str
    params: Any

    def answer(self) -> None:
        """Echo the parameters."""
        self.link.send(ANSWER, self.id, None, self.params)

    def refuse(self, error: Any) -> None:
        self.link.send(ANSWER, self.id, error, None)


Behaviour = Callable[[Request], object]


class Link(End):
    """The instance's end of a connection."""

    def __init__(self, instance: "Instance") -> None:
        super().__init__(framed=instance.framed)
        self.instance = instance

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.instance.links.append(self)
        self.instance.accepted += 1
        if self.instance.deaf:
            # uvloop begins to read after this call, whatever is asked of it here.
            asyncio.get_running_loop().call_soon(self._be_deaf)

    def _be_deaf(self) -> None:
        if self.instance.deaf and not self.transport.is_closing():
            self.transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.instance.links.remove(self)

    def take(self, message: list[Any]) -> None:
        match message:
            case [0, number, method, params]:
                request = Request(self, number, method, params)
                self.instance.requests.append(request)
                self.instance.behave(request)
            case [-1, 0, number]:
                self.instance.malformed += 1
                self.send(ANSWER, number, "malformed parameters", None)
            case [2, method, params]:
                self.instance.notifications.append((method, params))
            case other:
                self.instance.answers.append(other)


def echo(request: Request) -> None:
    request.answer()


def hold(request: Request) -> None:
    """Leave it for `Instance.answer_all`, or for nobody."""
    request.link.instance.held.append(request)


class Instance:
    """An instance that keeps account of what it was asked. `behave` may be changed at any time.

    `deaf`: it never reads, and its sockets hold little.
    """

    def __init__(self, behave: Behaviour = echo, *, framed: bool = True, deaf: bool = False) -> None:
        self.behave = behave
        self.framed = framed
        self.deaf = deaf
        self.requests: list[Request] = []
        self.notifications: list[tuple[Any, Any]] = []
        self.answers: list[list[Any]] = []  # to what it asked itself
        self.held: list[Request] = []
        self.malformed = 0
        self.links: list[Link] = []
        self.accepted = 0
        self.endpoint = ""
        self._server: asyncio.Server | None = None
        self._port = 0

    async def start(self) -> None:
        """Listen: the first time at a port that the kernel chooses, then at the same one again."""
        with contextlib.ExitStack() as stack:
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self.deaf:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.bind(("127.0.0.1", self._port))
            self._port = sock.getsockname()[1]
            self.endpoint = f"127.0.0.1:{self._port}"
            self._server = await asyncio.get_running_loop().create_server(lambda: Link(self), sock=sock)
            stack.pop_all()

    def stop_listening(self) -> None:
        if self._server:
            self._server.close()
            self._server = None

    def cut(self) -> None:
        """Lose all connections, as a process that dies does; it goes on listening."""
        for link in list(self.links):
            link.transport.abort()

    def kill(self) -> None:
        """Die. Idempotent."""
        self.stop_listening()
        self.cut()

    def hear(self) -> None:
        """Read from now on."""
        self.deaf = False
        for link in self.links:
            link.transport.resume_reading()

    def answer_all(self) -> int:
        held, self.held = self.held, []
        for request in held:
            if not request.link.transport.is_closing():
                request.answer()
        return len(held)

    @property
    def seen(self) -> Counter[Any]:
        """How often each first parameter came: the tests' requests are told apart by it."""
        return Counter(request.params[0] for request in self.requests)


# ---- clients ----


class Client(End):
    """A client's end. `answers` is what came, in order."""

    def __init__(self, *, framed: bool = True) -> None:
        super().__init__(framed=framed)
        self.answers: list[list[Any]] = []
        self.others: list[list[Any]] = []  # no answers
        self._changed = asyncio.Event()

    def take(self, message: list[Any]) -> None:
        (self.answers if message[0] == ANSWER else self.others).append(message)
        self._changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._changed.set()

    def eof_received(self) -> bool:
        super().eof_received()
        self._changed.set()
        return False

    def reset(self) -> None:
        """Go as a process does that is killed with answers unread: by RST."""
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def ask(self, number: Any, *params: Any, method: str = "m") -> None:
        self.send(REQUEST, number, method, list(params))

    async def got(self, count: int) -> list[list[Any]]:
        """All answers, when there are `count` or more. Raises EOFError where the end comes before."""
        async with asyncio.timeout(20):
            while len(self.answers) < count:
                if self.ended.is_set():
                    raise EOFError(f"{len(self.answers)} of {count} answers; {self.error}")
                self._changed.clear()
                await self._changed.wait()
        return self.answers

    async def call(self, *params: Any, method: str = "m", number: int = 1) -> Any:
        """Ask, with nothing else under way, and return the error or the result."""
        count = len(self.answers)
        self.ask(number, *params, method=method)
        _, answered, error, result = (await self.got(count + 1))[count]
        assert answered == number
        return result if error is None else error

    async def is_served(self) -> bool:
        return bool(await self.call("ping") == ["ping"])


async def connected(
    address: str, framed: bool = True, receive_buffer: int | None = None, source: str = ""
) -> Client:
    """Connect a client; with `receive_buffer` it takes little while it does not read."""
    sock = socket.socket()
    if source:
        sock.bind((source, 0))
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.setblocking(False)
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    await in_time(loop.sock_connect(sock, (host, int(port))))
    _, client = await loop.create_connection(lambda: Client(framed=framed), sock=sock)
    return client


# ---- the gateway ----


class Bed:
    """A running gateway, the only service `s`, the first listener `l`, and what is logged."""

    def __init__(self, gateway: Gateway, logs: list[Line]) -> None:
        self.gateway = gateway
        self.logs = logs
        self._clients: list[Client] = []
        self._peers: list[Peer] = []

    @property
    def listener(self) -> Listener:
        return next(iter(self.gateway.listeners.values()))

    @property
    def plane(self) -> RpcPlane:
        plane = self.listener._plane
        assert isinstance(plane, RpcPlane)
        return plane

    @property
    def pool(self) -> Pool:
        return self.gateway.pools["s"]

    @property
    def service(self) -> RpcService:
        return next(iter(self.gateway.relays.rpc.values()))

    def target(self, instance: Instance) -> Target:
        return self.service.targets[Endpoint.parse(instance.endpoint)]

    @property
    def held(self) -> int:
        """Bytes of frames that are accounted for."""
        return self.gateway.relays.memory.held

    @property
    def unread(self) -> int:
        """Bytes of answers that clients have not read, beyond their buffers."""
        return self.gateway.relays.memory.unread

    @property
    def dropped(self) -> int:
        """Answers to nobody on the channels that stand."""
        return sum(c.mux.dropped for t in self.service.targets.values() for c in t.channels)

    @property
    def lines(self) -> list[Line]:
        return self.events("connection_closed")

    def events(self, name: str) -> list[Line]:
        return [line for line in self.logs if line["event"] == name]

    async def line(self, count: int = 1) -> Line:
        """The closing line number `count`, as soon as there is one."""
        await until(lambda: len(self.lines) >= count)
        return self.lines[count - 1]

    async def client(
        self, *, framed: bool = True, receive_buffer: int | None = None, listener: str = "l"
    ) -> Client:
        client = await connected(self.gateway.listeners[listener].address, framed, receive_buffer)
        self._clients.append(client)
        return client

    def dial(self, *, listener: str = "l", receive_buffer: int | None = None) -> Peer:
        """A client's end as exact as the socket API."""
        host, _, port = self.gateway.listeners[listener].address.rpartition(":")
        self._peers.append(dial((host, int(port)), receive_buffer))
        return self._peers[-1]

    async def publish(self, *instances: Instance) -> None:
        """What discovery would say next."""
        members = [Member(Endpoint.parse(instance.endpoint)) for instance in instances]
        old = self.pool.snapshot
        version = old.version + 1 if old else 1
        await self.pool.publish(Snapshot.of("s", members, taken_at=0.0, version=version))

    def close_clients(self) -> None:
        for client in self._clients:
            client.transport.abort()
        for peer in self._peers:
            peer.close()


@contextlib.asynccontextmanager
async def bed(
    *instances: Instance,
    listener: str = "",
    service: str = "",
    balance: str = 'policy = "round_robin"',
    health: str = UNJUDGED,
    gateway: str = "",
    more: str = "",
    endpoints: Sequence[str] = (),
) -> AsyncIterator[Bed]:
    """Run instances and a gateway. `listener`, `service`, `gateway` and `more` are further lines of TOML.

    At the end everything is ended and these must hold: a closing line for each connection; no byte, load,
    task and socket left; nothing raised where nobody hears it.
    """
    before, tasks = open_sockets(), asyncio.all_tasks()
    bugs: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: bugs.append(context))
    async with contextlib.AsyncExitStack() as stack:
        logs = stack.enter_context(capture_logs())
        for instance in instances:
            await instance.start()
            stack.callback(instance.kill)
        addresses = [*endpoints, *(instance.endpoint for instance in instances)]
        config = configuration(addresses, listener=listener, service=service, balance=balance, health=health)
        running = Gateway(loads(f"[gateway]\n{gateway}\n{config}\n{more}", Path()))
        made = Bed(running, logs)
        await in_time(running.__aenter__())
        stack.push_async_callback(running.__aexit__, None, None, None)
        stack.callback(made.close_clients)
        yield made
    _check_accounts(made)
    await asyncio.sleep(0.01)
    assert not bugs, bugs
    assert asyncio.all_tasks() == tasks
    assert open_sockets() <= before


def configuration(
    addresses: Sequence[str],
    *,
    listener: str = "",
    service: str = "",
    balance: str = 'policy = "round_robin"',
    health: str = UNJUDGED,
) -> str:
    members = ", ".join(f'"{address}"' for address in addresses)
    return f"""
        [[service]]
        name = "s"
        discovery = {{ type = "static", endpoints = [{members}] }}
        balance = {{ {balance} }}
        health = {{ {health} }}
        {service}
        [[listener]]
        name = "l"
        mode = "rpc"
        route = "s"
        bind = "127.0.0.1:0"
        {listener}
    """


def _check_accounts(made: Bed) -> None:
    listeners = made.gateway.listeners.values()
    assert not any(listener.connections for listener in listeners)
    assert not any(listener.draining or listener.draining._timer for listener in listeners)
    ended = sum(listener.ended.total() for listener in listeners)
    assert sum(listener.accepted for listener in listeners) == len(made.lines) == ended
    assert made.held == 0
    assert made.unread == 0
    assert made.service.recovery.retries.running == 0
    assert all(rule.inflight == 0 for rule in made.plane.routing.rules.all)
    assert made.pool.loads.total == 0
    assert not any(made.pool.loads.inflight(member.endpoint) for member in made.pool.members)
