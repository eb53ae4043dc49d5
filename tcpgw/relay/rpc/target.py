"""An endpoint as the rpc plane uses it: its lanes, how much is under way there, and its limit."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from math import ceil
from typing import TYPE_CHECKING

from tcpgw.relay.outcomes import Kind
from tcpgw.relay.rpc.lane import Lane
from tcpgw.relay.rpc.turn import HomeTurn

if TYPE_CHECKING:
    from tcpgw.endpoints import Endpoint
    from tcpgw.relay.rpc.channel import Channel
    from tcpgw.relay.rpc.plane import RpcPlane
    from tcpgw.relay.rpc.service import RpcService


class Target:
    """Made when an endpoint comes into the snapshot; `retired` when it leaves, and closed when it is idle."""

    def __init__(self, endpoint: Endpoint, service: RpcService) -> None:
        self.endpoint = endpoint
        self.load = service.pool.loads.of(endpoint)
        self.outcome = service.outcomes[endpoint]
        self.retired_at: float | None = None
        self.pool = service.pool
        self._turns: dict[RpcPlane, HomeTurn] = {}
        self._bulk_first = False
        self._unreachable = False
        self._service = service
        settings = service.settings
        self.limit = settings.max_inflight
        self.main = Lane(self, service, settings.connections, exclusive=settings.exclusive)
        # An exclusive connection makes nobody wait behind anybody.
        bulk = bool(settings.bulk) and not settings.exclusive
        self.bulk = Lane(self, service, 1, exclusive=False, bulk=True) if bulk else None

    @property
    def lanes(self) -> Iterator[Lane]:
        yield self.main
        if self.bulk:
            yield self.bulk

    @property
    def channels(self) -> Iterator[Channel]:
        for lane in self.lanes:
            yield from lane.channels

    @property
    def room(self) -> int:
        """How many more requests it may have under way."""
        return self.limit - self.load.inflight

    def allowed(self, share: float) -> int:
        """How many more requests it may have under way by its limit and its `share` of the load."""
        inflight = self.load.inflight
        room = self.limit - inflight
        if share >= 1.0:
            return room
        within = share * (self.pool.loads.total + 1) - inflight
        # As many as leave it within its share once they are all under way.
        return min(room, ceil(within / (1.0 - share))) if within > 0 else 0

    @property
    def helps(self) -> bool:
        """Whether it may be given what others have no room for.

        In slow start up to that share of its limit; in trial nothing, as chance alone says what it gets.
        """
        if self.retired_at is not None:
            return False
        share = self.pool.shares.get(self.endpoint)
        return share is None or (share.by_key and self.load.inflight < share.value * self.limit)

    def turn(self, plane: RpcPlane) -> HomeTurn:
        """What clients of this listener that belong here are to put their reads into.

        Another one in each epoch, and for each routing.
        """
        turn = self._turns.get(plane)
        if turn is None or turn.epoch != self.pool.epoch or turn.routing is not plane.routing:
            turn = self._turns[plane] = HomeTurn(plane, self, self.pool.epoch)
        return turn

    def forget(self, plane: RpcPlane) -> None:
        """Its clients come here no more. Idempotent."""
        self._turns.pop(plane, None)

    @property
    def alive(self) -> bool:
        return self.main.alive

    @property
    def hopeful(self) -> bool:
        """Not connected, but nothing speaks against it: new, or just lost and being connected again."""
        return not self.main.alive and not self.main.failed

    def lane(self, body: int, *, bulky: bool = False) -> Lane:
        """Where a request of `body` bytes goes. `bulky`: it is likely to be answered with much."""
        bulk = self.bulk
        if bulk is not None and bulk.channels and (bulky or body > self._service.settings.bulk):
            return bulk
        return self.main

    def begin(self, count: int) -> None:
        self.load.inflight += count
        self.outcome.picked += count
        self._service.pool.loads.total += count

    def end(self, count: int, seconds: float = 0.0) -> None:
        """`seconds` is how long one of them took, or 0 where that says nothing about the instance."""
        loads = self._service.pool.loads
        loads.end(self.endpoint, count)
        if seconds and self._service.observes:
            loads.observe(self.endpoint, seconds)
        if self._service.crowded:
            self._bulk_first = not self._bulk_first  # or the one would always find the room gone
            for lane in reversed([*self.lanes]) if self._bulk_first else self.lanes:
                lane.changed()

    def blame(self, kind: Kind, count: int = 1) -> None:
        """Count failures of the instance; not once it has left, when nobody judges it any more."""
        if self.retired_at is None:
            self._service.outcomes.fail(self.endpoint, kind, count)

    def unreachable(self) -> None:
        """A try to connect failed: the first one is a failure of the instance, until it is `reached` again.

        Nobody waits for the others, and no request goes where nothing is connected. They come so fast that
        one which restarts within half a second would be ejected for long after it is back.
        """
        if not self._unreachable:
            self._unreachable = True
            self.blame(Kind.CONNECT)

    def reached(self) -> None:
        """A connection stands. That is no success: a broken instance may still accept."""
        self._unreachable = False

    def retire(self, now: float) -> None:
        """Out of the snapshot: no new requests, and closed when those under way have finished."""
        self.retired_at = now
        self.pause()

    def pause(self) -> None:
        """Take no new requests until `revive`; those that wait go elsewhere, those under way may finish.

        Idempotent. Candidates do not name it while this holds: nothing else sends anything here.
        """
        for lane in self.lanes:
            lane.open = False
            self._service.reroute(lane.take_all())

    def revive(self) -> None:
        """Given requests again: back in the snapshot before it was closed, or usable again."""
        self.retired_at = None
        self.load = self._service.pool.loads.of(self.endpoint)
        self.outcome = self._service.outcomes[self.endpoint]
        for lane in self.lanes:
            lane.changed()

    async def close(self) -> None:
        await asyncio.gather(*(lane.close() for lane in self.lanes))
