"""What one source or one subject may use: connections, new ones, bytes."""

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tcpgw.config.load import loads
from tests.support.flood import PROXIED, Crowd, crowd, echoing, header, served, text
from tests.support.framed import u32be
from tests.support.load import Background
from tests.support.processes import PATIENCE, free_port, wait_until
from tests.support.rpc import Instance, connected, echo
from tests.support.streams import Peer, in_time, until
from tests.support.workers import Run, config_of

KIB = 1024
# Bytes a second, and those that a transfer takes 2 s for, since those of one second may come at once.
RATE = 1024 * KIB
SIZE = 3 * RATE
PIECE = 16 * KIB
# Requests whose answers are not held back: what is asked already is answered.
_UNDER_WAY = 8


def limits(per_source: str) -> str:
    return f"limits = {{ per_source = {{ {per_source} }} }}"


# ---- connections ----


async def test_connections_of_a_source_are_exact() -> None:
    """As many as it may have are served, the next is closed at once, and nobody else hears of it."""
    async with echoing() as endpoint, crowd(text(endpoint, listener=limits("connections = 3"))) as c:
        first = [c.dial("127.0.0.2") for _ in range(3)]
        assert all([await served(peer) for peer in first])
        assert not any([await served(c.dial("127.0.0.2")) for _ in range(5)])
        assert all([await served(c.dial("127.0.0.3")) for _ in range(3)])
        first[0].close()
        await until(lambda: c.ended["client_fin"] == 1)
        assert [await served(c.dial("127.0.0.2")) for _ in range(2)] == [True, False]
        assert all([await served(peer) for peer in first[1:]])
        assert c.ended == {"client_fin": 1, "limit_source": 6}
        (line,) = c.events("denied")
        assert (line["reason"], line["listener"]) == ("limit_source", "l")
        assert line["error"] == "127.0.0.2 is at its limit of connections"


@pytest.mark.parametrize(
    ("rule", "reason"),
    [('access = { deny = ["127.0.0.2"] }', "denied_cidr"), (limits("connections = 1"), "limit_source")],
)
async def test_a_flood_is_a_line_in_the_log(rule: str, reason: str) -> None:
    """However many are turned away, each is counted, and others are served meanwhile."""
    async with echoing() as endpoint, crowd(text(endpoint, listener=rule)) as c:
        await served(c.dial("127.0.0.2"))  # where one may be connected, it is this one
        for number in range(1, 31):
            for _ in range(50):
                c.dial("127.0.0.2").close()
            assert await served(c.dial(f"127.0.1.{number}"))
        await until(lambda: c.ended[reason] >= 1500)
        assert len(c.events("denied")) == 1
        assert not c.events("connection_closed")


@pytest.mark.parametrize(
    ("prefix", "same", "other"),
    [
        (64, "2001:db8:1:1:ffff::1", "2001:db8:1:2::1"),
        (48, "2001:db8:1:ffff::1", "2001:db8:2::1"),
        (128, "2001:db8:1:1::1", "2001:db8:1:1::2"),
    ],
)
async def test_a_prefix_is_one_source(prefix: int, same: str, other: str) -> None:
    """Behind PROXY headers too, whoever brings them: all addresses of one network have one limit."""
    listener = f"{PROXIED}\n{limits(f'connections = 2, ipv6_prefix = {prefix}')}"
    async with echoing() as endpoint, crowd(text(endpoint, listener=listener)) as c:
        assert await served(await c.proxied("2001:db8:1:1::1"))
        assert await served(await c.proxied(same))
        assert not await served(await c.proxied(same))
        assert all([await served(await c.proxied(other)) for _ in range(2)])
        assert all([await served(await c.proxied("192.0.2.1")) for _ in range(2)])
        assert not await served(await c.proxied("192.0.2.1"))
        assert await served(await c.proxied("192.0.2.2"))


async def test_new_connections_of_a_source() -> None:
    """After a burst they come at their rate, and connections that end make no room for more."""
    listener = limits("new_per_second = 10, burst = 5")
    async with echoing() as endpoint, crowd(text(endpoint, listener=listener)) as c:
        began = time.monotonic()
        admitted = 0
        while time.monotonic() - began < 1.5:
            peer = c.dial("127.0.0.2")
            admitted += await served(peer)
            peer.close()
            await asyncio.sleep(0.005)
        seconds = time.monotonic() - began
        assert 5 + 10 * seconds - 2 <= admitted <= 5 + 10 * seconds + 1
        assert all([await served(c.dial("127.0.0.3")) for _ in range(5)])


FLOODED = f"""
    {PROXIED}
    max_connections = 4000
    limits = {{ handshakes = 32, per_source = {{ connections = 2, new_per_second = 2, burst = 3 }} }}
"""


