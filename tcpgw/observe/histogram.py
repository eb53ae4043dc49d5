"""Latencies counted in buckets: cheap enough for every request, exact enough for an operator.

Log-linear buckets, as of HDR histograms: each power of two of microseconds is cut in eight equal parts, and
below 16 µs each microsecond is a bucket. So a latency's bucket is two shifts away from it, and a bucket's
middle is never further than 1/16 from what was put in, or half a microsecond.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from math import inf
from typing import Any

# Microseconds, an hour and twelve minutes; whatever takes longer is in the last bucket.
_TOO_LONG = 1 << 32


def _edges() -> Iterator[float]:
    """Yield the lower ends of all buckets, in microseconds, and the end of the last one."""
    yield from range(16)
    for shift in range(1, 29):
        yield from range(8 << shift, 16 << shift, 1 << shift)
    yield _TOO_LONG
    yield inf


_EDGES = [edge / 1e6 for edge in _edges()]
_UPPER = _EDGES[1:]
_MIDDLE = [(low + high) / 2 for low, high in zip(_EDGES, _UPPER[:-1], strict=False)] + [_EDGES[-2]]
_LAST = len(_UPPER) - 1


class Histogram:
    """How often which latency was seen. `count` is how many there are, `total` their sum in seconds."""

    __slots__ = ("_counts", "count", "total")

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self._counts = [0] * len(_UPPER)

    def add(self, seconds: float, count: int = 1) -> None:
        """Count a finite latency, `count` times. What is negative counts as 0: clocks of two hosts differ."""
        micros = int(seconds * 1e6)
        if 16 <= micros < _TOO_LONG:
            shift = micros.bit_length() - 4
            index = (shift << 3) + (micros >> shift)
        else:
            index = max(0, micros) if micros < 16 else _LAST
        self._counts[index] += count
        self.count += count
        self.total += seconds * count

    def quantile(self, q: float) -> float:
        """Seconds that a share `q` (0 to 1) of all did not exceed, or 0 where there is none.

        Off by at most 1/16 or half a microsecond, up to 2**32 µs; longer ones are told as that. Takes
        microseconds: who needs it for every request keeps it.
        """
        if not self.count:
            return 0.0
        return _MIDDLE[bisect_left(list(accumulate(self._counts)), max(1, q * self.count))]

    def figures(self) -> dict[str, Any]:
        """Return plain values that add up: `count`, `sum` in seconds, and `buckets` that are not empty.

        See `quantile_of` and `cumulative` for what these say.
        """
        buckets = {str(index): count for index, count in enumerate(self._counts) if count}
        return {"count": self.count, "sum": self.total, "buckets": buckets}

    def buckets(self) -> Iterator[tuple[float, int]]:
        """Yield all buckets, upwards: the upper bound in seconds, the last one's infinite, and its own count.

        Always the same bounds. Not cumulative, as Prometheus wants them.
        """
        return zip(_UPPER, self._counts, strict=True)


def quantile_of(buckets: Mapping[str, int], q: float) -> float | None:
    """As `Histogram.quantile`, of the `buckets` of `figures`; None where there is none."""
    total = sum(buckets.values())
    if not total:
        return None
    wanted, seen = max(1, q * total), 0
    for index, count in sorted((int(index), count) for index, count in buckets.items()):
        seen += count
        if seen >= wanted:
            return _MIDDLE[index]
    return _MIDDLE[_LAST]  # sums of shares may miss it by a rounding


def cumulative(buckets: Mapping[str, int], bounds: Iterable[int]) -> list[tuple[float, int]]:
    """How many latencies did not exceed each bound: its seconds, and the count.

    `bounds` are powers of two, in microseconds, upwards: those are edges of buckets, so nothing is estimated.
    """
    found = sorted((int(index), count) for index, count in buckets.items())
    counted: list[tuple[float, int]] = []
    place = total = 0
    for bound in bounds:
        while place < len(found) and _UPPER[found[place][0]] <= bound / 1e6:
            total += found[place][1]
            place += 1
        counted.append((bound / 1e6, total))
    return counted


# Latencies that a quantile is made of. Of the first 16 a p95 is the longest, which errs towards fewer hedges;
# of 512 it lies between the p94 and the p96 in two of three cases, and follows a change within two windows.
_FIRST_WINDOW = 16
_WINDOW = 512


class RunningQuantile:
    """The `q` quantile of the latest latencies, for decisions about the next request.

    `value` is in seconds and 0 until 16 were seen; it is that of the last full window, and windows grow from
    16 latencies to 512. Windows rather than counts that are halved again and again: halves of whole numbers
    lose just the single counts of which the tail consists.
    """

    __slots__ = ("_full", "_q", "_window", "value")

    def __init__(self, q: float) -> None:
        self.value = 0.0
        self._q = q
        self._full = _FIRST_WINDOW
        self._window = Histogram()

    def add(self, seconds: float, count: int = 1) -> None:
        """As `Histogram.add`.

        Where hedges are made by it, tell what every request took at its first endpoint: told of the winners
        only, it would fall with each hedge, and so make more of them.
        """
        window = self._window
        window.add(seconds, count)
        if window.count >= self._full:
            self.value = window.quantile(self._q)
            self._window = Histogram()
            self._full = min(2 * self._full, _WINDOW)
