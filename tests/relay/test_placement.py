"""Connections and the snapshot: what becomes of them when endpoints leave, return, and are added."""

import asyncio
import time

import pytest

from tcpgw.balancing.standing import Share
from tcpgw.endpoints import Endpoint, Member, Snapshot
from tcpgw.relay import draining, stream_plane
from tcpgw.relay.draining import Cause
from tcpgw.relay.reasons import Reason
from tests.support.framed import FIFO, U32BE, u32be
from tests.support.framed import ask as ask_frame
from tests.support.streams import Bed, Peer, bed, in_time, until


async def publish(b: Bed, *weights: int | None) -> None:
    """What discovery would say next: the weight of each instance, None for one that is not there."""
    members = [
        Member(Endpoint.parse(b.endpoint(number)), weight)
        for number, weight in enumerate(weights)
        if weight is not None
    ]
    old = b.pool.snapshot
    assert old
    await b.pool.publish(Snapshot.of("s", members, taken_at=0.0, version=old.version + 1))


def stages(b: Bed, cause: Cause) -> dict[str, int]:
    counts = b.listener.status()["drains"].get(cause.value, {})
    return {stage: count for stage, count in counts.items() if count}


async def pairs_at(b: Bed, count: int, instances: int) -> list[list[tuple[Peer, Peer]]]:
    """Clients from as many addresses, with the other ends of their connections, by instance."""
    found: list[list[tuple[Peer, Peer]]] = [[] for _ in range(instances)]
    for number in range(count):
        client = b.dial(source=f"127.0.0.{number + 1}")
        await until(lambda number=number: b.listener.accepted == number + 1)  # type: ignore[misc]
        connection = list(b.listener.connections.values())[-1]
        await until(lambda connection=connection: connection.session)  # type: ignore[misc]
        assert connection.session is not None
        place = [b.endpoint(one) for one in range(instances)].index(
            str(connection.session.facts()["endpoint"])
        )
        found[place].append((client, await b.accept(place)))
    return found


# ---- endpoints that leave ----


@pytest.mark.parametrize("listener", ["", U32BE, FIFO])
async def test_an_endpoint_that_leaves_takes_its_connections_with_it(listener: str) -> None:
    """Quiet ones get FIN at once; those at other endpoints, and at one of weight 0, go on."""
    async with bed(listener=listener, instances=3) as b:
        places = await pairs_at(b, 12, 3)
        assert all(places)
        await publish(b, None, 0, 1)
        for client, instance in places[0]:
            assert await client.read_to_end() == await instance.read_to_end() == b""
            client.close()
            instance.close()
        await b.closed(len(places[0]))
        assert {line["endpoint"] for line in b.lines} == {b.endpoint(0)}
        assert {line["reason"] for line in b.lines} == {"drained"}
        for client, instance in (*places[1], *places[2]):
            await ask_frame(client, instance)
        assert len(b.lines) == len(places[0])
        count = len(places[0])
        assert stages(b, Cause.ENDPOINT_REMOVED) == {"started": count, "closed": count}


