"""What the process may use: open files, which a gateway runs out of first, and the collector's time."""

import gc
import resource

# Log, discovery, event loop, listening sockets: more than they ever take, little beside the connections.
_SPARE = 128


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
