import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgw.health.verdict import Facts, Finding, Outcome, State, Terms, Verdict

TERMS = Terms()
NOW = 1000.0


def verdict_of(checks: str = "", terms: Terms = TERMS) -> Verdict:
    """Make a verdict that has seen checks: `+` one that passed, `-` one that failed."""
    verdict = Verdict()
    for sign in checks:
        verdict.checked(sign == "+", terms, "")
    return verdict


def fails(count: int) -> Outcome:
    return Outcome(0, count, count)


def works(count: int = 1) -> Outcome:
    return Outcome(count, 0, 0)


def tried(checks: str = "+", terms: Terms = TERMS, now: float = NOW) -> Verdict:
    """Make a verdict that is in its first trial."""
    verdict = verdict_of(checks, terms)
    verdict.eject(terms, now)
    verdict.begin_trial()
    return verdict


def test_defaults_are_those_that_operators_expect() -> None:
    """The design's table: fall 3, rise 2, 5 failures, 30 s to 300 s, half of them, panic below half."""
    assert Terms() == Terms(
        active=True,
        rise=2,
        fall=3,
        passive=True,
        failures=5,
        failure_rate=0.0,
        window=10.0,
        min_volume=20,
        ejection=30.0,
        max_ejection=300.0,
        max_ejected=0.5,
        trial_share=0.1,
        trial_successes=3,
        panic=0.5,
        slow_start=0.0,
    )


@pytest.mark.parametrize(
    ("checks", "state"),
    [
        ("", State.UNKNOWN),
        ("+", State.HEALTHY),
        ("-", State.UNHEALTHY),
        ("+--", State.HEALTHY),
        ("+--+--", State.HEALTHY),
        ("+---", State.UNHEALTHY),
        ("+---+", State.UNHEALTHY),
        ("+---+-+", State.UNHEALTHY),
        ("+---++", State.HEALTHY),
        ("-++--", State.HEALTHY),
    ],
)
def test_checks_in_a_row_decide(checks: str, state: State) -> None:
    """The first check decides; then `fall` in a row are needed to go down and `rise` to come up."""
    verdict = verdict_of(checks)
    assert verdict.facts.state is state
    assert verdict.facts.usable == (state is not State.UNHEALTHY)


def test_a_check_says_why() -> None:
    """Only the check that changes something gives a reason, and the reason has what went wrong."""
    verdict = Verdict()
    assert verdict.checked(True, TERMS, "") == "a check passed"
    assert verdict.checked(False, TERMS, "refused") == ""
    assert verdict.checked(False, TERMS, "refused") == ""
    assert verdict.checked(False, TERMS, "timed out") == "3 checks in a row failed: timed out"
    assert verdict.checked(True, TERMS, "in 2 ms") == ""
    assert verdict.checked(True, TERMS, "in 3 ms") == "2 checks in a row passed: in 3 ms"


@pytest.mark.parametrize(
    ("checks", "transition"), [("", True), ("+", False), ("+-", True), ("+-+", False), ("-+", True)]
)
def test_who_may_soon_change_is_in_transition(checks: str, transition: bool) -> None:
    """Unknown ones, and those whose last check contradicts what is held of them, are worth a check soon."""
    assert verdict_of(checks).in_transition is transition


@pytest.mark.parametrize("passive", [True, False])
def test_a_success_makes_the_unknown_healthy(passive: bool) -> None:
    """Real traffic that succeeds says as much as a check that passes."""
    verdict = Verdict()
    terms = Terms(passive=passive)
    verdict.happened(fails(1), terms, NOW)
    assert verdict.facts == Facts(State.UNKNOWN)
    assert verdict.happened(works(), terms, NOW) == Finding(False, "real traffic succeeded")
    assert verdict.facts == Facts(State.HEALTHY)


def test_a_success_makes_nobody_healthy_whom_checks_found_unhealthy() -> None:
    """Only checks take back what checks found."""
    verdict = verdict_of("-")
    verdict.happened(works(100), TERMS, NOW)
    assert verdict.facts.state is State.UNHEALTHY


def test_failures_in_a_row_are_guilt() -> None:
    """The fifth failure in a row is too many; a success in between starts the count again."""
    verdict = verdict_of("+")
    assert not verdict.happened(fails(4), TERMS, NOW).guilty
    assert not verdict.happened(Outcome(1, 4, 2), TERMS, NOW).guilty
    assert not verdict.happened(fails(2), TERMS, NOW).guilty
    assert verdict.happened(fails(1), TERMS, NOW) == Finding(True, "5 failed in a row")
    told = Outcome(0, 1, 1, "reset")
    assert verdict.happened(told, TERMS, NOW) == Finding(True, "6 failed in a row, the last by reset")
    assert not verdict.happened(works(), TERMS, NOW).guilty


def test_a_streak_at_the_end_of_one_batch_is_guilt() -> None:
    """Successes before them do not excuse failures that were enough."""
    assert verdict_of("+").happened(Outcome(100, 5, 5), TERMS, NOW).guilty
    assert not verdict_of("+").happened(Outcome(100, 50, 4), TERMS, NOW).guilty


