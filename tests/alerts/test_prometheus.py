"""The rule file for Prometheus: that it is the gateway's rules, and what a real one makes of it."""

import json
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from tcpgw.alerts.prometheus import rule_file
from tcpgw.alerts.rules import BY_ALERT, KINDS, Kind
from tcpgw.config.alerts import Alerts
from tests.conftest import Need
from tests.support.metric_names import METRICS, labels_named, named

ALL = Alerts.model_validate({"instances_below": {"threshold": 2}, "p99_latency": {"threshold": 0.25}})
INSTANCE = 'job="tcpgw", instance="gw:9080"'


def promtool(need: Need, command: str, folder: Path) -> str:
    """Run it over the rules in a folder, or their test. What it says of faults is the failure."""
    file = {"check": "rules.yml", "test": "test.yml"}[command]
    out = subprocess.run(
        [need("promtool"), command, "rules", file], check=False, cwd=folder, capture_output=True, text=True
    )
    assert out.returncode == 0, out.stdout + out.stderr
    return out.stdout


def test_the_shipped_file_is_that_of_the_defaults() -> None:
    """Where this fails, write it anew: `rule_file(Alerts())`."""
    shipped = files("tcpgw.monitoring").joinpath("rules.yml").read_text(encoding="utf-8")
    assert shipped == rule_file(Alerts())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.key)
def test_rules_are_on_metrics_that_there_are(kind: Kind) -> None:
    """With labels that these have."""
    expression = f"{kind.expr} {kind.guard}"
    assert named(expression) <= METRICS.keys()
    assert named(expression)
    assert labels_named(expression) <= set[str]().union(*(METRICS[name] for name in named(expression)))


def test_a_rule_that_is_off_is_an_example_in_comments() -> None:
    """Only those whose threshold nobody else knows."""
    text = rule_file(Alerts(panic="off"))
    assert "# - alert: TcpgwInstancesBelow" in text
    assert "# - alert: TcpgwP99Latency" in text
    assert "TcpgwPanic" not in text


@pytest.mark.parametrize(
    "alerts",
    [
        Alerts(),
        ALL,
        Alerts.model_validate({"keep_firing_for": 0, "panic": {"for": 1.5}, "error_rate": {"for": "90s"}}),
    ],
)
def test_promtool_takes_it(need: Need, tmp_path: Path, alerts: Alerts) -> None:
    """With the operator's terms as with the defaults."""
    (tmp_path / "rules.yml").write_text(rule_file(alerts))
    out = promtool(need, "check", tmp_path)
    on = sum(alerts.of(kind.key) is not None for kind in KINDS)
    assert f"{on + 1} rules found" in out


def series(name: str, values: str, **labels: str) -> dict[str, str]:
    told = ", ".join([INSTANCE, *(f'{key}="{value}"' for key, value in labels.items())])
    return {"series": f"{name}{{{told}}}", "values": values}


def endpoints(service: str, **states: str) -> list[dict[str, str]]:
    every = (
        dict.fromkeys(("unknown", "healthy", "unhealthy", "ejected", "trial", "draining"), "0x40") | states
    )
    return [
        series("tcpgw_endpoints", values, service=service, state=state) for state, values in every.items()
    ]


