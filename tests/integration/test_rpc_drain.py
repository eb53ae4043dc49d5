"""The end of the gateway and of endpoints: what was begun is finished."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from itertools import cycle

import pytest

from tests.support.rpc import NOTIFY, REQUEST, Bed, Client, Instance, bare, bed, echo, hold
from tests.support.rpc_ends import frame, read_message
from tests.support.streams import MiB, in_time, until


def outcomes(*clients: Client) -> Counter[str]:
    return Counter(error["code"] if error else "" for client in clients for _, _, error, _ in client.answers)


async def until_asked(count: int, *instances: Instance) -> None:
    await until(lambda: sum(len(instance.requests) for instance in instances) >= count)


@contextlib.asynccontextmanager
async def draining(g: Bed) -> AsyncIterator[asyncio.Task[None]]:
    """Drain meanwhile; at the end it must be over."""
    task = asyncio.create_task(g.gateway.drain())
    await asyncio.sleep(0.02)
    yield task
    await in_time(task)
    assert not g.listener.connections


# ---- the gateway ----


@pytest.mark.parametrize("framed", [True, False])
async def test_a_drain_answers_what_was_asked(framed: bool) -> None:
    """Clients get the answers to all that is under way, then FIN; who has nothing there gets it at once."""
    instance = Instance(hold)
    async with bed(instance) as g:
        busy = [await g.client(framed=framed) for _ in range(3)]
        idle = await g.client(framed=framed)
        silent = await g.client()  # it never sent a byte
        for client in busy:
            for place in range(10):
                client.ask(place, place, bytes(20_000))
        await until(lambda: len(instance.held) == 30)
        idle.ask(0, 0)
        await until(lambda: len(instance.held) == 31)
        instance.held.pop().answer()
        await idle.got(1)
        async with draining(g) as task:
            await in_time(idle.ended.wait())
            await in_time(silent.ended.wait())
            assert not task.done()
            assert not any(client.ended.is_set() for client in busy)
            for request in [instance.held.pop() for _ in range(15)]:
                request.answer()
            await until(lambda: sum(len(client.answers) for client in busy) == 15)
            assert not task.done()
            instance.answer_all()
            for client in busy:
                await client.got(10)
                await in_time(client.ended.wait())
        for client in busy:
            assert sorted(client.answers) == [[1, place, None, [place, bytes(20_000)]] for place in range(10)]
        assert not any(client.error for client in (*busy, idle, silent))
        assert [line["reason"] for line in g.lines] == ["drained"] * 5
        assert not any("error" in line for line in g.lines)


async def test_a_client_that_never_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while it is not read any more: what was taken is answered, the rest never reached anybody."""
    monkeypatch.setattr("tcpgw.relay.rpc.session._LAST_CALL", 0.2)
    times = cycle((0.02, 0.05, 0.03))  # so that they overlap
    instance = Instance(lambda request: asyncio.get_running_loop().call_later(next(times), request.answer))
    async with bed(instance) as g:
        client = await g.client()
        asked = 5
        for place in range(asked):
            client.ask(place, place)
        async with draining(g):
            while not client.ended.is_set():
                while asked < len(client.answers) + 5 and not client.transport.is_closing():
                    client.ask(asked, asked)
                    asked += 1
                await asyncio.sleep(0)
        assert sorted(number for _, number, _, _ in client.answers) == sorted(instance.seen)
        assert set(outcomes(client)) == {""}
        assert len(client.answers) > 10
    assert [line["reason"] for line in g.lines] == ["drained"]


async def test_a_drain_refuses_new_clients() -> None:
    """From its beginning, while others are still answered."""
    instance = Instance(hold)
    async with bed(instance) as g:
        client = await g.client()
        client.ask(1, "x")
        await until(lambda: instance.held)
        async with draining(g):
            assert await _is_refused(g)
            instance.answer_all()
            await client.got(1)


