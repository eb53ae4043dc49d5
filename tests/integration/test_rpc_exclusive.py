"""Instances that serve one call at a time per connection: exclusive connections."""

import asyncio
from collections import Counter

import pytest

from tests.support.rpc import NOTIFY, Behaviour, Client, Instance, Request, bed, echo, hold
from tests.support.streams import until


class Serial(Instance):
    """Keeps account of how many calls are under way on each connection, and in all."""

    def __init__(self, behave: Behaviour, **options: bool) -> None:
        super().__init__(self._begin, **options)
        self.act = behave
        self.under_way: Counter[int] = Counter()
        self.most = 0  # in all
        self.most_on_one = 0

    def _begin(self, request: Request) -> None:
        self.under_way[id(request.link)] += 1
        self.most = max(self.most, self.under_way.total())
        self.most_on_one = max(self.most_on_one, *self.under_way.values())
        self.act(request)

    def finish(self, request: Request) -> None:
        self.under_way[id(request.link)] -= 1
        if not request.link.transport.is_closing():
            request.answer()


def later(seconds: float) -> Behaviour:
    def behave(request: Request) -> None:
        instance = request.link.instance
        assert isinstance(instance, Serial)
        asyncio.get_running_loop().call_later(seconds, instance.finish, request)

    return behave


def exclusive(connections: int, more: str = "") -> str:
    return f'rpc = {{ exclusive = true, connections = {connections}, queue_timeout = "20s"{more} }}'


def outcomes(*clients: Client) -> Counter[str]:
    return Counter(error["code"] if error else "" for client in clients for _, _, error, _ in client.answers)


async def until_asked(count: int, *instances: Instance) -> None:
    await until(lambda: sum(len(instance.requests) for instance in instances) >= count)


# ---- one at a time ----


@pytest.mark.parametrize("framed", [True, False])
@pytest.mark.parametrize("connections", [1, 3])
async def test_one_call_at_a_time_per_connection(framed: bool, connections: int) -> None:
    """As many calls as connections are under way at the same time, never two on one; the others wait in turn
    and each is answered with its own.
    """
    instance = Serial(later(0.005))
    async with bed(instance, service=exclusive(connections)) as g:
        clients = [await g.client(framed=framed) for _ in range(4)]
        for place, client in enumerate(clients):
            for turn in range(10):
                client.ask(turn, 100 * place + turn)
        for place, client in enumerate(clients):
            answers = await client.got(10)
            assert sorted(answers) == [[1, turn, None, [100 * place + turn]] for turn in range(10)]
        assert (instance.most, instance.most_on_one) == (connections, 1)
        assert instance.accepted == connections
        assert set(instance.seen.values()) == {1}


async def test_several_endpoints() -> None:
    """Each has connections of its own, and calls go wherever one is free."""
    instances = [Serial(later(0.01)) for _ in range(2)]
    async with bed(*instances, service=exclusive(2)) as g:
        client = await g.client()
        for turn in range(24):
            client.ask(turn, turn)
        await client.got(24)
        assert outcomes(client) == {"": 24}
        assert all(instance.requests for instance in instances)
        assert all((instance.most <= 2, instance.most_on_one == 1) == (True, True) for instance in instances)


async def test_clients_take_turns() -> None:
    """One client's many calls do not make another client's single one wait for all of them."""
    instance = Instance(hold)
    async with bed(instance, service=exclusive(1)) as g:
        many, one = await g.client(), await g.client()
        for turn in range(50):
            many.ask(turn, "many", turn)
        await until(lambda: instance.held and len(g.target(instance).main.queue) == 49)
        one.ask(1, "one")
        await until(lambda: len(g.target(instance).main.queue) == 50)
        for count in range(1, 4):
            instance.answer_all()
            await until_asked(count + 1, instance)
        assert "one" in instance.seen
        assert [request.params[1] for request in instance.requests if request.params[0] == "many"] == [
            0,
            1,
            2,
        ]
        instance.behave = echo
        instance.answer_all()
        await many.got(50)
        await one.got(1)
        assert outcomes(many, one) == {"": 51}


async def test_large_calls_too() -> None:
    """Calls of any size share the connections: none goes beside them."""
    instance = Serial(later(0.005))
    async with bed(instance, service=exclusive(2)) as g:
        client = await g.client()
        for turn in range(8):
            client.ask(turn, turn, bytes(turn % 2 * 500_000))
        await client.got(8)
        assert outcomes(client) == {"": 8}
        assert (instance.most_on_one, instance.accepted) == (1, 2)


async def test_notifications_pass() -> None:
    """Nobody answers them, so they hold no connection."""
    instance = Instance()
    async with bed(instance, service=exclusive(1)) as g:
        client = await g.client()
        for turn in range(20):
            client.send(NOTIFY, "n", [turn])
            assert await client.call(turn) == [turn]
        assert [params for _, params in instance.notifications] == [[turn] for turn in range(20)]


# ---- connections ----


