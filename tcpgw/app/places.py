"""What services' connections have in common, whichever configuration made their planes: places and limits."""

import asyncio
from collections.abc import Callable, Iterable, Mapping

from tcpgw.app.background import Background
from tcpgw.config import schema
from tcpgw.pool import Pool
from tcpgw.relay.circuit import Circuit
from tcpgw.relay.listener import Listener
from tcpgw.relay.placement import Placement


class Places:
    """Owns a Placement and a Circuit for each service, and their tasks. Used in one running event loop."""

    def __init__(self, background: Background, listeners: Callable[[], Iterable[Listener]]) -> None:
        self._background = background
        self._listeners = listeners
        self._circuits: dict[Pool, Circuit] = {}
        self._placements: dict[Pool, tuple[Placement, asyncio.Task[None]]] = {}

    def circuit(self, pool: Pool) -> Circuit:
        """The limits of a service's connections."""
        if pool not in self._circuits:
            self._circuits[pool] = Circuit(pool)
        return self._circuits[pool]

    def follow(self, config: schema.Config, pools: Mapping[str, Pool]) -> None:
        """Follow these services, and no others any more."""
        for service in config.service:
            pool = pools[service.name]
            if pool not in self._placements:
                placement = Placement(pool, self._listeners)
                task = self._background.start(placement.run(), f"places of {service.name}")
                self._placements[pool] = placement, task
            self._placements[pool][0].rebalance = service.balance.rebalance
            self.circuit(pool).change(
                retry_budget=service.connect.retry_budget,
                max_connections=service.connect.max_connections,
                queue=service.connect.queue,
                queue_timeout=service.connect.queue_timeout,
            )
        for pool in self._placements.keys() - set(pools.values()):
            _, task = self._placements.pop(pool)
            task.cancel()
            self._circuits.pop(pool, None)

    def placement(self, pool: Pool) -> Placement:
        """Whatever follows that service. Raises KeyError where nothing does."""
        return self._placements[pool][0]

    async def close(self) -> None:
        """Idempotent."""
        for _, task in self._placements.values():
            await self._background.stop(task)
