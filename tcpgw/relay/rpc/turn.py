"""What many clients sent in one turn of the loop, looked at together.

uvloop gives what each client sent for itself, and most of them send one small request at a time. Looked at
one by one, each pays for its limits, its target and that one's connection, about as much as for everything
else that becomes of it. Here all of them pay once, and whatever is no whole ordinary request of its own, or
finds no room, goes back to its session.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from time import monotonic
from typing import TYPE_CHECKING

from tcpgw.relay.rpc.call import Batch

if TYPE_CHECKING:
    from tcpgw.relay.rpc.channel import Channel
    from tcpgw.relay.rpc.plane import RpcPlane
    from tcpgw.relay.rpc.routing import Rule
    from tcpgw.relay.rpc.session import RpcSession
    from tcpgw.relay.rpc.target import Target
    from tcpgw.wire.codec import Glance

# Bytes of a read from which on its session takes it: smaller ones need no account of their bytes, because
# they are bounded by how many clients there are.
_SMALL = 4096

_Reads = dict["RpcSession", bytes]
# By rule, place and bytes: so that requests that say the same are reckoned once, and timed out together.
_Told = dict[tuple["Rule", int, bytes], tuple[Batch, bytes]]
_Read = tuple["RpcSession", bytes]


class Turn(ABC):
    """`reads` is what clients sent since the last run, once for each: who has more to give runs it first.

    Each read counts as one request of its session until it is `taken_back`.
    """

    __slots__ = ("_came", "_most", "_plane", "reads")

    def __init__(self, plane: RpcPlane) -> None:
        self.reads: _Reads = {}
        self._plane = plane
        self._most = min(_SMALL, 4 + plane.settings.max_frame)
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
        self._batches = _Batches(plane) if plane.routing.plain is None else None

    def _pass_on(self, reads: _Reads) -> None:
        channel = self._channel(len(reads))
        if channel is None:
            _take_back(reads.items())
            return
        channel.gather(self._came)
        batches, plain = self._batches, self._plane.routing.plain
        if batches is not None:
            batches.renew(channel.came)
        batch = channel.batch(plain) if plain is not None else None
        others = channel.mux.pass_reads(reads, self._most, batch, batches)
        self._target.begin(len(reads) - len(others))
        _take_back(others)
        channel.flush()

    def _channel(self, count: int) -> Channel | None:
        """The connection for so many requests; None where each must be looked at for itself."""
        if self.epoch != self._pool.epoch or not self._lane.open:
            return None
        if count > self._target.allowed(self._share):
            return None
        return self._lane.only or self._lane.channel()


class _Batches(dict[bytes, Batch | None]):
    """The batch of requests of a name, as encoded; None where each needs a closer look."""

    def __init__(self, plane: RpcPlane) -> None:
        super().__init__()
        self._plane = plane
        self._came = 0.0

    def renew(self, came: float) -> None:
        """Begin with the requests that were read then."""
        self.clear()
        self._came = came

    def __missing__(self, name: bytes) -> Batch | None:
        rule = self._plane.routing.ordinary(self._plane.answers, name)
        batch = self[name] = Batch(self._came, rule) if rule is not None else None
        return batch


class EachTurn(Turn):
    """Of clients whose requests have keys or deadlines of their own: each is looked at for these."""

    __slots__ = ()

    def _pass_on(self, reads: _Reads) -> None:
        glance = self._plane.answers.glance
        channels: dict[Channel, None] = {}
        told: _Told = {}
        others = []
        for read in reads.items():
            session, data = read
            seen = glance(data, 0) if len(data) <= self._most else None
            whole = seen is not None and seen[3] == len(data)
            channel = self._send(session, data, seen, told) if seen and whole else None
            if channel is None:
                others.append(read)
            else:
                channels[channel] = None
        _take_back(others)
        for channel in channels:
            channel.flush()

    def take(self, session: RpcSession, data: bytes, pos: int, room: int) -> tuple[int, int]:
        """Send ordinary requests from `pos` on, `room` at most: returns where they end, and how many."""
        glance = self._plane.answers.glance
        self._came = monotonic()  # what was read before, in the same turn, came no later
        told: _Told = {}
        count = 0
        while count < room and (seen := glance(data, pos)) and seen[3] - pos <= self._most:
            channel = self._send(session, data, seen, told, later=True)
            if channel is None:
                break
            channel.put(seen[3] - pos)
            pos = seen[3]
            count += 1
        return pos, count

    def _send(
        self, session: RpcSession, data: bytes, seen: Glance, told: _Told, *, later: bool = False
    ) -> Channel | None:
        """Send what was `seen`, if that can be done now and needs no Call; returns by which connection.

        That is flushed `later`, or by the caller. `told`: what became of the deadlines in this turn.
        """
        codec, routing = self._plane.answers, self._plane.routing
        token, name, rest, end = seen
        rule = routing.ordinary(codec, name)
        if rule is None:
            return None
        method, body = codec.method(name), data[rest:end]
        own: tuple[Batch, bytes] | None = None
        span = routing.deadline.find(codec, method, body) if routing.deadline is not None else None
        if span is not None:
            said = rule, span[0], body[span[0] : span[1]]
            own = told.get(said) or self._reduce(body, span, rule)
            if own is not None:
                told[said] = own
                if own[0].deadline <= self._came:
                    return None
        service, position = routing.find(codec, method, body, rule, session.home, session.client)
        target = service.choose(position)
        channel = target.main.only or target.main.channel() if target is not None else None
        if target is None or channel is None:
            return None
        (channel.schedule if later else channel.gather)(self._came)
        if span is None or own is None:
            channel.mux.enter(token, len(body), (body,), session, channel.batch(rule))
        else:
            batch, put = own
            pieces = body[: span[0]], put, body[span[1] :]
            channel.mux.enter(token, sum(map(len, pieces)), pieces, session, batch)
        target.begin(1)
        return channel

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


def _take_back(reads: Iterable[_Read]) -> None:
    for session, data in reads:
        session.taken_back(data)
