"""One service's endpoints as everything above sees them: the snapshot in force, and an order for each key."""

import asyncio
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
        self.epoch = 0
        """Another number after each published change of members or weights, and after each `rebuild`.

        While it is the same, `home`, `share` and `spills` stay what they are: who keeps what they said asks
        again when the number differs.
        """
        self._subscribers: dict[object, Callable[[], None]] = {}
        self._one = asyncio.Lock()  # publish and rebuild would each build from what the other replaces

    @property
    def snapshot(self) -> Snapshot | None:
        return self._state[0] if self._state else None

    @property
    def members(self) -> tuple[Member, ...]:
        return self._state[0].members if self._state else ()

    @property
    def spills(self) -> bool:
        """As `Policy.spills`; False before the first snapshot."""
        return self._state[1].spills if self._state else False

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Have `callback` called each time that `epoch` has changed, with what is new in force.

        Returns what ends the subscription: idempotent, also from within a callback, and final. Callbacks run
        in the order of subscription, within `publish` or `rebuild`; one that raises is a bug, and fails that.
        """
        subscription = object()
        self._subscribers[subscription] = callback

        def unsubscribe() -> None:
            self._subscribers.pop(subscription, None)

        return unsubscribe

    async def publish(self, snapshot: Snapshot) -> None:
        """Put a snapshot in force. Its tables are built in a thread; until they stand, the last one serves.

        Cancelled, it changes nothing. Of several the last one called is in force at the end.
        """
        async with self._one:
            changed = self.members != snapshot.members
            old = self._state
            if old and old[0].weights == snapshot.weights:
                self._state = (snapshot, old[1])
            else:
                self._state = (snapshot, await self._build(self._make_policy, snapshot))
            # What drains at weight 0 must not lift the others' caps.
            self.loads.retain(snapshot.weights)
            if changed:
                self._tell()

    async def rebuild(self, make_policy: MakePolicy) -> None:
        """Put another policy in force, for the snapshot there is and all that come. Else as `publish`."""
        async with self._one:
            if self._state:
                snapshot = self._state[0]
                self._state = (snapshot, await self._build(make_policy, snapshot))
            self._make_policy = make_policy
            self._tell()

    async def _build(self, make_policy: MakePolicy, snapshot: Snapshot) -> Policy:
        return await asyncio.to_thread(make_policy, snapshot.weights, self.loads)

    def _tell(self) -> None:
        self.epoch += 1
        for subscription, callback in list(self._subscribers.items()):
            if subscription in self._subscribers:  # another callback may just have ended it
                callback()

    def candidates(self, position: int) -> Iterator[Endpoint]:
        """Endpoints for a key, best first, each at most once; none before the first snapshot."""
        return self._state[1].candidates(position) if self._state else iter(())

    def home(self, position: int) -> Endpoint | None:
        """As `Policy.home`; None before the first snapshot."""
        return self._state[1].home(position) if self._state else None

    def share(self, endpoint: Endpoint) -> float:
        """As `Policy.share`, of an endpoint of this epoch; 0 before the first snapshot."""
        return self._state[1].share(endpoint) if self._state else 0.0