@given(st.lists(st.lists(st.booleans(), max_size=6), max_size=12))
def test_one_worker_is_judged_as_if_each_outcome_was_told(batches: list[list[bool]]) -> None:
    """However one worker's outcomes are cut into batches, the streak at the end of each is the true one."""
    verdict = verdict_of("+")
    history: list[bool] = []
    for batch in batches:
        history += batch
        streak = [*history[::-1], True].index(True)
        trailing = [*batch[::-1], True].index(True)
        outcome = Outcome(sum(batch), len(batch) - sum(batch), trailing)
        assert verdict.happened(outcome, TERMS, NOW).guilty == (streak >= TERMS.failures)


def test_a_success_of_any_worker_ends_the_streak() -> None:
    """While one worker succeeds, the failures of others add up to no ejection."""
    verdict = verdict_of("+")
    for _ in range(10):
        assert not verdict.happened(fails(4), TERMS, NOW).guilty
        assert not verdict.happened(works(), TERMS, NOW).guilty


def test_a_rate_of_failures_is_guilt() -> None:
    """With enough outcomes, the configured share of failures is too many, in a row or not."""
    terms = Terms(failure_rate=0.1, min_volume=30)
    verdict = verdict_of("+")
    assert not verdict.happened(Outcome(26, 3, 1), terms, NOW).guilty  # too few to have a rate
    assert verdict.happened(works(1), terms, NOW + 1) == Finding(True, "3 of 30 failed in 10 s")
    assert not verdict.happened(works(1), terms, NOW + 1).guilty
    assert not verdict.happened(Outcome(1, 1, 0), terms, NOW + 20).guilty


def test_without_a_rate_nothing_is_counted() -> None:
    """Where the rate is off, any share of failures is borne."""
    verdict = verdict_of("+")
    for _ in range(100):
        assert not verdict.happened(Outcome(1, 99, 4), TERMS, NOW).guilty


def test_who_is_meant_to_get_nothing_is_not_judged() -> None:
    """Outcomes of what was begun before, or in a panic, are nothing to an unhealthy or ejected one."""
    unhealthy = verdict_of("-")
    ejected = verdict_of("+")
    ejected.eject(TERMS, NOW)
    for verdict in (unhealthy, ejected):
        facts = verdict.facts
        for outcome in (fails(100), works(100)):
            assert verdict.happened(outcome, TERMS, NOW) == Finding(False, "")
        assert verdict.facts == facts
    unhealthy.checked(True, TERMS, "")
    unhealthy.checked(True, TERMS, "")
    assert not unhealthy.happened(fails(4), TERMS, NOW).guilty


def test_going_down_forgets_the_streak() -> None:
    """Failures from before it was unhealthy are not added to those after."""
    verdict = verdict_of("+")
    verdict.happened(fails(4), TERMS, NOW)
    for sign in "---++":
        verdict.checked(sign == "+", TERMS, "")
    assert not verdict.happened(fails(4), TERMS, NOW).guilty
    assert verdict.happened(fails(1), TERMS, NOW).guilty


def test_without_passive_observation_nobody_is_guilty() -> None:
    """Where outcomes are not judged, any number of failures is borne."""
    assert not verdict_of("+").happened(fails(100), Terms(passive=False), NOW).guilty


def test_a_trial_is_passed_by_successes() -> None:
    """Three successes, in however many batches, end a trial well."""
    verdict = tried("")
    assert verdict.facts == Facts(State.UNKNOWN, State.TRIAL)
    assert not verdict.facts.usable
    assert verdict.happened(works(2), TERMS, NOW) == Finding(False, "")
    assert verdict.happened(works(1), TERMS, NOW) == Finding(False, "3 succeeded in its trial")
    assert verdict.facts == Facts(State.HEALTHY, None)


def test_a_passed_trial_forgives_the_failures_before() -> None:
    """What it was ejected for, in a row or as a rate, is not added to what fails after."""
    terms = Terms(failure_rate=0.5, min_volume=10, window=3600.0)
    verdict = verdict_of("+")
    assert verdict.happened(fails(20), terms, NOW).guilty
    verdict.eject(terms, NOW)
    verdict.begin_trial()
    verdict.happened(works(3), terms, NOW + 30)
    assert not verdict.happened(fails(4), terms, NOW + 31).guilty
    assert not verdict.happened(Outcome(4, 1, 1), terms, NOW + 32).guilty


def test_a_failure_in_a_trial_takes_its_successes_back() -> None:
    """One that is spared in its trial needs all the successes again."""
    verdict = tried()
    verdict.happened(works(2), TERMS, NOW)
    assert verdict.happened(fails(1), TERMS, NOW).guilty
    assert not verdict.happened(works(2), TERMS, NOW).why
    assert verdict.happened(works(1), TERMS, NOW).why


def test_one_failure_ends_a_trial() -> None:
    """Whatever succeeded in the same batch, one failure in a trial is guilt."""
    verdict = tried()
    assert verdict.happened(Outcome(100, 1, 0), TERMS, NOW) == Finding(True, "a failure in its trial")


