"""Which instance each single request goes to, by policy: however requests come, and whatever rules they have.

Clients here pipeline: a policy that looked at connections, or at reads, would be far from even.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tcpgw.balancing import hashing
from tcpgw.endpoints import Endpoint, Member, Snapshot
from tests.support.rpc import REQUEST, Bed, Client, Instance, Request, bed, echo, hold
from tests.support.rpc_ends import frame
from tests.support.streams import until

DEEP = "max_inflight = 1000\n"
# How requests pass: without a look at them, with one at their names, and each remembered by itself.
PATHS = {
    "in runs": "",
    "in runs by name": 'methods = { "other" = { timeout = "10s" } }',
    "one by one": 'methods = { "m" = { idempotent = true } }',
}
every_path = pytest.mark.parametrize("rules", PATHS.values(), ids=PATHS)
ROUND_ROBIN = 'policy = "round_robin"'


def burst(client: Client, count: int, *params: Any) -> None:
    """So many requests in one write."""
    client.transport.write(b"".join(frame(REQUEST, n, "m", [n, *params]) for n in range(count)))


def shares(*instances: Instance) -> list[int]:
    return [len(instance.requests) for instance in instances]


def even(counts: list[int]) -> bool:
    return max(counts) - min(counts) <= 1


async def weigh(g: Bed, *weighed: tuple[Instance, int]) -> None:
    """What discovery would say of weights."""
    members = [Member(Endpoint.parse(instance.endpoint), weight) for instance, weight in weighed]
    assert g.pool.snapshot
    version = g.pool.snapshot.version + 1
    await g.pool.publish(Snapshot.of("s", members, taken_at=0.0, version=version))


# ---- round_robin ----


@every_path
@pytest.mark.parametrize("limit", ["", DEEP], ids=["256 at a time", "all at a time"])
async def test_one_client_that_pipelines(rules: str, limit: str) -> None:
    """The requests of one write go to the instances in turn, in whatever pieces they are read."""
    instances = [Instance() for _ in range(3)]
    async with bed(*instances, listener=limit + rules, balance=ROUND_ROBIN) as g:
        client = await g.client()
        burst(client, 600)
        await client.got(600)
        assert even(shares(*instances))
        data = b"".join(frame(REQUEST, n, "m", [n]) for n in range(60))
        for at in range(0, len(data), 7):
            client.transport.write(data[at : at + 7])
            await asyncio.sleep(0)
        await client.got(660)
        assert even(shares(*instances))


@every_path
async def test_many_clients(rules: str) -> None:
    """Clients do not begin their rounds each for itself: with one request of each it is even too."""
    instances = [Instance() for _ in range(3)]
    async with bed(*instances, listener=rules, balance=ROUND_ROBIN) as g:
        clients = [await g.client() for _ in range(40)]
        for count in (1, 2, 7):
            before = [len(client.answers) for client in clients]
            for client in clients:
                burst(client, count)
            for client, had in zip(clients, before, strict=True):
                await client.got(had + count)
            assert even(shares(*instances)), count


@every_path
async def test_requests_of_all_sizes(rules: str) -> None:
    """A request that comes in several reads takes one turn, like any other."""
    instances = [Instance() for _ in range(3)]
    rng = random.Random(1)
    sizes = [rng.choice((0, 100, 9000, 70_000, 300_000)) for _ in range(90)]
    async with bed(*instances, listener=rules, balance=ROUND_ROBIN) as g:
        client = await g.client()
        for number, size in enumerate(sizes):
            client.ask(number, number, bytes(size))
        await client.got(90)
        assert even(shares(*instances))


@every_path
@pytest.mark.parametrize("clients", [1, 10])
async def test_weights(rules: str, clients: int) -> None:
    """An instance of three times the weight has three times the requests, from each client and in all."""
    light, heavy = Instance(), Instance()
    async with bed(light, heavy, listener=rules, balance=ROUND_ROBIN) as g:
        await weigh(g, (light, 1), (heavy, 3))
        asking = [await g.client() for _ in range(clients)]
        for client in asking:
            burst(client, 400 // clients)
        for client in asking:
            await client.got(400 // clients)
        assert abs(len(light.requests) - 100) <= 1
        assert abs(len(heavy.requests) - 300) <= 1


# ---- by load ----


@every_path
async def test_least_request_goes_where_nothing_is_under_way(rules: str) -> None:
    """While one instance holds requests, all others go to the idle one, one by one or many in one write."""
    busy, idle = Instance(hold), Instance(hold)
    async with bed(busy, idle, listener=DEEP + rules, balance='policy = "least_request"') as g:
        holding, client = await g.client(), await g.client()
        burst(holding, 40)
        await until(lambda: len(busy.held) + len(idle.held) == 40)
        assert len(busy.held) == len(idle.held) == 20
        idle.behave = echo
        idle.answer_all()
        await holding.got(20)
        for place in range(50):
            assert await client.call(place) == [place]
        burst(client, 20)
        await client.got(70)
        assert shares(busy, idle) == [20, 20 + 70]
        busy.answer_all()
        await holding.got(40)


def late(request: Request) -> None:
    asyncio.get_running_loop().call_later(0.3, request.answer)


@every_path
async def test_peak_ewma_avoids_a_slow_instance(rules: str) -> None:
    """From its first slow answer on an instance is hardly asked, whether it is idle or not."""
    slow, fast = Instance(late), Instance()
    async with bed(slow, fast, listener=rules, balance='policy = "peak_ewma"') as g:
        client = await g.client()
        while not slow.requests or not fast.requests:
            await client.call("first")
        asked = len(slow.requests)
        for place in range(200):
            assert await client.call(place) == [place]
        assert len(slow.requests) == asked
        # Pipelined, the slow one has what it can answer as soon as the many of the fast one: next to nothing.
        burst(client, 30)
        await client.got(len(client.answers) + 30)
        assert len(slow.requests) - asked <= 10


# ---- bounded load ----


def bounded(order: list[Endpoint], factor: float, count: int) -> dict[str, int]:
    """How many of `count` requests of one key each endpoint has, when none of them is answered."""
    loads = Counter(dict.fromkeys(order, 0))
    for total in range(count):
        cap = factor * (total + 1) / len(order)
        loads[next(endpoint for endpoint in order if loads[endpoint] < cap - 1e-9)] += 1
    return {str(endpoint): load for endpoint, load in loads.items()}


@every_path
@pytest.mark.parametrize("factor", [1.0, 1.25, 2.0])
@pytest.mark.parametrize("policy", ["maglev", "ring"])
async def test_a_hot_key_is_spread(policy: str, factor: float, rules: str) -> None:
    """A key's requests beyond its home's share go to its next endpoints, in their order, and come home again.

    Just as many as if each were chosen by itself, though they come in one write.
    """
    instances = [Instance(hold) for _ in range(3)]
    balance = f'policy = "{policy}", bounded_load = {factor}'
    async with bed(*instances, listener=DEEP + rules, balance=balance) as g:
        order = list(g.pool.candidates(hashing.source_ip("127.0.0.1", hashing.SEED)))
        by_name = {instance.endpoint: instance for instance in instances}
        client = await g.client()
        for count in (1, 2, 7, 100):
            burst(client, count)
            await until(lambda count=count: sum(len(i.held) for i in instances) == count)  # type: ignore[misc]
            assert {name: len(one.held) for name, one in by_name.items()} == bounded(order, factor, count)
            await client.got(len(client.answers) + sum(instance.answer_all() for instance in instances))
        home = by_name[str(order[0])]
        before = len(home.requests)
        home.behave = echo
        for place in range(30):
            assert await client.call(place) == [place]
        assert len(home.requests) == before + 30


@every_path
async def test_a_hot_key_of_many_clients(rules: str) -> None:
    """The bound holds for all clients of a key together."""
    instances = [Instance(hold) for _ in range(3)]
    async with bed(*instances, listener=rules, balance="bounded_load = 1.25, table_size = 1021") as g:
        clients = [await g.client() for _ in range(30)]
        for client in clients:
            burst(client, 4)
        await until(lambda: sum(len(instance.held) for instance in instances) == 120)
        counts = sorted(len(instance.held) for instance in instances)
        assert counts[-1] == 50  # 1.25 times 120 / 3
        assert counts[0] >= 20
        for instance in instances:
            instance.answer_all()
        for client in clients:
            await client.got(4)


async def test_a_hot_session() -> None:
    """A key in a field is spread likewise, and requests of others stay at home beside it."""
    instances = [Instance(hold) for _ in range(3)]
    balance = 'bounded_load = 1.25, table_size = 1021, key = "params[0].session"'
    async with bed(*instances, listener=DEEP, balance=balance) as g:
        client = await g.client()
        position = hashing.other(b"hot", hashing.SEED)
        home = str(g.pool.home(position))
        for number in range(90):
            client.ask(number, {"session": "hot"})
        await until(lambda: sum(len(instance.held) for instance in instances) == 90)
        counts = {instance.endpoint: len(instance.held) for instance in instances}
        assert counts[home] == max(counts.values()) == 38  # below 1.25 times 90 / 3, rounded up
        for instance in instances:
            instance.behave = echo
            instance.answer_all()
        await client.got(90)
        for number in range(20):
            client.ask(number, {"session": "hot"})
            await client.got(91 + number)
        (at_home,) = [instance for instance in instances if instance.endpoint == home]
        assert len(at_home.requests) == 38 + 20


# ---- a split ----


SPLIT = """
    [[service]]
    name = "t"
    discovery = {{ type = "static", endpoints = [{members}] }}
    balance = {{ {balance} }}
    [[listener]]
    name = "split"
    mode = "rpc"
    route = [ {{ service = "s", weight = 75 }}, {{ service = "t", weight = 25 }} ]
    bind = "127.0.0.1:0"
    {rules}
