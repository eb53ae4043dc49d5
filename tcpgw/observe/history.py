"""What counters did lately, out of what they are: rates, shares and percentiles of the last seconds. Pure."""

from collections import deque
from collections.abc import Hashable, Mapping

Key = tuple[Hashable, ...]

Counts = Mapping[Key, float]
"""By key: numbers that only grow."""


class Differ:
    """Says how much counters grew between two looks."""

    def __init__(self) -> None:
        self._before: Counts | None = None

    def look(self, counts: Counts) -> dict[Key, float]:
        """Return what grew since the last call, and by how much; at the first nothing.

        What was not there before began at 0. What shrank, as when a process is gone whose last words were
        lost, did not grow.
        """
        before, self._before = self._before, counts
        if before is None:
            return {}
        return {
            key: value - before.get(key, 0) for key, value in counts.items() if value > before.get(key, 0)
        }


class Window:
    """Sums of what grew in about the last `span` seconds."""

    def __init__(self, span: float) -> None:
        # By a key without its last part, and that: the buckets of a histogram are found without a look at
        # thousands of endpoints. What did not grow is not there.
        self._totals: dict[Key, dict[Hashable, float]] = {}
        self._span = span
        self._grown: deque[tuple[float, Counts]] = deque()
        self._began: float | None = None

    def add(self, now: float, grown: Counts) -> None:
        """Take what grew until `now`, since the call before."""
        if self._began is None:  # what came before nobody knows
            self._began = now
            return
        self._grown.append((now, grown))
        for key, value in grown.items():
            group = self._totals.setdefault(key[:-1], {})
            group[key[-1]] = group.get(key[-1], 0) + value
        while len(self._grown) > 1 and self._grown[0][0] <= now - self._span:
            self._began, old = self._grown.popleft()
            for key, value in old.items():
                self._forget(key, value)

    def _forget(self, key: Key, value: float) -> None:
        group = self._totals[key[:-1]]
        group[key[-1]] -= value
        if group[key[-1]] <= 0:
            del group[key[-1]]
            if not group:
                del self._totals[key[:-1]]

    def __len__(self) -> int:
        """How many keys grew in that time."""
        return sum(map(len, self._totals.values()))

    @property
    def seconds(self) -> float:
        """How long it is that the sums are of; 0 while nothing is known."""
        return self._grown[-1][0] - self._began if self._grown and self._began is not None else 0.0

    def sum(self, key: Key) -> float:
        return self._totals.get(key[:-1], {}).get(key[-1], 0)

    def rate(self, key: Key) -> float:
        """How much it grew in a second."""
        seconds = self.seconds
        return self.sum(key) / seconds if seconds else 0.0

    def buckets(self, *key: Hashable) -> dict[str, int]:
        """The buckets of a histogram whose counts have the keys `(*key, bucket)`."""
        return {str(bucket): int(count) for bucket, count in self._totals.get(key, {}).items()}
