"""Sick instances behind the rpc plane: what clients see of it, beside what the configuration promises."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from tcpgw.endpoints import Endpoint
from tests.support.rpc import Bed, Client, Instance, Request, bed, hold
from tests.support.sick import of, states
from tests.support.streams import until

CHECKS = 'active = { type = "tcp", interval = "100ms", fast_interval = "50ms", timeout = "50ms" }'
UNCHECKED = 'active = "off"'
FOR_LONG = 'ejection = "1m"'
SOON = 'ejection = "300ms", max_ejection = "900ms"'
PING = 'active = { type = "rpc", interval = "100ms", fast_interval = "50ms", timeout = "80ms" }'
SHORT = 'request_timeout = "200ms"'


def state(g: Bed, instance: Instance) -> str:
    return str(g.gateway.health.status()["s"]["states"][instance.endpoint])


async def until_state(g: Bed, instance: Instance, *wanted: str) -> None:
    await until(lambda: state(g, instance) in wanted)


def name(request: Request) -> None:
    """Answer with who answers."""
    request.link.send(1, request.id, None, request.link.instance.endpoint)


def refuse(request: Request) -> None:
    request.refuse({"code": "broken"})


def cut(request: Request) -> None:
    """Lose the connection over it."""
    request.link.transport.abort()


async def ask_often(client: Client, count: int) -> Counter[Any]:
    """One after another: who answered how often, or with which error."""
    told: Counter[Any] = Counter()
    for _ in range(count):
        answer = await client.call()
        told[answer["code"] if isinstance(answer, dict) else answer] += 1
    return told


async def test_a_black_hole() -> None:
    """One that answers nothing fails `failures` requests one after the other, by their time-outs, no more.

    That its connections stand, and checks of them pass, does not count.
    """
    hole, well = Instance(name), Instance(name)
    health = f"{CHECKS}, passive = {{ failures = 5, {FOR_LONG} }}"
    async with bed(hole, well, health=health, listener=SHORT) as g:
        client = await g.client()
        assert await ask_often(client, 10) == {hole.endpoint: 5, well.endpoint: 5}
        hole.behave = hold
        assert await ask_often(client, 40) == {"deadline_exceeded": 5, well.endpoint: 35}
        assert state(g, hole) == "ejected"
        await asyncio.sleep(0.3)
        assert state(g, hole) == "ejected"


async def test_a_black_hole_under_load() -> None:
    """Of many clients those fail that asked it in the time-out before it was found, and none later."""
    hole, *others = made = [Instance(name) for _ in range(4)]
    health = f"{CHECKS}, passive = {{ failures = 5, {FOR_LONG} }}"
    async with bed(*made, health=health, listener=SHORT) as g:
        clients = [await g.client() for _ in range(20)]
        await asyncio.gather(*(ask_often(client, 10) for client in clients))
        hole.behave = hold
        told: Counter[Any] = Counter()
        for one in await asyncio.gather(*(ask_often(client, 100) for client in clients)):
            told += one
        # Each waits for its own answer, so that it asks the hole once before that is out.
        assert 5 <= told["deadline_exceeded"] <= 20
        assert told.total() - told["deadline_exceeded"] == sum(told[one.endpoint] for one in others)


async def test_a_check_by_rpc_finds_a_black_hole() -> None:
    """`fall` checks: those clients fail who asked meanwhile. When it answers again it is back by `rise`."""
    hole, well = Instance(name), Instance(name)
    async with bed(hole, well, health=f"{PING}, passive = 'off'", listener=SHORT) as g:
        client = await g.client()
        await until_state(g, hole, "healthy")
        hole.behave = hold
        told = await ask_often(client, 20)
        assert 1 <= told["deadline_exceeded"] <= 3
        assert state(g, hole) == "unhealthy"
        (line,) = [one for one in of(g.logs, "endpoint_state") if one["after"] == "unhealthy"]
        assert line["why"] == "3 checks in a row failed: no answer within 0.08 s"
        hole.behave = name
        await until_state(g, hole, "healthy")
        assert await ask_often(client, 10) == {hole.endpoint: 5, well.endpoint: 5}


async def test_errors_where_they_are_failures() -> None:
    """An instance whose answers are errors is ejected by `on` with "error", after `failures` of them."""
    broken, well = Instance(refuse), Instance(name)
    health = f'{CHECKS}, passive = {{ failures = 5, on = ["error"], {FOR_LONG} }}'
    async with bed(broken, well, health=health) as g:
        client = await g.client()
        assert await ask_often(client, 30) == {"broken": 5, well.endpoint: 25}
        assert state(g, broken) == "ejected"


async def test_errors_where_they_are_none() -> None:
    """By default an error is an answer like any other: a client's wrong request gets one as well."""
    broken, well = Instance(refuse), Instance(name)
    async with bed(broken, well, health=f"{CHECKS}, passive = {{ failures = 5, {FOR_LONG} }}") as g:
        client = await g.client()
        assert await ask_often(client, 30) == {"broken": 15, well.endpoint: 15}
        assert state(g, broken) == "healthy"