def test_checks_end_neither_ejection_nor_trial() -> None:
    """However many checks pass, what traffic found stands until traffic finds otherwise."""
    verdict = verdict_of("+")
    verdict.eject(TERMS, NOW)
    for _ in range(10):
        assert verdict.checked(True, TERMS, "") == ""
    assert verdict.facts == Facts(State.HEALTHY, State.EJECTED)
    verdict.begin_trial()
    for _ in range(10):
        assert verdict.checked(True, TERMS, "") == ""
    assert verdict.facts == Facts(State.HEALTHY, State.TRIAL)
    assert not verdict.happened(works(2), TERMS, NOW).why


@pytest.mark.parametrize("traffic", [State.EJECTED, State.TRIAL])
def test_both_sides_remember(traffic: State) -> None:
    """Who fails its checks while it is out is unhealthy too, and out as before when they pass."""
    verdict = tried() if traffic is State.TRIAL else verdict_of("+")
    if traffic is State.EJECTED:
        verdict.eject(TERMS, NOW)
    seen = []
    for sign in "---++":
        verdict.checked(sign == "+", TERMS, "")
        seen.append(verdict.facts.state)
    assert seen == [traffic, traffic, State.UNHEALTHY, State.UNHEALTHY, traffic]


def test_a_trial_begins_anew_when_checks_pass_again() -> None:
    """Successes of a trial from before it was unhealthy do not count after."""
    verdict = tried()
    verdict.happened(works(2), TERMS, NOW)
    for sign in "---++":
        verdict.checked(sign == "+", TERMS, "")
    assert not verdict.happened(works(2), TERMS, NOW).why
    assert verdict.happened(works(1), TERMS, NOW).why


def lasted(verdict: Verdict, now: float, terms: Terms = TERMS) -> float:
    verdict.eject(terms, now)
    assert verdict.since == now
    verdict.begin_trial()
    return verdict.until - now


def test_ejections_grow_longer() -> None:
    """Each failed trial ejects for 30 s more, up to 300 s, however long the trials are."""
    verdict = verdict_of("+")
    assert [lasted(verdict, NOW + 1000 * n) for n in range(12)] == [*range(30, 301, 30), 300, 300]


def test_a_longest_ejection_that_is_no_multiple() -> None:
    """Ejections never last longer than `max_ejection`, be it shorter than the first."""
    verdict = verdict_of("+")
    assert [lasted(verdict, NOW, Terms(max_ejection=70)) for _ in range(4)] == [30, 60, 70, 70]
    assert lasted(verdict_of("+"), NOW, Terms(max_ejection=7)) == 7


def test_good_time_makes_the_next_ejection_shorter() -> None:
    """For every 30 s after a trial that was passed, one ejection is forgiven, down to none."""
    for pause, length in ((0, 120), (29.9, 120), (30, 90), (60, 60), (90, 30), (9000, 30)):
        verdict = verdict_of("+")
        for _ in range(3):
            lasted(verdict, NOW)
        verdict.clear(NOW + 500)
        assert lasted(verdict, NOW + 500 + pause) == length


def test_a_bad_night_is_forgiven_in_minutes() -> None:
    """However often it was ejected, max_ejection of good time forgives it all."""
    verdict = verdict_of("+")
    for _ in range(1000):
        lasted(verdict, NOW)
    verdict.clear(NOW)
    assert lasted(verdict, NOW + 300) == 30


def test_slow_start_rises_from_a_tenth_on_whole_seconds() -> None:
    """A ramp goes straight from 0.1 to 1, and moves when the clock's second does."""
    verdict = Verdict()
    assert verdict.ramp(10.0, NOW) == 1.0
    verdict.ramp_from = NOW + 0.5
    assert verdict.ramp(10.0, NOW + 0.5) == 0.1
    assert verdict.ramp(10.0, NOW + 0.9) == 0.1
    assert verdict.ramp(10.0, NOW + 1.0) == verdict.ramp(10.0, NOW + 1.9) == pytest.approx(0.145)
    assert verdict.ramp(10.0, NOW + 5.5) == pytest.approx(0.1 + 0.9 * 0.45)
    assert verdict.ramp(10.0, NOW + 10.9) == pytest.approx(0.1 + 0.9 * 0.95)
    assert verdict.ramp(10.0, NOW + 11.0) == 1.0
    assert verdict.ramp(0.0, NOW + 0.5) == 1.0


def test_without_checks_nobody_stays_unhealthy() -> None:
    """When checks are given up, who was unhealthy is unknown, and the others are what they were."""
    for checks, state in (("", State.UNKNOWN), ("+", State.HEALTHY), ("-", State.UNKNOWN)):
        verdict = verdict_of(checks)
        verdict.leave_checks()
        assert verdict.facts.state is state


def test_draining_hides_everything() -> None:
    """One that drains is nothing else, and not usable."""
    facts = Verdict(draining=True).facts
    assert facts.state is State.DRAINING
    assert not facts.usable
