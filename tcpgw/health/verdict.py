"""What is known of one endpoint, and what each thing that is learnt makes of it. Pure: time is an argument.

Checks and traffic judge side by side, and each remembers its own fact:

    side      from        to          when
    checks    unknown     healthy     a check passed, or real traffic succeeded
              unknown     unhealthy   a check failed (HAProxy: nobody was promised anything yet)
              healthy     unhealthy   `fall` checks in a row failed
              unhealthy   healthy     `rise` checks in a row passed
    traffic   -           ejected     `failures` in a row, or too many of a window; and the panel allows it
              ejected     trial       its time is over
              trial       -           `trial_successes` of real traffic
              trial       ejected     one failure

A snapshot that gives an endpoint weight 0 makes it draining, and one without it removed; both forget all of
the above, so that one that comes back is a new one, and unknown.

The state is the first of these that holds: draining, unhealthy, ejected, trial, healthy or unknown. So an
endpoint may be unhealthy and ejected at once. It is shown as unhealthy, gets nothing, its time runs on, and
when its checks pass it is still ejected, or in its trial.

Invariants:

1. Usable is who is unknown or healthy. Where there are no active checks, unknown is all that one may be until
   the first success.
2. A side never changes the other's fact, but for the first line: a success says as much as a check. A check
   that passes neither ends an ejection nor counts in a trial: what ejected it was no check's finding.
3. Outcomes count while an endpoint is meant to be given work: not while it is unhealthy or ejected, where
   they come from a panic or from what was begun before. Its counts begin anew when that is over.
4. The n-th ejection lately lasts n times `ejection`, up to `max_ejection`. n falls by one for each `ejection`
   seconds that follow a trial that was passed. It stands still in the trial itself: where little is asked a
   trial is long, and a dead instance would be tried every `ejection` seconds for ever.
"""

from dataclasses import dataclass
from enum import StrEnum
from math import ceil, floor
from typing import NamedTuple

from tcpgw.health.passive import Window

# The share of its weight that slow start begins with: Envoy's `min_weight_percent`.
_RAMP_BEGINS = 0.1

# Why a success makes an endpoint healthy that was unknown.
SUCCEEDED = "real traffic succeeded"


class State(StrEnum):
    """A closed and documented list: it is a metric label."""

    UNKNOWN = "unknown"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    EJECTED = "ejected"
    TRIAL = "trial"
    DRAINING = "draining"
    REMOVED = "removed"  # in no snapshot, no longer or not yet


SICK = frozenset({State.UNHEALTHY, State.EJECTED})
"""Who is given nothing, but in a panic."""


def may_be_given(weight: int, state: str | None) -> bool:
    """Whether an endpoint of this weight and state may be given something, be it a trial; None: not known."""
    return weight > 0 and state not in SICK


@dataclass(frozen=True, slots=True)
class Terms:
    """By what a service's endpoints are judged. Times in seconds, all but `slow_start` more than 0."""

    active: bool = True  # whether checks are made
    rise: int = 2  # HAProxy's
    fall: int = 3  # HAProxy's
    passive: bool = True  # whether outcomes eject
    failures: int = 5  # in a row; Envoy's
    failure_rate: float = 0.0  # of the outcomes of `window`; 0: off
    window: float = 10.0
    min_volume: int = 20  # fewer outcomes have no rate
    ejection: float = 30.0  # Envoy's
    max_ejection: float = 300.0  # Envoy's
    max_ejected: float = 0.5  # at most this share of the endpoints is ejected or in trial
    trial_share: float = 0.1  # of its weight, which one in trial gets
    trial_successes: int = 3
    panic: float = 0.5  # with a smaller share of them usable all are used; Envoy's; 0: never
    slow_start: float = 0.0  # 0: off


class Outcome(NamedTuple):
    """What became of one worker's work on one endpoint since it last told.

    `streak` is how many failed after the last success: all of them, where there was none. `last` says what
    the last failure was, for the log.
    """

    successes: int
    failures: int
    streak: int
    last: str = ""


class Facts(NamedTuple):
    """What is held of an endpoint. `checks`: unknown, healthy, unhealthy; `traffic`: None, ejected, trial."""

    checks: State = State.UNKNOWN
    traffic: State | None = None
    draining: bool = False

    @property
    def state(self) -> State:
        if self.draining:
            return State.DRAINING
        if self.checks is State.UNHEALTHY:
            return State.UNHEALTHY
        return self.traffic or self.checks

    @property
    def usable(self) -> bool:
        """Whether it is given the whole of its weight, slow start aside."""
        return self.state in {State.UNKNOWN, State.HEALTHY}


class Finding(NamedTuple):
    """What follows from an outcome. `guilty`: the endpoint is to be ejected. `why` is for the log."""

    guilty: bool
    why: str


