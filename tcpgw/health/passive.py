"""Outcomes of the last seconds, in buckets. Pure: time is an argument."""

from collections import deque
from dataclasses import dataclass

# A window forgets in steps of a tenth of it: its counts are of 9 to 10 tenths, in 11 buckets at most.
_BUCKETS = 10


@dataclass(slots=True)
class _Bucket:
    since: float
    successes: int = 0
    failures: int = 0


class Window:
    """How many outcomes there were in the last `span` seconds, to a tenth of it.

    Buckets and not events, so that a busy endpoint costs no more than a quiet one.
    """

    __slots__ = ("_buckets", "failures", "successes")

    def __init__(self) -> None:
        self.successes = 0
        self.failures = 0
        self._buckets: deque[_Bucket] = deque()

    @property
    def total(self) -> int:
        return self.successes + self.failures

    def add(self, successes: int, failures: int, span: float, now: float) -> None:
        """Count outcomes, and forget those older than `span` seconds. `span` may change between calls."""
        while self._buckets and self._buckets[0].since <= now - span:
            old = self._buckets.popleft()
            self.successes -= old.successes
            self.failures -= old.failures
        if not self._buckets or self._buckets[-1].since <= now - span / _BUCKETS:
            self._buckets.append(_Bucket(now))
        self._buckets[-1].successes += successes
        self._buckets[-1].failures += failures
        self.successes += successes
        self.failures += failures

    def clear(self) -> None:
        self.successes = self.failures = 0
        self._buckets.clear()
