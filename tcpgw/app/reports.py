"""What services' endpoints came to here, told to whoever judges their health."""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping

from tcpgw.app.background import Background
from tcpgw.config import schema
from tcpgw.endpoints import Endpoint
from tcpgw.observe.totals import Figures
from tcpgw.pool import Pool
from tcpgw.relay.outcomes import Kind, News, Outcomes

Tell = Callable[[Mapping[str, Mapping[Endpoint, News]]], None]
"""Told what is new, by service."""

Plain = dict[str, list[tuple[str, int, int, int, int, str]]]
"""By service: host and port of endpoints, and what News says of each."""

# Seconds between two reports, where nothing is urgent and there is something to tell.
_EVERY = 0.1


class Reports:
    """Owns the Outcomes of each service. Used in one running event loop."""

    def __init__(self, tell: Tell, background: Background) -> None:
        self._tell = tell
        self._background = background
        self._outcomes: dict[Pool, Outcomes] = {}
        self._urgent = asyncio.Event()
        self._news = asyncio.Event()  # there may be some: an endpoint failed, or one is watched
        self._task: asyncio.Task[None] | None = None

    def outcomes(self, pool: Pool) -> Outcomes:
        """What all of a service's connections and requests count in, whichever configuration made them."""
        if pool not in self._outcomes:
            self._outcomes[pool] = Outcomes(pool, self._urgent.set, news=self._news.set)
        return self._outcomes[pool]

    def follow(self, config: schema.Config, pools: Mapping[str, Pool]) -> None:
        """Tell of these services, and of no others any more."""
        for service in config.service:
            passive = service.health.passive
            outcomes = self.outcomes(pools[service.name])
            if passive == "off":
                outcomes.change((), failures=1)
            else:
                kinds = [Kind(kind) for kind in passive.on]
                outcomes.change(kinds, failures=passive.failures, window=passive.window)
        for pool in self._outcomes.keys() - set(pools.values()):
            del self._outcomes[pool]
        if self._task is None:
            self._task = self._background.start(self._run(), "reports of outcomes")

    def watch(self, pool: Pool, endpoints: Collection[Endpoint]) -> None:
        """Tell of these endpoints' successes too."""
        self.outcomes(pool).watched = frozenset(endpoints)
        if endpoints:
            self._news.set()

    async def _run(self) -> None:
        while True:
            # Not each 0.1 s in any case: that took 1.7 ms of CPU a second of each idle worker.
            await self._news.wait()
            self._urgent.clear()
            if not any(one.watched for one in self._outcomes.values()):
                self._news.clear()
            news = {pool.service: told for pool, one in self._outcomes.items() if (told := one.take())}
            if news:
                self._tell(news)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_EVERY):
                    await self._urgent.wait()

    def status(self, pool: Pool) -> Figures:
        """A service's: of all its connections, and of its endpoints."""
        outcomes = self.outcomes(pool)
        return {
            "connect": outcomes.connecting.figures(),
            "retried": outcomes.retried,
            "endpoints": self._endpoints(outcomes),
        }

    @staticmethod
    def _endpoints(outcomes: Outcomes) -> Figures:
        return {
            str(endpoint): {
                "picked": outcome.picked,
                "connected": outcome.connected,
                "failed": outcome.failed,
                "successes": outcome.successes,
                "failures": {kind.value: count for kind, count in outcome.failures.items() if count},
            }
            for endpoint, outcome in outcomes.items()
        }

    async def close(self) -> None:
        """Idempotent."""
        if self._task is not None:
            await self._background.stop(self._task)


def plain(news: Mapping[str, Mapping[Endpoint, News]]) -> Plain:
    """Return what was told in values that every encoding has."""
    return {service: [(*endpoint, *one) for endpoint, one in told.items()] for service, told in news.items()}
