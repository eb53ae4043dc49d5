"""What the process may use: open files, which a gateway runs out of first, the collector's time, memory,
CPUs; and privileges, as few as can be.
"""

import contextlib
import ctypes
import gc
import os
import resource
from collections.abc import Iterator
from pathlib import Path

# Log, discovery, event loop, listening sockets: more than they ever take, little beside the connections.
_SPARE = 128
# Bytes of the largest block that comes from the heap, as large as mallopt takes it: a few reads joined are
# more than one. Bytes of freed heap that the process keeps.
_LARGEST_BLOCK, _KEPT = 32 << 20, 64 << 20
# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Of linux/prctl.h and linux/capability.h.
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 24, 38, 47, 4
_CAPABILITY_VERSION_3 = 0x20080522
_CAPABILITIES = 64  # as many as version 3 has room for; Linux 6 has 41


def cpus(root: Path = Path("/")) -> int:
    """Return how many CPUs this process may use, at least 1: those that it may run on, or fewer where its
    cgroup (version 2), or one around it, has a quota. Part of a CPU counts as one.

    A container with a quota sees all CPUs of its host, and as many workers would each be halted for most of
    the time. `root` is where proc and sys are.
    """
    return max(1, min([len(os.sched_getaffinity(0)), *_quotas(root)]))


def _quotas(root: Path) -> Iterator[int]:
    mount = root / "sys/fs/cgroup"
    with contextlib.suppress(OSError, ValueError):
        lines = (root / "proc/self/cgroup").read_text().splitlines()
        group = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
        for folder in (mount / group, *(mount / group).parents):
            if folder.is_relative_to(mount):
                yield from _quota(folder / "cpu.max")


def _quota(file: Path) -> Iterator[int]:
    """Read `max 100000`, or `150000 100000`: so many microseconds of CPU in each of so many."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = file.read_text().split()
        if quota != "max":
            yield -(-int(quota) // int(period))


def drop_capabilities() -> bool:
    """Give up every capability, and the means to get one by starting a program. For workers: what clients
    send is read by nobody who may do more than relay it.

    Returns whether none is left; it is not where a filter of system calls forbids capset. To be called before
    there are other threads: each has capabilities of its own, and new ones those of their maker. Idempotent,
    and does no harm where there is no privilege to begin with.

    A worker whose user is root stays the owner of root's files, so it can still read them; those of others
    that others may not read, it cannot: modules must not be such.
    """
    libc = ctypes.CDLL(None)
    libc.prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for capability in range(_CAPABILITIES):  # needs CAP_SETPCAP, so it comes before that is gone
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable, twice 32 of each
    return bool(libc.capset(header, none) == 0)


def needed_files(max_connections: int) -> int:
    """Descriptors for so many relayed connections: a client's and an instance's each."""
    return 2 * max_connections + _SPARE


def fitting(max_connections: int, files: int) -> float:
    """Which share of so many connections so many open files are enough for: 1 at most."""
    return min(1.0, (files - _SPARE) / (2 * max_connections))


def raise_open_files() -> int:
    """Raise the soft limit of open files to the hard one, which no one but select() users minds.

    Returns the limit then in force. Idempotent.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def calm_collector(*, first: bool = True) -> None:
    """Look for reference cycles seldom: a relay that ended leaves none behind.

    Python's default, at every 700 new objects, takes 4 % of a short connection. What is there now is taken
    as here to stay, and not looked at again. `first` looks once before that: 12 ms, where somebody may wait.
    """
    if first:
        gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)
    gc.enable()


def keep_heap() -> bool:
    """Keep up to 64 MiB of what was freed, for what is read next. Returns whether this C library can.

    glibc as it comes gives memory back as soon as 128 KiB are free, and maps what is larger for itself, until
    it has learned better, and not for good. A relay that reads up to 256 KiB at a time then takes it anew
    with each read and faults it in page by page, which can be a third of what a 64 KiB request costs.
    Idempotent.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEPT))


def release_heap() -> bool:
    """Give back to the system what was freed and kept. Returns whether this C library can.

    It takes the lock of the heap and some milliseconds for each 100 MiB, so it is for who is short of memory.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return False
    trim(ctypes.c_size_t(0))
    return True
