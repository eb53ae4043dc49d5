"""What an Alertmanager must hear, and when."""

from tcpgw.alerts.engine import Alert
from tcpgw.alerts.upkeep import LASTING, RESEND, Upkeep
from tests.support.alerts import WALL, alert


def told(upkeep: Upkeep, now: float, *firing: Alert) -> list[tuple[str, str]]:
    return [(dict(one.labels)["service"], one.state) for one in upkeep.look(firing, now, WALL + now)]


def test_it_hears_at_once_and_again_and_again() -> None:
    """Before it would take them for over, several times."""
    upkeep = Upkeep()
    assert told(upkeep, 0, alert("a")) == [("a", "firing")]
    assert told(upkeep, 1, alert("a"), alert("b")) == [("b", "firing")]
    assert told(upkeep, RESEND - 1, alert("a"), alert("b")) == []
    assert told(upkeep, RESEND, alert("a"), alert("b")) == [("a", "firing"), ("b", "firing")]
    assert told(upkeep, RESEND + 1, alert("a"), alert("b")) == []
    assert LASTING >= 3 * RESEND


def test_it_hears_that_one_is_over_once() -> None:
    """With the moment, whether it was resolved or silenced; when all are, nothing more."""
    upkeep = Upkeep()
    upkeep.look([alert("a"), alert("b")], 0, WALL)
    (over,) = upkeep.look([alert("b")], 5, WALL + 5)
    assert (over.labels, over.state, over.ended) == (alert("a").labels, "resolved", WALL + 5)
    assert told(upkeep, RESEND) == [("b", "resolved")]
    assert told(upkeep, 2 * RESEND) == []


def test_one_that_fires_again_is_told_at_once() -> None:
    """Also where nobody looked in between; and so is one of another severity, another alert there."""
    upkeep = Upkeep()
    assert told(upkeep, 0, alert("a")) == [("a", "firing")]
    assert told(upkeep, 1, alert("a", since=WALL + 1)) == [("a", "firing")]
    changed = alert("a", since=WALL + 1, severity="warning")
    assert told(upkeep, 2, changed) == [("a", "firing"), ("a", "resolved")]


def test_it_is_reminded() -> None:
    """Of what fires at the next look, and of what is over since."""
    upkeep = Upkeep()
    assert told(upkeep, 0, alert("a"), alert("b")) == [("a", "firing"), ("b", "firing")]
    upkeep.remind()
    assert told(upkeep, 1, alert("a")) == [("a", "firing"), ("b", "resolved")]
    assert told(upkeep, 2, alert("a")) == []
