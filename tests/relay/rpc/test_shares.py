"""Requests while endpoints have less than their weight: who is out gets none, a trial what chance says."""

import asyncio
from collections import Counter

import pytest

from tcpgw.balancing import hashing
from tcpgw.balancing.standing import Share
from tcpgw.endpoints import Endpoint
from tcpgw.relay.rpc.session import RpcSession
from tests.support.rpc import REQUEST, Bed, Client, Instance, bed, hold
from tests.support.rpc_ends import frame
from tests.support.streams import until

MAGLEV = 'policy = "maglev", table_size = 1021, bounded_load = 0.0'
BOUNDED = 'policy = "maglev", table_size = 1021'
ROUND_ROBIN = 'policy = "round_robin"'
OUT, TRIAL = Share(0.0), Share(0.1, by_key=False)
# How requests pass: without a look at them, with one at their names, at each one, and each remembered.
PATHS = {
    "in runs": "",
    "in runs by name": 'methods = { "other" = { timeout = "10s" } }',
    "each": 'deadline = "params[1]"',
    "one by one": 'methods = { "m" = { idempotent = true } }',
}
every_path = pytest.mark.parametrize("listener", PATHS.values(), ids=PATHS)


def weigh(g: Bed, shares: dict[Instance, Share]) -> None:
    g.pool.weigh({Endpoint.parse(instance.endpoint): share for instance, share in shares.items()})


def at_home(g: Bed, *instances: Instance) -> tuple[Instance, list[Instance]]:
    """The instance that all requests of clients here belong to, and the others."""
    home = str(g.pool.home(hashing.source_ip("127.0.0.1")))
    (found,) = [instance for instance in instances if instance.endpoint == home]
    return found, [instance for instance in instances if instance is not found]


def burst(client: Client, count: int) -> None:
    client.transport.write(b"".join(frame(REQUEST, n, "m", [n, 60_000]) for n in range(count)))


def by_turns(g: Bed) -> list[bool]:
    """Of each client, whether what it sends next goes the fastest way."""
    found = [connection.session for connection in g.listener.connections.values()]
    return [session.turn is not None for session in found if isinstance(session, RpcSession)]


@every_path
@pytest.mark.parametrize("balance", [MAGLEV, BOUNDED, ROUND_ROBIN])
async def test_who_is_out_gets_no_request(balance: str, listener: str) -> None:
    """Its connections stand meanwhile, and with the next request after its return it has some again."""
    instances = [Instance() for _ in range(3)]
    async with bed(*instances, balance=balance, listener=listener) as g:
        clients = [await g.client() for _ in range(3)]
        sick, _ = at_home(g, *instances) if balance == MAGLEV else (instances[0], [])
        for out in (True, False):
            before = len(sick.requests)
            accepted = sick.accepted
            weigh(g, {sick: OUT} if out else {})
            for client in clients:
                count = len(client.answers)
                burst(client, 200)
                await client.got(count + 200)
                await client.call("one", 60_000)
            assert (len(sick.requests) == before) == out or balance == BOUNDED
            assert not out or len(sick.requests) == before
            assert sick.accepted == accepted
            assert g.target(sick).alive


@pytest.mark.parametrize("balance", [MAGLEV, ROUND_ROBIN])
async def test_what_waits_goes_elsewhere_at_once(balance: str) -> None:
    """Not when its time in the queue is over; what is under way is answered by who has it."""
    instances = [Instance(hold), Instance(hold)]
    limits = 'rpc = { max_inflight = 3, queue = 100, queue_timeout = "1h" }'
    async with bed(*instances, balance=balance, service=limits) as g:
        sick, (well,) = at_home(g, *instances) if balance == MAGLEV else (instances[0], instances[1:])
        weigh(g, {well: OUT})
        client = await g.client()
        burst(client, 9)
        await until(lambda: len(sick.held) == 3 and len(g.target(sick).main.queue) == 6)
        weigh(g, {sick: OUT})
        assert not g.target(sick).main.queue
        await until(lambda: len(well.held) == 3)
        while len(client.answers) < 9:
            sick.answer_all()
            well.answer_all()
            await asyncio.sleep(0.01)
        assert (len(sick.requests), len(well.requests)) == (3, 6)


async def test_where_all_are_out_clients_are_told() -> None:
    """Of those that waited and of those that come: an operator reads why."""
    instance = Instance(hold)
    async with bed(instance, balance=MAGLEV, service="rpc = { max_inflight = 1, queue = 9 }") as g:
        client = await g.client()
        burst(client, 2)
        await until(lambda: g.target(instance).main.queue)
        weigh(g, {instance: OUT})
        error = (await client.got(1))[0][2]
        assert error["code"] == "no_endpoint"
        assert error["message"] == "service s has 1 endpoints, and health checks let none of them be used"
        instance.answer_all()
        await client.got(2)
        assert (await client.call("new"))["code"] == "no_endpoint"
        weigh(g, {})
        client.ask(5, "back")
        await until(lambda: instance.held)
        instance.answer_all()
        assert (await client.got(4))[3] == [1, 5, None, ["back"]]


