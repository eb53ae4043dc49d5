"""An operator's word on endpoints: in force at once, kept, and forgotten in the end."""

import asyncio
import json
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from structlog.testing import capture_logs

from tcpgw.app.background import Background
from tcpgw.app.control import RefusedError
from tcpgw.app.overrides import ABSENT, Overrides
from tcpgw.config.load import loads
from tcpgw.config.schema import Config
from tcpgw.endpoints import Endpoint, Member, Snapshot

A, B, C = (Endpoint(f"10.0.0.{number}", 80) for number in (1, 2, 3))


def config(state_dir: Path | None, *services: str) -> Config:
    names = services or ("s",)
    tables = "".join(
        f'[[service]]\nname = "{name}"\ndiscovery = {{ type = "static", endpoints = ["10.0.0.1:80"] }}\n'
        for name in names
    )
    gateway = f'[gateway]\nstate_dir = "{state_dir}"\n' if state_dir else ""
    return loads(f'{gateway}{tables}[[listener]]\nname = "l"\nbind = "127.0.0.1:0"\nroute = "s"\n', Path())


def snapshot(*members: Member, version: int = 1, service: str = "s") -> Snapshot:
    return Snapshot.of(service, members or (Member(A, 2), Member(B)), taken_at=5.0, version=version)


class World:
    """A gateway's overrides, and what they put in force."""

    def __init__(self, background: Background) -> None:
        self.now = 100.0
        self.put: list[Snapshot] = []
        self.health: dict[str, Any] = {}
        self._background = background
        self.overrides = self._made()

    def _made(self) -> Overrides:
        return Overrides(self.put.append, lambda: self.health, self._background, lambda: self.now)

    async def started(self, state_dir: Path | None, *members: Member) -> Overrides:
        """As the next process would."""
        self.overrides.close()
        self.overrides = self._made()
        await self.overrides.load(config(state_dir))
        await self.overrides.publish(snapshot(*members))
        return self.overrides

    @property
    def weights(self) -> dict[Endpoint, int]:
        """In force."""
        return dict(self.put[-1].members)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    background = Background()
    made = World(background)
    yield made
    made.overrides.close()
    await background.close()


async def test_it_is_in_force_at_once_and_until_it_is_taken_back(world: World) -> None:
    """Also over later answers of discovery; the answer tells what became of it."""
    overrides = await world.started(None)
    with capture_logs() as logs:
        answer = await overrides.drain("10.0.0.1:80")
    assert answer == {
        "endpoints": [
            {
                "service": "s", "endpoint": "10.0.0.1:80", "weight": 0, "given_weight": 2,
                "override": "drained", "changed": True,
            }
        ],
        "kept": False,
        "why": "gateway.state_dir is not set",
    }  # fmt: skip
    assert [(line["event"], line["endpoint"], line["given_weight"]) for line in logs] == [
        ("endpoint_drained", "10.0.0.1:80", 2)
    ]
    assert world.weights == {A: 0, B: 1}
    await overrides.publish(snapshot(Member(A, 3), Member(B), Member(C), version=2))
    assert world.weights == {A: 0, B: 1, C: 1}
    assert overrides.told() == {"s": {"10.0.0.1:80": {"override": "drained", "given_weight": 3}}}
    with capture_logs() as logs:
        assert (await overrides.undrain("10.0.0.1:80"))["endpoints"][0]["weight"] == 3
    assert [line["event"] for line in logs] == ["endpoint_undrained"]
    assert world.weights == {A: 3, B: 1, C: 1}
    assert overrides.told() == {}


async def test_said_twice_is_said_once(world: World) -> None:
    """No second line, and nobody is told anything anew."""
    overrides = await world.started(None)
    for say in (overrides.drain, overrides.undrain):
        await say("10.0.0.1:80")
        before = list(world.put)
        with capture_logs() as logs:
            assert not (await say("10.0.0.1:80"))["endpoints"][0]["changed"]
        assert (logs, world.put) == ([], before)