async def _is_refused(g: Bed) -> bool:
    try:
        late = g.dial()
        await late.send(frame(REQUEST, 1, "m", []))
        return await in_time(late.read_some()) == b""
    except OSError:
        return True


@pytest.mark.parametrize("framed", [True, False])
@pytest.mark.parametrize(("size", "seen"), [(10, 1), (10, 3), (10, 12), (MiB, 300_000), (MiB, MiB)])
async def test_a_frame_that_has_begun(framed: bool, size: int, seen: int) -> None:
    """A client within a frame when the drain begins may finish it, however large, and is answered before
    FIN.
    """
    message = (REQUEST, 1, "m", [bytes(size)])
    data = frame(*message) if framed else bare(*message)
    instance = Instance()
    async with bed(instance) as g:
        client = g.dial()
        await client.send(data[:seen])
        await until(lambda: g.listener.connections)
        (connection,) = g.listener.connections.values()
        await until(lambda: connection.session is not None and connection.session.received == seen)
        async with draining(g) as task:
            await asyncio.sleep(0.05)
            assert not task.done()
            await client.send(data[seen:])
            answer = await in_time(client.read_to_end())
            client.fin()
        assert answer == (frame if framed else bare)(1, 1, None, [bytes(size)])
        assert (await g.line())["reason"] == "drained"
        assert len(instance.requests) == 1


async def test_answers_in_the_midst_of_a_frame() -> None:
    """While a frame has begun, what was asked before it is answered, and the end comes after it."""
    instance = Instance(hold)
    async with bed(instance) as g:
        client = g.dial()
        last = frame(REQUEST, 3, "m", ["last"])
        await client.send(frame(REQUEST, 1, "m", [1]) + frame(REQUEST, 2, "m", [2]) + last[:5])
        await until(lambda: len(instance.held) == 2)
        async with draining(g) as task:
            instance.answer_all()
            assert [(await in_time(read_message(client)))[1] for _ in range(2)] == [1, 2]
            await asyncio.sleep(0.05)
            assert not task.done()
            await client.send(last[5:])
            await until(lambda: instance.held)
            instance.answer_all()
            assert await in_time(client.read_to_end()) == frame(1, 3, None, ["last"])
            client.fin()
        assert (await g.line())["reason"] == "drained"


async def test_what_is_sent_after_the_end_of_a_drain() -> None:
    """A client that goes on asking after its FIN came was read to that FIN, and is not reset before."""
    instance = Instance()
    async with bed(instance) as g:
        client = g.dial()
        await client.send(frame(REQUEST, 1, "m", [1]))
        await in_time(read_message(client))
        async with draining(g):
            await client.send(frame(REQUEST, 2, "m", [2]))
            assert await in_time(client.read_to_end()) == b""
            client.fin()
        assert instance.seen == {1: 1}
        assert (await g.line())["reason"] == "drained"


async def test_a_drain_with_requests_that_wait() -> None:
    """What waits for an endpoint is under way too: it is sent and answered."""
    instance = Instance(hold)
    async with bed(instance, service='rpc = { max_inflight = 1, queue_timeout = "20s" }') as g:
        client = await g.client()
        for place in range(10):
            client.ask(place, place)
        client.send(NOTIFY, "n", [1])
        await until(lambda: len(g.target(instance).main.queue) >= 9)
        async with draining(g):
            instance.behave = echo
            instance.answer_all()
            await client.got(10)
            await in_time(client.ended.wait())
        assert outcomes(client) == {"": 10}
        await until(lambda: instance.notifications)
        assert (await g.line())["reason"] == "drained"


async def test_a_full_client_is_drained() -> None:
    """What a client sent and was not read yet, as it had enough under way, is answered as well."""
    instance = Instance(hold)
    async with bed(instance, listener="max_inflight = 4") as g:
        client = await g.client()
        for place in range(20):
            client.ask(place, place)
        await until(lambda: len(instance.held) == 4)
        async with draining(g):
            instance.behave = echo
            instance.answer_all()
            await client.got(20)
            await in_time(client.ended.wait())
        assert outcomes(client) == {"": 20}
        assert (await g.line())["reason"] == "drained"


