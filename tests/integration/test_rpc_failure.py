"""Instances that die, come back, come late and leave, and what their clients notice of it."""

import asyncio
import random
from collections import Counter

import pytest

from tests.support.rpc import NOTIFY, Client, Instance, Request, bed, echo, hold
from tests.support.streams import MiB, refusing, until

AGAIN = 'methods = { "again" = { idempotent = true } }'


def cut(request: Request) -> None:
    """Die of the request."""
    request.link.transport.abort()


def outcomes(client: Client) -> Counter[str]:
    return Counter(error["code"] if error else "" for _, _, error, _ in client.answers)


# ---- in mid-call ----


@pytest.mark.parametrize("rules", ["", AGAIN])
@pytest.mark.parametrize("framed", [True, False])
async def test_a_lost_request_is_not_repeated(rules: str, framed: bool) -> None:
    """Its client is told that it was lost and where; no instance sees it a second time."""
    dying, other = Instance(hold), Instance(hold)
    async with bed(dying, other, listener=rules) as g:
        client = await g.client(framed=framed)
        for place in range(10):
            client.ask(place, place)
        await until(lambda: len(dying.held) == len(other.held) == 5)
        dying.kill()
        for _, _, error, _ in await client.got(5):
            assert (error["code"], error["endpoint"]) == ("upstream_lost", dying.endpoint)
        other.answer_all()
        await client.got(10)
        assert outcomes(client) == {"upstream_lost": 5, "": 5}
        assert (dying.seen + other.seen).most_common(1)[0][1] == 1
        assert g.service.recovery.retried == 0


@pytest.mark.parametrize("framed", [True, False])
@pytest.mark.parametrize("size", [0, 50_000, MiB])
async def test_a_lost_request_that_may_be_repeated(framed: bool, size: int) -> None:
    """Of an idempotent method it goes to another instance, and its client sees nothing but the answer."""
    dying, other = Instance(cut), Instance()
    async with bed(dying, other, listener=AGAIN) as g:
        client = await g.client(framed=framed)
        payload = random.Random(size).randbytes(size)
        for place in range(4):
            assert await client.call(place, payload, method="again") == [place, payload]
            await until(lambda: g.target(dying).alive)
        assert len(dying.requests) == g.service.recovery.retried > 0
        assert set(other.seen.values()) == {1}
        assert g.held == 0


async def test_a_method_that_kills() -> None:
    """A request of death visits connect.candidates instances, each once, before its client hears of it."""
    instances = [Instance(cut) for _ in range(5)]
    async with bed(*instances, listener=AGAIN, service="connect = { candidates = 3 }") as g:
        client = await g.client()
        error = await client.call("x", method="again")
        assert error["code"] == "upstream_lost"
        assert sorted(len(instance.requests) for instance in instances) == [0, 0, 1, 1, 1]


async def test_one_instance_is_not_asked_twice() -> None:
    """Without another endpoint even an idempotent request is not repeated: it may be what killed this one."""
    instance = Instance(cut)
    async with bed(instance, listener=AGAIN) as g:
        client = await g.client()
        assert (await client.call("x", method="again"))["code"] == "upstream_lost"
        assert len(instance.requests) == 1
        instance.behave = echo
        await until(lambda: g.target(instance).alive)
        assert await client.is_served()


async def test_what_was_never_sent_goes_elsewhere() -> None:
    """Requests that were still here when their connection broke are sent again, whatever their method."""
    deaf, other = Instance(deaf=True), Instance()
    service = 'rpc = { bulk = 0, queue_timeout = "20s", retry_budget = 1.0 }'
    balance = 'policy = "maglev", key = "params[0]", bounded_load = 0'  # no request leaves its own for load
    async with bed(deaf, other, service=service, balance=balance) as g:
        client = await g.client()
        for place in range(200):
            client.ask(place, place, bytes(100_000))
        await until(lambda: len(g.target(deaf).main.queue) > 0)
        await until(lambda: g.target(other).load.inflight == 0 and len(client.answers) > 50)
        waiting, served = len(g.target(deaf).main.queue), len(client.answers)
        deaf.kill()
        await client.got(200)
        found = outcomes(client)
        assert found[""] >= served + waiting
        assert found[""] + found["upstream_lost"] == 200
        assert set(other.seen.values()) == {1}
        assert other.seen.total() == found[""]