class Verdict:
    """One endpoint before its two judges. It never looks at the others: who may be ejected is the panel's.

    `since` and `until` are when its last ejection began and ends, `ramp_from` when its slow start began, and
    `spared` whether it would be ejected but for the panel.
    """

    __slots__ = (
        "_cleared_at",
        "_ejections",
        "_run",
        "_streak",
        "_tried",
        "_window",
        "facts",
        "ramp_from",
        "since",
        "spared",
        "until",
    )

    def __init__(self, *, draining: bool = False) -> None:
        self.facts = Facts(draining=draining)
        self.since = 0.0
        self.until = 0.0
        self.ramp_from: float | None = None
        self.spared = False
        self._run = 0  # checks in a row that contradict `facts.checks`
        self._streak = 0  # failures in a row
        self._window = Window()
        self._tried = 0  # successes of this trial
        self._ejections = 0  # lately, as of `_cleared_at`
        self._cleared_at = 0.0

    @property
    def in_transition(self) -> bool:
        """Whether the next check may change what is held of it, so that it is worth making soon."""
        return self.facts.checks is State.UNKNOWN or self._run > 0

    def checked(self, passed: bool, terms: Terms, why: str) -> str:
        """Take the result of an active check; return why the checks' fact changed, or "" if it did not."""
        found = State.HEALTHY if passed else State.UNHEALTHY
        if self.facts.checks is found:
            self._run = 0
            return ""
        self._run += 1
        needed = terms.rise if passed else terms.fall
        if self.facts.checks is State.UNKNOWN:
            needed = 1
        if self._run < needed:
            return ""
        self._run = 0
        self.facts = self.facts._replace(checks=found)
        if not passed:
            self._forget_outcomes()
        count = "a check" if needed == 1 else f"{needed} checks in a row"
        return f"{count} {'passed' if passed else 'failed'}{why and f': {why}'}"

    def happened(self, outcome: Outcome, terms: Terms, now: float) -> Finding:
        """Count an outcome. Who is guilty is to be ejected or spared; nothing is done to it here.

        Outcomes of several workers make one streak: one without a success adds its failures, one with a
        success begins anew with its own streak. The order of two workers' outcomes is not known, so a success
        may end failures that came after it. That delays an ejection by one report; the other way round, a
        working instance would be ejected for what it has overcome.
        """
        facts = self.facts
        if facts.checks is State.UNHEALTHY or facts.traffic is State.EJECTED:
            return Finding(False, "")
        if outcome.successes and facts.checks is State.UNKNOWN:
            self.facts = facts._replace(checks=State.HEALTHY)
        if not terms.passive:
            return Finding(False, SUCCEEDED)
        if facts.traffic is State.TRIAL:
            return self._try(outcome, terms, now)
        self._streak = outcome.streak if outcome.successes else self._streak + outcome.failures
        if terms.failure_rate:
            self._window.add(outcome.successes, outcome.failures, terms.window, now)
        finding = self._guilt(terms, outcome.last)
        self.spared = self.spared and finding.guilty
        return finding

    def eject(self, terms: Terms, now: float) -> None:
        """Take it out for its time, from where it stands or from its trial."""
        if self.facts.traffic is None:
            self._ejections = max(0, self._ejections - int((now - self._cleared_at) // terms.ejection))
        # No more than what makes the longest one: else a bad night would be held against it for days.
        self._ejections = min(self._ejections + 1, ceil(terms.max_ejection / terms.ejection))
        self.since = now
        self.until = now + min(self._ejections * terms.ejection, terms.max_ejection)
        self.facts = self.facts._replace(traffic=State.EJECTED)
        self.spared = False

    def begin_trial(self) -> None:
        self.facts = self.facts._replace(traffic=State.TRIAL)

    def clear(self, now: float) -> None:
        """Nothing is held against it by traffic any more, but how often it was ejected."""
        self.facts = self.facts._replace(traffic=None)
        self._cleared_at = now
        self._forget_outcomes()

    def leave_checks(self) -> None:
        """There are no more checks. Who they found unhealthy would never be anything else: it is unknown."""
        self._run = 0
        if self.facts.checks is State.UNHEALTHY:
            self.facts = self.facts._replace(checks=State.UNKNOWN)

    def ramp(self, slow_start: float, now: float) -> float:
        """Return how much of its weight slow start has come to: 0.1 to 1.

        It moves on whole seconds of the clock, as those of all endpoints do: so workers are told once a
        second, and not once a second of each.
        """
        if self.ramp_from is None:
            return 1.0
        elapsed = max(0.0, floor(now) - self.ramp_from)
        if elapsed >= slow_start:
            return 1.0
        return _RAMP_BEGINS + (1.0 - _RAMP_BEGINS) * elapsed / slow_start

    def _try(self, outcome: Outcome, terms: Terms, now: float) -> Finding:
        """Of a batch with both, the failure counts: in a trial an instance shows that it works."""
        if outcome.failures:
            self._tried = 0
            return Finding(True, f"a failure in its trial{_by(outcome.last)}")
        self.spared = False
        self._tried += outcome.successes
        if self._tried < terms.trial_successes:
            return Finding(False, "")
        self.clear(now)
        return Finding(False, f"{terms.trial_successes} succeeded in its trial")

    def _guilt(self, terms: Terms, last: str) -> Finding:
        if self._streak >= terms.failures:
            return Finding(True, f"{self._streak} failed in a row{_by(last)}")
        window = self._window
        # A quotient, because 3 is less than 0.1 * 30.
        rate = window.failures / max(1, terms.min_volume, window.total)
        if terms.failure_rate and window.total >= terms.min_volume and rate >= terms.failure_rate:
            within = f"{window.failures} of {window.total} failed in {terms.window:g} s"
            return Finding(True, f"{within}{_by(last)}")
        return Finding(False, SUCCEEDED)

    def _forget_outcomes(self) -> None:
        self._streak = 0
        self._tried = 0
        self._window.clear()
        self.spared = False


def _by(last: str) -> str:
    return last and f", the last by {last}"