async def test_a_drain_in_mid_load() -> None:
    """Clients that ask as fast as they can: each gets an answer to what was read, and FIN at a boundary."""
    instance = Instance()
    async with bed(instance) as g:
        clients = [await g.client() for _ in range(20)]
        tasks = [asyncio.create_task(_insist(client)) for client in clients]
        await until(lambda: len(instance.requests) > 500)
        async with draining(g):
            asked = await in_time(asyncio.gather(*tasks))
        assert not any(client.error for client in clients)
        assert outcomes(*clients) == {"": len(instance.requests)}
        assert sum(asked) - len(instance.requests) <= len(clients)  # sent, when FIN was on its way
        assert Counter(line["reason"] for line in g.lines) == {"drained": 20}


async def _insist(client: Client) -> int:
    """Ask until the end; how often."""
    for turn in range(1_000_000):
        client.ask(turn, turn)
        try:
            await client.got(turn + 1)
        except EOFError:
            return turn + 1
    raise AssertionError


async def test_a_drain_has_an_end() -> None:
    """After its time it cuts whatever is under way, and returns."""
    instance = Instance(hold)
    async with bed(instance) as g:
        client = await g.client()
        client.ask(1, "x")
        await until(lambda: instance.held)
        await in_time(g.gateway.drain(0.0, 0.1))
        assert not g.listener.connections
        await in_time(client.ended.wait())
        line = await g.line()
        assert (line["reason"], line["error"]) == ("drained", "not ended within 0.1 s of its drain")


# ---- a client that ends ----


@pytest.mark.parametrize("framed", [True, False])
async def test_a_half_closed_client(framed: bool) -> None:
    """Who sends FIN after its requests gets all answers, and then FIN."""
    instance = Instance(hold)
    async with bed(instance) as g:
        client = await g.client(framed=framed)
        for place in range(20):
            client.ask(place, place)
        client.transport.write_eof()
        await until(lambda: len(instance.held) == 20)
        for _ in range(4):
            await asyncio.sleep(0.01)
            assert not client.ended.is_set()
            for request in [instance.held.pop() for _ in range(5)]:
                request.answer()
        await client.got(20)
        await in_time(client.ended.wait())
        assert (outcomes(client), client.error) == ({"": 20}, None)
        assert ((await g.line())["reason"], g.lines[0]["requests"]) == ("client_fin", 20)


async def test_a_half_closed_client_beyond_its_limit() -> None:
    """The FIN behind more requests than may be under way is found when they are read."""
    instance = Instance()
    async with bed(instance, listener="max_inflight = 2") as g:
        client = await g.client()
        for place in range(300):
            client.ask(place, place, bytes(1000))
        client.transport.write_eof()
        await client.got(300)
        await in_time(client.ended.wait())
        assert (outcomes(client), client.error) == ({"": 300}, None)


async def test_a_half_closed_client_is_drained() -> None:
    """It gets its answers and FIN as without the drain."""
    instance = Instance(hold)
    async with bed(instance) as g:
        client = await g.client()
        client.ask(1, "x")
        client.transport.write_eof()
        await until(lambda: instance.held)
        async with draining(g):
            instance.answer_all()
            await client.got(1)
            await in_time(client.ended.wait())
        assert (outcomes(client), client.error) == ({"": 1}, None)


# ---- endpoints ----


