"""What holds of a panel whatever it is told, in any order: snapshots, checks, outcomes, reloads, time."""

from dataclasses import replace
from math import floor, nextafter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tcpgw.balancing.standing import Share
from tcpgw.endpoints import Endpoint
from tcpgw.health.panel import Panel
from tcpgw.health.verdict import Outcome, State, Terms

ENDPOINTS = [Endpoint("10.0.0.1", port) for port in range(1, 8)]
HELD = {State.EJECTED, State.TRIAL}

endpoints = st.sampled_from(ENDPOINTS)
snapshots = st.dictionaries(endpoints, st.sampled_from([0, 1, 1, 1, 5]))
terms_of_all_kinds = st.builds(
    Terms,
    active=st.sampled_from([True, True, False]),
    rise=st.integers(1, 3),
    fall=st.integers(1, 3),
    passive=st.sampled_from([True, True, True, False]),
    failures=st.integers(1, 5),
    failure_rate=st.sampled_from([0.0, 0.3]),
    min_volume=st.integers(0, 10),
    ejection=st.sampled_from([0.3, 1.0, 30.0]),
    max_ejection=st.sampled_from([1.0, 70.0, 300.0]),
    max_ejected=st.sampled_from([0.0, 0.1, 0.29, 0.5, 1.0]),
    trial_share=st.sampled_from([0.1, 1.0]),
    trial_successes=st.integers(1, 3),
    panic=st.sampled_from([0.0, 0.5, 1.0]),
    slow_start=st.sampled_from([0.0, 0.5, 7.3]),
)


@st.composite
def outcomes(draw: st.DrawFn) -> Outcome:
    successes = draw(st.integers(0, 2))
    failures = draw(st.integers(0, 6))
    return Outcome(successes, failures, draw(st.integers(0, failures)) if successes else failures)


