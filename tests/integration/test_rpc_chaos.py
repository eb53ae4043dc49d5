"""Everything at once: many clients, all sizes, and instances that do whatever instances can do wrong.

Seeded; what depends on the machine is only how the parts fall together.
"""

import asyncio
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple

import pytest

from tcpgw.errors import Code
from tcpgw.relay.rpc.session import RpcSession
from tests.support.rpc import ANSWER, Bed, Behaviour, Client, Instance, Request, bed, echo
from tests.support.rpc_thrift import CODEC, ThriftInstance, thrift_client
from tests.support.streams import MiB, until

EACH = 14
# Frames that are large for everybody: few, or the test would measure memcpy.
LARGEST = [8 * MiB, 8 * MiB - 1, 6 * MiB, 3 * MiB, 2 * MiB, *[MiB] * 5]
# What may stand for an answer here. Others would say that a client did something wrong.
MAY_FAIL = {Code.NO_ENDPOINT, Code.OVERLOADED, Code.DEADLINE_EXCEEDED, Code.UPSTREAM_LOST}
LISTENER = """
    request_timeout = "1s"
    max_inflight = 12
    methods.again = { idempotent = true, hedge = "80ms" }
    methods.ruled = { priority = "high", timeout = "700ms" }
"""
SERVICE = 'rpc = { max_inflight = 300, queue_timeout = "400ms", hedge_budget = 0.2 }'


class Language(NamedTuple):
    """What is spoken. `client` connects one; `forms` are the ways in which it may speak, taken at random."""

    instance: Callable[[Behaviour], Instance]
    client: Callable[[Bed, Any], Coroutine[Any, Any, Client]]
    forms: Sequence[Any]
    # First ids: those of other clients, of other widths, and those that the gateway itself gives.
    bases: Sequence[int]
    # Ids that no gateway has under way: it counts from 65536, for hours.
    strange: Sequence[int]
    listener: str = LISTENER
    clients: int = 500


