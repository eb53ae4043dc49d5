"""What requests, and the connections that they share, say of their instances."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tcpgw.endpoints import Endpoint
from tcpgw.relay.outcomes import Kind, Outcomes
from tests.support.rpc import ANSWER, Bed, Instance, Request, bed, echo, hold
from tests.support.rpc_ends import frame
from tests.support.rpc_thrift import CODEC, ThriftInstance, thrift_client
from tests.support.streams import refusing, silent, until

KINDS = [kind for kind in Kind if kind is not Kind.ERROR]


def judging(g: Bed, *more: Kind) -> Outcomes:
    reports = g.gateway.relays.reports._task
    assert reports is not None
    reports.cancel()  # what is new is for the test to take
    g.service.outcomes.change([*KINDS, *more], failures=5)
    return g.service.outcomes


def found(g: Bed, instance: Instance) -> tuple[int, dict[Kind, int]]:
    """Successes, and failures by kind."""
    outcome = g.service.outcomes[Endpoint.parse(instance.endpoint)]
    return outcome.successes, {kind: count for kind, count in outcome.failures.items() if count}


@asynccontextmanager
async def running(instance: Instance) -> AsyncIterator[None]:
    await instance.start()
    try:
        yield
    finally:
        instance.kill()


def refuse(request: Request) -> None:
    request.refuse({"code": "broken"})


@pytest.mark.parametrize("rules", ["", 'methods = { "m" = { idempotent = true } }'])
async def test_each_answer_is_a_success(rules: str) -> None:
    """Small ones in runs and large ones in pieces, and errors too where these do not count."""
    instance = Instance()
    async with bed(instance, listener=rules) as g:
        judging(g)
        client = await g.client()
        for number in range(20):
            client.ask(number, number)
        await client.got(20)
        await client.call(bytes(100_000))
        instance.behave = refuse
        await client.call()
        assert found(g, instance) == (22, {})
        assert g.service.outcomes.take() == {}


@pytest.mark.parametrize("rules", ["", 'methods = { "m" = { idempotent = true } }'])
async def test_errors_where_they_count(rules: str) -> None:
    """An instance that answers all with errors fails, as often as it answers; results are successes still."""
    instance = Instance(refuse)
    async with bed(instance, listener=rules) as g:
        outcomes = judging(g, Kind.ERROR)
        client = await g.client()
        for number in range(7):
            client.ask(number)
        await client.got(7)
        assert found(g, instance) == (0, {Kind.ERROR: 7})
        assert list(outcomes.take().values()) == [(0, 7, 7, "error")]
        instance.behave = echo
        assert await client.call(bytes(100_000)) == [bytes(100_000)]
        assert await client.is_served()
        assert found(g, instance) == (2, {Kind.ERROR: 7})


async def test_a_lost_connection_is_one_failure() -> None:
    """However many requests were under way there; without any it says nothing."""
    instance = Instance(hold)
    async with bed(instance, service="rpc = { bulk = 0 }") as g:
        judging(g)
        client = await g.client()
        for number in range(50):
            client.ask(number, number)
        await until(lambda: len(instance.held) == 50)
        instance.cut()
        await client.got(50)
        assert found(g, instance) == (0, {Kind.RESET: 1})
        instance.behave = echo
        await until(lambda: g.target(instance).main.open)
        assert await client.is_served()
        instance.cut()
        await until(lambda: instance.accepted == 3 and g.target(instance).main.open)
        assert found(g, instance) == (1, {Kind.RESET: 1})


async def test_nonsense_is_one_failure() -> None:
    """It is none of a reset besides, whatever was under way."""
    instance = Instance(hold)
    async with bed(instance) as g:
        judging(g)
        client = await g.client()
        for number in range(5):
            client.ask(number)
        await until(lambda: len(instance.held) == 5)
        instance.links[0].transport.write(b"\0\0\0\x05nonsense")
        await client.got(5)
        assert found(g, instance) == (0, {Kind.PROTOCOL: 1})


async def test_answers_before_nonsense_are_successes() -> None:
    """Of the same read too: they were given."""
    instance = Instance(hold)
    async with bed(instance) as g:
        judging(g)
        client = await g.client()
        client.ask(1, "held")
        await until(lambda: instance.held)
        (held,) = instance.held
        held.link.transport.write(frame(ANSWER, held.id, None, "fine") + b"\0\0\0\x05nonsense")
        await until(lambda: found(g, instance) == (1, {Kind.PROTOCOL: 1}))


async def test_a_client_s_requests_that_are_late_together_are_one_failure() -> None:
    """However many a look finds on a connection, one for each client; what is answered late is no success."""
    instance = Instance(hold)
    async with bed(instance, listener='request_timeout = "1m"') as g:
        outcomes = judging(g)
        first, second = await g.client(), await g.client()
        for number in range(4):
            first.ask(number, number)
        await until(lambda: len(instance.held) == 4)
        g.service._sweep(time.monotonic() + 61.0)
        await first.got(4)
        assert found(g, instance) == (0, {Kind.TIMEOUT: 1})
        for number in range(4):
            first.ask(number, number)
            second.ask(number, number)
        await until(lambda: len(instance.held) == 12)
        g.service._sweep(time.monotonic() + 61.0)
        await second.got(4)
        assert found(g, instance) == (0, {Kind.TIMEOUT: 3})
        instance.answer_all()
        await until(lambda: g.dropped == 12)
        assert list(outcomes.take().values()) == [(0, 3, 3, "timeout")]


async def test_a_deadline_that_nobody_can_keep_blames_nobody() -> None:
    """What a client allows less than half of the rule's time for is its own affair."""
    instance = Instance(hold)
    async with bed(instance, listener='request_timeout = "400ms"\ndeadline = "params[0]"') as g:
        judging(g)
        client = await g.client()
        client.ask(1, 50)
        await client.got(1)
        assert found(g, instance) == (0, {})
        client.ask(2, 350)
        await client.got(2)
        assert found(g, instance) == (0, {Kind.TIMEOUT: 1})


