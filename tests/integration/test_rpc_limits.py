"""What a client, a method and an endpoint may have under way, and what becomes of the rest."""

import asyncio
from collections import Counter
from collections.abc import Sized
from functools import partial
from typing import Any

import pytest

from tests.support.rpc import NOTIFY, REQUEST, Client, Instance, bed, echo, hold
from tests.support.rpc_ends import frame
from tests.support.streams import MiB, until


def code(answer: list[Any]) -> str:
    """An answer's error code, or "" of a result."""
    return str(answer[2]["code"]) if answer[2] else ""


def codes(client: Client) -> Counter[str]:
    return Counter(map(code, client.answers))


async def quiet(condition: Any, seconds: float = 0.1) -> None:
    """Fail where `condition` does not hold for so long."""
    async with asyncio.timeout(seconds + 10):
        end = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end:
            assert condition()
            await asyncio.sleep(0.005)


def has(things: Sized, count: int) -> bool:
    return len(things) >= count


RULED = '\nmethods = { "other" = { timeout = "10s" } }'


# ---- a client ----


@pytest.mark.parametrize("framed", [True, False])
@pytest.mark.parametrize("rules", ["", RULED])
async def test_a_clients_requests_in_flight(framed: bool, rules: str) -> None:
    """Beyond max_inflight a client is not read: its instance sees no more at a time, and nothing is lost."""
    instance = Instance(hold)
    async with bed(instance, listener=f"max_inflight = 4{rules}") as g:
        client, other = await g.client(framed=framed), await g.client()
        for place in range(100):
            client.ask(place, place)
        while len(client.answers) < 100:
            expected = min(4, 100 - len(instance.requests) + len(instance.held))
            await until(partial(has, instance.held, expected))
            assert len(instance.held) <= 4
            instance.held.reverse()
            seen = len(client.answers) + instance.answer_all()
            await client.got(seen)
        instance.behave = echo
        assert await other.is_served()
        assert sorted(result[0] for _, _, _, result in client.answers) == list(range(100))
        assert instance.seen == Counter([*range(100), "ping"])


async def test_a_full_client_is_not_read() -> None:
    """What it sends on stays in the kernel and in its own memory, not in the gateway's."""
    instance = Instance(hold)
    async with bed(instance, listener="max_inflight = 4") as g:
        client = g.dial()
        one = frame(REQUEST, 1, "m", [bytes(1000)])
        sent = await asyncio.wait_for(_until_stalled(client, one * 1000), 20)
        assert sent < 64 * MiB
        assert len(instance.held) == 4
        (connection,) = g.listener.connections.values()
        assert connection.session is not None
        assert connection.session.received < MiB


async def _until_stalled(peer: Any, data: bytes) -> int:
    sent, last, loop = 0, asyncio.get_running_loop().time(), asyncio.get_running_loop()
    while loop.time() - last < 0.2:
        try:
            sent += peer.sock.send(data)
            last = loop.time()
        except BlockingIOError:
            pass
        await asyncio.sleep(0.001)
    return sent


async def test_notifications_that_wait_count() -> None:
    """A client whose notifications find no room is not read either, and they arrive in their order."""
    instance = Instance(deaf=True)
    async with bed(instance, listener="max_inflight = 8", service='rpc = { queue_timeout = "20s" }') as g:
        client = await g.client()
        for place in range(200):
            client.send(NOTIFY, "n", [place, bytes(100_000)])
        await until(lambda: len(g.target(instance).main.queue) == 8)
        assert g.held <= 12 * 110_000  # with what waits to be written
        instance.hear()
        await until(lambda: len(instance.notifications) == 200)
        assert [params[0] for _, params in instance.notifications] == list(range(200))


# ---- an endpoint ----


SMALL = 'rpc = { max_inflight = 2, queue = 3, queue_timeout = "400ms" }'


@pytest.mark.parametrize("rules", ["", RULED.strip()])
async def test_an_endpoint_that_is_full(rules: str) -> None:
    """Two are under way, three wait, the others are told at once; those that wait too long are told then."""
    instance = Instance(hold)
    async with bed(instance, service=SMALL, listener=rules) as g:
        client = await g.client()
        for place in range(10):
            client.ask(place, place)
        await client.got(5)
        assert codes(client) == {"overloaded": 5}
        await quiet(lambda: len(client.answers) == 5)
        await client.got(8)
        assert codes(client) == {"overloaded": 8}
        assert "had room" in client.answers[-1][2]["message"]
        assert len(instance.requests) == 2
        instance.behave = echo
        instance.answer_all()
        await client.got(10)
        assert await client.is_served()
        assert g.held == 0


