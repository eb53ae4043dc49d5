"""One service's endpoints as everything above sees them: the snapshot in force, and an order for each key."""

import asyncio
import functools
from collections.abc import Callable, Iterator, Mapping

from tcpgw.balancing.loads import Loads
from tcpgw.balancing.policy import Policy
from tcpgw.endpoints import Endpoint, Member, Snapshot

MakePolicy = Callable[[Mapping[Endpoint, float], Loads], Policy]


class Pool:
    """Holds the snapshot and the policy built from it. Both change together, by one assignment."""

    def __init__(self, service: str, make_policy: MakePolicy, loads: Loads) -> None:
        self.service = service
        self.loads = loads
        self._make_policy = make_policy
        self._state: tuple[Snapshot, Policy] | None = None

    @property
    def snapshot(self) -> Snapshot | None:
        return self._state[0] if self._state else None

    @property
    def members(self) -> tuple[Member, ...]:
        return self._state[0].members if self._state else ()

    async def publish(self, snapshot: Snapshot) -> None:
        """Put a snapshot in force. Its tables are built in a thread; until they stand, the last one serves.

        Cancelled, it changes nothing. Called by one owner, never concurrently.
        """
        old = self._state
        if old and old[0].weights == snapshot.weights:
            self._state = (snapshot, old[1])
        else:
            build = functools.partial(self._make_policy, snapshot.weights, self.loads)
            self._state = (snapshot, await asyncio.to_thread(build))
        # What drains at weight 0 must not lift the others' caps.
        self.loads.retain(snapshot.weights)

    def candidates(self, position: int) -> Iterator[Endpoint]:
        """Endpoints for a key, best first, each at most once; none before the first snapshot."""
        return self._state[1].candidates(position) if self._state else iter(())
