"""A service between clients and instances that do whatever they can, in every order.

Sessions, service, lanes and connections are the real ones; only sockets and timers are not (in_memory.py).
"""

import asyncio
import random
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import structlog
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tcpgw.app.gateway import Gateway
from tcpgw.balancing.standing import Share
from tcpgw.config.load import loads
from tcpgw.endpoints import Endpoint, Member, Snapshot
from tcpgw.relay.rpc.plane import RpcPlane
from tcpgw.relay.rpc.session import RpcSession
from tcpgw.relay.session import Connection
from tests.support.in_memory import Side, StillLoop, Wire
from tests.support.rpc import NOTIFY, REQUEST
from tests.support.rpc_ends import frame

ADDRESSES = [("10.0.0.1", 80), ("10.0.0.2", 80), ("10.0.0.3", 80)]
CONFIG = """
    [gateway]
    log = {{ connections = false }}
    [[service]]
    name = "s"
    discovery = {{ type = "static", endpoints = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"] }}
    balance = {{ {balance} }}
    rpc = {{ {rpc}, bulk = "4KiB", retry_budget = 1.0, hedge_budget = 0.5 }}
    [[listener]]
    name = "l"
    mode = "rpc"
    route = "s"
    bind = "127.0.0.1:0"
    max_inflight = 8
    {listener}
"""
RULES = """
    methods.again = { idempotent = true }
    methods.hedged = { idempotent = true, hedge = "10ms" }
    methods.few = { max_inflight = 2 }
    methods.urgent = { priority = "high" }
"""
DEADLINE = 'deadline = "params[1]"'
BALANCES = (
    'policy = "round_robin"',
    'policy = "least_request"',
    'policy = "maglev", table_size = 1021, bounded_load = 0.0, key = "method"',
    'policy = "maglev", table_size = 1021',
)
LANES = (
    'max_inflight = 1, queue = 100, queue_timeout = "1h"',
    'max_inflight = 3, connections = 2, queue = 6, queue_timeout = "1h"',
    'max_inflight = 2, queue = 100, queue_timeout = "1ms"',
    'max_inflight = 2, exclusive = true, connections = 2, queue = 100, queue_timeout = "1h"',
    'max_inflight = 100, queue = 0, queue_timeout = "1ms"',
)
MAY_RUN_AGAIN = {"again", "hedged"}
# Milliseconds: over at the next sweep, or never here.
SOON, LATE = 0.001, 1e7

methods = st.sampled_from(["once", "few", "urgent", "again", "again", "hedged", "hedged"])
deadlines = st.sampled_from([LATE, LATE, LATE, SOON])
sizes = st.sampled_from([0, 0, 0, 5000, 9000])
shares = st.sampled_from([None, None, Share(0.0), Share(0.3), Share(0.3, by_key=False)])
counts = st.integers(1, 8)
places = st.integers(0, 11)