# One sample each 15 s for ten minutes. By alert: what the services, listeners and clouds have for which it
# fires, and for which it does not.
SERIES = [
    # From the third minute on none of two works; of the other's ten, six do.
    *endpoints("dead", healthy="2x11 0x28", unhealthy="0x11 2x28"),
    *endpoints("hurt", healthy="10x11 6x28", ejected="0x11 4x28"),
    *endpoints("well", healthy="3x40", trial="1x40", draining="5x40"),
    # A tenth of 100 a second fails, then of two a minute both.
    series("tcpgw_invocations_total", "0+1500x40", service="dead", version="v1"),
    series("tcpgw_failed_invocations_total", "0+150x40", service="dead", version="v1"),
    series("tcpgw_invocations_total", "0+0.5x40", service="well", version="v1"),
    series("tcpgw_failed_invocations_total", "0+0.5x40", service="well", version="v1"),
    # One request in fifty is slow; the other's connects are fast.
    series(
        "tcpgw_request_duration_seconds_bucket", "0+49x40", service="dead", listener="l", method="m", le="0.1"
    ),
    series(
        "tcpgw_request_duration_seconds_bucket", "0+50x40", service="dead", listener="l", method="m", le="1"
    ),
    series(
        "tcpgw_request_duration_seconds_bucket",
        "0+50x40",
        service="dead",
        listener="l",
        method="m",
        le="+Inf",
    ),
    series("tcpgw_connect_duration_seconds_bucket", "0+50x40", service="well", le="0.1"),
    series("tcpgw_connect_duration_seconds_bucket", "0+50x40", service="well", le="+Inf"),
    series("tcpgw_discovery_last_success_timestamp_seconds", "0x40", service="dead"),
    series("tcpgw_discovery_last_success_timestamp_seconds", "0+15x40", service="well"),
    # Asked each ten minutes: it is not late before half an hour.
    series("tcpgw_discovery_last_success_timestamp_seconds", "0x40", service="seldom"),
    series("tcpgw_discovery_refresh_seconds", "30x40", service="dead"),
    series("tcpgw_discovery_refresh_seconds", "30x40", service="well"),
    series("tcpgw_discovery_refresh_seconds", "600x40", service="seldom"),
    series("tcpgw_hash_imbalance_ratio", "3x100", service="dead"),
    series("tcpgw_hash_imbalance_ratio", "1.5x100", service="well"),
    series("tcpgw_panic", "0x11 1x28", service="dead"),
    series("tcpgw_panic", "0x40", service="well"),
    series("tcpgw_cloud_budget_left_calls", "1x40", cloud="spent"),
    series("tcpgw_cloud_budget_calls", "20x40", cloud="spent"),
    series("tcpgw_cloud_budget_left_calls", "15x40", cloud="fine"),
    series("tcpgw_cloud_budget_calls", "20x40", cloud="fine"),
    series("tcpgw_access_denied_total", "0+150x40", listener="tried", reason="denied_credentials"),
    series("tcpgw_access_denied_total", "0+150x40", listener="tried", reason="denied_cidr"),
    series("tcpgw_access_denied_total", "0+15x40", listener="quiet", reason="denied_cidr"),
    series("tcpgw_worker_restarts_total", "0x20 1 2 3 4x17"),
    series("tcpgw_certificate_expiry_timestamp_seconds", "1000000x40", listener="old", kind="certificate"),
    series("tcpgw_certificate_expiry_timestamp_seconds", "80000x40", listener="old", kind="crl"),
    series("tcpgw_certificate_expiry_timestamp_seconds", "9000000x40", listener="new", kind="certificate"),
    series("tcpgw_certificate_expiry_timestamp_seconds", "200000x40", listener="new", kind="crl"),
    series("tcpgw_overloaded", "1x40"),
    series("tcpgw_build_info", "1x20 stale _x19", version="1"),
]
# At the end of nine minutes, by label and of what.
FIRE = {
    ("service", "dead"): [
        "NoUsableInstance", "InstancesBelow", "UsableShare", "Panic",
        "ErrorRate", "P99Latency", "DiscoveryAge",
    ],
    ("service", "hurt"): ["UsableShare"],
    ("cloud", "spent"): ["CallBudget"],
    ("listener", "tried"): ["Denials"],
    ("listener", "old"): ["CertificateExpiry", "CrlExpiry"],
    ("job", "tcpgw"): ["WorkerRestarts", "Overloaded", "Gone"],
}  # fmt: skip
_COUNT = 'count by (alertname, service, cloud, listener) (ALERTS{alertstate="firing"})'


def samples(fire: dict[tuple[str, str], list[str]]) -> list[dict[str, Any]]:
    """What `_COUNT` gives where these fire."""
    return [
        {"labels": "{" + ", ".join([f'alertname="Tcpgw{name}"', *_labels(*of)]) + "}", "value": 1}
        for of, names in fire.items()
        for name in names
    ]


def _labels(name: str, value: str) -> list[str]:
    return [] if name == "job" else [f'{name}="{value}"']


def test_they_fire_for_what_the_gateway_s_fire(need: Need, tmp_path: Path) -> None:
    """In a real Prometheus, at the same figures and at no others, and where the gateway is gone."""
    (tmp_path / "rules.yml").write_text(rule_file(ALL))
    late = _COUNT.replace("{", '{alertname="TcpgwImbalance", ')
    tests = [
        {"expr": _COUNT, "eval_time": "9m", "exp_samples": samples(FIRE)},
        {"expr": late, "eval_time": "11m", "exp_samples": samples({("service", "dead"): ["Imbalance"]})},
    ]
    panic = {
        "alertname": "TcpgwPanic",
        "eval_time": "9m",
        "exp_alerts": [
            {
                "exp_labels": {
                    "severity": "critical",
                    "service": "dead",
                    "job": "tcpgw",
                    "instance": "gw:9080",
                },
                "exp_annotations": {
                    "summary": "So few instances of dead are usable that all are used, the sick too",
                    "description": BY_ALERT["TcpgwPanic"].hint,
                },
            }
        ],
    }
    group = {
        "interval": "15s",
        "input_series": SERIES,
        "promql_expr_test": tests,
        "alert_rule_test": [panic, {"alertname": "TcpgwPanic", "eval_time": "2m", "exp_alerts": []}],
    }
    (tmp_path / "test.yml").write_text(
        json.dumps({"rule_files": ["rules.yml"], "evaluation_interval": "5s", "tests": [group]})
    )
    promtool(need, "test", tmp_path)
