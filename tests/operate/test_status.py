"""What a gateway does and did, as an operator sees it."""

from pathlib import Path
from typing import Any

from tcpgw.app.monitor.status import made
from tcpgw.observe.histogram import Histogram
from tests.support.command import tcpgw
from tests.support.control import answering
from tests.support.pictures import picture, snapshot


def test_who_cannot_be_told_of_alerts_is_named(config: Path) -> None:
    """With where and why, which commands no terminal; of the others nothing is said."""

    def receiver(name: str, error: str) -> dict[str, Any]:
        return {"receiver": name, "url": f"http://{name}", "sent": 1, "failed": 2, "dropped": 0, "waiting": 0,
                "error": error}  # fmt: skip

    found = made(picture(receivers=[receiver("chat", ""), receiver("on-call", "status 401\x1b[2J")]))
    with answering(config, {"status": lambda: found}):
        code, out, err = tcpgw("status", "-c", config)
    assert (code, err) == (0, "")
    assert "alerts to on-call, http://on-call: status 401\\x1b[2J\n" in out
    assert "chat" not in out


def requests(*seconds: float, **outcomes: int) -> dict[str, Any]:
    latency = Histogram()
    for one in seconds:
        latency.add(one)
    return {"outcomes": outcomes, "latency": latency.figures()}


def printed(config: Path, **known: Any) -> str:
    with answering(config, {"status": lambda: made(picture(**known))}):
        code, out, err = tcpgw("status", "-c", config)
    assert (code, err) == (0, "")
    return out


def rows(out: str, *first: str) -> list[list[str]]:
    """The cells of the rows that begin so."""
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines()]
    return [row for row in cells if tuple(row[: len(first)]) == first]


def test_requests_are_told_by_what_became_of_them(config: Path) -> None:
    """By service, listener and method, the most frequent outcome first, and how long answers took."""
    methods = {
        "rank": requests(0.01, 0.01, 0.2, ok=2, error=1),
        "*": requests(denied=12, deadline_exceeded=4),
    }
    totals = {"services": {"s": {"rpc": {"methods": {"l": methods}}}}}
    out = printed(config, totals=totals)
    assert rows(out, "s", "l") == [
        ["s", "l", "rank", "3", "ok 2, error 1", "9.73 ms", "205 ms"],
        ["s", "l", "*", "16", "denied 12, deadline_exceeded 4", "-", "-"],
    ]


def test_requests_that_are_answered_in_order_are_told_too(config: Path) -> None:
    """Of a listener whose codec is fifo, which knows no methods."""
    out = printed(config, totals={"listeners": {"q": {"accepted": 1, "ended": {}, "requests": {
        "s": requests(0.01, ok=1, upstream_lost=3)}}}})  # fmt: skip
    assert rows(out, "s", "q") == [["s", "q", "*", "4", "upstream_lost 3, ok 1", "9.73 ms", "9.73 ms"]]


def test_what_was_tried_once_more_is_told(config: Path) -> None:
    """Connects and requests together, as in the metrics; on tcp listeners nothing where there was none."""
    figures = {"retried": 2, "circuit": {"retries_refused": 1},
               "rpc": {"retried": 5, "hedged": 3, "retries_refused": 3, "methods": {}}}  # fmt: skip
    out = printed(config, totals={"services": {"s": figures}})
    assert "s: 7 retried (4 more were over the budget), 3 hedged\n" in out
    assert "s: 2 retried\n" in printed(config, totals={"services": {"s": {"retried": 2}}})
    assert "retried" not in printed(config, totals={"services": {"s": {"retried": 0}}})


def test_where_nobody_asks_for_requests_there_is_no_table_of_them(config: Path) -> None:
    """An empty one would say no more."""
    assert "outcomes" not in printed(config, snapshots={"s": snapshot(1)})


def test_a_bad_state_has_its_reason(config: Path) -> None:
    """In the words that `tcpgw top` and the page have for it."""
    why = "3 checks in a row failed: refused"
    states = {"10.0.0.1:1": "healthy", "10.0.0.2:1": "unhealthy"}
    health = {"s": {"states": states, "why": {"10.0.0.2:1": why}}}
    out = printed(config, snapshots={"s": snapshot(1, 1)}, health=health)
    assert f"s: 10.0.0.2:1 is unhealthy: {why}\n" in out
    assert "10.0.0.1:1 is" not in out
