import asyncio
import selectors
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcpgw.discovery.budget import WINDOW, Budget


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        super().__init__(selectors.SelectSelector())
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.now = max(self.now, self._scheduled[0]._when)  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


@contextmanager
def virtual_time() -> Iterator[VirtualLoop]:
    loop = VirtualLoop()
    try:
        yield loop
    finally:
        loop.close()


def simulate(play: Callable[[VirtualLoop], Coroutine[Any, Any, None]]) -> None:
    """Run `play` to its end in virtual time."""
    with virtual_time() as loop:
        loop.run_until_complete(play(loop))


def budget_on(loop: VirtualLoop, calls: int = 20) -> Budget:
    return Budget(calls, clock=loop.time, sleep=asyncio.sleep)


@asynccontextmanager
async def call(budget: Budget) -> AsyncIterator[None]:
    """Make one call within the budget."""
    token = await budget.take()
    token.called = True
    try:
        yield
    finally:
        token.give_back()


def busiest_minute(times: list[float]) -> int:
    """The most calls that any 60 s hold, both ends included."""
    ordered, first, most = sorted(times), 0, 0
    for last, time in enumerate(ordered):
        while ordered[first] < time - 60:
            first += 1
        most = max(most, last - first + 1)
    return most


async def play_services(
    loop: VirtualLoop, budget: Budget, services: int, seconds: float, work: Callable[[int], Awaitable[None]]
) -> None:
    """Let each service call as often as it may for so many seconds."""

    async def service(number: int) -> None:
        while loop.time() < seconds:
            async with call(budget):
                await work(number)

    await asyncio.gather(*(service(number) for number in range(services)))


@pytest.mark.parametrize(("calls", "services"), [(20, 50), (1, 3), (7, 7), (20, 1)])
def test_no_minute_of_hours_has_more_calls_than_the_limit(calls: int, services: int) -> None:
    """However many services press, no 60 s window ever holds more calls than the limit, and few less."""
    times: list[float] = []

    async def play(loop: VirtualLoop) -> None:
        async def work(_number: int) -> None:
            times.append(loop.time())

        await play_services(loop, budget_on(loop, calls), services, 4 * 3600, work)

    simulate(play)
    assert busiest_minute(times) == calls
    assert len(times) >= calls * 4 * 3600 / WINDOW * 0.99


@settings(max_examples=40, deadline=None)
@given(
    calls=st.integers(1, 12),
    plan=st.lists(st.tuples(st.floats(0, 200), st.floats(0, 20), st.floats(0, 1)), min_size=1, max_size=60),
)
def test_limit_holds_as_the_cloud_counts_it(calls: int, plan: list[tuple[float, float, float]]) -> None:
    """The limit holds at the cloud, wherever within its call's duration each request arrives there."""
    arrivals: list[float] = []

    async def play(loop: VirtualLoop) -> None:
        budget = budget_on(loop, calls)

        async def one(start: float, duration: float, arrival: float) -> None:
            await asyncio.sleep(start)
            async with call(budget):
                arrivals.append(loop.time() + duration * arrival)
                await asyncio.sleep(duration)

        await asyncio.gather(*(one(*call) for call in plan))

    simulate(play)
    assert len(arrivals) == len(plan)
    assert busiest_minute(arrivals) <= calls


def test_half_of_the_calls_start_at_once_and_the_rest_evenly() -> None:
    """Ten services start without waiting; the further calls keep their distance."""
    times: list[float] = []

    async def play(loop: VirtualLoop) -> None:
        async def work(_number: int) -> None:
            times.append(loop.time())

        await play_services(loop, budget_on(loop), 20, 1, work)

    simulate(play)
    assert times[:10] == [0.0] * 10
    gaps = [later - earlier for earlier, later in pairwise(times[10:20])]
    assert gaps == pytest.approx([WINDOW / 20] * 9)


def test_calls_at_the_limit_are_spread_evenly() -> None:
    """In the long run calls of services that want more than they may have come at equal distances."""
    times: list[float] = []

    async def play(loop: VirtualLoop) -> None:
        async def work(_number: int) -> None:
            times.append(loop.time())
            await asyncio.sleep(0.2)

        await play_services(loop, budget_on(loop), 30, 1800, work)

    simulate(play)
    settled = [time for time in times if time > 300]
    gaps = [later - earlier for earlier, later in pairwise(settled)]
    assert max(gaps) < 2 * WINDOW / 20
    assert min(gaps) > 0.5 * WINDOW / 20


def test_budget_is_shared_fairly() -> None:
    """First come, first served: no service gets more than one call ahead of another."""
    order: list[int] = []

    async def play(loop: VirtualLoop) -> None:
        async def work(number: int) -> None:
            order.append(number)
            await asyncio.sleep(0.2)

        await play_services(loop, budget_on(loop), 7, 3600, work)

    simulate(play)
    rounds = [order[i : i + 7] for i in range(0, len(order) - 6, 7)]
    assert len(rounds) > 100
    assert all(sorted(round_) == list(range(7)) for round_ in rounds)


def test_pause_stops_all_calls() -> None:
    """During a pause no call starts, not even one that waited already; the longer of two counts."""
    times: list[float] = []

    async def play(loop: VirtualLoop) -> None:
        budget = budget_on(loop)
        budget.pause(30)
        budget.pause(5)
        assert budget.pause_left == 30

        async def one() -> None:
            async with call(budget):
                times.append(loop.time())

        waiting = asyncio.create_task(one())
        await asyncio.sleep(29)
        budget.pause(100)
        await waiting
        assert budget.pause_left == 0

    simulate(play)
    assert times == [129]


def test_cancelled_waiter_takes_no_call() -> None:
    """A waiter that is cancelled costs nothing, and those behind it move up."""

    async def play(loop: VirtualLoop) -> None:
        budget = budget_on(loop, 1)
        async with call(budget):
            pass

        async def one() -> float:
            async with call(budget):
                return loop.time()

        first, second = asyncio.create_task(one()), asyncio.create_task(one())
        await asyncio.sleep(10)
        first.cancel()
        assert await second == WINDOW
        assert first.cancelled()

    simulate(play)


def test_cancelled_call_counts() -> None:
    """A call cancelled under way was perhaps counted by the cloud: its token comes back late too."""

    async def play(loop: VirtualLoop) -> None:
        budget = budget_on(loop, 2)

        async def one() -> None:
            async with call(budget):
                await asyncio.sleep(100)

        task = asyncio.create_task(one())
        await asyncio.sleep(5)
        assert budget.left == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert budget.left == 1
        await asyncio.sleep(WINDOW)
        assert budget.left == 2

    simulate(play)


def test_unused_token_comes_back_at_once() -> None:
    """A token that no call was made with costs nothing, and giving back twice gives back once."""

    async def play(loop: VirtualLoop) -> None:
        budget = budget_on(loop, 2)
        token = await budget.take()
        assert budget.left == 1
        token.give_back()
        token.give_back()
        assert budget.left == 2

    simulate(play)


def test_calls_that_never_end_hold_their_tokens() -> None:
    """While all calls are under way nothing starts, however long that lasts."""

    async def play(loop: VirtualLoop) -> None:
        budget = budget_on(loop, 1)
        started: list[float] = []

        async def one() -> None:
            async with call(budget):
                started.append(loop.time())
                await asyncio.sleep(500)

        await asyncio.gather(one(), one())
        assert started[0] == 0
        assert started[1] >= 500 + WINDOW

    simulate(play)
