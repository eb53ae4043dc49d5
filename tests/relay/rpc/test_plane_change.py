"""A plane that is changed: nothing that sessions and turns remember of the time before counts any more."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tcpgw.app.planes import Planes
from tcpgw.config.load import loads
from tcpgw.relay.rpc.session import RpcSession
from tests.support.rpc import REQUEST, Bed, Client, Instance, bed, configuration, hold
from tests.support.rpc_ends import frame
from tests.support.streams import until

BY_NAME = ""
BY_KEY = 'deadline = "params[1]"'  # requests are looked at one by one
DENIED = 'methods = { "admin.*" = "deny" }'


@asynccontextmanager
async def warm(listener: str = "") -> AsyncIterator[tuple[Bed, Instance, Client, RpcSession]]:
    """A client whose reads go by a turn by now, with its session."""
    instance = Instance()
    async with bed(instance, listener=listener, balance='policy = "ring"') as g:
        client = await g.client()
        for _ in range(3):
            await client.is_served()
        (connection,) = g.listener.connections.values()
        session = connection.session
        assert isinstance(session, RpcSession)
        assert session.turn is not None
        yield g, instance, client, session


def change(g: Bed, instance: Instance, listener: str) -> None:
    """At once, within this turn of the loop."""
    config = loads(configuration([instance.endpoint], listener=listener, balance='policy = "ring"'), Path())
    relays = g.gateway.relays
    outcomes, circuit = relays.reports.outcomes, relays.places.circuit
    planes = Planes(config, relays.pools.by_name, relays.rpc, relays.memory, {}, outcomes, circuit)
    assert planes.changed(config.listener[0], g.plane) is g.plane


@pytest.mark.parametrize("new", [BY_NAME, BY_KEY, DENIED, "max_inflight = 1"])
@pytest.mark.parametrize("old", [BY_NAME, BY_KEY, 'methods = { "x*" = { timeout = "9s" } }'])
async def test_what_lies_in_a_turn_is_passed_on_by_what_was_in_force(old: str, new: str) -> None:
    """A request that was read before a change goes out by the rules of that time, and is answered once."""
    async with warm(old) as (g, instance, client, session):
        answered = len(client.answers)
        session.data_received(frame(REQUEST, 77, "admin.stop", ["x"]))
        assert session.turn is not None
        assert session in session.turn.reads
        change(g, instance, new)
        session.data_received(frame(REQUEST, 78, "m", ["y"]))
        answers = (await client.got(answered + 2))[answered:]
        assert Counter(number for _, number, _, _ in answers) == Counter([77, 78])
        assert all(error is None for _, _, error, _ in answers)


@pytest.mark.parametrize("old", [BY_NAME, BY_KEY])
@pytest.mark.parametrize("between", [0, 1, 3])
async def test_a_rule_holds_for_the_next_read(old: str, between: int) -> None:
    """However many ordinary requests come first, a denied one is denied: no turn of before takes it."""
    async with warm(old) as (g, instance, client, _):
        change(g, instance, f"{old}\n{DENIED}")
        for _ in range(between):
            assert await client.is_served()
        assert (await client.call("x", method="admin.stop"))["code"] == "denied"
        assert not any(request.method == "admin.stop" for request in instance.requests)
        change(g, instance, old)
        for _ in range(between):
            assert await client.is_served()
        assert await client.call("x", method="admin.stop") == ["x"]


async def test_who_is_gone_has_a_position_still() -> None:
    """Where requests of a client that left are put to rest, after its service and its rule have gone."""
    rules = 'methods = { m = { idempotent = true, service = "s" } }'
    async with warm() as (g, instance, client, session):
        change(g, instance, rules)
        rule = g.plane.routing.rules.patterns["m"]
        client.transport.abort()
        await until(lambda: not g.listener.connections)
        assert not g.plane.sessions
        text = configuration([instance.endpoint], balance='policy = "ring"', service="rpc = { queue = 9 }")
        await g.gateway.reload(loads(text, Path()))
        assert session.home[0] not in g.plane.routing.services
        assert session.placed(b"m", b"\x90", rule) == session.home[1]
        assert session.placed(b"m", b"\x90", g.plane.routing.rules.default) == session.home[1]


async def test_a_plane_knows_who_is_open() -> None:
    """Sessions are known from before their first byte to their end, and those that never opened are not."""
    instance = Instance()
    async with bed(instance) as g:
        clients = [await g.client() for _ in range(3)]
        await until(lambda: len(g.plane.sessions) == 3)
        for client in clients:
            client.transport.abort()
        await until(lambda: not g.plane.sessions)


async def test_hedging_follows_its_rule() -> None:
    """A request under way whose rule ceases to hedge, or is taken out, is answered all the same."""
    rules = 'methods = {{ m = {{ idempotent = true, hedge = "{}" }} }}'
    instance = Instance()
    async with bed(instance, listener=rules.format("9s"), balance='policy = "ring"') as g:
        client = await g.client()
        listeners = [rules.format("p95"), "methods = { m = { idempotent = true } }", rules.format("8s"), ""]
        for number, listener in enumerate(listeners):
            instance.behave = hold
            client.ask(number, "x")
            await until(lambda: instance.held)
            change(g, instance, listener)
            instance.answer_all()
            await client.got(number + 1)
        assert [error for _, _, error, _ in client.answers] == [None] * 4
        assert not g.service.hedges
