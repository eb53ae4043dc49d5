"""What a configuration may say of alerts, and what holds where it says nothing."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tcpgw.config.alerts import (
    Alerts,
    CallBudget,
    CertificateExpiry,
    Condition,
    Denials,
    ErrorRate,
    Imbalance,
    InstancesBelow,
    Limit,
    P99Latency,
    ServiceAlerts,
    UsableShare,
)
from tcpgw.config.load import load

VALID = Path(__file__).parent.parent / "data" / "valid"
RULES = [key for key, value in Alerts() if isinstance(value, Condition) or value == "off"]


def test_sensible_rules_are_on() -> None:
    """All but those whose threshold only the operator knows."""
    off = [key for key in RULES if Alerts().of(key) is None]
    assert len(RULES) == 14
    assert off == ["instances_below", "p99_latency"]


def test_receivers_are_not() -> None:
    """Nobody is called who is not named; the rhythm is Alertmanager's, or quicker."""
    alerts = Alerts()
    assert (alerts.webhook, alerts.alertmanager, alerts.labels) == ({}, None, {})
    assert (alerts.group_wait, alerts.group_interval, alerts.repeat) == (10, 60, 14400)
    assert (alerts.keep_firing_for, alerts.min_volume) == (30, 20)


def test_the_sample_is_read_as_it_was_written() -> None:
    """Durations are seconds, secrets are fetched, addresses have no closing slash."""
    config = load(VALID / "alerts.toml")
    alerts, (ranker, rest) = config.alerts, config.service
    assert isinstance(alerts.p99_latency, P99Latency)
    assert (alerts.p99_latency.threshold, alerts.p99_latency.clear, alerts.p99_latency.wait) == (
        0.5,
        0.25,
        600,
    )
    webhook = alerts.webhook["on-call"]
    assert webhook.url.get_secret_value() == "https://chat.example.com/hook?key=from-the-environment"
    assert webhook.bearer is not None
    assert webhook.bearer.get_secret_value() == "token-from-a-file"
    assert alerts.alertmanager is not None
    assert alerts.alertmanager.urls == ("http://10.0.0.5:9093", "http://10.0.0.6:9093/alertmanager")
    assert rest.alerts == ServiceAlerts()
    assert ranker.alerts.error_rate == ErrorRate.model_validate({"for": 300})


def test_a_service_may_have_rules_of_its_own() -> None:
    """Whole ones, or none; what it does not name is as for all."""
    alerts = Alerts(error_rate=ErrorRate(threshold=0.5, severity="warning"), panic="off")
    own = ServiceAlerts(error_rate=ErrorRate(threshold=0.1), imbalance="off")
    assert alerts.of("error_rate", own) == ErrorRate(threshold=0.1)
    assert alerts.of("imbalance", own) is None
    assert alerts.of("usable_share", own) == UsableShare()
    assert alerts.of("panic", own) is None
    assert alerts.of("denials", own) == Denials()


@pytest.mark.parametrize(
    ("rule", "clears_at"),
    [
        (ErrorRate(threshold=0.1), 0.05),
        (ErrorRate(threshold=0.1, clear=0), 0),
        (UsableShare(threshold=0.5), 0.6),
        (UsableShare(threshold=0.9), 1),
        (CallBudget(threshold=0.8), 1),
        (P99Latency(threshold=2), 1.6),
        (InstancesBelow(threshold=3), 3),
        (CertificateExpiry(), 14 * 86400),
        (Imbalance(threshold=2), 1.8),
        (Imbalance(threshold=1.2), 1.16),
        (Imbalance(threshold=1), 1),
        (Imbalance(threshold=1.2, clear=1.05), 1.05),
    ],
)
def test_where_an_alert_is_over(rule: Limit, clears_at: float) -> None:
    """Somewhat on the good side of the threshold, or where the operator says."""
    assert rule.clears_at == pytest.approx(clears_at)


@given(st.floats(0, 1), st.floats(0, 1))
def test_an_alert_is_never_over_on_the_bad_side(threshold: float, clear: float) -> None:
    """Neither above nor below."""
    for kind in (ErrorRate, UsableShare):
        rule = {"threshold": threshold, "clear": clear}
        if clear == threshold or (clear > threshold) is kind.BELOW:
            assert kind.model_validate(rule).clears_at == clear
        else:
            with pytest.raises(ValidationError, match=r"must be at (least|most) threshold"):
                kind.model_validate(rule)
        derived = kind(threshold=threshold).clears_at
        assert derived >= threshold if kind.BELOW else derived <= threshold


@given(st.floats(1, 1000))
def test_an_imbalance_can_be_over(threshold: float) -> None:
    """At something that instances can have: the most used one never gets less than its part."""
    assert 1 <= Imbalance(threshold=threshold).clears_at <= threshold


def test_an_imbalance_that_could_never_be_over_is_refused() -> None:
    """Below even there is nothing, also where the operator writes it."""
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        Imbalance(threshold=1.2, clear=0.9)


@pytest.mark.parametrize("table", [{"wait": 1}, {"for": -1}, {"for": False}])
def test_for_has_one_name(table: dict[str, Any]) -> None:
    """That of the file, and it is a time."""
    assert ErrorRate.model_validate({"for": 0}).wait == 0
    with pytest.raises(ValidationError):
        ErrorRate.model_validate(table)