class Judging(RuleBasedStateMachine):
    """A panel that is told anything, beside nothing but its own changes and what must hold."""

    @initialize(terms=terms_of_all_kinds, weights=snapshots, now=st.floats(0.0, 1e6))
    def begin(self, terms: Terms, weights: dict[Endpoint, int], now: float) -> None:
        self.terms = terms
        self.panel = Panel(terms)
        self.now = now
        self.weights: dict[Endpoint, int] = {}
        self.known: dict[Endpoint, State] = {}
        self.panics = self.ejected = 0
        self.was_panic = False
        self.retain(weights)

    @rule(weights=snapshots)
    def retain(self, weights: dict[Endpoint, int]) -> None:
        self.weights = weights
        self.panel.retain(weights, self.now)

    @rule(terms=terms_of_all_kinds)
    def reload(self, terms: Terms) -> None:
        self.terms = terms
        self.panel.change(terms, self.now)

    @rule(endpoint=endpoints, results=st.lists(st.booleans(), min_size=1, max_size=4))
    def check(self, endpoint: Endpoint, results: list[bool]) -> None:
        for passed in results:
            self.panel.checked(endpoint, passed, self.now, "refused")

    @rule(endpoint=endpoints, outcome=outcomes())
    def happen(self, endpoint: Endpoint, outcome: Outcome) -> None:
        self._happen(endpoint, outcome)

    @rule(which=st.lists(endpoints))
    def fail(self, which: list[Endpoint]) -> None:
        for endpoint in which:
            self._happen(endpoint, Outcome(0, 5, 5))

    @precondition(lambda self: State.TRIAL in self.panel.states.values())
    @rule(outcome=outcomes())
    def try_all(self, outcome: Outcome) -> None:
        for endpoint, state in self.panel.states.items():
            if state is State.TRIAL:
                self._happen(endpoint, outcome)

    def _happen(self, endpoint: Endpoint, outcome: Outcome) -> None:
        """Each ejection leaves one that is usable, or in trial with all of its weight."""
        before = self.panel.states
        self.panel.happened(endpoint, outcome, self.now)
        after = self.panel.states
        if after.get(endpoint) is State.EJECTED and before[endpoint] is not State.EJECTED:
            others = {state for other, state in after.items() if other != endpoint}
            assert others & {State.UNKNOWN, State.HEALTHY, State.TRIAL}
            assert outcome.failures or not outcome.successes or self.terms.failure_rate
            assert self.terms.passive

    @rule(seconds=st.floats(0.0, 100.0))
    def wait(self, seconds: float) -> None:
        """Time goes by unwatched."""
        self.now += seconds
        self.panel.tick(self.now)

    @precondition(lambda self: self.panel.next_at is not None)
    @rule()
    def wait_until_due(self) -> None:
        """Until it is due, nothing changes; then `next_at` is later, so that nobody waits for the past."""
        due = self.panel.next_at
        assert due is not None
        shares = dict(self.panel.shares(self.now))
        states = self.panel.states
        last = nextafter(due, self.now)
        for moment in (min((self.now + due) / 2, last), last):
            assert self.panel.shares(moment) == shares
            assert self.panel.states == states
            assert self.panel.next_at == due
        self.now = due
        self.panel.tick(self.now)

    @precondition(lambda self: self.panel.next_at is None)
    @rule(seconds=st.floats(0.0, 1e5))
    def wait_for_nothing(self, seconds: float) -> None:
        """Where nothing is due, nothing changes ever."""
        shares = self.panel.shares(self.now)
        self.now += seconds
        assert self.panel.shares(self.now) == shares
        assert self.panel.next_at is None

    @rule(slow_start=st.sampled_from([0.0, 7.3]))
    def all_is_well(self, slow_start: float) -> None:
        """When all works again, for long enough, all are healthy, with their whole share."""
        self.reload(replace(self.terms, slow_start=slow_start))
        longest = self.terms.max_ejection + 300.0  # that of a reload before may be longer
        end = self.now + longest + slow_start + 2
        while self.now < end:
            for endpoint in self.weights:
                for _ in range(3):
                    self.panel.checked(endpoint, True, self.now, "")
                self.panel.happened(endpoint, Outcome(3, 0, 0), self.now)
            self.now = min(self.panel.next_at or end, end)
        assert self.panel.shares(self.now) == {}
        assert not self.panel.panic
        assert self.panel.next_at is None
        weighty = {endpoint for endpoint, weight in self.weights.items() if weight}
        assert {self.panel.states[endpoint] for endpoint in weighty} <= {State.HEALTHY}

    @invariant()
    def states_are_those_of_the_snapshot(self) -> None:
        """Each endpoint has a state, draining where its weight is 0, and changes tell all of it."""
        states = self.panel.states
        assert states.keys() == self.weights.keys()
        for endpoint, weight in self.weights.items():
            assert (states[endpoint] is State.DRAINING) == (weight == 0)
        for endpoint, before, after, why in self.panel.changes():
            assert self.known.pop(endpoint, State.REMOVED) is before
            assert why
            if after is not State.REMOVED:
                self.known[endpoint] = after
        assert self.known == states

    @invariant()
    def at_most_so_many_are_out(self) -> None:
        """Ejected and in trial are at most the share of all that may be, and never all."""
        facts = [verdict.facts for verdict in self.panel._verdicts.values()]
        total = sum(not one.draining for one in facts)
        held = sum(one.traffic is not None for one in facts)
        assert held <= floor(self.terms.max_ejected * total + 1e-9)
        assert held < max(total, 1)
        assert self.terms.passive or not held

    @invariant()
    def nobody_is_out_where_nobody_carries(self) -> None:
        """Who is ejected is so because others do its work, or all do, in a panic."""
        states = set(self.panel.states.values())
        if State.EJECTED in states and not self.panel.panic:
            assert states & {State.UNKNOWN, State.HEALTHY, State.TRIAL}

    @invariant()
    def shares_follow_from_states(self) -> None:
        """All shares are from 0 to less than 1, and none is in a panic or for who drains."""
        shares = self.panel.shares(self.now)
        judged = {endpoint: state for endpoint, state in self.panel.states.items() if self.weights[endpoint]}
        usable = {endpoint for endpoint, state in judged.items() if state in (State.UNKNOWN, State.HEALTHY)}
        assert self.panel.panic == (len(usable) < self.terms.panic * len(judged))
        self.panics += self.panel.panic and not self.was_panic
        self.was_panic = self.panel.panic
        assert self.panel.panics >= self.panics
        assert shares.keys() <= judged.keys()
        if self.panel.panic:
            assert not shares
            return
        for endpoint, state in judged.items():
            share = shares.get(endpoint, Share(1.0, by_key=True))
            if endpoint in usable:
                assert share.by_key
                assert 0.1 <= share.value <= 1.0
                assert share.value == 1.0 or self.terms.slow_start
            elif state is State.TRIAL:
                assert share.value == (self.terms.trial_share if usable else 1.0)
            else:
                assert share == Share(0.0, by_key=False)
        assert not usable or usable - shares.keys(), "somebody has all of its weight"

    @invariant()
    def what_is_due_is_to_come(self) -> None:
        """After anything that is told, `next_at` is after now; and it is soon, where there is an ejection."""
        self.panel.tick(self.now)
        assert self.panel.next_at is None or self.panel.next_at > self.now
        if State.EJECTED in self.panel.states.values():
            assert self.panel.next_at is not None


Judging.TestCase.settings = settings(deadline=None, max_examples=100, stateful_step_count=40)
TestJudging = Judging.TestCase
