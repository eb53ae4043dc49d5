"""A service as rpc listeners see it: requests go to the best endpoint with room, again where that is safe.

What a request may meet, in order: a candidate with room sends it; else the first candidate's queue keeps it
for at most `queue_timeout`, and whoever has room first takes it from there; else the client is told. A
connection that breaks gives back what was on it: requests that were never sent go to the next candidate, sent
ones only where their method is idempotent, both within the retry budget.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tcpgw.balancing.budgets import HedgeBudget, RetryBudget
from tcpgw.errors import Code
from tcpgw.relay.outcomes import Kind
from tcpgw.relay.rpc.call import Batch, Call
from tcpgw.relay.rpc.figures import ServiceFigures
from tcpgw.relay.rpc.hedging import Hedging
from tcpgw.relay.rpc.request_lines import Asked, RequestLines
from tcpgw.relay.rpc.shedding import take_oldest
from tcpgw.relay.rpc.target import Target
from tcpgw.relay.tracing import told_candidates
from tcpgw.wire.codec import Codec, Entry, Piece
from tcpgw.wire.mux import Failed, Mux, Unsent

if TYPE_CHECKING:
    from tcpgw.config.service import Rpc
    from tcpgw.endpoints import Endpoint
    from tcpgw.pool import Pool
    from tcpgw.relay.dial import InstanceTls
    from tcpgw.relay.outcomes import Outcomes
    from tcpgw.relay.rpc.channel import Channel
    from tcpgw.relay.rpc.lane import Lane
    from tcpgw.relay.rpc.memory import Memory
    from tcpgw.relay.rpc.plane import RpcPlane
    from tcpgw.relay.rpc.routing import Rule
    from tcpgw.relay.rpc.session import RpcSession

# Seconds between looks at deadlines: one sweep for all instead of a timer for each request.
_SWEEP = 0.05
# Seconds that a retired endpoint's requests may take to finish.
_DRAIN = 30.0
# Requests of a queue among which one is looked for that has not been at an endpoint yet.
_LOOKED_AT = 8
# Share of a rule's time-out that an instance must have had for a request, or it is no failure of the
# instance's that it did not answer: clients may set deadlines that nobody can keep, and some wait in a queue.
_FAIR = 0.5
# What renumbering may add to a frame: the client's id may be shorter than ours.
_GROWTH = 64


@dataclass(frozen=True)
class Protocol:
    """What the instances speak. `client` reads and makes the clients' frames, `instance` the instances'.

    `framed`: with a length in front of each frame.
    """

    client: Codec
    instance: Codec
    framed: bool
    max_frame: int


@dataclass(frozen=True)
class Terms:
    """What the configuration says of a service's requests. With other ones it is another RpcService.

    `observes`: its policy looks at latencies.
    """

    rpc: Rpc
    connect_timeout: float
    tries: int
    observes: bool
    tls: InstanceTls | None = None


class RpcService:
    """Owns its targets while `run` runs. Made and used in one running event loop."""

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
        self.targets: dict[Endpoint, Target] = {}
        self._out: set[Endpoint] = set()  # of them, who is given nothing at present
        self.crowded: set[Lane] = set()  # where something waits
        self.retries = RetryBudget(terms.rpc.retry_budget)
        self.hedges = HedgeBudget(terms.rpc.hedge_budget)
        self.figures = ServiceFigures()
        self.answers = 0  # that came from instances
        self.failed = 0  # requests answered with an error of the gateway's
        self.expired = 0  # requests whose deadline passed, of those
        self.retried = 0
        self.hedged = 0
        # Endpoints that left, by what became of them, as the stages of `draining.Draining`; and the requests
        # that those had under way which were cut.
        self.drains = {"started": 0, "closed": 0, "reset": 0, "spared": 0}
        self.requests_cut = 0
        self._tries = terms.tries
        self._retired: list[Target] = []
        self._closing: set[asyncio.Task[None]] = set()
        self._least_timeout = 3600.0
        self._running = asyncio.Event()
        self._stopping = False
        self._active = 0  # requests under way when the last connection broke
        self._hedging: dict[Rule, Hedging] = {}

    def new_mux(self) -> Mux:
        protocol = self.protocol
        most = protocol.max_frame + _GROWTH
        return Mux(protocol.instance, protocol.client, most, self.memory, framed=protocol.framed)

    def expect(self, rules: Iterable[Rule], *, own_deadlines: bool) -> None:
        """Tell which rules its requests will have. For each listener, first and at each change."""
        for rule in rules:
            # It only falls: requests with what was shorter before may still be under way.
            self._least_timeout = 0.0 if own_deadlines else min(self._least_timeout, rule.timeout)
            if rule.hedge is None:
                self._end_hedging(rule)
            elif rule not in self._hedging:
                self._hedging[rule] = Hedging(rule, self._hedge)

    def dismiss(self, rules: Iterable[Rule]) -> None:
        """No request with these rules comes any more. Idempotent."""
        rules = list(rules)
        for rule in rules:
            self._end_hedging(rule)
        self.figures.dismiss(rules)

    def _end_hedging(self, rule: Rule) -> None:
        hedging = self._hedging.pop(rule, None)
        if hedging is not None:
            hedging.close()

    def forget_plane(self, plane: RpcPlane) -> None:
        """That plane is no more. Idempotent."""
        for target in (*self.targets.values(), *self._retired):
            target.forget(plane)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is under way."""
        lanes = [lane for one in (*self.targets.values(), *self._retired) for lane in one.lanes]
        channels = [channel for lane in lanes for channel in lane.channels]
        return not any(lane.queue for lane in lanes) and not any(
            channel.mux.pending or channel.mux.parts for channel in channels
        )

    def unanswered(self) -> Iterator[tuple[RpcSession, float]]:
        """Yield whose each request is that waits or is under way, and when it came (`time.monotonic()`).

        Of some 10,000 others may have come and gone before the last: this may be gone on with in later turns.
        """
        for target in [*self.targets.values(), *self._retired]:
            for lane in target.lanes:
                for channel in list(lane.channels):
                    for client, _, batch in list(channel.mux.pending.values()):
                        yield client, batch.came if batch.call is None else batch.call.started
                for call in list(lane.queue):
                    yield call.client, call.started

    def status(self) -> dict[str, Any]:
        """What requests came to, and endpoints that left, since the start."""
        return {
            "answered": self.answers,
            "failed": self.failed,
            "expired": self.expired,
            "retried": self.retried,
            "retries_refused": self.retries.refused,
            "hedged": self.hedged,
            "drains": dict(self.drains),
            "requests_cut": self.requests_cut,
            "waiting": self.waiting,
            "methods": self.figures.status(self._under_way()),
        }

    def _under_way(self) -> Counter[Rule]:
        """Requests at instances, by their rule."""
        channels = [channel for one in (*self.targets.values(), *self._retired) for channel in one.channels]
        return Counter(batch.rule for channel in channels for _, _, batch in channel.mux.pending.values())

    # ---- life ----

    async def run(self) -> None:
        """Follow the snapshot and keep deadlines, until cancelled; then close everything."""
        unsubscribe = self.pool.subscribe(self._sync)
        try:
            self._sync()
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

    def _sync(self) -> None:
        wanted = {member.endpoint for member in self.pool.members if member.weight > 0}
        now = time.monotonic()
        for endpoint in wanted - self.targets.keys():  # first: what waits for those that leave goes there
            self.targets[endpoint] = self._revive(endpoint) or Target(endpoint, self)
        leaving = [self.targets.pop(endpoint) for endpoint in self.targets.keys() - wanted]
        back = self._out & self.targets.keys()
        self._out = {endpoint for endpoint in self.targets if not self.pool.usable(endpoint)}
        for endpoint in back - self._out:
            self.targets[endpoint].revive()
        self._retired += leaving
        self.drains["started"] += len(leaving)
        for target in leaving:
            target.retire(now)
        for endpoint in self._out:  # their connections are kept: they may be back soon
            self.targets[endpoint].pause()

    def _revive(self, endpoint: Endpoint) -> Target | None:
        for target in self._retired:
            if target.endpoint == endpoint:
                self._retired.remove(target)
                self.drains["spared"] += 1
                target.revive()
                return target
        return None

    async def _close(self) -> None:
        for hedging in self._hedging.values():
            hedging.close()
        targets = [*self.targets.values(), *self._retired]
        self._stopping = True
        self.targets = {}  # nothing goes anywhere any more
        for target in targets:
            for lane in target.lanes:
                for call in lane.take_all():
                    self.fail(call, Code.NO_ENDPOINT, f"service {self.name} {self._nobody()}")
        await asyncio.gather(*(target.close() for target in targets), *self._closing)

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
            self.fail(call, Code.NO_ENDPOINT, f"service {self.name} {self._nobody()}")
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

    def _nobody(self) -> str:
        """Why no endpoint takes a request."""
        if self._stopping:
            return "is being stopped"
        if not self.targets:
            return "has no endpoint: discovery found none"
        if len(self._out) == len(self.targets):
            return f"has {len(self._out)} endpoints, and health checks let none of them be used"
        target = next(iter(self.targets.values()))
        why = target.main.failure or "lost just now"
        return f"reaches none of its {len(self.targets)} endpoints ({target.endpoint}: {why})"

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
        every = (lane for target in (*self.targets.values(), *self._retired) for lane in target.lanes)
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
        hedging = self._hedging.get(call.rule)
        if hedging is not None and len(call.tried) == 1:
            self.hedges.deposit()
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
        if self._hedging and (hedging := self._hedging.get(call.rule)) is not None:
            hedging.observe(seconds)
        call.client.deliver(parts, 1)

    def answer_lost(self, lost: Failed, channel: Channel) -> None:
        """The answer came and cannot be passed on. Another would be as large: nothing is tried again."""
        endpoint = channel.lane.endpoint
        call: Call | None = lost.batch.call
        if call is None:
            self._fail_ordinary((lost.owner, lost.token, lost.batch), lost.code, lost.why, endpoint)
        elif not call.done:
            call.attempts = [attempt for attempt in call.attempts if attempt[0] is not channel]
            self.fail(call, lost.code, lost.why, endpoint)

    def fail(self, call: Call, code: Code, text: str, endpoint: Endpoint | None = None) -> None:
        """Answer in an instance's stead."""
        self._finish(call)
        if call.trace is not None:
            call.trace.add("failed", code=code, error=text, endpoint=endpoint)
        asked = Asked(call.client, call.rule, self.name, endpoint, call.message.method)
        self._count_failed(asked, call.started, code, text)
        if call.is_request:
            call.client.fail(call.message.token, code, text, endpoint)
        else:
            call.client.lost_notifications += 1
            call.client.settle()

    def _fail_ordinary(self, entry: Entry, code: Code, text: str, endpoint: Endpoint) -> None:
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
            self.retries.end()
        for channel, number in call.attempts:
            if channel.mux.withdraw(number):
                channel.lane.give_up(channel)
                channel.lane.finished(1, 0.0)
        call.attempts = []

    # ---- broken connections ----

    def lost(self, target: Target, channel: Channel) -> None:
        """A connection broke: retry what may be, and tell the others."""
        self._active = self.pool.loads.total  # those that are lost now among them
        sent, unsent = channel.mux.lose()
        text = f"the connection to {target.endpoint} broke: {channel.why}"
        if target.retired_at is not None and time.monotonic() - target.retired_at >= _DRAIN:
            self.requests_cut += len(sent) + len(unsent)
        fault = channel.fault
        if fault is not None and (sent or fault is not Kind.RESET):
            # Once, however many were under way: five failures in a row are to mean that it was tried five
            # times. By requests, one connection that breaks under load would tell as much as a dead instance.
            target.blame(fault)
        if sent or unsent:
            target.end(len(sent) + len(unsent), self.connect_timeout)
        for entry in sent:
            self._lost_sent(entry, target.endpoint, channel, text)
        for request in unsent:
            call = self._recover(request, target.endpoint, channel)
            self._retry(call, text, target.endpoint, sent=False)

    def _lost_sent(self, entry: Entry, endpoint: Endpoint, channel: Channel, text: str) -> None:
        call: Call | None = entry[2].call
        if call is None:
            self._fail_ordinary(entry, Code.UPSTREAM_LOST, text, endpoint)
        elif call.done:
            return
        else:
            call.attempts = [attempt for attempt in call.attempts if attempt[0] is not channel]
            if not call.attempts:  # else a hedge is still under way
                self._retry(call, text, endpoint, sent=True)

    def _recover(self, request: Unsent, endpoint: Endpoint, channel: Channel) -> Call:
        """Make a request that was never sent from its frame what it was before."""
        client, rule, started = request.owner, request.batch.rule, request.batch.came
        call: Call | None = request.batch.call
        frame = request.frame
        message = self.protocol.instance.read(frame, 0, len(frame))
        pieces: list[Piece] = [frame[message.rest :]]
        if call is None:
            rule.inflight += 1
            call = Call(
                client,
                message._replace(token=request.token),
                pieces,
                len(pieces[0]),
                rule,
                client.placed(message.method, pieces[0], rule),
                started,
                request.batch.deadline,
            )
            call.field = request.batch.field
        else:
            call.attempts = [attempt for attempt in call.attempts if attempt[0] is not channel]
            call.tried.remove(endpoint)
            if call.pieces is None:  # as it went out: with the deadline that was put in then
                longer, call.pieces, call.body = len(pieces[0]) - call.body, pieces, len(pieces[0])
                if call.field is not None:
                    start, end = call.field
                    call.field = start, end + longer
        if not call.held and self.memory.keep(call.body):
            call.held = call.body
        return call

    def _retry(self, call: Call, text: str, endpoint: Endpoint, *, sent: bool) -> None:
        """Send again where that is safe, allowed and of use; else the client is told.

        What was never `sent` has cost nobody anything, so only its deadline says how often.
        """
        if call.done or call.attempts:
            return
        if call.client.gone:
            self._finish(call)
        elif call.pieces is None or (sent and call.retries >= self._tries - 1):
            self.fail(call, Code.UPSTREAM_LOST, text, endpoint)
        elif not call.retrying and not self.retries.begin(self._active):
            self.fail(call, Code.UPSTREAM_LOST, f"{text}; the retry budget is spent", endpoint)
        else:
            call.retrying = True
            call.cause = text
            call.retries += sent
            if call.trace is not None:
                call.trace.add("retrying", error=text)
            self.retried += 1
            self.submit(call)

    def _hedge(self, call: Call) -> None:
        """Ask a second endpoint, if one has room now and the budget allows it."""
        if call.done or len(call.attempts) != 1 or call.client.gone or not self.hedges.spend():
            return
        if self._send(call) is True:
            self.hedged += 1
        else:
            self.hedges.refund()

    # ---- time ----

    def _sweep(self, now: float) -> None:
        self.memory.relieve(now)
        for target in [*self.targets.values(), *self._retired]:
            for lane in target.lanes:  # before others make room for what is too late itself
                if lane.queue:
                    self._expire_waiting(lane, now)
            for channel in list(target.channels):
                self._expire(target, channel, now)
                channel.tend(now)
        for target in [*self._retired]:
            self._close_retired(target, now)

    def _expire(self, target: Target, channel: Channel, now: float) -> None:
        def is_over(batch: Batch) -> bool:
            return batch.deadline <= now

        # By when it was sent. Its time began when it came: at most queue_timeout before, if it was not sent
        # a second time.
        waited = self.settings.queue_timeout
        least = 0.0 if self.retries.running or self._hedging else max(0.0, self._least_timeout - waited)
        sent_before = now - least
        over = channel.mux.expire(sent_before, is_over)
        if not over:
            return
        channel.lane.give_up(channel)
        self.expired += len(over)
        # Once for each client: requests of one burst end together, and one client's to a slow method would be
        # failures in a row of an instance that serves all others. Not once for all: a black hole would have
        # several times as many clients before it is found.
        waited_for = {
            client for client, _, batch in over if batch.deadline - batch.came >= batch.rule.timeout * _FAIR
        }
        if waited_for:
            target.blame(Kind.TIMEOUT, len(waited_for))
        target.end(len(over), max(batch.rule.timeout for _, _, batch in over))
        text = f"no answer from {target.endpoint} in time"
        for entry in over:
            call: Call | None = entry[2].call
            if call is None:
                self._fail_ordinary(entry, Code.DEADLINE_EXCEEDED, text, target.endpoint)
            elif not call.done:
                call.attempts = [attempt for attempt in call.attempts if attempt[0] is not channel]
                self.fail(call, Code.DEADLINE_EXCEEDED, text, target.endpoint)

    def _expire_waiting(self, lane: Lane, now: float) -> None:
        for call in lane.queue.expired(now):
            if call.done:
                continue
            if call.deadline <= now:
                self.expired += 1
                self.fail(call, Code.DEADLINE_EXCEEDED, "it waited for an endpoint until its deadline")
            elif lane.alive:
                waited = f"no endpoint had room within {self.settings.queue_timeout:g} s"
                self.fail(call, Code.OVERLOADED, waited)
            else:
                self.fail(call, Code.NO_ENDPOINT, f"no endpoint could be connected to: {lane.failure}")
        lane.changed()

    def _close_retired(self, target: Target, now: float) -> None:
        assert target.retired_at is not None  # noqa: S101
        if not target.load.inflight or now - target.retired_at >= _DRAIN:
            self._retired.remove(target)
            self.drains["reset" if target.load.inflight else "closed"] += 1
            task = asyncio.get_running_loop().create_task(target.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