async def test_requests_of_the_turn_in_which_a_connection_breaks() -> None:
    """What was given to a connection that was already gone counts as never sent."""
    first, second = Instance(), Instance()
    async with bed(first, second, service="rpc = { bulk = 0, retry_budget = 1.0 }") as g:
        client = await g.client()
        assert await client.is_served()
        for target in g.service.targets.values():
            for channel in target.channels:
                channel._transport.abort()  # connection_lost comes in a later turn
        session = next(iter(g.listener.connections.values())).session
        assert session is not None
        for place in range(6):
            client.ask(place, place)
        await client.got(7)
        assert set(outcomes(client)) <= {""}


async def test_notifications_are_not_repeated() -> None:
    """At most once: one that was sent to a dying instance is gone."""
    dying, other = Instance(), Instance()
    async with bed(dying, other, listener=AGAIN) as g:
        client = await g.client()
        for place in range(10):
            client.send(NOTIFY, "again", [place])
        await until(lambda: len(dying.notifications) + len(other.notifications) == 10)
        dying.kill()
        await until(lambda: not g.target(dying).alive)
        client.send(NOTIFY, "again", [10])
        await until(lambda: ("again", [10]) in other.notifications)
        counts = Counter(params[0] for _, params in dying.notifications + other.notifications)
        assert counts == Counter(range(11))


# ---- nobody there ----


async def test_notifications_are_no_requests() -> None:
    """Neither those that arrive are counted among them, nor those that are lost: all would have failed."""
    instance = Instance()
    async with bed(instance) as g:
        client = await g.client()
        for place in range(5):
            client.send(NOTIFY, "n", [place])
        assert await client.is_served()
        instance.kill()
        await until(lambda: g.target(instance).main.failed)
        for place in range(5):
            client.send(NOTIFY, "n", [place])
        assert (await client.call("x"))["code"] == "no_endpoint"
        figures = g.gateway.relays.status()["services"]["s"]["rpc"]
    assert figures["methods"]["l"]["*"]["outcomes"] == {"ok": 1, "no_endpoint": 1}
    assert figures["failed"] == 1


async def test_no_endpoint() -> None:
    """Where no instance can be connected to, clients are told at once, and served when one can."""
    instance = Instance()
    async with bed(instance) as g:
        client = await g.client()
        assert await client.is_served()
        instance.kill()
        await until(lambda: g.target(instance).main.failed)
        error = await client.call("x")
        assert error["code"] == "no_endpoint"
        client.send(NOTIFY, "n", [1])
        await instance.start()
        await until(lambda: g.target(instance).alive)
        assert await client.is_served()
        client.transport.close()
        line = await g.line()
    assert (line["reason"], line["errors"]) == ("client_fin", {"no_endpoint": 1})
    assert not instance.notifications


async def test_a_service_without_endpoints() -> None:
    """Discovery may find nobody: clients are let in and told so, until it finds somebody."""
    instance = Instance()
    async with bed(instance) as g:
        client = await g.client()
        await g.publish()
        error = await client.call("x")
        assert (error["code"], "discovery found none" in error["message"]) == ("no_endpoint", True)
        await g.publish(instance)
        await until(lambda: g.target(instance).alive)
        assert await client.is_served()


async def test_a_start_without_instances() -> None:
    """A gateway starts before its instances, and finds them when they come."""
    instance = Instance()
    await instance.start()
    endpoint = instance.endpoint
    instance.kill()
    async with bed(endpoints=[endpoint]) as g:
        client = await g.client()
        assert (await client.call("x"))["code"] == "no_endpoint"
        await instance.start()
        await until(lambda: instance.links)
        await until(lambda: g.target(instance).alive)
        assert await client.is_served()
        instance.kill()


async def test_a_dead_endpoint_is_passed_over() -> None:
    """Beside one that refuses connections, every request is served."""
    instance = Instance()
    with refusing() as dead:
        async with bed(instance, endpoints=[dead]) as g:
            client = await g.client()
            for place in range(20):
                assert await client.call(place) == [place]
            failures = g.events("channel_failed")
            assert [event["endpoint"] for event in failures][:1] == [dead]
            assert "refused" in failures[0]["error"]
            assert len(failures) <= 2  # once, not with every try


