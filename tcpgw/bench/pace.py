"""When requests go: as soon as another was answered (closed loop), or when they are due (open loop)."""

import asyncio
import contextlib
import time
from collections.abc import Iterator

from tcpgw.bench.connection import Connection
from tcpgw.bench.plan import Share
from tcpgw.bench.schedule import Schedule
from tcpgw.bench.ticker import ticking

_SECOND = 1_000_000_000
_AT_ONCE = 512  # requests that a tick sends at most, so that answers are read in between
_LEAST_SPACING = 20_000  # ns between ticks: one takes half of that, and may send several requests


class ClosedLoop:
    """Each connection keeps `depth` requests in flight: the target sets the rate."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._sending = False
        self._ready: set[Connection] = set()

    @property
    def exhausted(self) -> bool:
        """Whether nothing more is sent: before the beginning, and after the end."""
        return not self._sending

    @contextlib.contextmanager
    def running(self, begin: int) -> Iterator[None]:
        """Send from `begin` (nanoseconds) on, until `stop` or the end of the context."""
        delay = max(0, begin - time.monotonic_ns()) / _SECOND
        start = asyncio.get_running_loop().call_later(delay, self._start)
        try:
            yield
        finally:
            start.cancel()
            self.stop()

    def stop(self) -> None:
        """Send no more. Idempotent."""
        self._sending = False

    def joined(self, connection: Connection) -> None:
        self._ready.add(connection)
        self.answered(connection)

    def answered(self, connection: Connection) -> None:
        missing = self._depth - connection.exchange.waiting
        if missing > 0 and self._sending and connection in self._ready:
            now = time.monotonic_ns()
            connection.send([now] * missing, now)

    def left(self, connection: Connection) -> None:
        self._ready.discard(connection)

    def expire(self, _before: int) -> list[int]:
        """Nothing waits to be sent here."""
        return []

    def _start(self) -> None:
        self._sending = True
        for connection in list(self._ready):
            self.answered(connection)


class OpenLoop:
    """Requests go when they are due, to the connections in turn, whatever is still unanswered.

    Without a connection that takes them they wait, and their latency grows.
    """

    def __init__(self, share: Share) -> None:
        self._share = share
        self._schedule: Schedule | None = None
        self._ready: list[Connection] = []
        self._ready_since = 0
        self._turn = 0

    @property
    def exhausted(self) -> bool:
        """Whether everything that is ever due was sent or given up."""
        return self._schedule is not None and self._schedule.exhausted

    @contextlib.contextmanager
    def running(self, begin: int) -> Iterator[None]:
        """Send what is due from `begin` (nanoseconds) to the plan's end, and what is late also after it."""
        plan = self._share.plan
        self._schedule = schedule = Schedule(
            plan.rate or 0,
            begin=begin,
            seconds=plan.warm_up + plan.duration,
            first=self._share.process,
            stride=plan.processes,
        )
        with ticking(self._tick, first=schedule.first, spacing=max(_LEAST_SPACING, schedule.spacing)):
            yield

    def stop(self) -> None:
        """Nothing to do: nothing is due any more."""

    def joined(self, connection: Connection) -> None:
        if not self._ready:
            self._ready_since = time.monotonic_ns()
            asyncio.get_running_loop().call_soon(self._tick)  # what is due has waited for this
        self._ready.append(connection)

    def answered(self, connection: Connection) -> None:
        """Answers do not matter here."""

    def left(self, connection: Connection) -> None:
        if connection in self._ready:
            self._ready.remove(connection)

    def expire(self, before: int) -> list[int]:
        """Give up what was due before and could not be sent."""
        return self._schedule.skip(before) if self._schedule else []

    def _tick(self) -> None:
        ready = self._ready
        if not ready or not self._schedule:
            return
        now = time.monotonic_ns()
        due = self._schedule.take(now, _AT_ONCE)
        turn, lines = self._turn, min(len(ready), len(due))
        self._turn += len(due)
        # A write may fill a connection, which then leaves the list: choose first.
        chosen = [ready[(turn + place) % len(ready)] for place in range(lines)]
        for place, connection in enumerate(chosen):
            connection.send(due[place::lines], now, self._ready_since)
        if len(due) == _AT_ONCE:  # the next tick may be a second away
            asyncio.get_running_loop().call_soon(self._tick)


def make_pace(share: Share) -> ClosedLoop | OpenLoop:
    """What the plan asks for."""
    return OpenLoop(share) if share.plan.rate else ClosedLoop(share.plan.depth)
