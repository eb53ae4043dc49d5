"""Many clients that send one request each in the same turn of the loop: what holds for one holds for all."""

import asyncio
import math

import pytest

from tcpgw.balancing import hashing
from tcpgw.relay.rpc.session import RpcSession
from tests.support.rpc import NOTIFY, REQUEST, Bed, Client, Instance, Request, bed, echo, hold
from tests.support.rpc_ends import frame
from tests.support.streams import until

MAGLEV = 'policy = "maglev", table_size = 1021'
RULES = 'methods = { "m" = { timeout = "5s" }, "other" = "deny" }'


async def settled(g: Bed, count: int) -> list[Client]:
    """Clients that sent one request each before: what they send next goes by a turn."""
    clients = [await g.client() for _ in range(count)]
    for client in clients:
        await client.call("first")
    assert all(session.turn is not None for session in sessions(g))
    return clients


def sessions(g: Bed) -> list[RpcSession]:
    found = [connection.session for connection in g.listener.connections.values()]
    return [session for session in found if isinstance(session, RpcSession)]


@pytest.mark.parametrize("rules", ["", RULES])
async def test_an_endpoint_s_limit_holds(rules: str) -> None:
    """However many ask at once, no more are under way than it may have; the others wait, and are served."""
    instance = Instance()
    async with bed(
        instance, balance=MAGLEV, service="rpc = { max_inflight = 4, queue = 100 }", listener=rules
    ) as g:
        clients = await settled(g, 12)
        instance.behave = hold
        for number, client in enumerate(clients):
            client.ask(7, number)
        await until(lambda: len(g.target(instance).main.queue) == 8)
        served = 0
        while served < 12:
            await until(lambda: instance.held)
            assert len(instance.held) <= 4
            served += instance.answer_all()
        for number, client in enumerate(clients):
            assert (await client.got(2))[1] == [1, 7, None, [number]]


async def test_bounded_loads_hold() -> None:
    """Clients of one address belong to one endpoint, which takes no more than its share of them at once."""
    instances = [Instance(), Instance()]
    async with bed(*instances, balance=f"{MAGLEV}, bounded_load = 1.25") as g:
        clients = await settled(g, 20)
        for instance in instances:
            instance.behave = hold
        for client in clients:
            client.ask(1, "held")
        await until(lambda: sum(len(instance.held) for instance in instances) == 20)
        home, other = sorted(instances, key=lambda instance: -len(instance.held))
        assert len(home.held) <= math.ceil(1.25 * 20 / 2)
        # Now the one has all that is under way, which is beyond its share: the next goes to the other.
        other.answer_all()
        await until(lambda: g.pool.loads.total == len(home.held))
        asking = next(client for client in clients if len(client.answers) == 2)
        asking.ask(2, "next")
        await until(lambda: other.held)
        assert [request.params for request in other.held] == [["next"]]
        for instance in instances:
            instance.answer_all()
        for client in clients:
            await client.got(3 if client is asking else 2)


async def test_a_client_s_limit_holds() -> None:
    """Requests that come one by one, each for itself, are no more under way than a client may have."""
    instance = Instance()
    async with bed(instance, balance=MAGLEV, listener="max_inflight = 2") as g:
        (client,) = await settled(g, 1)
        instance.behave = hold
        for number in range(6):
            client.ask(number, number)
            await asyncio.sleep(0.01)
        assert len(instance.held) == 2
        instance.behave = echo
        instance.answer_all()
        assert [answer[1] for answer in (await client.got(7))[1:]] == list(range(6))


@pytest.mark.parametrize("cut", [None, 3, 11])
async def test_two_reads_of_one_client_in_a_turn(cut: int | None) -> None:
    """They are taken in order, also where the first is no whole request."""
    instance = Instance()
    async with bed(instance, balance=MAGLEV) as g:
        (client,) = await settled(g, 1)
        (session,) = sessions(g)
        both = [frame(REQUEST, number, "m", [number]) for number in (5, 6)]
        reads = both if cut is None else [both[0][:cut], both[0][cut:] + both[1]]
        for data in reads:
            session.data_received(data)
        await client.got(3)
        assert [request.params for request in instance.requests[1:]] == [[5], [6]]


async def test_fin_behind_half_a_frame_in_one_turn() -> None:
    """A client that ends within a frame is told so at once, though its turn had not come when it ended."""
    async with bed(Instance(), balance=MAGLEV) as g:
        await settled(g, 1)
        (session,) = sessions(g)
        session.data_received(frame(REQUEST, 5, "m", [])[:7])
        session.eof_received()
        line = await g.line()
        assert line["reason"] == "protocol_error"
        assert "FIN within a frame" in line["error"]