@pytest.mark.parametrize("service", ["", "rpc = { exclusive = true, connections = 8 }"])
@pytest.mark.parametrize("listener", ["", 'methods = { "again" = { idempotent = true } }'])
async def test_an_endpoint_that_leaves_is_drained(service: str, listener: str) -> None:
    """It finishes its requests on the connections that it has, gets FIN and no new request, in both modes and
    both ways through the gateway.
    """
    leaving, staying = Instance(hold), Instance(hold)
    balance = 'policy = "least_request"'
    async with bed(leaving, staying, service=service, listener=listener, balance=balance) as g:
        client = await g.client()
        for place in range(8):
            client.ask(place, place)
            await until_asked(place + 1, leaving, staying)
        asked = len(leaving.requests)
        assert asked > 1
        await g.publish(staying)
        staying.behave = echo
        for place in range(50):
            client.ask(100 + place, 100 + place)
        await client.got(50)
        links = list(leaving.links)
        assert links
        leaving.held.pop().answer()
        await client.got(51)
        await asyncio.sleep(0.12)  # longer than between two looks at it
        assert not any(link.ended.is_set() for link in links)
        for instance in (leaving, staying):
            instance.answer_all()
        await client.got(58)
        await until(lambda: not leaving.links)
        assert all(link.error is None for link in links)
        assert len(leaving.requests) == asked
        assert outcomes(client) == {"": 58}
        assert g.service.targets.drains == {"started": 1, "closed": 1, "reset": 0, "spared": 0}
        assert g.service.targets.requests_cut == 0


async def test_an_endpoint_that_leaves_is_cut_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that it has not answered by then are counted, and their clients told; one that came back in
    time keeps its own.
    """
    leaving, staying = Instance(hold), Instance()
    async with bed(leaving, staying) as g:
        await g.publish(leaving)
        client = await g.client()
        for place in range(3):
            client.ask(place, place)
        await until(lambda: len(leaving.held) == 3)
        await g.publish(staying)
        await g.publish(leaving, staying)
        await asyncio.sleep(0.12)
        assert not client.answers
        monkeypatch.setattr("tcpgw.relay.rpc.targets._DRAIN", 0.1)
        await g.publish(staying)
        await client.got(3)
        assert outcomes(client) == {"upstream_lost": 3}
        drains = g.service.targets.drains
        assert (drains["started"], drains["reset"]) == (3, 1)
        assert drains["closed"] + drains["spared"] == 2  # the other was away for a moment as well
        assert g.service.targets.requests_cut == 3


async def test_an_old_client_is_drained() -> None:
    """At max_age it gets the answers to what it asked, and then FIN."""
    instance = Instance(hold)
    async with bed(instance, listener='max_age = "300ms"') as g:
        client = await g.client()
        client.ask(1, "x")
        await until(lambda: instance.held)
        await asyncio.sleep(0.5)
        assert not client.ended.is_set()
        instance.answer_all()
        await client.got(1)
        await in_time(client.ended.wait())
        assert (outcomes(client), client.error) == ({"": 1}, None)
        assert (await g.line())["reason"] == "max_age"
        assert g.listener.status()["drains"]["max_age"]["closed"] == 1


@pytest.mark.parametrize("balance", ['policy = "maglev"', 'policy = "least_request"'])
async def test_an_endpoint_is_replaced(balance: str) -> None:
    """The one that comes takes over from the one that leaves, and each request is answered once."""
    old, new = Instance(), Instance()
    async with bed(old, new, balance=balance) as g:
        await g.publish(old)
        await until(lambda: not new.links)
        clients = [await g.client() for _ in range(4)]
        stop = asyncio.Event()
        tasks = [asyncio.create_task(_call_until(stop, client)) for client in clients]
        await until_asked(50, old)
        await g.publish(old, new)
        await until(lambda: g.target(new).alive)
        await g.publish(new)
        await until_asked(50, new)
        await until(lambda: not old.links)
        before = len(old.requests)
        await until_asked(len(new.requests) + 50, new)
        stop.set()
        called = sum(await in_time(asyncio.gather(*tasks)))
        assert len(old.requests) == before
        assert before + len(new.requests) == called


async def _call_until(stop: asyncio.Event, client: Client) -> int:
    """How many calls were made, each answered with its own."""
    count = 0
    while not stop.is_set():
        assert await client.call(count) == [count]
        count += 1
    return count