async def test_a_weight_outlives_a_drain(world: World) -> None:
    """And "auto" gives discovery's back, for whoever is drained too."""
    overrides = await world.started(None)
    await overrides.weight("10.0.0.1:80", 7)
    assert world.weights == {A: 7, B: 1}
    await overrides.drain("10.0.0.1:80")
    assert (await overrides.weight("10.0.0.1:80", 8))["endpoints"][0]["override"] == "drained"
    assert world.weights[A] == 0
    await overrides.undrain("10.0.0.1:80")
    assert world.weights[A] == 8
    for auto in ("auto", None):
        await overrides.weight("10.0.0.1:80", 9)
        await overrides.weight("10.0.0.1:80", auto)
        assert world.weights[A] == 2


@pytest.mark.parametrize("weight", [0, -1, 65536, 1.5, True, "much"])
async def test_a_weight_is_a_number_that_discovery_could_say(world: World, weight: Any) -> None:
    """0 is for `drain`, whose questions are asked then."""
    overrides = await world.started(None)
    with pytest.raises(RefusedError, match=r"1 to 65535, or auto.*tcpgw drain"):
        await overrides.weight("10.0.0.1:80", weight)
    assert world.weights[A] == 2


async def test_what_is_refused_changes_nothing(world: World) -> None:
    """What is no endpoint, or none of these; and the last that works, by what checks found."""
    overrides = await world.started(None)
    world.health = {"s": {"states": {"10.0.0.1:80": "healthy", "10.0.0.2:80": "unhealthy"}}}
    for endpoint in ("10.0.0.1", "10.0.0.9:80", "10.0.0.1:80"):
        with pytest.raises(RefusedError):
            await overrides.drain(endpoint)
    assert len(world.put) == 1
    await overrides.drain("10.0.0.1:80", None, True)
    assert world.weights == {A: 0, B: 1}


async def test_versions_only_grow(world: World, tmp_path: Path) -> None:
    """By one with each change, whoever makes it; and in the next process they go on."""
    overrides = await world.started(tmp_path)
    await overrides.drain("10.0.0.1:80")
    await overrides.weight("10.0.0.1:80", 4)  # in force only later
    await overrides.publish(snapshot(Member(A), Member(B), version=2))
    await overrides.undrain("10.0.0.1:80")
    await overrides.weight("10.0.0.1:80", "auto")
    assert [one.version for one in world.put] == [1, 2, 3, 4, 5]
    overrides = await world.started(tmp_path)
    assert world.put[-1].version == 1 + 3


async def test_the_next_process_finds_it(world: World, tmp_path: Path) -> None:
    """Before its first snapshot: nothing is sent there even for a moment. Only the owner may read it."""
    overrides = await world.started(tmp_path)
    assert (await overrides.drain("10.0.0.1:80"))["kept"]
    answer = await overrides.weight("10.0.0.2:80", 5)
    assert (answer["kept"], answer["why"]) == (True, "")
    file = tmp_path / "overrides.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    world.put.clear()
    with capture_logs() as logs:
        await world.started(tmp_path)
    assert [dict(one.members) for one in world.put] == [{A: 0, B: 5}]
    assert logs[0]["overrides"] == ["s 10.0.0.1:80 drained", "s 10.0.0.2:80 weight"]


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        '{"format": 2, "services": {}}',
        '{"format": 1, "services": {"s": {"endpoints": {"10.0.0.1": {"drained": true}}}}}',
        '{"format": 1, "services": {"s": {"endpoints": {"10.0.0.1:80": {"weight": -4}}}}}',
    ],
)
async def test_a_damaged_file_is_none(world: World, tmp_path: Path, text: str) -> None:
    """It is said, with what to do; all have their weights."""
    (tmp_path / "overrides.json").write_text(text)
    with capture_logs() as logs:
        await world.started(tmp_path)
    assert [line["event"] for line in logs] == ["overrides_ignored"]
    assert world.weights == {A: 2, B: 1}


