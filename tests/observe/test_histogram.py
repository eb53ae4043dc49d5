from math import ceil, inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgw.observe.histogram import Histogram, RunningQuantile, cumulative, quantile_of

HALF_A_MICROSECOND = 0.5e-6
LONGEST = 2**32 / 1e6

latencies = st.one_of(st.floats(0, 100e-6), st.floats(0, 1), st.floats(0, LONGEST, exclude_max=True))


def histogram_of(*seconds: float) -> Histogram:
    histogram = Histogram()
    for latency in seconds:
        histogram.add(latency)
    return histogram


def near(seconds: float) -> object:
    """What a told latency may be off: half a bucket, and what rounding at a bucket's edge makes of it."""
    return pytest.approx(seconds, rel=1 / 16 + 1e-6, abs=HALF_A_MICROSECOND * 1.001)


@given(latencies)
def test_a_latency_is_told_within_a_sixteenth(seconds: float) -> None:
    """Whatever was put in comes back within 1/16, or half a microsecond."""
    assert histogram_of(seconds).quantile(0.5) == near(seconds)


@given(st.lists(latencies, min_size=1, max_size=60), st.floats(0, 1))
def test_a_quantile_is_that_of_the_sorted_latencies(seconds: list[float], q: float) -> None:
    """The quantile is the nearest rank's latency, within a bucket."""
    rank = max(1, ceil(q * len(seconds)))
    assert histogram_of(*seconds).quantile(q) == near(sorted(seconds)[rank - 1])


@given(st.lists(latencies, max_size=40))
def test_buckets_hold_everything_once(seconds: list[float]) -> None:
    """Bounds rise and never change, the last is infinite, and counts to the left of a bound are below it."""
    histogram = histogram_of(*seconds)
    buckets = list(histogram.buckets())
    bounds = [bound for bound, _ in buckets]
    assert bounds == sorted(set(bounds)) == [bound for bound, _ in Histogram().buckets()]
    assert bounds[-1] == inf
    seen = 0
    for bound, count in buckets:
        seen += count
        assert sum(s < bound * (1 - 1e-9) for s in seconds) <= seen <= sum(s <= bound for s in seconds)
    assert seen == histogram.count == len(seconds)
    assert histogram.total == pytest.approx(sum(seconds))


def test_the_buckets_are_eight_in_a_power_of_two() -> None:
    """Up to 16 µs a bucket is a microsecond, above an eighth of its power of two, up to 4295 s."""
    bounds = [round(bound * 1e6) for bound, _ in Histogram().buckets() if bound < inf]
    assert bounds[:20] == [*range(1, 17), 18, 20, 22, 24]
    assert bounds[-9:] == [n * 2**28 for n in range(8, 17)]
    assert len(bounds) == 240


def test_many_at_once_count_as_many() -> None:
    """A count of latencies is the same as each of them alone."""
    one, many = histogram_of(*[0.001] * 7, 0.5), histogram_of(0.5)
    many.add(0.001, 7)
    assert list(one.buckets()) == list(many.buckets())
    assert one.count == many.count == 8
    assert one.total == pytest.approx(many.total)


def test_extremes_are_counted_at_the_ends() -> None:
    """A clock that went back counts as 0, and what takes longer than the buckets is told as their end."""
    histogram = histogram_of(-1.0, 1e6)
    assert histogram.quantile(0.0) == HALF_A_MICROSECOND
    assert histogram.quantile(1.0) == LONGEST
    assert [count for _, count in histogram.buckets() if count] == [1, 1]
    assert list(histogram.buckets())[-1] == (inf, 1)
    assert histogram_of(LONGEST).quantile(0.5) == LONGEST


def test_an_empty_one_says_nothing() -> None:
    """Without latencies every quantile is 0."""
    histogram = Histogram()
    assert histogram.quantile(0.95) == 0.0
    assert (histogram.count, histogram.total) == (0, 0.0)


def test_a_running_quantile_says_nothing_at_first() -> None:
    """Until 16 latencies were seen the value is 0, and then their quantile."""
    running = RunningQuantile(0.95)
    for _ in range(15):
        running.add(0.010)
    assert running.value == 0.0
    running.add(0.030)
    assert running.value == near(0.030)


@pytest.mark.parametrize("run", [1, 7, 100])
def test_a_running_quantile_follows_change(run: int) -> None:
    """Whether instances become slower or faster, two windows later the value knows nothing of before."""
    running = RunningQuantile(0.95)
    for seconds in (0.010, 1.0, 0.010):
        for _ in range(ceil(2 * 512 / run)):
            running.add(seconds, run)
        assert running.value == near(seconds)


def test_a_running_quantile_is_steady() -> None:
    """A few slow ones among many, fewer than the quantile leaves out, do not move it."""
    running = RunningQuantile(0.95)
    values = set()
    for number in range(5000):
        running.add(1.0 if number % 50 == 49 else 0.010)
        if number >= 50:
            values.add(running.value)
    assert values == {running.value}
    assert running.value == near(0.010)


@given(st.lists(latencies, max_size=60), st.floats(0, 1))
def test_figures_say_as_much(seconds: list[float], q: float) -> None:
    """Count, sum and quantiles out of the plain values are those of the histogram."""
    histogram = Histogram()
    for one in seconds:
        histogram.add(one)
    figures = histogram.figures()
    assert (figures["count"], figures["sum"]) == (histogram.count, histogram.total)
    assert (quantile_of(figures["buckets"], q) or 0.0) == histogram.quantile(q)


@given(st.lists(latencies, max_size=60))
def test_cumulative_counts_are_exact(seconds: list[float]) -> None:
    """As many as did not exceed a bound, at every power of two of microseconds."""
    histogram = Histogram()
    for one in seconds:
        histogram.add(one)
    bounds = [1 << power for power in range(4, 32)]
    for (edge, count), bound in zip(cumulative(histogram.figures()["buckets"], bounds), bounds, strict=True):
        assert edge == bound / 1e6
        assert count == sum(int(one * 1e6) < bound for one in seconds)
