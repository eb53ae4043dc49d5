"""The state of a gateway as plain values."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from tcpgw.app.status import made
from tcpgw.config.load import loads
from tcpgw.endpoints import Endpoint, Member, Snapshot
from tests.support.processes import relaying


def test_what_workers_counted_stands_beside_what_the_supervisor_knows() -> None:
    """Endpoints are those in force, with weights; what has left is not shown, what is removed counts on."""
    config = loads(relaying([("10.0.0.1", 1)]), Path())
    gone, here, new = (Endpoint(f"10.0.0.{number}", 1) for number in (9, 1, 2))
    snapshot = Snapshot("s", 7, (Member(here, 3), Member(new, 1)), 12.5)
    totals = {
        "listeners": {"l": {"accepted": 5}, "old": {"accepted": 2}},
        "services": {
            "s": {
                "version": 14,  # a sum, which says nothing
                "rpc": {"answered": 4},
                "endpoints": {str(gone): {"connected": 1}, str(here): {"connected": 2, "weight": 6}},
            }
        },
    }
    health = {"panic": False, "ejections": 2, "states": {str(here): "healthy", str(new): "unknown"}}
    found = made(config, [], {"l": "127.0.0.1:80"}, {"s": snapshot}, totals, {"s": health})
    assert found["listeners"] == {
        "l": {"address": "127.0.0.1:80", "accepted": 5},
        "old": {"address": None, "accepted": 2},
    }
    assert found["services"]["s"] == {
        "version": 7,
        "taken_at": 12.5,
        "rpc": {"answered": 4},
        "health": {"panic": False, "ejections": 2},
        "endpoints": {
            str(here): {"connected": 2, "weight": 3, "state": "healthy"},
            str(new): {"weight": 1, "state": "unknown"},
        },
    }


def test_what_an_operator_said_is_shown() -> None:
    """Beside the weight that is in force."""
    config = loads(relaying([("10.0.0.1", 1)]), Path())
    snapshot = Snapshot("s", 7, (Member(Endpoint("10.0.0.1", 1), 0),), 12.5)
    said = {"s": {"10.0.0.1:1": {"override": "drained", "given_weight": 3}}}
    found = made(config, [], {}, {"s": snapshot}, {}, {}, said)
    assert found["services"]["s"]["endpoints"] == {
        "10.0.0.1:1": {"weight": 0, "override": "drained", "given_weight": 3}
    }


def test_before_the_first_snapshot_there_is_little_to_say() -> None:
    """But for the workers: where each is in its life."""
    config = loads(relaying([("10.0.0.1", 1)]), Path())

    def worker(slot: int, *, accepting: bool = False, leaving: bool = False) -> Any:
        event = SimpleNamespace(is_set=lambda: accepting)
        return cast(
            "Any",
            SimpleNamespace(
                slot=slot, pid=slot + 10, accepting=event, leaving=leaving, connections=4, started=0.0
            ),
        )

    workers = [worker(1), worker(2, accepting=True), worker(3, accepting=True, leaving=True)]
    found = made(config, workers, {}, {}, {}, {})
    assert [one["state"] for one in found["workers"]] == ["starting", "accepting", "leaving"]
    assert [one["pid"] for one in found["workers"]] == [11, 12, 13]
    assert found["listeners"] == {}
    assert found["services"] == {"s": {"version": None, "taken_at": None, "endpoints": {}}}
