"""What the built-in rules read and say, and by which terms."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgw.alerts.rules import BY_ALERT, KINDS, Kind, Labels, Rule, Terms, Unit, rules, summary
from tcpgw.config.alerts import Alerts, Condition, Limit, ServiceAlerts

KEYS = [key for key, value in Alerts() if isinstance(value, Condition) or value == "off"]
# Of the readings that the gateway makes, the labels.
LABELS = {
    "usable_endpoints": ("service",),
    "usable_share": ("service",),
    "error_ratio": ("service",),
    "p99_latency": ("service",),
    "discovery_age": ("service",),
    "imbalance": ("service",),
    "panic": ("service",),
    "budget_left_ratio": ("cloud",),
    "denials_rate": ("listener",),
    "worker_deaths": (),
    "certificate_left": ("listener", "kind"),
    "overloaded": (),
}
ALL_ON = Alerts.model_validate({"instances_below": {"threshold": 2}, "p99_latency": {"threshold": 1}})


def terms(key: str, labels: Labels = (), **more: Any) -> Terms | None:
    (rule,) = [rule for rule in rules(**{"alerts": ALL_ON, **more}) if rule.kind.key == key]
    return rule.terms_of((*rule.kind.only, *labels))


def test_each_key_has_a_rule() -> None:
    """And each rule a key, a name of its own, and labels that its reading has."""
    assert [kind.key for kind in KINDS] == sorted(KEYS, key=[kind.key for kind in KINDS].index)
    assert len(KINDS) == len(BY_ALERT) == len(KEYS)
    for kind in KINDS:
        assert kind.alert == "Tcpgw" + "".join(part.capitalize() for part in kind.key.split("_"))
        named = set(re.findall(r"{(\w+)}", kind.summary)) - {"value", "threshold"}
        assert named <= set(LABELS[kind.reading])


def test_what_is_of_services_can_be_said_for_one() -> None:
    """Every such rule, and no other."""
    of_services = {kind.key for kind in KINDS if LABELS[kind.reading] == ("service",)}
    assert of_services == set(ServiceAlerts.model_fields)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.key)
def test_texts_are_sentences_for_operators(kind: Kind) -> None:
    """What happened, with the values in it, and what to do."""
    labels = tuple((name, f"the-{name}") for name in LABELS[kind.reading])
    text = summary(kind, labels, 0.25, 0.5)
    assert "{" not in text
    assert all(f"the-{name}" in text for name in LABELS[kind.reading] if name != "kind")
    assert kind.hint.endswith(".")


def test_a_label_that_is_missing_costs_no_alert() -> None:
    """It stands in braces."""
    assert summary(BY_ALERT["TcpgwErrorRate"], (), 0.5, 0) == "50 % of what {service} is asked fails"


@pytest.mark.parametrize(
    ("unit", "value", "shown"),
    [
        (Unit.SHARE, 0.0512, "5.12 %"),
        (Unit.SHARE, 1, "100 %"),
        (Unit.SECONDS, 0.25, "250 ms"),
        (Unit.SECONDS, 90, "90 s"),
        (Unit.SECONDS, 300, "5 min"),
        (Unit.SECONDS, 86400, "24 h"),
        (Unit.SECONDS, 14 * 86400, "14 days"),
        (Unit.SECONDS, -86400 * 3, "-3 days"),
        (Unit.NUMBER, 3, "3"),
        (Unit.NUMBER, 2.71828, "2.718"),
    ],
)
def test_values_are_shown_in_their_units(unit: Unit, value: float, shown: str) -> None:
    """As people say them."""
    assert unit.shown(value) == shown


def test_terms_are_the_configuration_s() -> None:
    """Those of a service where it has its own, and none where a rule is off."""
    own = {
        "a": ServiceAlerts.model_validate({"error_rate": {"threshold": 0.5, "for": 7}, "panic": "off"}),
        "b": ServiceAlerts(),
    }
    assert terms("error_rate", (("service", "a"),), own=own) == Terms(0.5, 0.25, False, 7, "critical")
    assert terms("error_rate", (("service", "b"),), own=own) == Terms(0.05, 0.025, False, 60, "critical")
    assert terms("panic", (("service", "a"),), own=own) is None
    assert terms("panic", (("service", "c"),), own=own) == Terms(0, 0, False, 0, "critical")
    assert terms("panic", alerts=Alerts(panic="off")) is None
    assert terms("no_usable_instance") == Terms(1, 1, True, 10, "critical")


def test_who_is_asked_seldom_is_not_late_soon() -> None:
    """Three answers must be missing; a threshold that is longer stays."""
    late = terms("discovery_age", (("service", "a"),), refresh={"a": 3600.0})
    soon = terms("discovery_age", (("service", "a"),), refresh={"a": 10.0})
    assert late is not None
    assert (late.threshold, late.clear) == (10800, 8640)
    assert soon == terms("discovery_age")


def test_certificates_and_lists_are_told_apart() -> None:
    """By their kind: each has a rule of its own."""
    of = {
        kind: [rule.kind.key for rule in rules(Alerts()) if _concerns(rule, kind)]
        for kind in ("certificate", "crl")
    }
    assert of == {"certificate": ["certificate_expiry"], "crl": ["crl_expiry"]}


def _concerns(rule: Rule, kind: str) -> bool:
    return rule.kind.reading == "certificate_left" and rule.terms_of((("kind", kind),)) is not None


@given(st.floats(allow_nan=False), st.sampled_from(KINDS))
def test_nothing_is_good_and_bad(value: float, kind: Kind) -> None:
    """Whatever is read: what begins an alert does not end it."""
    found = terms(kind.key)
    assert found is not None
    assert not (found.breached(value) and found.cleared(value))


def test_directions_are_those_of_the_names() -> None:
    """A threshold that is exactly met is neither too much nor too little."""
    for rule in rules(ALL_ON):
        assert rule.terms is not None
        assert not rule.terms.breached(rule.terms.threshold)
        assert rule.terms.breached(rule.terms.threshold + (-1 if rule.terms.below else 1))
    conditions = [getattr(ALL_ON, key) for key in KEYS]
    assert sum(isinstance(condition, Limit) for condition in conditions) == len(KEYS) - 3
