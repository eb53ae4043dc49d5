"""Looks at the gateway once a second, for the page, `tcpgw top`, metrics and alerts."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from math import inf
from typing import Any

import structlog

from tcpgw.app.monitor.alerting import Alerting
from tcpgw.app.monitor.metrics import expose
from tcpgw.app.monitor.picture import Picture
from tcpgw.app.monitor.readings import Reader
from tcpgw.app.monitor.view import Recent, View
from tcpgw.config import schema
from tcpgw.process.lag import Lag
from tcpgw.process.resources import Resources, resources_of

log = structlog.get_logger()

# Seconds between two looks: what the page shows is that old at most, and workers report as often.
_LOOK = 1.0
# Series whose text is made on the loop: some 4 us each.
_AT_ONCE = 500
# Seconds between two lines about looks that failed.
_FAILED = 60.0


class Monitor:
    """`run` it as a task. `picture` says what is known now, with `lag` as its parameter; `ask` has every
    worker's report renewed. Alerts are judged between `judge` and `retire`.
    """

    def __init__(
        self,
        config: schema.Config,
        picture: Callable[[float], Picture],
        ask: Callable[[], Awaitable[None]],
        alerting: Alerting,
    ) -> None:
        self._picture = picture
        self._ask = ask
        self._alerting = alerting
        self._recent = Recent()
        self._reader = Reader(config.alerts.min_volume)
        self._lag = Lag()
        self._failed = -inf  # when a look last did, and was told of
        self._view: View | None = None
        self._processes: Mapping[int, Resources] = {}
        self._judges = False

    def judge(self) -> None:
        """Judge from the next look on. Not before this gateway serves: an upgrade that fails tells nobody."""
        self._judges = True

    async def retire(self) -> None:
        """Judge no more: a successor does. Idempotent."""
        self._judges = False
        await self._alerting.close()

    def follow(self, config: schema.Config) -> None:
        self._alerting.follow(config)
        self._reader.min_volume = config.alerts.min_volume

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_lag())
            group.create_task(self._go_on())

    async def _watch_lag(self) -> None:
        while True:
            await self._lag.look()

    async def _go_on(self) -> None:
        while True:
            now = time.monotonic()
            try:
                await self._look(now)
            except Exception:  # who looks is not to end what he looks at
                if now - self._failed >= _FAILED:
                    self._failed = now
                    log.exception("not_looked", hint="page, rates and alerts stand still; clients are served")
            await asyncio.sleep(max(0.0, now + _LOOK - time.monotonic()))

    async def _look(self, now: float) -> None:
        picture = self._picture(self._lag.greatest)
        self._processes = await _processes(picture)
        self._view = self._recent.look(picture, self._processes, now)
        if self._judges:
            self._alerting.look(self._reader.read(picture, self._recent, now))

    def view(self) -> View | None:
        """What went on at the last look; None before the first. Never changed."""
        return self._view

    def charts(self) -> dict[str, Any]:
        """As `Recent.charts`."""
        return self._recent.charts()

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics as of now, those of processes as of the last look; and the content type.

        `accept` is an Accept header.
        """
        await self._ask()
        picture = self._picture(self._lag.greatest)
        exposition = expose(picture, self._processes, self._recent.imbalances(picture))
        if len(exposition) <= _AT_ONCE:  # a thread would take longer, and CPU from who relays
            return exposition.render(accept)
        return await asyncio.to_thread(exposition.render, accept)


async def _processes(picture: Picture) -> dict[int, Resources]:
    """By pid. In a thread: the files of a process with 10,000 connections take 3 ms to count."""
    pids = [picture.pid, *(worker.pid for worker in picture.workers)]

    def read() -> dict[int, Resources]:
        found = {pid: resources_of(pid) for pid in pids}
        return {pid: one for pid, one in found.items() if one is not None}

    return await asyncio.to_thread(read)
