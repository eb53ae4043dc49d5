"""What is counted, and how counts become one."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgw.bench.tally import LATE, LOST, TIMEOUT, Counts, Tally, of_processes, of_rounds, rounded

MS = 1_000_000
BEGIN, END = 1000 * MS, 2000 * MS


@pytest.fixture
def tally() -> Tally:
    """A tally whose window is the second second."""
    tally = Tally()
    tally.open(BEGIN, END)
    return tally


def counted(latencies: list[int], **errors: int) -> Counts:
    """Counts of a second, with latencies in µs."""
    tally = Tally()
    tally.open(BEGIN, END)
    for latency in latencies:
        tally.received([BEGIN], 64, BEGIN + latency * 1000)
    for kind, count in errors.items():
        tally.failed([BEGIN] * count, kind, BEGIN)
    return tally.finish(cpu_seconds=0.25, strays=1)


def test_only_the_window_counts(tally: Tally) -> None:
    """Latencies are those of requests that began within, rates those of what passed within."""
    for begin, now in ((BEGIN - 1, BEGIN), (BEGIN, BEGIN + 5 * MS), (END - 1, END + 9 * MS), (END, END + 1)):
        tally.sent([begin], 100, begin)
        tally.received([begin], 64, now)
    counts = tally.finish(cpu_seconds=0.5, strays=2)
    assert counts.answered == 2
    assert (counts.percentile(50), counts.worst) == (5003, 9007)  # the highest of what 3 digits tell apart
    assert (counts.answers, counts.rate) == (2, 2.0)
    assert (counts.bytes_sent, counts.bytes_received) == (200, 128)
    assert (counts.seconds, counts.cpu_seconds, counts.strays, counts.failed) == (1.0, 0.5, 2, 0)
    assert (tally.answers, tally.failures) == (4, 0)


def test_a_failure_of_the_warm_ups_requests_counts_from_the_window_on(tally: Tally) -> None:
    """A target that stalls all through the window is seen, though no request began within."""
    tally.failed([BEGIN - 900 * MS], TIMEOUT, BEGIN - 1, 500 * MS)
    tally.failed([BEGIN - 400 * MS, END], TIMEOUT, BEGIN + 100 * MS, 500 * MS)
    counts = tally.finish(cpu_seconds=0, strays=0)
    assert counts.errors == {TIMEOUT: 1}
    assert counts.answered == 0


def test_a_time_out_is_a_latency_and_a_lost_connection_is_none(tally: Tally) -> None:
    """What was never answered took at least as long as it was waited for."""
    tally.received([BEGIN], 64, BEGIN + MS)
    tally.failed([BEGIN], TIMEOUT, END, 500 * MS)
    tally.failed([BEGIN], LOST, END)
    counts = tally.finish(cpu_seconds=0, strays=0)
    assert counts.histogram.get_total_count() == 2
    assert counts.worst == pytest.approx(500_000, rel=0.001)
    assert counts.errors == {TIMEOUT: 1, LOST: 1}
    assert counts.failed == 2


def test_lateness_counts_from_when_the_request_could_go(tally: Tally) -> None:
    """What waited for the target's connection is not the generator's lateness; what waited longer is."""
    now = BEGIN + 10 * MS
    tally.sent([now - LATE], 64, now)
    tally.sent([BEGIN], 64, now, ready_since=now)
    assert tally.finish(cpu_seconds=0, strays=0).late == 0
    tally = Tally()
    tally.open(BEGIN, END)
    tally.sent([BEGIN, now - LATE - 1, now], 64, now, ready_since=BEGIN + 5 * MS)
    tally.sent([BEGIN - 9 * MS], 64, BEGIN)
    counts = tally.finish(cpu_seconds=0, strays=0)
    assert (counts.late, counts.late_worst) == (2, 5000)


def test_kinds_of_failure_are_bounded(tally: Tally) -> None:
    """A service that invents codes does not fill the memory: beyond 32 kinds they are counted together."""
    for number in range(100):
        tally.failed([BEGIN], f"code {number}", BEGIN)
    counts = tally.finish(cpu_seconds=0, strays=0)
    assert len(counts.errors) == 33
    assert (counts.errors["other"], counts.failed) == (68, 100)


@given(st.integers(0, 60_000_000))
def test_rounding_loses_less_than_the_histogram(latency: int) -> None:
    """A latency is kept to a thousandth, and what is below 2 ms as it is."""
    assert rounded(latency) <= latency
    assert latency - rounded(latency) <= latency / 1024
    assert latency >= 2048 or rounded(latency) == latency


@given(st.lists(st.integers(1, 60_000_000), min_size=1, max_size=50))
def test_percentiles_are_those_of_the_latencies(latencies: list[int]) -> None:
    """Median and maximum are right to a thousandth."""
    counts = counted(latencies)
    ordered = sorted(latencies)
    assert counts.percentile(50) == pytest.approx(ordered[(len(ordered) - 1) // 2], rel=0.001, abs=1)
    assert counts.worst == pytest.approx(ordered[-1], rel=0.001, abs=1)


def test_counts_survive_json() -> None:
    """What a worker process sends is what its parent reads."""
    counts = counted([5, 70_000], timeout=2)
    again = Counts.from_dict(json.loads(json.dumps(counts.to_dict())))
    assert again.to_dict() == counts.to_dict()
    assert (again.percentile(50), again.failed, again.strays) == (5, 2, 1)


def test_nothing_measured_has_no_percentile() -> None:
    """A window without a request has no latency, rather than one of 0."""
    assert (counted([]).percentile(99), counted([]).worst, counted([]).rate) == (None, None, 0.0)


def test_processes_share_a_window_and_rounds_follow_each_other() -> None:
    """Rates of processes add up; those of rounds average out. Latencies and errors are pooled in both."""
    parts = [counted([100] * 30, timeout=1), counted([900] * 10, timeout=2, connection_lost=7)]
    processes, rounds = of_processes(parts), of_rounds(parts)
    assert (processes.seconds, processes.rate) == (1.0, 40.0)
    assert (rounds.seconds, rounds.rate) == (2.0, 20.0)
    for total in (processes, rounds):
        assert (total.answered, total.strays, total.cpu_seconds) == (40, 2, 0.5)
        assert list(total.errors.items()) == [("connection_lost", 7), ("timeout", 3)]
        assert (total.percentile(50), total.percentile(90)) == (100, 900)
        assert total.histogram.get_total_count() == 40
