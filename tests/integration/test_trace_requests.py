"""What whoever traces an rpc client is told of its requests, and that the others pass as they always do."""

import pytest

from tcpgw.relay.rpc.session import RpcSession
from tcpgw.relay.tracing import BURST
from tests.support.rpc import NOTIFY, REQUEST, Bed, Instance, bed, hold
from tests.support.rpc_ends import frame
from tests.support.streams import until
from tests.support.tracing import Told

OWN_KEY = 'key = "params[0]"'


def of_request(told: Told, number: int) -> list[str]:
    told.names()
    return [event["event"] for event in told.events if event.get("request") == number]


async def test_each_request_is_told_of() -> None:
    """Its method and key, its candidates, who got it, and how long the answer took."""
    one, two = Instance(), Instance()
    async with bed(one, two, balance=OWN_KEY) as g:
        told = Told(g.gateway)
        client = await g.client()
        await client.call("secret-session", method="predict")
        await client.call("other", method="predict")
        await told.until("placed")
        for number in (1, 2):
            assert of_request(told, number) == ["request", "candidates", "sent", "answered"]
        request, candidates, sent, answered = (event for event in told.events if event.get("request") == 1)
        assert (request["method"], request["service"], request["notification"]) == ("predict", "s", False)
        assert request["key"] == "params[0]"
        assert "value" not in request
        endpoints = {str(instance.endpoint) for instance in (one, two)}
        assert set(candidates["endpoints"]) == endpoints
        assert candidates["home"] in endpoints
        assert sent["endpoint"] == candidates["endpoints"][0] == answered["endpoint"]
        assert (sent["tries"], answered["error"]) == (1, False)
        assert 0 < answered["seconds"] < 10.0
        assert "secret-session" not in str(told.events)


async def test_notifications_and_errors_are_told_as_such() -> None:
    """Nobody answers the one; the other is answered with an error."""
    async with bed(Instance(lambda request: request.refuse("no"))) as g:
        told = Told(g.gateway)
        client = await g.client()
        client.send(NOTIFY, "note", [])
        client.ask(5)
        await client.got(1)
        await told.until("answered")
        assert of_request(told, 1) == ["request", "candidates", "sent"]
        assert told.one("answered")["error"] is True
        assert [event["notification"] for event in told.events if event["event"] == "request"] == [
            True,
            False,
        ]


async def test_what_the_gateway_answers_itself() -> None:
    """With the code that the client is told, and why."""
    async with bed(Instance(), listener='methods = { "no" = "deny" }') as g:
        told = Told(g.gateway)
        client = await g.client()
        client.ask(1, method="no")
        await client.got(1)
        failed = await told.until("failed")
        assert (failed["code"], failed["error"]) == ("denied", "this method is not allowed here")
        assert of_request(told, 1) == ["request", "failed"]


async def test_a_request_that_waits_and_one_that_is_sent_again() -> None:
    """For which endpoint it waits, and why it goes to another one."""
    one = Instance(hold)
    service = "rpc = { max_inflight = 1, queue = 10 }"
    async with bed(one, service=service, listener='methods = { "m" = { idempotent = true } }') as g:
        told = Told(g.gateway)
        client = await g.client()
        client.ask(1)
        await until(lambda: one.held)
        client.ask(2)
        assert (await told.until("waiting"))["request"] == 2
        two = Instance()
        await two.start()
        await g.publish(one, two)
        one.cut()
        await client.got(2)
        retried = await told.until("retrying")
        assert (retried["request"], "broke" in retried["error"]) == (1, True)
        assert of_request(told, 1)[:3] == ["request", "candidates", "sent"]
        assert of_request(told, 1)[-1] == "answered"
        two.kill()


def sessions(g: Bed) -> list[RpcSession]:
    found = [connection.session for connection in g.listener.connections.values()]
    return [session for session in found if isinstance(session, RpcSession)]


@pytest.mark.parametrize("balance", ["", OWN_KEY])
async def test_of_a_flood_some_are_told_and_all_are_answered(balance: str) -> None:
    """The others are a number; and when nobody looks any more, the client is served as all are."""
    instance = Instance()
    count = int(BURST) + 300
    async with bed(instance, balance=balance) as g:
        told = Told(g.gateway)
        client = await g.client()
        client.transport.write(b"".join(frame(REQUEST, number, "m", [number]) for number in range(count)))
        await client.got(count)
        events = [event for event in told.events if event["event"] == "request"] if told.names() else []
        dropped = [event["requests"] for event in told.events if event["event"] == "dropped"]
        assert len(events) >= BURST
        assert len(events) + sum(dropped) == count
        await client.call("x")
        assert [session.turn for session in sessions(g)] == [None]
        told.stop()
        for _ in range(3):
            await client.call("x")
        assert all(session.turn is not None for session in sessions(g))
        assert "closed" not in told.names()


async def test_a_client_that_nobody_traces_is_served_as_ever() -> None:
    """Also beside one that is traced."""
    async with bed(Instance(), balance="") as g:
        before = await g.client()
        told = Told(g.gateway)
        traced = await g.client()
        for client in (before, traced):
            await client.call("x")
        assert sorted(session.turn is None for session in sessions(g)) == [False, True]
        assert "answered" in told.names()
        assert {event["conn"] for event in told.events} == {2}
