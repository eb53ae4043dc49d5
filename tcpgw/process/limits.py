"""What the process may use: open files, which a gateway runs out of first, the collector's time, memory."""

import ctypes
import gc
import resource

# Log, discovery, event loop, listening sockets: more than they ever take, little beside the connections.
_SPARE = 128
# Bytes of the largest block that comes from the heap, as large as mallopt takes it: a few reads joined are
# more than one. Bytes of freed heap that the process keeps.
_LARGEST_BLOCK, _KEPT = 32 << 20, 64 << 20
# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


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


def calm_collector() -> None:
    """Look for reference cycles seldom: a relay that ended leaves none behind.

    Python's default, at every 700 new objects, takes 4 % of a short connection. What is there now is taken
    as here to stay, and not looked at again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)


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
