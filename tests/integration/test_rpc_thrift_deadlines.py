"""The field of a Thrift call that says how long it may take, when the call waits here before it is sent.

In compact a smaller number may take fewer bytes, so the frame changes its length with it; what stands around
the field never changes.
"""

import asyncio
from typing import Any

import pytest

from tcpgw.balancing import hashing
from tcpgw.relay.rpc.channel import Channel
from tcpgw.relay.rpc.session import RpcSession
from tests.support.rpc import Bed, Instance, bed, echo, hold
from tests.support.rpc_thrift import (
    CALL,
    CODEC,
    ENCODINGS,
    I32,
    Said,
    ThriftClient,
    ThriftInstance,
    thrift_client,
    thrift_frame,
)
from tests.support.streams import until

FIELD = CODEC + 'deadline = "params[2]"\n'
ONE = 'rpc = { max_inflight = 1, queue_timeout = "20s", retry_budget = 1.0 }'
IDEMPOTENT = "methods.m.idempotent = true"
PAYLOAD = bytes(range(256)) * 4
# Milliseconds that a request waits here at least, and that a busy machine may be late.
WAIT, SLACK = 200, 1500
# Compact writes 8200 in three bytes, and what is left of it after WAIT in two.
LEFT = [I32(8200), 8200, 8200.0]

every_encoding = pytest.mark.parametrize("encoding", ENCODINGS)
every_number = pytest.mark.parametrize("left", LEFT, ids=["i32", "i64", "double"])


async def wait() -> None:
    await asyncio.sleep(WAIT / 1000)


def check_told(told: list[Any], sent: list[Any], waited: float) -> None:
    """An instance got what was sent, but for a deadline that is less by what it `waited` at least."""
    assert [*told[:1], *told[2:]] == [*sent[:1], *sent[2:]]
    assert type(told[1]) is type(sent[1])
    assert sent[1] - waited - SLACK < told[1] <= sent[1] - waited + 5


async def occupied(client: ThriftClient, *instances: Instance) -> None:
    """Give each instance the one request that it may have, to be held."""
    for number in range(len(instances)):
        client.ask(100 + number, f"first {number}", 60_000, b"")
    await until(lambda: all(len(instance.held) == 1 for instance in instances))


async def released(client: ThriftClient, count: int, *instances: Instance) -> None:
    for instance in instances:
        instance.behave = echo
        instance.answer_all()
    for _, _, error, _ in await client.got(count):
        assert error is None


# ---- a queue ----


@every_number
@every_encoding
@pytest.mark.parametrize("size", [0, 1000, 100_000])
async def test_waiting_shortens_a_deadline(encoding: str, left: float, size: int) -> None:
    """A call that waits for room is sent with the rest of its time, in its type, and else as it came."""
    instance = ThriftInstance(hold)
    async with bed(instance, listener=FIELD, service=ONE) as g:
        client = await thrift_client(g, encoding)
        await occupied(client, instance)
        sent = ["second", left, bytes(size), b"more"]
        client.ask(2, *sent)
        await until(lambda: len(g.target(instance).main.queue) == 1)
        await wait()
        await released(client, 2, instance)
        check_told(instance.requests[1].params, sent, WAIT)
        assert client.answers[1][3] == instance.requests[1].params


@every_encoding
async def test_many_of_one_client_wait(encoding: str) -> None:
    """Each of those that wait is told less than the one before it."""
    instance = ThriftInstance(hold)
    async with bed(instance, listener=FIELD, service=ONE) as g:
        client = await thrift_client(g, encoding)
        for number in range(8):
            client.ask(number, f"call {number}", 8200, PAYLOAD)
        for count in range(1, 9):
            await until(lambda count=count: len(instance.requests) == count)  # type: ignore[misc]
            await asyncio.sleep(0.03)
            instance.answer_all()
        await client.got(8)
        told = [request.params[1] for request in instance.requests]
        assert told == sorted(told, reverse=True)
        assert told[0] - told[-1] >= 7 * 30 - 2
        assert all(request.params[2] == PAYLOAD for request in instance.requests)


@every_encoding
async def test_a_deadline_that_passes_in_the_queue(encoding: str) -> None:
    """It is told its client as deadline_exceeded, and never sent; the call before and after it are served."""
    instance = ThriftInstance(hold)
    async with bed(instance, listener=FIELD, service=ONE) as g:
        client = await thrift_client(g, encoding)
        await occupied(client, instance)
        client.ask(2, "late", I32(150), PAYLOAD)
        client.ask(3, "in time", I32(9000), PAYLOAD)
        ((_, number, error, _),) = await client.got(1)
        assert (number, error["code"]) == (2, "deadline_exceeded")
        instance.behave = echo
        instance.answer_all()
        answers = await client.got(3)
        assert [answer[1] for answer in answers] == [2, 100, 3]
        assert "late" not in instance.seen


