"""Checks of a service, by a probe that the test answers and a clock that it sets."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random

import pytest
from structlog.testing import capture_logs

from tcpgw.endpoints import Endpoint
from tcpgw.errors import OverloadError
from tcpgw.health import probes
from tcpgw.health.active import Checks
from tcpgw.health.schedule import Terms
from tests.support.rpc_ends import nothing_left
from tests.support.streams import in_time, until

# So long that no timer of the loop fires in a test: only the test's own clock makes anybody due.
TERMS = Terms(interval=1000.0, fast_interval=100.0, timeout=7.0, jitter=0.0)
A, B, C = (Endpoint.of("10.0.0.1", port) for port in (1, 2, 3))


@pytest.fixture(autouse=True)
async def leaves_nothing() -> AsyncIterator[None]:
    async with nothing_left():
        yield


class Instances:
    """The probe, its answers, the clock and the reports."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: list[Endpoint] = []  # in order, since the test began
        self.asking: dict[Endpoint, asyncio.Future[str | None]] = {}
        self.reports: list[tuple[Endpoint, str | None]] = []
        self.in_transition = False
        self.on_report: Callable[[], object] = lambda: None

    async def probe(self, endpoint: Endpoint, seconds: float) -> str | None:
        assert seconds == TERMS.timeout
        assert endpoint not in self.asking
        self.asked.append(endpoint)
        future: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self.asking[endpoint] = future
        try:
            return await future
        finally:
            del self.asking[endpoint]

    def report(self, endpoint: Endpoint, why: str | None) -> bool:
        self.reports.append((endpoint, why))
        self.on_report()
        return self.in_transition

    async def answer(self, endpoint: Endpoint, why: str | None = None) -> None:
        """End the endpoint's probe, and give the checks the turns that they need to take notice."""
        self.asking[endpoint].set_result(why)
        await self.settle()

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)


class Bed:
    def __init__(self, checks: Checks, instances: Instances, task: asyncio.Task[None]) -> None:
        self.checks = checks
        self.task = task
        self._instances = instances

    async def follow(self, *endpoints: Endpoint, at: float | None = None) -> None:
        """Follow, at a time; the same ones again make the checks look at the clock."""
        if at is not None:
            self._instances.now = at
        self.checks.follow(endpoints)
        await self._instances.settle()


@asynccontextmanager
async def checking(
    instances: Instances, *, terms: Terms = TERMS, concurrency: int = 64
) -> AsyncIterator[Bed]:
    checks = Checks(
        instances.probe,
        terms,
        instances.report,
        service="s",
        concurrency=concurrency,
        clock=lambda: instances.now,
        rng=Random(1),
    )
    task = asyncio.create_task(checks.run())
    try:
        yield Bed(checks, instances, task)
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert not instances.asking


async def test_results_are_reported() -> None:
    """Whoever is followed is checked at once, and each result is reported as it comes."""
    i = Instances()
    async with checking(i) as b:
        await b.follow(A, B)
        assert i.asked == [A, B]
        await i.answer(B, "refused")
        await i.answer(A)
        assert i.reports == [(B, "refused"), (A, None)]


async def test_the_next_check() -> None:
    """The next check is an interval after the last began, and one at a time for each endpoint."""
    i = Instances()
    async with checking(i) as b:
        await b.follow(A)
        await b.follow(A, at=990.0)
        assert i.asked == [A]
        await i.answer(A)
        await b.follow(A, at=999.0)
        assert i.asked == [A]
        await b.follow(A, at=1000.0)
        assert i.asked == [A, A]


async def test_faster_in_transition() -> None:
    """While the report says that the endpoint is in transition, its checks come faster."""
    i = Instances()
    i.in_transition = True
    async with checking(i) as b:
        await b.follow(A)
        await i.answer(A)
        i.in_transition = False
        await b.follow(A, at=100.0)
        await i.answer(A)
        await b.follow(A, at=1099.0)
        assert i.asked == [A, A]
        await b.follow(A, at=1100.0)
        assert i.asked == [A, A, A]


async def test_a_late_check_begins_at_once() -> None:
    """A probe that outlasts its interval is followed by the next one without a pause."""
    i = Instances()
    async with checking(i) as b:
        await b.follow(A)
        i.now = 1500.0
        i.asking[A].set_result(None)
        await until(lambda: i.asked == [A, A])


async def test_another_port() -> None:
    """The checks' own port is asked, and the endpoint is reported on."""
    i = Instances()
    async with checking(i, terms=Terms(timeout=TERMS.timeout, port=9000)) as b:
        await b.follow(A)
        asked = Endpoint(A.host, 9000)
        assert i.asked == [asked]
        await i.answer(asked, "refused")
        assert i.reports == [(A, "refused")]


