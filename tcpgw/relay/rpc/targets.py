"""The endpoints of a service: those of its snapshot, and those that left it with requests under way.

States of one: in the snapshot, now and then `out` there (given nothing, its connections kept) → retired
(given nothing, until its requests have finished or had their time) → closed. Who is back in the snapshot
before it is closed goes on as the same Target.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from tcpgw.relay.rpc.target import Target

if TYPE_CHECKING:
    from tcpgw.endpoints import Endpoint
    from tcpgw.pool import Pool
    from tcpgw.relay.rpc.routing import Rule
    from tcpgw.relay.rpc.session import RpcSession

# Seconds that a retired endpoint's requests may take to finish.
_DRAIN = 30.0


class Targets(dict["Endpoint", Target]):
    """Those of the snapshot, by endpoint; `retired` are the others. Used in one running event loop.

    `drains` counts endpoints that left by what became of them, as the stages of `draining.Draining`, and
    `requests_cut` the requests that those had under way which were cut.
    """

    __slots__ = ("_closing", "_make", "_out", "_pool", "_stopped", "drains", "requests_cut", "retired")

    def __init__(self, pool: Pool, make: Callable[[Endpoint], Target]) -> None:
        super().__init__()
        self.retired: list[Target] = []
        self.drains = {"started": 0, "closed": 0, "reset": 0, "spared": 0}
        self.requests_cut = 0
        self._pool = pool
        self._make = make
        self._out: set[Endpoint] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._stopped = False

    def follow(self) -> None:
        """Take what the pool says now: who is in its snapshot, and who of them may be given something."""
        wanted = {member.endpoint for member in self._pool.members if member.weight > 0}
        now = time.monotonic()
        for endpoint in wanted - self.keys():  # first: what waits for those that leave goes there
            self[endpoint] = self._revive(endpoint) or self._make(endpoint)
        leaving = [self.pop(endpoint) for endpoint in self.keys() - wanted]
        back = self._out & self.keys()
        self._out = {endpoint for endpoint in self if not self._pool.usable(endpoint)}
        for endpoint in back - self._out:
            self[endpoint].revive()
        self.retired += leaving
        self.drains["started"] += len(leaving)
        for target in leaving:
            target.retire(now)
        for endpoint in self._out:  # their connections are kept: they may be back soon
            self[endpoint].pause()

    def _revive(self, endpoint: Endpoint) -> Target | None:
        for target in self.retired:
            if target.endpoint == endpoint:
                self.retired.remove(target)
                self.drains["spared"] += 1
                target.revive()
                return target
        return None

    def sweep(self, now: float) -> None:
        """Close those that left and are idle, or had their time. Call often."""
        for target in [*self.retired]:
            assert target.retired_at is not None  # noqa: S101
            if not target.load.inflight or now - target.retired_at >= _DRAIN:
                self.retired.remove(target)
                self.drains["reset" if target.load.inflight else "closed"] += 1
                task = asyncio.get_running_loop().create_task(target.close())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)

    def broke(self, target: Target, count: int) -> None:
        """A connection broke with so many requests: they were cut, if it was for the time they had taken."""
        if target.retired_at is not None and time.monotonic() - target.retired_at >= _DRAIN:
            self.requests_cut += count

    def stop(self) -> list[Target]:
        """Have nothing go anywhere any more. Returns all, with what waits there; `close` is to follow."""
        self._stopped = True
        self.retired += self.values()
        self.clear()
        return [*self.retired]

    async def close(self) -> None:
        """End every connection; nothing is left open."""
        await asyncio.gather(*(target.close() for target in self.retired), *self._closing)

    # ---- what there is ----

    @property
    def all(self) -> list[Target]:
        """Those of the snapshot, then those that left it."""
        return [*self.values(), *self.retired]

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is under way."""
        lanes = [lane for one in self.all for lane in one.lanes]
        channels = [channel for lane in lanes for channel in lane.channels]
        return not any(lane.queue for lane in lanes) and not any(
            channel.mux.pending or channel.mux.parts for channel in channels
        )

    def unanswered(self) -> Iterator[tuple[RpcSession, float]]:
        """Yield whose each request is that waits or is under way, and when it came (`time.monotonic()`).

        Of some 10,000 others may have come and gone before the last: this may be gone on with in later turns.
        """
        for target in self.all:
            for lane in target.lanes:
                for channel in list(lane.channels):
                    for client, _, batch in list(channel.mux.pending.values()):
                        yield client, batch.came if batch.call is None else batch.call.started
                for call in list(lane.queue):
                    yield call.client, call.started

    def under_way(self) -> Counter[Rule]:
        """Requests at instances, by their rule."""
        channels = [channel for one in self.all for channel in one.channels]
        return Counter(batch.rule for channel in channels for _, _, batch in channel.mux.pending.values())

    def nobody(self) -> str:
        """Why no endpoint takes a request."""
        if self._stopped:
            return "is being stopped"
        if not self:
            return "has no endpoint: discovery found none"
        if len(self._out) == len(self):
            return f"has {len(self._out)} endpoints, and health checks let none of them be used"
        target = next(iter(self.values()))
        why = target.main.failure or "lost just now"
        return f"reaches none of its {len(self)} endpoints ({target.endpoint}: {why})"
