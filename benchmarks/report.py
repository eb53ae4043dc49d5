"""From samples to a report: medians, ratios within a round, tables, aims. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, NamedTuple, Protocol

from load import Workload
from peers import DIRECT

Record = dict[str, str | float | None]
Value = Literal["rate", "cpu", "busy", "p50", "p99", "instance_cpu", "instance_busy", "load_busy"]


class Sample(NamedTuple):
    """One run: a path under a workload in a round.

    `amount` counts the workload's unit and `rate` is that per second. `cpu` is the proxy's seconds per unit,
    None for direct; `instance_cpu` and `load_cpu`, where measured, are the instance's and the load
    generator's. Latencies are in ms.
    """

    round: int
    workload: str
    path: str
    amount: float
    rate: float
    cpu: float | None = None
    p50: float | None = None
    p99: float | None = None
    instance_cpu: float | None = None
    load_cpu: float | None = None

    @property
    def busy(self) -> float | None:
        """The share of its core that the proxy used."""
        return self._share(self.cpu)

    @property
    def instance_busy(self) -> float | None:
        return self._share(self.instance_cpu)

    @property
    def load_busy(self) -> float | None:
        return self._share(self.load_cpu)

    def _share(self, seconds: float | None) -> float | None:
        return None if seconds is None else seconds * self.rate

    def value(self, name: Value) -> float | None:
        found: float | None = getattr(self, name)
        return found


class Aim(NamedTuple):
    """What tcpgw promises: of `value` at least (`most`: at most) `bound` times the reference's.

    An aim that does not bind is a ratio to be told, met or not.
    """

    workload: str
    reference: str
    bound: float
    value: Value = "rate"
    most: bool = False
    binding: bool = True

    def verdict(self, ratio: float | None) -> tuple[str, bool]:
        """Hold a ratio against the aim; one that was not measured does not meet it."""
        within = ratio is not None and (ratio <= self.bound if self.most else ratio >= self.bound)
        value = "" if self.value == "rate" else f"{self.value} "
        found = "not measured" if ratio is None else f"{ratio:.2f}"
        if not self.binding:
            return f"{self.workload}: {value}of {self.reference} (no aim): {found}", True
        if ratio is not None:
            found += ", met" if within else ", MISSED"
        limit = f"at {'most' if self.most else 'least'} {self.bound}"
        return f"{self.workload}: {value}{limit} of {self.reference}: {found}", within


AIMS = (
    Aim("keepalive-50", "envoy", 1.0),
    Aim("keepalive-50", "haproxy", 0.9),
    Aim("keepalive-1", "envoy", 1.0),
    Aim("keepalive-1", "haproxy", 0.9),
    Aim("connect-50", "envoy", 1.0),
    Aim("bulk", "haproxy", 0.9),
)


@dataclass(frozen=True)
class Results:
    samples: Sequence[Sample]

    def values(self, workload: str, path: str, value: Value) -> dict[int, float]:
        """Map each round to a value, where the sample has one."""
        return {
            sample.round: found
            for sample in self.samples
            if (sample.workload, sample.path) == (workload, path)
            and (found := sample.value(value)) is not None
        }

    def median(self, workload: str, path: str, value: Value) -> float | None:
        """Median over the rounds; None where nothing was measured."""
        values = self.values(workload, path, value)
        return median(values.values()) if values else None

    def ratio(self, workload: str, path: str, reference: str, value: Value = "rate") -> float | None:
        """Median over the rounds of the ratio within a round; None where either was not measured.

        Within a round, because the machine drifts (frequency, neighbours), which cancels only in a quotient
        of runs that stood next to each other.
        """
        base = self.values(workload, reference, value)
        mine = self.values(workload, path, value)
        ratios = [mine[number] / base[number] for number in mine if base.get(number)]
        return median(ratios) if ratios else None


class Named(Protocol):
    """A workload of any script."""

    @property
    def name(self) -> str: ...


def summary(results: Results, workloads: Iterable[Named], paths: Sequence[str]) -> list[Record]:
    """One flat record for each workload and path that was measured."""
    records: list[Record] = []
    for name in (workload.name for workload in workloads):
        for path in paths:
            if not (rates := results.values(name, path, "rate").values()):
                continue
            records.append(
                {
                    "workload": name,
                    "path": path,
                    "rate": median(rates),
                    "rate_min": min(rates),
                    "rate_max": max(rates),
                    "rate_to_direct": results.ratio(name, path, DIRECT),
                    "rate_to_haproxy": results.ratio(name, path, "haproxy"),
                    "cpu": results.median(name, path, "cpu"),
                    "cpu_to_haproxy": results.ratio(name, path, "haproxy", "cpu"),
                    "busy": results.median(name, path, "busy"),
                    "p50": results.median(name, path, "p50"),
                    "p99": results.median(name, path, "p99"),
                    "instance_cpu": results.median(name, path, "instance_cpu"),
                    "instance_busy": results.median(name, path, "instance_busy"),
                    "load_busy": results.median(name, path, "load_busy"),
                }
            )
    return records


class Column(NamedTuple):
    header: str
    key: str
    digits: int = 2
    scale: float = 1.0
    suffix: str = ""

    def cell(self, record: Record) -> str:
        value = record[self.key]
        return f"{value * self.scale:,.{self.digits}f}{self.suffix}" if isinstance(value, float) else "-"


def columns(workload: Workload) -> list[Column]:
    digits = 2 if workload.bulk else 0
    return [
        Column(f"{workload.unit}/s", "rate", digits),
        Column("min", "rate_min", digits),
        Column("max", "rate_max", digits),
        Column("x direct", "rate_to_direct"),
        Column("x haproxy", "rate_to_haproxy"),
        Column("CPU ms/GiB", "cpu", 0, 1e3) if workload.bulk else Column("CPU µs/request", "cpu", 1, 1e6),
        Column("x haproxy", "cpu_to_haproxy"),
        Column("core", "busy", 0, 100, "%"),
        Column("p99 ms", "p99"),
    ]


def table(workload: Workload, records: Iterable[Record]) -> str:
    """Plain aligned text, to be pasted into README.md as it is."""
    mine = [record for record in records if record["workload"] == workload.name]
    return f"{workload.title} ({workload.name})\n{aligned(['path'], columns(workload), mine)}"


def aligned(words: Sequence[str], columns: Sequence[Column], records: Iterable[Record]) -> str:
    """Lay out records: `words` are the keys that stand first and to the left, then come the columns."""
    rows = [[*words, *(column.header for column in columns)]]
    rows += [
        [*(str(record[word]) for word in words), *(column.cell(record) for column in columns)]
        for record in records
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = len(words)
    return "\n".join(
        "  ".join(
            [*map(str.ljust, row[:left], widths[:left]), *map(str.rjust, row[left:], widths[left:])]
        ).rstrip()
        for row in rows
    )


def verdicts(results: Results, aims: Iterable[Aim] = AIMS, path: str = "tcpgw") -> tuple[list[str], bool]:
    """Hold a path against the aims: a line for each, and whether all are met."""
    outcomes = [aim.verdict(results.ratio(aim.workload, path, aim.reference, aim.value)) for aim in aims]
    return [line for line, _ in outcomes], all(met for _, met in outcomes)
