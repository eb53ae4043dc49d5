"""The verdicts of one service's endpoints together: who is given how much. Pure: time is an argument.

What one endpoint's judges find is done only as far as the others can bear it:

1. At most `max_ejected` of the endpoints, rounded down, are ejected or in trial: those in trial too, because
   they carry next to nothing. Draining ones are counted nowhere. A single endpoint is never ejected.
   Where no more may be out and one is in trial, that makes room for who fails: it is released (4).
2. Nobody is ejected whose ejection would leave nobody usable or in trial. Who is in trial may wait for ever
   for work to prove itself by, as keys have their homes elsewhere; it shall not keep a sick one in its place.
3. Who is not ejected for one of these is spared: it stays, is judged on, and its next outcome may find room.
4. Where endpoints leave, or a reload allows fewer, and more are out than may be, some are released: given
   their whole weight again (by slow start), as if spared. Those in trial first, whose time is served, then
   those that were ejected longest ago. Not into a trial: that would help none of those that bear the load.
   So is the one that was ejected longest ago, where nobody is usable or in trial, and there is no panic (5).
5. With fewer than `panic` of the endpoints usable, all are used: the sick as well, because the load of all
   would be the end of the few. Who is in trial is not usable here. A panic changes no verdict, and is over
   as soon as enough are usable: there is no hysteresis but that of the verdicts.
6. Slow start is for everyone who becomes usable after having been given nothing: new ones, those that were
   unhealthy, passed their trial, were released, or no longer drain. Not those of the first snapshot, which
   worked before the gateway came, nor those that become usable in a panic, which gave them all of their
   weight: its end would throw the load of all at the few that do not ramp. Where all that are usable ramp,
   the foremost counts as full: slow start sends work to others, and where there are none it would send it
   nowhere. Nor is one in trial given less than its weight where nobody is usable.
"""

from collections import Counter, deque
from collections.abc import Mapping
from math import floor, inf
from typing import NamedTuple

from tcpgw.balancing.standing import Share
from tcpgw.endpoints import Endpoint
from tcpgw.health.verdict import SUCCEEDED, Facts, Outcome, State, Terms, Verdict

# Changes that nobody asked for yet: some for each endpoint of the largest service, 2 MiB at most.
_KEPT = 10_000


class Change(NamedTuple):
    """A change of state, for log and metrics. Of one that was spared `before` and `after` are the same."""

    endpoint: Endpoint
    before: State
    after: State
    why: str


