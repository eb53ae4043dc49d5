"""What processes take."""

import os
import subprocess
import time

from tcpgw.process.resources import resources_of


def test_this_process() -> None:
    """CPU grows with work, files with each that is opened, and memory is that of a Python program."""
    before = resources_of(os.getpid())
    assert before is not None
    with open(os.devnull) as _, open(os.devnull) as _:  # noqa: PTH123
        until = time.process_time() + 0.05
        while time.process_time() < until:
            pass
        after = resources_of(os.getpid())
    assert after is not None
    assert after.files == before.files + 2
    assert 0.02 <= after.cpu - before.cpu < 5
    assert 5 << 20 < after.memory < 64 << 30


def test_none_of_what_is_gone() -> None:
    """Nor of a child that has ended and waits to be reaped: it has nothing any more."""
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    zombie = resources_of(child.pid)
    assert zombie is None or zombie.memory == 0
    child.wait()
    assert resources_of(child.pid) is None
