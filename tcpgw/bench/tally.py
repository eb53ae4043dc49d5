"""What happened in a run, counted; and how counts of processes and of rounds become one. Pure.

Times come in nanoseconds of one clock, and latencies are kept in microseconds.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from hdrh.histogram import HdrHistogram

TIMEOUT = "timeout"
UNSENT = "unsent"
LOST = "connection_lost"

LATE = 1_000_000
"""Nanoseconds after which a request that nothing but the generator held back is called late."""

_LOWEST, _HIGHEST, _DIGITS = 1, 60_000_000, 3  # µs
_EXACT_BITS = 11  # a histogram of 3 digits keeps 2048 steps for each power of two
_KINDS = 32  # a service may invent error codes; beyond so many they are counted together


def make_histogram() -> HdrHistogram:
    """An empty one: 1 µs to 60 s, three digits."""
    return HdrHistogram(_LOWEST, _HIGHEST, _DIGITS)


def rounded(micros: int) -> int:
    """What the histogram can tell apart of a latency: its first 11 bits."""
    shift = max(0, micros.bit_length() - _EXACT_BITS)
    return micros >> shift << shift


@dataclass(slots=True)
class Counts:
    """What was measured in a window of `seconds`, by one process, by all of a run, or in several rounds.

    Of requests that began within the window: `answered` well, failed (`errors`, by kind), and their
    latencies. A request of the warm-up that fails within the window counts as well, or a target that stalls
    all through it would show no fault in a closed loop. A request that ran into the time-out is in the
    histogram with the time it was waited for: it took at least that long, and without it a target would look
    the faster the more it left unanswered. The other errors are not.

    Of what passed within the window, whenever it began: `answers`, `bytes_sent` and `bytes_received`, from
    which rates come.

    Of the generator itself: `cpu_seconds` in the window, requests sent more than LATE after they were due
    though a connection was ready (`late`, the worst `late_worst` µs behind), `strays` (answers that nobody
    waited for any more), connections that broke, and tries to open one again that failed.
    """

    seconds: float
    histogram: HdrHistogram = field(default_factory=make_histogram)
    answered: int = 0
    answers: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    cpu_seconds: float = 0.0
    late: int = 0
    late_worst: int = 0
    strays: int = 0
    connections_lost: int = 0
    connects_failed: int = 0

    @property
    def failed(self) -> int:
        return sum(self.errors.values())

    @property
    def rate(self) -> float:
        """Answers per second."""
        return self.answers / self.seconds

    def percentile(self, percent: float) -> int | None:
        """A latency in µs, or None where there is none."""
        if not self.histogram.get_total_count():
            return None
        value: int = self.histogram.get_value_at_percentile(percent)
        return value

    @property
    def worst(self) -> int | None:
        """The longest latency in µs, or None where there is none."""
        return self.percentile(100)

    def to_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON has. The histogram is in HdrHistogram's own exchange format (V2)."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name != "histogram"}
        return plain | {"histogram": self.histogram.encode().decode("ascii")}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        return cls(**data | {"histogram": HdrHistogram.decode(data["histogram"])})


def of_processes(parts: Sequence[Counts]) -> Counts:
    """What the processes of one run counted in the same window, as one."""
    return _sum(parts, parts[0].seconds)


def of_rounds(parts: Sequence[Counts]) -> Counts:
    """What several runs counted one after another, as one long run."""
    return _sum(parts, sum(part.seconds for part in parts))


def _sum(parts: Sequence[Counts], seconds: float) -> Counts:
    total = Counts(seconds)
    errors: Counter[str] = Counter()
    for part in parts:
        total.histogram.add(part.histogram)
        errors.update(part.errors)
        total.late_worst = max(total.late_worst, part.late_worst)
        for name in _SUMMED:
            setattr(total, name, getattr(total, name) + getattr(part, name))
    total.errors = dict(errors.most_common())
    return total


_SUMMED = (
    "answered",
    "answers",
    "bytes_sent",
    "bytes_received",
    "cpu_seconds",
    "late",
    "strays",
    "connections_lost",
    "connects_failed",
)


class Tally:
    """Counts while a run goes on, from `open` on what is within the window."""

    def __init__(self) -> None:
        self._begin = self._end = 0
        self._counts = Counts(0)
        # A histogram takes 0.8 µs for a value and this a tenth; it has no more entries than the histogram.
        self._latencies: Counter[int] = Counter()
        self._errors: Counter[str] = Counter()
        self.answers = 0  # of the whole run, for the progress bar, as are
        self.failures = 0

    def open(self, begin: int, end: int) -> None:
        """Count what belongs between these times, the second one not included."""
        self._begin, self._end = begin, end
        self._counts.seconds = (end - begin) / 1e9

    def sent(self, begins: Sequence[int], size: int, now: int, ready_since: int = 0) -> None:
        """Requests went out together, `size` bytes; a connection was ready for them since `ready_since`."""
        if self._begin <= now < self._end:
            self._counts.bytes_sent += size
        if now - max(begins[0], ready_since) > LATE:  # the oldest
            self._note_late(begins, now, ready_since)

    def received(self, begins: Sequence[int], size: int, now: int) -> None:
        """`size` bytes came, and answered the requests with these begins."""
        self.answers += len(begins)
        low, high = self._begin, self._end
        if low <= now < high:
            self._counts.answers += len(begins)
            self._counts.bytes_received += size
        latencies = [(now - begin) // 1000 for begin in begins if low <= begin < high]
        self._counts.answered += len(latencies)
        self._latencies.update([latency if latency < 2048 else rounded(latency) for latency in latencies])

    def failed(self, begins: Sequence[int], kind: str, now: int, waited: int | None = None) -> None:
        """Requests failed, and after `waited` nanoseconds where they ran into the time-out."""
        self.failures += len(begins)
        within = sum(begin < self._end for begin in begins) if now >= self._begin else 0
        if within:
            self._errors[kind if kind in self._errors or len(self._errors) < _KINDS else "other"] += within
        if waited is not None:
            self._latencies[rounded(waited // 1000)] += within

    def lost(self) -> None:
        self._counts.connections_lost += 1

    def connect_failed(self) -> None:
        self._counts.connects_failed += 1

    def finish(self, *, cpu_seconds: float, strays: int) -> Counts:
        """Return what was counted. To be called once."""
        counts = self._counts
        counts.cpu_seconds, counts.strays = cpu_seconds, strays
        counts.errors = dict(self._errors)
        for latency, count in self._latencies.items():
            counts.histogram.record_value(min(latency, _HIGHEST), count)
        return counts

    def _note_late(self, begins: Sequence[int], now: int, ready_since: int) -> None:
        behind = [now - max(begin, ready_since) for begin in begins if self._begin <= begin < self._end]
        self._counts.late += sum(late > LATE for late in behind)
        self._counts.late_worst = max([self._counts.late_worst, *(late // 1000 for late in behind)])
