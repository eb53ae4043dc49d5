"""The pools of one process's services: in force, or of a configuration that is about to be.

What is told of a service may come before its configuration does, as each comes a way of its own. It is kept,
and a new pool begins with it.
"""

import time
from collections.abc import Callable, Collection, Mapping
from functools import partial

from tcpgw.app.balancing import make_policy
from tcpgw.balancing.loads import Loads
from tcpgw.balancing.standing import Share
from tcpgw.config import schema
from tcpgw.endpoints import Endpoint, Snapshot
from tcpgw.pool import Pool


class Pools:
    """`by_name` are those in force. For another configuration come `prepare` and `rebuild`, then either
    `take` or `give_up`; never for two at a time.

    `watch` is told of which endpoints of a pool also successes are to be told.
    """

    def __init__(self, config: schema.Config, watch: Callable[[Pool, Collection[Endpoint]], None]) -> None:
        self.by_name = {service.name: _make(service) for service in config.service}
        self._watch = watch
        self._balances = {service.name: service.balance for service in config.service}  # as built
        self._coming: dict[str, Pool] = {}
        self._early: dict[str, Snapshot] = {}  # of services that are not in the configuration
        self._weighed: dict[str, tuple[Mapping[Endpoint, Share], Collection[Endpoint]]] = {}

    # ---- what is told of services ----

    async def publish(self, snapshot: Snapshot) -> None:
        """As `Pool.publish`, of the service that the snapshot is of.

        Where the configuration has no such service, it is kept for when it has.
        """
        name = snapshot.service
        pool = self._find(name)
        if name not in self.by_name:
            self._early[name] = snapshot
        if pool is not None:
            await pool.publish(snapshot)

    def weigh(self, service: str, shares: Mapping[Endpoint, Share], watched: Collection[Endpoint]) -> None:
        """As `Pool.weigh`; `watched` are the endpoints of which also successes are to be told.

        Of a service that is not in the configuration, it is kept for when it is.
        """
        self._weighed[service] = shares, watched
        pool = self._find(service)
        if pool is not None:
            pool.weigh(shares)
            self._watch(pool, watched)

    def _find(self, service: str) -> Pool | None:
        return self.by_name.get(service) or self._coming.get(service)

    def forget_early(self) -> None:
        """Forget snapshots of services that are not in the configuration: it was given up that they come."""
        self._early.clear()

    def forget_absent(self) -> None:
        """Forget how services are weighed that are not in the configuration."""
        for name in self._weighed.keys() - self.by_name.keys():
            del self._weighed[name]

    # ---- another configuration ----

    async def prepare(self, config: schema.Config) -> dict[str, Pool]:
        """Return its pools: those that there are, and new ones with what was told of their services."""
        pools = {service.name: self.by_name.get(service.name) or _make(service) for service in config.service}
        self._coming = {name: pools[name] for name in pools.keys() - self.by_name.keys()}
        for name in self._coming.keys() & self._early.keys():
            await pools[name].publish(self._early[name])
        for name in self._coming.keys() & self._weighed.keys():
            self.weigh(name, *self._weighed[name])
        return pools

    async def rebuild(self, config: schema.Config) -> None:
        """Build the policies that are others than those built last, be that for one that was given up."""
        for service in config.service:
            built = self._balances.get(service.name)
            if built is not None and _policy_of(built) != _policy_of(service.balance):
                await self.by_name[service.name].rebuild(partial(make_policy, service.balance))
                self._balances[service.name] = service.balance

    def take(self, config: schema.Config, pools: dict[str, Pool]) -> None:
        """Put in force what was prepared."""
        self.by_name = pools
        self._balances = {service.name: service.balance for service in config.service}
        self._coming = {}
        self._early = {name: one for name, one in self._early.items() if name not in pools}

    def give_up(self) -> None:
        """Let go of the new pools; policies that were rebuilt stay so. Idempotent."""
        self._coming = {}


def _policy_of(balance: schema.Balance) -> object:
    """What a policy is made from: without what listeners, judges and placements go by."""
    return balance.model_dump(exclude={"key", "slow_start", "rebalance"})


def _make(service: schema.Service) -> Pool:
    return Pool(service.name, partial(make_policy, service.balance), Loads(time.monotonic))
