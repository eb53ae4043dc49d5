"""Which alerts fire, and until when."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tcpgw.alerts.engine import KEPT, KEPT_FOR, MOST, Alert, Changed, Engine
from tcpgw.alerts.rules import Labels, Readings, rules
from tcpgw.config.alerts import Alerts, ServiceAlerts

WALL = 1_750_000_000.0
KEEP = 30.0


def of(service: str) -> Labels:
    return (("service", service),)


def errors(**ratios: float) -> Readings:
    return {"error_ratio": {of(service): ratio for service, ratio in ratios.items()}}


class Watched:
    """An engine with a clock."""

    def __init__(self, **alerts: Any) -> None:
        rule = {"error_rate": {"threshold": 0.1, "clear": 0.05, "for": 60}}
        self.engine = Engine(rules(Alerts.model_validate(rule | alerts)), KEEP)
        self.now = 1000.0

    def after(self, seconds: float, readings: Readings) -> Changed:
        self.now += seconds
        return self.engine.look(readings, self.now, WALL + self.now)

    def fired(self, seconds: float, readings: Readings) -> list[str]:
        return [alert.name for alert in self.after(seconds, readings).fired]

    def resolved(self, seconds: float, readings: Readings) -> list[str]:
        return [alert.name for alert in self.after(seconds, readings).resolved]

    @property
    def states(self) -> list[str]:
        return [alert.state for alert in self.engine.alerts]


FIRES = ["TcpgwErrorRate"]


def test_it_fires_once_it_has_held_for_long_enough() -> None:
    """Pending before, and told of once."""
    watched = Watched()
    assert watched.fired(0, errors(a=0.2)) == []
    assert watched.states == ["pending"]
    assert watched.fired(59, errors(a=0.3)) == []
    assert watched.fired(1, errors(a=0.2)) == FIRES
    assert watched.fired(1, errors(a=0.2)) == []
    assert watched.states == ["firing"]


def test_a_moment_of_health_begins_it_anew() -> None:
    """It must hold at every look; what vanishes does not hold."""
    watched = Watched()
    watched.after(0, errors(a=0.2))
    watched.after(50, errors(a=0.1))
    assert watched.states == []
    watched.after(1, errors(a=0.2))
    watched.after(50, {})
    assert watched.states == []
    watched.after(1, errors(a=0.2))
    assert watched.fired(59, errors(a=0.2)) == []
    assert watched.fired(1, errors(a=0.2)) == FIRES


def test_without_a_wait_it_fires_at_once() -> None:
    """With one look."""
    watched = Watched()
    (alert,) = watched.after(0, {"panic": {of("a"): 1.0}}).fired
    assert alert == Alert(
        "TcpgwPanic", of("a"), "critical", "firing", since=WALL + 1000, value=1.0, threshold=0.0
    )
    assert alert.summary == "So few instances of a are usable that all are used, the sick too"
    assert "endpoint_state" in alert.hint


def test_between_the_thresholds_nothing_changes() -> None:
    """It neither ends there nor begins."""
    watched = Watched()
    watched.after(0, errors(a=0.2, b=0.07))
    watched.after(60, errors(a=0.2, b=0.07))
    for _ in range(10):
        assert watched.after(KEEP, errors(a=0.07, b=0.07)) == Changed([], [])
    assert watched.states == ["firing"]


def test_it_is_over_once_it_has_been_good_for_long_enough() -> None:
    """At or beyond the second threshold, or gone; swinging back in between begins that anew."""
    watched = Watched()
    watched.after(0, errors(a=0.2))
    watched.after(60, errors(a=0.2))
    assert watched.resolved(1, errors(a=0.05)) == []
    assert watched.resolved(29, {}) == []
    assert watched.resolved(0.5, errors(a=0.06)) == []
    assert watched.resolved(1, errors(a=0.01)) == []
    assert watched.resolved(29, errors(a=0.01)) == []
    assert watched.resolved(1, errors(a=0.01)) == FIRES
    assert watched.states == ["resolved"]
    assert watched.resolved(100, errors(a=0.01)) == []


@pytest.mark.parametrize("nothing", [{}, errors(), errors(a=float("nan")), errors(a=float("inf"))])
def test_a_reading_that_vanishes_ends_it(nothing: Readings) -> None:
    """With its service, its listener or its traffic; so does one that is no number."""
    watched = Watched()
    watched.after(0, errors(a=0.2))
    watched.after(60, errors(a=0.2))
    watched.after(1, nothing)
    (alert,) = watched.after(30, nothing).resolved
    assert (alert.value, alert.ended, alert.since) == (0.2, WALL + 1091, WALL + 1060)


def test_its_value_says_why_it_is_there() -> None:
    """The last bad one, however good it is by now; when it is over, its summary says that."""
    watched = Watched()
    watched.after(0, errors(a=0.2))
    watched.after(60, errors(a=0.3))
    watched.after(1, errors(a=0.0))
    assert [alert.value for alert in watched.engine.firing] == [0.3]
    (alert,) = watched.after(30, errors(a=0.0)).resolved
    assert (alert.value, alert.summary) == (0.3, "Over: 30 % of what a is asked fails")


def test_it_fires_again_as_a_new_one() -> None:
    """After the whole wait."""
    watched = Watched(error_rate={"threshold": 0.1, "for": 10})
    watched.after(0, errors(a=0.2))
    watched.after(10, errors(a=0.2))
    watched.after(1, {})
    assert watched.resolved(30, {}) == FIRES
    watched.after(1, errors(a=0.2))
    assert watched.fired(10, errors(a=0.2)) == FIRES
    assert watched.states == ["firing", "resolved"]
    assert [alert.since for alert in watched.engine.alerts] == [WALL + 1052, WALL + 1010]


def test_each_set_of_labels_has_an_alert() -> None:
    """One does not wait for another."""
    watched = Watched()
    watched.after(0, errors(a=0.2))
    watched.after(30, errors(a=0.2, b=0.2))
    assert [alert.labels for alert in watched.after(30, errors(a=0.2, b=0.2)).fired] == [of("a")]
    assert [alert.labels for alert in watched.after(30, errors(a=0.2, b=0.2)).fired] == [of("b")]
    assert [alert.labels for alert in watched.engine.firing] == [of("a"), of("b")]


def test_too_low_is_a_reason_too() -> None:
    """For what must not fall below its threshold."""
    watched = Watched(usable_share={"threshold": 0.5, "clear": 0.75, "for": 0})
    share = {value: {"usable_share": {of("a"): value}} for value in (0.4, 0.5, 0.7, 0.75)}
    assert watched.fired(0, share[0.5]) == []
    assert watched.fired(0, share[0.4]) == ["TcpgwUsableShare"]
    watched.after(1, share[0.7])
    assert watched.resolved(30, share[0.7]) == []
    watched.after(1, share[0.75])
    assert watched.resolved(30, share[0.75]) == ["TcpgwUsableShare"]


# ---- other rules ----


def test_rules_change_under_an_alert() -> None:
    """What fires goes on by the new terms; what waits may have waited long enough."""
    watched = Watched()
    watched.after(0, errors(a=0.2, b=0.2))
    watched.after(60, errors(a=0.2))
    watched.after(1, errors(a=0.2, b=0.2))
    changed = {"error_rate": {"threshold": 0.15, "clear": 0.14, "for": 0, "severity": "warning"}}
    watched.engine.change(rules(Alerts.model_validate(changed)), 0)
    assert [alert.labels for alert in watched.after(1, errors(a=0.2, b=0.2)).fired] == [of("b")]
    assert {alert.severity for alert in watched.engine.firing} == {"warning"}
    assert watched.resolved(1, errors(a=0.14, b=0.145)) == FIRES


@pytest.mark.parametrize("own", [{}, {"a": ServiceAlerts(error_rate="off")}])
def test_a_rule_that_is_off_has_no_alerts(own: dict[str, ServiceAlerts]) -> None:
    """Those that fire are over at once, for all or for that service."""
    watched = Watched()
    watched.after(0, errors(a=0.2))
    watched.after(60, errors(a=0.2, b=0.2))
    watched.engine.change(rules(Alerts() if own else Alerts(error_rate="off"), own), KEEP)
    assert [alert.labels for alert in watched.after(1, errors(a=0.2, b=0.2)).resolved] == [of("a")]
    assert watched.states == (["pending", "resolved"] if own else ["resolved"])


# ---- bounds ----


def test_a_rule_has_so_many_alerts_at_most() -> None:
    """The first keep their places, the rest are counted; who leaves makes room."""
    watched = Watched(error_rate={"threshold": 0.1, "for": 0})
    many = errors(**{f"s{number}": 0.2 for number in range(MOST + 3)})
    assert len(watched.after(0, many).fired) == MOST
    assert watched.engine.left_out == {"TcpgwErrorRate": 3}
    rest = {"error_ratio": dict(list(many["error_ratio"].items())[3:])}
    watched.after(1, rest)
    watched.after(30, rest)
    assert len(watched.after(1, rest).fired) == 3
    assert watched.engine.left_out == {}


def test_what_is_over_is_kept_for_a_day() -> None:
    """And no more than some of it, the latest first."""
    watched = Watched(error_rate={"threshold": 0.1, "for": 0})
    for number in range(KEPT + 5):
        watched.after(0, errors(**{f"s{number}": 0.2}))
        watched.after(1, {})
        watched.after(30, {})
    assert [alert.labels for alert in watched.engine.alerts] == [
        of(f"s{number}") for number in reversed(range(5, KEPT + 5))
    ]
    watched.after(KEPT_FOR + 1, {})
    assert watched.states == []


# ---- all together ----


class EngineMachine(RuleBasedStateMachine):
    """Beside each alert its whole history is kept, and what must follow from it is worked out anew."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = Engine(rules(Alerts.model_validate({"error_rate": self.terms}), {}), KEEP)
        self.now = 0.0
        self.history: dict[str, list[tuple[float, float | None]]] = {name: [] for name in "abc"}
        self.firing: dict[str, float] = {}

    terms: dict[str, Any] = {"threshold": 0.5, "clear": 0.25, "for": 10}  # noqa: RUF012

    def held(self, name: str, holds: Any) -> float:
        """Seconds up to now for which it did, at every look."""
        since = self.now
        for at, value in reversed(self.history[name]):
            if not holds(value):
                break
            since = at
        return self.now - since

    @rule(
        step=st.sampled_from([0.5, 1, 5, 10, 15, 30]),
        values=st.fixed_dictionaries(
            {}, optional={name: st.sampled_from([0, 0.25, 0.3, 0.5, 0.6]) for name in "abc"}
        ),
        times=st.integers(1, 4),
    )
    def look(self, step: float, values: dict[str, float], times: int) -> None:
        for _ in range(times):
            self.now += step
            changed = self.engine.look(errors(**values), self.now, WALL + self.now)
            fired = {dict(alert.labels)["service"] for alert in changed.fired}
            resolved = {dict(alert.labels)["service"] for alert in changed.resolved}
            for name in "abc":
                self.history[name].append((self.now, values.get(name)))
                before = name in self.firing
                bad = values.get(name, 0) > 0.5 and self.held(name, lambda value: (value or 0) > 0.5) >= 10
                good = (
                    values.get(name, 0) <= 0.25
                    and self.held(name, lambda value: (value or 0) <= 0.25) >= KEEP
                )
                assert (name in fired) is (bad and not before)
                assert (name in resolved) is (good and before)
                if name in fired:
                    self.firing[name] = self.now
                elif name in resolved:
                    del self.firing[name]
                    # A new alert is of what comes from now on.
                    self.history[name] = []

    @invariant()
    def what_fires_is_told(self) -> None:
        found = {dict(alert.labels)["service"]: alert.since - WALL for alert in self.engine.firing}
        assert found == pytest.approx(self.firing)

    @invariant()
    def nothing_else_is_kept(self) -> None:
        for alert in self.engine.alerts:
            assert alert.ended is None or alert.ended >= alert.since
        pending = [alert for alert in self.engine.alerts if alert.state == "pending"]
        assert all(alert.value > 0.5 for alert in pending)


TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)
