"""What `tcpgw top` shows: from the gateway's view to lines that fit."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.text import Text

from tcpgw.health.verdict import may_be_given
from tcpgw.operate.alerts import labelled, ordered, standing
from tcpgw.operate.figures import age, latency, rate, share, size
from tcpgw.operate.grid import Column, grid, shown
from tcpgw.terminal import visible

View = dict[str, Any]
Cells = Sequence[str | Text]

_BAD = {"ejected": "red", "unhealthy": "red", "trial": "yellow", "draining": "cyan", "unknown": "dim"}
_SEVERITY = {"critical": "bold red", "warning": "yellow"}
_STATE = {"ready": "green", "degraded": "bold red"}

ORDERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "sick first": lambda one: list(_BAD).index(one["state"]) if one["state"] in _BAD else len(_BAD),
    "rate": lambda one: -one["rate"],
    "in flight": lambda one: -one["in_flight"],
    "failures": lambda one: -one["failures"],
    "name": lambda _: 0,
}
"""How endpoints can be sorted, by what an operator is shown; equal ones by service and name."""


class Looks(NamedTuple):
    """`height` None: as long as it takes. `stale`: why the view is not of now. `help`: what keys do."""

    width: int
    height: int | None = None
    order: str = "sick first"
    scroll: int = 0  # endpoints above the first that is shown
    stale: str = ""
    help: str = ""


class Frame(NamedTuple):
    """What to show, the scroll that was possible, and how many endpoints there is room for."""

    content: RenderableType
    scroll: int
    page: int


class _Section(NamedTuple):
    """`least` lines below the titles are had before others have more."""

    columns: Sequence[Column]
    rows: Sequence[Cells]
    least: int
    titled: bool = True


def frame(view: View, looks: Looks) -> Frame:
    """Lay a view out. Where there is little room, services and alerts have it first, then who is sick."""
    head = _header(view, looks)
    if looks.height is not None:  # the rest is what one looks for
        head = head[: max(1, looks.height // 2)]
    foot = [Text(looks.help, style="dim", no_wrap=True, overflow="ellipsis")] if looks.help else []
    endpoints = _sorted_endpoints(view, looks.order)
    # In this order they have their rows; on the screen the endpoints are last, where there is room.
    sections = {
        "services": _services(view),
        "alerts": _alerts(view),
        "endpoints": _Section(_ENDPOINTS, endpoints, 5),
        "listeners": _listeners(view),
        "workers": _workers(view),
    }
    room = None if looks.height is None else looks.height - len(head) - len(foot)
    given = _given(sections, room)
    lines: list[RenderableType] = [*head]
    for name in ("alerts", "services", "listeners", "workers"):
        lines += _shown(sections[name], given[name], looks.width)
    page = max(0, given["endpoints"] - (given["endpoints"] < len(endpoints)))
    scroll = max(0, min(looks.scroll, len(endpoints) - page))
    lines += _shown(sections["endpoints"], given["endpoints"], looks.width, scroll)
    return Frame(Group(*lines, *foot), scroll, page)


def _given(sections: dict[str, _Section], room: int | None) -> dict[str, int]:
    """How many lines below its titles each section has, 0 for those that are not shown."""
    wanted = {name: len(section.rows) for name, section in sections.items()}
    if room is None:
        return wanted
    given = dict.fromkeys(sections, 0)
    for name, section in sections.items():
        lines = min(wanted[name], section.least, room - section.titled)
        if lines > 0:
            given[name] = lines
            room -= lines + section.titled
    # Those that lack a single line first: theirs would say no more than that there is one.
    lacking = [name for name in sections if wanted[name] - given[name] == 1]
    for name in (*lacking, "endpoints", *sections):
        if given[name]:
            more = min(wanted[name] - given[name], room)
            given[name] += more
            room -= more
    return given


def _shown(section: _Section, lines: int, width: int, scroll: int = 0) -> list[RenderableType]:
    total = len(section.rows)
    if not lines:
        return []
    if lines >= total:
        return [grid(section.columns, section.rows, width, titled=section.titled)]
    count = lines - 1  # the last one tells of the rest
    if not count:
        return [Text(f"… {total:,} {section.columns[0].title}s", style="dim")]
    more = total - scroll - count
    told = [f"{scroll:,} above"] * bool(scroll) + [f"and {more:,} more"] * bool(more)
    rows = section.rows[scroll : scroll + count]
    note = Text(f"… {', '.join(told)}", style="dim")
    return [grid(section.columns, rows, width, titled=section.titled), note]


# ---- the head ----


def _header(view: View, looks: Looks) -> list[Text]:
    totals = view["totals"]
    state = Text.assemble(
        "tcpgw ", view["version"], " ", (view["state"], _STATE.get(view["state"], "bold yellow"))
    )
    items: list[str | Text] = [
        state,
        f"pid {view['pid']}",
        f"up {age(view['at'] - view['since'])}",
        str(view["config"]),
        time.strftime("%H:%M:%S", time.localtime(view["at"])),
    ]
    flow: list[str | Text] = [
        f"{totals['connections']:,} connections",
        f"{rate(totals['rate'])}/s",
        _warned(f"{rate(totals['failed_rate'])} failed/s", bad=totals["failed_rate"] > 0),
        f"{totals['in_flight']:,} in flight",
        f"in {size(totals['bytes_in_rate'])}/s",
        f"out {size(totals['bytes_out_rate'])}/s",
    ]
    if view["worker_deaths"]:
        flow.append(_warned(f"worker deaths: {view['worker_deaths']}", bad=True))
    lines = [*_flowed(items, looks.width), *_flowed(flow, looks.width)]
    if looks.stale:
        lines.insert(0, Text(visible(looks.stale), style="bold red", no_wrap=True, overflow="ellipsis"))
    return [*lines, *_trouble(view)]


def _trouble(view: View) -> list[Text]:
    """What concerns the whole gateway and should not be."""
    found = []
    if view["overload"]["active"]:
        found.append(f"overloaded: new connections are closed, {view['overload']['shed']:,} so far")
    found += [
        f"cloud {one['name']}: no calls for {age(one['paused'])}" for one in view["clouds"] if one["paused"]
    ]
    return [Text(visible(one), style="bold red", no_wrap=True, overflow="ellipsis") for one in found]


def _flowed(items: Iterable[str | Text], width: int) -> list[Text]:
    """Put items one after the other on as few lines as they need."""
    lines: list[Text] = []
    for item in items:
        text = shown(item)
        if lines and lines[-1].cell_len + 3 + text.cell_len <= width:
            lines[-1].append(" · ", style="dim").append_text(text)
        else:
            lines.append(Text(no_wrap=True, overflow="ellipsis").append_text(text))
    return lines


def _warned(text: str, *, bad: bool) -> Text:
    return Text(text, style="red" if bad else "")


# ---- sections ----


def _alerts(view: View) -> _Section:
    columns = (
        Column("alert", left=True),
        Column("state", left=True),
        Column("labels", rank=2, left=True),
        Column("for", rank=1),
        Column("", rank=3, text=True),
    )
    rows = []
    for one in ordered(view["alerts"]):
        style = _SEVERITY.get(one["severity"], "") if one["state"] == "firing" else "dim"
        state = one["state"]
        if one["state"] == "resolved":
            style = "green"
        if one["silenced_until"]:
            style, state = "dim", f"{state}, silenced"
        cells = (one["alert"], state, labelled(one["labels"]), standing(one, view["at"]), one["summary"])
        rows.append([Text(cell, style=style) for cell in cells])
    return _Section(columns, rows, 3, titled=False)


def _services(view: View) -> _Section:
    columns = (
        Column("service", left=True),
        Column("version", rank=9, left=True),
        Column("rate/s"),
        Column("failed/s"),
        Column("flight", rank=4),
        Column("p50", rank=5),
        Column("p90", rank=6),
        Column("p99"),
        Column("of", rank=10, left=True),
        Column("in/s", rank=7),
        Column("out/s", rank=8),
        Column("usable"),
        Column("imbalance", rank=11),
        Column("", rank=1, left=True),
        Column("", rank=12, text=True),
    )
    return _Section(columns, [_service(one) for one in view["services"]], 3)


def _service(one: dict[str, Any]) -> Cells:
    weighed = [each for each in one["endpoints"] if each["weight"] > 0]
    usable = sum(may_be_given(each["weight"], each["state"]) for each in weighed)
    error = one["discovery"]["last_error"]
    notes = ["panic"] * bool(one["panic"]) + ["discovery fails"] * bool(error)
    return (
        one["name"],
        one["version"],
        rate(one["rate"]),
        _warned(rate(one["failed_rate"]), bad=one["failed_rate"] > 0),
        f"{one['in_flight']:,}",
        latency(one["p50"]),
        latency(one["p90"]),
        latency(one["p99"]),
        one["latency_of"],
        size(one["bytes_in_rate"]),
        size(one["bytes_out_rate"]),
        _warned(f"{usable}/{len(weighed)}", bad=usable < len(weighed) or not weighed),
        "-" if one["imbalance"] is None else f"{one['imbalance']:.2f}",
        Text(", ".join(notes), style="red"),
        Text(error, style="red"),
    )


def _listeners(view: View) -> _Section:
    columns = (
        Column("listener", left=True),
        Column("address", rank=2, left=True),
        Column("mode", rank=5, left=True),
        Column("active"),
        Column("accepted/s", rank=3),
        Column("denied/s", rank=4),
        Column("split: asked, seen", rank=1, text=True),
    )
    rows = [
        (
            one["name"],
            one["address"] or "removed",
            one["mode"],
            f"{one['active']:,}",
            rate(one["accepted_rate"]),
            _warned(rate(one["denied_rate"]), bad=one["denied_rate"] > 0),
            "; ".join(
                f"{part['service']} {share(part['asked'])}, {share(part['seen'])}" for part in one["split"]
            ),
        )
        for one in view["listeners"]
    ]
    return _Section(columns, rows, 2)


def _workers(view: View) -> _Section:
    columns = (
        Column("worker", left=True),
        Column("pid", rank=4),
        Column("state", left=True),
        Column("connections"),
        Column("cpu"),
        Column("memory", rank=1),
        Column("lag", rank=2),
        Column("up", rank=3),
    )
    rows = [
        (
            str(one["worker"]),
            str(one["pid"]),
            one["state"],
            f"{one['connections']:,}",
            _warned(f"{one['cpu']:.0%}", bad=one["cpu"] > 0.9),
            size(one["memory"]),
            latency(one["lag"]),
            age(one["age"]),
        )
        for one in view["workers"]
    ]
    return _Section(columns, rows, 2)


_ENDPOINTS = (
    Column("endpoint", left=True),
    Column("service", rank=2, left=True),
    Column("state", left=True),
    Column("weight", rank=3),
    Column("flight", rank=4),
    Column("rate/s", rank=1),
    Column("share", rank=6),
    Column("failures", rank=7),
    Column("", rank=5, text=True),
)


def _sorted_endpoints(view: View, order: str) -> list[Cells]:
    by = ORDERS[order]
    found = [(service["name"], one) for service in view["services"] for one in service["endpoints"]]
    found.sort(key=lambda each: (by(each[1]), each[0], each[1]["endpoint"]))
    return [_endpoint(service, one) for service, one in found]


def _endpoint(service: str, one: dict[str, Any]) -> Cells:
    state = "drained" if one["override"] == "drained" else one["state"]
    changed = one["given_weight"] != one["weight"]
    return (
        one["endpoint"],
        service,
        Text(state, style=_BAD.get(one["state"], "green")),
        f"{one['weight']} ({one['given_weight']})" if changed else str(one["weight"]),
        f"{one['in_flight']:,}",
        rate(one["rate"]),
        share(one["share"]),
        f"{one['failures']:,}",
        Text(one["why"], style="dim"),
    )
