"""A client's connection on the rpc plane: requests out of what it sends, answers into what it reads.

States: open → ending (it sent FIN, or is drained: what is under way is answered) → gone (answers go nowhere,
and what it still sends is thrown away). Who breaks the protocol is told so and gone. Before a connection is
closed both sides have sent FIN, or had time to.

What it sends may lie in a `turn` first, which counts it as a request until it is seen to be none.

A client is not read while it is `full`: it has `max_inflight` requests unanswered, or does not read its
answers, or waits for memory for a large frame. So what it can make the gateway hold is bounded, and only it
waits. An instance is never kept waiting for a client: one whose unread answers grow beyond its share of
`rpc_memory` is cut off.

Without counting what is in `Memory`, a client takes at most `buffer` bytes of answers and one read of
requests (256 KiB in uvloop).

Longer than other files, because reading, answering and ending each go by what the other two have come to: in
halves they would ask each other with every read and every answer, which is what costs most here.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, cast

from tcpgw.errors import Code, FrameTooLargeError, ProtocolError
from tcpgw.relay.reasons import Reason
from tcpgw.relay.rpc.intake import LOOK, Intake
from tcpgw.relay.rpc.slow_reader import SlowReader, delivered
from tcpgw.relay.rpc.traced import TracedIntake
from tcpgw.relay.sockets import drop
from tcpgw.wire.codec import Piece

if TYPE_CHECKING:
    from tcpgw.endpoints import Endpoint
    from tcpgw.relay.rpc.lane import Lane
    from tcpgw.relay.rpc.plane import RpcPlane
    from tcpgw.relay.rpc.routing import Rule
    from tcpgw.relay.rpc.turn import Turn
    from tcpgw.relay.session import Connection, OnEnd

# Seconds from our FIN that a client has to read, and to stop sending.
_LINGER = 2.0
# Seconds of a drain after which a client that never pauses is not read any more.
_LAST_CALL = 5.0


class RpcSession(asyncio.Protocol):
    """See `relay.session.Session`. Its plane makes it; `on_end` hears of its end, once."""

    __slots__ = (
        "_after", "_drained_at", "_early", "_ending", "_error", "_intake", "_lanes", "_last", "_loop",
        "_most", "_on_end", "_paused", "_plane", "_quiet_since", "_reason", "_resuming", "_seen",
        "_slow", "_told", "_transport", "_unlike", "_write", "answered", "bulky", "client", "draining",
        "ended", "errors", "gone", "home", "lost_notifications", "notifications", "orphaned",
        "received", "requests", "sent", "service", "turn", "waiting",
    )  # fmt: skip

    def __init__(self, plane: RpcPlane, connection: Connection, early: bytes, on_end: OnEnd) -> None:
        self.received = 0  # bytes
        self.sent = 0  # bytes
        self.requests = 0
        self.answered = 0
        self.notifications = 0
        self.waiting = 0  # notifications that were not sent yet
        self.errors: Counter[Code] = Counter()  # answers in an instance's stead
        self.orphaned = 0  # answers that came when it was gone
        self.lost_notifications = 0
        self.bulky = False  # its answers are large lately: they come by the bulk lane
        self.ended = False  # it sent FIN
        self.draining = False
        self._drained_at = 0.0
        self._ending = Reason.DRAINED  # what a drain is for
        self.gone = False  # or about to be: nothing is sent to it any more
        self._unlike = False  # gone, or it speaks without lengths: answers need a closer look
        self.home = plane.routing.home(connection)
        self.service, _ = self.home
        self.client = connection
        self._plane = plane
        self._on_end = on_end
        self._early = early  # read before its transport was made
        self._loop = plane.loop
        self._most = plane.settings.max_inflight
        trace = connection.trace
        self._intake = Intake(plane, self) if trace is None else TracedIntake(plane, self, trace)
        self._transport: asyncio.Transport | None = None
        self._write: Callable[[bytes], object] = _nothing
        self.turn: Turn | None = None  # the intake's, while its reads may go by it
        self._lanes: set[Lane] = set()  # where something of it has waited
        self._after = False  # something is to be looked at after an answer
        self._last = False  # nothing more is read of it: it is being drained and never pauses
        self._paused = False
        self._resuming = False
        self._told: list[bytes] = []  # errors of this turn
        self._slow: SlowReader | None = None  # while its transport is full
        self._quiet_since = connection.opened
        self._seen = 0  # bytes both ways, when last looked at
        self._reason: Reason | None = None
        self._error = ""

    # ---- the client's transport ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=self._plane.settings.buffer)
        self._write = self._transport.write
        if self._early:
            self.received += len(self._early)
            self._read(self._early)
            # uvloop starts to read after this, whatever it was told here.
            self._loop.call_soon(self._pause_again)

    def _pause_again(self) -> None:
        if self._paused and self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        size = len(data)
        self.received += size
        turn = self.turn
        if turn is None or size > turn.small or self.requests - self.answered >= self._most:
            self._read(data)
            return
        reads = turn.reads
        if not reads:
            turn.begin()
        elif self in reads:
            self._read(data)
            return
        self.requests += 1
        reads[self] = data

    def settle_turn(self) -> None:
        """Have what lies in a turn passed on now."""
        turn = self._intake.turn
        if turn is not None and self in turn.reads:
            turn.run()

    def changed(self) -> None:
        """Its plane has other settings or another routing. After `settle_turn`, not within a read."""
        settings = self._plane.settings
        self.home = self._plane.routing.home(self.client)
        self.service, _ = self.home
        self._most = settings.max_inflight
        self.turn = None
        if self.gone:
            return
        self._intake.changed()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.set_write_buffer_limits(high=settings.buffer)
            if self._after:
                self._look()  # it may be full no more

    def taken_back(self, data: bytes, *, looked: bool = False) -> None:
        """What was read was not passed on by its turn, and did not count.

        `looked`: as a request it was looked at for its key, and finds no room.
        """
        self.requests -= 1
        self._intake.looked = looked
        try:
            self._read(data)
        finally:
            self._intake.looked = False
        if self._after:  # it may have ended meanwhile, with this under way as far as could be seen
            self._look()

    def _read(self, data: bytes) -> None:
        """Look at what was read for itself, and at whether the next may go by the turn."""
        intake = self._intake
        if intake.turn is not None and self in intake.turn.reads:
            intake.turn.run()
        if self.gone:
            return
        before, handled = self.requests, intake.handled
        try:
            intake.read(data)
        except ProtocolError as exc:
            self._refuse(exc)
        # Who sends many at a time, parts of them, or such as need a closer look, does so again.
        alone = self.requests - before == 1 and intake.handled == handled and not intake.partial
        held_up = intake.full or self.bulky or self.waiting
        self._unlike = intake.bare or self.gone
        self.turn = intake.turn if alone and not held_up else None

    def eof_received(self) -> bool:
        self.ended = self._after = True
        self._look()
        return not self.gone  # what it asked is still answered

    def pause_writing(self) -> None:
        self._after = True
        if self._transport is not None:
            self._slow = SlowReader(self, self._plane, self._transport)
        self.fill()

    def resume_writing(self) -> None:
        self._slow = None
        self._plane.memory.owe(self, 0)
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = self._slow = None
        self._plane.left(self)
        self._leave()
        fin = Reason.CLIENT_FIN if self.ended or exc is None else Reason.CLIENT_RESET
        self._on_end(self._reason or fin, self._error)
        self._intake.close()

    def _leave(self) -> None:
        """Nothing that it asked is wanted any more."""
        self.gone = self._unlike = self._after = True
        self.turn = None
        self._write = _nothing
        self._plane.memory.leave(self)
        self._intake.end()  # the rest of what it sent is not looked at
        lanes, self._lanes = self._lanes, set()
        for lane in lanes:
            for call in lane.queue.drop(self):
                lane.service.forget(call)
        for lane in lanes:
            lane.changed()  # with less that waits it may be open again

    def placed(self, method: bytes, head: bytes, rule: Rule) -> int:
        """The position of a request of this client's, whose method and what follows are its `head`."""
        plane = self._plane
        services = plane.routing.services
        if self.home[0] not in services or (rule.service is not None and rule.service not in services):
            return self.home[1]  # of a time before a change: no key is known for it any more
        return plane.routing.find(plane.answers, method, head[:LOOK], rule, self.home, self.client)[1]

    def sends(self, seconds: float, rate: int) -> bool:
        """As `memory.Client.sends`."""
        return self._intake.full or self._intake.held >= seconds * rate

    def reads(self, now: float, rate: int) -> bool:
        """As `memory.Client.reads`."""
        return self._slow is None or self._slow.reads(now, rate)

    def granted(self) -> None:
        """As `memory.Client.granted`."""
        self._intake.reserved = True
        # Also while much of it is under way: it was not full when it asked.
        if not self._resuming and self._slow is None:
            self._resuming = True
            self._loop.call_soon(self._resume)

    def waits_in(self, lane: Lane) -> None:
        """Something of this client waits there: to be taken back when it goes."""
        self._lanes = {one for one in self._lanes if one.queue}  # the others are done with
        self._lanes.add(lane)

    # ---- answers ----

    def deliver(self, parts: list[Piece], count: int) -> None:
        """Give `count` answers: PARTS parts for each, or any number for a single one. `parts` is spent."""
        if self._unlike:
            if self.gone:
                self.orphaned += count
                return
            for place in range(0, 3 * count, 3):
                parts[place] = parts[place][4:]
        self.answered += count
        if type(parts[-1]) is bytes:
            data = b"".join(parts)
            self.sent += len(data)
            self._write(data)
            if self._after:
                self.bulky = False
                self._look()
        else:
            self._deliver_large(parts, count)

    def _deliver_large(self, parts: list[Piece], count: int) -> None:
        assert self._transport is not None  # noqa: S101
        size = sum(map(len, parts))
        self.sent += size
        self.bulky = 0 < self._plane.bulk <= size // count
        if self.bulky:
            self.turn = None
        self._after = self._after or self.bulky
        self._transport.writelines(parts)
        if self._after:
            self._look()

    def fail(self, token: bytes, code: Code, text: str, endpoint: Endpoint | None = None) -> None:
        """Answer in an instance's stead."""
        self.answered += 1
        if self.gone:
            return
        self.errors[code] += 1
        frame = self._plane.answers.error(token, code, text, str(endpoint) if endpoint else None)
        if not self._told:
            self._loop.call_soon(self._tell)
        self._told.append(frame[4:] if self._intake.bare else frame)
        if self._after:
            self._look()

    def _tell(self) -> None:
        """Write the errors of this turn, all at once: uvloop sends with each write."""
        if not self._told:
            return
        data = b"".join(self._told)
        self._told.clear()
        self.sent += len(data)
        self._write(data)

    def settle(self) -> None:
        """A notification waits no more."""
        self.waiting -= 1
        if self._after:
            self._look()

    # ---- full and not ----

    @property
    def service_name(self) -> str:
        return self.service.name

    @property
    def inflight(self) -> int:
        """Requests unanswered, and notifications that wait."""
        return self.requests - self.answered + self.waiting

    def fill(self) -> None:
        self._intake.full = self._after = True
        self.turn = None
        if not self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def give_way(self) -> None:
        """Let others have their turn: no limit of requests in flight bounds what is answered at once."""
        self.fill()
        if not self._resuming:
            self._resuming = True
            self._loop.call_soon(self._resume)

    def _look(self) -> None:
        """Something that `_after` stands for may be over."""
        if self.gone or self._transport is None:
            return
        if self._slow is not None and self._slow.overflows():
            return
        waits = self._slow is not None or 2 * self.inflight > self._most
        if self._intake.full and not self._resuming and not waits:
            # Not at once: whoever calls this may be in the middle of this client's own requests.
            self._resuming = True
            self._loop.call_soon(self._resume)
        if (self.ended or self.draining) and not self.inflight and (not self._intake.full or self._last):
            self._loop.call_soon(self._finish)  # for the same reason

    def _resume(self) -> None:
        self._resuming = False
        if self.gone or self._last or self._transport is None or self._slow is not None:
            return
        self._after = self.ended or self.draining or self.bulky
        try:
            self._intake.resume()
        except ProtocolError as exc:
            self._refuse(exc)
            return
        if not self._intake.full:
            if self._paused and not self._transport.is_closing():
                self._paused = False
                self._transport.resume_reading()
            self._look()

    def cut(self, why: str) -> None:
        """As `memory.Client.cut`."""
        self._error = why
        self._leave()
        self.abort(Reason.FRAME_TIMEOUT if self._slow is None else Reason.SLOW_READER, reset=True)

    # ---- ends ----

    def _refuse(self, exc: ProtocolError) -> None:
        """It broke the protocol: tell it, as far as that can be told, and hang up."""
        place = self.received - self._intake.held
        large = isinstance(exc, FrameTooLargeError)
        self._reason = Reason.FRAME_TOO_LARGE if large else Reason.PROTOCOL_ERROR
        self._error = f"at byte {place} of the connection: {exc}"
        answers = self._plane.answers
        code = Code.FRAME_TOO_LARGE if large else Code.BAD_FRAME
        frame = answers.error(answers.unknown(self._intake.start), code, self._error)
        self._told.append(frame[4:] if self._intake.bare else frame)
        self._tell()
        self._hang_up()
        if self._transport is not None:
            self._loop.call_later(_LINGER, self._transport.abort)

    def _finish(self) -> None:
        """End, if everything that came is answered. What is not whole by then never will be after FIN."""
        if self.gone or self.inflight or self._slow is not None or self._transport is None:
            return
        if self._intake.full and not self._last:
            return
        self._tell()
        if self.ended and self._intake.held and not self._last:
            self._refuse(ProtocolError("FIN within a frame"))
        elif self.ended:
            self._transport.close()
        elif not self._intake.held or self._last:
            self._reason = self._reason or self._ending
            self._hang_up()
            self._loop.call_later(_LINGER, self._transport.close)

    def _hang_up(self) -> None:
        """Send FIN and read on: a close would answer what still comes with RST, which can overtake that."""
        self._leave()
        if self._transport is None or self._transport.is_closing():
            return
        if self.ended:
            self._transport.close()
            return
        self._transport.write_eof()
        if self._paused:
            self._paused = False
            self._transport.resume_reading()

    def abort(self, reason: Reason, *, reset: bool) -> None:
        self._reason = self._reason or reason
        if self._transport is not None:
            drop(self._transport, reset=reset or self._transport.get_write_buffer_size() > 0)

    def drain(self, reason: Reason = Reason.DRAINED) -> None:
        """End when everything that was asked is answered: at the boundary of a frame, both ways.

        A client that goes on asking is not read any more after a while: what it asks then was never taken.
        """
        if not self.draining:
            self._drained_at, self._ending = monotonic(), reason
        self.draining = self._after = True
        self._look()

    @property
    def over(self) -> bool:
        return self.gone

    def look(self, now: float) -> None:
        if now - self._drained_at >= _LAST_CALL and not self._last:
            self._stop_reading()

    def _stop_reading(self) -> None:
        if not self.gone and self._transport is not None:
            self._last = True
            self.fill()
            self._look()

    def tend(self, now: float) -> None:
        settings = self._plane.settings
        transport = self._transport
        moved = self.received + (delivered(self.sent, transport) if transport is not None else self.sent)
        if moved != self._seen or self.inflight:
            self._seen, self._quiet_since = moved, now
        quiet = now - self._quiet_since
        if self.ended and quiet >= settings.fin_timeout:
            self.abort(Reason.FIN_TIMEOUT, reset=True)
        elif quiet >= settings.idle_timeout:
            self.abort(Reason.IDLE_TIMEOUT, reset=False)
        if self.gone:
            return  # it has the time to read why
        if self._intake.too_long(now):
            self.abort(Reason.FRAME_TIMEOUT, reset=True)
        elif self._slow is not None:
            self._slow.tend(now)

    def idle_seconds(self, now: float) -> float:
        return now - self._quiet_since

    def owed(self, now: float) -> tuple[int | None, float | None]:  # noqa: ARG002 - the interface's
        """Since when, its services know: see `Targets.unanswered`."""
        return self.inflight, None

    def facts(self) -> dict[str, object]:
        """How many requests, and how many of them were answered with which error of the gateway's."""
        facts: dict[str, object] = {"service": self.service.name, "requests": self.requests}
        if self.notifications:
            facts["notifications"] = self.notifications
        if self.errors:
            facts["errors"] = {code.value: count for code, count in self.errors.items()}
        return facts


def _nothing(_: bytes) -> None:
    """Where answers of a client go that is not there any more."""
