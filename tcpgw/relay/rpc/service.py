"""A service as rpc listeners see it: requests go to the best endpoint with room, again where that is safe.

What a request may meet, in order: a candidate with room sends it; else the first candidate's queue keeps it
for at most `queue_timeout`, and whoever has room first takes it from there; else the client is told. What
was on a connection that breaks is `recovery`'s then, and comes back here or ends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from tcpgw.errors import Code
from tcpgw.relay.rpc.call import Call
from tcpgw.relay.rpc.deadlines import Deadlines
from tcpgw.relay.rpc.figures import ServiceFigures
from tcpgw.relay.rpc.hedging import Hedges
from tcpgw.relay.rpc.recovery import Recovery
from tcpgw.relay.rpc.request_lines import Asked, RequestLines
from tcpgw.relay.rpc.shedding import take_oldest
from tcpgw.relay.rpc.target import Target
from tcpgw.relay.rpc.targets import Targets
from tcpgw.relay.rpc.terms import Protocol, Terms
from tcpgw.relay.tracing import told_candidates
from tcpgw.wire.codec import Entry, Piece
from tcpgw.wire.mux import Failed

if TYPE_CHECKING:
    from tcpgw.endpoints import Endpoint
    from tcpgw.pool import Pool
    from tcpgw.relay.outcomes import Outcomes
    from tcpgw.relay.rpc.channel import Channel
    from tcpgw.relay.rpc.lane import Lane
    from tcpgw.relay.rpc.memory import Memory
    from tcpgw.relay.rpc.plane import RpcPlane
    from tcpgw.relay.rpc.routing import Rule

# Seconds between looks at deadlines: one sweep for all instead of a timer for each request.
_SWEEP = 0.05
# Requests of a queue among which one is looked for that has not been at an endpoint yet.
_LOOKED_AT = 8


class RpcService:
    """Owns its targets while `run` runs. Made and used in one running event loop.

    Its parts end requests by `fail`, `fail_ordinary` and `forget`, and give them back by `submit`.
    """

    def __init__(
        self,
        pool: Pool,
        protocol: Protocol,
        terms: Terms,
        memory: Memory,
        outcomes: Outcomes,
        lines: RequestLines,
    ) -> None:
        self.pool = pool
        self.lines = lines
        self.outcomes = outcomes
        self.name = pool.service
        self.protocol = protocol
        self.terms = terms
        self.settings = terms.rpc
        self.memory = memory
        self.connect_timeout = terms.connect_timeout
        self.observes = terms.observes
        self.targets = Targets(pool, lambda endpoint: Target(endpoint, self))
        self.crowded: set[Lane] = set()  # where something waits
        self.recovery = Recovery(self, terms.rpc.retry_budget, terms.tries)
        self.hedges = Hedges(terms.rpc.hedge_budget, lambda call: self._send(call) is True)
        self.deadlines = Deadlines(self)
        self.figures = ServiceFigures()
        self.answers = 0  # that came from instances
        self.failed = 0  # requests answered with an error of the gateway's
        self._running = asyncio.Event()

    def expect(self, rules: Iterable[Rule], *, own_deadlines: bool) -> None:
        """Tell which rules its requests will have. For each listener, first and at each change."""
        for rule in rules:
            self.deadlines.expect(0.0 if own_deadlines else rule.timeout)
            self.hedges.expect(rule)

    def dismiss(self, rules: Iterable[Rule]) -> None:
        """No request with these rules comes any more. Idempotent."""
        rules = list(rules)
        for rule in rules:
            self.hedges.dismiss(rule)
        self.figures.dismiss(rules)

    @property
    def sends_again(self) -> bool:
        """Whether requests may be under way that came long before they were sent: retries and hedges."""
        return bool(self.recovery.retries.running or self.hedges)

    def forget_plane(self, plane: RpcPlane) -> None:
        """That plane is no more. Idempotent."""
        for target in self.targets.all:
            target.forget(plane)

    def status(self) -> dict[str, Any]:
        """What requests came to, and endpoints that left, since the start."""
        return {
            "answered": self.answers,
            "failed": self.failed,
            "expired": self.deadlines.expired,
            "retried": self.recovery.retried,
            "retries_refused": self.recovery.retries.refused,
            "hedged": self.hedges.sent,
            "drains": dict(self.targets.drains),
            "requests_cut": self.targets.requests_cut,
            "waiting": self.waiting,
            "methods": self.figures.status(self.targets.under_way()),
        }

    # ---- life ----

    async def run(self) -> None:
        """Follow the snapshot and keep deadlines, until cancelled; then close everything."""
        unsubscribe = self.pool.subscribe(self.targets.follow)
        try:
            self.targets.follow()
            self._running.set()
            while True:
                await asyncio.sleep(_SWEEP)
                self._sweep(time.monotonic())
        finally:
            unsubscribe()
            await self._close()

    async def connected(self) -> None:
        """Return when every target has tried to connect: a listener that opens now finds what there is."""
        await self._running.wait()
        for target in list(self.targets.values()):
            await target.main.settled.wait()

    def _sweep(self, now: float) -> None:
        self.memory.relieve(now)
        self.deadlines.sweep(self.targets.all, now)
        self.targets.sweep(now)

    async def _close(self) -> None:
        self.hedges.close()
        for target in self.targets.stop():
            for lane in target.lanes:
                for call in lane.take_all():
                    self.fail(call, Code.NO_ENDPOINT, f"service {self.name} {self.targets.nobody()}")
        await self.targets.close()

    # ---- requests ----

    def choose(self, position: int) -> Target | None:
        """The first candidate, if it can be sent requests right now; None: `submit` each."""
        home = self.pool.home(position)
        if home is not None:  # mostly the answer, and less work
            target = self.targets.get(home)
            if target is not None and target.main.open and target.allowed(self.pool.share(home)) > 0:
                return target
        crowded = False  # a better one is
        for endpoint in self.pool.candidates(position):
            target = self.targets.get(endpoint)
            if target is None or not target.alive:
                continue
            if target.main.open and target.room > 0 and (not crowded or target.helps):
                return target
            if not self.pool.spills:
                return None
            crowded = True
        return None

    def submit(self, call: Call) -> None:
        """Send, keep or fail a request: after this it is somebody's."""
        if call.client.gone:
            self._finish(call)
            return
        lane = self._send(call)
        if lane is True:
            return
        if lane is None and call.tried:
            self.fail(call, Code.UPSTREAM_LOST, f"{call.cause}; no other endpoint takes it", call.tried[-1])
            return
        if lane is None:
            self.fail(call, Code.NO_ENDPOINT, f"service {self.name} {self.targets.nobody()}")
            return
        if not call.held:
            if not self.memory.keep(call.body):
                self.fail(call, Code.OVERLOADED, "the gateway holds as many bytes as rpc_memory allows")
                return
            call.held = call.body
        call.until = call.until or min(call.deadline, time.monotonic() + self.settings.queue_timeout)
        if call.trace is not None:
            call.trace.add("waiting", endpoint=lane.endpoint)
        if refused := lane.wait(call):
            waiting = f"{self.settings.queue} requests wait for {lane.endpoint} already"
            self.fail(refused, Code.OVERLOADED, waiting)

    def _send(self, call: Call) -> Lane | Literal[True] | None:
        """Send to the first candidate with room: True. Else the lane to wait in, or None without any."""
        waiting: Lane | None = None
        hoped: Lane | None = None
        candidates = self.pool.candidates(call.position)
        if call.trace is not None:
            candidates = told_candidates(call.trace, self.pool, call.position, candidates, {})
        for endpoint in candidates:
            target = self.targets.get(endpoint)
            if target is None or endpoint in call.tried:
                continue
            lane = target.lane(call.body, bulky=call.client.bulky)
            if not lane.alive:
                hoped = hoped or (lane if target.hopeful else None)
                continue
            if (waiting is None or target.helps) and not lane.queue and lane.send(call):
                return True
            waiting = waiting or lane
            if not self.pool.spills:
                break
        return waiting or hoped

    def spare(self, lane: Lane, target: Target) -> Call | None:
        """A request that waits elsewhere, and that this lane may send as it has room and nothing waits here.

        Only where load may move requests at all; the most crowded gives.
        """
        if not self.pool.spills or not target.helps:
            return None
        others = [other for other in self.crowded if other.bulk == lane.bulk and other is not lane]
        for other in sorted(others, key=lambda other: len(other.queue), reverse=True):
            for _ in range(min(len(other.queue), _LOOKED_AT)):
                call = other.queue.pop()
                if not other.queue:
                    other.changed()
                if call is None or call.done:
                    continue
                if call.client.gone:
                    self.forget(call)
                elif target.endpoint not in call.tried:
                    return call
                else:
                    self.submit(call)
        return None

    def reroute(self, calls: Iterable[Call]) -> None:
        """Find another place for requests that waited where nothing is any more."""
        for call in calls:
            if not call.done:
                self.submit(call)

    @property
    def waiting(self) -> int:
        """Requests that wait for an endpoint."""
        return sum(len(lane.queue) for lane in self.crowded)

    def shed(self, count: int) -> int:
        """Answer `overloaded` to at most `count` requests that wait: see `take_oldest`. Returns how many."""
        every = (lane for target in self.targets.all for lane in target.lanes)
        lanes = [lane for lane in every if lane.queue]
        shed = [call for call in take_oldest(lanes, count) if not call.done]
        for call in shed:
            self.fail(call, Code.OVERLOADED, "the gateway is overloaded")
        for lane in lanes:
            lane.changed()
        return len(shed)

    def outgoing(self, call: Call) -> tuple[list[Piece], int]:
        """What to send of a request, and how many bytes: its deadline less the time that it spent here."""
        pieces = call.pieces
        assert pieces is not None  # noqa: S101 - kept until it is sent, or while it may be sent again
        if call.field is None:
            return pieces, call.body
        head, (start, end) = bytes(pieces[0]), call.field
        left = max(0.0, (call.deadline - time.monotonic()) * 1000)
        field = self.protocol.client.put_number(head, call.field, left)
        return [head[:start], field, head[end:], *pieces[1:]], call.body + len(field) - (end - start)

    def sent(self, call: Call) -> int:
        """A request was given to a connection, and with it what it held, unless it may be sent again.

        Returns how much that is: for the connection to give back when it is written.
        """
        if not call.is_request:
            held, call.held = call.held, 0
            self._finish(call)
            call.client.settle()
            return held
        if not call.keep:
            call.pieces = None
            held, call.held = call.held, 0
            return held
        hedges = self.hedges
        hedging = hedges.get(call.rule)
        if hedging is not None and len(call.tried) == 1:
            hedges.budget.deposit()
            hedging.add(call)
        return 0

    # ---- ends of a request ----

    def answered(self, call: Call, channel: Channel, parts: list[Piece], now: float, errors: int) -> None:
        """The answer came, which is an error (1) or not; the first one counts."""
        if call.done:
            channel.mux.dropped += 1
            return
        call.attempts = [attempt for attempt in call.attempts if attempt[0] is not channel]
        self._finish(call)
        seconds = now - call.started
        if call.trace is not None:
            took, endpoint = round(seconds, 6), channel.lane.endpoint
            call.trace.add("answered", endpoint=endpoint, seconds=took, error=bool(errors))
        figures = self.figures[call.rule]
        figures.latency.add(seconds)
        figures.errors += errors
        if errors or seconds >= self.lines.least:
            asked = Asked(call.client, call.rule, self.name, channel.lane.endpoint, call.message.method)
            self.lines.answered(asked, seconds, error=errors > 0)
        if self.hedges and (hedging := self.hedges.get(call.rule)) is not None:
            hedging.observe(seconds)
        call.client.deliver(parts, 1)

    def answer_lost(self, lost: Failed, channel: Channel) -> None:
        """The answer came and cannot be passed on. Another would be as large: nothing is tried again."""
        endpoint = channel.lane.endpoint
        call: Call | None = lost.batch.call
        if call is None:
            self.fail_ordinary((lost.owner, lost.token, lost.batch), lost.code, lost.why, endpoint)
        elif not call.done:
            call.attempts = [attempt for attempt in call.attempts if attempt[0] is not channel]
            self.fail(call, lost.code, lost.why, endpoint)

    def fail(self, call: Call, code: Code, text: str, endpoint: Endpoint | None = None) -> None:
        """Answer in an instance's stead."""
        self._finish(call)
        if call.trace is not None:
            call.trace.add("failed", code=code, error=text, endpoint=endpoint)
        asked = Asked(call.client, call.rule, self.name, endpoint, call.message.method)
        if call.is_request:
            self._count_failed(asked, call.started, code, text)
            call.client.fail(call.message.token, code, text, endpoint)
        else:  # those that arrive are not counted either
            self.lines.failed(asked, call.started, code, text)
            call.client.lost_notifications += 1
            call.client.settle()

    def fail_ordinary(self, entry: Entry, code: Code, text: str, endpoint: Endpoint) -> None:
        """As `fail`, of a request without a Call."""
        client, token, batch = entry
        self._count_failed(Asked(client, batch.rule, self.name, endpoint), batch.came, code, text)
        client.fail(token, code, text, endpoint)

    def _count_failed(self, asked: Asked, began: float, code: Code, text: str) -> None:
        self.figures[asked.rule].failed[code] += 1
        self.failed += 1
        self.lines.failed(asked, began, code, text)

    def forget(self, call: Call) -> None:
        """Its client is gone: what waits does not go out. What is under way is only not awaited."""
        if not call.attempts:
            self._finish(call)

    def _finish(self, call: Call) -> None:
        call.done = True
        call.pieces = None
        if call.is_request:
            call.rule.inflight -= 1
        self.memory.give(call.held)
        call.held = 0
        if call.retrying:
            self.recovery.retries.end()
        for channel, number in call.attempts:
            if channel.mux.withdraw(number):
                channel.lane.give_up(channel)
                channel.lane.finished(1, 0.0)
        call.attempts = []
