"""Sick instances behind the stream plane: what clients see of it, beside what the configuration promises."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tcpgw.endpoints import Endpoint
from tests.support.instances import clients
from tests.support.sick import GIVES_UP, Clients, Instance, Mood, instances, of, states
from tests.support.streams import Bed, bed, silent, until

CHECKS = 'active = { type = "tcp", interval = "100ms", fast_interval = "50ms", timeout = "50ms" }'
# Ejections that a test can wait for, and trials that it can count.
SOON = 'ejection = "400ms", max_ejection = "2s"'
TURNS = 'policy = "round_robin"'
MAGLEV = "table_size = 1021"
SOURCES = clients(800)


@asynccontextmanager
async def sick(
    count: int, health: str, *, balance: str = TURNS, service: str = ""
) -> AsyncIterator[tuple[Bed, Clients, list[Instance]]]:
    async with instances(count) as made:
        endpoints = [one.endpoint for one in made]
        async with bed(
            instances=0, endpoints=endpoints, health=health, balance=balance, service=service
        ) as b:
            yield b, Clients(b.listener.address), made
            for one in made:
                one.close()


def state(b: Bed, instance: Instance) -> str:
    return str(b.gateway.health.status()["s"]["states"][instance.endpoint])


async def until_state(b: Bed, instance: Instance, *wanted: str) -> None:
    await until(lambda: state(b, instance) in wanted)


async def test_flapping() -> None:
    """An instance that comes and goes costs the connections that it had, and no client that connects.

    Who is refused tries another candidate. Its state follows with each stay that lasts as long as `fall` or
    `rise` checks, and is said once for each.
    """
    flaps, many = 4, 4
    async with sick(3, f"{CHECKS}, passive = 'off'") as (b, c, (flapping, *_)):
        async with c.steady(many):
            for _ in range(flaps):
                await until_state(b, flapping, "healthy")
                await asyncio.sleep(0.3)
                flapping.down()
                await asyncio.sleep(0.4)
                flapping.up()
            await until_state(b, flapping, "healthy")
        assert len(c.failures) <= flaps * many, c.failures
        assert c.served.total() > 200
        seen = states(b.logs, flapping.endpoint)
        assert seen == ["healthy"] + ["unhealthy", "healthy"] * flaps


async def test_a_black_hole() -> None:
    """One that accepts and never answers fails `failures` clients, and who comes until these are counted.

    With 4 clients who ask until they give up these are 5 to 9; and none after that, though checks of the
    connection pass all the time.
    """
    passive = 'passive = { failures = 5, first_byte_timeout = "300ms", ejection = "1m" }'
    async with sick(3, f"{CHECKS}, {passive}") as (b, c, (hole, *_)):
        await until_state(b, hole, "healthy")
        async with c.steady(4):
            hole.mood = "silent"
            await until_state(b, hole, "ejected")
            await asyncio.sleep(1.2 * GIVES_UP)  # of those who are still connected to it
            failed = len(c.failures)
            assert 5 <= failed <= 9
            served = c.served.total()
            await asyncio.sleep(1.2 * GIVES_UP)
        assert c.served.total() > served + 100
        assert len(c.failures) == failed
        assert states(b.logs, hole.endpoint) == ["healthy", "ejected"]


async def test_the_trials_of_a_black_hole() -> None:
    """A trial costs no more clients than ask at a time; after each it is out for longer."""
    passive = f'passive = {{ failures = 5, first_byte_timeout = "300ms", {SOON} }}'
    async with sick(3, f"{CHECKS}, {passive}") as (b, c, (hole, *_)):
        async with c.steady(4):
            hole.mood = "silent"
            await until(lambda: b.gateway.health.status()["s"]["ejections"] == 3)
            failed = len(c.failures)
        assert failed <= 9 + 2 * 4
        out = [line["why"] for line in of(b.logs, "endpoint_state") if line["after"] == "ejected"]
        assert out[0].endswith("failed in a row, the last by timeout: out for 0.4 s")
        assert out[1:3] == [
            "a failure in its trial, the last by timeout: out for 0.8 s",
            "a failure in its trial, the last by timeout: out for 1.2 s",
        ]


@pytest.mark.parametrize(("mood", "failures"), [("resets", {5}), ("slams", set(range(6)))])
async def test_resets(mood: Mood, failures: set[int]) -> None:
    """One that resets before its first byte fails exactly `failures` clients one after the other.

    Fewer where it is so quick that the gateway has not connected yet: who is cut off then is tried elsewhere.
    Checks, which it passes, do not bring it back.
    """
    passive = 'passive = { failures = 5, ejection = "1m" }'
    async with sick(2, f"{CHECKS}, {passive}") as (b, c, (resetting, well)):
        await until_state(b, resetting, "healthy")
        resetting.mood = mood
        await c.ask_often(60)
        assert len(c.failures) in failures
        assert c.served == {well.endpoint: 60 - len(c.failures)}
        assert state(b, resetting) == "ejected"
        if mood == "resets":
            await asyncio.sleep(0.5)
            assert state(b, resetting) == "ejected"


async def test_all_down_and_back() -> None:
    """While all are down all are tried, which is an error in the log; when they are back nobody need do a
    thing.

    Clients fail meanwhile, and none does once `rise` checks have passed.
    """
    async with sick(3, f"{CHECKS}, passive = {{ {SOON} }}") as (b, c, made):
        for one in made:
            await until_state(b, one, "healthy")
        for one in made:
            one.down()
        for one in made:
            await until_state(b, one, "unhealthy")
        await c.ask_often(5)
        assert len(c.failures) == 5
        tries = [line["tries"] for line in b.lines[-5:]]
        assert tries == [3] * 5  # nobody was passed over
        assert b.gateway.health.status()["s"]["panic"] is True
        made[0].up()
        # One of three is less than half: still a panic, in which it gets what it can.
        await until_state(b, made[0], "healthy")
        c.failures.clear()
        await c.ask_often(5)
        assert not c.failures
        for one in made[1:]:
            one.up()
        for one in made:
            await until_state(b, one, "healthy")
        served = await c.ask_often(9)
        assert not c.failures
        assert served == {one.endpoint: 3 for one in made}
        status = b.gateway.health.status()["s"]
        assert (status["panic"], status["panics"]) == (False, 1)
        assert [line["event"] for line in b.logs if line["event"].startswith("panic")] == [
            "panic",
            "panic_over",
        ]


@pytest.mark.parametrize("health", [CHECKS, 'active = "off"'])
async def test_the_only_one(health: str) -> None:
    """The only instance is never left out, however sick: its clients fail, and are served when it is well."""
    async with sick(1, f"{health}, passive = {{ failures = 5 }}") as (b, c, (only,)):
        await c.ask()
        only.mood = "resets"
        await c.ask_often(20)
        assert len(c.failures) == 20
        assert b.pool.shares == {}
        (spared,) = of(b.logs, "endpoint_spared")
        assert spared["why"].endswith("the last by reset: no other endpoint is usable")
        only.down()
        await c.ask_often(20)
        await asyncio.sleep(0.4)
        only.up()
        only.mood = "well"
        c.failures.clear()
        await c.ask_often(20)
        assert not c.failures
        status = b.gateway.health.status()["s"]
        assert (status["ejections"], status["spared"]) == (0, 1)


@pytest.mark.parametrize(("most", "out"), [(0.5, 2), (0.25, 1), (0.0, 0)])
async def test_more_are_sick_than_may_be_ejected(most: float, out: int) -> None:
    """Of 4, 3 of them sick, `max_ejected` are ejected; the others are used on, which is said once of each."""
    passive = f"passive = {{ max_ejected = {most} }}"
    async with sick(4, f'active = "off", {passive}') as (b, c, (well, *sick_ones)):
        for one in sick_ones:
            one.mood = "resets"
        await c.ask_often(100)
        seen = [state(b, one) for one in sick_ones]
        assert seen.count("ejected") == out
        assert len(of(b.logs, "endpoint_spared")) == 3 - out
        left = 4 - out
        served = await c.ask_often(left * 4)
        assert served == {"": 4 * (left - 1), well.endpoint: 4}
        assert len(of(b.logs, "endpoint_spared")) == 3 - out


async def test_refused_without_checks() -> None:
    """5 refused connections eject, of which no client sees any; then a trial with a tenth of its share.

    As often as the trial fails it is out for longer, and clients do not see that either: they are connected
    elsewhere. When it is back, 3 successes in the trial give it its whole share again.
    """
    passive = 'passive = { failures = 5, trial_share = 0.1, ejection = "300ms", max_ejection = "900ms" }'
    async with sick(2, f'active = "off", {passive}') as (b, c, (dead, well)):
        await c.ask_often(4)
        dead.down()
        await c.ask_often(20)
        assert state(b, dead) == "ejected"
        assert b.gateway.relays.reports.outcomes(b.pool)[Endpoint.parse(dead.endpoint)].failed == 5
        loop, began = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        out = []
        for _ in range(3):
            await until_state(b, dead, "trial")
            out.append(loop.time() - began)
            while state(b, dead) == "trial":
                await c.ask()
            began = loop.time()
        assert [round(seconds, 1) for seconds in out] == [0.3, 0.6, 0.9]
        assert b.gateway.health.status()["s"]["ejections"] == 4
        dead.up()
        await until_state(b, dead, "trial")
        while state(b, dead) == "trial":
            await c.ask()
        assert not c.failures
        assert states(b.logs, dead.endpoint)[-1] == "healthy"
        assert await c.ask_often(20) == {dead.endpoint: 10, well.endpoint: 10}


@pytest.mark.parametrize(("balance", "expected"), [(TURNS, 0.2 / 1.2), (MAGLEV, 0.1)])
async def test_the_share_of_a_trial(balance: str, expected: float) -> None:
    """One of two in trial gets `trial_share` of its weight, of any client's connections by chance."""
    passive = 'passive = { failures = 1, trial_share = 0.2, trial_successes = 10000, ejection = "100ms" }'
    async with sick(2, f'active = "off", {passive}', balance=balance) as (b, c, (one, _)):
        one.down()
        for source in SOURCES[:20]:
            await c.ask(source)
        one.up()
        await until_state(b, one, "trial")
        c.served.clear()
        for source in SOURCES:
            await c.ask(source)
        # 4 standard deviations of 800 by chance.
        assert abs(c.served[one.endpoint] / 800 - expected) < 0.06
        assert not c.failures


async def test_failing_connects_are_no_storm() -> None:
    """Of 50 clients whose instances do not answer, a fifth is connecting a second time at once, as promised.

    The others are told so in their closing line, and the status counts them.
    """
    with silent() as first, silent() as second:
        connect = 'connect = { timeout = "300ms", candidates = 3, retry_budget = 0.2 }'
        async with bed(instances=0, endpoints=[first, second], balance=TURNS, service=connect) as b:
            c = Clients(b.listener.address)
            await asyncio.gather(*(c.ask() for _ in range(50)))
            assert len(c.failures) == 50
            await b.closed(50)
            tries = Counter(line["tries"] for line in b.lines)
            assert tries == {1: 40, 2: 10}
            told = [line for line in b.lines if "retry budget is spent (retry_budget)" in line["error"]]
            assert len(told) == 40
            status = b.gateway.relays.status()["services"]["s"]["circuit"]
            assert status["retries_refused"] == 40
