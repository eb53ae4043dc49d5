"""What a client sends, until it is somebody's: cut into messages, and each sent or given to a service.

What needs no closer look passes in runs, `take`, and by turns (turn.py), which send what is here no more than
counted. All else is read and gets a Call, `whole`.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING

from tcpgw.errors import Code, ProtocolError
from tcpgw.relay.rpc.call import Call
from tcpgw.wire.assembly import FrameAssembler, ObjectAssembler, Verdict, too_large
from tcpgw.wire.codec import LARGE, Kind, Message, Piece
from tcpgw.wire.msgpack_scan import MsgpackSplitter

if TYPE_CHECKING:
    from tcpgw.relay.rpc.plane import RpcPlane
    from tcpgw.relay.rpc.session import RpcSession
    from tcpgw.relay.rpc.target import Target
    from tcpgw.relay.rpc.turn import Turn

LOOK = LARGE // 2
"""Bytes of a request in which its fields are looked for: fewer than a large frame's first piece always has,
so that it does not depend on how the bytes came."""
# Messages that need a closer look in one turn of the loop: some milliseconds.
_MOST_HANDLED = 256
# Bytes from which a run is counted on its channel: smaller ones are bounded by how many clients there are.
_COUNTED = 4096
# The first bytes of a MessagePack-RPC message without a length: an array of 3 or 4. A length would be 2 GiB.
_BARE = frozenset(b"\x93\x94\xdc\xdd")


class Intake:
    """The Sink of its session's assembler, `full` with the session.

    `turn` is the one that its reads may go by, None where there is none. `reserved`: memory, for the large
    frame that is being read. `handled` counts messages that needed a closer look, since the last `resume`.
    `looked`: what is read now was looked at for its key already. `bare`: it comes without lengths.
    """

    __slots__ = (
        "_assembler", "_begun", "_by_name", "_epoch", "_most", "_plain", "_plane", "_pool", "_position",
        "_service", "_session", "_share", "_target", "bare", "full", "handled", "looked", "reserved",
        "start", "turn",
    )  # fmt: skip

    def __init__(self, plane: RpcPlane, session: RpcSession) -> None:
        self.full = False
        self.turn: Turn | None  # the plane's `each`, or that of the target
        self.reserved = False
        self.handled = 0
        self.looked = False
        self.bare = False
        self.start = b""  # of the first read
        self._begun: tuple[float, int] | None = None  # since when, and after how many messages, it is in one
        self._plane = plane
        self._session = session
        self._assembler: FrameAssembler | ObjectAssembler | None = None
        self.changed()

    def changed(self) -> None:
        """Take what the plane and the session's home say now. Nothing of the session lies in a turn."""
        plane, settings = self._plane, self._plane.settings
        self.turn = None if self.bare else plane.each
        self._service, self._position = self._session.home
        self._most = settings.max_inflight
        self._plain = plane.routing.plain
        self._by_name = plane.routing.by_name
        self._pool = self._service.pool
        self._epoch = -1  # of the pool, when _target was chosen
        self._target: Target | None = None  # where its key belongs, whatever the load
        self._share = 0.0  # of the load that it may have
        if isinstance(self._assembler, FrameAssembler):
            self._assembler.limit(settings.max_frame, plane.inner)
        elif self._assembler is not None:
            self._assembler.limit(settings.max_frame)

    @property
    def held(self) -> int:
        """Bytes that were read and are nobody's yet."""
        return self._assembler.held if self._assembler is not None else 0

    @property
    def partial(self) -> bool:
        """Whether a message has begun and not ended."""
        return self._assembler is not None and self._assembler.partial

    def too_long(self, now: float) -> bool:
        """Whether the client has been within one frame for longer than `frame_timeout`, while it was read."""
        session = self._session
        done = session.requests + session.notifications
        if not self.held or self.full:
            self._begun = None
        elif self._begun is None or self._begun[1] != done:
            self._begun = (now, done)
        return self._begun is not None and now - self._begun[0] >= self._plane.settings.frame_timeout

    def read(self, data: bytes) -> None:
        """Look at what was read. Raises ProtocolError; `held` then tells where."""
        if self._assembler is None:
            self._assembler = self._begin(data)
        self._assembler.feed(data)

    def resume(self) -> None:
        """Go on, after `full`. Raises as `read`, and may be full again."""
        self.full = False
        self.handled = 0
        if self._assembler is not None:
            self._assembler.resume()

    def end(self) -> None:
        """Look at nothing more, and let go of what was read: the assembler holds this, and this it."""
        self.full = True
        self.reserved = False
        self.turn = self._target = self._assembler = None

    def close(self) -> None:
        """Let go of the session, which holds this; after `end`. A cycle would wait for the collector."""
        del self._session

    def _begin(self, data: bytes) -> FrameAssembler | ObjectAssembler:
        max_frame = self._plane.settings.max_frame
        self.start = data[:8]
        self.bare = self._plane.may_be_bare and data[0] in _BARE
        if self.bare:
            self.turn = None
            return ObjectAssembler(self, max_frame, MsgpackSplitter(max_frame))
        return FrameAssembler(self, max_frame, self._plane.inner)

    def take(self, data: bytes, pos: int) -> int:
        """As `Sink.take`: pass on in runs what needs no closer look."""
        session = self._session
        rule, name = self._plain, b""
        room = self._most - session.inflight
        if rule is None and not self._by_name:
            return self._take_each(data, pos, room)
        size = len(data)
        pool, loads = self._pool, self._pool.loads
        while pos < size and room > 0:
            if self._plain is None:
                name = self._plane.answers.name_at(data, pos)
                rule = self._plane.routing.ordinary(self._plane.answers, name)
            if rule is None:
                break
            target = self._target  # mostly it is still the right one, and can take more
            if (
                target is None
                or self._epoch != pool.epoch
                or not target.main.open
                or target.load.inflight >= self._share * (loads.total + 1)
                or session.bulky
            ):
                target = self._choose(data, pos)
                if target is None:
                    break
            load, lane = target.load, target.main
            limit = target.allowed(self._share) if self._target is target else 1  # each may go elsewhere
            if limit > room:  # noqa: PLR1730 - min() takes as long as all of this
                limit = room
            channel = lane.only or lane.channel()
            if limit <= 0 or channel is None:
                break
            if not channel.scheduled:
                channel.schedule(monotonic())
            begun = pos
            pos, count = channel.mux.pass_run(data, pos, limit, session, channel.batch(rule), name)
            if not count:
                break
            load.inflight += count
            target.outcome.picked += count
            loads.total += count
            session.requests += count
            room -= count
            if pos - begun > _COUNTED:
                channel.put(pos - begun)
        if room <= 0:
            session.fill()
        return pos

    def _take_each(self, data: bytes, pos: int, room: int) -> int:
        """As `take`, where requests of one client may go different ways."""
        session = self._session
        each = self._plane.each
        if each is None or session.bulky or self.looked:
            return pos
        pos, count = each.take(session, data, pos, room)
        session.requests += count
        if count >= room:
            session.fill()
        return pos

    def _choose(self, data: bytes, pos: int) -> Target | None:
        """Where the request at `pos` goes, if it is whole, can be sent now and needs no closer look."""
        session = self._session
        pool = self._pool
        if self._epoch != pool.epoch:
            self._epoch = pool.epoch
            home = pool.home(self._position)
            self._target = self._service.targets.get(home) if home else None
            turns = self._plane.turns and not self.bare
            self.turn = self._target.turn(self._plane) if self._target is not None and turns else None
            self._share = pool.share(home) if home else 0.0
        # To ask for what is not sent then would cost an endpoint its turn.
        whole = len(data) - pos > 4 and pos + 4 + int.from_bytes(data[pos : pos + 4], "big") <= len(data)
        if not whole or session.bulky or not self._plane.answers.name_at(data, pos):
            return None
        return self._service.choose(self._position)

    def whole(self, data: bytes, pos: int, end: int, tail: Sequence[Piece]) -> None:
        """As `Sink.whole`: one message, by its rule."""
        session = self._session
        memory = self._plane.memory
        held = memory.whole(session) if tail else 0
        self.reserved = False
        try:
            message = self._plane.codec(bare=self.bare).read(data, pos, end)
        except ProtocolError:
            memory.give(held)
            raise
        if message.kind == Kind.ANSWER:
            memory.give(held)
            raise ProtocolError("an answer, though nothing was asked of this client")
        call = self._call(message, data, end, tail)
        if held:
            call.held = min(held, call.body)
            memory.give(held - call.held)
        if message.kind == Kind.REQUEST:
            session.requests += 1
            call.rule.inflight += 1
        else:
            session.notifications += 1
            session.waiting += 1
        self._dispatch(call, data)
        self.handled += 1
        if session.inflight >= self._most:
            session.fill()
        elif self.handled >= _MOST_HANDLED:
            session.give_way()

    def _call(self, message: Message, data: bytes, end: int, tail: Sequence[Piece]) -> Call:
        session = self._session
        rule = self._plane.routing.rules.of(message.method)
        rest = message.rest
        # A view keeps all that was read with it, so it is for what is most of that.
        copy = end - rest < LARGE or 2 * (end - rest) < len(data)
        head: Piece = data[rest:end] if copy else memoryview(data)[rest:end]
        body = end - rest + sum(map(len, tail))
        now = monotonic()
        return Call(session, message, [head, *tail], body, rule, self._position, now, now + rule.timeout)

    def _dispatch(self, call: Call, data: bytes) -> None:
        session = self._session
        routing, rule, message = self._plane.routing, call.rule, call.message
        codec = self._plane.codec(bare=self.bare)
        head = self._head(call, data)
        service, call.position = routing.find(codec, message.method, head, rule, session.home, session.client)
        if rule.denied:
            service.fail(call, Code.DENIED, "this method is not allowed here")
            return
        if rule.limit is not None and rule.inflight > rule.limit:
            service.fail(call, Code.OVERLOADED, f"{rule.limit} requests of {rule.name} are under way already")
            return
        if routing.deadline is not None and (span := routing.deadline.find(codec, message.method, head)):
            left = codec.number(head, span)
            if left is not None:
                call.deadline = min(call.deadline, call.started + left / 1000)
                call.field = span
        if call.deadline <= call.started:
            service.fail(call, Code.DEADLINE_EXCEEDED, "its deadline had passed when it came")
            return
        if rule.idempotent and call.is_request:
            call.keep = call.held > 0 or self._plane.memory.keep(call.body)
            call.held = call.held or call.body * call.keep
        service.submit(call)

    def _head(self, call: Call, data: bytes) -> bytes:
        """Where its fields are looked for; nothing where none are."""
        rest = call.message.rest
        return data[rest : rest + min(call.body, LOOK)] if self._plane.routing.looks else b""

    def admit(self, data: bytes, pos: int, total: int) -> Verdict:  # noqa: ARG002 - whoever asks, has to wait
        """As `Sink.admit`."""
        session = self._session
        if self.reserved or self._plane.memory.begin(session, total):
            self.reserved = True
            return Verdict.KEEP
        session.fill()
        return Verdict.WAIT

    def oversized(self, data: bytes, pos: int, size: int) -> bool:  # noqa: ARG002
        """As `Sink.oversized`."""
        raise too_large(size, self._plane.settings.max_frame)
