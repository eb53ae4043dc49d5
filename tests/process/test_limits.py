import gc
import resource
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tcpgw.process.limits import calm_collector, fitting, needed_files, raise_open_files


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