@dataclass(eq=False)
class Asker:
    """A client: what it asked, by id, and what it has of the answers."""

    session: RpcSession
    wire: Wire
    heard: list[list[Any]]
    asked: dict[int, str] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)  # of notifications too


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.stack.enter_context(structlog.testing.capture_logs())
        # The policies' own choices too are the same in each run.
        patch = self.stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr("tcpgw.app.balancing.random", SimpleNamespace(Random=lambda: random.Random(1)))
        self.stack.callback(self.stop)
        self.loop = StillLoop()
        self.bugs: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.bugs.append(context))
        self.loop.sides = {address: Side(address) for address in ADDRESSES}
        self.sides = list(self.loop.sides.values())
        self.clients: list[Asker] = []
        self.methods: dict[str, str] = {}  # by what a request or notification is called
        self.left: dict[str, int] = {}  # what clients asked that are gone: how often it was sent until then
        self.count = 0
        self.version = 1
        self.pending: dict[Endpoint, int] = {}  # requests under way at who is given none

    @initialize(
        balance=st.sampled_from(BALANCES),
        rpc=st.sampled_from(LANES),
        listener=st.sampled_from(["", RULES, DEADLINE + RULES, DEADLINE + RULES]),
    )
    def start(self, balance: str, rpc: str, listener: str) -> None:
        text = CONFIG.format(balance=balance, rpc=rpc, listener=listener)
        self.gateway = Gateway(loads(text, Path()))
        self.loop.run_until_complete(self.gateway.__aenter__())
        self.plane = cast("RpcPlane", self.gateway.listeners["l"]._plane)
        self.service = next(iter(self.gateway.relays.rpc.values()))
        self.pool = self.gateway.pools["s"]
        self.ruled = RULES in listener
        self.connect()

    # ---- clients ----

    @precondition(lambda self: len(self.clients) < 4)
    @rule()
    def connect(self) -> None:
        connection = Connection(
            0, cast("Any", None), (f"10.9.0.{self.count % 250}", 1), time.monotonic(), lambda *_: None
        )
        opening = self.plane.open(connection, b"", lambda *_: None)
        session = self.loop.run_until_complete(opening)
        wire, heard = self.loop.wires[session], self.loop.heard[session]
        self.clients.append(Asker(session, wire, heard))

    def name(self, client: Asker, method: str) -> str:
        self.count += 1
        name = str(self.count)
        self.methods[name] = method if self.ruled else "once"
        client.names.append(name)
        return name

    # Named twice, to be chosen as often as all that goes wrong.
    @precondition(lambda self: self.clients)
    @rule(place=places, count=counts, method=methods)
    def ask_more(self, place: int, count: int, method: str) -> None:
        self.ask(place, count, method, LATE, 0, told=False, cut=None)

    @precondition(lambda self: self.clients)
    @rule(
        place=places,
        count=counts,
        method=methods,
        left=deadlines,
        size=sizes,
        told=st.booleans(),
        cut=st.none() | places,
    )
    def ask(
        self, place: int, count: int, method: str, left: float, size: int, *, told: bool, cut: int | None
    ) -> None:
        """Requests in one read; with `cut`, a connection breaks before they are sent."""
        client = self.clients[place % len(self.clients)]
        if not client.wire.reading or client.wire.closing:
            return
        data = b""
        for _ in range(count):
            name = self.name(client, method)
            client.asked[int(name)] = name
            data += frame(REQUEST, int(name), method, [name, left, bytes(size)])
        if told:
            data += frame(NOTIFY, "once", [self.name(client, "once"), LATE])

        def act() -> None:
            client.session.data_received(data)
            if cut is not None:
                self.cut(cut)

        self.loop.do(act)

    @rule(method=methods, cut=st.none() | places)
    def ask_together(self, method: str, cut: int | None) -> None:
        """One request of each client, all read in one turn of the loop."""
        asking = [client for client in self.clients if client.wire.reading and not client.wire.closing]

        def act() -> None:
            for client in asking:
                name = self.name(client, method)
                client.asked[int(name)] = name
                client.session.data_received(frame(REQUEST, int(name), method, [name, LATE, b""]))
            if cut is not None:
                self.cut(cut)

        self.loop.do(act)

    @precondition(lambda self: self.clients)
    @rule(place=places, politely=st.booleans())
    def leave(self, place: int, politely: bool) -> None:
        """By RST; or by FIN, and then it has all its answers."""
        client = self.clients[place % len(self.clients)]
        if politely:
            self.finish(client)
            return
        visits = self.visits()
        self.left.update({name: visits[name] for name in client.names})
        self.clients.remove(client)
        client.wire.lose(ConnectionResetError())
        self.loop.settle()

    def finish(self, client: Asker) -> None:
        def act() -> None:
            if not client.session.eof_received():
                client.wire.close()

        if not client.wire.closing and not client.session.ended:
            self.loop.do(act)

    # ---- instances ----

    @rule(which=places, place=places, times=st.sampled_from([1, 1, 1, 2]))
    def answer(self, which: int, place: int, times: int) -> None:
        asked = [side for side in self.sides if side.asked]
        if asked:
            side = asked[which % len(asked)]
            self.loop.do(lambda: side.answer(place % len(side.asked), times=times))

    @rule(which=places)
    def answer_all(self, which: int) -> None:
        side = self.sides[which % 3]
        while side.asked:
            self.loop.do(lambda: side.answer(0))

    @rule(trouble=st.sampled_from(["kill", "revive", "cut", "cut", "stall", "go on"]), which=places)
    def befall(self, trouble: str, which: int) -> None:
        side = self.sides[which % 3]
        if trouble == "cut":
            self.cut(which)
        elif trouble in ("stall", "go on"):
            self.loop.do(side.stall if trouble == "stall" else side.go_on)
        else:
            side.alive = trouble == "revive"
            for wire in side.links if trouble == "kill" else ():
                wire.lose(ConnectionResetError())
        self.loop.settle()

    def cut(self, which: int) -> None:
        """One connection breaks, in this turn: mostly one that is waited for."""
        busy = [asked[0] for side in self.sides for asked in side.asked]
        links = busy or [wire for side in self.sides for wire in side.links]
        if links:
            links[which % len(links)].lose(ConnectionResetError())

    @rule(gone=st.sampled_from([(), (), (0,), (1,), (2,), (0, 1), (0, 1, 2)]))
    def discover(self, gone: tuple[int, ...]) -> None:
        """Instances leave the snapshot and come back."""
        self.publish([side for which, side in enumerate(self.sides) if which not in gone])

    def publish(self, sides: list[Side]) -> None:
        self.version += 1
        members = [Member(Endpoint(*side.address)) for side in sides]
        snapshot = Snapshot.of("s", members, taken_at=0.0, version=self.version)
        self.loop.run_until_complete(self.pool.publish(snapshot))
        self.loop.settle()

    @rule(given=st.tuples(shares, shares, shares))
    def judge(self, given: tuple[Share | None, ...]) -> None:
        """Instances fall ill, are tried, and recover."""
        endpoints = [Endpoint(*side.address) for side in self.sides]
        told = zip(endpoints, given, strict=True)
        self.loop.do(lambda: self.pool.weigh({endpoint: share for endpoint, share in told if share}))
        self.pending = {}

    # ---- time ----

    @rule()
    def pass_time(self) -> None:
        """What may wait for a millisecond has waited, and the service looks at it."""
        time.sleep(0.002)
        self.loop.advance(0.06)

    # ---- what holds ----

    @invariant()
    def nothing_raised(self) -> None:
        assert not self.bugs

    @invariant()
    def each_answer_is_its_own_and_the_only_one(self) -> None:
        for client in self.clients:
            numbers = Counter(message[1] for message in client.heard)
            assert numbers.keys() <= client.asked.keys()
            assert set(numbers.values()) <= {1}
            for _, number, error, result in client.heard:
                assert error is not None or result[0] == client.asked[number]

    def visits(self) -> Counter[str]:
        return Counter(name for side in self.sides for name in side.visits)

    @invariant()
    def no_endpoint_is_visited_twice(self) -> None:
        """And none but those that may run again are ever sent to two."""
        for side in self.sides:
            assert len(side.visits) == len(set(side.visits))
        assert all(self.methods[name] in MAY_RUN_AGAIN for name, count in self.visits().items() if count > 1)

    @invariant()
    def nothing_is_sent_for_who_is_gone(self) -> None:
        visits = self.visits()
        assert all(visits[name] == count for name, count in self.left.items())

    @invariant()
    def what_is_under_way_is_counted(self) -> None:
        if not hasattr(self, "service"):
            return
        self.loop.settle()
        for target in self.service.targets.all:
            pending = sum(len(channel.mux.pending) for channel in target.channels)
            assert target.load.inflight == pending <= target.limit
        for client in self.clients:
            session = client.session
            assert session.inflight <= 8
            if not session.gone and not session._intake.full:  # else it has requests that it does not look at
                assert session.inflight >= len(client.asked) - len(client.heard)
        assert self.gateway.relays.memory.held >= 0
        assert self.service.recovery.retries.running >= 0
        assert all(one.inflight >= 0 for one in self.plane.routing.rules.all)

    @invariant()
    def who_is_out_is_given_nothing(self) -> None:
        if not hasattr(self, "service"):
            return
        before, self.pending = self.pending, {}
        for endpoint, target in self.service.targets.items():
            if not self.pool.usable(endpoint):
                self.pending[endpoint] = sum(len(channel.mux.pending) for channel in target.channels)
                assert self.pending[endpoint] <= before.get(endpoint, self.pending[endpoint])
                assert not any(lane.queue for lane in target.lanes)

    # ---- the end ----

    def teardown(self) -> None:
        try:
            if hasattr(self, "service"):
                self.all_comes_to_its_end()
        finally:
            self.stack.close()
        self.nothing_raised()

    def stop(self) -> None:
        if hasattr(self, "gateway"):
            self.loop.run_until_complete(self.gateway.__aexit__(None, None, None))
        self.loop.settle()
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        left = asyncio.all_tasks(self.loop)
        self.loop.close()
        assert not left

    def all_comes_to_its_end(self) -> None:
        """By itself: nobody waits for ever, and nothing is left in any account."""
        for side in self.sides:
            side.alive = True
            self.loop.do(side.go_on)
        self.pool.weigh({})
        self.publish(self.sides)
        for _ in range(60):
            for which in range(3):
                self.answer_all(which)
            self.pass_time()
            if not self.pool.loads.total and not any(client.session.inflight for client in self.clients):
                break
        self.no_endpoint_is_visited_twice()
        self.each_answer_is_its_own_and_the_only_one()
        for client in self.clients:
            assert {message[1] for message in client.heard} == client.asked.keys()
            assert client.session.inflight == 0
        self.nothing_is_left()

    def nothing_is_left(self) -> None:
        assert self.pool.loads.total == 0
        assert self.gateway.relays.memory.held == 0
        assert self.service.recovery.retries.running == 0
        assert not any(one.inflight for one in self.plane.routing.rules.all)
        for target in self.service.targets.all:
            assert target.load.inflight == 0
            assert not any(lane.queue for lane in target.lanes)


TestService = Machine.TestCase
TestService.settings = settings(max_examples=30, stateful_step_count=40)
