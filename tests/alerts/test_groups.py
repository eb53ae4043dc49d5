"""What a webhook is told of, and when."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from tcpgw.alerts.engine import Alert
from tcpgw.alerts.groups import Groups, Notification, Rhythm
from tests.support.alerts import alert, over

WAIT, INTERVAL, REPEAT = 10.0, 60.0, 3600.0


class Told:
    """Groups with a clock; each call gives the services in each notification, `!` before what is over."""

    def __init__(self) -> None:
        self.groups = Groups(Rhythm(WAIT, INTERVAL, REPEAT))
        self.now = 1000.0

    def all(
        self, seconds: float, firing: Sequence[Alert] = (), resolved: Sequence[Alert] = ()
    ) -> list[Notification]:
        self.now += seconds
        return self.groups.look(firing, resolved, {}, self.now)

    def after(self, seconds: float, firing: str = "", resolved: str = "") -> list[str]:
        told = self.all(seconds, [alert(one) for one in firing], [over(one) for one in resolved])
        return [
            " ".join(
                [*(_service(one) for one in sent.firing), *(f"!{_service(one)}" for one in sent.resolved)]
            )
            for sent in told
        ]


def _service(alert: Alert) -> str:
    return dict(alert.labels)["service"]


def test_what_fires_together_is_one_notification() -> None:
    """All that came while the first of them waited."""
    told = Told()
    assert told.after(0, "a") == []
    assert told.after(9, "ab") == []
    assert told.after(1, "abc") == ["a b c"]
    assert told.after(1, "abc") == []


def test_each_name_has_its_own() -> None:
    """By the name of the alert, whatever its labels."""
    told = Told()
    both = [alert("a"), alert("a", "TcpgwPanic"), alert("b")]
    told.all(0, both)
    assert [(one.name, len(one.firing)) for one in told.all(WAIT, both)] == [
        ("TcpgwErrorRate", 2),
        ("TcpgwPanic", 1),
    ]


def test_later_ones_wait_for_the_interval() -> None:
    """And the whole group is told again; long after it they wait for one another only."""
    told = Told()
    told.after(0, "a")
    told.after(WAIT, "a")
    assert told.after(1, "ab") == []
    assert told.after(58, "abc", "") == []
    assert told.after(1, "abc") == ["a b c"]
    assert told.after(INTERVAL + 1, "abcd") == []
    assert told.after(WAIT, "abcd") == ["a b c d"]


def test_that_it_is_over_is_told() -> None:
    """With those that still fire, and alone at last; at once where nothing was told lately."""
    told = Told()
    told.after(0, "ab")
    told.after(WAIT, "ab")
    assert told.after(INTERVAL, "b", "a") == ["b !a"]
    assert told.after(1, "", "b") == []
    assert told.after(INTERVAL - 1) == ["!b"]
    assert told.after(REPEAT) == []


def test_nobody_hears_the_end_of_what_nobody_heard_of() -> None:
    """What comes and goes before its turn is no news."""
    told = Told()
    told.after(0, "a")
    assert told.after(5, "", "a") == []
    assert told.after(WAIT) == []
    told.after(0, "ab")
    assert told.after(WAIT, "ab") == ["a b"]
    told.after(1, "abc")
    assert told.after(INTERVAL, "ab", "c") == []


def test_one_that_fires_again_before_its_end_was_told_goes_on() -> None:
    """Nobody missed it."""
    told = Told()
    told.after(0, "a")
    told.after(WAIT, "a")
    assert told.after(1, "", "a") == []
    assert told.after(1, "a") == []
    assert told.after(INTERVAL, "a") == []
    assert told.after(INTERVAL, "", "a") == ["!a"]


def test_it_is_told_again_while_it_fires() -> None:
    """Each `repeat` from the last time."""
    told = Told()
    told.after(0, "a")
    told.after(WAIT, "a")
    assert told.after(REPEAT - 1, "a") == []
    assert told.after(1, "a") == ["a"]
    assert told.after(REPEAT - 1, "a") == []
    assert told.after(1, "a") == ["a"]


def test_one_that_is_silenced_is_told_to_be_over() -> None:
    """If it was told of before. Heard again, it is no news; and meanwhile it is not repeated."""
    told = Told()
    told.after(0, "ab")
    told.after(WAIT, "ab")
    assert told.after(REPEAT, "b") == ["b"]
    assert told.after(1, "ab") == []
    assert told.after(INTERVAL, "ab") == []
    assert told.after(1) == []
    assert told.after(REPEAT) == []
    assert told.after(1, "", "ab") == ["!a !b"]


def test_one_that_swings_does_not_hurry() -> None:
    """A notification of a name is no sooner than `interval` after the last, though all was over."""
    told = Told()
    told.after(0, "a")
    told.after(WAIT, "a")
    assert told.after(INTERVAL, "", "a") == ["!a"]
    assert told.after(1, "a") == []
    assert told.after(INTERVAL - 2, "a") == []
    assert told.after(1, "a") == ["a"]


def test_how_many_more_there_are_is_told() -> None:
    """Where the rule has no more room."""
    groups = Groups(Rhythm(0, 1, 1))
    (told,) = groups.look([alert()], [], {"TcpgwErrorRate": 7}, 0)
    assert told.left_out == 7


steps = st.tuples(
    st.sampled_from([0.5, 1, 10, 30, 60]), st.sets(st.sampled_from("abc")), st.sets(st.sampled_from("abc"))
)


@given(st.lists(steps, max_size=40))
def test_what_is_told_is_true_and_seldom(history: list[tuple[float, set[str], set[str]]]) -> None:
    """Firing is what fires and is heard, its end comes to who heard of it, and nothing comes too soon."""
    told = Told()
    known: set[str] = set()
    fires: set[str] = set()
    last = None
    for seconds, firing, silenced in history:
        resolved, fires = fires - firing, firing
        heard = firing - silenced
        sent = told.all(
            seconds, [alert(one) for one in sorted(heard)], [over(one) for one in sorted(resolved)]
        )
        for one in sent:
            assert last is None or told.now - last >= INTERVAL
            last = told.now
            assert {_service(each) for each in one.firing} == heard
            ended = {_service(each) for each in one.resolved}
            assert ended <= known - heard
            assert ended.isdisjoint(firing - silenced)
            known = (known | heard) - ended
        assert len(sent) <= 1


def test_who_is_reminded_hears_again_of_what_fires() -> None:
    """At the next look, and of ends as before; what waits for its first turn still does."""
    told = Told()
    told.after(0, "ab")
    told.after(WAIT, "ab")
    told.groups.remind()
    assert told.after(1, "a", "b") == ["a !b"]
    assert told.after(1, "a") == []
    told.groups.remind()
    assert told.after(1, "", "a") == ["!a"]
    told.after(INTERVAL, "c")
    told.groups.remind()
    assert told.after(WAIT - 1, "c") == []
    assert told.after(1, "c") == ["c"]
