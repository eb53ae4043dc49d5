import gc
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tcpgw.process.limits import (
    calm_collector,
    cpus,
    fitting,
    needed_files,
    raise_open_files,
)


@pytest.fixture
def hard_limit() -> Iterator[int]:
    """The hard limit of open files; the limits are put back at the end."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def collector() -> Iterator[None]:
    """Put the collector's settings back at the end."""
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


def test_a_connection_needs_two_files() -> None:
    """Client and instance each take one, and the process itself some that do not grow."""
    assert needed_files(10_000) - needed_files(0) == 20_000
    assert needed_files(0) >= 64


def test_connections_that_fit() -> None:
    """What fits needs no more files than there are, and everything fits in what it needs."""
    assert fitting(10_000, needed_files(10_000)) == 1
    assert fitting(10_000, needed_files(2_500)) == 0.25


def test_what_fits_needs_no_more_files_than_there_are() -> None:
    """All where the files are enough, else the share that they are enough for."""
    assert fitting(10_000, needed_files(10_000)) == fitting(10_000, 1_000_000) == 1
    for files in (1024, 4096, 20_000):
        share = fitting(10_000, files)
        assert 0 < share < 1
        assert files - 2 <= needed_files(int(10_000 * share)) <= files


def test_open_files_are_raised_as_far_as_allowed(hard_limit: int) -> None:
    """The soft limit becomes the hard one, which stays; a second call changes nothing."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit - 1, hard_limit))
    for _ in range(2):
        assert raise_open_files() == hard_limit
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard_limit, hard_limit)


@pytest.mark.usefixtures("collector")
def test_the_collector_looks_seldom() -> None:
    """What exists is not looked at again, garbage before it is gone, and garbage after it is still found."""
    calm_collector()
    assert gc.get_freeze_count() > 1000
    assert gc.get_threshold()[0] >= 10_000
    assert gc.isenabled()
    cycle: list[object] = []
    cycle.append(cycle)
    del cycle
    assert gc.collect() >= 1


FAULTS = """
import resource
from tcpgw.process.limits import keep_heap
assert keep_heap() and keep_heap()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def read(times):
    for _ in range(times):
        blocks = [bytes(1 << 18) for _ in range(8)]
read(10)
before = faults()
read(100)
print(faults() - before)
"""


def test_memory_that_is_used_again_is_kept() -> None:
    """Reads of 256 KiB take no pages from the kernel that earlier ones have had: each has 64."""
    ran = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 100


KEPT = """
from tcpgw.process.limits import keep_heap, release_heap
def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096
keep_heap()
before = resident()
blocks = [bytes(1 << 16) for _ in range(1600)]
last = bytes(1 << 16)
del blocks
assert release_heap() and release_heap()
print(resident() - before)
"""


def test_memory_that_is_kept_can_be_given_back() -> None:
    """Of 100 MiB that were freed below something in use, next to nothing stays."""
    ran = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 8 << 20


# ---- CPUs ----


@pytest.fixture
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def cgroup(root: Path, line: str, **quotas: str) -> Path:
    """A machine whose groups have these quotas; the process is in one of them."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(f"4:memory:/other\n{line}\n")
    for group, quota in quotas.items():
        folder = root / "sys/fs/cgroup" / group.replace("_", "/")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu.max").write_text(quota)
    return root


@pytest.mark.usefixtures("eight_cpus")
@pytest.mark.parametrize(
    ("line", "quotas", "expected"),
    [
        ("0::/a/b", {"a_b": "max 100000\n"}, 8),
        ("0::/a/b", {"a_b": "200000 100000\n"}, 2),
        ("0::/a/b", {"a_b": "150000 100000\n"}, 2),
        ("0::/a/b", {"a_b": "1000 100000\n"}, 1),
        ("0::/a/b", {"a_b": "6400000 100000\n"}, 8),
        ("0::/a/b", {"a": "300000 100000\n", "a_b": "max 100000\n"}, 3),
        ("0::/a/b", {"a": "500000 100000\n", "a_b": "400000 100000\n", "c": "100000 100000\n"}, 4),
        ("0::/", {"": "100000 50000\n"}, 2),
        ("0::/a", {"a": "what else\n"}, 8),
        ("0::/../a", {"": "300000 100000\n"}, 3),
        ("4:cpu:/a", {"a": "100000 100000\n"}, 8),
    ],
)
def test_cpus_are_those_that_a_quota_leaves(
    tmp_path: Path, line: str, quotas: dict[str, str], expected: int
) -> None:
    """The least quota of the process's group and those around it counts, rounded up; without one all do."""
    assert cpus(cgroup(tmp_path, line, **quotas)) == expected


@pytest.mark.usefixtures("eight_cpus")
def test_cpus_without_cgroups_are_those_to_run_on(tmp_path: Path) -> None:
    """Where nothing can be read, no quota is assumed."""
    assert cpus(tmp_path) == 8


def test_there_is_a_cpu_here() -> None:
    """On this machine, between one and all."""
    assert 1 <= cpus() <= len(os.sched_getaffinity(0))


# ---- capabilities ----

DROPPING = """
import os, subprocess, sys
from tcpgw.process.limits import drop_capabilities
if sys.argv[1] == "nobody":
    os.setresuid(65534, 65534, 65534)
assert drop_capabilities() and drop_capabilities()
if sys.argv[1] == "root":
    import tcpgw.relay.stream, sqlite3, xml.dom.minidom
print(open("/proc/self/status").read(), flush=True)
subprocess.run(["cat", "/proc/self/status"], check=True)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="there is nothing to give up")
@pytest.mark.parametrize("user", ["root", "nobody"])
def test_capabilities_are_given_up_for_good(user: str) -> None:
    """None is left in any set, nor in a program that is started; modules are imported and pipes written."""
    command = [sys.executable, "-c", DROPPING, user]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    sets = [line.split() for line in ran.stdout.splitlines() if line.startswith(("Cap", "NoNewPrivs"))]
    assert len(sets) == 12
    for name, value in sets:
        if name == "NoNewPrivs:":
            assert value == "1"
        elif name != "CapBnd:" or user == "root":  # who has no privilege cannot bound it, nor gain any
            assert int(value, 16) == 0
