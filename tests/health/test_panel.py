from tcpgw.endpoints import Endpoint
from tcpgw.health.panel import Change
from tcpgw.health.verdict import Outcome, State, Terms
from tests.support.panels import NOW, OUT, TRIAL, A, B, C, D, E, check, fail, panel_of, states, succeed


def test_the_unknown_are_used() -> None:
    """Before anything is known all are used, and nothing is due."""
    panel = panel_of(A, B, checks="")
    assert states(panel) == "??"
    assert panel.shares(NOW) == {}
    assert panel.next_at is None
    assert not panel.panic


def test_a_service_without_endpoints_is_in_no_panic() -> None:
    """Where there is nobody, nobody is sick."""
    panel = panel_of()
    assert panel.shares(NOW) == {}
    assert (panel.panic, panel.next_at) == (False, None)


def test_who_fails_its_checks_gets_nothing_until_they_pass() -> None:
    """Three failed checks take it out, two passed bring it back, with its whole share."""
    panel = panel_of(A, B, C)
    check(panel, "---", A)
    assert panel.shares(NOW) == {A: OUT}
    assert panel.changes() == [Change(A, State.HEALTHY, State.UNHEALTHY, "3 checks in a row failed: refused")]
    check(panel, "++", A)
    assert panel.shares(NOW) == {}
    assert panel.changes() == [Change(A, State.UNHEALTHY, State.HEALTHY, "2 checks in a row passed")]
    assert panel.changes() == []


def test_checks_are_ignored_where_they_are_off() -> None:
    """A late result of a check changes nothing after a reload that turned checks off."""
    panel = panel_of(A, B, terms=Terms(active=False), checks="---")
    assert states(panel) == "??"


def test_who_fails_its_clients_is_ejected_tried_and_back() -> None:
    """Five failures eject for 30 s; then a tenth of its weight, by chance, and three successes suffice."""
    panel = panel_of(A, B, C)
    fail(panel, A)
    assert panel.shares(NOW) == {A: OUT}
    assert panel.next_at == NOW + 30
    assert panel.ejections == 1
    panel.tick(NOW + 29.9)
    assert states(panel) == "xhh"
    panel.tick(NOW + 30)
    assert panel.shares(NOW + 30) == {A: TRIAL}
    assert panel.next_at is None
    succeed(panel, A, now=NOW + 31)
    assert panel.shares(NOW + 31) == {}
    assert panel.changes() == [
        Change(A, State.HEALTHY, State.EJECTED, "5 failed in a row: out for 30 s"),
        Change(A, State.EJECTED, State.TRIAL, "its ejection is over"),
        Change(A, State.TRIAL, State.HEALTHY, "3 succeeded in its trial"),
    ]


def test_a_failed_trial_ejects_for_longer() -> None:
    """One failure in its trial is enough, and then it is out for 60 s."""
    panel = panel_of(A, B, C)
    fail(panel, A)
    fail(panel, A, count=1, now=NOW + 40)
    assert states(panel) == "xhh"
    assert panel.next_at == NOW + 100
    assert panel.ejections == 2


def test_any_call_does_what_is_due() -> None:
    """What time alone does is done by whatever is called next, and not only by `tick`."""
    panel = panel_of(A, B, C)
    fail(panel, A)
    assert panel.shares(NOW + 30) == {A: TRIAL}


def test_at_most_half_are_ejected() -> None:
    """Of two, one; of three, one; of four, two; of five, two: the others are spared."""
    for endpoints, ejected in (((A, B), 1), ((A, B, C), 1), ((A, B, C, D), 2), ((A, B, C, D, E), 2)):
        panel = panel_of(*endpoints)
        fail(panel, *endpoints)
        assert states(panel) == ("x" * ejected).ljust(len(endpoints), "h")
        assert panel.ejections == ejected
        assert panel.spared == len(endpoints) - ejected
        assert not panel.panic