@pytest.mark.parametrize("listener", ["", U32BE])
async def test_what_does_not_end_with_its_endpoint_is_cut(
    listener: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who still waits for an answer then is reset."""
    monkeypatch.setattr(draining, "CUT_AFTER", 0.3)
    async with bed(listener=listener) as b:
        client, instance = await b.pair()
        await client.send(u32be(b"question"))
        assert await instance.read(12) == u32be(b"question")
        await publish(b)
        assert await client.is_reset()
        line = await b.line()
        assert stages(b, Cause.ENDPOINT_REMOVED) == {"started": 1, "reset": 1}
    assert (line["reason"], line["error"]) == ("drained", "not ended within 0.3 s of its drain")


@pytest.mark.parametrize("listener", ["", FIFO])
async def test_an_endpoint_that_comes_back(listener: str) -> None:
    """Connections that still wait for their moment go on as if nothing had been."""
    async with bed(listener=listener) as b:
        client, instance = await b.pair()
        await client.send(u32be(b"q"))
        assert await instance.read(5) == u32be(b"q")
        await publish(b)
        await until(lambda: b.connection in b.listener.draining)
        await publish(b, 1)
        await until(lambda: b.connection not in b.listener.draining)
        await instance.send(u32be(b"a"))
        assert await client.read(5) == u32be(b"a")
        await asyncio.sleep(0.3)
        await ask_frame(client, instance)
        assert not b.lines
        assert stages(b, Cause.ENDPOINT_REMOVED) == {"started": 1, "spared": 1}


async def test_an_endpoint_that_comes_back_does_not_stop_another_end() -> None:
    """A gateway that is to stop ends them nevertheless."""
    async with bed() as b:
        client, instance = await b.pair()
        await client.send(b"q")
        assert await instance.read(1) == b"q"
        await publish(b)
        await until(lambda: b.connection in b.listener.draining)
        drain = asyncio.create_task(b.gateway.drain())
        await asyncio.sleep(0)
        await publish(b, 1)
        await asyncio.sleep(0.05)
        await instance.send(b"a")
        assert await client.read_to_end() == b"a"
        client.close()
        instance.close()
        await in_time(drain)


async def test_a_connection_that_was_being_set_up() -> None:
    """One that connects to what left while it did is found when it stands."""
    async with bed(listener='accept_proxy = ["127.0.0.0/8"]') as b:
        header = b.dial()
        await until(lambda: b.listener.accepted)
        connection = b.connection
        # As if its candidates had been drawn before the change: nothing else can be held up that long here.
        old = b.pool.candidates(0)
        monkey = pytest.MonkeyPatch()
        monkey.setattr(b.pool, "candidates", lambda _: old)
        await publish(b)
        await asyncio.sleep(0.05)
        header.sock.send(b"PROXY UNKNOWN\r\n")
        instance = await b.accept()
        assert await header.read_to_end() == await instance.read_to_end() == b""
        header.close()
        instance.close()
        monkey.undo()
        assert (await b.line())["reason"] == "drained"
        assert connection.id not in b.listener.connections


# ---- rebalancing ----

REBALANCE = "table_size = 1021, bounded_load = 0, rebalance = {rate}"


async def grown(b: Bed, count: int) -> list[tuple[Peer, Peer]]:
    """Connect clients while the second of two instances is not there yet, and then add it."""
    await publish(b, 1, None)
    (pairs,) = await pairs_at(b, count, 1)
    await publish(b, 1, 1)
    return pairs


def homes(b: Bed) -> set[str]:
    """The clients whose home is the second instance."""
    second, found = Endpoint.parse(b.endpoint(1)), set()
    for connection in b.listener.connections.values():
        session = connection.session
        assert isinstance(session, stream_plane.StreamSession)
        assert connection.address
        assert b.pool.tables
        if b.pool.tables.home(session.position) == second:
            found.add("{}:{}".format(*connection.address))
    return found


@pytest.mark.parametrize("listener", ["", U32BE, FIFO])
async def test_idle_connections_return_home(listener: str) -> None:
    """Those whose keys are the added endpoint's, and no others, are closed for their clients to reconnect."""
    async with bed(listener=listener, instances=2, balance=REBALANCE.format(rate=1000)) as b:
        pairs = await grown(b, 30)
        moved = homes(b)
        assert 5 < len(moved) < 25
        for client, instance in pairs:
            if client.address in moved:
                assert await client.read_to_end() == await instance.read_to_end() == b""
                client.close()
                instance.close()
        await b.closed(len(moved))
        await asyncio.sleep(0.3)
        assert {line["client"] for line in b.lines} == moved
        assert {line["reason"] for line in b.lines} == {"rebalanced"}
        assert stages(b, Cause.REBALANCED) == {"started": len(moved), "closed": len(moved)}
        source = next(iter(moved)).partition(":")[0]
        b.dial(source=source)
        await b.accept(1)


async def test_rebalancing_has_a_rate() -> None:
    """Not more than so many in a second are closed, so that those who reconnect are no wave."""
    async with bed(instances=2, balance=REBALANCE.format(rate=10)) as b:
        await grown(b, 40)
        began = time.monotonic()
        moved = len(homes(b))
        assert moved > 8
        seen = 0
        while seen < 8:
            seen = stages(b, Cause.REBALANCED).get("started", 0)
            assert seen <= 10 * (time.monotonic() - began) + 2
            await asyncio.sleep(0.01)
        assert time.monotonic() - began < 3


async def test_busy_connections_are_not_touched() -> None:
    """Who waits for an answer is left alone, and looked at again when it has it."""
    async with bed(instances=2, balance=REBALANCE.format(rate=1000)) as b:
        await publish(b, 1, None)
        (pairs,) = await pairs_at(b, 20, 1)
        for client, instance in pairs:
            await client.send(b"q")
            assert await instance.read(1) == b"q"
        await publish(b, 1, 1)
        moved = homes(b)
        await asyncio.sleep(0.5)
        assert not b.lines
        assert not stages(b, Cause.REBALANCED)
        for client, instance in pairs:
            await instance.send(b"a")
            assert await client.read(1) == b"a"
        for client, instance in pairs:
            if client.address in moved:
                assert await client.read_to_end() == b""
                client.close()
                instance.close()
        await b.closed(len(moved))
        assert {line["reason"] for line in b.lines} == {Reason.REBALANCED}


async def test_without_a_rate_nothing_is_rebalanced() -> None:
    """It is for the operator to want it."""
    async with bed(instances=2, balance=REBALANCE.format(rate=0)) as b:
        await grown(b, 20)
        assert homes(b)
        await asyncio.sleep(0.4)
        assert not b.lines
        assert not b.listener.draining


async def test_a_newer_snapshot_ends_a_pass() -> None:
    """What was added and has left again is nobody's home."""
    async with bed(instances=2, balance=REBALANCE.format(rate=0.1)) as b:
        await grown(b, 20)
        await until(lambda: stages(b, Cause.REBALANCED))
        await publish(b, 1, None)
        await asyncio.sleep(0.3)
        placement = b.gateway.relays.places.placement(b.pool)
        assert not placement._misplaced
        assert not placement._looked_at
        assert stages(b, Cause.REBALANCED)["started"] == 1


# ---- shares ----


def position(b: Bed, client: Peer) -> int:
    for connection in b.listener.connections.values():
        session = connection.session
        assert connection.address
        if "{}:{}".format(*connection.address) == client.address:
            assert isinstance(session, stream_plane.StreamSession)
            return session.position
    raise LookupError(client.address)


OUT = Share(0.0)


def weigh(b: Bed, *shares: Share | None) -> None:
    """What health would say next of each instance."""
    told = {Endpoint.parse(b.endpoint(number)): share for number, share in enumerate(shares) if share}
    b.pool.weigh(told)


@pytest.mark.parametrize("listener", ["", U32BE])
async def test_who_is_out_keeps_its_connections(listener: str) -> None:
    """They go on, and new ones go elsewhere until it is back; nothing moves for it, neither away nor back."""
    async with bed(listener=listener, instances=2, balance=REBALANCE.format(rate=1000)) as b:
        places = await pairs_at(b, 12, 2)
        assert all(places)
        weigh(b, None, OUT)
        source = places[1][0][0].address.partition(":")[0]
        elsewhere = b.dial(source=source), await b.accept(0)
        for _ in range(2):
            await asyncio.sleep(0.3)
            for client, instance in (*places[0], *places[1], elsewhere):
                await ask_frame(client, instance)
            weigh(b)
        assert not b.lines
        b.dial(source=source)
        await b.accept(1)


async def test_who_starts_slowly_is_given_no_connection_of_others() -> None:
    """Not before it has its whole weight: then those whose home it is return, as to any that was added."""
    async with bed(instances=2, balance=REBALANCE.format(rate=1000)) as b:
        weigh(b, None, Share(0.01))
        pairs = await grown(b, 30)
        for share in (Share(0.9), OUT, Share(0.1, by_key=False), Share(0.9)):
            await asyncio.sleep(0.15)
            weigh(b, None, share)
        await asyncio.sleep(0.3)
        assert not b.lines
        assert not b.listener.draining
        weigh(b)
        moved = homes(b)
        assert 5 < len(moved) < 25
        for client, instance in pairs:
            if client.address in moved:
                assert await client.read_to_end() == b""
                client.close()
                instance.close()
        await b.closed(len(moved))
        await asyncio.sleep(0.2)
        assert {line["client"] for line in b.lines} == moved


async def test_a_pass_stops_while_its_endpoint_is_out() -> None:
    """Nobody is closed for who gets nothing; when it is back the rest is."""
    async with bed(instances=2, balance=REBALANCE.format(rate=5)) as b:
        await grown(b, 40)
        await until(lambda: stages(b, Cause.REBALANCED))
        placement = b.gateway.relays.places.placement(b.pool)
        weigh(b, None, OUT)
        await until(lambda: not placement._misplaced)
        count = stages(b, Cause.REBALANCED)["started"]
        await asyncio.sleep(0.5)
        assert stages(b, Cause.REBALANCED)["started"] == count
        weigh(b)
        await until(lambda: stages(b, Cause.REBALANCED)["started"] > count)


async def test_others_shares_do_not_begin_a_pass_anew() -> None:
    """However often they change it comes to its end, and nobody leaves an own endpoint for being out."""
    async with bed(instances=3, balance=REBALANCE.format(rate=1000)) as b:
        await publish(b, 1, None, 1)
        places = await pairs_at(b, 40, 3)
        weigh(b, None, None, OUT)
        await publish(b, 1, 1, 1)
        moved = homes(b)
        belong_elsewhere = {
            client.address
            for client, _ in places[2]
            if client.address not in moved
            and b.pool.home(position(b, client)) == Endpoint.parse(b.endpoint(1))
        }
        assert belong_elsewhere  # while that is out
        for step in range(100):
            weigh(b, None, None, Share(step / 1000))
            await asyncio.sleep(0.02)
        await b.closed(len(moved))
        assert {line["client"] for line in b.lines} == moved
