"""Active checks of one service: asks its endpoints, each in its turn, and reports what came of it."""

import asyncio
import math
import time
from collections.abc import Callable, Iterable
from random import Random

import structlog

from tcpgw.endpoints import Endpoint
from tcpgw.errors import OverloadError
from tcpgw.health.probes import Probe
from tcpgw.health.schedule import Schedule, Terms, Turn

log = structlog.get_logger()

# Seconds that a check may begin late, so that those that fall due together begin together. Of 500 checks a
# second each would else wake the loop several times for itself, which more than doubles their cost.
_TICK = 0.02
# Seconds after which the same complaint is logged again.
_REPEAT = 60.0

Report = Callable[[Endpoint, str | None], bool]
"""Called with each result, None or why the check failed. Returns whether the endpoint is in transition: its
next results may change its state, so they should come soon. What it raises ends `run`."""


class Checks:
    """Checks who is followed, by one probe, for as long as `run` runs.

    At most `concurrency` probes run at a time. Where more are due, who is due longest comes first, and all
    are checked less often: by the defaults, when more than 128 endpoints let their checks time out.

    Of an endpoint that is not followed any more nothing is reported, not even the check that ran when it was
    dropped; nor is anything once `run` was cancelled. A check that failed for want of something of our own
    (OverloadError) says nothing of the endpoint: it is not reported, but logged, once a minute.
    """

    def __init__(
        self,
        probe: Probe,
        terms: Terms,
        report: Report,
        *,
        service: str,
        concurrency: int = 64,
        clock: Callable[[], float] = time.monotonic,
        rng: Random | None = None,
    ) -> None:
        self._probe = probe
        self._terms = terms
        self._report = report
        self._log = log.bind(service=service)
        self._clock = clock
        self._schedule = Schedule(terms, rng or Random())
        self._free = concurrency
        self._running: dict[Endpoint, asyncio.Task[None]] = {}
        self._runner: asyncio.Task[object] | None = None
        self._wake = asyncio.Event()
        self._sleeps_until = math.inf
        self._complained_at = -math.inf

    def follow(self, endpoints: Iterable[Endpoint]) -> None:
        """Check these from now on, and no others. Those that were followed already keep their turn."""
        for endpoint in self._schedule.follow(endpoints, self._clock()):
            if (task := self._running.get(endpoint)) is not None:
                task.cancel()
        self._wake.set()

    async def run(self) -> None:
        """Check for ever. Once; a cancellation ends all checks that run before it returns."""
        self._runner = asyncio.current_task()
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                while self._free and (turn := self._schedule.take(self._clock())) is not None:
                    self._start(turn, group)
                due = self._schedule.next_due() if self._free else None
                await self._sleep_until(math.inf if due is None else due)

    def _start(self, turn: Turn, group: asyncio.TaskGroup) -> None:
        task = group.create_task(self._check(turn))
        self._free -= 1
        self._running[turn.endpoint] = task

        def ended(_: object) -> None:  # not in the coroutine: it may be cancelled before it begins
            self._free += 1
            if self._running.get(turn.endpoint) is task:
                del self._running[turn.endpoint]
            if self._free == 1:
                self._wake.set()

        task.add_done_callback(ended)

    async def _sleep_until(self, due: float) -> None:
        """Return then, or when woken before."""
        self._sleeps_until = due
        timer = None
        if due < math.inf:
            loop = asyncio.get_running_loop()
            timer = loop.call_later(max(due - self._clock(), 0.0) + _TICK, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            if timer is not None:
                timer.cancel()

    async def _check(self, turn: Turn) -> None:
        began = self._clock()
        endpoint = turn.endpoint
        target = Endpoint(endpoint.host, self._terms.port) if self._terms.port else endpoint
        fast = False
        try:
            why = await self._probe(target, self._terms.timeout)
        except OverloadError as exc:
            self._complain(endpoint, exc, began)
        else:
            if not self._schedule.holds(turn) or (self._runner and self._runner.cancelling()):
                return
            fast = self._report(endpoint, why)
        if self._schedule.holds(turn):
            due = self._schedule.again(turn, began, fast=fast)
            if due < self._sleeps_until:
                self._wake.set()

    def _complain(self, endpoint: Endpoint, exc: OverloadError, now: float) -> None:
        if now - self._complained_at >= _REPEAT:
            self._complained_at = now
            self._log.error("check_not_made", endpoint=str(endpoint), error=str(exc))
