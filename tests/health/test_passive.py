from hypothesis import given
from hypothesis import strategies as st

from tcpgw.health.passive import Window

SPAN = 10.0

batches = st.tuples(st.integers(0, 5), st.integers(0, 5), st.floats(0.0, 4.0))


def test_counts_are_those_of_the_last_seconds() -> None:
    """What is older than the window counts no more."""
    window = Window()
    window.add(3, 1, SPAN, 100.0)
    window.add(0, 2, SPAN, 109.9)
    assert (window.successes, window.failures, window.total) == (3, 3, 6)
    window.add(1, 0, SPAN, 110.0)
    assert (window.successes, window.failures) == (1, 2)
    window.add(0, 0, SPAN, 200.0)
    assert window.total == 0


def test_a_cleared_window_has_counted_nothing() -> None:
    """After `clear` nothing that came before counts, nor is it taken off later."""
    window = Window()
    window.add(3, 1, SPAN, 100.0)
    window.clear()
    assert window.total == 0
    window.add(1, 1, SPAN, 120.0)
    assert window.total == 2


@given(st.lists(batches, max_size=80))
def test_counts_are_right_to_a_tenth(history: list[tuple[int, int, float]]) -> None:
    """All of the last nine tenths count, nothing older than the window does, and buckets are few."""
    window = Window()
    now = 1000.0
    told: list[tuple[float, int, int]] = []
    for successes, failures, pause in history:
        now += pause
        window.add(successes, failures, SPAN, now)
        told.append((now, successes, failures))
        for kept, place in ((window.successes, 1), (window.failures, 2)):
            assert sum(one[place] for one in told if one[0] > now - 0.9 * SPAN) <= kept
            assert kept <= sum(one[place] for one in told if one[0] > now - SPAN)
        assert len(window._buckets) <= 11


@given(st.lists(st.sampled_from([0.5, 1.0, 10.0, 60.0]), max_size=60))
def test_the_span_may_change(spans: list[float]) -> None:
    """A window whose length changes by a reload goes on counting, in no more buckets than both need."""
    window = Window()
    for turn, span in enumerate(spans):
        window.add(1, 1, span, turn * 0.1)
        assert window.successes == window.failures == window.total / 2
        assert 1 <= window.successes <= turn + 1
        assert len(window._buckets) <= 22
