"""What is going on now, out of what was counted until two moments."""

import copy
from typing import Any

import pytest

from tcpgw.app.monitor.picture import Picture
from tcpgw.app.monitor.view import Recent, View
from tcpgw.process.resources import Resources
from tests.support.pictures import NOW, config, picture, snapshot, worker
from tests.support.totals import listener, method, tally

A, B = "10.0.0.1:1", "10.0.0.2:1"
SPLIT = """
[[service]]
name = "s"
discovery = { type = "static", endpoints = ["10.0.0.1:1"] }
[[service]]
name = "t"
version = "v2"
discovery = { type = "static", endpoints = ["10.0.0.2:1"] }
[[listener]]
name = "l"
bind = "127.0.0.1:0"
route = [{ service = "s", weight = 3 }, { service = "t", weight = 1 }]
"""


def seen(
    before: dict[str, Any], after: dict[str, Any], seconds: float = 2.0, **known: Any
) -> tuple[Recent, View]:
    """Look twice; by default at a service with two endpoints."""
    recent = Recent()
    known.setdefault("snapshots", {"s": snapshot(1, 1)})
    recent.look(picture(totals=before, **known), {}, 100.0)
    return recent, recent.look(picture(totals=after, **known), {}, 100.0 + seconds)


def connected(opened: int, picks: dict[str, int], **ended: int) -> dict[str, Any]:
    return {
        "listeners": {"l": listener(s=tally(opened, opened - sum(ended.values()), **ended))},
        "services": {
            "s": {
                "connect": {"buckets": {"7": opened}},
                "endpoints": {one: {"picked": count, "inflight": 1} for one, count in picks.items()},
            }
        },
    }


def test_rates_are_of_what_grew() -> None:
    """By second, since the look before; at the first look nothing is known."""
    before, after = (
        connected(10, {A: 10}, client_fin=9),
        connected(30, {A: 24, B: 6}, client_fin=25, no_endpoint=2),
    )
    _, view = seen(before, after)
    (service,) = view["services"]
    assert (service["rate"], service["failed_rate"]) == (9.0, 1.0)
    assert (service["bytes_in_rate"], service["bytes_out_rate"]) == (100.0, 1000.0)
    assert view["totals"]["connections"] == 3
    assert view["listeners"][0]["accepted_rate"] == 10.0
    assert [(one["rate"], one["share"]) for one in service["endpoints"]] == [(7.0, 0.7), (3.0, 0.3)]
    assert service["in_flight"] == 2
    _, first = seen({}, {})
    assert (first["services"][0]["rate"], first["services"][0]["p99"]) == (0.0, None)


def test_latencies_are_those_of_requests_where_there_are_any() -> None:
    """Else of connects; of the last seconds only, so that of a service that is quiet there are none."""
    before = connected(10, {A: 10})
    _, view = seen(before, connected(20, {A: 20}))
    assert view["services"][0]["latency_of"] == "connect"
    assert view["services"][0]["p50"] == pytest.approx(7.5e-6)
    asked = connected(20, {A: 20})
    asked["services"]["s"]["rpc"] = {"methods": {"l": {"*": method(0.1, 0.1, 0.4, ok=3)}}}
    _, view = seen(before, asked)
    service = view["services"][0]
    assert service["latency_of"] == "request"
    assert service["p50"] == pytest.approx(0.1, rel=1 / 16)
    assert service["p99"] == pytest.approx(0.4, rel=1 / 16)
    later = copy.deepcopy(asked)
    later["services"]["s"]["connect"] = connected(30, {A: 30})["services"]["s"]["connect"]
    _, view = seen(asked, later)
    service = view["services"][0]
    assert (service["latency_of"], service["p50"]) == ("request", None)


def test_a_split_as_asked_and_as_seen() -> None:
    """By the weights in force, and by what was given in the last minute."""
    settings = config(SPLIT)
    before = {"listeners": {"l": listener(s=tally(0), t=tally(0))}}
    after = {"listeners": {"l": listener(s=tally(8), t=tally(2))}}
    _, view = seen(before, after, config=settings, snapshots={})
    assert view["listeners"][0]["split"] == [
        {"service": "s", "asked": 0.75, "seen": 0.8},
        {"service": "t", "asked": 0.25, "seen": 0.2},
    ]
    assert [one["version"] for one in view["services"]] == ["", "v2"]
    _, idle = seen(before, before, config=settings, snapshots={})
    assert [one["seen"] for one in idle["listeners"][0]["split"]] == [None, None]


