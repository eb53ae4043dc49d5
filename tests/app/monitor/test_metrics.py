"""From a picture to series."""

import time
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tcpgw.app.monitor.metrics import expose
from tcpgw.process.resources import Resources
from tests.support.pictures import ASKED, NOW, config, picture, snapshot, worker
from tests.support.totals import listener, method, tally

A, B = "10.0.0.1:1", "10.0.0.2:1"


def series(processes: dict[int, Resources] | None = None, **known: Any) -> dict[tuple[str, ...], float]:
    """All samples, by name and label values in the order of the labels' names."""
    data, _ = expose(picture(**known), processes or {}, {"s": 1.25}).render("")
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(data.decode())
        for sample in family.samples
    }


def test_connections() -> None:
    """Accepted, opened, there and closed by why, bytes and how long they took; who was denied besides."""
    totals = {
        "listeners": {"l": listener(**{"": tally(2, 0, denied_cidr=2), "s": tally(5, 2, client_fin=3)})}
    }
    found = series(totals=totals)
    assert found["tcpgw_connections_accepted_total", "l"] == 7
    assert found["tcpgw_connections_opened_total", "l", "s"] == 5
    assert found["tcpgw_connections_active", "l", "s"] == 2
    assert found["tcpgw_connections_closed_total", "l", "client_fin", "s"] == 3
    assert found["tcpgw_connection_duration_seconds_count", "l", "s"] == 3
    assert found["tcpgw_connection_received_bytes_total", "l", "s"] == 50
    assert found["tcpgw_access_denied_total", "l", "denied_cidr"] == 2
    assert found["tcpgw_invocations_total", "s", ""] == 3


def test_requests() -> None:
    """By method and outcome, with how long they took, those under way, and the platform's two counters."""
    methods = {"l": {"*": method(0.1, ok=4, error=1), "m": method(inflight=2, deadline_exceeded=3)}}
    services = {"s": {"rpc": {"methods": methods, "retried": 2, "hedged": 1}, "retried": 3}}
    found = series(totals={"listeners": {"l": listener("requests", s=tally(1, 1))}, "services": services})
    assert found["tcpgw_requests_total", "l", "*", "ok", "s"] == 4
    assert found["tcpgw_requests_total", "l", "m", "deadline_exceeded", "s"] == 3
    assert found["tcpgw_requests_in_flight", "l", "m", "s"] == 2
    assert found["tcpgw_request_duration_seconds_count", "l", "*", "s"] == 1
    assert (found["tcpgw_invocations_total", "s", ""], found["tcpgw_failed_invocations_total", "s", ""]) == (
        8,
        4,
    )
    assert (found["tcpgw_retries_total", "s"], found["tcpgw_hedges_total", "s"]) == (5, 1)


def test_series_of_a_service_end_with_it() -> None:
    """When a reload removes it, whatever was counted for it; the listener counts on."""
    methods = {"l": {"*": method(0.1, ok=4, inflight=1)}}
    fifo = {"requests": {"gone": method(0.1, ok=2)}}
    totals = {
        "listeners": {
            "l": listener(**{"": tally(1, 1)}, s=tally(5, 2), gone=tally(3, 1, client_fin=2)) | fifo
        },
        "services": {"gone": {"rpc": {"methods": methods}}},
    }
    found = series(totals=totals)
    assert [labels for labels in found if "gone" in labels] == []
    assert found["tcpgw_connections_accepted_total", "l"] == 9
    assert found["tcpgw_connections_active", "l", ""] == 1
    assert found["tcpgw_connections_active", "l", "s"] == 2


def test_cpu_time_is_of_the_process_that_serves() -> None:
    """Added to another's it would jump, and fall with the end of the one that leaves."""
    taken = {10: Resources(1.5, 100, 5), 98: Resources(0.5, 1, 1), 99: Resources(1000.0, 1, 1)}

    def cpu(old: str, new: str) -> float:
        workers = [worker(1, old, pid=99), worker(1, new, pid=98)]
        return series(taken, workers=workers)["tcpgw_process_cpu_seconds_total", "worker 1"]

    assert cpu("accepting", "starting") == 1000.0
    assert cpu("leaving", "accepting") == 0.5
    assert cpu("leaving", "starting") == 0.5
    assert cpu("leaving", "leaving") == 0.5


def test_endpoints_end_with_their_endpoint() -> None:
    """Series are those of the snapshot in force, however many others were counted for."""
    figures = {A: {"picked": 9, "failures": {"reset": 2}}, "10.0.0.9:1": {"picked": 5}}
    found = series(
        totals={"services": {"s": {"endpoints": figures}}},
        snapshots={"s": snapshot(3, 0)},
        health={"s": {"states": {A: "ejected", B: "draining"}, "ejections": 4, "panic": True}},
    )
    assert found["tcpgw_endpoint_picks_total", A, "s"] == 9
    assert found["tcpgw_endpoint_failures_total", A, "reset", "s"] == 2
    assert found["tcpgw_endpoint_weight", B, "s"] == 0
    assert found["tcpgw_endpoint_state", A, "s", "ejected"] == 1
    assert found["tcpgw_endpoints", "s", "ejected"] == 1
    assert found["tcpgw_endpoints", "s", "healthy"] == 0
    assert found["tcpgw_panic", "s"] == 1
    assert found["tcpgw_hash_imbalance_ratio", "s"] == 1.25
    assert not any("10.0.0.9:1" in labels for labels in found)


