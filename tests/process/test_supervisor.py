"""Workers that are real processes: brought up, replaced, killed."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tcpgw.process import supervisor
from tcpgw.process.supervisor import WorkerError, Workers
from tcpgw.process.worker import WorkerProcess

PROGRAM = Path(__file__).with_name("worker_program.py")
PATIENCE = 20.0


class Fleet:
    """Workers of the program beside this file, and what is heard of them."""

    def __init__(self, folder: Path) -> None:
        self.ended: list[WorkerProcess] = []
        self.spare: list[WorkerProcess] = []
        self.failing: list[int] = []
        self.workers = Workers(
            lambda slot, fd: [sys.executable, str(PROGRAM), str(slot), str(fd), str(folder)],
            {"beat": lambda _: None, "report": self._report},
            self._attend,
            self.ended.append,
            self.spare.append,
            self.failing.append,
        )

    def _report(self, worker: WorkerProcess, report: dict[str, Any]) -> None:
        worker.report = report

    async def _attend(self, worker: WorkerProcess) -> None:
        assert await worker.call("accept", timeout=PATIENCE) == worker.pid
        worker.accepting.set()
        await worker.ended.wait()

    def pids(self) -> list[int]:
        return [worker.pid for worker in self.workers.current]

    async def until(self, count: int, ended: int) -> None:
        """Until so many accept and so many have ended."""
        async with asyncio.timeout(PATIENCE):
            while len(self.workers.current) != count or len(self.ended) != ended:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    fleet = Fleet(tmp_path)
    with contextlib.ExitStack() as stack:
        stack.enter_context(capture_logs())
        yield fleet
        await fleet.workers.close()
        assert not fleet.workers.all


def runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_each_slot_has_a_worker(fleet: Fleet) -> None:
    """They are processes of their own, with their own sessions; closing ends them all."""
    assert await fleet.workers.resize(2) == []
    assert fleet.workers.slots == [1, 2]
    pids = fleet.pids()
    assert len(set(pids)) == 2
    assert {os.getsid(pid) for pid in pids} == set(pids)
    await fleet.workers.close()
    assert not any(map(runs, pids))


async def test_fewer_slots_give_back_whose_are_gone(fleet: Fleet) -> None:
    """Those are still there, for whoever lets them finish."""
    await fleet.workers.resize(3)
    before = fleet.pids()
    left = await fleet.workers.resize(1)
    assert [worker.pid for worker in left] == before[1:]
    assert all(map(runs, before))
    for worker in left:
        worker.tell("drain")
        fleet.workers.dismiss(worker, PATIENCE)
    await fleet.until(1, 2)
    assert fleet.pids() == before[:1]
    assert fleet.workers.deaths == 0
    assert [worker.report["listeners"]["l"]["accepted"] for worker in fleet.ended] == [5, 5]


async def test_a_worker_that_dies_is_replaced_and_the_others_stay(fleet: Fleet) -> None:
    """Whatever it died of; the death is counted, and logged with what it cost."""
    await fleet.workers.resize(2)
    first, second = fleet.pids()
    with capture_logs() as logs:
        os.kill(second, signal.SIGKILL)
        await fleet.until(2, 1)
    assert fleet.pids()[0] == first
    assert fleet.pids()[1] != second
    assert fleet.workers.deaths == 1
    died = next(line for line in logs if line["event"] == "worker_died")
    assert (died["worker"], died["pid"], died["code"], died["connections_lost"]) == (2, second, -9, 2)


async def test_one_that_dies_again_and_again_is_tried_with_pauses(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is longer, operators are called, the other slots serve; once it can, it does."""
    await fleet.workers.resize(1)
    monkeypatch.setattr(supervisor, "_FIRST_PAUSE", 0.01)
    (tmp_path / "dies-2").touch()
    with capture_logs() as logs:
        growing = asyncio.create_task(fleet.workers.resize(2))
        async with asyncio.timeout(PATIENCE):
            while not [line for line in logs if line["event"] == "worker_keeps_dying"]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert len(fleet.workers.current) == 1
        assert 2 in fleet.failing  # others are to serve whom it does not
        assert not growing.done()
        (tmp_path / "dies-2").unlink()
        await growing
    assert len(fleet.workers.current) == 2
    assert fleet.workers.deaths >= 3


async def test_one_that_hangs_is_killed_and_replaced(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that has no turn says nothing, and a stopped process neither."""
    monkeypatch.setattr(supervisor, "HANG", 0.3)
    monkeypatch.setattr(supervisor, "_LOOK", 0.05)
    await fleet.workers.close()  # its watch looks once a second
    fresh = Fleet(PROGRAM.parent)
    try:
        await fresh.workers.resize(2)
        before = fresh.pids()
        fresh.workers.current[0].tell("hang")
        os.kill(before[1], signal.SIGSTOP)
        with capture_logs() as logs:
            await fresh.until(2, 2)
        assert {line["worker"] for line in logs if line["event"] == "worker_hung"} == {1, 2}
        assert not set(before) & set(fresh.pids())
    finally:
        await fresh.workers.close()


async def test_a_stopped_supervisor_kills_nobody(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """When its own loop had no turn for long it could hear nobody, and blames nobody for it."""
    monkeypatch.setattr(supervisor, "HANG", 0.3)
    monkeypatch.setattr(supervisor, "_LOOK", 0.05)
    await fleet.workers.close()
    fresh = Fleet(PROGRAM.parent)
    try:
        await fresh.workers.resize(1)
        before = fresh.pids()
        ready = asyncio.get_running_loop().time() + 1.0
        while asyncio.get_running_loop().time() < ready:  # as a suspended machine does
            time.sleep(0.5)  # noqa: ASYNC251
        await asyncio.sleep(0.2)
        assert fresh.pids() == before
    finally:
        await fresh.workers.close()


async def test_a_worker_is_replaced_by_one_that_accepts(fleet: Fleet, tmp_path: Path) -> None:
    """The old one is given back while it still serves; where no new one comes up, it stays."""
    await fleet.workers.resize(1)
    (before,) = fleet.pids()
    old = await fleet.workers.replace(1)
    assert old is not None
    assert (old.pid, runs(before)) == (before, True)
    (after,) = fleet.pids()
    assert after != before
    old.tell("drain")
    fleet.workers.dismiss(old, PATIENCE)
    await fleet.until(1, 1)
    assert fleet.workers.deaths == 0

    (tmp_path / "dies-1").touch()
    with pytest.raises(WorkerError, match="the old one stays"):
        await fleet.workers.replace(1)
    assert fleet.pids() == [after]


async def test_who_does_not_leave_in_time_is_killed(fleet: Fleet) -> None:
    """It was told to, and did not: whatever it still has is cut."""
    await fleet.workers.resize(1)
    (left,) = await fleet.workers.resize(0)
    with capture_logs() as logs:
        fleet.workers.dismiss(left, 0.01)
        async with asyncio.timeout(PATIENCE):
            await fleet.workers.gone()
    assert [line["event"] for line in logs] == ["worker_killed", "worker_ended"]