async def test_a_flood_of_sources() -> None:
    """Thousands of addresses are remembered while it matters; one beyond its limit hurts only itself.

    Also where those that are turned away stay, and take all places that there are for who comes.
    """
    async with echoing() as endpoint, crowd(text(endpoint, listener=FLOODED)) as c:
        flood = asyncio.create_task(_try_again_and_again(c, "192.0.2.1"))
        waited = []
        for start in range(0, 2000, 20):
            began = time.monotonic()
            peers = [await c.proxied(f"10.0.{n // 250}.{n % 250}") for n in range(start, start + 20)]
            assert all(await asyncio.gather(*map(served, peers)))
            waited.append(time.monotonic() - began)
            for peer in peers:
                peer.close()
        assert not flood.done()
        flood.cancel()
        await asyncio.gather(flood, return_exceptions=True)
        assert sorted(waited)[len(waited) // 2] < 0.2, waited
        assert sum(waited) < 15.0
        limiter = c.listener._admission.guard.sources
        assert limiter is not None
        assert limiter.remembered <= 2001
        await until(lambda: c.ended["client_fin"] >= 2000)
        await asyncio.sleep(0.6)  # in which each has its one token back
        before = limiter.remembered
        for _ in range(2):
            assert await served(await c.proxied("192.0.2.2"))
        assert limiter.remembered < before  # two are forgotten with each that comes or goes
        assert c.ended["limit_source"] > 100
        assert len(c.events("denied")) <= 2


async def _try_again_and_again(c: Crowd, source: str) -> None:
    """Hold what it gets, and go on."""
    while True:
        peer = c.dial()
        await peer.send(header(source))
        await asyncio.sleep(0.001)


# ---- bytes ----


LISTENERS = """
    [[service]]
    name = "r"
    discovery = {{ type = "static", endpoints = ["{rpc}"] }}
    balance = {{ table_size = 1021 }}
    health = {{ active = "off", passive = "off" }}
    {listeners}
"""
KINDS = {
    "stream": 'route = "s"',
    "framed": 'route = "s"\nmode = "rpc"\ncodec = "u32be"',
    "rpc": 'route = "r"\nmode = "rpc"',
}


def metered(rpc: str) -> str:
    """A listener of each plane for each way, with a limit for that way only."""
    listeners = [
        f"""
        [[listener]]
        name = "{plane}-{way}"
        bind = "127.0.0.1:0"
        limits = {{ per_source = {{ bytes_{way} = {RATE} }} }}
        {lines}
        """
        for plane, lines in KINDS.items()
        for way in ("in", "out")
    ]
    return LISTENERS.format(rpc=rpc, listeners="\n".join(listeners))


async def transfer(c: Crowd, listener: str, size: int, source: str) -> float:
    """Send so much, have it back, and return how many seconds that took."""
    began = time.monotonic()
    if listener.startswith("rpc"):
        await _ask(c, listener, size, source)
    else:
        peer = c.dial(source, listener)
        await _send_and_read(peer, u32be(bytes(PIECE - 4)) * (size // PIECE))
        peer.close()
    return time.monotonic() - began


async def _send_and_read(peer: Peer, data: bytes) -> None:
    loop = asyncio.get_running_loop()
    sending = asyncio.create_task(loop.sock_sendall(peer.sock, data))
    assert await peer.read(len(data)) == data
    await in_time(sending)


async def _ask(c: Crowd, listener: str, size: int, source: str) -> None:
    host, port = c.address(listener)
    client = await connected(f"{host}:{port}", source=source)
    for number in range(size // PIECE):
        client.ask(number, bytes(PIECE - 20))
        await client.got(number - _UNDER_WAY)
    answers = await client.got(size // PIECE)
    assert all(error is None for _, _, error, _ in answers)
    client.transport.abort()


@contextlib.asynccontextmanager
async def instance() -> AsyncIterator[str]:
    made = Instance(echo)
    await made.start()
    try:
        yield made.endpoint
    finally:
        made.kill()
        await asyncio.sleep(0.01)


async def _pings(c: Crowd, listener: str) -> list[float]:
    """What another source waits for, while the first is in debt."""
    took = []
    for _ in range(10):
        took.append(await transfer(c, listener, PIECE, "127.0.0.3"))
        await asyncio.sleep(0.1)
    return took


async def test_bytes_of_a_source() -> None:
    """On every plane and each way they come at their rate, all of them; other sources are as fast as ever."""
    async with instance() as rpc, echoing() as endpoint, crowd(text(endpoint, more=metered(rpc))) as c:
        names = [name for name in c.gateway.listeners if name != "l"]
        assert len(names) == 6
        took, pings = await asyncio.gather(
            asyncio.gather(*(transfer(c, name, SIZE, "127.0.0.2") for name in names)),
            asyncio.gather(*(_pings(c, name) for name in names)),
        )
        for name, seconds in zip(names, took, strict=True):
            assert 1.6 < seconds < 2.4, (name, seconds)
        for name, waits in zip(names, pings, strict=True):
            assert sorted(waits)[len(waits) // 2] < 0.1, (name, waits)
        reasons = {reason.value for name in names for reason in c.gateway.listeners[name].ended}
        assert reasons <= {"client_fin", "client_reset"}


async def test_connections_of_a_source_share_its_bytes() -> None:
    """Four of them are not faster than one."""
    listener = limits(f"bytes_out = {RATE}")
    async with echoing() as endpoint, crowd(text(endpoint, listener=listener)) as c:
        took = await asyncio.gather(*(transfer(c, "l", SIZE // 4, "127.0.0.2") for _ in range(4)))
        assert 1.6 < max(took) < 2.6


async def test_who_waits_for_its_bytes_is_no_slow_reader() -> None:
    """A client that was sent the bytes of many seconds at once keeps its connection, and is served then."""
    more = f"""
        [[listener]]
        name = "slow"
        bind = "127.0.0.1:0"
        route = "r"
        mode = "rpc"
        frame_timeout = "300ms"
        {limits(f"bytes_out = {256 * KIB}")}
    """
    async with (
        instance() as rpc,
        echoing() as endpoint,
        crowd(text(endpoint, more=LISTENERS.format(rpc=rpc, listeners=more))) as c,
    ):
        host, port = c.address("slow")
        client = await connected(f"{host}:{port}")
        assert await client.call(bytes(640 * KIB)) == [bytes(640 * KIB)]
        began = time.monotonic()
        assert await client.is_served()
        assert await client.call("again") == ["again"]
        assert 1.0 < time.monotonic() - began < 2.5
        client.transport.abort()


# ---- another configuration ----


async def test_another_quota_holds_for_who_is_connected() -> None:
    """Connections that stand count against the new limit, and their bytes go at the new rate."""

    def configuration(connections: int, rate: int) -> str:
        return text(endpoint, listener=limits(f"connections = {connections}, bytes_in = {rate}"))

    async with echoing() as endpoint, crowd(configuration(1, 64 * KIB)) as c:
        peer = c.dial("127.0.0.2")
        assert await served(peer)
        assert not await served(c.dial("127.0.0.2"))
        await c.gateway.reload(loads(configuration(2, 8 * RATE), Path()))
        assert [await served(c.dial("127.0.0.2")) for _ in range(2)] == [True, False]
        began = time.monotonic()
        await _send_and_read(peer, bytes(8 * RATE))
        assert time.monotonic() - began < 3.0  # at the old rate it would take a minute
        await c.gateway.reload(loads(configuration(1, 8 * RATE), Path()))
        assert await served(peer)
        assert not await served(c.dial("127.0.0.2"))


# ---- before the route ----


async def test_conversations_at_a_time_are_exact() -> None:
    """Who says nothing keeps others waiting for no longer than its time-out, and no more talk than may."""
    listener = f'{PROXIED}\nproxy_timeout = "300ms"\nlimits = {{ handshakes = 3 }}'
    async with echoing() as endpoint, crowd(text(endpoint, listener=listener)) as c:
        talking: list[int] = []

        async def watch() -> None:
            while True:
                talking.append(c.listener._admission.talking)
                await asyncio.sleep(0.005)

        watching = asyncio.create_task(watch())
        for _ in range(8):
            c.dial()
        began = time.monotonic()
        assert await served(await c.proxied("192.0.2.1"))
        assert 0.5 < time.monotonic() - began < 1.5
        assert c.ended == {"header_timeout": 6}
        await until(lambda: c.ended["header_timeout"] == 8)
        began = time.monotonic()
        assert await served(await c.proxied("192.0.2.1"))
        assert time.monotonic() - began < 0.3
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        assert max(talking) == 3
        assert c.listener.paused > 0


# ---- several processes ----


def _open(run: Run, held: contextlib.ExitStack) -> socket.socket | None:
    """A client that is served, for as long as the stack stands; None: it is turned away."""
    client = socket.create_connection(run.address, PATIENCE)
    with contextlib.suppress(OSError):
        client.sendall(b"x")
        if client.recv(1) == b"x":
            held.enter_context(client)
            return client
    client.close()
    return None


def _lives(client: socket.socket) -> bool:
    try:
        client.sendall(b"x")
        return client.recv(1) == b"x"
    except OSError:
        return False


def test_workers_count_together(tmp_path: Path) -> None:
    """A source has as many connections as it may at all of them; those of one that dies are free again."""
    with Background() as background, contextlib.ExitStack() as held:
        more = "limits = { per_source = { connections = 12 } }"
        run = Run(tmp_path, config_of(background.instances, free_port(), more=more))
        with run.started() as gateway:
            clients = []
            for _ in range(60):
                clients.append(_open(run, held))
                time.sleep(0.01)
            found = [client for client in clients if client is not None]
            assert len(found) == 12
            victim = max(run.status()["workers"], key=lambda worker: int(worker["connections"]))
            os.kill(victim["pid"], signal.SIGKILL)
            wait_until(lambda: len(gateway.events("worker_ready")) == 3)
            left = sum(map(_lives, found))
            assert left == 12 - victim["connections"]
            again = 0
            for _ in range(60):
                again += _open(run, held) is not None
                time.sleep(0.01)
            assert again == victim["connections"]
            held.close()
            wait_until(lambda: run.status()["listeners"]["l"]["active"] == 0)
            assert _open(run, held) is not None