def msgpack(*framed: bool) -> Language:
    bases = (0, 0, 0, 120, 250, 65530, 65536, (1 << 31) - 8, (1 << 32) - 20)
    strange = (0, 1, 65535, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
    return Language(Instance, lambda g, form: g.client(framed=form), framed, bases, strange)


def thrift(*encodings: str) -> Language:
    bases = (0, 0, 0, 120, 250, 16380, 65530, 65536, (1 << 31) - 16, -8, -(1 << 31))
    strange = (0, 1, 65535, (1 << 31) - 1, -1, -(1 << 31))
    return Language(ThriftInstance, thrift_client, encodings, bases, strange, CODEC + LISTENER, 300)


def content(label: str, size: int) -> bytes:
    word = f"{label}|".encode()
    return (word * (size // len(word) + 1))[:size]


def digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=8).digest()


class Unruly:
    """What an instance does: it answers late, in any order, twice, and what nobody asked.

    `seen` counts the requests by label and digest: what it got, as it got it.
    """

    def __init__(self, strange: Sequence[int], rng: random.Random) -> None:
        self.seen: Counter[tuple[str, bytes]] = Counter()
        self.halted = False  # reads, and answers nothing
        self._strange = strange
        self._rng = rng
        self._held: list[Request] = []

    def __call__(self, request: Request) -> None:
        request.link.instance.requests.pop()  # or all payloads would be kept
        label, body = request.params
        self.seen[label, digest(body)] += 1
        chance = self._rng.random()
        if chance < 0.3 or self.halted:
            if not self._held:
                asyncio.get_running_loop().call_later(0.01, self.release)
            self._held.append(request)
            return
        if chance < 0.4:
            request.link.send(ANSWER, self._rng.choice(self._strange), None, ["nobody asked", b""])
        request.answer()
        if chance > 0.9:
            request.link.send(ANSWER, request.id, None, ["a second answer", b""])

    def release(self) -> None:
        if self.halted:
            return
        held, self._held = self._held, []
        self._rng.shuffle(held)
        for request in held:
            if not request.link.transport.is_closing():
                request.answer()


class Trouble:
    """What befalls one instance, again and again, until cancelled. `came` counts it by name."""

    def __init__(self, instance: Instance, unruly: Unruly, kinds: Sequence[str], rng: random.Random) -> None:
        self.came: Counter[str] = Counter()
        self._instance = instance
        self._unruly = unruly
        self._kinds = kinds
        self._rng = rng

    async def run(self) -> None:
        for place in range(1000):
            await asyncio.sleep(self._rng.uniform(0.05, 0.3))
            kind = self._kinds[place % len(self._kinds)]
            await getattr(self, f"_{kind}")()
            self.came[kind] += 1

    async def _kill(self) -> None:
        self._instance.kill()
        try:
            await asyncio.sleep(self._rng.uniform(0, 0.2))
        finally:
            await self._instance.start()

    async def _cut(self) -> None:
        self._instance.cut()

    async def _stall(self) -> None:
        links = list(self._instance.links)
        for link in links:
            link.transport.pause_reading()
        try:
            await asyncio.sleep(self._rng.uniform(0.1, 0.5))
        finally:
            for link in links:
                if not link.transport.is_closing():
                    link.transport.resume_reading()

    async def _halt(self) -> None:
        """Some of what it gets meanwhile is too late for anybody."""
        self._unruly.halted = True
        try:
            await asyncio.sleep(self._rng.choice((0.1, 0.2, 1.1)))
        finally:
            self._unruly.halted = False
            self._unruly.release()


class Asker:
    """A client's requests, as many under way as it has ids, each checked against its own answer."""

    def __init__(
        self, client: Client, name: str, sizes: Sequence[int], base: int, rng: random.Random
    ) -> None:
        self.sent: dict[str, tuple[str, bytes]] = {}  # by label: its method and digest
        self.outcomes: Counter[str] = Counter()
        self.client = client
        self._name = name
        self._sizes = sizes
        self._rng = rng
        self._free = list(range(base, base + rng.choice((1, 4, 16))))
        self._asked: dict[int, tuple[str, int]] = {}  # by id: the label and the size
        self._read = 0

    async def run(self) -> None:
        for place, size in enumerate(self._sizes):
            while not self._free:
                await self._take()
            number = self._free.pop(self._rng.randrange(len(self._free)))
            label, method = f"{self._name}.{place}", self._rng.choice(("plain", "plain", "ruled", "again"))
            body = content(label, size)
            self.sent[label] = method, digest(body)
            self._asked[number] = label, size
            self.client.ask(number, label, body, method=method)
            if self._rng.random() < 0.3:
                await asyncio.sleep(self._rng.uniform(0, 0.6))
        while self._asked:
            await self._take()

    async def _take(self) -> None:
        """Wait for more answers, and check that each is its own."""
        answers = await self.client.got(self._read + 1)
        for place in range(self._read, len(answers)):
            _, number, error, result = answers[place]
            answers[place] = []  # checked: not to be kept
            label, size = self._asked.pop(number)
            self._free.append(number)
            if error is None:
                assert result == [label, content(label, size)]
            else:
                assert error["code"] in MAY_FAIL
            self.outcomes[error["code"] if error else ""] += 1
        self._read = len(answers)


def sizes(clients: int, rng: random.Random) -> list[list[int]]:
    """What each client sends: mostly little, sometimes nothing, seldom much."""

    def one() -> int:
        chance = rng.random()
        if chance < 0.1:
            return 0
        if chance < 0.75:
            return rng.randrange(1, 300)
        return rng.randrange(20_000) if chance < 0.985 else rng.randrange(60_000, 300_000)

    plan = [[one() for _ in range(EACH)] for _ in range(clients)]
    for size, requests in zip(LARGEST, rng.sample(plan, len(LARGEST)), strict=True):
        requests[rng.randrange(EACH)] = size
    return plan


def check_instances(askers: Sequence[Asker], instances: Sequence[Unruly]) -> None:
    sent = {label: what for asker in askers for label, what in asker.sent.items()}
    runs: Counter[str] = Counter()
    for instance in instances:
        for (label, seen), count in instance.seen.items():
            assert seen == sent[label][1], f"{label} came as something else"
            assert count == 1, f"{label} came {count} times to one instance"
            runs[label] += 1
    again = Counter(sent[label][0] for label, count in runs.items() if count > 1)
    assert set(again) == {"again"}  # some were repeated, and none that must not be


async def nothing_is_held(g: Bed) -> None:
    """Without anything having ended yet: clients and instances are connected."""
    await until(lambda: not g.pool.loads.total)
    assert g.held == g.unread == g.service.recovery.retries.running == 0
    for target in g.service.targets.values():
        assert target.load.inflight == 0
        assert not any(lane.queue for lane in target.lanes)
        assert not any(channel.mux.pending for channel in target.channels)
    for connection in g.listener.connections.values():
        assert isinstance(connection.session, RpcSession)
        assert connection.session.inflight == 0
    assert all(rule.inflight == 0 for rule in g.plane.routing.rules.all)


@pytest.mark.parametrize(
    ("seed", "language"),
    [
        pytest.param(1, msgpack(True), id="framed"),
        pytest.param(2, msgpack(True, False), id="bare mixed in"),
        pytest.param(3, thrift("binary"), id="thrift binary"),
        pytest.param(4, thrift("binary", "compact", "compact"), id="thrift compact mixed in"),
    ],
)
async def test_chaos(seed: int, language: Language) -> None:
    """Every request has one answer, its own or a documented error; none that must not be repeated is."""
    rng = random.Random(seed)
    unruly = [Unruly(language.strange, random.Random(rng.random())) for _ in range(4)]
    instances = [language.instance(behave) for behave in unruly]
    kinds = (("stall", "halt"), ("kill", "halt", "stall"), ("halt", "cut", "kill"), ("cut", "stall", "kill"))
    async with bed(
        *instances, listener=language.listener, service=SERVICE, gateway='rpc_memory = "64MiB"'
    ) as g:
        clients = [await language.client(g, rng.choice(language.forms)) for _ in range(language.clients)]
        plans = sizes(language.clients, rng)
        askers = [
            Asker(client, f"c{place}", plan, rng.choice(language.bases), random.Random(rng.random()))
            for place, (client, plan) in enumerate(zip(clients, plans, strict=True))
        ]
        troubles = [
            Trouble(*what, random.Random(rng.random())) for what in zip(instances, unruly, kinds, strict=True)
        ]
        tasks = [asyncio.create_task(trouble.run()) for trouble in troubles]
        await asyncio.gather(*(asker.run() for asker in askers))
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends
        await nothing_is_held(g)
        check_instances(askers, unruly)
        for instance in instances:
            instance.behave = echo
        await until(lambda: any(target.main.open for target in g.service.targets.values()))
        for client in clients:  # an answer too many would have come before this one
            assert await client.is_served()
        assert all(len(client.answers) == EACH + 1 for client in clients)
    outcomes = sum((asker.outcomes for asker in askers), Counter[str]())
    came = sum((trouble.came for trouble in troubles), Counter[str]())
    assert set(came) == {"kill", "cut", "stall", "halt"}
    assert outcomes[""] > 0.25 * outcomes.total()  # how many is for the machine to say
    assert {"", "upstream_lost", "deadline_exceeded"} <= set(outcomes)
