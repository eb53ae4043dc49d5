"""What workers counted, together."""

from types import SimpleNamespace
from typing import Any, cast

from tcpgw.app.monitor.figures import Totals, counts, invocations
from tcpgw.process.worker import WorkerProcess
from tests.support.pictures import snapshot
from tests.support.totals import listener, method, tally


def worker(report: dict[str, Any], connections: int = 0) -> WorkerProcess:
    return cast("WorkerProcess", SimpleNamespace(report=report, connections=connections))


def report(**more: Any) -> dict[str, Any]:
    return {
        "listeners": {"l": listener(s=tally(5, 2, client_fin=3))},
        "services": {"s": {"endpoints": {"10.0.0.1:1": {"picked": 5}, "10.0.0.9:1": {"picked": 1}}}},
        "process": {"lag": 0.1},
        **more,
    }


def test_counters_do_not_go_down() -> None:
    """When a worker dies what it counted stays, and its connections have ended: those lost with it too."""
    totals, dead, alive = Totals(), worker(report(), connections=2), worker(report())
    before = totals.of([dead, alive])
    assert before["listeners"]["l"]["services"]["s"]["opened"] == 10
    totals.gone(dead, {"s": snapshot(1)})
    after = totals.of([alive])
    service = after["listeners"]["l"]["services"]["s"]
    assert (service["opened"], service["active"]) == (10, 2)
    assert service["ended"] == {"client_fin": 6, "worker_lost": 2}
    assert service["opened"] - sum(service["ended"].values()) == service["active"]
    assert after["listeners"]["l"]["ended"] == service["ended"]
    assert invocations(after) == {"s": (8, 2)}
    assert totals.cut == 2


def test_requests_that_died_with_a_worker_have_failed() -> None:
    """As far as it had told that they were at instances; of each method, and counted once."""
    methods = {"l": {"a": method(1.0, inflight=3, ok=1), "b": method(inflight=2)}, "m": {"a": method()}}
    totals = Totals()
    totals.gone(worker({"services": {"s": {"rpc": {"methods": methods}}}}), {})
    of_l = totals.of([])["services"]["s"]["rpc"]["methods"]["l"]
    assert of_l["a"]["outcomes"] == {"ok": 1, "upstream_lost": 3}
    assert of_l["b"]["outcomes"] == {"upstream_lost": 2}
    assert invocations(totals.of([])) == {"s": (6, 5)}


def test_who_was_being_let_in_is_lost_too() -> None:
    """Accepted ones have ended or are there, whichever way a worker ended."""
    totals = Totals()
    totals.gone(worker({"listeners": {"l": listener(**{"": tally(3, 2, denied_cidr=1)})}}), {})
    found = totals.of([])["listeners"]["l"]
    assert found["ended"] == {"denied_cidr": 1, "worker_lost": 2}
    assert invocations(totals.of([])) == {}


def test_one_that_said_its_farewell_lost_nothing() -> None:
    """It has told of the end of each connection itself."""
    totals = Totals()
    last = report(cut=1, listeners={"l": listener(s=tally(5, 0, client_fin=4, shutdown=1))})
    totals.gone(worker(last), {})
    assert totals.cut == 1
    assert totals.of([])["listeners"]["l"]["services"]["s"]["ended"] == {"client_fin": 4, "shutdown": 1}


def test_endpoints_that_left_are_forgotten() -> None:
    """With the worker that knew them, or the sums would grow with every instance that there ever was."""
    totals = Totals()
    for _ in range(3):
        totals.gone(worker(report()), {"s": snapshot(1)})
    assert totals.of([])["services"]["s"]["endpoints"] == {"10.0.0.1:1": {"picked": 15}}


def test_a_worker_that_never_told_counts_nothing() -> None:
    """It died before its first report."""
    totals = Totals()
    totals.gone(worker({}), {})
    assert totals.of([worker({})]) == {"cut": 0, "process": {}, "listeners": {}, "services": {}}


def test_invocations() -> None:
    """Requests where they are seen, connections elsewhere; those not let in are of nobody's service."""
    totals = {
        "listeners": {
            "tcp": listener(s=tally(9, 1, client_fin=4, instance_reset=2, idle_timeout=1, connect_failed=1),
                            none=tally(0)),
            "rpc": listener("requests", s=tally(3, 1, client_fin=2)),
            "fifo": listener("requests", t=tally(1, 1)) | {"requests": {"t": method(ok=7)}},
        },
        "services": {
            "s": {
                "rpc": {
                    "methods": {
                        "rpc": {"*": method(ok=10, error=2, denied=5), "m": method(overloaded=1)},
                    },
                },
            },
        },
    }  # fmt: skip
    assert invocations(totals) == {"s": (13 + 8, 3 + 3), "t": (7, 0), "none": (0, 0)}


def test_what_a_listener_counts_may_change() -> None:
    """Connections that it counted before a reload gave it another mode stay counted."""
    totals = Totals()
    before = report(listeners={"l": listener(s=tally(5, 0, client_fin=3, instance_reset=2))}, services={})
    methods = {"s": {"rpc": {"methods": {"l": {"*": method(ok=4)}}}}}
    after = report(listeners={"l": listener("requests", s=tally(9, 0, client_fin=9))}, services=methods)
    for reports in ([before, after], [after, before]):
        found = totals.of(map(worker, reports))
        assert invocations(found) == {"s": (9, 2)}
        assert counts(found)["used", "l", "s"] == 9


def test_counts_are_flat() -> None:
    """Each number has a key of its own, the buckets of histograms too; connections where they are used."""
    totals = {
        "listeners": {
            "tcp": listener(s=tally(4, 1, client_fin=2, denied_cidr=1)),
            "rpc": listener("requests", s=tally(3, 1, client_fin=2)),
        },
        "services": {
            "s": {
                "rpc": {"methods": {"rpc": {"*": method(0.001, 0.001, ok=2), "m": method(0.001, ok=1)}}},
                "connect": {"buckets": {"7": 4}},
                "endpoints": {"e": {"picked": 6}},
            }
        },
    }
    flat = counts(totals)
    assert (flat["used", "tcp", "s"], flat["used", "rpc", "s"]) == (4, 3)
    assert sum(value for key, value in flat.items() if key[:2] == ("latency", "s")) == 3
    assert (flat["connect", "s", "7"], flat["picked", "s", "e"]) == (4, 6)
    assert (flat["bytes_in", "s"], flat["bytes_out", "s"]) == (70, 700)
    assert (flat["denied", "tcp"], flat["accepted", "tcp"]) == (1, 4)