def test_who_is_in_trial_makes_room() -> None:
    """Those in trial count as out, but who fails for certain goes before who may work."""
    panel = panel_of(A, B, C)
    fail(panel, A)
    panel.changes()
    fail(panel, B, now=NOW + 30)
    assert states(panel) == "hxh"
    assert panel.ejections == 2
    assert panel.changes() == [
        Change(A, State.EJECTED, State.TRIAL, "its ejection is over"),
        Change(
            A, State.TRIAL, State.HEALTHY,
            f"released: {B} fails, and no more than 1 may be ejected (max_ejected)",
        ),
        Change(B, State.HEALTHY, State.EJECTED, "5 failed in a row: out for 30 s"),
    ]  # fmt: skip
    fail(panel, A, now=NOW + 31)
    assert states(panel) == "hxh"
    assert panel.spared == 1


def test_the_longest_in_trial_makes_room() -> None:
    """Of several in trial the one that was ejected first; the other's trial goes on."""
    panel = panel_of(A, B, C, D)
    fail(panel, B)
    fail(panel, A, now=NOW + 1)
    fail(panel, C, now=NOW + 31)
    assert states(panel) == "thxh"


def test_a_share_of_many_is_not_rounded_away() -> None:
    """29 % of a hundred are 29, whatever binary fractions make of it."""
    endpoints = [Endpoint("10.0.0.1", port) for port in range(1, 101)]
    panel = panel_of(*endpoints, terms=Terms(max_ejected=0.29))
    fail(panel, *endpoints)
    assert panel.ejections == 29


def test_shares_are_made_when_something_changes() -> None:
    """A check that finds what is known, and a success of what works, cost nothing for the other endpoints."""
    panel = panel_of(A, B)
    fail(panel, A)
    shares = panel.shares(NOW)
    check(panel, "+", A, B)
    succeed(panel, B)
    assert panel.shares(NOW + 29) is shares
    assert panel.shares(NOW + 30) == {A: TRIAL}


def test_the_only_instance_is_never_ejected() -> None:
    """With one endpoint there is nothing to be gained: it is spared, said once, until it succeeds."""
    panel = panel_of(A, terms=Terms(max_ejected=1.0))
    fail(panel, A)
    fail(panel, A)
    assert states(panel) == "h"
    assert panel.shares(NOW) == {}
    assert (panel.ejections, panel.spared) == (0, 1)
    why = "spared in spite of 5 failed in a row: no other endpoint is usable"
    assert panel.changes() == [Change(A, State.HEALTHY, State.HEALTHY, why)]
    succeed(panel, A)
    fail(panel, A)
    assert panel.spared == 2


def test_the_only_instance_is_used_though_its_checks_fail() -> None:
    """One sick endpoint of one is a panic, so it is used; 0 means never, and then nobody is."""
    panel = panel_of(A, checks="-")
    assert states(panel) == "u"
    assert panel.panic
    assert panel.shares(NOW) == {}
    panel = panel_of(A, checks="-", terms=Terms(panic=0.0))
    assert not panel.panic
    assert panel.shares(NOW) == {A: OUT}


def test_the_last_usable_is_never_ejected() -> None:
    """Beside one that its checks found unhealthy, failures eject nobody, room or not."""
    panel = panel_of(A, B)
    check(panel, "---", A)
    fail(panel, B)
    assert states(panel) == "uh"
    assert panel.shares(NOW) == {A: OUT}
    assert panel.changes()[-1].why == "spared in spite of 5 failed in a row: no other endpoint is usable"
    check(panel, "++", A)
    fail(panel, B, count=1)
    assert states(panel) == "hx"


