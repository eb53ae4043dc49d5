"""Of which alerts nobody is told for a while."""

import pytest

from tcpgw.alerts.silences import MOST, SilenceError, Silences, until
from tests.support.alerts import WALL, alert

RATE = "TcpgwErrorRate"


@pytest.mark.parametrize(
    ("name", "labels", "covered"),
    [
        (RATE, {}, True),
        (RATE, {"service": "a"}, True),
        (RATE, {"service": "b"}, False),
        (RATE, {"service": "a", "severity": "critical"}, True),
        (RATE, {"service": "a", "severity": "warning"}, False),
        ("TcpgwPanic", {}, False),
        ("*", {}, True),
        ("*", {"service": "a"}, True),
        ("*", {"service": "b"}, False),
    ],
)
def test_a_silence_covers_what_has_its_name_and_labels(
    name: str, labels: dict[str, str], covered: bool
) -> None:
    """Labels that it does not name may be any."""
    silences = Silences()
    silences.add(name, labels, 60, "", 0, WALL)
    assert (until(alert("a"), silences.listed(1)) == WALL + 60) is covered


def test_it_ends_by_itself() -> None:
    """At its time, and the last one that covers an alert counts."""
    silences = Silences()
    silences.add(RATE, {}, 60, "short", 0, WALL)
    silences.add("*", {"service": "a"}, 90, "long", 0, WALL)
    assert [silence.comment for silence in silences.listed(59)] == ["short", "long"]
    assert (until(alert("a"), silences.listed(59)), until(alert("b"), silences.listed(59))) == (
        WALL + 90,
        WALL + 60,
    )
    assert (until(alert("a"), silences.listed(60)), until(alert("b"), silences.listed(60))) == (
        WALL + 90,
        None,
    )
    assert silences.listed(90) == []


def test_the_same_again_takes_its_place() -> None:
    """Whatever the order of the labels; also to end it sooner."""
    silences = Silences()
    silences.add(RATE, {"service": "a", "severity": "critical"}, 60, "one", 0, WALL)
    silences.add(RATE, {"severity": "critical", "service": "a"}, 30, "two", 0, WALL)
    assert [(silence.comment, silence.until) for silence in silences.listed(0)] == [("two", WALL + 30)]


@pytest.mark.parametrize(
    ("name", "label", "known"),
    [
        (RATE, "listener", "service, severity"),
        (RATE, "alertname", "service, severity"),
        ("TcpgwCertificateExpiry", "service", "kind, listener, severity"),
        ("*", "team", "cloud, kind, listener, service, severity"),
    ],
)
def test_one_that_can_cover_nothing_is_refused(name: str, label: str, known: str) -> None:
    """With the labels that there are: those of webhooks and of `[alerts]` are added on their way."""
    silences = Silences()
    with pytest.raises(SilenceError, match=f"the label {label}: there are {known}$"):
        silences.add(name, {label: "x"}, 60, "", 0, WALL)
    assert silences.listed(0) == []


def test_it_can_be_removed() -> None:
    """By the same name and labels; another time there is none, nor when it has ended by itself."""
    silences = Silences()
    silences.add(RATE, {"service": "a"}, 60, "", 0, WALL)
    assert silences.remove(RATE, {"service": "b"}, 1) == 0
    assert silences.remove("*", {"service": "a"}, 1) == 0
    assert silences.remove(RATE, {"service": "a"}, 1) == 1
    assert silences.remove(RATE, {"service": "a"}, 1) == 0
    assert until(alert("a"), silences.listed(1)) is None
    silences.add(RATE, {"service": "a"}, 60, "", 0, WALL)
    assert silences.remove(RATE, {"service": "a"}, 60) == 0


def test_without_labels_all_of_the_name_are_removed() -> None:
    """Whatever labels they have; those of other names stay, and `*` is such a name."""
    silences = Silences()
    for name in (RATE, "TcpgwPanic", "*"):
        for labels in ({}, {"service": "a"}, {"service": "b"}):
            silences.add(name, labels, 60, "", 0, WALL)
    assert silences.remove(RATE, {}, 1) == 3
    assert {silence.alert for silence in silences.listed(1)} == {"TcpgwPanic", "*"}
    assert silences.remove("*", {}, 1) == 3
    assert len(silences.listed(1)) == 3


def test_what_is_no_unicode_is_replaced() -> None:
    """As arguments of a command in another encoding: who shows it can; by the same it is ended."""
    silences = Silences()
    silences.add(RATE, {"service": "l\udcfc"}, 60, "f\udcfcr", 0, WALL)
    (silence,) = silences.listed(1)
    assert (silence.labels, silence.comment) == ((("service", "l?"),), "f?r")
    assert silences.remove(RATE, {"service": "l\udcfc"}, 1) == 1


@pytest.mark.parametrize(
    ("name", "labels", "seconds", "comment", "why"),
    [
        ("ErrorRate", {}, 60, "", "known are TcpgwNoUsableInstance, "),
        (RATE, {}, 0, "", "from a moment to a year"),
        (RATE, {}, float("nan"), "", "from a moment to a year"),
        (RATE, {}, 1e9, "", "from a moment to a year"),
        (RATE, {}, 60, "x" * 1025, "1024 characters"),
        ("x" * 1025, {}, 60, "", "1024 characters"),
        (RATE, {str(number): "" for number in range(17)}, 60, "", "at most 16 labels"),
    ],
)
def test_others_are_refused(
    name: str, labels: dict[str, str], seconds: float, comment: str, why: str
) -> None:
    """With what may stand there, and nothing is silenced."""
    silences = Silences()
    with pytest.raises(SilenceError, match=why):
        silences.add(name, labels, seconds, comment, 0, WALL)
    assert silences.listed(0) == []


def test_there_are_so_many_at_most() -> None:
    """One of them can still be changed, and those that end make room."""
    silences = Silences()
    for number in range(MOST):
        silences.add(RATE, {"service": str(number)}, 60 + number, "", 0, WALL)
    with pytest.raises(SilenceError, match="100 silences"):
        silences.add("*", {}, 60, "", 0, WALL)
    silences.add(RATE, {"service": "0"}, 30, "", 0, WALL)
    silences.add("*", {}, 60, "", 30, WALL)
    assert len(silences.listed(30)) == MOST
