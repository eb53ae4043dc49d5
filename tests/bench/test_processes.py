"""The generator's processes: begun together, merged, and gone in any case."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tcpgw.address import Address
from tcpgw.bench.plan import BenchError, Mode, Plan, Share
from tcpgw.bench.processes import measure
from tests.bench.instances import Echo, Rpc, Silent, serving

PLAN = Plan(warm_up=0.1, duration=0.2, connections=3, processes=2, timeout=1)


def workers() -> list[int]:
    """The generator's processes that this process has started."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid() and b"tcpgw.bench.worker" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except OSError:  # ended meanwhile
            continue
    return found


async def begun() -> None:
    """Wait until a worker runs."""
    async with asyncio.timeout(20):
        while not workers():  # noqa: ASYNC110 - the kernel tells nobody
            await asyncio.sleep(0.01)


def ignore(_answers: int, _failures: int) -> None:
    """No progress bar."""


async def test_processes_count_as_one() -> None:
    """Two processes with three connections between them; their progress and counts are sums."""
    progress: list[tuple[int, int]] = []
    async with serving(Rpc) as target:
        counts = await measure(
            Plan.from_dict(PLAN.to_dict() | {"mode": Mode.RPC}), target, lambda *each: progress.append(each)
        )
    assert counts.answered == counts.histogram.get_total_count() > 20
    assert counts.errors == {}
    assert counts.seconds == pytest.approx(0.2)
    assert progress[0] == (0, 0)
    assert progress[-1][0] > 0
    assert workers() == []


async def test_a_fixed_rate_is_that_of_all_processes() -> None:
    """Two processes at 500 requests a second send 100 in 200 ms between them."""
    async with serving(Echo) as target:
        counts = await measure(Plan.from_dict(PLAN.to_dict() | {"rate": 500.0}), target, ignore)
    assert counts.answered == 100


async def test_a_refused_connection_is_told_and_leaves_no_process() -> None:
    """The first process that cannot connect ends all."""
    with pytest.raises(BenchError, match=r"cannot connect to 127\.0\.0\.1:1: connection refused"):
        await measure(PLAN, Address("127.0.0.1", 1), ignore)
    assert workers() == []


async def test_cancelled_it_leaves_no_process() -> None:
    """A caller that gives up ends the load in the middle."""
    async with serving(Silent) as target:
        task = asyncio.create_task(measure(PLAN, target, ignore))
        await begun()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert workers() == []


async def test_a_process_that_dies_is_told() -> None:
    """Half a load is no result."""
    async with serving(Echo) as target:
        task = asyncio.create_task(measure(PLAN, target, ignore))
        await begun()
        os.kill(workers()[0], signal.SIGKILL)
        with pytest.raises(BenchError, match="a process of the generator ended by itself"):
            await task
    assert workers() == []


@pytest.mark.parametrize("begins", [False, True])
async def test_a_worker_ends_with_its_parent(begins: bool) -> None:
    """A worker whose stdin ends, as it does when its parent is killed, ends too, quietly."""
    async with serving(Echo) as target:
        share = Share(Plan(duration=600), target, 0).to_json()

        def orphan() -> tuple[int, str]:
            with subprocess.Popen(
                [sys.executable, "-m", "tcpgw.bench.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ) as process:
                assert process.stdin
                assert process.stdout
                process.stdin.write(share + "\n")
                process.stdin.flush()
                assert process.stdout.readline() == '{"ready": true}\n'
                if begins:
                    process.stdin.write(f'{{"begin": {time.monotonic_ns()}}}\n')
                    process.stdin.flush()
                    assert "answers" in process.stdout.readline()
                try:
                    _, stderr = process.communicate(timeout=20)
                finally:
                    process.kill()
                return process.returncode, stderr

        assert await asyncio.to_thread(orphan) == (0, "")
