"""What subjects may use of an rpc listener: services, and methods in whichever way requests pass."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from tcpgw.config.load import loads
from tcpgw.relay.rpc import session
from tcpgw.relay.rpc.plane import RpcPlane
from tests.support.access import (
    WAYS,
    Book,
    Gate,
    configuration,
    gate,
    now_claims,
    service,
    started,
)
from tests.support.rpc import ANSWER, Instance, bare
from tests.support.rpc_ends import frame
from tests.support.rpc_thrift import ThriftInstance
from tests.support.streams import in_time, until
from tests.support.tokens import signed

RPC = 'mode = "rpc"\n'
DENIED = {"code": "denied", "message": "this method is not allowed here"}
ALLOWED, OTHERS = ("predict", "rank.a", "rank."), ("admin", "rank", "predict2", "predic")

# How requests pass: together in turns and in runs, each in its turn, or one by one.
SPEEDS = {
    "runs": 'policy = "maglev", table_size = 1021, key = "source_ip"',
    "spread": 'policy = "round_robin"',
    "by method": 'policy = "maglev", table_size = 1021, key = "method"',
    "by field": 'policy = "maglev", table_size = 1021, key = "params[0]"',
}
RULES = {
    "plain": "",
    "ruled": 'methods = { "predict" = { idempotent = true }, "rank.*" = { priority = "high" } }\n',
    "elsewhere": 'methods = { "rank.*" = { service = "t" }, "admin" = { service = "t" } }\n',
    "deadline": 'deadline = "params[1]"\n',
}
SUBJECTS = """
[listener.access.subjects]
"alice" = { methods = ["predict", "rank.*"] }
"bob" = { methods = ["admin"] }
"root" = {}
"""


# ---- methods ----


class Talk:
    """A client that asks for many methods at random, and what it must be told."""

    def __init__(self, client: Any, methods: tuple[str, ...], allowed: tuple[str, ...], seed: int) -> None:
        self.client = client
        self.expected: dict[int, Any] = {}
        self.allowed = allowed
        self._random = random.Random(seed)
        self._methods = methods
        self._at = 0

    def messages(self, count: int) -> list[bytes]:
        pack = frame if self.client.framed else bare
        made = []
        for _ in range(count):
            self._at += 1
            method = self._random.choice(self._methods)
            if self._random.random() < 0.1:
                made.append(pack(2, method, ["told"]))
                continue
            made.append(pack(0, self._at, method, [self._at]))
            allowed = method in self.allowed
            self.expected[self._at] = (None, [self._at]) if allowed else (DENIED, None)
        return made

    async def check(self) -> None:
        await self.client.got(len(self.expected))
        assert len(self.client.answers) == len(self.expected)
        assert {number: (error, result) for _, number, error, result in self.client.answers} == self.expected


@pytest.mark.parametrize("framed", [True, False], ids=["framed", "bare"])
@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("speed", SPEEDS)
async def test_methods_of_two_subjects(speed: str, rules: str, framed: bool, tmp_path: Path) -> None:
    """Each has one answer to each request, good or `denied`, and instances see what is allowed alone."""
    book = Book(tmp_path)
    bob, root = book.add("bob"), book.add("root")
    instances = [Instance(), Instance(), Instance()]
    first, second, other = await started(*instances)
    text = configuration(
        [first, second],
        RPC + RULES[rules] + book.access(SUBJECTS),
        balance=SPEEDS[speed],
        more=service("t", other, balance=SPEEDS[speed]),
    )
    methods = ALLOWED + OTHERS
    async with gate(text, *instances) as g:
        talks = [
            Talk(await g.client(book.key, framed=framed), methods, ALLOWED, 1),
            Talk(await g.client(bob, framed=framed), methods, ("admin",), 2),
            Talk(await g.client(root, framed=framed), methods, methods, 3),
            Talk(await g.client(book.token("RS256"), framed=framed), methods, ALLOWED, 4),
        ]
        for size in (1, 1, 1, 40, 2, 1, 1, 7, 100, 1):
            for talk in talks:
                talk.client.transport.write(b"".join(talk.messages(size)))
            await asyncio.sleep(0.002 if size < 5 else 0)
        for talk in talks:
            await talk.check()
        good = sum(error is None for talk in talks for error, _ in talk.expected.values())
        assert sum(len(instance.requests) for instance in instances) == good


@pytest.mark.parametrize("method", OTHERS)
async def test_a_notification_that_is_not_allowed(method: str, tmp_path: Path) -> None:
    """It reaches nobody and has no answer; what comes behind it is served."""
    book, instance = Book(tmp_path), Instance()
    async with gate(configuration(await started(instance), RPC + book.access(SUBJECTS)), instance) as g:
        client = await g.client(book.key)
        client.send(2, method, ["told"])
        client.send(2, "predict", ["told"])
        assert await client.call("x", method="predict") == ["x"]
        assert [name for name, _ in instance.notifications] == ["predict"]
        assert len(client.answers) == 1


@pytest.mark.parametrize("name", ["thrift-binary", "thrift-compact"])
async def test_methods_in_thrift(name: str, tmp_path: Path) -> None:
    """Likewise, pipelined and one by one."""
    way, book, instance = WAYS[name], Book(tmp_path), ThriftInstance()
    text = configuration(
        await started(instance), way.lines + book.access('subjects = { "alice" = { methods = ["m"] } }')
    )
    async with gate(text, instance) as g:
        denied = way.failed("other", 2, "denied: this method is not allowed here")
        asked = way.request(1) + way.call("other", 2) + way.request(3)
        peer = g.dial(way.hello(book.key) + asked)
        answers = {way.answer(1), denied, way.answer(3)}
        heard = await peer.read(len(way.welcome) + sum(map(len, answers)))
        assert heard.startswith(way.welcome)
        rest = heard[len(way.welcome) :]
        assert all(rest.count(answer) == 1 for answer in answers)
        await peer.send(way.call("other", 2))
        assert await peer.read(len(denied)) == denied
        assert [request.method for request in instance.requests] == ["m", "m"]


# ---- listeners and services ----


async def test_credentials_for_other_listeners(tmp_path: Path) -> None:
    """Keys and tokens that name listeners are good for those alone; the client is not told why."""
    way, book, instance = WAYS["msgpack"], Book(tmp_path), Instance()
    elsewhere, here = book.add("a", listeners=["x*"]), book.add("b", listeners=["x", "l*"])
    async with gate(configuration(await started(instance), RPC + book.access()), instance) as g:
        jwt = signed(now_claims(tcpgw={"listeners": ["other"]}), "ES256")
        for token in (elsewhere, jwt):
            assert await g.told(way.hello(token)) == way.denied()
        good = signed(now_claims(tcpgw={"listeners": ["l"], "methods": ["m"]}), "ES256")
        for token in (here, good):
            client = await g.client(token)
            assert await client.is_served()
        await until(lambda: g.ended() == {"denied_credentials": 2})


SPLIT = '[ { service = "s", weight = 1 }, { service = "t", weight = 1 } ]'


@pytest.mark.parametrize("name", ["tcp", "msgpack", "bare"])
async def test_services(name: str, tmp_path: Path) -> None:
    """A split is narrowed to what a subject may use; who may use none of it is denied at once."""
    way, book = WAYS[name], Book(tmp_path)
    instances = [Instance(), Instance()]
    first, second = await started(*instances)
    keys = {only: book.add(f"of-{only}", services=[only]) for only in ("s", "t", "u")}
    balance = 'policy = "maglev", table_size = 1021, key = "source_ip_port"'
    text = configuration(
        [first],
        way.lines + book.access(),
        balance=balance,
        route=SPLIT,
        more=service("t", second, balance=balance),
    )
    async with gate(text, *instances) as g:
        for at, only in enumerate(("s", "t")):
            for number in range(12):
                await _served(g, way, way.hello(keys[only]), number)
            assert [len(instance.requests) for instance in instances][at] == 12
            assert sum(len(instance.requests) for instance in instances) == 12 * (at + 1)
        for number in range(32):
            await _served(g, way, way.hello(book.key), number)
        assert min(len(instance.requests) for instance in instances) > 13
        assert await g.told(way.hello(keys["u"]) + way.request(1)) == way.denied("denied")
        jwt = signed(now_claims(tcpgw={"services": []}), "HS256")
        assert await g.told(way.hello(jwt)) == way.denied("denied")
        await until(lambda: g.ended().get("denied_service") == 2)
        assert len(g.events("denied")) == 1


async def _served(g: Gate, way: Any, hello: bytes, number: int) -> None:
    peer = g.dial(hello + way.request(number))
    expected = way.welcome + way.answer(number)
    assert await peer.read(len(expected)) == expected


async def test_methods_that_go_to_other_services(tmp_path: Path) -> None:
    """Who may use no service of the route, but the one of a rule, has the methods of that rule."""
    book, instances = Book(tmp_path), [Instance(), Instance()]
    first, second = await started(*instances)
    only = book.add("only-t", services=["t"])
    rules = 'methods = { "rank" = { service = "t" }, "x.*" = { service = "s" } }\n'
    text = configuration([first], RPC + rules + book.access(), more=service("t", second))
    async with gate(text, *instances) as g:
        one, all_ = await g.client(only), await g.client(book.key)
        assert await one.call(1, method="rank") == [1]
        assert await one.call(1, method="m") == DENIED
        assert await one.call(1, method="x.y") == DENIED
        for method in ("rank", "m", "x.y"):
            assert await all_.call(2, method=method) == [2]
        assert [len(instance.requests) for instance in instances] == [2, 2]


# ---- reloads ----


async def test_a_reload_changes_what_subjects_may_use(tmp_path: Path) -> None:
    """Sessions that would be given something else are asked to return for it; others are left alone."""
    book, instance = Book(tmp_path), Instance()
    endpoints = await started(instance)
    bob, carol = book.add("bob"), book.add("carol", methods=["a"])

    async def reload(g: Gate, alice: str, more: str = "") -> None:
        await g.gateway.reload(loads(text(alice, more), Path()))

    def text(alice: str, more: str = "") -> str:
        subjects = f'subjects = {{ "alice" = {{ methods = ["{alice}"] }}, "bob" = {{ methods = ["b"] }} }}'
        return configuration(endpoints, RPC + more + book.access(subjects))

    async with gate(text("a"), instance) as g:
        alice, other, third = await g.client(book.key), await g.client(bob), await g.client(carol)
        assert await alice.call(1, method="a") == [1]
        assert await alice.call(1, method="b") == DENIED
        await reload(g, "b")
        await in_time(alice.ended.wait())
        alice = await g.client(book.key)
        assert await alice.call(1, method="b") == [1]
        assert await alice.call(1, method="a") == DENIED
        assert await other.call(1, method="b") == [1]
        assert await third.call(1, method="a") == [1]
        # A rule of the listener counts for all, in the sessions that there are.
        await reload(g, "b", 'methods = { "b" = "deny" }\n')
        assert await alice.call(1, method="b") == DENIED
        assert await other.call(1, method="b") == DENIED
        assert await third.call(1, method="a") == [1]
        assert g.ended() == {"access_ended": 1}


async def test_who_never_pauses_is_not_heard_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it asks without its permission is soon not taken any more; what was taken is answered."""
    monkeypatch.setattr(session, "_LAST_CALL", 0.3)
    book, instance = Book(tmp_path), Instance()
    endpoints = await started(instance)

    def text(method: str) -> str:
        return configuration(
            endpoints, RPC + book.access(f'subjects = {{ "alice" = {{ methods = ["{method}"] }} }}')
        )

    async with gate(text("a"), instance) as g:
        client = await g.client(book.key)
        for number in range(32):
            client.ask(number, number, method="a")
        sent = 32
        await g.gateway.reload(loads(text("b"), Path()))
        async with asyncio.timeout(5):
            while not client.ended.is_set():
                while sent - len(client.answers) < 32:
                    client.ask(sent, sent, method="a")
                    sent += 1
                await asyncio.sleep(0)
        assert all(answer[2] is None for answer in client.answers)
        assert len(instance.requests) == len(client.answers) < sent


