"""A connection to an instance: the requests of a turn of the loop go out in one write, answers in runs.

uvloop sends with each `write`, so writing every request for itself would cost a system call each: nine times
the CPU where clients pipeline. The first request of a turn asks for a flush at the turn's end.
"""

from __future__ import annotations

import asyncio
import socket
from time import monotonic
from typing import TYPE_CHECKING, cast

from tcpgw.errors import ProtocolError
from tcpgw.relay.outcomes import Kind
from tcpgw.relay.rpc.call import Batch
from tcpgw.relay.rpc.request_lines import Asked
from tcpgw.relay.rpc.routing import Rule
from tcpgw.relay.sockets import set_options
from tcpgw.wire.codec import PARTS, Run

if TYPE_CHECKING:
    from tcpgw.relay.rpc.lane import Lane
    from tcpgw.wire.mux import Mux

# Bytes in user space above which requests wait in the lane's queue, where turns are fair and retries safe.
_HIGH_WATER = 256 * 1024
# Seconds of silence before TCP probes: idle connections must outlive the 350 s of common NAT paths.
_KEEPALIVE = 60.0
# Bytes of a piece, on average, from which the kernel gathers them (writev) instead of a copy here.
_GATHER = 4096
# Pieces above which joining is cheaper all the same (IOV_MAX is 1024).
_MOST_PIECES = 64
# Seconds in which an instance reads nothing, though nobody waits for it any more, before it is cut off: what
# it was sent holds memory.
_STUCK = 5.0
# Requests of its own that an instance may send while it reads nothing: the refusals of them pile up here.
_MOST_REFUSALS = 1024


_NONE = Batch(0.0, Rule("", timeout=0.0))


