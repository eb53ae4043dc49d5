"""Latency by percentile as a picture: the axis counts nines, where a tail is."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from hdrh.histogram import HdrHistogram

from tcpgw.bench.plan import Plan
from tcpgw.bench.report import Measured

_COLOURS = ("#0b6fb8", "#d9480f")  # apart for every kind of colour vision, and in grey
_INK, _GRID = "#222222", "#d8d8d8"
# Where a share stands on the axis, and its name. Few runs have a request beyond the last.
_TICKS = {
    1: "0 %",
    2: "50 %",
    10: "90 %",
    100: "99 %",
    1000: "99.9 %",
    10_000: "99.99 %",
    100_000: "99.999 %",
    1_000_000: "99.9999 %",
}


def is_possible() -> bool:
    """Whether matplotlib, which comes with the extra `plot`, is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def points(histogram: HdrHistogram) -> tuple[list[float], list[float]]:
    """The curve: 1 / (1 - share of requests), and the latency in ms that this share did not exceed.

    Ends where one request is left, at their number: of what lies beyond nothing was measured.
    """
    total = histogram.get_total_count()
    xs: list[float] = []
    ys: list[float] = []
    below = 0
    for item in histogram.get_recorded_iterator():
        upto = below + item.count_added_in_this_iter_step
        xs += [total / (total - below), total / max(1, total - upto)]
        ys += [item.value_iterated_to / 1000] * 2
        below = upto
    return xs, ys


def draw(plan: Plan, measured: Sequence[Measured], file: Path) -> None:
    """Write the picture, in the format that the name's ending says. Raises OSError."""
    # Not pyplot: it looks for a display, and keeps every figure.
    from matplotlib.figure import Figure  # noqa: PLC0415 - an optional extra
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator  # noqa: PLC0415

    figure = Figure(figsize=(9, 5.2), dpi=150, facecolor="white", layout="constrained")
    axes = figure.add_subplot(facecolor="white")
    right = 10.0
    for each, colour in zip(measured, _COLOURS, strict=False):
        total = each.total
        xs, ys = points(total.histogram)
        label = f"{each.target}: {total.rate:,.0f} requests/s, {total.failed:,} failed"
        axes.plot(xs, ys, color=colour, linewidth=2, label=label)
        right = max(right, *xs, 0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(list(_TICKS), list(_TICKS.values()))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlim(1, right * 1.1)  # after the ticks, which widen it
    if not any(each.total.worst for each in measured):
        axes.set_ylim(0.1, 10)  # a logarithmic axis of nothing has no ends
    axes.grid(color=_GRID, linewidth=0.8)
    axes.tick_params(colors=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("share of requests answered within", color=_INK)
    axes.set_ylabel("latency, ms", color=_INK)
    axes.set_title(plan.describe(), color=_INK, fontsize=11, loc="left")
    axes.legend(loc="upper left", frameon=True, facecolor="white", edgecolor=_GRID)
    figure.savefig(file)
