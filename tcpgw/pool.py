"""One service's endpoints as everything above sees them: the snapshot in force, and an order for each key."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from tcpgw.balancing.loads import Loads
from tcpgw.balancing.policy import Policy
from tcpgw.balancing.standing import Share, usable
from tcpgw.endpoints import Endpoint, Member, Snapshot

MakePolicy = Callable[[Mapping[Endpoint, float], Loads], Policy]


@dataclass(frozen=True, slots=True)
class _State:
    """`policy` is what `tables` comes to under `shares`, which are those of endpoints with a weight.

    Slots are read faster than the places of a named tuple: 4 of 120 ns of `home`.
    """

    snapshot: Snapshot
    policy: Policy
    tables: Policy
    weights: Mapping[Endpoint, int]
    shares: Mapping[Endpoint, Share]


class Pool:
    """Holds the snapshot and the policy built from it. Both change together, by one assignment."""

    def __init__(self, service: str, make_policy: MakePolicy, loads: Loads) -> None:
        self.service = service
        self.loads = loads
        self._make_policy = make_policy
        self._state: _State | None = None
        self._told: Mapping[Endpoint, Share] = {}  # by the last `weigh`
        self.epoch = 0
        """Another number after each published change of members, weights or shares, and after each `rebuild`.

        While it is the same, `home`, `share` and `spills` stay what they are: who keeps what they said asks
        again when the number differs.
        """
        self._subscribers: dict[object, Callable[[], None]] = {}
        self._one = asyncio.Lock()  # publish and rebuild would each build from what the other replaces

    @property
    def snapshot(self) -> Snapshot | None:
        return self._state.snapshot if self._state else None

    @property
    def members(self) -> tuple[Member, ...]:
        return self._state.snapshot.members if self._state else ()

    @property
    def shares(self) -> Mapping[Endpoint, Share]:
        """Of the endpoints that get less than their weight at present: below 1 each."""
        return self._state.shares if self._state else {}

    @property
    def tables(self) -> Policy | None:
        """The policy as if every endpoint got its whole weight: where keys belong while all is well.

        The same object until there are other weights or another policy. For `home` only: what has turns has
        them by the shares here too.
        """
        return self._state.tables if self._state else None

    @property
    def spills(self) -> bool:
        """As `Policy.spills`; False before the first snapshot."""
        return self._state.policy.spills if self._state else False

    def usable(self, endpoint: Endpoint) -> bool:
        """Whether it is given anything: it has a weight, and a share of it above 0."""
        if self._state is None or endpoint not in self._state.weights:
            return False
        share = self._state.shares.get(endpoint)
        return share is None or share.value > 0

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Have `callback` called each time that `epoch` has changed, with what is new in force.

        Returns what ends the subscription: idempotent, also from within a callback, and final. Callbacks run
        in the order of subscription, within what makes the change; one that raises is a bug, and fails that.
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
            if old and old.weights == snapshot.weights:
                self._put(snapshot, old.tables)
            else:
                self._put(snapshot, await self._build(self._make_policy, snapshot))
            if changed:
                self._tell()

    async def rebuild(self, make_policy: MakePolicy) -> None:
        """Put another policy in force, for the snapshot there is and all that come. Else as `publish`."""
        async with self._one:
            if self._state:
                snapshot = self._state.snapshot
                self._put(snapshot, await self._build(make_policy, snapshot))
            self._make_policy = make_policy
            self._tell()

    def weigh(self, shares: Mapping[Endpoint, Share]) -> None:
        """Put these shares of their weights in force, at once and in place of all before; no table is built.

        They hold for every snapshot and policy to come. Who is not in `shares`, or at 1 or above, has its
        whole weight; of endpoints without a weight it says nothing until they have one.
        """
        self._told = {
            endpoint: share._replace(value=max(0.0, share.value))
            for endpoint, share in shares.items()
            if share.value < 1
        }
        old = self._state
        if old and old.shares != self._of(old.weights):
            self._put(old.snapshot, old.tables)
            self._tell()

    async def _build(self, make_policy: MakePolicy, snapshot: Snapshot) -> Policy:
        return await asyncio.to_thread(make_policy, snapshot.weights, self.loads)

    def _of(self, weights: Mapping[Endpoint, int]) -> Mapping[Endpoint, Share]:
        return {endpoint: share for endpoint, share in self._told.items() if endpoint in weights}

    def _put(self, snapshot: Snapshot, tables: Policy) -> None:
        weights = snapshot.weights
        shares = self._of(weights)
        self._state = _State(snapshot, tables.under(shares), tables, weights, shares)
        # What drains at weight 0, or hangs where nothing is sent any more, must not lift the others' caps.
        self.loads.retain(usable(weights, shares))

    def _tell(self) -> None:
        self.epoch += 1
        for subscription, callback in list(self._subscribers.items()):
            if subscription in self._subscribers:  # another callback may just have ended it
                callback()

    def candidates(self, position: int) -> Iterator[Endpoint]:
        """Endpoints for a key, best first, each at most once; none before the first snapshot."""
        return self._state.policy.candidates(position) if self._state else iter(())

    def home(self, position: int) -> Endpoint | None:
        """As `Policy.home`; None before the first snapshot."""
        return self._state.policy.home(position) if self._state else None

    def share(self, endpoint: Endpoint) -> float:
        """As `Policy.share`, of an endpoint of this epoch; 0 before the first snapshot."""
        return self._state.policy.share(endpoint) if self._state else 0.0
