"""How many connections an endpoint may have, and those that wait for one, on the stream plane."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from tcpgw.balancing.standing import Share
from tcpgw.endpoints import Endpoint
from tests.support.flood import Crowd, crowd, echoing, served, text
from tests.support.streams import Peer, in_time, until

# By source, and nowhere else: a key has one endpoint.
STICKY = 'balance = { key = "source_ip", bounded_load = 0, table_size = 1021 }'


def limited(connections: int, queue: int, timeout: str = "20s") -> str:
    return f'connect = {{ max_connections = {connections}, queue = {queue}, queue_timeout = "{timeout}" }}'


def circuit(c: Crowd) -> dict[str, int]:
    return c.gateway.relays.places.circuit(c.gateway.pools["s"]).status()


async def queued(c: Crowd, count: int, source: str = "") -> list[Peer]:
    """Clients that wait, in the order of their coming."""
    peers = []
    for _ in range(count):
        before = circuit(c)["waiting"]
        peers.append(c.dial(source))
        await until(lambda before=before: circuit(c)["waiting"] > before)  # type: ignore[misc]
    return peers


def settings(endpoints: str, service: str, listener: str = "") -> str:
    """As `text`, with a service that has its own `balance`."""
    return text(endpoints, service=service, listener=listener).replace(
        "balance = { table_size = 1021 }", STICKY
    )


@contextlib.asynccontextmanager
async def two(service: str) -> AsyncIterator[tuple[Crowd, dict[str, Endpoint], dict[Endpoint, str]]]:
    """Two endpoints for keys that stay: with the endpoint of some sources, and a source for each endpoint."""
    async with echoing() as one, echoing() as other, crowd(settings(f"{one}, {other}", service)) as c:
        homes: dict[str, Endpoint] = {}
        for number in range(2, 30):
            source = f"127.0.0.{number}"
            peer = c.dial(source)
            assert await served(peer)
            loads = c.gateway.pools["s"].loads
            (homes[source],) = [
                m.endpoint for m in c.gateway.pools["s"].members if loads.inflight(m.endpoint)
            ]
            peer.close()
            await until(lambda: not c.gateway.pools["s"].loads.total)
        sources = {endpoint: source for source, endpoint in homes.items()}
        assert len(sources) == 2
        yield c, homes, sources


# ---- exactness, order ----


async def test_a_crowd_is_served_a_few_at_a_time() -> None:
    """No endpoint ever has more connections than it may, and everybody who may wait gets one."""
    most: list[int] = []
    async with (
        echoing(most=most.append) as one,
        echoing(most=most.append) as other,
        crowd(text(f"{one}, {other}", service=limited(3, 100))) as c,
    ):

        async def visit() -> bool:
            peer = c.dial()
            found = await served(peer)
            await asyncio.sleep(0.005)
            peer.close()
            return found

        assert all(await asyncio.gather(*(visit() for _ in range(80))))
        assert max(most) == 3
        assert circuit(c)["waited"] >= 80 - 6
        await until(lambda: c.ended == {"client_fin": 80})
        assert circuit(c)["waiting"] == 0


async def test_who_came_first_is_served_first() -> None:
    """A place that comes free is the longest waiting one's; whoever comes now stands behind all of them."""
    async with echoing() as endpoint, crowd(text(endpoint, service=limited(1, 10))) as c:
        holder = c.dial()
        assert await served(holder)
        for peer in await queued(c, 5):
            late = await queued(c, 1)
            holder.close()
            assert await served(peer)
            holder = peer
            assert circuit(c)["waiting"] >= len(late)


async def test_no_more_wait_than_may_and_not_longer() -> None:
    """Those beyond are closed at once, the others when their time is up; then there is room to wait again."""
    async with echoing() as endpoint, crowd(text(endpoint, service=limited(1, 3, "400ms"))) as c:
        holder = c.dial()
        assert await served(holder)
        began = time.monotonic()
        waiting = await queued(c, 3)
        assert not await served(c.dial())
        assert time.monotonic() - began < 0.3
        assert not any(await asyncio.gather(*map(served, waiting)))
        assert 0.35 < time.monotonic() - began < 0.9
        told = circuit(c)
        assert (told["waited"], told["refused"], told["expired"]) == (3, 1, 3)
        errors = [line["error"] for line in c.events("connection_closed")]
        assert len(errors) == 4
        assert sum("3 clients wait already (queue)" in error for error in errors) == 1
        assert sum("within 0.4 s (queue_timeout)" in error for error in errors) == 3
        (peer,) = await queued(c, 1)
        holder.close()
        assert await served(peer)
        assert c.ended == {"overload": 4, "client_fin": 1}


