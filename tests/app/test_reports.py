"""When what endpoints came to is told to who judges their health."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from tcpgw.app import reports as module
from tcpgw.app.background import Background
from tcpgw.app.balancing import make_policy
from tcpgw.app.reports import Reports
from tcpgw.balancing.loads import Loads
from tcpgw.config.load import loads
from tcpgw.config.schema import Config
from tcpgw.endpoints import Endpoint, Member, Snapshot
from tcpgw.pool import Pool
from tcpgw.relay.outcomes import Kind, News
from tests.support.streams import in_time

A, B = (Endpoint("10.0.0.1", port) for port in (1, 2))


def config(health: str = "") -> Config:
    return loads(
        f"""
        [[service]]
        name = "s"
        discovery = {{ type = "static", endpoints = ["{A}"] }}
        health = {{ {health} }}
        [[listener]]
        name = "l"
        bind = "127.0.0.1:0"
        route = "s"
        """,
        Path(),
    )


class Told:
    def __init__(self, background: Background) -> None:
        self.reports = Reports(self._take, background)
        balance = config().service[0].balance
        self.pool = Pool("s", lambda weights, loads: make_policy(balance, weights, loads), Loads(lambda: 0.0))
        self._told: asyncio.Queue[dict[str, dict[Endpoint, News]]] = asyncio.Queue()

    def _take(self, news: Mapping[str, Mapping[Endpoint, News]]) -> None:
        self._told.put_nowait({service: dict(one) for service, one in news.items()})

    def follow(self, health: str = "") -> None:
        self.reports.follow(config(health), {"s": self.pool})

    async def next(self) -> dict[str, dict[Endpoint, News]]:
        return await in_time(self._told.get())

    @property
    def nothing(self) -> bool:
        return self._told.empty()


@pytest.fixture
async def told() -> AsyncIterator[Told]:
    background = Background()
    made = Told(background)
    await made.pool.publish(Snapshot.of("s", [Member(A), Member(B)], taken_at=0.0, version=1))
    yield made
    await made.reports.close()
    await made.reports.close()
    await background.close()


async def turns() -> None:
    """Let whatever is ready be done."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_streak_that_is_long_enough_is_told_at_once(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So is the first failure of all; the next ones only when it is time."""
    monkeypatch.setattr(module, "_EVERY", 3600.0)
    told.follow("passive = { failures = 3 }")
    await turns()
    outcomes = told.reports.outcomes(told.pool)
    outcomes.fail(A, Kind.RESET)
    await turns()
    assert await told.next() == {"s": {A: News(0, 1, 1, "reset")}}
    outcomes.fail(A, Kind.RESET)
    outcomes.fail(B, Kind.CONNECT, 2)
    await turns()
    assert told.nothing
    outcomes.fail(A, Kind.RESET)
    await turns()
    assert not told.nothing
    assert await told.next() == {"s": {A: News(0, 2, 3, "reset"), B: News(0, 2, 2, "connect")}}


async def test_the_rest_is_told_when_it_is_time(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what works, of those that are watched; of nobody, there is no report."""
    monkeypatch.setattr(module, "_EVERY", 0.001)
    told.follow()
    outcomes = told.reports.outcomes(told.pool)
    outcomes[A].successes += 2
    outcomes.fail(B, Kind.TIMEOUT)
    assert await told.next() == {"s": {B: News(0, 1, 1, "timeout")}}
    assert told.nothing
    told.reports.watch(told.pool, [A])
    assert await told.next() == {"s": {A: News(2, 0, 0)}}


async def test_what_does_not_count_is_not_told(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """By `on`, or where traffic judges nobody; the status has it all the same."""
    monkeypatch.setattr(module, "_EVERY", 0.001)
    told.follow('passive = { failures = 1, on = ["connect"] }')
    outcomes = told.reports.outcomes(told.pool)
    outcomes.fail(A, Kind.RESET, 9)
    told.follow('passive = "off"')
    outcomes.fail(A, Kind.CONNECT, 9)
    told.follow('passive = { failures = 1, on = ["error"] }')
    outcomes.fail(A, Kind.ERROR)
    assert await told.next() == {"s": {A: News(0, 1, 1, "error")}}
    assert told.reports.status(told.pool)["endpoints"] == {
        str(A): {
            "picked": 0,
            "connected": 0,
            "failed": 0,
            "successes": 0,
            "failures": {"reset": 9, "connect": 9, "error": 1},
        }
    }


async def test_a_service_that_is_gone_is_forgotten(told: Told) -> None:
    """Its successor of the same name begins with nothing; for one that stays all count in the same."""
    told.follow()
    outcomes = told.reports.outcomes(told.pool)
    outcomes[A].connected += 1
    told.follow()
    assert told.reports.outcomes(told.pool) is outcomes
    following = Told(Background())
    told.reports.follow(config(), {"s": following.pool})
    assert told.reports.status(following.pool)["endpoints"] == {}
    assert told.reports.status(told.pool)["endpoints"] == {}