async def test_connections_are_opened_as_needed() -> None:
    """One at first, one more for each call that finds none free, at most `connections`, and they are kept."""
    instance = Instance(hold)
    async with bed(instance, service=exclusive(4)) as g:
        client = await g.client()
        instance.behave = echo
        for turn in range(20):
            assert await client.call(turn) == [turn]
        assert instance.accepted == 1
        instance.behave = hold
        for busy in range(1, 7):
            client.ask(busy, busy)
            expected = min(busy, 4)
            await until_asked(20 + expected, instance)
            assert len(instance.held) == expected
            assert (instance.accepted, len(instance.links)) == (expected, expected)
        instance.behave = echo
        instance.answer_all()
        await client.got(26)
        assert (outcomes(client), instance.accepted) == ({"": 26}, 4)


async def test_nobody_waits_forever() -> None:
    """A call that finds no free connection for queue_timeout is told `overloaded`, a longer queue at once."""
    instance = Instance(hold)
    service = 'rpc = { exclusive = true, connections = 2, queue = 3, queue_timeout = "200ms" }'
    async with bed(instance, service=service) as g:
        client = await g.client()
        for turn in range(8):
            client.ask(turn, turn)
        await until(lambda: len(instance.held) == 2)
        await client.got(1)
        assert outcomes(client)["overloaded"] >= 1
        await client.got(6)
        assert outcomes(client) == {"overloaded": 6}
        assert all(client.answers)
        instance.behave = echo
        instance.answer_all()
        await client.got(8)
        assert outcomes(client) == {"overloaded": 6, "": 2}
        assert len(instance.requests) == 2
        assert await client.is_served()


async def test_a_call_that_takes_too_long() -> None:
    """Its connection is replaced, since the instance is busy with it still: who comes next does not wait
    behind it, and the answer that comes too late is nobody's.
    """
    instance = Instance(hold)
    rules = 'methods = { "slow" = { timeout = "150ms" } }'
    async with bed(instance, service=exclusive(1), listener=rules) as g:
        client = await g.client()
        client.ask(1, "slow", method="slow")
        await until(lambda: instance.held)
        (link,) = instance.links
        client.ask(2, "next")
        (answer,) = await client.got(1)
        assert (answer[1], answer[2]["code"]) == (1, "deadline_exceeded")
        await until(lambda: len(instance.held) == 2)
        assert link.ended.is_set()
        assert instance.held[1].link is not link
        instance.answer_all()
        assert (await client.got(2))[1] == [1, 2, None, ["next"]]
        assert (instance.accepted, len(instance.links)) == (2, 1)
        assert instance.seen == {"slow": 1, "next": 1}


async def test_many_calls_that_take_too_long() -> None:
    """A connection that the gateway itself has ended is replaced at once, however often: the instance is not
    to blame, and others wait.
    """
    instance = Instance(hold)
    rules = 'methods = { "slow" = { timeout = "100ms" } }'
    async with bed(instance, service=exclusive(1), listener=rules) as g:
        client = await g.client()
        loop = asyncio.get_running_loop()
        pauses = []
        for turn in range(5):
            error = await client.call("slow", method="slow")
            assert error["code"] == "deadline_exceeded"
            instance.behave = echo
            began = loop.time()
            assert await client.call(turn) == [turn]
            pauses.append(loop.time() - began)
            instance.behave = hold
        assert max(pauses) < 0.5


async def test_a_client_that_goes() -> None:
    """What it asked stays the instance's until it is answered: nobody else is sent there before."""
    instance = Instance(hold)
    async with bed(instance, service=exclusive(1)) as g:
        leaves, stays = await g.client(), await g.client()
        leaves.ask(1, "leaves")
        await until(lambda: instance.held)
        stays.ask(1, "stays")
        await until(lambda: len(g.target(instance).main.queue) == 1)
        leaves.reset()
        await g.line()
        await asyncio.sleep(0.1)
        assert instance.seen == {"leaves": 1}
        instance.answer_all()
        await until(lambda: instance.held)
        instance.answer_all()
        assert await stays.got(1) == [[1, 1, None, ["stays"]]]
        assert instance.accepted == 1


async def test_connections_that_break() -> None:
    """The call on it is lost and no other one; a new connection takes its place."""
    instance = Instance(hold)
    async with bed(instance, service=exclusive(3)) as g:
        client = await g.client()
        for turn in range(6):
            client.ask(turn, turn)
        await until(lambda: len(instance.held) == 3)
        instance.held.pop(0).link.transport.abort()
        await client.got(1)
        assert outcomes(client) == {"upstream_lost": 1}
        await until(lambda: len(instance.held) == 3)
        instance.behave = echo
        instance.answer_all()
        await client.got(6)
        assert outcomes(client) == {"upstream_lost": 1, "": 5}
        assert set(instance.seen.values()) == {1}


async def test_an_exclusive_call_that_is_hedged() -> None:
    """The connection whose answer is not awaited any more is replaced, and the next calls are served."""
    slow, fast = Instance(hold), Instance()
    rules = 'methods = { "read" = { idempotent = true, hedge = "20ms" } }'
    async with bed(slow, fast, service=exclusive(1), listener=rules) as g:
        client = await g.client()
        for turn in range(4):
            assert await client.call(turn, method="read") == [turn]
        await until(lambda: g.target(slow).alive)
        slow.behave = echo
        for turn in range(10):
            assert await client.call(turn) == [turn]
        assert len(slow.held) == g.service.hedges.sent
        assert len(slow.links) == len(fast.links) == 1
