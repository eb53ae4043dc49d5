"""Alerts of which nobody is told for a while. Pure: time is an argument.

A silence names an alert, or `*` for all, and labels that the alert must have, its severity among them; with
none it is for all of that name. It ends by itself. What is silenced is judged on and shown, and what was told
of before is told to be over when it is.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tcpgw.alerts.engine import Alert
from tcpgw.alerts.rules import BY_ALERT, KINDS, Labels
from tcpgw.errors import TcpgwError

MOST = 100
_LONGEST = 366 * 86_400.0  # seconds: what is silenced for longer is switched off, in the configuration
# Labels and characters of one, which whoever may silence an alert can say: more than any has.
_MOST_LABELS, _MOST_TEXT = 16, 1024


class SilenceError(TcpgwError):
    """There cannot be such a silence. Nothing has changed."""

    blame = "operator"


@dataclass(frozen=True, slots=True)
class Silence:
    """`until` in Unix time."""

    alert: str
    labels: Labels
    until: float
    comment: str


def until(alert: Alert, silences: Iterable[Silence]) -> float | None:
    """When the last of these ends that covers an alert, in Unix time. None: nothing does."""
    names, labels = {"*", alert.name}, {*alert.labels, ("severity", alert.severity)}
    covering = [one for one in silences if one.alert in names and labels.issuperset(one.labels)]
    return max((one.until for one in covering), default=None)


class Silences:
    """Those of one gateway. `now` is by a clock that never goes back, `wall` Unix time.

    What of labels' values and comments is no Unicode, as arguments of a command may be, stands there as `?`.
    """

    def __init__(self) -> None:
        self._ends: dict[tuple[str, Labels], tuple[float, Silence]] = {}

    def add(
        self, alert: str, labels: Mapping[str, str], seconds: float, comment: str, now: float, wall: float
    ) -> Silence:
        """Be silent from now on; one of the same name and labels is replaced. Raises SilenceError."""
        texts = [alert, *labels, *labels.values(), comment]
        if len(labels) > _MOST_LABELS or not all(len(text) <= _MOST_TEXT for text in texts):
            raise SilenceError(f"at most {_MOST_LABELS} labels, of {_MOST_TEXT} characters each, can be said")
        if alert != "*" and alert not in BY_ALERT:
            raise SilenceError(f"there is no alert {alert!r}: known are {', '.join(BY_ALERT)}, and * for all")
        kinds = KINDS if alert == "*" else [BY_ALERT[alert]]
        names = {"severity"}.union(*(kind.labels for kind in kinds))
        if unknown := sorted(labels.keys() - names):
            of = "no alert has" if alert == "*" else f"{alert} has not"
            raise SilenceError(f"{of} the label {unknown[0]}: there are {', '.join(sorted(names))}")
        if not 0 < seconds <= _LONGEST:
            raise SilenceError(
                "a silence may last from a moment to a year; to hear no more of a rule, write off for it in "
                "[alerts]"
            )
        key = alert, _kept(labels)
        self._forget(now)
        if len(self._ends) >= MOST and key not in self._ends:
            raise SilenceError(f"there are {MOST} silences already: remove some, or silence * for a while")
        silence = Silence(*key, wall + seconds, _encodable(comment))
        self._ends[key] = now + seconds, silence
        return silence

    def remove(self, alert: str, labels: Mapping[str, str], now: float) -> int:
        """End the silence with just these labels, without any all of that name; return how many that were."""
        self._forget(now)
        wanted = _kept(labels)
        ended = [key for key in self._ends if key[0] == alert and (not wanted or key[1] == wanted)]
        for key in ended:
            del self._ends[key]
        return len(ended)

    def listed(self, now: float) -> list[Silence]:
        """Those in force, in the order of their ends."""
        self._forget(now)
        return [silence for _, silence in sorted(self._ends.values(), key=lambda end: end[0])]

    def _forget(self, now: float) -> None:
        for key, (end, _) in list(self._ends.items()):
            if end <= now:
                del self._ends[key]


def _kept(labels: Mapping[str, str]) -> Labels:
    return tuple(sorted((name, _encodable(value)) for name, value in labels.items()))


def _encodable(text: str) -> str:
    # Half of a surrogate pair can be encoded for nobody: one silence would take the view from all.
    return text.encode(errors="replace").decode()
