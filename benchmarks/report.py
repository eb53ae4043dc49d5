"""From samples to a report: medians, ratios within a round, tables, aims. Pure."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from load import Workload
from peers import DIRECT

Record = dict[str, str | float | None]


class Sample(NamedTuple):
    """One run: a path under a workload in a round.

    `amount` counts the workload's unit and `rate` is that per second; `cpu` is the proxy's seconds per unit,
    None for direct; latencies are in ms.
    """

    round: int
    workload: str
    path: str
    amount: float
    rate: float
    cpu: float | None = None
    p50: float | None = None
    p99: float | None = None

    @property
    def busy(self) -> float | None:
        """The share of its core that the proxy used."""
        return None if self.cpu is None else self.cpu * self.rate


class Aim(NamedTuple):
    """What tcpgw promises: at least `least` times the reference's rate."""

    workload: str
    reference: str
    least: float


AIMS = (
    Aim("keepalive-50", "envoy", 1.0),
    Aim("keepalive-50", "haproxy", 0.9),
    Aim("keepalive-1", "envoy", 1.0),
    Aim("keepalive-1", "haproxy", 0.9),
    Aim("connect-50", "envoy", 1.0),
    Aim("bulk", "haproxy", 0.9),
)

Value = Callable[[Sample], float | None]


def rate(sample: Sample) -> float:
    return sample.rate


def cpu(sample: Sample) -> float | None:
    return sample.cpu


@dataclass(frozen=True)
class Results:
    samples: Sequence[Sample]

    def values(self, workload: str, path: str, value: Value) -> dict[int, float]:
        """Map each round to a value, where the sample has one."""
        return {
            sample.round: found
            for sample in self.samples
            if (sample.workload, sample.path) == (workload, path) and (found := value(sample)) is not None
        }

    def median(self, workload: str, path: str, value: Value) -> float | None:
        """Median over the rounds; None where nothing was measured."""
        values = self.values(workload, path, value)
        return median(values.values()) if values else None

    def ratio(self, workload: str, path: str, reference: str, value: Value = rate) -> float | None:
        """Median over the rounds of the ratio within a round; None where either was not measured.

        Within a round, because the machine drifts (frequency, neighbours), which cancels only in a quotient
        of runs that stood next to each other.
        """
        base = self.values(workload, reference, value)
        mine = self.values(workload, path, value)
        ratios = [mine[number] / base[number] for number in mine if base.get(number)]
        return median(ratios) if ratios else None


def summary(results: Results, workloads: Iterable[Workload], paths: Sequence[str]) -> list[Record]:
    """One flat record for each workload and path that was measured."""
    records: list[Record] = []
    for name in (workload.name for workload in workloads):
        for path in paths:
            if not (rates := results.values(name, path, rate).values()):
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
                    "cpu": results.median(name, path, cpu),
                    "cpu_to_haproxy": results.ratio(name, path, "haproxy", cpu),
                    "busy": results.median(name, path, lambda sample: sample.busy),
                    "p50": results.median(name, path, lambda sample: sample.p50),
                    "p99": results.median(name, path, lambda sample: sample.p99),
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
    shown = columns(workload)
    mine = [record for record in records if record["workload"] == workload.name]
    rows = [["path", *(column.header for column in shown)]]
    rows += [[str(record["path"]), *(column.cell(record) for column in shown)] for record in mine]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    ]
    return "\n".join([f"{workload.title} ({workload.name})", *lines])


def verdicts(results: Results, path: str = "tcpgw") -> tuple[list[str], bool]:
    """Hold a path against AIMS: a line for each, and whether all are met; one not measured is not met."""
    lines, met = [], True
    for workload, reference, least in AIMS:
        ratio = results.ratio(workload, path, reference)
        found = "not measured" if ratio is None else f"{ratio:.2f}, {'met' if ratio >= least else 'MISSED'}"
        met = met and ratio is not None and ratio >= least
        lines.append(f"{workload}: at least {least:.1f} of {reference}: {found}")
    return lines, met
