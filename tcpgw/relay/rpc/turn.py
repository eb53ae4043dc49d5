"""What many clients sent in one turn of the loop, looked at together.

uvloop gives what each client sent for itself, and most of them send one small request at a time. Looked at
one by one, each pays for its limits, its target and that one's connection, about as much as for everything
else that becomes of it. Here all of them pay once, and whatever is no whole ordinary request of its own, or
finds no room, goes back to its session.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING

from tcpgw.relay.reasons import Reason
from tcpgw.relay.rpc.call import Batch

if TYPE_CHECKING:
    from tcpgw.relay.rpc.channel import Channel
    from tcpgw.relay.rpc.plane import RpcPlane
    from tcpgw.relay.rpc.routing import Rule
    from tcpgw.relay.rpc.session import RpcSession
    from tcpgw.relay.rpc.target import Target
    from tcpgw.wire.codec import Glance

_Reads = dict["RpcSession", bytes]
# By rule, place and bytes: so that requests that say the same are reckoned once, and timed out together.
_Reduced = dict[tuple["Rule", int, bytes], tuple[Batch, bytes]]
_Read = tuple["RpcSession", bytes]


class Turn(ABC):
    """Of one plane, and for as long as that has this `routing`.

    `reads` is what clients sent since the last run, once for each: who has more to give runs it first.

    Each is of `small` bytes at most, and counts as one request of its session until it is `taken_back`.
    """

    __slots__ = ("_came", "_plane", "reads", "routing", "small")

    def __init__(self, plane: RpcPlane) -> None:
        self.reads: _Reads = {}
        self.small = plane.small
        self.routing = plane.routing
        self._plane = plane
        self._came = 0.0

    def begin(self) -> None:
        """Have it run at the end of this turn of the loop."""
        self._came = monotonic()
        self._plane.loop.call_soon(self.run)

    def run(self) -> None:
        """Pass everything on. Idempotent."""
        reads, self.reads = self.reads, {}
        if reads:
            self._pass_on(reads)

    def _take_back(self, reads: Iterable[_Read], *, looked: bool = False) -> None:
        for session, data in reads:
            try:
                session.taken_back(data, looked=looked)
            except Exception as exc:  # noqa: BLE001 - a bug, which must not be those clients' behind it
                context = {"message": "a client's read failed", "exception": exc, "protocol": session}
                self._plane.loop.call_exception_handler(context)
                session.abort(Reason.INTERNAL, reset=True)

    @abstractmethod
    def _pass_on(self, reads: _Reads) -> None:
        """Have each read sent, or taken back."""


class HomeTurn(Turn):
    """Of clients whose requests all belong to one target, in one epoch of its pool."""

    __slots__ = ("_batches", "_lane", "_pool", "_share", "_target", "epoch")

    def __init__(self, plane: RpcPlane, target: Target, epoch: int) -> None:
        super().__init__(plane)
        self.epoch = epoch
        self._target = target
        self._lane = target.main
        self._pool = target.pool
        self._share = self._pool.share(target.endpoint)
        self._batches = _Batches(plane) if self.routing.plain is None else None

    def _pass_on(self, reads: _Reads) -> None:
        room = self._room()
        channel = self._lane.only or self._lane.channel() if room > 0 else None
        if channel is None:
            self._take_back(reads.items())
            return
        others: list[_Read] = []
        if room < len(reads):
            items = iter(reads.items())
            reads = dict(islice(items, room))
            others = list(items)
        channel.gather(self._came)
        try:
            others = self._send(reads, channel) + others
            self._take_back(others)
        finally:
            channel.flush()

    def _room(self) -> int:
        """For how many requests there is room; 0 where each must be looked at for itself."""
        if self.epoch != self._pool.epoch or not self._lane.open:
            return 0
        return self._target.allowed(self._share)

    def _send(self, reads: _Reads, channel: Channel) -> list[_Read]:
        """Send what is one ordinary request each; returns the others."""
        batches, plain = self._batches, self.routing.plain
        if batches is not None:
            batches.renew(channel.came)
        batch = channel.batch(plain) if plain is not None else None
        others = channel.mux.pass_reads(reads, self.small, batch, batches)
        self._target.begin(len(reads) - len(others))
        return others


class _Batches(dict[bytes, Batch | None]):
    """The batch of requests of a name, as encoded; None where each needs a closer look."""

    def __init__(self, plane: RpcPlane) -> None:
        super().__init__()
        self._codec = plane.answers
        self._routing = plane.routing
        self._came = 0.0

    def renew(self, came: float) -> None:
        """Begin with the requests that were read then."""
        self.clear()
        self._came = came

    def __missing__(self, name: bytes) -> Batch | None:
        rule = self._routing.ordinary(self._codec, name)
        batch = self[name] = Batch(self._came, rule) if rule is not None else None
        return batch


class EachTurn(Turn):
    """Of clients whose requests have keys or deadlines of their own: each is looked at for these."""

    __slots__ = ()

    def _pass_on(self, reads: _Reads) -> None:
        glance = self._plane.answers.glance
        channels: dict[Channel, None] = {}
        reduced: _Reduced = {}
        others, crowded = [], []
        try:
            for read in reads.items():
                session, data = read
                seen = glance(data, 0)
                if seen is None or seen[-1] != len(data):
                    others.append(read)
                elif not self._send(session, data, seen, reduced, channels):
                    crowded.append(read)
            self._take_back(others)
            self._take_back(crowded, looked=True)
        finally:
            for channel in channels:
                channel.flush()

    def take(self, session: RpcSession, data: bytes, pos: int, room: int) -> tuple[int, int]:
        """Send ordinary requests from `pos` on, `room` at most: returns where they end, and how many."""
        glance, small = self._plane.answers.glance, self.small
        self._came = monotonic()  # what was read before, in the same turn, came no later
        reduced: _Reduced = {}
        count = 0
        while count < room and (seen := glance(data, pos)) is not None:
            *_, end = seen
            if end - pos > small:
                break
            if not self._send(session, data, seen, reduced):
                break
            pos = end
            count += 1
        return pos, count

    def _send(
        self,
        session: RpcSession,
        data: bytes,
        seen: Glance,
        reduced: _Reduced,
        channels: dict[Channel, None] | None = None,
    ) -> bool:
        """Send what was `seen`, if that can be done now and needs no Call.

        `reduced`: what became of the deadlines of those before it. `channels`: which the caller will flush;
        without these that is done at the end of this turn of the loop.
        """
        codec, routing = self._plane.answers, self.routing
        token, name, rest, end = seen
        rule = routing.ordinary(codec, name)
        if rule is None:
            return False
        method, body = codec.method(name), data[rest:end]
        own: tuple[Batch, bytes] | None = None
        span = routing.deadline.find(codec, method, body) if routing.deadline is not None else None
        if span is not None:
            said = rule, span[0], body[span[0] : span[1]]
            own = reduced.get(said) or self._reduce(body, span, rule)
            if own is not None:
                reduced[said] = own
                if own[0].deadline <= self._came:
                    return False
        service, position = routing.find(codec, method, body, rule, session.home, session.client)
        target = service.choose(position)
        channel = target.main.only or target.main.channel() if target is not None else None
        if target is None or channel is None:
            return False
        if channels is not None:
            channels[channel] = None
            channel.gather(self._came)
        else:
            channel.schedule(self._came)
            channel.put(end - rest)
        if span is None or own is None:
            channel.mux.enter(token, len(body), (body,), session, channel.batch(rule))
        else:
            batch, put = own
            pieces = body[: span[0]], put, body[span[1] :]
            channel.mux.enter(token, sum(map(len, pieces)), pieces, session, batch)
        target.begin(1)
        return True

    def _reduce(self, body: bytes, span: tuple[int, int], rule: Rule) -> tuple[Batch, bytes] | None:
        """What requests with this deadline share, and what says it now; None where it is no number."""
        codec = self._plane.answers
        left = codec.number(body, span)
        if left is None:
            return None
        batch = Batch(self._came, rule)
        batch.deadline = min(batch.deadline, self._came + left / 1000)
        put = codec.put_number(body, span, max(0.0, batch.deadline - monotonic()) * 1000)
        batch.field = span[0], span[0] + len(put)
        return batch, put