def test_imbalance_is_that_of_the_most_picked() -> None:
    """Its share of the picks against that of its weight; nothing is said of a handful."""
    zero = connected(0, {A: 0, B: 0})
    even = picture(snapshots={"s": snapshot(1, 1)})
    recent, view = seen(zero, connected(200, {A: 150, B: 50}))
    assert view["services"][0]["imbalance"] == 1.5
    assert recent.imbalances(even) == {"s": 1.5}
    _, weighted = seen(zero, connected(200, {A: 150, B: 50}), snapshots={"s": snapshot(3, 1)})
    assert weighted["services"][0]["imbalance"] == 1.0
    _, few = seen(zero, connected(99, {A: 99}))
    assert few["services"][0]["imbalance"] is None


def test_imbalance_is_among_those_that_are_used() -> None:
    """Sick endpoints get nothing, which is no imbalance of the others; in a panic all are used."""
    three: dict[str, Any] = {"snapshots": {"s": snapshot(1, 1, 1)}}
    sick = {A: "healthy", B: "healthy", "10.0.0.3:1": "ejected"}
    zero, after = connected(0, {}), connected(300, {A: 150, B: 120, "10.0.0.3:1": 30})

    def imbalance(**health: Any) -> Any:
        _, view = seen(zero, after, health={"s": {"states": sick, **health}}, **three)
        return view["services"][0]["imbalance"]

    assert imbalance() == pytest.approx(150 / 135)
    assert imbalance(panic=True) == 1.5
    _, none = seen(zero, after, health={"s": {"states": dict.fromkeys(sick, "unhealthy")}}, **three)
    assert none["services"][0]["imbalance"] is None


def test_states_and_what_an_operator_said() -> None:
    """Each endpoint with its state and why, and with the weight that discovery gives."""
    known: dict[str, Any] = {
        "health": {"s": {"states": {A: "healthy", B: "ejected"}, "why": {B: "5 resets"}, "panic": True}},
        "overrides": {"s": {A: {"override": "drained", "given_weight": 4}}},
    }
    _, view = seen({}, {}, **known)
    first, second = view["services"][0]["endpoints"]
    assert (first["override"], first["given_weight"], first["weight"]) == ("drained", 4, 1)
    assert (second["override"], second["given_weight"]) == (None, 1)
    assert (second["state"], second["why"]) == ("ejected", "5 resets")
    assert view["services"][0]["panic"] is True


def test_when_discovery_answered_last_and_when_that_was_news() -> None:
    """An answer that changes nothing leaves the snapshot as old as it is."""
    asked = {"calls": 9, "errors": 1, "last_error": "", "answered_at": NOW - 1}
    _, view = seen({}, {}, discovery={"s": asked}, snapshots={"s": snapshot(1, taken_at=NOW - 500)})
    (service,) = view["services"]
    assert service["discovery"] == {"type": "static", **asked}
    assert service["snapshot"] == {"version": 7, "taken_at": NOW - 500, "age": 500.0}
    _, view = seen({}, {})
    assert view["services"][0]["discovery"]["answered_at"] is None


def test_workers_and_what_they_take() -> None:
    """CPU in cores between two looks; of a process that was not seen before none."""
    recent = Recent()
    known = picture(workers=[worker(1), worker(2)])
    recent.look(known, {11: Resources(5.0, 1 << 20, 9)}, 100.0)
    view = recent.look(known, {11: Resources(6.5, 2 << 20, 9), 12: Resources(3.0, 7, 9)}, 102.0)
    assert [(one["cpu"], one["memory"]) for one in view["workers"]] == [(0.75, 2 << 20), (0.0, 7)]
    assert view["workers"][0]["lag"] == 0.25


def test_silences_are_shown() -> None:
    """As they are listed: who looks sees what is not told."""
    listed = [{"alert": "*", "labels": {}, "until": NOW + 60, "comment": "known"}]
    _, view = seen({}, {}, silences=listed)
    assert view["silences"] == listed


def test_ages_add_up() -> None:
    """Those of all listeners; the last has no end."""
    _, view = seen({}, {"listeners": {"a": listener(), "b": listener()}})
    assert view["ages"] == [
        {"up_to": 1, "connections": 2},
        {"up_to": 10, "connections": 0},
        {"up_to": None, "connections": 4},
    ]


def test_charts_have_a_point_for_each_look() -> None:
    """The last five minutes of them, and none of a service that is gone."""
    recent, both = Recent(), config(SPLIT)

    def look(second: int, known: Picture) -> None:
        recent.look(known, {}, float(second))

    for second in range(310):
        look(second, picture(config=both, at=NOW + second))
    charts = recent.charts()
    assert charts.keys() == {"s", "t"}
    assert {len(points) for points in charts["s"].values()} == {300}
    assert charts["s"]["at"][-1] == NOW + 309
    look(310, picture())
    assert recent.charts().keys() == {"s"}
