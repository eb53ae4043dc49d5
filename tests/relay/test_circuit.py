"""What becomes of clients where every endpoint has as many connections as it may."""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import pytest

from tcpgw.balancing.loads import Loads
from tcpgw.balancing.policy import Keyless
from tcpgw.balancing.standing import Share
from tcpgw.endpoints import Endpoint, Member, Snapshot
from tcpgw.errors import OverloadError
from tcpgw.pool import Pool
from tcpgw.relay.circuit import Circuit, Search
from tests.support.streams import in_time, listening, refusing
from tests.support.upstreams import service, text

A, B, C = (Endpoint(f"10.0.0.{number}", 80) for number in (1, 2, 3))


class Keyed(Keyless):
    """Endpoints in an order that the key begins: position 1 at the second. `closed` ones are passed over."""

    def __init__(self, endpoints: Sequence[Endpoint], *, spills: bool) -> None:
        self.endpoints = endpoints
        self.spills = spills
        self.closed: set[tuple[int, Endpoint]] = set()

    def candidates(self, position: int) -> Iterator[Endpoint]:
        start = position % len(self.endpoints)
        for endpoint in (*self.endpoints[start:], *self.endpoints[:start]):
            if (position, endpoint) not in self.closed:
                yield endpoint

    def under(self, shares: Mapping[Endpoint, Share]) -> Self:
        assert not shares
        return self

    def explain(self, position: int) -> str:
        return f"from {position} on"


