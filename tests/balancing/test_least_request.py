from collections import Counter
from random import Random as Rng

import pytest

from tcpgw.balancing.least_request import LeastRequest
from tcpgw.balancing.loads import Loads
from tcpgw.balancing.standing import Share
from tcpgw.endpoints import Endpoint

A, B, C = (Endpoint.of(f"10.0.0.{n}", 80) for n in (1, 2, 3))


def new_loads() -> Loads:
    return Loads(lambda: 0.0)


def test_the_less_loaded_of_two_comes_first() -> None:
    """With two endpoints both are always drawn, so the one with fewer in flight per weight leads."""
    loads = new_loads()
    policy = LeastRequest({A: 1, B: 3}, loads, Rng(1))
    loads.begin(A)
    loads.begin(B)
    loads.begin(B)
    assert {tuple(policy.candidates(n)) for n in range(100)} == {(B, A)}
    loads.begin(B)
    loads.begin(B)
    assert {tuple(policy.candidates(n)) for n in range(100)} == {(A, B)}


def test_load_follows_weights() -> None:
    """Long connections end up in flight in proportion to the weights."""
    loads = new_loads()
    weights: dict[Endpoint, float] = {A: 1, B: 2, C: 5}
    policy = LeastRequest(weights, loads, Rng(2))
    for n in range(4000):
        loads.begin(next(policy.candidates(n)))
    for endpoint, weight in weights.items():
        assert loads.inflight(endpoint) == pytest.approx(500 * weight, rel=0.03)


def test_load_follows_what_is_usable_of_weights() -> None:
    """Who starts slowly has nothing in flight and is not chosen each time for that."""
    loads = new_loads()
    policy = LeastRequest({A: 2, B: 2, C: 2}, loads, Rng(2)).under({A: Share(0.1), B: Share(0.0)})
    for n in range(4400):
        loads.begin(next(policy.candidates(n)))
    assert [loads.inflight(endpoint) for endpoint in (A, B, C)] == pytest.approx([400, 0, 4000], rel=0.03)


def test_an_idle_service_follows_weights() -> None:
    """Connections that end before the next begins still share out by weight."""
    weights: dict[Endpoint, float] = {A: 1, B: 1, C: 2}
    policy = LeastRequest(weights, new_loads(), Rng(3))
    counts = Counter(next(policy.candidates(n)) for n in range(20_000))
    for endpoint, weight in weights.items():
        assert counts[endpoint] == pytest.approx(5000 * weight, rel=0.05)


def test_two_choices_keep_the_longest_queue_short() -> None:
    """Among 50 endpoints the fullest has a few more than the mean, where chance alone has twice the mean."""
    loads = new_loads()
    endpoints = [Endpoint.of(f"10.0.1.{n}", 80) for n in range(1, 51)]
    policy = LeastRequest(dict.fromkeys(endpoints, 1), loads, Rng(4))
    for n in range(500):
        loads.begin(next(policy.candidates(n)))
    assert max(loads.inflight(endpoint) for endpoint in endpoints) <= 13


def test_each_endpoint_comes_once() -> None:
    """Whoever goes on asking gets every endpoint; of none, nothing."""
    for endpoints in ([], [A], [A, B], [A, B, C]):
        weights: dict[Endpoint, float] = dict.fromkeys(endpoints, 1)
        assert sorted(LeastRequest(weights, new_loads(), Rng(5)).candidates(0)) == endpoints


def test_explains_itself() -> None:
    """An operator reads what is compared."""
    policy = LeastRequest({A: 1}, new_loads(), Rng(6))
    assert (
        policy.explain(0) == "least_request: of two drawn by weight the one with fewer in flight per weight"
    )
