"""Many clients from many addresses, of whom a gateway turns some away."""

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

from structlog.testing import capture_logs

from tcpgw.app.gateway import Gateway
from tcpgw.config.load import loads
from tcpgw.relay.listener import Listener
from tests.support.streams import UNJUDGED, Line, Peer, dial, in_time, open_sockets

# Of a listener whose clients say themselves who they are.
PROXIED = 'accept_proxy = ["127.0.0.0/8"]'


class Crowd:
    """A running gateway, what it logs, and its clients. All that was dialled is closed at the end."""

    def __init__(self, gateway: Gateway, logs: list[Line]) -> None:
        self.gateway = gateway
        self.logs = logs
        self._peers: list[Peer] = []

    @property
    def listener(self) -> Listener:
        return self.gateway.listeners["l"]

    @property
    def ended(self) -> Counter[str]:
        return Counter({reason.value: count for reason, count in self.listener.ended.items()})

    def events(self, name: str) -> list[Line]:
        return [line for line in self.logs if line["event"] == name]

    def address(self, listener: str = "l") -> tuple[str, int]:
        host, _, port = self.gateway.listeners[listener].address.rpartition(":")
        return host.strip("[]"), int(port)

    def dial(self, source: str = "", listener: str = "l") -> Peer:
        """Connect from an address of this host."""
        self._peers.append(dial(self.address(listener), source=source))
        return self._peers[-1]

    async def proxied(self, source: str) -> Peer:
        """Connect as a load balancer does for a client at any address."""
        peer = self.dial()
        await peer.send(header(source))
        return peer

    def close_peers(self) -> None:
        for peer in self._peers:
            peer.close()
        self._peers.clear()


def header(source: str) -> bytes:
    family, destination = ("TCP6", "::1") if ":" in source else ("TCP4", "127.0.0.1")
    return f"PROXY {family} {source} {destination} 1000 2000\r\n".encode()


async def served(peer: Peer) -> bool:
    """Whether what it says comes back; else its connection ends without a byte."""
    try:
        await peer.send(b"ping")
        data = await peer.read_some()
    except (ConnectionResetError, BrokenPipeError):
        return False
    assert data in {b"ping", b""}
    return data == b"ping"


def text(
    endpoint: str,
    *,
    listener: str = "",
    service: str = "",
    gateway: str = "",
    more: str = "",
    health: str = UNJUDGED,
) -> str:
    """One service and its listener `l`, with further lines of TOML."""
    return f"""
        [gateway]
        {gateway}
        [[service]]
        name = "s"
        discovery = {{ type = "static", endpoints = [{endpoint}] }}
        balance = {{ table_size = 1021 }}
        health = {{ {health} }}
        {service}
        [[listener]]
        name = "l"
        route = "s"
        bind = "127.0.0.1:0"
        {listener}
        {more}
    """


@contextlib.asynccontextmanager
async def crowd(configuration: str) -> AsyncIterator[Crowd]:
    """Run a gateway. At the end nothing is left of its clients, and nothing raised where nobody hears it."""
    before, tasks = open_sockets(), asyncio.all_tasks()
    bugs: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: bugs.append(context))
    with capture_logs() as logs:
        gateway = Gateway(loads(configuration, Path()))
        made = Crowd(gateway, logs)
        async with gateway:
            try:
                yield made
            finally:
                listeners = list(gateway.listeners.values())
        made.close_peers()
    for listener in listeners:
        assert not listener.connections
        assert listener.accepted == listener.ended.total()
        guard = listener._admission.guard
        for limiter in (guard.sources, guard.subjects):
            assert limiter is None or not limiter._busy
    assert not any(pool.loads.total for pool in gateway.pools.values())
    await asyncio.sleep(0)
    assert not bugs
    assert asyncio.all_tasks() == tasks
    assert open_sockets() <= before


class _Echo(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, made: list["_Echo"]) -> None:
        made.append(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


@contextlib.asynccontextmanager
async def echoing(*, most: Callable[[int], object] = lambda _: None) -> AsyncIterator[str]:
    """An instance that returns what it gets; yields its address, quoted. `most` hears how many it serves."""
    made: list[_Echo] = []
    open_: set[_Echo] = set()

    class Counted(_Echo):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            open_.add(self)
            most(len(open_))

        def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the interface's
            open_.discard(self)

    sock = socket.create_server(("127.0.0.1", 0), backlog=4096)
    server = await asyncio.get_running_loop().create_server(lambda: Counted(made), sock=sock, backlog=4096)
    host, port = sock.getsockname()
    try:
        yield f'"{host}:{port}"'
    finally:
        server.close()
        for one in made:
            one.transport.abort()
        await in_time(server.wait_closed())
        await asyncio.sleep(0)
