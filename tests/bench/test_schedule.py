"""When requests are due, and when a connection is opened again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgw.bench.schedule import Schedule, backoff

SECOND = 1_000_000_000
EVER = 10**15


def test_requests_are_due_at_n_over_rate() -> None:
    """Request n is due n / rate after the beginning, exactly, and none at the end or after it."""
    schedule = Schedule(3, begin=100, seconds=2)
    assert schedule.take(EVER, 100) == [100 + n * SECOND // 3 for n in range(6)]
    assert schedule.exhausted


def test_nothing_is_taken_before_it_is_due_nor_twice() -> None:
    """Each call gives what has become due since the last one."""
    schedule = Schedule(1000, begin=0, seconds=1)
    assert schedule.take(-1, 9) == []
    assert schedule.take(0, 9) == [0]
    assert schedule.take(999_999, 9) == []
    assert schedule.take(1_000_000, 9) == [1_000_000]
    assert schedule.first == 0
    assert schedule.spacing == 1_000_000
    assert not schedule.exhausted


def test_a_limit_leaves_the_rest_for_later_with_its_own_times() -> None:
    """Requests that are sent late keep the times at which they were due: no coordinated omission."""
    schedule = Schedule(10, begin=0, seconds=1)
    assert schedule.take(EVER, 3) == [0, 100_000_000, 200_000_000]
    assert schedule.take(EVER, 2) == [300_000_000, 400_000_000]


def test_what_is_given_up_is_not_sent() -> None:
    """`skip` takes what was due before a time, and leaves what is due at it."""
    schedule = Schedule(10, begin=0, seconds=1)
    assert schedule.skip(200_000_000) == [0, 100_000_000]
    assert schedule.skip(200_000_000) == []
    assert schedule.take(EVER, 1) == [200_000_000]


@given(
    rate=st.floats(0.01, 1e6),
    processes=st.integers(1, 5),
    cuts=st.lists(st.integers(0, SECOND // 50), max_size=5),
)
def test_the_processes_requests_are_all_requests(rate: float, processes: int, cuts: list[int]) -> None:
    """However often it is taken, and by how many processes, the same requests are due at the same times."""
    shares = [
        Schedule(rate, begin=7, seconds=0.02, first=first, stride=processes) for first in range(processes)
    ]
    taken = [time for share in shares for cut in (*cuts, EVER) for time in share.take(cut, 10**6)]
    assert sorted(taken) == Schedule(rate, begin=7, seconds=0.02).take(EVER, 10**6)
    assert len(taken) == pytest.approx(rate * 0.02, abs=1)


def test_backoff_doubles_up_to_a_second() -> None:
    """A connection that keeps failing is tried once a second, one that has just been useful at once."""
    assert [backoff(failures) for failures in range(6)] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0]
    assert backoff(10**6) == 1.0
