"""What follows the snapshots of services for the sake of connections, and counts how connecting went."""

import asyncio
from collections.abc import Callable, Iterable, Mapping

from tcpgw.app.background import Background
from tcpgw.config import schema
from tcpgw.observe.totals import Figures
from tcpgw.pool import Pool
from tcpgw.relay.listener import Listener
from tcpgw.relay.outcomes import Outcomes
from tcpgw.relay.placement import Placement


class Places:
    """Owns a Placement for each service, and the task that runs it. Used in one running event loop."""

    def __init__(self, background: Background, listeners: Callable[[], Iterable[Listener]]) -> None:
        self._background = background
        self._listeners = listeners
        self._outcomes: dict[Pool, Outcomes] = {}
        self._placements: dict[Pool, tuple[Placement, asyncio.Task[None]]] = {}

    def outcomes(self, pool: Pool) -> Outcomes:
        """What all upstreams of a service count in, whichever configuration made them."""
        if pool not in self._outcomes:
            self._outcomes[pool] = Outcomes(pool)
        return self._outcomes[pool]

    def follow(self, config: schema.Config, pools: Mapping[str, Pool]) -> None:
        """Follow these services, and no others any more."""
        for service in config.service:
            pool = pools[service.name]
            if pool not in self._placements:
                placement = Placement(pool, self._listeners)
                task = self._background.start(placement.run(), f"places of {service.name}")
                self._placements[pool] = placement, task
            self._placements[pool][0].rebalance = service.balance.rebalance
        for pool in self._placements.keys() - set(pools.values()):
            _, task = self._placements.pop(pool)
            task.cancel()
            self._outcomes.pop(pool, None)

    def placement(self, pool: Pool) -> Placement:
        """Whatever follows that service. Raises KeyError where nothing does."""
        return self._placements[pool][0]

    async def close(self) -> None:
        """Idempotent."""
        for _, task in self._placements.values():
            await self._background.stop(task)

    def status(self, pool: Pool) -> Figures:
        """By endpoint."""
        return {
            str(endpoint): {"connected": outcome.connected, "failed": outcome.failed}
            for endpoint, outcome in self.outcomes(pool).items()
        }
