"""What the command shows: a table, JSON, a picture, or a sentence about what went wrong."""

import json
from collections.abc import Sequence
from pathlib import Path

import uvloop
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tcpgw.address import Address
from tcpgw.bench.bar import Bar
from tcpgw.bench.plan import BenchError, Plan
from tcpgw.bench.plot import draw
from tcpgw.bench.report import PERCENTILES, Measured, failures, ratios, to_json, warnings
from tcpgw.bench.session import perform
from tcpgw.bench.tally import Counts

_MIB = 1 << 20


def run_bench(
    plan: Plan, targets: Sequence[Address], rounds: int, *, as_json: Path | None, plot: Path | None
) -> int:
    """Measure, and show or write what was found. Returns the exit code, and leaves no process.

    1: a target could not be connected to, answered nothing or something wrong, a file could not be written,
    or a signal came first. 0: everything else, failed requests included: they are a finding.
    """
    err = Console(stderr=True, highlight=False, markup=False)
    to_stdout = as_json == Path("-")
    try:
        with Bar(plan, rounds * len(targets), on=err.is_terminal and not to_stdout) as bar:
            measured = uvloop.run(perform(plan, targets, rounds, bar))
        if measured is None:
            err.print("Ended by a signal. Nothing is left running.")
            return 1
        text = json.dumps(to_json(plan, measured), indent=2) + "\n"
        if to_stdout:
            print(text, end="")  # noqa: T201 - rich would break long lines
        else:
            Console(highlight=False).print(table(plan, measured))
        if as_json and not to_stdout:
            as_json.write_text(text)
        if plot:
            draw(plan, measured, plot)
    except BenchError as exc:
        err.print(str(exc), style="red", soft_wrap=True)
        return 1
    except OSError as exc:
        err.print(f"cannot write {exc.filename or 'the result'}: {exc.strerror}", style="red", soft_wrap=True)
        return 1
    for failure in failures(measured):
        err.print(failure, style="red", soft_wrap=True)
    return 1 if failures(measured) else 0


def table(plan: Plan, measured: Sequence[Measured]) -> RenderableType:
    """Everything for the reader: a column for each target, and their ratio."""
    totals = [each.total for each in measured]
    both = ratios(measured[0], measured[1]) if len(measured) == 2 else {}
    grid = Table("", *(str(each.target) for each in measured), box=box.SIMPLE_HEAD)
    if both:
        grid.add_column("ratio")
    for column in grid.columns[1:]:
        column.justify, column.overflow = "right", "fold"
    for name, cells, ratio in _rows(plan, totals, both):
        grid.add_row(name, *cells, *([ratio] if both else []))
    notes = [Text(warning, style="yellow") for warning in warnings(plan, measured)]
    return Group(Text(f"{plan.describe()}{_rounds(measured)}"), grid, *notes)


def _rounds(measured: Sequence[Measured]) -> str:
    if len(measured) < 2:
        return ""
    count = len(measured[0].rounds)
    merged = f"{count} rounds, merged" if count > 1 else "1 round"
    return f"; {merged}; ratio: of the first to the second, median of the rounds'"


def _rows(
    plan: Plan, totals: Sequence[Counts], both: dict[str, float | None]
) -> list[tuple[str, list[str], str]]:
    def row(name: str, cells: list[str], ratio: str = "") -> tuple[str, list[str], str]:
        return name, cells, _quotient(both.get(ratio))

    rows = [row("requests/s", [f"{total.rate:,.0f}" for total in totals], "requests_per_second")]
    for percent in PERCENTILES:
        key = f"p{percent:g}"
        rows.append(row(f"latency {key}", [_ms(total.percentile(percent)) for total in totals], key))
    rows += [
        row("latency max", [_ms(total.worst) for total in totals]),
        row("sent", [f"{total.bytes_sent / total.seconds / _MIB:,.1f} MiB/s" for total in totals]),
        row("received", [f"{total.bytes_received / total.seconds / _MIB:,.1f} MiB/s" for total in totals]),
        row("answered", [f"{total.answered:,}" for total in totals]),
        row("failed", [f"{total.failed:,}" for total in totals]),
    ]
    for kind in dict.fromkeys(kind for total in totals for kind in total.errors):
        rows.append(row(f"  {kind}", [f"{total.errors.get(kind, 0):,}" for total in totals]))
    if any(total.connections_lost for total in totals):
        rows.append(row("connections lost", [f"{total.connections_lost:,}" for total in totals]))
    if plan.rate is not None:
        rows.append(row("sent late", [f"{total.late:,}" for total in totals]))
    rows.append(row("generator's CPU", [f"{total.cpu_seconds / total.seconds:.0%}" for total in totals]))
    return rows


def _ms(micros: int | None) -> str:
    if micros is None:
        return "-"
    millis = micros / 1000
    digits = 3 if millis < 1 else 2 if millis < 10 else 1 if millis < 100 else 0
    return f"{millis:,.{digits}f} ms"


def _quotient(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"