async def test_a_short_loss_is_waited_for() -> None:
    """While a connection that has just been lost is made again, requests wait: nobody is told anything."""
    instance = Instance()
    async with bed(instance) as g:
        client = await g.client()
        for place in range(5):
            assert await client.call(place) == [place]
            instance.cut()
            await until(lambda: not g.target(instance).alive)
        assert await client.is_served()


# ---- discovery ----


async def test_an_endpoint_that_leaves() -> None:
    """It gets no new request, finishes those under way, and then FIN on each connection."""
    leaving, staying = Instance(hold), Instance()
    async with bed(leaving, staying) as g:
        client = await g.client()
        for place in range(10):
            client.ask(place, place)
        await client.got(5)
        await until(lambda: len(leaving.held) == 5)
        await g.publish(staying)
        for place in range(10):
            client.ask(place, 100 + place)
        await client.got(15)
        await asyncio.sleep(0.2)
        links = list(leaving.links)
        assert len(links) == 2
        assert not any(link.ended.is_set() for link in links)
        leaving.answer_all()
        await client.got(20)
        assert outcomes(client) == {"": 20}
        await until(lambda: all(link.ended.is_set() for link in links))
        assert not any(link.error for link in links)
        assert len(leaving.requests) == 5


async def test_an_endpoint_that_returns_in_time() -> None:
    """Back in the snapshot before its requests were finished, it keeps its connections and serves on."""
    moving, staying = Instance(hold), Instance()
    async with bed(moving, staying) as g:
        client = await g.client()
        client.ask(1, 1)
        client.ask(2, 2)
        await until(lambda: moving.held)
        links = list(moving.links)
        await g.publish(staying)
        assert await _calls(client, 4) == 4
        await g.publish(moving, staying)
        moving.behave = echo
        before = len(moving.requests)
        assert await _calls(client, 4) == 4
        assert len(moving.requests) == before + 2
        assert moving.links == links
        moving.answer_all()
        await client.got(10)
        assert g.pool.loads.total == 0


async def _calls(client: Client, count: int) -> int:
    before = len(client.answers)
    for place in range(count):
        client.ask(1000 + place, place)
        wanted = 1000 + place
        await until(lambda n=wanted: any(number == n for _, number, _, _ in client.answers[before:]))  # type: ignore[misc]
    return sum(error is None for _, number, error, _ in client.answers[before:] if number >= 1000)


async def test_what_waits_for_an_endpoint_that_leaves() -> None:
    """It goes to one that stays."""
    leaving, staying = Instance(hold), Instance()
    service = 'rpc = { max_inflight = 1, queue_timeout = "20s" }'
    async with bed(leaving, service=service) as g:
        await staying.start()
        client = await g.client()
        for place in range(10):
            client.ask(place, place)
        await until(lambda: len(g.target(leaving).main.queue) == 9)
        await g.publish(staying)
        await client.got(9)
        assert outcomes(client) == {"": 9}
        leaving.answer_all()
        await client.got(10)
        assert (len(leaving.requests), len(staying.requests)) == (1, 9)
        staying.kill()
        await until(lambda: not g.target(staying).alive)


async def test_an_endpoint_that_comes() -> None:
    """It gets requests as soon as it is connected."""
    first, second = Instance(), Instance()
    async with bed(first) as g:
        await second.start()
        client = await g.client()
        assert await client.is_served()
        await g.publish(first, second)
        await until(lambda: g.target(second).alive)
        for place in range(10):
            assert await client.call(place) == [place]
        assert len(second.requests) == 5
        second.kill()
        await until(lambda: not g.target(second).alive)


async def test_snapshots_under_load() -> None:
    """Endpoints come and go all the time, and every request is answered by one of them."""
    instances = [Instance() for _ in range(4)]
    rng = random.Random(11)

    async def ask(client: Client) -> None:
        for place in range(150):
            assert await client.call(place) == [place]

    async with bed(*instances) as g:
        clients = [await g.client() for _ in range(10)]
        tasks = [asyncio.create_task(ask(client)) for client in clients]
        while not all(task.done() for task in tasks):
            chosen = [instances[0], *rng.sample(instances[1:], rng.randrange(4))]
            await g.publish(*chosen)
            await asyncio.sleep(0.005)
        await asyncio.gather(*tasks)
        await g.publish(*instances)
        assert min(len(instance.requests) for instance in instances) > 50
        assert sum(len(instance.requests) for instance in instances) == 1500
