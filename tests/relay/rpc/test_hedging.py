"""When a second endpoint is asked: each at its delay, never for what is done, and without a busy loop."""

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any, cast

import pytest

from tcpgw.relay.rpc.call import Call
from tcpgw.relay.rpc.hedging import Hedging
from tcpgw.relay.rpc.routing import Rule
from tcpgw.relay.rpc.session import RpcSession
from tcpgw.wire.codec import Kind, Message

NOBODY = cast("RpcSession", None)  # a call's client, to whom hedging does not speak


class Clock(asyncio.SelectorEventLoop):
    """A loop whose time stands until the test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._timers: list[asyncio.TimerHandle] = []
        super().__init__()

    def time(self) -> float:
        return self.now

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._timers.append(timer)
        return timer

    @property
    def timers(self) -> list[asyncio.TimerHandle]:
        return sorted(timer for timer in self._timers if not timer.cancelled())

    def advance(self, seconds: float, *, early: float = 0.0) -> int:
        """Let time pass, with timers that fire too `early`, as uvloop's do. Returns how many fired."""
        end, fired = self.now + seconds, 0
        while (timers := self.timers) and timers[0].when() - early <= end:
            self._timers.remove(timers[0])
            self.now = max(self.now, timers[0].when() - early)
            timers[0]._run()
            fired += 1
        self.now = end
        return fired


def call_of(rule: Rule, name: int) -> Call:
    """A request, named by its position."""
    message = Message(Kind.REQUEST, b"predict", b"\x05", -1, 7)
    return Call(NOBODY, message, [b"\xa7predict\x90"], 9, rule, name, 0.0, 60.0)


class Hedged:
    """What was hedged, and when."""

    def __init__(self, loop: Clock, hedge: float | str) -> None:
        self.calls: list[tuple[int, float]] = []
        self._loop = loop
        self._began = loop.now
        self.rule = Rule("predict", timeout=60.0, idempotent=True, hedge=hedge)
        self.hedging = Hedging(self.rule, self._hedge)

    def _hedge(self, call: Call) -> None:
        self.calls.append((call.position, round(self._loop.now - self._began, 6)))

    def add(self, name: int) -> Call:
        call = call_of(self.rule, name)
        self.hedging.add(call)
        return call

    def observe(self, *latencies: float) -> None:
        for seconds in latencies:
            self.hedging.observe(seconds)


def run(test: Callable[[Clock], None]) -> None:
    """Run a test within a loop that stands."""

    async def inside() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Clock)
        test(loop)

    with asyncio.Runner(loop_factory=Clock) as runner:
        runner.run(inside())


def test_hedges_after_a_fixed_delay() -> None:
    """Each request is hedged once, its delay after it was sent, unless it is done by then."""

    def test(clock: Clock) -> None:
        hedged = Hedged(clock, 0.1)
        for name in range(4):
            call = hedged.add(name)
            call.done = name == 1
            clock.advance(0.03)
        assert hedged.calls == [(0, 0.1)]
        clock.advance(10)
        assert hedged.calls == [(0, 0.1), (2, 0.16), (3, 0.19)]
        assert clock.timers == []

    run(test)


def test_hedges_after_the_running_p95() -> None:
    """Without latencies enough nothing is hedged; then each request at the p95 that holds when it is sent."""

    def test(clock: Clock) -> None:
        hedged = Hedged(clock, "p95")
        hedged.observe(*[0.5] * 15)
        hedged.add(0)
        assert clock.timers == []
        hedged.observe(0.5)
        hedged.add(1)
        clock.advance(10)
        assert [name for name, _ in hedged.calls] == [1]
        assert hedged.calls[0][1] == pytest.approx(0.5, rel=1 / 15)

    run(test)


def test_a_p95_that_falls_overtakes() -> None:
    """A request that is sent after the delay fell is not kept waiting behind one that was sent before."""

    def test(clock: Clock) -> None:
        hedged = Hedged(clock, "p95")
        hedged.observe(*[5.0] * 16)
        hedged.add(0)
        hedged.observe(*[0.01] * 32)
        clock.advance(1.0)
        hedged.add(1)
        hedged.add(2)
        clock.advance(0.02)
        assert [name for name, _ in hedged.calls] == [1, 2]
        clock.advance(10)
        assert [name for name, _ in hedged.calls] == [1, 2, 0]

    run(test)


def test_one_timer_serves_all() -> None:
    """A thousand requests in flight have one timer, which fires no more often than there is something due."""

    def test(clock: Clock) -> None:
        hedged = Hedged(clock, 0.1)
        fired = 0
        for name in range(1000):
            hedged.add(name)
            fired += clock.advance(0.001)
            assert len(clock.timers) == 1
        fired += clock.advance(1)
        assert len(hedged.calls) == 1000
        assert fired <= 1000

    run(test)


def test_requests_that_are_done_in_time_fire_few_timers() -> None:
    """Requests one after the other, each done at once, cost one timer for each delay and none for each."""

    def test(clock: Clock) -> None:
        hedged = Hedged(clock, 0.1)
        fired = 0
        for name in range(1000):
            hedged.add(name).done = True
            fired += clock.advance(0.001)
        assert hedged.calls == []
        assert fired <= 11

    run(test)


def test_a_timer_that_fires_early_is_not_a_busy_loop() -> None:
    """Woken too early, as by uvloop, which rounds to milliseconds, it looks again a millisecond later."""

    def test(clock: Clock) -> None:
        hedged = Hedged(clock, 0.0103)
        hedged.add(0)
        assert clock.advance(0.05, early=0.0004) == 2
        [(_, when)] = hedged.calls
        assert 0.0103 <= when < 0.0115
        short = Hedged(clock, 0.00001)
        short.add(0)
        assert clock.timers[0].when() - clock.now >= 0.0009

    run(test)


def test_closed_it_hedges_nothing() -> None:
    """What waits at the end is forgotten, and no timer stays behind. Closing twice is no error."""

    def test(clock: Clock) -> None:
        hedged = Hedged(clock, 0.1)
        hedged.hedging.close()
        hedged.add(0)
        hedged.hedging.close()
        hedged.hedging.close()
        assert clock.timers == []
        assert clock.advance(1) == 0
        assert hedged.calls == []

    run(test)


def test_what_a_hedge_sets_off_may_be_hedged() -> None:
    """A request that is sent while another is hedged has its own delay."""

    def test(clock: Clock) -> None:
        hedged = Hedged(clock, 0.1)
        times: list[float] = []

        def hedge(call: Call) -> None:
            times.append(round(clock.now - 1000.0, 6))
            if call.position < 2:
                chained.add(call_of(hedged.rule, call.position + 1))

        chained = Hedging(hedged.rule, hedge)
        chained.add(call_of(hedged.rule, 0))
        clock.advance(1)
        assert times == [0.1, 0.2, 0.3]
        assert clock.timers == []

    run(test)


async def test_hedges_on_the_loop_of_production() -> None:
    """On a real loop a request is hedged soon after its delay, and not before."""
    loop = asyncio.get_running_loop()
    hedged: asyncio.Future[float] = loop.create_future()
    rule = Rule("predict", timeout=60.0, idempotent=True, hedge=0.0203)
    hedging = Hedging(rule, lambda _: hedged.set_result(loop.time()))
    began = loop.time()
    hedging.add(call_of(rule, 0))
    async with asyncio.timeout(5):
        assert await hedged - began >= 0.02
    hedging.close()