async def test_nonsense_in_a_turn_ends_its_own_client_alone() -> None:
    """The others of the same turn have their answers."""
    instance = Instance()
    async with bed(instance, balance=MAGLEV) as g:
        clients = await settled(g, 3)
        clients[0].ask(1, "before")
        clients[1].transport.write(b"\0\0\0\x05\xff\xff\xff\xff\xff")
        clients[2].ask(1, "behind")
        assert [(await clients[place].got(2))[1] for place in (0, 2)] == [
            [1, 1, None, ["before"]],
            [1, 1, None, ["behind"]],
        ]
        line = await g.line()
        assert line["reason"] == "protocol_error"
        assert line["requests"] == 1


async def test_a_changed_snapshot_moves_the_next_request() -> None:
    """A client's reads go by the turn of an endpoint only as long as its key belongs there."""
    first, second = Instance(), Instance()
    async with bed(first, balance=MAGLEV) as g:
        await second.start()
        clients = await settled(g, 2)
        await g.publish(second)
        for client in clients:
            client.ask(1, "moved")
        for client in clients:
            await client.got(2)
        assert (first.seen["moved"], second.seen["moved"]) == (0, 2)
        second.kill()


async def test_who_belongs_elsewhere_now_goes_there() -> None:
    """Though the endpoint that a client's key belonged to is still there."""
    instances = [Instance() for _ in range(3)]
    async with bed(*instances, balance=f"{MAGLEV}, bounded_load = 0.0") as g:
        home = str(g.pool.home(hashing.source_ip("127.0.0.1")))
        (at_home,) = [instance for instance in instances if instance.endpoint == home]
        await g.publish(*(instance for instance in instances if instance is not at_home))
        (client,) = await settled(g, 1)
        await client.call("before")
        assert not at_home.seen
        await g.publish(*instances)
        await client.call("after")
        assert (at_home.seen["after"], at_home.seen["before"]) == (1, 0)


# ---- each its own way ----


async def test_each_goes_where_its_key_says() -> None:
    """Requests of one turn go to the instances of their own keys."""
    instances = [Instance() for _ in range(3)]
    balance = f'{MAGLEV}, key = "params[0]", bounded_load = 0.0'
    async with bed(*instances, balance=balance) as g:
        clients = await settled(g, 10)
        for round_ in range(5):
            for number, client in enumerate(clients):
                client.ask(1, f"key {round_} {number}")
            for client in clients:
                await client.got(2 + round_)
        seen = {}
        for instance in instances:
            seen.update(dict.fromkeys((label for label in instance.seen if label != "first"), instance))
        assert len(seen) == 50
        assert len({instance.endpoint for instance in seen.values()}) == 3
        for label, instance in seen.items():
            home = g.pool.home(hashing.other(label.encode(), hashing.SEED))
            assert str(home) == instance.endpoint


@pytest.mark.parametrize("left", [60_000, 60_000.0])
async def test_each_has_its_own_deadline(left: float) -> None:
    """What an instance is told is less than what its client said; who is late is told so, and nobody else."""

    def behave(request: Request) -> None:
        if request.params[0] != "late":
            request.answer()

    instance = Instance(behave)
    async with bed(instance, balance=MAGLEV, listener='deadline = "params[1]"') as g:
        clients = await settled(g, 3)
        clients[0].ask(1, "in time", left, bytes(300))
        clients[1].ask(1, "late", 120.0)
        clients[2].ask(1, "over", -1.0)
        (answer, late, over) = [(await client.got(2))[1] for client in clients]
        told = answer[3][1]
        assert answer[:3] == [1, 1, None]
        assert type(told) is type(left)
        assert left - 1000 < told <= left
        assert told < left or isinstance(left, int)
        assert answer[3][2] == bytes(300)
        assert late[2]["code"] == over[2]["code"] == "deadline_exceeded"
        assert instance.seen["over"] == 0


@pytest.mark.parametrize("count", [1, 40])
async def test_many_in_one_read_each_its_own_way(count: int) -> None:
    """Requests that a client sends together have keys and deadlines of their own all the same."""
    instances = [Instance() for _ in range(3)]
    balance = f'{MAGLEV}, key = "params[0]", bounded_load = 0.0'
    async with bed(*instances, balance=balance, listener='deadline = "params[1]"') as g:
        (client,) = await settled(g, 1)
        for place in range(count):
            client.ask(place, f"key {place}", 30_000.0 + 1000 * (place % 3))
        answers = (await client.got(1 + count))[1:]
        assert sorted(answer[1] for answer in answers) == list(range(count))
        for _, place, error, (label, told) in answers:
            home = g.pool.home(hashing.other(label.encode(), hashing.SEED))
            seen = next(instance for instance in instances if label in instance.seen)
            assert (error, str(home)) == (None, seen.endpoint)
            assert 29_000 < told - 1000 * (place % 3) < 30_000


