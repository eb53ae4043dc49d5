"""The state of a gateway as plain values."""

from tcpgw.app.monitor.status import made
from tcpgw.observe.histogram import Histogram
from tests.support.pictures import NOW, config, picture, snapshot, worker
from tests.support.processes import relaying

HERE, NEW, GONE = "10.0.0.1:1", "10.0.0.2:1", "10.0.0.9:1"


def test_what_workers_counted_stands_beside_what_the_supervisor_knows() -> None:
    """Endpoints are those in force, with weights; what has left is not shown, what is removed counts on."""
    totals = {
        "listeners": {"l": {"accepted": 5}, "old": {"accepted": 2}},
        "services": {
            "s": {
                "snapshot": {"version": 14},  # a sum, which says nothing
                "rpc": {"answered": 4},
                "endpoints": {GONE: {"connected": 1}, HERE: {"connected": 2, "weight": 6}},
            }
        },
    }
    health = {
        "panic": False,
        "ejections": 2,
        "states": {HERE: "healthy", NEW: "unhealthy"},
        "why": {NEW: "refused"},
    }
    found = made(
        picture(
            config=config(relaying([("10.0.0.1", 1)], service='version = "v2"')),
            totals=totals,
            addresses={"l": "127.0.0.1:80"},
            snapshots={"s": snapshot(3, 1)},
            health={"s": health},
            certificates={"l": {"certificate": 99.0}},
            discovery={"s": {"calls": 3}},
        )
    )
    assert found["listeners"] == {
        "l": {"address": "127.0.0.1:80", "accepted": 5, "expires": {"certificate": 99.0}},
        "old": {"address": None, "accepted": 2},
    }
    service = found["services"]["s"]
    assert service == {
        "version": "v2",
        "snapshot": {"version": 7, "taken_at": NOW - 5},
        "rpc": {"answered": 4},
        "discovery": {"calls": 3},
        "health": {"panic": False, "ejections": 2},
        "endpoints": {
            HERE: {"connected": 2, "weight": 3, "state": "healthy"},
            NEW: {"weight": 1, "state": "unhealthy", "why": "refused"},
        },
    }


def test_what_an_operator_said_is_shown() -> None:
    """Beside the weight that is in force."""
    said = {"s": {HERE: {"override": "drained", "given_weight": 3}}}
    found = made(picture(snapshots={"s": snapshot(0)}, overrides=said))
    assert found["services"]["s"]["endpoints"] == {
        HERE: {"weight": 0, "override": "drained", "given_weight": 3}
    }


def test_of_a_distribution_there_are_percentiles() -> None:
    """Instead of its buckets, wherever it stands; none of one that is empty."""
    times = Histogram()
    for milliseconds in range(1, 101):
        times.add(milliseconds / 1000)
    totals = {"services": {"s": {"connect": times.figures(), "rpc": {"deep": Histogram().figures()}}}}
    service = made(picture(totals=totals))["services"]["s"]
    connect = service["connect"]
    assert (connect["count"], round(connect["mean"], 4)) == (100, 0.0505)
    assert [round(connect[key], 2) for key in ("p50", "p90", "p99")] == [0.05, 0.09, 0.10]
    assert service["rpc"]["deep"] == {"count": 0, "mean": None, "p50": None, "p90": None, "p99": None}


def test_before_the_first_snapshot_there_is_little_to_say() -> None:
    """But for the workers: where each is in its life."""
    found = made(picture(workers=[worker(1, "starting"), worker(2), worker(3, "leaving")]))
    assert [one["state"] for one in found["workers"]] == ["starting", "accepting", "leaving"]
    assert [one["pid"] for one in found["workers"]] == [11, 12, 13]
    assert [one["worker"] for one in found["workers"]] == [1, 2, 3]
    assert found["listeners"] == {}
    nothing = {"version": None, "taken_at": None}
    assert found["services"] == {"s": {"version": "", "snapshot": nothing, "endpoints": {}}}


def test_who_is_told_of_alerts_is_shown() -> None:
    """With what was sent, and what was wrong last."""
    hook = {
        "receiver": "hook",
        "url": "http://a",
        "sent": 1,
        "failed": 2,
        "dropped": 0,
        "waiting": 0,
        "error": "x",
    }
    assert made(picture(receivers=[hook]))["receivers"] == [hook]