async def test_who_has_gone_keeps_nobody_waiting() -> None:
    """Clients that left the queue are passed over as soon as it is their turn."""
    async with echoing() as endpoint, crowd(text(endpoint, service=limited(1, 10))) as c:
        holder = c.dial()
        assert await served(holder)
        *gone, last = await queued(c, 4)
        gone[0].close()
        gone[1].reset()
        gone[2].fin()
        began = time.monotonic()
        holder.close()
        assert await served(last)
        assert time.monotonic() - began < 1.0


# ---- whose place it is ----


async def test_a_key_waits_for_its_own_endpoint() -> None:
    """Where load moves no key, an endpoint with room is of no use to another's clients."""
    async with two(limited(1, 10)) as (c, _, sources):
        (a, source_a), (b, source_b) = sources.items()
        holder_a, holder_b = c.dial(source_a), c.dial(source_b)
        assert await served(holder_a)
        assert await served(holder_b)
        first_a = (await queued(c, 1, source_a))[0]
        second_a = (await queued(c, 1, source_a))[0]
        first_b = (await queued(c, 1, source_b))[0]
        holder_b.close()
        assert await served(first_b)
        first_b.close()
        loads = c.gateway.pools["s"].loads
        await until(lambda: not loads.inflight(b))
        assert (circuit(c)["waiting"], loads.inflight(a)) == (2, 1)
        holder_a.close()
        assert await served(first_a)
        first_a.close()
        assert await served(second_a)
        assert not loads.inflight(b)


async def test_who_waits_for_an_endpoint_that_falls_ill() -> None:
    """They go where their keys go now, in turn; when it is well again, its keys wait for it again."""
    async with two(limited(1, 10)) as (c, _, sources):
        (a, source_a), (b, source_b) = sources.items()
        holder_a, holder_b = c.dial(source_a), c.dial(source_b)
        assert await served(holder_a)
        assert await served(holder_b)
        first, second = await queued(c, 2, source_a)
        c.gateway.relays.pools.weigh("s", {a: Share(0.0, by_key=False)}, [])
        holder_a.close()  # nothing of it is given to anybody
        holder_b.close()
        assert await served(first)
        loads = c.gateway.pools["s"].loads
        await until(lambda: (loads.inflight(a), loads.inflight(b)) == (0, 1))
        assert circuit(c)["waiting"] == 1
        c.gateway.relays.pools.weigh("s", {}, [])
        assert await served(second)
        assert (loads.inflight(a), loads.inflight(b)) == (1, 1)


# ---- ends ----


async def test_a_drain_with_clients_that_wait() -> None:
    """Those that get a place in time are served, the others end with the drain; nothing is left."""
    async with echoing() as endpoint, crowd(text(endpoint, service=limited(1, 10))) as c:
        holder = c.dial()
        assert await served(holder)
        first, second, third = await queued(c, 3)
        draining = asyncio.create_task(c.gateway.relays.drain(hard=1.0))
        await asyncio.sleep(0)
        holder.close()
        assert await served(first)
        first.close()
        assert await served(second)
        began = time.monotonic()
        assert not await served(third)
        await in_time(draining)
        assert time.monotonic() - began < 1.5
        assert circuit(c)["waiting"] == 0
        assert not c.listener.connections


async def test_a_listener_that_is_closed_with_clients_that_wait() -> None:
    """All end at once; what `crowd` checks at its end is that nothing is counted or open any more."""
    async with echoing() as endpoint, crowd(text(endpoint, service=limited(2, 50))) as c:
        for _ in range(2):
            assert await served(c.dial())
        await queued(c, 20)
        began = time.monotonic()
        await in_time(c.listener.close())
        assert time.monotonic() - began < 0.5
        assert c.ended["shutdown"] == 22
        assert circuit(c)["waiting"] == 0
