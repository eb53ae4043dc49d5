"""What a panel makes of other snapshots, of slow start and of other terms."""

import pytest

from tcpgw.balancing.standing import Share
from tcpgw.endpoints import Endpoint
from tcpgw.health.panel import Change, Panel
from tcpgw.health.verdict import State, Terms, Verdict
from tests.support.panels import NOW, OUT, A, B, C, D, E, check, fail, panel_of, states, succeed

STRANGER = Endpoint("10.9.9.9", 9)


def test_a_snapshot_is_told_as_changes() -> None:
    """Who comes, drains and goes is told, in an order that does not depend on chance."""
    panel = Panel(Terms())
    panel.retain({A: 1, B: 0, C: 2}, NOW)
    assert panel.changes() == [
        Change(A, State.REMOVED, State.UNKNOWN, "weight 1 in the snapshot"),
        Change(B, State.REMOVED, State.DRAINING, "weight 0 in the snapshot"),
        Change(C, State.REMOVED, State.UNKNOWN, "weight 2 in the snapshot"),
    ]
    panel.retain({A: 3, B: 0, C: 2}, NOW)
    assert panel.changes() == []
    panel.retain({C: 0}, NOW)
    assert panel.changes() == [
        Change(A, State.UNKNOWN, State.REMOVED, "no longer in the snapshot"),
        Change(B, State.DRAINING, State.REMOVED, "no longer in the snapshot"),
        Change(C, State.UNKNOWN, State.DRAINING, "weight 0 in the snapshot"),
    ]


def test_changes_that_nobody_asks_for_are_bounded() -> None:
    """The newest 10,000 changes are kept."""
    panel = Panel(Terms())
    for turn in range(5100):
        panel.retain({A: 1 - turn % 2, B: 1 - turn % 2}, NOW)
    assert len(panel.changes()) == 10_000


def test_who_drains_is_judged_no_more() -> None:
    """Weight 0 is named in no share, counted in no share of all, and what is told of it is passed over."""
    panel = panel_of(A, B, C)
    fail(panel, A)
    panel.retain({A: 0, B: 1, C: 1}, NOW)
    fail(panel, A, B)
    check(panel, "---", A)
    assert states(panel) == "dxh"
    assert panel.shares(NOW) == {B: OUT}
    assert not panel.in_transition(A)
    panel.retain({A: 1, B: 1, C: 1}, NOW)
    assert states(panel) == "?xh"
    assert panel.in_transition(A)


def test_strangers_are_passed_over() -> None:
    """Late reports of an endpoint that left do nothing."""
    panel = panel_of(A, B)
    fail(panel, STRANGER)
    check(panel, "---", STRANGER)
    assert not panel.in_transition(STRANGER)
    assert panel.states == {A: State.HEALTHY, B: State.HEALTHY}
    assert panel.changes() == []


def test_who_returns_is_new() -> None:
    """An endpoint that left and is back is unknown, whatever it was."""
    panel = panel_of(A, B, C)
    fail(panel, A)
    panel.retain({B: 1, C: 1}, NOW)
    assert panel.next_at is None
    panel.retain({A: 1, B: 1, C: 1}, NOW)
    assert states(panel) == "?hh"


def test_those_that_are_too_many_are_released() -> None:
    """When others leave, who is in trial is released first, then who was ejected longest ago."""
    panel = panel_of(A, B, C, D, E, Endpoint("10.0.0.1", 6))
    fail(panel, C, now=NOW)
    fail(panel, C, count=1, now=NOW + 30)
    fail(panel, A, B, now=NOW + 31)
    fail(panel, A, count=1, now=NOW + 61)
    assert states(panel) == "xtxhhh"
    panel.changes()
    panel.retain({A: 1, B: 1, C: 1, D: 1, E: 1}, NOW + 62)
    assert states(panel) == "xhxhh"
    why = "released: no more than 2 may be ejected (max_ejected)"
    assert panel.changes()[-1] == Change(B, State.TRIAL, State.HEALTHY, why)
    panel.retain({A: 1, B: 0, C: 1, D: 1}, NOW + 62)
    assert states(panel) == "xdhh"


def test_the_last_that_is_left_is_released() -> None:
    """When all others leave, the one that was ejected is used again; how often it was is not forgotten."""
    panel = panel_of(A, B, terms=Terms(max_ejected=1.0, panic=0.0))
    fail(panel, A)
    fail(panel, A, count=1, now=NOW + 30)
    panel.retain({A: 1}, NOW + 31)
    assert states(panel) == "h"
    assert panel.shares(NOW + 31) == {}
    assert panel.next_at is None
    panel.retain({A: 1, B: 1}, NOW + 32)
    fail(panel, A, now=NOW + 32)
    assert panel.next_at == NOW + 32 + 90


SLOW = Terms(slow_start=10.0)


def ramp(seconds: float) -> Share:
    return Share(0.1 + 0.9 * seconds / 10.0, by_key=True)


def test_new_endpoints_start_slowly() -> None:
    """Not those of the first snapshot; later ones go from a tenth to all in ten seconds, one step in each."""
    panel = panel_of(A, B, terms=SLOW)
    assert panel.shares(NOW) == {}
    panel.retain({A: 1, B: 1, C: 1}, NOW)
    assert panel.shares(NOW) == {C: Share(0.1, by_key=True)}
    check(panel, "+", C)
    for second in range(10):
        assert panel.shares(NOW + second) == {C: ramp(second)}
        assert panel.next_at == NOW + second + 1
    panel.tick(NOW + 10)
    assert panel.shares(NOW + 10) == {}
    assert panel.next_at is None


