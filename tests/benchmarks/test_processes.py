"""What the benchmarks measure of a process, and that nothing of it is left."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import processes
import pytest
from processes import Child

# A parent with a child in a session of its own, as tcpgw's workers are; both say when they are up.
PARENT = """
import signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", CHILD], start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
AFTER
print("up", flush=True)
signal.pause()
"""
IDLE = "import signal; print(flush=True); signal.pause()"
BUSY = """
import time
while time.process_time() < 0.3: pass
print(flush=True)
"""
HOLDING = "import signal; held = bytearray(b'x') * (64 << 20); print(flush=True); signal.pause()"

Family = Callable[..., Child]


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Family]:
    """Start a parent with a child that runs a program; wait until both are up."""
    started: list[Child] = []

    def start(program: str, after: str = "") -> Child:
        text = PARENT.replace("CHILD", repr(program)).replace("AFTER", after)
        child = processes.start(
            "parent", [sys.executable, "-c", text], log=tmp_path / f"{len(started)}.log", core=None
        )
        started.append(child)
        child.wait_until(lambda: "up" in child.tail())
        return child

    yield start
    for child in started:
        child.stop()


def gone(pid: int) -> bool:
    """Whether a process has ended; whoever has to wait for it may not have done so."""
    fields = processes.stat_fields(pid)
    return not fields or fields[0] == "Z"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_cpu_of_children_counts_while_they_live_and_after(family: Family) -> None:
    """What a child used is its parent's, whether it still runs or was waited for.

    A tick may be missing at each reading: /proc rounds down.
    """
    living = BUSY + "time.sleep(60)"
    assert family(living).cpu_seconds() >= 0.25
    assert family(BUSY, after="child.wait()").cpu_seconds() >= 0.25


def test_memory_is_of_the_whole_tree(family: Family) -> None:
    """A child's 64 MiB are counted beside what the interpreters take, once."""
    assert 64 << 20 <= family(HOLDING).memory() - family(IDLE).memory() <= 80 << 20


def test_pages_shared_by_a_tree_count_once(tmp_path: Path) -> None:
    """64 MiB that three forks share with their parent are 64 MiB."""
    text = """
import os, signal
held = bytearray(b"x") * (64 << 20)
for _ in range(3):
    if os.fork() == 0: break
else: print("up", flush=True)
signal.pause()
"""
    child = processes.start("forks", [sys.executable, "-c", text], log=tmp_path / "log", core=None)
    try:
        child.wait_until(lambda: "up" in child.tail())
        assert len(child.pids()) == 4
        assert 64 << 20 <= child.memory() <= 2 * 64 << 20
    finally:
        child.stop()


def test_descriptors_are_of_the_whole_tree(family: Family, tmp_path: Path) -> None:
    """Files that a child opened are counted with its parent's."""
    opening = f"held = [open({str(tmp_path)!r} + '/0.log') for _ in range(50)]; {IDLE}"
    assert family(opening).descriptors() - family(IDLE).descriptors() == 50


def test_workers_are_children_by_age(family: Family) -> None:
    """The children of a process are its workers, the one that was started first ahead."""
    later = f"time = __import__('time'); time.sleep(0.05); subprocess.Popen([sys.executable, '-c', {IDLE!r}])"
    child = family(IDLE, after=later)
    wait_until(lambda: len(child.workers()) == 2)
    first, second = map(processes.started, child.workers())
    assert first is not None
    assert second is not None
    assert first < second
    assert second == pytest.approx(time.clock_gettime(time.CLOCK_BOOTTIME), abs=5)


@pytest.mark.parametrize("hanging", [False, True])
def test_stop_leaves_no_child(family: Family, monkeypatch: pytest.MonkeyPatch, hanging: bool) -> None:
    """Ending a process ends its children too, in whatever session, also where it does not end by itself."""
    monkeypatch.setattr(processes, "STOP_TIMEOUT", 0.2)
    child = family(IDLE, after="signal.signal(signal.SIGTERM, signal.SIG_IGN)" if hanging else "")
    (worker,) = child.workers()
    child.stop()
    wait_until(lambda: gone(worker))


def test_orphans_do_not_outlive_the_script() -> None:
    """A script ends what it started, even a worker whose supervisor has died."""
    benchmarks = str(Path(processes.__file__).parent)
    dying = PARENT.replace("CHILD", repr(IDLE)).replace(
        "AFTER", "print(child.pid, flush=True); raise SystemExit"
    )
    text = f"""
import subprocess, sys
sys.path.insert(0, {benchmarks!r})
import script
sys.exit(script.run(lambda folder: subprocess.run([sys.executable, "-c", {dying!r}]).returncode))
"""
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, check=True, env=os.environ
    )
    worker = int(done.stdout.split()[-1])
    wait_until(lambda: gone(worker))