async def test_an_unusual_one_among_them() -> None:
    """A request with a rule that needs a closer look has it, and those around it go on as they did."""
    instance = Instance()
    rules = 'methods = { "no" = "deny" }'
    async with bed(instance, balance=MAGLEV, listener=f'deadline = "params[1]"\n{rules}') as g:
        (client,) = await settled(g, 1)
        for place, method in enumerate(["m", "no", "m", "m"]):
            client.ask(place, place, 60_000, method=method)
        client.ask(4, 4, "soon")
        client.ask(5, 5, 0)
        answers = {answer[1]: answer for answer in (await client.got(7))[1:]}
        assert [answers[place][2] and answers[place][2]["code"] for place in range(6)] == [
            None, "denied", None, None, None, "deadline_exceeded",
        ]  # fmt: skip
        assert answers[4][3] == [4, "soon"]


@pytest.mark.parametrize("balance", ["", 'key = "params[0]"'])
async def test_limits_hold_whatever_is_looked_at(balance: str) -> None:
    """An endpoint's limit and a client's are kept where each request is looked at too."""
    instance = Instance()
    async with bed(
        instance,
        balance=f"{MAGLEV}, {balance}" if balance else MAGLEV,
        service="rpc = { max_inflight = 4, queue = 100 }",
        listener='deadline = "params[1]"\nmax_inflight = 3',
    ) as g:
        clients = await settled(g, 6)
        instance.behave = hold
        for number in range(5):
            for client in clients:
                client.ask(number, f"{number}", 9000)
            await asyncio.sleep(0.01)
        served = 0
        while served < 30:
            await until(lambda: instance.held)
            assert len(instance.held) <= 4
            assert all(session.inflight <= 3 for session in sessions(g))
            served += instance.answer_all()
        for client in clients:
            assert [answer[1:3] for answer in (await client.got(6))[1:]] == [[n, None] for n in range(5)]


async def test_one_that_never_left_goes_where_its_key_belongs() -> None:
    """Though it is not where its client's address would go."""
    instances = [Instance() for _ in range(3)]
    balance = f'{MAGLEV}, key = "params[0]", bounded_load = 0.0'
    async with bed(*instances, balance=balance, service="rpc = { connections = 2 }") as g:
        (client,) = await settled(g, 1)
        (session,) = sessions(g)
        by_address = g.pool.home(session.home[1])
        label = next(
            label
            for label in map(str, range(100))
            if g.pool.home(hashing.other(label.encode(), hashing.SEED)) != by_address
        )
        home = g.pool.home(hashing.other(label.encode(), hashing.SEED))
        (at_home,) = [instance for instance in instances if instance.endpoint == str(home)]
        await until(lambda: len(g.target(at_home).main.channels) == 2)
        channel = g.target(at_home).main.channel()
        assert channel is not None
        channel._transport.abort()  # of which it hears in a later turn
        session.data_received(frame(REQUEST, 5, "m", [label]))
        assert session.turn is not None
        session.turn.run()
        assert len(channel.mux.pending) == 1
        assert (await client.got(2))[1] == [1, 5, None, [label]]
        assert at_home.seen[label] == 1


async def test_a_bug_in_one_read_is_that_client_s_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were looking at a read to raise, its client would be cut off, and the others of the turn served."""
    instance = Instance()
    heard: list[dict[str, object]] = []
    async with bed(instance, balance=MAGLEV) as g:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: heard.append(context))
        clients = await settled(g, 3)
        read = RpcSession._read

        def broken(session: RpcSession, data: bytes) -> None:
            if data.endswith(b"broken"):
                raise ZeroDivisionError
            read(session, data)

        monkeypatch.setattr(RpcSession, "_read", broken)
        notification = frame(NOTIFY, "m", ["x"])
        for client, data in zip(
            clients, [frame(REQUEST, 1, "m", []), b"\0\0\0\x20broken", notification], strict=True
        ):
            client.transport.write(data)
        await until(lambda: instance.notifications)
        assert (await clients[0].got(2))[1] == [1, 1, None, []]
        assert (await g.line())["reason"] == "internal"
        await clients[0].call("on")
        await clients[2].call("on")
    assert [type(context["exception"]) for context in heard] == [ZeroDivisionError]


@pytest.mark.parametrize(
    "data",
    [frame(NOTIFY, "m", []), frame(REQUEST, 1, "again", []), frame(REQUEST, 1, "m", [bytes(5000)])],
    ids=["a notification", "a rule", "much"],
)
async def test_who_needs_a_closer_look_has_no_turn(data: bytes) -> None:
    """What would only be taken back again and again goes its own way at once."""
    rules = 'methods = { "again" = { idempotent = true } }'
    async with bed(Instance(), balance=MAGLEV, listener=rules) as g:
        await settled(g, 1)
        (session,) = sessions(g)
        for _ in range(2):
            session.data_received(data)
            await asyncio.sleep(0.02)
        session.data_received(data)
        assert session.turn is None or session not in session.turn.reads
        await until(lambda: not session.inflight)