class Panel:
    """Judges the endpoints of one service. Each method is told the time, `now`, which never goes back.

    What it is told of an endpoint that is draining, or in no snapshot, is passed over: reports may come late.

    `next_at` is when time alone changes something next, or None; then `tick` is due, and any other method
    does as well. `panic` is whether all are used. `ejections`, `spared` and `panics` count since the start:
    one is spared once until it is ejected or there is no reason to, and a panic counts when it begins.
    """

    def __init__(self, terms: Terms) -> None:
        self.panic = False
        self.ejections = 0
        self.spared = 0
        self.panics = 0
        self._terms = terms
        self._verdicts: dict[Endpoint, Verdict] = {}
        self._first = True
        self._changes: deque[Change] = deque(maxlen=_KEPT)
        self._stale = False
        self._shares: Mapping[Endpoint, Share] | None = None  # as they are, once somebody asked
        # Kept with each change of a fact: to count all anew takes seconds where thousands change.
        self._counts: Counter[State] = Counter()
        self._held = 0
        self._cap = 0
        self._now = 0.0
        self._planned = True
        self._due = inf  # when time alone changes something; until it is planned, no later than that

    @property
    def next_at(self) -> float | None:
        """When time alone changes something next, or None."""
        if not self._planned:
            self._plan()
        return None if self._due == inf else self._due

    @property
    def states(self) -> Mapping[Endpoint, State]:
        """The state of each endpoint of the snapshot."""
        return {endpoint: verdict.facts.state for endpoint, verdict in self._verdicts.items()}

    def in_transition(self, endpoint: Endpoint) -> bool:
        """Whether the next check of it may change its state, so that it is worth making soon."""
        verdict = self._judged(endpoint)
        return verdict is not None and verdict.in_transition

    def changes(self) -> list[Change]:
        """Return what changed since this was last asked, the newest 10,000 of it, and forget it."""
        changes = list(self._changes)
        self._changes.clear()
        return changes

    def retain(self, weights: Mapping[Endpoint, int], now: float) -> None:
        """Take a new snapshot. Who stays with a weight keeps its verdict."""
        self.tick(now)
        for endpoint in sorted(self._verdicts.keys() - weights.keys()):
            facts = self._verdicts.pop(endpoint).facts
            self._count(facts, -1)
            self._changes.append(Change(endpoint, facts.state, State.REMOVED, "no longer in the snapshot"))
            self._stale = True
        for endpoint, weight in weights.items():
            verdict = self._verdicts.get(endpoint)
            draining = weight <= 0
            if verdict is None or verdict.facts.draining != draining:
                before = None if verdict is None else verdict.facts
                self._verdicts[endpoint] = Verdict(draining=draining)
                self._note(endpoint, before, f"weight {weight} in the snapshot", now)
        self._settle(now)
        self._first = False

    def checked(self, endpoint: Endpoint, passed: bool, now: float, why: str) -> None:
        """Take the result of an active check. `why` is for the log: what went wrong."""
        self.tick(now)
        verdict = self._judged(endpoint)
        if verdict is None or not self._terms.active:
            return
        before = verdict.facts
        self._note(endpoint, before, verdict.checked(passed, self._terms, why), now)
        self._settle(now)

    def happened(self, endpoint: Endpoint, outcome: Outcome, now: float) -> None:
        """Take what became of one worker's work since it last told."""
        self.tick(now)
        verdict = self._judged(endpoint)
        if verdict is None:
            return
        before = verdict.facts
        finding = verdict.happened(outcome, self._terms, now)
        mercy = self._mercy(verdict.facts) if finding.guilty else ""
        if mercy == self._most_out and self._counts[State.TRIAL]:
            self._release(self._out()[:1], f"{endpoint} fails, and {mercy}", now)
            mercy = ""
        why = SUCCEEDED if mercy else finding.why
        if finding.guilty and not mercy:
            verdict.eject(self._terms, now)
            self.ejections += 1
            why = f"{why}: out for {verdict.until - now:g} s"
        self._note(endpoint, before, why, now)
        if mercy and not verdict.spared:
            verdict.spared = True
            self.spared += 1
            state = verdict.facts.state
            self._changes.append(Change(endpoint, state, state, f"spared in spite of {finding.why}: {mercy}"))
        self._settle(now)

    def tick(self, now: float) -> None:
        """Do what time alone does: end ejections, move slow starts. Afterwards `next_at` is after `now`."""
        self._now = now
        if now < self._due:
            return
        for endpoint, verdict in self._verdicts.items():
            before = verdict.facts
            if before.traffic is State.EJECTED and verdict.until <= now:
                verdict.begin_trial()
                self._note(endpoint, before, "its ejection is over", now)
        self._stale = True
        self._settle(now)
        self._plan()

    def shares(self, now: float) -> Mapping[Endpoint, Share]:
        """Return who is given less than its weight. Draining ones are not named: their weight is 0 already.

        The same object until `next_at`, as long as nothing that is told changes a state: with many endpoints
        it is asked for much more often than it changes.
        """
        self.tick(now)
        if self._shares is None:
            self._shares = self._weigh(now)
        return self._shares

    def change(self, terms: Terms, now: float) -> None:
        """Judge by other terms from now on. Verdicts stay, but for those of a side that is no longer asked.

        An ejection keeps its end, a slow start its beginning.
        """
        self.tick(now)
        self._plan()  # slow starts that are over by the old terms are over
        self._terms = terms
        for endpoint, verdict in self._verdicts.items():
            before = verdict.facts
            if not terms.active:
                verdict.leave_checks()
            if not terms.passive:
                verdict.clear(now)
            self._note(endpoint, before, "the configuration judges by other means", now)
        self._stale = True
        self._settle(now)

    def _weigh(self, now: float) -> Mapping[Endpoint, Share]:
        if self.panic:
            return {}
        judged = [item for item in self._verdicts.items() if not item[1].facts.draining]
        ramps = {
            endpoint: verdict.ramp(self._terms.slow_start, now)
            for endpoint, verdict in judged
            if verdict.facts.usable
        }
        foremost = max(ramps.values(), default=1.0)
        trial_share = self._terms.trial_share if ramps else 1.0
        shares = {}
        for endpoint, verdict in judged:
            if endpoint in ramps:
                share = Share(ramps[endpoint] / foremost, by_key=True)
            else:
                in_trial = verdict.facts.state is State.TRIAL
                share = Share(trial_share if in_trial else 0.0, by_key=False)
            if share.value < 1.0:
                shares[endpoint] = share
        return shares

    def _judged(self, endpoint: Endpoint) -> Verdict | None:
        verdict = self._verdicts.get(endpoint)
        return None if verdict is None or verdict.facts.draining else verdict

    def _mercy(self, facts: Facts) -> str:
        """Return why an endpoint is not ejected although it is guilty, or "" if it is."""
        in_trial = facts.state is State.TRIAL
        if self._usable + self._counts[State.TRIAL] <= 1:
            return "no other endpoint is usable"
        return self._most_out if not in_trial and self._held >= self._cap else ""

    @property
    def _usable(self) -> int:
        return self._counts[State.UNKNOWN] + self._counts[State.HEALTHY]

    def _count(self, facts: Facts, by: int) -> None:
        self._counts[facts.state] += by
        self._held += by * (facts.traffic is not None)

    @property
    def _most_out(self) -> str:
        return f"no more than {self._cap} may be ejected (max_ejected)"

    def _note(self, endpoint: Endpoint, before: Facts | None, why: str, now: float) -> None:
        """Do what follows from a change of an endpoint's facts, if any. None: it was in no snapshot."""
        verdict = self._verdicts[endpoint]
        facts = verdict.facts
        if facts == before:
            return
        self._stale = True
        self._count(facts, 1)
        if before is not None:
            self._count(before, -1)
        was = State.REMOVED if before is None else before.state
        if was is not facts.state:
            self._changes.append(Change(endpoint, was, facts.state, why))
        if not facts.usable or self._first:
            verdict.ramp_from = None
        elif not self.panic and (before is None or not before.usable):
            verdict.ramp_from = now
            self._due = min(self._due, floor(now) + 1.0)
        if facts.traffic is State.EJECTED:
            self._due = min(self._due, verdict.until)

    def _settle(self, now: float) -> None:
        """Do what follows for all from a change of one's facts, or of time."""
        if not self._stale:
            return
        total = len(self._verdicts) - self._counts[State.DRAINING]
        # 0.29 * 100 is less than 29.
        self._cap = max(0, min(floor(self._terms.max_ejected * total + 1e-9), total - 1))
        if self._held > self._cap:
            self._release(self._out()[: self._held - self._cap], self._most_out, now)
        # A quotient, because 3 is less than 0.1 * 30.
        panic = total > 0 and self._usable / total < self._terms.panic
        if not panic and self._counts[State.EJECTED] and not self._usable + self._counts[State.TRIAL]:
            able = [one for one in self._out() if self._verdicts[one].facts.state is State.EJECTED]
            self._release(able[:1], "nobody is usable", now)
        self.panics += panic and not self.panic
        self.panic = panic
        self._planned = self._stale = False
        self._shares = None

    def _out(self) -> list[Endpoint]:
        """Return who is ejected or in trial, in the order in which they are released."""
        held = [(endpoint, verdict) for endpoint, verdict in self._verdicts.items() if verdict.facts.traffic]
        held.sort(key=lambda one: (one[1].facts.traffic is State.EJECTED, one[1].since, one[0]))
        return [endpoint for endpoint, _ in held]

    def _release(self, endpoints: list[Endpoint], why: str, now: float) -> None:
        for endpoint in endpoints:
            verdict = self._verdicts[endpoint]
            before = verdict.facts
            verdict.clear(now)
            self._note(endpoint, before, f"released: {why}", now)

    def _plan(self) -> None:
        """Find when time alone changes something next."""
        self._due = inf
        for verdict in self._verdicts.values():
            if verdict.facts.traffic is State.EJECTED:
                self._due = min(self._due, verdict.until)
            if verdict.ramp_from is None:
                continue
            if verdict.ramp(self._terms.slow_start, self._now) == 1.0:
                verdict.ramp_from = None
            else:
                self._due = min(self._due, floor(self._now) + 1.0)
        self._planned = True