async def test_who_is_back_takes_what_waits() -> None:
    """Where load may move requests: at once, and without a request of its own."""
    instances = [Instance(hold), Instance(hold)]
    limits = 'rpc = { max_inflight = 2, queue = 100, queue_timeout = "1h" }'
    async with bed(*instances, balance=ROUND_ROBIN, service=limits) as g:
        weigh(g, {instances[0]: OUT})
        client = await g.client()
        burst(client, 4)
        await until(lambda: len(g.target(instances[1]).main.queue) == 2)
        g.target(instances[0]).main.changed()  # as when a connection comes up
        await asyncio.sleep(0.02)
        assert not instances[0].held
        weigh(g, {instances[0]: TRIAL})
        await asyncio.sleep(0.02)
        assert not instances[0].held
        weigh(g, {instances[0]: OUT})
        weigh(g, {})
        await until(lambda: len(instances[0].held) == 2)
        for instance in instances:
            instance.answer_all()
        await client.got(4)


async def test_load_moves_to_a_slow_start_what_its_share_allows() -> None:
    """And to a trial nothing: others are full, and it has room."""
    instances = [Instance(hold), Instance(hold)]
    limits = 'rpc = { max_inflight = 10, queue = 100, queue_timeout = "1h" }'
    async with bed(*instances, balance=MAGLEV.replace("0.0", "100.0"), service=limits) as g:
        home, (other,) = at_home(g, *instances)
        client = await g.client()
        weigh(g, {other: TRIAL})
        burst(client, 20)
        await until(lambda: len(g.target(home).main.queue) == 10)
        assert not other.held
        weigh(g, {other: OUT})
        weigh(g, {other: Share(0.3)})
        await until(lambda: len(other.held) == 3)
        await asyncio.sleep(0.02)
        assert len(other.held) == 3
        while len(client.answers) < 20:
            for instance in instances:
                instance.answer_all()
            await asyncio.sleep(0.01)


@every_path
@pytest.mark.parametrize("balance", [MAGLEV, BOUNDED.replace("1021", "1021, bounded_load = 100.0")])
async def test_a_trial_has_its_share_of_few_clients_many_requests(balance: str, listener: str) -> None:
    """Of the requests that belong to it about a tenth, however they come; and all when it is well again."""
    instances = [Instance() for _ in range(3)]
    async with bed(*instances, balance=balance, listener=listener + "\nmax_inflight = 1000") as g:
        sick, others = at_home(g, *instances)
        clients = [await g.client() for _ in range(2)]
        for client in clients:
            await client.call("first", 60_000)
        weigh(g, {sick: TRIAL})
        before = len(sick.requests)
        for client in clients:
            for _ in range(2):
                count = len(client.answers)
                burst(client, 500)
                await client.got(count + 500)
            for number in range(200):
                await client.call(number, 60_000)
        assert 160 < len(sick.requests) - before < 330  # of 2400
        heirs = Counter(len(instance.requests) > 0 for instance in others)
        assert heirs[True] == 1  # all else goes where the key belongs without it
        weigh(g, {})
        before = len(sick.requests)
        for client in clients:
            await client.call("well", 60_000)
            await client.call("well", 60_000)
        assert len(sick.requests) - before == 4


async def test_only_clients_of_a_trial_leave_the_fast_way() -> None:
    """Whoever belongs elsewhere goes on by turns, and so do those when it is over."""
    instances = [Instance() for _ in range(3)]
    async with bed(*instances, balance=MAGLEV) as g:
        home, (other, _) = at_home(g, *instances)
        client = await g.client()
        for shares, fast in (({}, True), ({other: TRIAL}, True), ({home: TRIAL}, False), ({}, True)):
            weigh(g, shares)
            await client.call("a")
            await client.call("b")
            assert by_turns(g) == [fast]


async def test_reads_that_lie_in_a_turn_when_their_endpoint_goes_out() -> None:
    """They were not sent, and go where their key belongs now."""
    instances = [Instance() for _ in range(3)]
    async with bed(*instances, balance=MAGLEV) as g:
        home, _ = at_home(g, *instances)
        client = await g.client()
        await client.call("first")
        (connection,) = g.listener.connections.values()
        session = connection.session
        assert isinstance(session, RpcSession)
        session.data_received(frame(REQUEST, 5, "m", ["moved"]))
        assert session.turn is not None
        assert session in session.turn.reads
        weigh(g, {home: OUT})
        assert (await client.got(2))[1] == [1, 5, None, ["moved"]]
        assert home.seen["moved"] == 0


async def test_a_slow_start_has_its_part_of_the_keys() -> None:
    """By the keys of requests: each goes where the pool says, and about half of its own to who starts."""
    instances = [Instance() for _ in range(3)]
    async with bed(*instances, balance=f'{MAGLEV}, key = "params[0]"') as g:
        starting = instances[0]
        labels = [f"key {number}" for number in range(600)]
        positions = {label: hashing.other(label.encode(), hashing.SEED) for label in labels}
        own = [label for label in labels if str(g.pool.home(positions[label])) == starting.endpoint]
        weigh(g, {starting: Share(0.5)})
        client = await g.client()
        for label in labels:
            await client.call(label)
        for label in labels:
            (seen,) = [instance.endpoint for instance in instances if instance.seen[label]]
            assert seen == str(g.pool.home(positions[label]))
        assert {*starting.seen} < {*own}
        assert 0.35 < len(starting.requests) / len(own) < 0.65