# ---- another instance ----


def session_of(g: Bed) -> RpcSession:
    (connection,) = g.listener.connections.values()
    assert isinstance(connection.session, RpcSession)
    return connection.session


def channel_to(g: Bed, instance: Instance) -> Channel:
    (channel,) = g.target(instance).main.channels
    return channel


def ask_and_break(g: Bed, client: ThriftClient, instance: Instance, *params: Any) -> None:
    """A call whose connection breaks in the turn of the loop in which it was given to it."""
    client.asked[2] = client.encoding, "m"
    call = Said(client.encoding, CALL, "m", 2, list(params))
    channel, session = channel_to(g, instance), session_of(g)
    channel._transport.abort()  # of which the channel hears in a later turn
    session.data_received(thrift_frame(call))
    if session.turn is not None:
        session.turn.run()
    assert len(channel.mux.pending) == 1


BY_KEY = 'policy = "maglev", key = "params[1]", bounded_load = 0.0, table_size = 1021'


@every_number
@every_encoding
async def test_its_instance_dies_while_it_waits(encoding: str, left: float) -> None:
    """A call that moves from one queue to another's is told less by both waits, and is sent once."""
    dying, other = ThriftInstance(hold), ThriftInstance(hold)
    async with bed(dying, other, listener=FIELD, service=ONE, balance=BY_KEY) as g:
        client = await thrift_client(g, encoding)
        for number, instance in enumerate((dying, other)):
            client.ask(100 + number, home_label(g, instance, "first"), 60_000, b"")
        await until(lambda: dying.held and other.held)
        sent = [label := home_label(g, dying, "second"), left, PAYLOAD]
        client.ask(2, *sent)
        await until(lambda: len(g.target(dying).main.queue) == 1)
        await wait()
        dying.kill()
        ((_, number, error, _),) = await client.got(1)  # what it held is lost
        assert (number, error["code"]) == (100, "upstream_lost")
        await until(lambda: len(g.target(other).main.queue) == 1)
        await wait()
        other.behave = echo
        other.answer_all()
        answers = await client.got(3)
        assert [(number, error) for _, number, error, _ in answers[1:]] == [(101, None), (2, None)]
        check_told(other.requests[-1].params, sent, 2 * WAIT)
        assert dying.seen[label] == 0
        assert other.seen[label] == 1


def home_label(g: Bed, instance: Instance, prefix: str) -> str:
    """A text that, as the key, belongs to an instance."""
    labels = (f"{prefix} {number}" for number in range(1000))
    homes = ((label, g.pool.home(hashing.other(label.encode(), hashing.SEED))) for label in labels)
    return next(label for label, home in homes if str(home) == instance.endpoint)


@every_number
@every_encoding
async def test_its_connection_breaks_before_it_is_sent(encoding: str, left: float) -> None:
    """A call that never left goes to another instance as it came, but for its time."""
    dying, other = ThriftInstance(), ThriftInstance()
    async with bed(dying, other, listener=FIELD, service=ONE) as g:
        client = await thrift_client(g, encoding)
        await client.call("first", 60_000, b"")
        first, second = (dying, other) if other.requests else (other, dying)
        sent = ["call", left, PAYLOAD]
        ask_and_break(g, client, first, *sent)
        answers = await client.got(2)
        assert answers[1] == [1, 2, None, second.requests[-1].params]
        check_told(second.requests[-1].params, sent, 0)
        assert first.seen["call"] == 0
        assert g.service.recovery.retried == 1


@every_number
@every_encoding
@pytest.mark.parametrize("rules", [IDEMPOTENT, ""])
async def test_its_connection_breaks_before_it_is_sent_and_then_it_waits(
    encoding: str, left: float, rules: str
) -> None:
    """A call that never left and then waits for another instance is told less by that wait."""
    dying, other = ThriftInstance(hold), ThriftInstance(hold)
    async with bed(dying, other, listener=FIELD + rules, service=ONE) as g:
        client = await thrift_client(g, encoding)
        client.ask(100, "first", 60_000, b"")
        await until(lambda: dying.held or other.held)
        busy, idle = (other, dying) if other.held else (dying, other)
        sent = ["call", left, PAYLOAD]
        ask_and_break(g, client, idle, *sent)
        idle.kill()
        await until(lambda: len(g.target(busy).main.queue) == 1)
        await wait()
        await released(client, 2, busy)
        check_told(busy.requests[-1].params, sent, WAIT)
        assert idle.seen["call"] == 0
        assert busy.seen["call"] == 1
