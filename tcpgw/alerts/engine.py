"""Which alerts fire, by rules and readings. Pure: time is an argument.

Each rule has an alert for each set of labels that its reading has, in one of these states:

    from        to          when
    -           pending     the reading is on the bad side of the threshold
    pending     -           it is not, or there is none any more
    pending     firing      it was there at every look for `wait` seconds; with 0 at once
    firing      resolved    it was at or beyond `clear`, or there was none, at every look for `keep` seconds
    any         - resolved  the rule is off, for all or for this service: at once

`-` is no alert at all, and the same after `resolved`: one that fires again is a new one, with a new `since`.

Invariants:

1. What is between `clear` and the threshold changes nothing: neither begins an alert nor ends one.
2. Nothing is resolved that did not fire, and what fired is resolved once.
3. A reading that vanishes is a good one, since its service, listener or traffic is gone. So is one that is no
   number.
4. A rule has at most MOST alerts, pending and firing together. Beyond, the first ones keep their places, and
   `left_out` has how many more there would be.
5. Rules may be changed at any time. An alert goes on under the new ones with all that it was.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Literal, NamedTuple

from tcpgw.alerts.rules import BY_ALERT, Kind, Labels, Readings, Rule, summary

MOST = 200
# Of those that are over, for people who look: how many, and for how many seconds.
KEPT, KEPT_FOR = 50, 86_400.0

State = Literal["pending", "firing", "resolved"]


@dataclass(frozen=True, slots=True)
class Alert:
    """As it is now. `since` is when it came to be so and `ended` when it was resolved, in Unix time.

    `value` is the last one that was bad: what is told of an alert is to say why it is there.
    """

    name: str
    labels: Labels
    severity: str
    state: State
    since: float
    value: float
    threshold: float
    ended: float | None = None

    @property
    def summary(self) -> str:
        text = summary(self._kind, self.labels, self.value, self.threshold)
        return f"Over: {text}" if self.state == "resolved" else text

    @property
    def hint(self) -> str:
        return self._kind.hint

    @property
    def _kind(self) -> Kind:
        return BY_ALERT[self.name]


class Changed(NamedTuple):
    """What a look found."""

    fired: list[Alert]
    resolved: list[Alert]


@dataclass(slots=True)
class _Entry:
    alert: Alert
    began: float  # by the clock that never goes back
    calm: float | None = None  # since when it is, where it fires


_Entries = dict[Labels, _Entry]


class Engine:
    """Judges readings. `keep` is in seconds."""

    def __init__(self, rules: Sequence[Rule], keep: float) -> None:
        self.left_out: dict[str, int] = {}
        self._rules = rules
        self._keep = keep
        self._entries: dict[str, _Entries] = {}
        self._over: deque[Alert] = deque(maxlen=KEPT)

    def change(self, rules: Sequence[Rule], keep: float) -> None:
        """Judge by these from the next look on."""
        self._rules, self._keep = rules, keep

    @property
    def firing(self) -> list[Alert]:
        return [alert for alert in self._alerts() if alert.state == "firing"]

    @property
    def alerts(self) -> list[Alert]:
        """All: those that fire, then those that may soon, then those that did, the latest first."""
        pending = [alert for alert in self._alerts() if alert.state == "pending"]
        return [*self.firing, *pending, *reversed(self._over)]

    def _alerts(self) -> Iterable[Alert]:
        return (entry.alert for entries in self._entries.values() for entry in entries.values())

    def look(self, readings: Readings, now: float, wall: float) -> Changed:
        """Take what is read now. `now` is by a clock that never goes back, `wall` Unix time."""
        changed = Changed([], [])
        self.left_out = {}
        for rule in self._rules:
            entries = self._entries.setdefault(rule.kind.alert, {})
            found = readings.get(rule.kind.reading, {})
            found = {labels: value for labels, value in found.items() if isfinite(value)}
            self._judge(rule, entries, found, now)
            self._begin(rule, entries, found, now, wall)
            self._settle(rule, entries, changed, now, wall)
        self._over.extend(changed.resolved)
        while self._over and (self._over[0].ended or 0.0) < wall - KEPT_FOR:
            self._over.popleft()
        return changed

    def _judge(self, rule: Rule, entries: _Entries, found: Mapping[Labels, float], now: float) -> None:
        """Note what is read of the alerts that there are."""
        for labels, entry in list(entries.items()):
            terms, value = rule.terms_of(labels), found.get(labels)
            pending = entry.alert.state == "pending"
            bad = False
            if terms is not None and value is not None:
                bad = terms.breached(value) if pending else not terms.cleared(value)
                entry.alert = replace(
                    entry.alert,
                    value=value if bad else entry.alert.value,
                    threshold=terms.threshold,
                    severity=terms.severity,
                )
            if bad:
                entry.calm = None
            elif pending:
                del entries[labels]
            elif entry.calm is None:
                entry.calm = now

    def _begin(
        self, rule: Rule, entries: _Entries, found: Mapping[Labels, float], now: float, wall: float
    ) -> None:
        name = rule.kind.alert
        for labels, value in found.items():
            terms = rule.terms_of(labels)
            if terms is None or labels in entries or not terms.breached(value):
                continue
            if len(entries) < MOST:
                alert = Alert(name, labels, terms.severity, "pending", wall, value, terms.threshold)
                entries[labels] = _Entry(alert, now)
            else:
                self.left_out[name] = self.left_out.get(name, 0) + 1

    def _settle(self, rule: Rule, entries: _Entries, changed: Changed, now: float, wall: float) -> None:
        """Fire what has been bad for long enough, and resolve what has been good."""
        for labels, entry in list(entries.items()):
            terms = rule.terms_of(labels)
            if entry.alert.state == "firing":
                if terms is None or (entry.calm is not None and now - entry.calm >= self._keep):
                    del entries[labels]
                    changed.resolved.append(replace(entry.alert, state="resolved", ended=wall))
            elif terms is not None and now - entry.began >= terms.wait:
                entry.alert = replace(entry.alert, state="firing", since=wall)
                changed.fired.append(entry.alert)