@pytest.mark.parametrize("idempotent", [False, True])
async def test_resets(idempotent: bool) -> None:
    """One that loses the connection over each request fails 5 of them, or none where they may be repeated."""
    broken, well = Instance(cut), Instance(name)
    rules = f'methods = {{ "m" = {{ idempotent = {str(idempotent).lower()} }} }}'
    health = f"{CHECKS}, passive = {{ failures = 5, {FOR_LONG} }}"
    async with bed(broken, well, health=health, listener=rules) as g:
        client = await g.client()
        told: Counter[Any] = Counter()
        async with asyncio.timeout(10):
            while state(g, broken) != "ejected":
                told += await ask_often(client, 1)
        told += await ask_often(client, 20)
        assert told["upstream_lost"] == (0 if idempotent else 5)
        assert told.total() == told["upstream_lost"] + told[well.endpoint]


async def test_refused_without_checks() -> None:
    """A dead instance costs the requests that it had; nobody else sees it, and it is served when it is back.

    Its connections are tried again all the time, but that ejects nobody: it would be out for long after.
    """
    dead, well = Instance(name), Instance(name)
    passive = f"passive = {{ failures = 5, {FOR_LONG} }}"
    async with bed(dead, well, health=f"{UNCHECKED}, {passive}") as g:
        client = await g.client()
        await ask_often(client, 10)
        dead.kill()
        await until(lambda: g.service.outcomes[Endpoint.parse(dead.endpoint)].failed >= 6)
        assert await ask_often(client, 20) == {well.endpoint: 20}
        await dead.start()
        await until(lambda: g.target(dead).main.open)
        assert await ask_often(client, 10) == {dead.endpoint: 5, well.endpoint: 5}
        assert "ejected" not in states(g.logs, dead.endpoint)


async def test_the_share_of_a_trial() -> None:
    """One of two in trial is asked by `trial_share` of its weight."""
    one, other = Instance(name), Instance(name)
    passive = 'passive = { failures = 1, trial_share = 0.2, trial_successes = 9999, ejection = "100ms" }'
    async with bed(one, other, health=f"{UNCHECKED}, {passive}") as g:
        client = await g.client()
        one.behave = cut
        await ask_often(client, 2)
        one.behave = name
        await until_state(g, one, "trial")
        told = await ask_often(client, 600)
        assert told.keys() == {one.endpoint, other.endpoint}
        assert abs(told[one.endpoint] / 600 - 0.2 / 1.2) < 0.02


async def test_all_down_and_back() -> None:
    """While all are down requests fail by a named error, at once or in time; then all answer again."""
    made = [Instance(name) for _ in range(3)]
    health = f"{CHECKS}, passive = {{ failures = 5, {SOON} }}"
    async with bed(*made, health=health, listener=SHORT) as g:
        client = await g.client()
        for one in made:
            await until_state(g, one, "healthy")
        for one in made:
            one.kill()
        for one in made:
            await until_state(g, one, "unhealthy")
        assert g.gateway.health.status()["s"]["panic"] is True
        told = await ask_often(client, 5)
        assert set(told) <= {"no_endpoint", "deadline_exceeded", "upstream_lost"}
        for one in made:
            await one.start()
        for one in made:
            await until_state(g, one, "healthy")
        await until(lambda: all(g.target(one).main.open for one in made))
        assert await ask_often(client, 9) == {one.endpoint: 3 for one in made}
        assert [one["event"] for one in g.logs if one["event"].startswith("panic")] == ["panic", "panic_over"]


async def test_the_only_one() -> None:
    """The only instance is asked on, however sick: it is spared, which is said once."""
    only = Instance(cut)
    async with bed(only, health=f"{UNCHECKED}, passive = {{ failures = 3, {SOON} }}") as g:
        client = await g.client()
        async with asyncio.timeout(10):
            while not of(g.logs, "endpoint_spared"):
                await ask_often(client, 1)
        await ask_often(client, 3)
        only.behave = name
        await until(lambda: g.target(only).main.open)
        assert await ask_often(client, 10) == {only.endpoint: 10}
        assert len(of(g.logs, "endpoint_spared")) == 1
        assert "ejected" not in states(g.logs, only.endpoint)


async def test_flapping() -> None:
    """One that comes and goes fails the requests that it had when it went, and no other."""
    flapping, *_ = made = [Instance(name) for _ in range(3)]
    async with bed(*made, health=f"{CHECKS}, passive = {{ {SOON} }}") as g:
        clients = [await g.client() for _ in range(4)]
        told: Counter[Any] = Counter()
        stopping = False

        async def ask_on(client: Client) -> None:
            nonlocal told
            while not stopping:
                told += await ask_often(client, 1)
                await asyncio.sleep(0.005)

        async with asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(ask_on(client))
            for _ in range(4):
                await asyncio.sleep(0.3)
                flapping.kill()
                await asyncio.sleep(0.3)
                await flapping.start()
            stopping = True
        assert told["upstream_lost"] <= 4 * len(clients)
        assert set(told) <= {"upstream_lost", *(one.endpoint for one in made)}, told