class Bed:
    """A circuit of endpoints that nobody connects to, and the clients that wait there."""

    def __init__(self, *, spills: bool = True, **limits: Any) -> None:
        self.policy = Keyed([], spills=spills)
        self.version = 0
        self.pool = Pool("s", self._make, Loads(time.monotonic))
        self.circuit = Circuit(self.pool, **({"max_connections": 1, "queue_timeout": 60.0} | limits))
        self.tasks: list[asyncio.Task[Endpoint]] = []

    def _make(self, weights: Any, _: Loads) -> Keyed:
        self.policy = Keyed(list(weights), spills=self.policy.spills)
        return self.policy

    async def publish(self, *endpoints: Endpoint) -> None:
        self.version += 1
        members = [Member(endpoint) for endpoint in endpoints]
        await self.pool.publish(Snapshot.of("s", members, taken_at=0.0, version=self.version))

    def take(self, position: int = 0, tried: Sequence[Endpoint] = ()) -> Endpoint | None:
        search = Search(self.pool, position)
        search.tried += tried
        return self.circuit.take(search)

    async def wait(self, position: int = 0, tried: Sequence[Endpoint] = ()) -> asyncio.Task[Endpoint]:
        """Begin to wait."""
        search = Search(self.pool, position)
        search.tried += tried
        assert self.circuit.take(search) is None
        task = asyncio.create_task(self.circuit.wait(search))
        self.tasks.append(task)
        await asyncio.sleep(0)
        return task

    async def settled(self) -> list[Endpoint | None]:
        """What each of those that began to wait has, in their order."""
        for _ in range(3):
            await asyncio.sleep(0)
        done = [task for task in self.tasks if task.done() and not task.cancelled()]
        return [task.result() if task in done and not task.exception() else None for task in self.tasks]

    async def close(self) -> None:
        """End all; nothing may be counted then."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        assert self.circuit.waiting == 0
        assert not self.circuit._lines
        for endpoint, count in list(self.circuit._open.items()):
            assert self.pool.loads.inflight(endpoint) == count
            for _ in range(count):
                self.circuit.release(endpoint)
        assert self.pool.loads.total == 0


async def full(*endpoints: Endpoint, **limits: Any) -> Bed:
    """Each endpoint has as many connections as it may."""
    b = Bed(**limits)
    await b.publish(*endpoints)
    for place in range(len(endpoints)):
        assert b.take(place) == endpoints[place]
    return b


# ---- places ----


async def test_an_endpoint_that_is_full_is_passed_over() -> None:
    """The order of candidates goes on; without a limit nothing is ever full."""
    b = Bed(max_connections=2)
    await b.publish(A, B)
    assert [b.take() for _ in range(5)] == [A, A, B, B, None]
    b.circuit.release(A)
    assert b.take(1) == A
    unlimited = Bed(max_connections=None)
    await unlimited.publish(A, B)
    assert [unlimited.take() for _ in range(5)] == [A] * 5


async def test_requests_take_no_place() -> None:
    """What rpc listeners have under way at the same endpoints is no connection."""
    b = Bed(max_connections=1)
    await b.publish(A)
    b.pool.loads.begin(A, 10)
    assert b.take() == A


async def test_where_load_moves_no_key() -> None:
    """A client waits for its own endpoint however empty others are, and passes it over once tried."""
    b = await full(A, spills=False)
    await b.publish(A, B)
    assert b.take(0) is None
    assert b.take(0, [A]) == B
    task = await b.wait(0)
    b.circuit.release(B)
    assert await b.settled() == [None]
    b.circuit.release(A)
    assert await in_time(task) == A
    await b.close()


# ---- who waits ----


async def test_the_longest_waiting_comes_first() -> None:
    """One for each place, in the order of their coming; nobody who comes later sees that there is room."""
    b = await full(A, B)
    for _ in range(3):
        await b.wait()
    b.circuit.release(B)
    assert b.take() is None
    assert await b.settled() == [B, None, None]
    b.circuit.release(A)
    b.circuit.release(B)
    assert await b.settled() == [B, A, B]
    assert b.circuit.status()["waited"] == 3
    await b.close()


async def test_each_waits_for_its_own_endpoint() -> None:
    """Where load moves no key, a place goes to the longest waiting of those whose key belongs there."""
    b = await full(A, B, spills=False)
    for position in (0, 0, 1, 1):
        await b.wait(position)
    b.circuit.release(B)
    assert await b.settled() == [None, None, B, None]
    b.circuit.release(A)
    assert await b.settled() == [A, None, B, None]
    await b.close()


async def test_what_the_first_has_no_use_for_goes_to_the_next() -> None:
    """An endpoint that failed one client before, or takes no clients of its key, serves another."""
    b = await full(A, B)
    b.policy.closed.add((2, A))
    await b.wait(0, [A])
    await b.wait(2)
    await b.wait(0)
    b.circuit.release(A)
    assert await b.settled() == [None, None, A]
    b.circuit.release(B)
    assert await b.settled() == [B, None, A]
    await b.close()


@pytest.mark.parametrize("late", [False, True])
async def test_who_is_cancelled_passes_its_turn_on(late: bool) -> None:
    """Also when it had been given the place and did not know yet."""
    b = await full(A)
    first, second = await b.wait(), await b.wait()
    if late:
        b.circuit.release(A)
        first.cancel()
    else:
        first.cancel()
        b.circuit.release(A)
    assert await in_time(second) == A
    assert first.cancelled()
    await b.close()


async def test_a_place_that_came_free_meanwhile() -> None:
    """Whoever begins to wait after others have ended has no need to."""
    b = await full(A)
    search = Search(b.pool, 0)
    assert b.circuit.take(search) is None
    b.circuit.release(A)
    assert await in_time(b.circuit.wait(search)) == A
    assert b.circuit.status()["waited"] == 0


async def test_no_more_wait_than_may() -> None:
    """The next is told which limits these are."""
    b = await full(A, queue=2)
    await b.wait()
    await b.wait()
    with pytest.raises(OverloadError) as caught:
        await (await b.wait())
    assert str(caught.value) == (
        "service s: no endpoint for this client has fewer than 1 connections (max_connections), "
        "and 2 clients wait already (queue)"
    )
    assert b.circuit.status()["refused"] == 1
    await b.close()


async def test_nobody_waits_too_long() -> None:
    """It is told for what it waited, and how long; those that wait longer are not disturbed."""
    b = await full(A, queue_timeout=0.01)
    short = await b.wait()
    b.circuit.change(retry_budget=0.2, max_connections=1, queue=10, queue_timeout=60.0)
    long = await b.wait()
    with pytest.raises(OverloadError) as caught:
        await in_time(short)
    assert str(caught.value) == (
        "service s: no endpoint for this client had fewer than 1 connections (max_connections) "
        "within 0.01 s (queue_timeout)"
    )
    assert b.circuit.status()["expired"] == 1
    b.circuit.release(A)
    assert await in_time(long) == A
    await b.close()


async def test_shedding_turns_the_oldest_away() -> None:
    """As many as asked for, and no more than wait; the others keep their turns."""
    b = await full(A)
    for _ in range(4):
        await b.wait()
    b.tasks[0].cancel()
    assert b.circuit.shed(2) == 2
    await b.settled()
    for task in b.tasks[1:3]:
        with pytest.raises(OverloadError, match=r"^the gateway is overloaded$"):
            await task
    b.circuit.release(A)
    assert await b.settled() == [None, None, None, A]
    assert b.circuit.shed(5) == 0
    assert b.circuit.status()["turned_away"] == 2
    await b.close()


async def test_shed_and_cancelled_at_once() -> None:
    """A client that goes in the turn in which it is turned away leaves nothing, and no place is lost."""
    b = await full(A)
    first, second = await b.wait(), await b.wait()
    assert b.circuit.shed(1) == 1
    first.cancel()
    b.circuit.release(A)
    assert await in_time(second) == A
    assert first.cancelled()
    await b.close()


# ---- changes ----


@pytest.mark.parametrize("spills", [False, True])
async def test_endpoints_that_come(spills: bool) -> None:
    """They serve who waits, in turn; whose key belongs elsewhere now waits there."""
    b = await full(A, spills=spills)
    for _ in range(12):
        await b.wait()
    b.policy.closed.clear()
    await b.publish(B, C)
    expected = [B, C] if spills else [B, None]
    assert (await b.settled())[:3] == [*expected, None]
    b.circuit.release(B)
    assert (await b.settled())[:4] == ([B, C, B, None] if spills else [B, B, None, None])
    await b.close()


async def test_other_limits() -> None:
    """More room is handed out at once; with less, those that are connected stay."""
    b = await full(A)
    for _ in range(3):
        await b.wait()
    b.circuit.change(retry_budget=0.5, max_connections=3, queue=0, queue_timeout=1.0)
    assert await b.settled() == [A, A, None]
    b.circuit.change(retry_budget=0.5, max_connections=1, queue=0, queue_timeout=1.0)
    for _ in range(2):
        b.circuit.release(A)
    assert await b.settled() == [A, A, None]
    b.circuit.release(A)
    assert await b.settled() == [A, A, A]
    assert b.take() is None


async def test_retries_keep_their_budget() -> None:
    """It is another one only where its share is, and what was refused by the old one is not forgotten."""
    b = await full(A)
    before = b.circuit.retries
    limits: dict[str, Any] = {"max_connections": 1, "queue": 0, "queue_timeout": 1.0}
    b.circuit.change(retry_budget=0.2, **limits)
    assert b.circuit.retries is before
    assert [before.begin(0) for _ in range(4)] == [True, True, True, False]
    b.circuit.change(retry_budget=1.0, **limits)
    assert b.circuit.retries is not before
    assert b.circuit.retries.begin(0)
    assert b.circuit.status()["retries_refused"] == 1


# ---- with sockets ----


async def test_clients_that_wait_are_connected_in_turn() -> None:
    """Each as soon as one before it has gone."""
    with listening() as sock:
        async with service([text(sock)], max_connections=2, queue_timeout=10.0) as s:
            first, second = await s.connect(), await s.connect()
            third, fourth = [asyncio.create_task(s.connect()) for _ in range(2)]
            await asyncio.sleep(0.02)
            assert s.upstream.circuit.waiting == 2
            s.upstream.release(first.endpoint)
            assert (await in_time(third)).tries == 1
            assert not fourth.done()
            s.upstream.release(second.endpoint)
            for task in (third, fourth):
                s.upstream.release((await in_time(task)).endpoint)


async def test_who_failed_elsewhere_waits_for_the_rest() -> None:
    """An endpoint that refuses is a try like any other, and is not waited for again."""
    with listening() as sock, refusing() as dead:
        async with service([dead, text(sock)], max_connections=1, queue_timeout=10.0) as s:
            first = await s.connect()
            assert first.tries == 2
            waiting = asyncio.create_task(s.connect())
            await asyncio.sleep(0.02)
            assert s.upstream.circuit.waiting == 1
            s.upstream.release(first.endpoint)
            second = await in_time(waiting)
            assert (second.endpoint, second.tries) == (first.endpoint, 2)
            s.upstream.release(second.endpoint)


async def test_a_dial_that_fails_gives_its_place_back() -> None:
    """To who waits; each of them finds out for itself."""
    with refusing() as dead:
        async with service([dead], max_connections=1, queue_timeout=10.0) as s:
            tasks = [asyncio.create_task(s.connect()) for _ in range(5)]
            told = await in_time(asyncio.gather(*tasks, return_exceptions=True))
            assert {str(one) for one in told} == {f"{dead}: Connection refused"}