def test_an_outcome_of_two_faces_is_told_in_order() -> None:
    """A success that comes with too many failures makes healthy first, and then ejects or spares."""
    terms = Terms(failures=2)
    for endpoints, after in (((A,), State.HEALTHY), ((A, B), State.EJECTED)):
        panel = panel_of(*endpoints, terms=terms, checks="")
        panel.happened(A, Outcome(1, 2, 2), NOW)
        changes = panel.changes()
        why = "2 failed in a row"
        if after is State.EJECTED:
            assert changes == [Change(A, State.UNKNOWN, State.EJECTED, f"{why}: out for 30 s")]
        else:
            assert changes[0] == Change(A, State.UNKNOWN, State.HEALTHY, "real traffic succeeded")
            assert changes[1][:3] == (A, State.HEALTHY, State.HEALTHY)
            assert why in changes[1].why


def test_a_trial_without_work_keeps_no_sick_one() -> None:
    """Of two, one in trial may get no work where keys choose: the other is ejected all the same."""
    panel = panel_of(A, B)
    fail(panel, A)
    fail(panel, B, now=NOW + 3600)
    assert states(panel) == "hx"
    assert panel.shares(NOW + 3600) == {B: OUT}


def test_who_is_in_trial_carries_where_there_is_room() -> None:
    """Without a release the one in trial is all that is left, and is given all of its weight."""
    panel = panel_of(A, B, C, terms=Terms(max_ejected=0.7, panic=0.0))
    fail(panel, A)
    check(panel, "---", C, now=NOW + 30)
    fail(panel, B, now=NOW + 30)
    assert states(panel) == "txu"
    assert panel.shares(NOW + 30) == {B: OUT, C: OUT}


def test_a_trial_with_nobody_else_goes_on() -> None:
    """Without a panic, one in trial that is all there is gets all, and is spared what would leave nobody."""
    panel = panel_of(A, B, C, D, terms=Terms(panic=0.0))
    fail(panel, A, B)
    assert panel.shares(NOW + 30) == {A: TRIAL, B: TRIAL}
    check(panel, "---", C, D, now=NOW + 30)
    assert panel.shares(NOW + 30) == {C: OUT, D: OUT}
    fail(panel, A, count=1, now=NOW + 30)
    assert states(panel) == "xtuu"
    fail(panel, B, count=1, now=NOW + 30)
    fail(panel, B, count=1, now=NOW + 30)
    assert states(panel) == "xtuu"
    assert (panel.ejections, panel.spared) == (3, 1)
    assert panel.changes()[-1] == Change(
        B, State.TRIAL, State.TRIAL, "spared in spite of a failure in its trial: no other endpoint is usable"
    )
    succeed(panel, B, count=1, now=NOW + 30)
    fail(panel, B, count=1, now=NOW + 30)
    assert panel.spared == 2
    succeed(panel, B, now=NOW + 30)
    assert states(panel) == "xhuu"


def test_the_ejected_are_used_where_the_last_falls_ill() -> None:
    """Without a panic, whom no check calls sick is back, the longest out first, and not in its own time."""
    panel = panel_of(A, B, C, D, terms=Terms(max_ejected=0.75, panic=0.0))
    fail(panel, A)
    fail(panel, C, now=NOW + 1)
    fail(panel, B, now=NOW + 2)
    check(panel, "---", A, D, now=NOW + 3)
    assert states(panel) == "uxhu"
    assert set(panel.shares(NOW + 3)) == {A, B, D}
    assert panel.changes()[-1] == Change(C, State.EJECTED, State.HEALTHY, "released: nobody is usable")
    check(panel, "---", B, C, now=NOW + 3)
    assert states(panel) == "uuuu"
    assert len(panel.shares(NOW + 3)) == 4


def test_a_sick_one_that_is_due_a_trial_is_no_help() -> None:
    """Where nobody is usable, the one that is released is one that no check calls sick."""
    panel = panel_of(A, B, C, terms=Terms(max_ejected=0.7, panic=0.0))
    fail(panel, A)
    check(panel, "---", A)
    fail(panel, B, now=NOW + 30)
    check(panel, "---", C, now=NOW + 30)
    assert states(panel) == "uhu"


