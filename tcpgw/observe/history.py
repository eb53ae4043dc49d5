"""What counters did lately, out of what they are: rates, shares and percentiles of the last seconds. Pure."""

from collections import deque
from collections.abc import Hashable, Mapping
from typing import Any

Counts = Mapping[Any, float]
"""By key: numbers that only grow."""


class Differ:
    """Says how much counters grew between two looks."""

    def __init__(self) -> None:
        self._before: Counts | None = None

    def look(self, counts: Counts) -> dict[Hashable, float]:
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
        self.totals: dict[Any, float] = {}
        """By key; without those that did not grow."""
        self._span = span
        self._grown: deque[tuple[float, Mapping[Hashable, float]]] = deque()
        self._began: float | None = None

    def add(self, now: float, grown: Mapping[Any, float]) -> None:
        """Take what grew until `now`, since the call before."""
        if self._began is None:  # what came before nobody knows
            self._began = now
            return
        self._grown.append((now, grown))
        for key, value in grown.items():
            self.totals[key] = self.totals.get(key, 0) + value
        while len(self._grown) > 1 and self._grown[0][0] <= now - self._span:
            self._began, old = self._grown.popleft()
            for key, value in old.items():
                left = self.totals[key] - value
                if left > 0:
                    self.totals[key] = left
                else:
                    del self.totals[key]

    @property
    def seconds(self) -> float:
        """How long it is that the sums are of; 0 while nothing is known."""
        return self._grown[-1][0] - self._began if self._grown and self._began is not None else 0.0

    def sum(self, key: Hashable) -> float:
        return self.totals.get(key, 0)

    def rate(self, key: Hashable) -> float:
        """How much it grew in a second."""
        seconds = self.seconds
        return self.totals.get(key, 0) / seconds if seconds else 0.0

    def buckets(self, *key: Hashable) -> dict[str, int]:
        """The buckets of a histogram whose counts have the keys `(*key, bucket)`."""
        width = len(key)
        return {
            one[-1]: int(count)
            for one, count in self.totals.items()
            if isinstance(one, tuple) and len(one) == width + 1 and one[:width] == key
        }
