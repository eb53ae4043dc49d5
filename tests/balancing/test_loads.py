import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgw.balancing.loads import Loads
from tcpgw.endpoints import Endpoint

A, B, C = (Endpoint.of(f"10.0.0.{n}", 80) for n in (1, 2, 3))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_counts_what_is_in_flight() -> None:
    """`begin` and `end` count per endpoint and in total; of an unknown endpoint everything is 0."""
    loads = Loads(Clock())
    assert (loads.inflight(A), loads.latency(A), loads.total) == (0, 0.0, 0)
    for endpoint in (A, A, B):
        loads.begin(endpoint)
    assert (loads.inflight(A), loads.inflight(B), loads.total) == (2, 1, 3)
    loads.end(A)
    assert (loads.inflight(A), loads.inflight(B), loads.total) == (1, 1, 2)


def test_many_at_once_count_as_many() -> None:
    """A run begun in one call may end in any portions, also while its endpoint leaves."""
    loads = Loads(Clock())
    loads.begin(A, 5)
    loads.begin(B, 2)
    loads.end(A, 3)
    assert (loads.inflight(A), loads.inflight(B), loads.total) == (2, 2, 4)
    loads.retain([B])
    loads.begin(A, 2)
    loads.end(A, 3)
    assert (loads.inflight(A), loads.total) == (1, 2)
    loads.end(A)
    with pytest.raises(KeyError):
        loads.end(A, 1)


def test_who_counts_often_may_hold_the_load() -> None:
    """`of` is the endpoint's own count, made where there is none: adding there is what `begin` does."""
    loads = Loads(Clock())
    load = loads.of(A)
    assert (load.inflight, loads.total) == (0, 0)
    load.inflight += 2
    loads.total += 2
    loads.begin(A)
    assert loads.of(A) is load
    assert (load.inflight, loads.inflight(A), loads.total) == (3, 3, 3)
    loads.end(A, 3)
    assert (loads.inflight(A), loads.total) == (0, 0)


def test_an_end_without_begin_is_an_error() -> None:
    """Ending what never began raises instead of counting below zero."""
    with pytest.raises(KeyError):
        Loads(Clock()).end(A)


def test_a_leaving_endpoint_counts_no_more_in_the_total() -> None:
    """Connections that drain from a removed endpoint are its own, but no longer the service's load."""
    loads = Loads(Clock())
    for endpoint in (A, A, B):
        loads.begin(endpoint)
    loads.retain([B, C])
    assert (loads.inflight(A), loads.total) == (2, 1)
    loads.begin(A)  # chosen just before the snapshot changed
    loads.end(A)
    loads.end(A)
    assert (loads.inflight(A), loads.total) == (1, 1)


def test_a_returning_endpoint_keeps_its_load() -> None:
    """An endpoint that comes back while it still drains has its connections and its latency."""
    loads = Loads(Clock())
    loads.begin(A)
    loads.observe(A, 0.5)
    loads.retain([])
    loads.retain([A])
    assert (loads.inflight(A), loads.latency(A), loads.total) == (1, 0.5, 1)


def test_idle_endpoints_outside_the_snapshot_are_forgotten() -> None:
    """What is known of an endpoint goes with it: at once where idle, else with its last connection."""
    loads = Loads(Clock())
    for endpoint in (A, B):
        loads.begin(endpoint)
        loads.observe(endpoint, 0.5)
    loads.end(A)
    loads.retain([])
    assert (loads.latency(A), loads.latency(B)) == (0.0, 0.5)
    loads.end(B)
    assert (loads.latency(B), loads.inflight(B), loads.total) == (0.0, 0, 0)


def test_latency_rises_at_once_and_falls_slowly() -> None:
    """A worse latency counts in full; a better one after 10 s counts 1 - 1/e."""
    clock = Clock()
    loads = Loads(clock)
    loads.observe(A, 0.010)
    loads.observe(A, 2.0)
    assert loads.latency(A) == 2.0
    loads.observe(A, 0.010)
    assert loads.latency(A) == 2.0
    clock.now += 10
    loads.observe(A, 0.010)
    assert loads.latency(A) == pytest.approx(2.0 / math.e + 0.010 * (1 - 1 / math.e))


def test_latency_fades_while_nothing_is_observed() -> None:
    """Reading shows the decay, and reading often changes nothing."""
    clock = Clock()
    loads = Loads(clock)
    loads.observe(A, 1.0)
    for _ in range(10):
        clock.now += 1
        assert 0 < loads.latency(A) < 1
    assert loads.latency(A) == pytest.approx(1 / math.e)
    clock.now += 1e6
    assert loads.latency(A) == 0.0


events = st.lists(
    st.tuples(
        st.sampled_from("+-="),
        st.sampled_from([A, B, C]),
        st.integers(1, 3),
        st.sets(st.sampled_from([A, B, C])),
    )
)


@given(events)
def test_total_is_the_sum_over_the_retained(history: list[tuple[str, Endpoint, int, set[Endpoint]]]) -> None:
    """Whatever the history, the total is what is in flight at the endpoints of the last `retain`."""
    loads, expected, kept = Loads(Clock()), Counter[Endpoint](), {A, B, C}
    for kind, endpoint, count, endpoints in history:
        if kind == "=":
            kept = endpoints
            loads.retain(endpoints)
        elif kind == "+":
            if endpoint in kept or expected[endpoint]:
                loads.begin(endpoint, count)
                expected[endpoint] += count
        elif ended := min(count, expected[endpoint]):
            loads.end(endpoint, ended)
            expected[endpoint] -= ended
        assert [loads.inflight(e) for e in (A, B, C)] == [expected[e] for e in (A, B, C)]
        assert loads.total == sum(expected[e] for e in kept)
