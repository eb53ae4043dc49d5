"""What counters did lately."""

from hypothesis import given
from hypothesis import strategies as st

from tcpgw.observe.history import Differ, Key, Window

A, B, C = KEYS = [("a",), ("b", "x"), ("b", "y")]


def test_what_grew_is_told() -> None:
    """At the first look nothing; what is new began at 0; what shrank, or stayed, did not grow."""
    differ = Differ()
    assert differ.look({A: 5, B: 3}) == {}
    assert differ.look({A: 7, B: 3, C: 2}) == {A: 2, C: 2}
    assert differ.look({A: 1, C: 2}) == {}
    assert differ.look({A: 4}) == {A: 3}


def test_a_window_knows_nothing_at_first() -> None:
    """What grew before its first look is not of its time: no rate is made of it."""
    window = Window(10.0)
    assert (window.seconds, window.rate(A), window.sum(A)) == (0.0, 0.0, 0)
    window.add(100.0, {A: 50})
    assert (window.seconds, window.rate(A)) == (0.0, 0.0)
    window.add(102.0, {A: 50})
    assert (window.seconds, window.rate(A), window.sum(A)) == (2.0, 25.0, 50)


def test_a_window_forgets() -> None:
    """What is older than its span, and keys with it, so that it stays as large as what happens."""
    window = Window(10.0)
    window.add(0.0, {})
    for second in range(1, 31):
        window.add(float(second), {A: 2} if second < 15 else {B: 1})
    assert (len(window), window.sum(A), window.sum(B)) == (1, 0, 10)
    assert window.seconds == 10.0
    assert window.rate(B) == 1.0


def test_one_long_step_stays() -> None:
    """A look that came late is not thrown away: it is all that is known."""
    window = Window(10.0)
    window.add(0.0, {})
    window.add(60.0, {A: 120})
    assert window.rate(A) == 2.0


def test_buckets_of_a_histogram() -> None:
    """Those of one key, by bucket."""
    window = Window(10.0)
    window.add(0.0, {})
    others: dict[Key, float] = {("t", "other", "4"): 7, ("t", "s"): 3, ("t",): 1}
    window.add(1.0, {("t", "s", "4"): 2, ("t", "s", "9"): 1, **others})
    assert window.buckets("t", "s") == {"4": 2, "9": 1}


@given(st.lists(st.dictionaries(st.sampled_from(KEYS), st.integers(1, 9)), max_size=60), st.integers(1, 20))
def test_sums_are_those_of_what_is_left(steps: list[dict[Key, int]], span: int) -> None:
    """For any counters the sums are exactly those of the last steps of the span."""
    window = Window(float(span))
    window.add(0.0, {})
    for second, step in enumerate(steps, 1):
        window.add(float(second), {**step})
    kept = steps[-span:]
    for key in KEYS:
        assert window.sum(key) == sum(step.get(key, 0) for step in kept)
    assert window.seconds == len(kept)
