"""When requests are due at a fixed rate, and how long a lost connection waits. Reads no clock."""

from fractions import Fraction

_SECOND = 1_000_000_000
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0


class Schedule:
    """The times at which one process's requests are due: every `stride`-th one of a fixed rate.

    Latency is measured from these times and not from when a request was really sent, or a target that
    stalls would hold back the very requests that would have shown it (coordinated omission; Gil Tene,
    "How NOT to Measure Latency", 2013). What is due and not sent needs no memory: it is an index behind.

    Times are whole nanoseconds. Request `n` of all is due at `begin + n / rate`, computed in whole numbers,
    so that no rate drifts and the processes' requests stay evenly apart.
    """

    def __init__(self, rate: float, *, begin: int, seconds: float, first: int = 0, stride: int = 1) -> None:
        exact = Fraction(rate).limit_denominator(1000)
        self._begin, self._first, self._stride = begin, first, stride
        self._each = _SECOND * exact.denominator  # n * _each / _per: nanoseconds after the beginning
        self._per = exact.numerator
        self._total: int = self._due(begin + round(seconds * _SECOND) - 1)
        self._taken = 0

    @property
    def spacing(self) -> int:
        """Nanoseconds between two requests, rounded down."""
        return self._stride * self._each // self._per

    @property
    def first(self) -> int:
        """When the first request is due."""
        return self._time(0)

    @property
    def exhausted(self) -> bool:
        """Whether every request was taken."""
        return self._taken >= self._total

    def take(self, now: int, limit: int) -> list[int]:
        """The times of the next requests that are due at `now`, oldest first, at most `limit` of them."""
        taken = self._taken
        self._taken = max(taken, min(self._total, self._due(now), taken + limit))
        return [self._time(index) for index in range(taken, self._taken)]

    def skip(self, before: int) -> list[int]:
        """Take all that was due before that time: it will not be sent any more."""
        return self.take(before - 1, self._total)

    def _time(self, index: int) -> int:
        return self._begin + (self._first + index * self._stride) * self._each // self._per

    def _due(self, now: int) -> int:
        """How many of this process's requests are due at `now` or before."""
        of_all = -(-(now + 1 - self._begin) * self._per // self._each)
        return max(0, -(-(of_all - self._first) // self._stride))


def backoff(failures: int) -> float:
    """Seconds to wait before a connection is opened again that failed so many times in a row."""
    return min(_LONGEST_PAUSE, _FIRST_PAUSE * float(1 << min(failures, 10)))