async def test_bounded_concurrency() -> None:
    """No more probes run at a time than allowed; the next one begins as soon as one has ended."""
    i = Instances()
    async with checking(i, concurrency=2) as b:
        await b.follow(A, B, C)
        assert i.asked == [A, B]
        await i.answer(A)
        assert i.asked == [A, B, C]
        await b.follow(A, B, C, at=5000.0)
        assert i.asked == [A, B, C]


# ---- dropped endpoints, and the end ----


async def test_dropped() -> None:
    """A check that runs when its endpoint is dropped is ended, reported to nobody, and leaves its place."""
    i = Instances()
    async with checking(i, concurrency=1) as b:
        await b.follow(A)
        await b.follow(B)
        assert i.asked == [A, B]
        assert list(i.asking) == [B]
        await b.follow(at=5000.0)
        assert not i.asking
        await b.follow(at=9000.0)
        assert i.asked == [A, B]
        assert not i.reports


async def test_dropped_with_its_result_at_hand() -> None:
    """A result that has come, and was not reported yet when its endpoint was dropped, is not."""
    i = Instances()
    async with checking(i) as b:
        await b.follow(A)
        i.asking[A].set_result("refused")
        await b.follow()
        assert not i.reports


async def test_dropped_before_it_began() -> None:
    """A check that was due and has not begun frees its place as well."""
    i = Instances()
    async with checking(i, concurrency=1) as b:
        await i.settle()
        b.checks.follow([A])
        asyncio.get_running_loop().call_soon(b.checks.follow, [])  # between the task's making and its start
        await i.settle()
        await b.follow(B)
        assert i.asked == [B]


async def test_dropped_and_back() -> None:
    """An endpoint that comes back is asked anew, and what was asked before counts for nothing."""
    i = Instances()
    async with checking(i) as b:
        await b.follow(A)
        i.asking[A].set_result("refused")
        b.checks.follow([])
        await b.follow(A)
        assert i.asked == [A, A]
        await i.answer(A)
        assert i.reports == [(A, None)]


async def test_dropped_by_its_own_report() -> None:
    """Who is dropped because of a result is not asked again."""
    i = Instances()
    async with checking(i) as b:
        await b.follow(A)
        i.on_report = lambda: b.checks.follow([])
        await i.answer(A, "refused")
        await b.follow(at=5000.0)
        assert i.asked == [A]
        await b.follow(A)
        assert i.asked == [A, A]


async def test_the_end() -> None:
    """A cancellation ends every probe before `run` returns, and reports nothing any more."""
    i = Instances()
    async with checking(i) as b:
        await b.follow(A, B)
        i.asking[A].set_result("refused")
        b.task.cancel()
        await asyncio.wait([b.task])
        assert b.task.cancelled()
        assert not i.asking
        assert not i.reports


async def test_a_report_that_raises() -> None:
    """A bug in what is reported to ends `run`, with every probe, rather than the checks in silence."""
    i = Instances()
    i.on_report = lambda: 1 / 0
    async with checking(i) as b:
        await b.follow(A, B)
        await i.answer(A)
        assert not i.asking
        with pytest.raises(ExceptionGroup):
            await in_time(b.task)


# ---- our own want ----


async def test_our_own_want() -> None:
    """What failed for want of descriptors here is not the endpoint's: it is logged, once a minute."""
    i = Instances()

    async def fail(endpoint: Endpoint) -> None:
        i.asking[endpoint].set_exception(OverloadError("cannot open a connection: Too many open files"))
        await i.settle()

    with capture_logs() as logs:
        async with checking(i) as b:
            await b.follow(A, B)
            await fail(A)
            await fail(B)
            assert not i.reports
            (line,) = logs
            await b.follow(A, B, at=1000.0)
            assert i.asked == [A, B, A, B]
            await fail(A)
            await i.answer(B)
    assert i.reports == [(B, None)]
    assert logs == [line, line]
    assert line == {
        "event": "check_not_made",
        "log_level": "error",
        "service": "s",
        "endpoint": "10.0.0.1:1",
        "error": "cannot open a connection: Too many open files",
    }


# ---- in real time ----


async def test_the_loops_own_clock() -> None:
    """Without anybody to wake them, checks go on by the clock: a listening endpoint passes time and again."""
    results: list[str | None] = []

    def report(_: Endpoint, why: str | None) -> bool:
        results.append(why)
        return True

    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    async with server:
        terms = Terms(interval=60.0, fast_interval=0.01)
        checks = Checks(probes.tcp, terms, report, service="s")
        checks.follow([Endpoint.of(*server.sockets[0].getsockname())])
        task = asyncio.create_task(checks.run())
        await until(lambda: len(results) >= 3)
        task.cancel()
        await asyncio.wait([task])
    assert set(results) == {None}