async def test_what_waited_for_room_blames_nobody() -> None:
    """The time that an instance was not asked is none in which it did not answer."""
    instance = Instance(hold)
    limits = 'rpc = { max_inflight = 1, queue_timeout = "10s" }'
    async with bed(instance, listener='request_timeout = "600ms"', service=limits) as g:
        judging(g)
        client = await g.client()
        client.ask(1, "first")
        client.ask(2, "second")
        await asyncio.sleep(0.4)
        instance.answer_all()
        await client.got(2)
        assert found(g, instance) == (1, {})


async def test_connects_that_fail() -> None:
    """Refused or in vain, the first try is a failure and no other; being connected is no success."""
    instance = Instance()
    with refusing() as dead, silent() as nobody:
        connect = 'connect = { timeout = "50ms" }'
        async with bed(instance, endpoints=[dead, nobody], service=connect) as g:
            both = [g.service.outcomes[Endpoint.parse(address)] for address in (dead, nobody)]
            await until(lambda: all(one.failed >= 4 for one in both))
            assert [one.failures[Kind.CONNECT] for one in both] == [1, 1]
            assert found(g, instance) == (0, {})


async def test_an_instance_that_restarts() -> None:
    """Each time that it is gone is one failure, however often and by how many lanes it is tried meanwhile."""
    instance = Instance()
    async with bed(instance) as g:
        judging(g)
        outcome = g.service.outcomes[Endpoint.parse(instance.endpoint)]
        for times in (1, 2):
            failed = outcome.failed
            instance.kill()
            await until(lambda failed=failed: outcome.failed >= failed + 4)  # type: ignore[misc]
            await instance.start()
            await until(lambda: g.target(instance).main.open)
            assert found(g, instance) == (0, {Kind.CONNECT: times})


async def test_what_we_end_ourselves_blames_nobody() -> None:
    """An endpoint that leaves, and an exclusive connection that is given up for a client that went."""
    instance, other = Instance(hold), Instance()
    limits = "rpc = { exclusive = true, connections = 1 }"
    rules = 'methods = { "m" = { timeout = "300ms" } }'
    async with bed(instance, service=limits, listener=rules) as g, running(other):
        judging(g)
        client = await g.client()
        client.ask(1)
        await client.got(1)
        assert found(g, instance) == (0, {Kind.TIMEOUT: 1})
        await until(lambda: instance.accepted == 2 and instance.links)
        client.ask(2, method="slow")
        await until(lambda: len(instance.requests) == 2)
        await g.publish(other)
        instance.kill()
        await client.got(2)
        await until(lambda: not g.service.targets.retired)
        assert found(g, instance) == (0, {Kind.TIMEOUT: 1})


async def test_an_endpoint_that_returns_is_counted_on() -> None:
    """Where those that know it find it."""
    instance, other = Instance(), Instance()
    async with bed(instance) as g, running(other):
        client = await g.client()
        await client.call()
        await g.publish(other)
        await g.publish(instance)
        await client.call()
        outcome = g.service.outcomes[Endpoint.parse(instance.endpoint)]
        assert g.target(instance).outcome is outcome
        assert outcome.successes >= 1


@pytest.mark.parametrize("encoding", ["binary", "compact"])
async def test_thrift_s_own_exceptions_are_errors(encoding: str) -> None:
    """As MessagePack-RPC's third element."""
    instance = ThriftInstance(refuse)
    async with bed(instance, listener=CODEC) as g:
        judging(g, Kind.ERROR)
        client = await thrift_client(g, encoding)
        await client.call("x")
        instance.behave = echo
        await client.call("x")
        assert found(g, instance) == (1, {Kind.ERROR: 1})