def test_who_was_spared_once_may_be_spared_again() -> None:
    """That it was spared is forgotten when it is ejected, so that the next time is told too."""
    panel = panel_of(A, B, terms=Terms(panic=0.0))
    check(panel, "---", B)
    fail(panel, A)
    check(panel, "++", B)
    fail(panel, A)
    check(panel, "---", B)
    fail(panel, A, now=NOW + 30)
    assert states(panel) == "hu"
    assert panel.spared == 2


def test_half_sick_is_no_panic_and_more_is() -> None:
    """With half of them usable the sick get nothing; with less all are used, and each onset is counted."""
    panel = panel_of(A, B, C, D)
    check(panel, "---", A, B)
    assert panel.shares(NOW) == {A: OUT, B: OUT}
    assert (panel.panic, panel.panics) == (False, 0)
    check(panel, "---", C)
    check(panel, "---", D)
    assert panel.shares(NOW) == {}
    assert (panel.panic, panel.panics) == (True, 1)
    check(panel, "++", A, B)
    assert panel.shares(NOW) == {C: OUT, D: OUT}
    assert (panel.panic, panel.panics) == (False, 1)
    check(panel, "---", A)
    assert panel.panics == 2


def test_exactly_the_share_is_no_panic() -> None:
    """3 of 30 are a tenth, whatever binary fractions make of it."""
    endpoints = [Endpoint("10.0.0.1", port) for port in range(1, 31)]
    panel = panel_of(*endpoints, terms=Terms(panic=0.1))
    check(panel, "---", *endpoints[3:])
    assert not panel.panic
    check(panel, "---", endpoints[0])
    assert panel.panic


def test_all_down_and_back_by_checks() -> None:
    """All down is a panic, not an outage of the gateway's making; all back is as if nothing had been."""
    panel = panel_of(A, B, C)
    check(panel, "---", A, B, C)
    assert states(panel) == "uuu"
    assert panel.shares(NOW) == {}
    fail(panel, A, B, C, count=100)
    check(panel, "++", A, B, C)
    assert states(panel) == "hhh"
    assert panel.shares(NOW) == {}
    assert (panel.panic, panel.panics, panel.ejections) == (False, 1, 0)


def test_all_down_and_back_by_traffic() -> None:
    """Where traffic alone judges, some are always used while all fail, and soon all when they work again."""
    panel = panel_of(A, B, C, D, terms=Terms(active=False), checks="")
    now = NOW
    while now < NOW + 3600:
        fail(panel, A, B, C, D, now=now)
        assert sorted(states(panel)) == ["?", "?", "x", "x"]
        now += 10
    while now < NOW + 3600 + 300:
        succeed(panel, A, B, C, D, now=now)
        now += 10
    succeed(panel, A, B, C, D, now=now)
    assert states(panel) == "hhhh"
    assert panel.shares(now) == {}
    assert not panel.panics


def test_both_sides_judge_and_both_forgive() -> None:
    """Out by both, an instance is back only when its checks passed and its trial is over."""
    panel = panel_of(A, B, C)
    fail(panel, A)
    check(panel, "---", A)
    assert states(panel) == "uhh"
    assert panel.next_at == NOW + 30
    panel.tick(NOW + 30)
    assert panel.shares(NOW + 30) == {A: OUT}
    check(panel, "++", A, now=NOW + 31)
    assert panel.shares(NOW + 31) == {A: TRIAL}
    succeed(panel, A, now=NOW + 32)
    assert panel.shares(NOW + 32) == {}
    assert [(one.before, one.after) for one in panel.changes()] == [
        (State.HEALTHY, State.EJECTED),
        (State.EJECTED, State.UNHEALTHY),
        (State.UNHEALTHY, State.TRIAL),
        (State.TRIAL, State.HEALTHY),
    ]