async def test_a_disk_that_does_not_write_is_said(world: World, tmp_path: Path) -> None:
    """It is in force all the same, and the answer tells that it does not last, and why."""
    overrides = await world.started(tmp_path)
    with patch("tcpgw.durable.replace", side_effect=OSError(28, "No space left")), capture_logs() as logs:
        answer = await overrides.drain("10.0.0.1:80")
    assert not answer["kept"]
    assert answer["why"] == "gateway.state_dir cannot be written: [Errno 28] No space left"
    assert [line["event"] for line in logs] == ["endpoint_drained", "overrides_not_saved"]
    assert world.weights[A] == 0


async def test_who_has_closed_writes_no_more(world: World, tmp_path: Path) -> None:
    """The file is the successor's by then."""
    overrides = await world.started(tmp_path)
    overrides.close()
    answer = await overrides.drain("10.0.0.1:80")
    assert (answer["kept"], answer["why"]) == (False, "it is being replaced; say it to the next one")
    assert os.listdir(tmp_path) == []  # noqa: PTH208


# ---- what becomes of it ----


async def settled() -> None:
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        if "overrides" in task.get_name():
            await task


async def test_an_address_that_is_gone_for_long_is_another_instance_s(world: World, tmp_path: Path) -> None:
    """Back within ten minutes it is still drained; later not, and the file does not say so either."""
    overrides = await world.started(tmp_path)
    await overrides.drain("10.0.0.1:80")
    for away in (ABSENT - 1, ABSENT):
        await overrides.publish(snapshot(Member(B), Member(C), version=2))
        assert overrides.told()["s"]["10.0.0.1:80"]["given_weight"] is None
        world.now += away
        with capture_logs() as logs:
            await overrides.publish(snapshot(Member(B), version=3))
        await overrides.publish(snapshot(version=4))
        assert (world.weights[A] == 0) is (away < ABSENT)
    assert [line["event"] for line in logs] == ["override_forgotten"]
    await settled()
    assert json.loads((tmp_path / "overrides.json").read_text())["services"]["s"]["endpoints"] == {}


async def test_time_alone_makes_it_forgotten(world: World) -> None:
    """However seldom discovery has anything new to say."""
    overrides = await world.started(None)
    await overrides.drain("10.0.0.1:80")
    await overrides.publish(snapshot(Member(B), version=2))
    timer = overrides._timer
    assert timer is not None
    assert timer.when() - asyncio.get_running_loop().time() == pytest.approx(ABSENT, abs=5)
    world.now += ABSENT
    overrides._watch()
    assert overrides.told() == {}
    assert overrides._timer is None


async def test_nothing_is_forgotten_before_discovery_has_answered(world: World, tmp_path: Path) -> None:
    """A cloud that is down says of no endpoint that it is gone."""
    overrides = await world.started(tmp_path)
    await overrides.drain("10.0.0.1:80")
    overrides.close()
    world.overrides = Overrides(world.put.append, dict, world._background, lambda: world.now)
    await world.overrides.load(config(tmp_path))
    world.now += 10 * ABSENT
    world.overrides.follow(config(tmp_path))
    assert "10.0.0.1:80" in world.overrides.told()["s"]
    await world.overrides.publish(snapshot())
    assert world.weights[A] == 0


async def test_a_service_that_is_gone_is_forgotten_too(world: World, tmp_path: Path) -> None:
    """After the same time; who comes under its name then begins anew."""
    overrides = await world.started(tmp_path)
    await overrides.drain("10.0.0.1:80")
    overrides.follow(config(tmp_path, "s", "other"))
    assert "s" in overrides.told()
    with patch.object(overrides, "_services", set()):
        overrides._watch()
        world.now += ABSENT
        overrides._watch()
    assert overrides.told() == {}
    await settled()


async def test_another_state_dir_is_used_from_then_on(world: World, tmp_path: Path) -> None:
    """With all that was said before."""
    overrides = await world.started(None)
    await overrides.drain("10.0.0.1:80")
    overrides.follow(config(tmp_path))
    await settled()
    assert "10.0.0.1:80" in (tmp_path / "overrides.json").read_text()