async def test_what_is_made_for_subjects_goes_with_them(tmp_path: Path) -> None:
    """Clients that may use the same have one plane; nothing is left of it when the last of them goes."""
    book, instances = Book(tmp_path), [Instance(), Instance()]
    bob = book.add("bob")
    first, second = await started(*instances)

    def text(route: str) -> str:
        balance = 'policy = "maglev", table_size = 1021, key = "source_ip_port"'
        beside = f'[[listener]]\nname = "k"\nbind = "127.0.0.1:0"\nroute = "t"\n{RPC}'
        more = service("t", second, balance=balance) + beside
        lines = RPC + book.access(SUBJECTS)
        return configuration([first], lines, balance=balance, route=route, more=more)

    async with gate(text(SPLIT), *instances) as g:
        plane = g.listener._plane
        assert isinstance(plane, RpcPlane)
        clients = [await g.client(token) for token in (book.key, bob) * 12]
        for client in clients:
            for method in ("admin", "predict", "admin"):
                assert await client.call(1, method=method) in ([1], DENIED)
        assert sorted(len(one.sessions) for one in plane.all) == [0, 12, 12]
        turns = [one._turns for made in g.gateway.relays.rpc.values() for one in made.targets.values()]
        assert min(map(len, turns)) >= 2
        await g.gateway.reload(loads(text('"s"'), Path()))
        assert await clients[0].call(1, method="predict") == [1]
        for client in clients:
            client.transport.close()
        await until(lambda: not g.listener.connections)
        assert list(plane.all) == [plane]
        assert not any(turns)


async def test_a_reload_under_a_stream_of_requests(tmp_path: Path) -> None:
    """Requests that are under way when rules change have one answer each, by the old or by the new ones."""
    book, instance = Book(tmp_path), Instance()
    endpoints = await started(instance)

    def text(rules: str) -> str:
        return configuration(endpoints, RPC + rules + book.access(SUBJECTS), balance=SPEEDS["runs"])

    async with gate(text(""), instance) as g:
        client = await g.client(book.key)
        sent = 0
        for turn in range(40):
            for _ in range(20):
                sent += 1
                client.ask(sent, sent, method="predict")
            if turn % 10 == 5:
                rule = 'methods = { "predict" = "deny" }\n' if turn % 20 == 5 else ""
                await g.gateway.reload(loads(text(rule), Path()))
            await asyncio.sleep(0)
        answers = await client.got(sent)
        assert sorted(answer[1] for answer in answers) == list(range(1, sent + 1))
        good = [answer[1] for answer in answers if answer[2] is None]
        assert all(answer == [ANSWER, answer[1], DENIED, None] for answer in answers if answer[2] is not None)
        assert 1 in good
        assert sent in good
        assert len(good) == len(instance.requests) < sent