def test_slow_starts_move_on_whole_seconds() -> None:
    """Those that began at different moments move together, so that workers are told once a second."""
    panel = panel_of(A, B, terms=SLOW)
    panel.retain({A: 1, B: 1, C: 1}, NOW + 0.25)
    panel.retain({A: 1, B: 1, C: 1, D: 1}, NOW + 0.75)
    assert panel.next_at == NOW + 1
    assert panel.shares(NOW + 1) == {C: ramp(0.75), D: ramp(0.25)}
    assert panel.next_at == NOW + 2
    panel.tick(NOW + 10.5)
    assert panel.next_at == NOW + 11
    panel.tick(NOW + 11)
    assert panel.next_at is None


@pytest.mark.parametrize("way", ["checks", "trial", "drain"])
def test_who_comes_back_starts_slowly(way: str) -> None:
    """After failed checks, after a trial, after draining: what got nothing is not given all at once."""
    panel = panel_of(A, B, C, terms=SLOW)
    now = NOW + 30
    if way == "checks":
        check(panel, "---++", A, now=now)
    elif way == "trial":
        fail(panel, A)
        succeed(panel, A, now=now)
    else:
        panel.retain({A: 0, B: 1, C: 1}, now)
        panel.retain({A: 1, B: 1, C: 1}, now)
    assert panel.shares(now + 1) == {A: ramp(1)}
    check(panel, "---", A, now=now + 2)
    assert panel.shares(now + 3) == {A: OUT}
    assert panel.next_at is None
    check(panel, "++", A, now=now + 4)
    assert panel.shares(now + 5) == {A: ramp(1)}


def test_where_all_start_slowly_the_first_gets_all() -> None:
    """Slow start leaves work to others: where there are none, the foremost has its whole share."""
    panel = panel_of(A, B, terms=SLOW)
    panel.retain({C: 1, D: 1}, NOW)
    assert panel.shares(NOW + 2) == {}
    panel.retain({C: 1, D: 1, E: 1}, NOW + 4)
    assert panel.shares(NOW + 4) == {E: Share(0.1 / ramp(4).value, by_key=True)}
    assert panel.shares(NOW + 10) == {E: ramp(6)}


def test_the_end_of_a_panic_is_no_slow_start() -> None:
    """Who is found usable in a panic had all of its weight: else the one that is not new would get it all."""
    panel = panel_of(A, B, C, D, terms=SLOW)
    check(panel, "---", A, B, C)
    assert panel.panic
    check(panel, "++", A, now=NOW + 1)
    assert not panel.panic
    assert panel.shares(NOW + 1) == {B: OUT, C: OUT}
    assert panel.next_at is None
    check(panel, "++", B, now=NOW + 2)
    assert panel.shares(NOW + 2) == {B: ramp(0), C: OUT}


def test_a_reload_keeps_states() -> None:
    """Other terms take nothing back: who is out stays out as long as it was told, and is judged on."""
    panel = panel_of(A, B, C, D)
    check(panel, "---", A)
    fail(panel, B)
    panel.change(Terms(rise=1, ejection=1.0), NOW)
    assert states(panel) == "uxhh"
    assert panel.next_at == NOW + 30
    check(panel, "+", A)
    assert states(panel) == "hxhh"


def test_a_reload_that_allows_less_releases() -> None:
    """Where fewer may be ejected than are, the ones ejected first are back."""
    panel = panel_of(A, B, C, D)
    fail(panel, A)
    fail(panel, B, now=NOW + 1)
    panel.change(Terms(max_ejected=0.25), NOW + 2)
    assert states(panel) == "hxhh"


def test_a_reload_that_sets_another_panic_is_in_force_at_once() -> None:
    """Whether it is a panic is found anew with each reload."""
    panel = panel_of(A, B, C, D)
    check(panel, "---", A, B)
    panel.change(Terms(panic=0.6), NOW)
    assert panel.panic
    panel.change(Terms(panic=0.0), NOW)
    assert not panel.panic


def test_a_side_that_is_turned_off_takes_its_findings_along() -> None:
    """Without checks nobody is unhealthy, without passive observation nobody ejected or in trial."""
    panel = panel_of(A, B, C, D)
    check(panel, "---", A)
    fail(panel, B)
    panel.change(Terms(active=False), NOW)
    assert states(panel) == "?xhh"
    panel.change(Terms(passive=False), NOW)
    assert states(panel) == "?hhh"
    assert panel.changes()[-1] == Change(
        B, State.EJECTED, State.HEALTHY, "the configuration judges by other means"
    )
    fail(panel, A, B)
    assert panel.ejections == 1


def test_turning_slow_start_off_ends_it() -> None:
    """A reload without slow start gives all that ramp their whole share."""
    panel = panel_of(A, B, terms=SLOW)
    panel.retain({A: 1, B: 1, C: 1}, NOW + 0.5)
    panel.change(Terms(), NOW + 0.5)
    assert panel.shares(NOW + 0.5) == {}
    assert panel.next_at is None


def test_a_change_costs_nothing_for_each_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who looks at all endpoints is who asks for shares or `next_at`, however many changed before."""
    looked: list[float] = []
    look = Verdict.ramp

    def ramp(verdict: Verdict, slow_start: float, now: float) -> float:
        looked.append(now)
        return look(verdict, slow_start, now)

    monkeypatch.setattr(Verdict, "ramp", ramp)
    panel = panel_of(A, terms=SLOW)
    endpoints = [Endpoint("10.0.0.2", port) for port in range(1, 101)]
    panel.retain(dict.fromkeys(endpoints, 1), NOW)
    check(panel, "+", *endpoints)
    succeed(panel, *endpoints)
    assert looked == []
    for _ in range(2):
        assert panel.next_at == NOW + 1
        assert len(looked) == 100