class Channel(asyncio.Protocol):
    """Open from `connection_made` to `connection_lost`; `lost` is set from then on."""

    __slots__ = (
        "_batch", "_held", "_loop", "_memory", "_refused", "_stuck", "_transport", "_unsent", "came",
        "fault", "given_up", "lane", "lost", "mux", "open", "paused", "scheduled", "why",
    )  # fmt: skip

    def __init__(self, lane: Lane, mux: Mux, loop: asyncio.AbstractEventLoop) -> None:
        self.mux = mux
        self.open = False
        self.paused = False  # the instance does not read as fast as requests come
        self.scheduled = False
        self.came = 0.0  # when the requests that are sent together were read, to the accuracy of a turn
        self.lost = asyncio.Event()
        self.given_up = False  # ended for what it was busy with, not for a fault
        self.why = ""
        # What its end says against the instance; a RESET only where it was asked something. None: nothing.
        self.fault: Kind | None = Kind.RESET
        self.lane = lane
        self._batch = _NONE
        self._loop = loop
        self._memory = lane.service.memory
        self._held = 0  # bytes reserved for what was sent, and may be in the transport's buffer
        self._unsent = 0  # bytes given to the mux in this turn, without small runs
        self._stuck = (0.0, 0)  # since when so many bytes wait to be written
        self._refused = 0  # of the instance's requests, when it stopped reading
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_HIGH_WATER)
        sock: socket.socket | None = transport.get_extra_info("socket")
        if sock is not None:
            set_options(sock, _KEEPALIVE)
        self.open = True

    def schedule(self, came: float) -> None:
        """Send what the mux is given in this turn of the loop, at its end. It was read then. Idempotent."""
        if not self.scheduled:
            self.gather(came)
            self._loop.call_soon(self.flush)

    def gather(self, came: float) -> None:
        """As `schedule`, for who calls `flush` itself in this turn."""
        if not self.scheduled:
            self.scheduled = True
            self.came = came

    def batch(self, rule: Rule) -> Batch:
        """What the requests of this turn with this rule have in common; after `schedule`."""
        batch = self._batch
        if batch.rule is not rule or batch.came != self.came:
            batch = self._batch = Batch(self.came, rule)
        return batch

    def flush(self) -> None:
        """Give the transport all that the mux has been given. Idempotent."""
        self.scheduled = False
        self._unsent = 0
        mux = self.mux
        if not mux.parts or not self.open or self._transport.is_closing():
            return  # what is in the mux was not sent, and connection_lost will find it there
        parts = mux.flush()
        if len(parts) <= _MOST_PIECES and sum(map(len, parts)) > _GATHER * len(parts):
            self._transport.writelines(parts)
        else:
            self._transport.write(b"".join(parts))
        self._release()

    def put(self, size: int, held: int = 0) -> None:
        """Count what the mux was given, and send where that is much: then we know whether more may come.

        `held` is what is reserved for it, from now on until it is written.
        """
        self._held += held
        self._unsent += size
        if self._unsent > _HIGH_WATER:
            self.flush()

    def _release(self) -> None:
        """What the transport has is less than the high water now, or was never sent."""
        if self._held and not self.paused:
            held, self._held = self._held, 0
            self._memory.give(held)

    def data_received(self, data: bytes) -> None:
        mux = self.mux
        try:
            runs = mux.receive(data)
        except ProtocolError as exc:
            self._fault(f"the instance broke the protocol: {exc}")
            return
        service = self.lane.service
        judging = runs and service.outcomes.judges_answers
        errors = self._errors(runs) if judging else None
        failures = service.protocol.client.failures
        now = monotonic()
        answered = alike = 0
        oldest = now
        last = _NONE
        for client, parts, batch in runs:
            # What was sent together mostly comes back together: one entry in the histogram for all of it.
            if batch is not last:
                same = batch.came == last.came and batch.rule is last.rule and batch.call is None
                if alike and not same:
                    service.figures[last.rule].latency.add(now - last.came, alike)
                    answered += alike
                    alike = 0
                last = batch
                oldest = min(oldest, batch.came)
            if batch.call is None:
                count = len(parts) // PARTS
                alike += count
                if failed := failures(parts):  # before the delivery, which spends them
                    service.figures[batch.rule].errors += failed
                    service.lines.note_errors(parts, failed)
                client.deliver(parts, count)
            else:
                service.answered(batch.call, self, parts, now, failures(parts))
                answered += 1
        if alike:
            service.figures[last.rule].latency.add(now - last.came, alike)
            answered += alike
        if answered:
            service.answers += answered
            self.lane.answered(answered, now - oldest, errors)
            if now - oldest >= service.lines.least:
                service.lines.answered_runs(runs, now, service.name, self.lane.endpoint)
        if mux.large:
            self._answer_large(now)
        if mux.failed:
            self._fail()
        if mux.parts:  # refusals of what the instance asked
            self._refuse()
        if mux.broken is not None:
            self._fault(f"the instance broke the protocol: {mux.broken}")

    def _errors(self, runs: list[Run]) -> list[bool]:
        """Of each answer whether it is an error; before they are delivered."""
        find = self.lane.service.protocol.client.errors
        return [is_error for _, parts, _ in runs for is_error in find(parts)]

    def _fault(self, why: str, kind: Kind = Kind.PROTOCOL) -> None:
        """End, for what the instance did. The lane looks at once: connection_lost comes in a later turn."""
        self.abort(why, kind)
        self.lane.changed()

    def _answer_large(self, now: float) -> None:
        large, self.mux.large = self.mux.large, []
        service = self.lane.service
        judging = service.outcomes.judges_answers
        for client, parts, batch, held in large:
            start = [parts[0], b"", parts[1]]  # which tells whether it is an error
            errors = self._errors([(client, start, batch)]) if judging else None
            failed = service.protocol.client.failures(start)
            self._memory.pass_on(held)
            if batch.call is not None:
                service.answered(batch.call, self, parts, now, failed)
            else:
                figures = service.figures[batch.rule]
                figures.latency.add(now - batch.came)
                figures.errors += failed
                asked = Asked(client, batch.rule, service.name, self.lane.endpoint)
                service.lines.answered(asked, now - batch.came, error=failed > 0)
                client.deliver(parts, 1)
            self._memory.grant()
            service.answers += 1
            self.lane.answered(1, now - batch.came, errors)

    def _fail(self) -> None:
        """Answers that could not be kept: their bytes are passed over, and the connection goes on."""
        failed, self.mux.failed = self.mux.failed, []
        for one in failed:
            self.lane.service.answer_lost(one, self)
        self.lane.finished(len(failed), 0.0)

    def _refuse(self) -> None:
        if self.paused and self.mux.refused - self._refused > _MOST_REFUSALS:
            self._fault("the instance sends requests itself and does not read that they are refused")
        else:
            self.schedule(monotonic())

    def eof_received(self) -> bool:
        # At once, whatever is unsent: no answer can come any more, and who is sent here would wait in vain.
        self._fault("the instance closed the connection", Kind.RESET)
        return False

    def pause_writing(self) -> None:
        self.paused = True
        self._refused = self.mux.refused
        self.lane.changed()

    def resume_writing(self) -> None:
        self.paused = False
        self._release()
        self.lane.changed()

    def tend(self, now: float) -> None:
        """Look at the time."""
        unwritten = self._transport.get_write_buffer_size() if self.paused and self.open else 0
        if not unwritten or self.mux.pending or self._stuck[1] != unwritten:
            self._stuck = now, unwritten
        elif now - self._stuck[0] >= _STUCK:
            self._fault(f"the instance reads nothing: {unwritten} bytes wait for it", Kind.TIMEOUT)

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = self.paused = False
        self.why = self.why or (str(exc) if exc else "the connection was closed")
        self.lost.set()
        self._release()
        self.lane.lost(self)

    def close(self) -> None:
        """Send FIN after what was written. Idempotent."""
        self._transport.close()

    def abort(self, why: str, fault: Kind | None = None) -> None:
        """End now: what is pending fails with `why`. Idempotent. `fault`: the instance's, if it is one."""
        if not self.why:
            self.why, self.fault = why, fault
        self.open = False  # connection_lost comes in a later turn, and nothing may be sent here until then
        self._transport.abort()