async def test_those_that_wait_are_sent_in_turn() -> None:
    """What waits goes out as answers come, in its order, and the endpoint never has more than its limit."""
    instance = Instance(hold)
    async with bed(instance, service='rpc = { max_inflight = 2, queue_timeout = "10s" }') as g:
        client = await g.client()
        for place in range(20):
            client.ask(place, place)
        for done in range(0, 20, 2):
            await until(lambda: len(instance.held) == 2)
            assert [request.params[0] for request in instance.held] == [done, done + 1]
            instance.answer_all()
        await client.got(20)
        assert codes(client) == {"": 20}
        await until(lambda: g.target(instance).main.open)


async def test_a_full_endpoint_leaves_others_their_share() -> None:
    """Requests pass over an endpoint without room; they wait only when all are full."""
    full, free = Instance(hold), Instance()
    async with bed(full, free, service="rpc = { max_inflight = 2 }") as g:
        client = await g.client()
        for place in range(4):
            client.ask(place, place)
        await client.got(2)
        assert len(full.held) == 2
        for place in range(20):
            client.ask(place, place)
            await client.got(3 + place)
        assert (len(full.requests), len(free.requests)) == (2, 22)
        full.answer_all()
        await client.got(24)
        assert codes(client) == {"": 24}


async def test_high_priority_goes_first() -> None:
    """Of what waits, high before normal before low, whoever came first."""
    instance = Instance(hold)
    rules = 'methods = { "h" = { priority = "high" }, "l" = { priority = "low" } }'
    async with bed(instance, service="rpc = { max_inflight = 1 }", listener=rules) as g:
        client = await g.client()
        client.ask(0, "first")
        await until(lambda: instance.held)
        for method in "lmhlmh":
            client.ask(1, method, method=method)
        await until(lambda: len(g.target(instance).main.queue) == 6)
        instance.behave = echo
        instance.answer_all()
        await client.got(7)
        assert [request.method for request in instance.requests] == list("mhhmmll")


async def test_who_leaves_gives_up_its_place() -> None:
    """What waited of a client that is gone is not sent, and the way is open to others again."""
    instance = Instance(hold)
    async with bed(instance, service='rpc = { max_inflight = 1, queue_timeout = "20s" }') as g:
        stays, leaves = await g.client(), await g.client()
        stays.ask(1, "stays")
        await until(lambda: instance.held)
        for place in range(10):
            leaves.ask(place, "left", bytes(1000))
        await until(lambda: len(g.target(instance).main.queue) == 10)
        assert g.held > 10_000
        leaves.reset()
        await until(lambda: g.held == 0)
        instance.behave = echo
        instance.answer_all()
        await stays.got(1)
        assert g.target(instance).main.open
        assert await stays.is_served()
        assert "left" not in instance.seen


# ---- a method ----


async def test_a_methods_requests_in_flight() -> None:
    """A rule's max_inflight holds for all clients together; other methods are not concerned."""
    instance = Instance(hold)
    rules = 'methods = { "heavy" = { max_inflight = 2 } }'
    async with bed(instance, listener=rules) as g:
        clients = [await g.client() for _ in range(2)]
        for client in clients:
            client.ask(1, "a", method="heavy")
        await until(lambda: len(instance.held) == 2)
        for client in clients:
            client.ask(2, "b", method="heavy")
            await client.got(1)
            assert (client.answers[0][1], codes(client)) == (2, {"overloaded": 1})
            assert "heavy" in client.answers[0][2]["message"]
            client.ask(3, "c", method="light")
        await until(lambda: len(instance.held) == 4)
        instance.behave = echo
        instance.answer_all()
        for client in clients:
            await client.got(3)
            assert await client.call("d", method="heavy") == ["d"]


async def test_denied_methods() -> None:
    """They reach no instance; an exact name wins over a prefix, a longer prefix over a shorter one."""
    rules = 'methods = { "admin.*" = "deny", "admin.stats*" = {}, "admin.stats.reset" = "deny" }'
    instance = Instance()
    async with bed(instance, listener=rules) as g:
        client = await g.client()
        for method in ("admin.", "admin.stop", "admin.stats.reset"):
            error = await client.call(1, method=method)
            assert error["code"] == "denied"
            client.send(NOTIFY, method, [1])
        for method in ("admin", "admin.stats", "admin.stats.resetting", "other"):
            assert await client.call(1, method=method) == [1]
        client.transport.close()
        line = await g.line()
    assert len(instance.requests) == 4
    assert not instance.notifications
    assert line["errors"] == {"denied": 3}


async def test_names_of_methods_are_not_kept() -> None:
    """A client may invent methods, as many as it likes: what is kept of them is bounded."""
    async with bed(Instance(), listener='methods = { "a*" = {} }') as g:
        client = await g.client()
        for place in range(1500):
            client.ask(place, 1, method=f"{place:04}" + "x" * 1020)
        await client.got(1500)
        known = g.plane.routing.rules._known
        assert sum(map(len, known)) < 1.1 * MiB