"""
BY_SESSION = 'policy = "maglev", bounded_load = 0.0, table_size = 1021, key = "params[0].session"'
Ask = Callable[[Client, int, Any], None]


def ask_small(client: Client, number: int, session: Any) -> None:
    client.ask(number, {"session": session}, "small", session)


def ask_large(client: Client, number: int, session: Any) -> None:
    client.ask(number, {"other": [1, {}], "session": session, "more": bytes(20_000)}, "large", session)


def ask_another(client: Client, number: int, session: Any) -> None:
    client.ask(number, {"session": session}, "another", session, method="another")


@pytest.mark.parametrize("rules", ["", 'methods = { "another" = { priority = "high" } }'])
async def test_a_split_by_sessions(rules: str) -> None:
    """Each session has one service and one endpoint there, whoever asks how; services have their shares."""
    old, new = [Instance(), Instance()], [Instance(), Instance()]
    for instance in new:
        await instance.start()
    members = ", ".join(f'"{instance.endpoint}"' for instance in new)
    try:
        more = SPLIT.format(members=members, balance=BY_SESSION, rules=rules)
        async with bed(*old, balance=BY_SESSION, more=more) as g:
            ways: list[tuple[bool, Ask]] = [(True, ask_small), (False, ask_small), (True, ask_another)]
            sessions = [*(f"session {n}" for n in range(300)), *range(100)]
            for framed, ask in ways:
                client = await g.client(framed=framed, listener="split")
                for number, session in enumerate(sessions):
                    ask(client, number, session)
                await client.got(len(sessions))
            for framed in (True, False):
                client = await g.client(framed=framed, listener="split")
                for number, session in enumerate(sessions[::10]):
                    ask_large(client, number, session)
                await client.got(len(sessions) // 10)
            await until(lambda: len(g.listener.connections) == 0)
    finally:
        for instance in new:
            instance.kill()
    where = [{request.params[2] for request in instance.requests} for instance in (*old, *new)]
    assert sum(map(len, where)) == len(set().union(*where)) == len(sessions)  # each in one place
    share = (len(where[0]) + len(where[1])) / len(sessions)
    assert abs(share - 0.75) < 0.07
    assert all(map(len, where))