def test_the_gateway_itself() -> None:
    """Discovery, budget, workers, processes, reloads, certificates, alerts."""
    workers = [worker(1), worker(1, "leaving", pid=99, lag=0.75), worker(2, "starting")]
    found = series(
        {10: Resources(1.5, 100, 5), 11: Resources(2.0, 200, 6), 99: Resources(3.0, 300, 7)},
        workers=workers,
        deaths=2,
        reloads={"ok": 3},
        snapshots={"s": snapshot(1)},
        discovery={"s": {"calls": 8, "errors": 1, "answered_at": NOW}},
        clouds={"c": {"budget": 20, "left": 7, "paused": 0.0}},
        certificates={"l": {"crl": 77.0}},
        alerts=[{"alert": "panic", "severity": "critical", "state": "firing"}] * 2,
    )
    assert found["tcpgw_build_info", "1.2.3"] == 1
    assert found["tcpgw_discovery_calls_total", "s"] == 8
    assert found["tcpgw_snapshot_version", "s"] == 7
    assert found["tcpgw_cloud_budget_left_calls", "c"] == 7
    assert found["tcpgw_event_loop_lag_seconds", "worker 1"] == 0.75
    assert found["tcpgw_process_cpu_seconds_total", "worker 1"] == 2.0
    assert found["tcpgw_process_resident_memory_bytes", "worker 1"] == 500
    assert found["tcpgw_process_open_fds", "supervisor"] == 5
    assert found["tcpgw_workers", "leaving"] == 1
    assert found["tcpgw_worker_restarts_total",] == 2
    assert (found["tcpgw_config_reloads_total", "ok"], found["tcpgw_config_reloads_total", "refused"]) == (
        3,
        0,
    )
    assert found["tcpgw_certificate_expiry_timestamp_seconds", "crl", "l"] == 77.0
    assert found["tcpgw_alerts", "panic", "critical"] == 2


def test_discovery_that_does_not_answer() -> None:
    """Endpoints were last confirmed when the stored snapshot in force was taken, if the source never did."""
    name = ("tcpgw_discovery_last_success_timestamp_seconds", "s")
    asked: dict[str, Any] = {"config": config(ASKED), "snapshots": {"s": snapshot(1, taken_at=NOW - 500)}}
    figures = {"calls": 9, "errors": 9}
    assert series(**asked, discovery={"s": {**figures, "answered_at": None}})[name] == NOW - 500
    assert series(**asked, discovery={"s": {**figures, "answered_at": NOW - 20}})[name] == NOW - 20
    assert name not in series(config=asked["config"])


def test_how_often_a_source_is_asked() -> None:
    """Where it is asked again and again: by that it is judged whether an answer is late."""
    name = ("tcpgw_discovery_refresh_seconds", "s")
    assert series(config=config(ASKED.replace("cloud = ", 'refresh = "10m", cloud = ')))[name] == 600
    assert name not in series()


def test_a_service_that_never_had_a_snapshot() -> None:
    """It has no endpoint, which says something once its first snapshot is not waited for any more."""
    assert series()["tcpgw_endpoints", "s", "healthy"] == 0
    assert ("tcpgw_endpoints", "s", "healthy") not in series(state="starting")


def test_who_is_told_of_alerts() -> None:
    """What was sent, by receiver; Alertmanagers of a cluster are one."""
    figures = {"url": "http://a", "waiting": 1, "error": ""}
    found = series(
        receivers=[
            {"receiver": "hook", "sent": 0, "failed": 9, "dropped": 1, **figures},
            {"receiver": "alertmanager", "sent": 3, "failed": 0, "dropped": 0, **figures},
            {"receiver": "alertmanager", "sent": 4, "failed": 0, "dropped": 0, **figures},
        ]
    )
    told = {key[1:]: value for key, value in found.items() if key[0] == "tcpgw_alert_notifications_total"}
    assert told == {
        ("hook", "sent"): 0, ("hook", "failed"): 9, ("hook", "dropped"): 1,
        ("alertmanager", "sent"): 7, ("alertmanager", "failed"): 0, ("alertmanager", "dropped"): 0,
    }  # fmt: skip


def test_a_gateway_that_has_just_started() -> None:
    """Nothing was told yet, and it can be scraped."""
    found = series(state="starting")
    assert found["tcpgw_worker_restarts_total",] == 0
    assert found["tcpgw_invocations_total", "s", ""] == 0


def test_a_thousand_endpoints() -> None:
    """Their series are some kilobytes each, made at once."""
    began = time.process_time()
    found = series(snapshots={"s": snapshot(*[1] * 250)})
    assert len([key for key in found if key[0] == "tcpgw_endpoint_weight"]) == 250
    assert time.process_time() - began < 5
