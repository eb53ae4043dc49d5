"""Ratios, warnings and verdicts."""

import pytest

from tcpgw.address import Address
from tcpgw.bench.plan import Plan
from tcpgw.bench.report import Measured, failures, order, ratios, to_json, warnings
from tcpgw.bench.tally import Counts
from tests.bench.test_tally import counted

A, B = Address("127.0.0.1", 1), Address("127.0.0.1", 2)


def measured(target: Address, *rounds: Counts) -> Measured:
    return Measured(target, rounds)


def test_the_order_alternates() -> None:
    """No target always follows the other."""
    assert [order(2, number) for number in range(3)] == [[0, 1], [1, 0], [0, 1]]
    assert order(1, 1) == [0]


def test_ratios_are_medians_of_the_rounds() -> None:
    """A machine that is half as fast in one round, for both, changes no ratio."""
    one = measured(A, counted([100] * 30), counted([200] * 15), counted([100] * 60))
    other = measured(B, counted([50] * 20), counted([100] * 10), counted([10] * 10))
    assert ratios(one, other) == {
        "requests_per_second": 1.5,
        "p50": 2.0,
        "p90": 2.0,
        "p99": 2.0,
        "p99.9": 2.0,
    }


def test_a_round_without_answers_adds_no_ratio() -> None:
    """What one target did not answer cannot be compared; where that is so in every round, nothing can."""
    one = measured(A, counted([]), counted([100] * 30))
    other = measured(B, counted([100] * 10), counted([100] * 10))
    assert ratios(one, other)["requests_per_second"] == 3.0
    assert ratios(measured(A, counted([])), measured(B, counted([1]))) == dict.fromkeys(
        ("requests_per_second", "p50", "p90", "p99", "p99.9")
    )


def test_a_late_generator_is_told() -> None:
    """Requests that the generator itself held back make the latencies doubtful, from 1 % of them on."""
    fine, late = counted([100] * 100), counted([100] * 100)
    fine.late, late.late, late.late_worst = 1, 2, 7300
    assert warnings(Plan(rate=100), [measured(A, fine)]) == []
    (warning,) = warnings(Plan(rate=100), [measured(A, late)])
    assert (
        "127.0.0.1:1: 2 of 100 requests (2%) went more than 1 ms after they were due, up to 7 ms" in warning
    )


def test_a_busy_generator_is_told() -> None:
    """A generator without CPU to spare may be what was measured."""
    busy = counted([100])
    busy.cpu_seconds = 1.9
    assert warnings(Plan(processes=3), [measured(A, busy)]) == []
    (warning,) = warnings(Plan(processes=2), [measured(A, busy)])
    assert warning.startswith("The generator used 95% of a core in each process for 127.0.0.1:1")


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        (counted([1], timeout=100), None),
        (counted([], timeout=3, connection_lost=2), "answered no request: 3 timeout, 2 connection_lost"),
        (counted([]), "answered no request: and none failed"),
        (counted([1], wrong_payload=1, bad_answer=2), "answered 3 requests with other bytes than it had to"),
    ],
)
def test_a_session_fails_by_silence_and_by_wrong_bytes_alone(counts: Counts, sentence: str | None) -> None:
    """Failed requests are a finding; no answer at all, or a wrong one, is a failure."""
    expected = [] if sentence is None else [f"127.0.0.1:1 {sentence}"]
    assert failures([measured(A, counts)]) == expected


def test_json_has_ratios_for_two_targets_only() -> None:
    """One target has nothing to be compared with."""
    one = to_json(Plan(), [measured(A, counted([100]))])
    two = to_json(Plan(), [measured(A, counted([100])), measured(B, counted([50]))])
    assert one["ratios"] is None
    assert two["ratios"]["p50"] == 2.0
    assert [target["target"] for target in two["targets"]] == ["127.0.0.1:1", "127.0.0.1:2"]
