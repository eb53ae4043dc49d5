"""Endpoints that come, go, and come back: nobody is closed with requests under way before its time."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tcpgw.endpoints import Endpoint, Member
from tcpgw.relay.rpc import targets as module
from tcpgw.relay.rpc.target import Target
from tcpgw.relay.rpc.targets import Targets

A, B = Endpoint("10.0.0.1", 1), Endpoint("10.0.0.2", 1)


class Fake:
    """What a Target is to this: it notes what it is told."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.load = SimpleNamespace(inflight=0)
        self.main = SimpleNamespace(failure="")
        self.retired_at: float | None = None
        self.told: list[str] = []

    def retire(self, now: float) -> None:
        self.retired_at = now
        self.told.append("retire")

    def revive(self) -> None:
        self.retired_at = None
        self.told.append("revive")

    def pause(self) -> None:
        self.told.append("pause")

    async def close(self) -> None:
        self.told.append("close")


class Pool:
    def __init__(self, *endpoints: Endpoint) -> None:
        self.members = [Member(one) for one in endpoints]
        self.out: set[Endpoint] = set()

    def usable(self, endpoint: Endpoint) -> bool:
        return endpoint not in self.out


def following(monkeypatch: pytest.MonkeyPatch, *endpoints: Endpoint) -> tuple[Pool, Targets]:
    """All with time standing at 100 s."""
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: 100.0))
    pool: Any = Pool(*endpoints)
    made = Targets(pool, lambda endpoint: cast("Target", Fake(endpoint)))
    made.follow()
    return pool, made


def fake(target: Target) -> Fake:
    assert isinstance(target, Fake)
    return target


def leave(pool: Pool, targets: Targets) -> Fake:
    """A leaves, with a request under way."""
    target = fake(targets[A])
    target.load.inflight = 1
    pool.members = [Member(B)]
    targets.follow()
    return target


def test_who_leaves_is_retired_and_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is none of the snapshot's any more, and still one of all."""
    pool, targets = following(monkeypatch, A, B)
    left = leave(pool, targets)
    assert [*targets] == [B]
    assert [fake(one).endpoint for one in targets.all] == [B, A]
    assert left.told == ["retire"]
    assert targets.drains == {"started": 1, "closed": 0, "reset": 0, "spared": 0}


def test_who_is_back_in_time_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what it has under way."""
    pool, targets = following(monkeypatch, A, B)
    left = leave(pool, targets)
    pool.members = [Member(A), Member(B)]
    targets.follow()
    assert fake(targets[A]) is left
    assert left.told == ["retire", "revive"]
    assert not targets.retired
    assert targets.drains["spared"] == 1


def test_who_is_out_is_paused_until_it_is_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays in the snapshot."""
    pool, targets = following(monkeypatch, A, B)
    pool.out = {A}
    targets.follow()
    pool.out = set()
    targets.follow()
    assert fake(targets[A]).told == ["pause", "revive"]
    assert fake(targets[B]).told == []


async def test_who_left_is_closed_when_it_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before, while it has time."""
    pool, targets = following(monkeypatch, A, B)
    left = leave(pool, targets)
    targets.sweep(129.9)
    assert targets.retired
    left.load.inflight = 0
    targets.sweep(129.9)
    await targets.close()
    assert left.told == ["retire", "close"]
    assert targets.drains["closed"] == 1
    assert not targets.retired


async def test_who_never_finishes_is_closed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """After half a minute, and the requests that it had then count as cut."""
    pool, targets = following(monkeypatch, A, B)
    left = leave(pool, targets)
    targets.broke(cast("Target", left), 5)
    assert targets.requests_cut == 0
    targets.sweep(130.0)
    await asyncio.sleep(0)
    assert left.told == ["retire", "close"]
    assert targets.drains["reset"] == 1
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: 130.0))
    targets.broke(cast("Target", left), 1)
    assert targets.requests_cut == 1


async def test_a_stop_leaves_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither those of the snapshot nor those that left it; and whoever asks is told why."""
    pool, targets = following(monkeypatch, A, B)
    assert targets.nobody().startswith("reaches none of its 2 endpoints")
    leave(pool, targets)
    stopped = [fake(one) for one in targets.stop()]
    assert not targets
    assert targets.nobody() == "is being stopped"
    await targets.close()
    assert {one.endpoint for one in stopped if one.told[-1:] == ["close"]} == {A, B}


@pytest.mark.parametrize(
    ("endpoints", "out", "why"),
    [
        ((), (), "has no endpoint: discovery found none"),
        ((A, B), (A, B), "has 2 endpoints, and health checks let none of them be used"),
        ((A,), (), "reaches none of its 1 endpoints (10.0.0.1:1: lost just now)"),
    ],
)
def test_why_nobody_takes_a_request(
    endpoints: tuple[Endpoint, ...], out: tuple[Endpoint, ...], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator reads whether discovery, health checks or the network is to be looked at."""
    pool, targets = following(monkeypatch, *endpoints)
    pool.out = {*out}
    targets.follow()
    assert targets.nobody() == why
