"""Grafana's dashboard: what it asks for exists, Prometheus can read it, and Grafana can place it."""

import json
import re
import subprocess
from collections.abc import Iterator
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Need
from tests.support.metric_names import METRICS, labels_named, named

DASHBOARD: dict[str, Any] = json.loads(
    files("tcpgw.monitoring").joinpath("dashboard.json").read_text(encoding="utf-8")
)
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
VARIABLES = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def expressions() -> Iterator[str]:
    """All that it asks Prometheus for, with something for its variables."""
    asked = [target["expr"] for panel in PANELS for target in panel.get("targets", ())]
    asked += [annotation["expr"] for annotation in DASHBOARD["annotations"]["list"]]
    return (
        expression.replace("$__rate_interval", "1m").replace("$instance", ".*").replace("$service", ".*")
        for expression in asked
    )


EXPRESSIONS = list(expressions())


def test_it_asks_for_something() -> None:
    """Otherwise the tests of each would pass whatever it says."""
    assert len(EXPRESSIONS) > 50
    assert len(PANELS) > 30


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_metric_exists(expression: str) -> None:
    """With the labels by which it is selected and summed."""
    metrics = named(expression)
    assert metrics
    assert metrics <= METRICS.keys()
    assert labels_named(expression) <= set[str]().union(*(METRICS[name] for name in metrics))


def test_nothing_is_left_out() -> None:
    """Every metric has its place, but those that only tell of others."""
    elsewhere = {
        "tcpgw_build_info",  # the variable's
        "tcpgw_start_time_seconds",
        "tcpgw_connections_accepted_total",
        "tcpgw_endpoint_state",  # what the status page has
        "tcpgw_endpoint_weight",
        "tcpgw_endpoint_connects_total",
        "tcpgw_snapshot_version",
        "tcpgw_snapshot_taken_timestamp_seconds",
        "tcpgw_panics_total",
        "tcpgw_overloads_total",
        "tcpgw_config_reloads_total",
        "tcpgw_discovery_refresh_seconds",  # what an age is measured by
        "tcpgw_alert_notifications_total",
    }
    assert METRICS.keys() - set[str]().union(*map(named, EXPRESSIONS)) == elsewhere


def test_prometheus_can_read_every_expression(need: Need, tmp_path: Path) -> None:
    """As a rule file of them."""
    rules = [{"record": f"r:{number}", "expr": one} for number, one in enumerate(EXPRESSIONS)]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "g", "rules": rules}]}))
    command = [need("promtool"), "check", "rules", str(tmp_path / "rules.yml")]
    out = subprocess.run(command, check=False, capture_output=True, text=True)
    assert out.returncode == 0, out.stdout + out.stderr
    assert f"{len(EXPRESSIONS)} rules found" in out.stdout


def test_variables_are_those_that_are_used() -> None:
    """The data source, the gateway and the service; each one exists."""
    assert VARIABLES.keys() == {"datasource", "instance", "service"}
    used = set(re.findall(r"\$\{?([a-z]+)", json.dumps([PANELS, DASHBOARD["templating"]])))
    assert used == VARIABLES.keys()
    for name in ("instance", "service"):
        assert named(VARIABLES[name]["definition"]) <= METRICS.keys()


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: f"{panel['id']} {panel['title']}")
def test_a_panel_is_whole(panel: dict[str, Any]) -> None:
    """It has what Grafana needs to show it, and says what it shows."""
    assert panel["title"]
    assert panel["gridPos"].keys() == {"x", "y", "w", "h"}
    if panel["type"] == "row":
        assert panel["panels"] == []
        return
    assert panel["type"] in {"stat", "timeseries"}
    assert panel["description"].endswith(".")
    assert panel["datasource"] == SOURCE
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert [target["refId"] for target in panel["targets"]] == list("ABCDEF"[: len(panel["targets"])])
    for target in panel["targets"]:
        assert target["datasource"] == SOURCE
        # A legend that names a label which the expression sums away is empty.
        kept = labels_named(target["expr"]) | {"instance"}
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= kept


def test_panels_do_not_lie_over_one_another() -> None:
    """Each has a number and a place of its own, within the 24 columns."""
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    places = [panel["gridPos"] for panel in PANELS]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below


def test_it_can_be_imported() -> None:
    """Grafana reads a model of this version, under a name that stays, and gives it an id itself."""
    assert DASHBOARD["schemaVersion"] == 38
    assert (DASHBOARD["title"], DASHBOARD["uid"]) == ("tcpgw", "tcpgw")
    assert "id" not in DASHBOARD
