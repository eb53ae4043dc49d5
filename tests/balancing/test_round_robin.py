from collections import Counter
from itertools import islice
from random import Random as Rng

from hypothesis import given
from hypothesis import strategies as st

from tcpgw.balancing.round_robin import RoundRobin
from tcpgw.endpoints import Endpoint

ENDPOINTS = [Endpoint.of(f"10.0.0.{n}", 80) for n in range(1, 7)]

weights_of_some = st.lists(st.integers(1, 9), min_size=1, max_size=6).map(
    lambda weights: dict(zip(ENDPOINTS, weights, strict=False))
)


def turns(policy: RoundRobin, count: int) -> list[Endpoint]:
    return [next(policy.candidates(n)) for n in range(count)]


@given(st.integers(1, 6), st.integers())
def test_equal_weights_go_round(count: int, seed: int) -> None:
    """Every run of as many turns as endpoints holds each endpoint once, from the first turn on."""
    policy = RoundRobin(dict.fromkeys(ENDPOINTS[:count], 1), Rng(seed))
    order = turns(policy, 10 * count)
    for start in range(9 * count):
        assert sorted(order[start : start + count]) == ENDPOINTS[:count]


@given(weights_of_some, st.integers(), st.integers(1, 300))
def test_turns_follow_weights_at_every_moment(weights: dict[Endpoint, float], seed: int, count: int) -> None:
    """After any number of turns each endpoint is within its fair share by no more than two turns."""
    counts = Counter(turns(RoundRobin(weights, Rng(seed)), count))
    for endpoint, weight in weights.items():
        assert abs(counts[endpoint] - count * weight / sum(weights.values())) <= 2


def test_a_heavy_endpoints_turns_are_spread() -> None:
    """An endpoint of half the weight never takes three turns in a row and never waits for three others."""
    a, b, c = ENDPOINTS[:3]
    order = turns(RoundRobin({a: 2, b: 1, c: 1}, Rng(1)), 400)
    assert all(order[n : n + 3].count(a) in (1, 2) for n in range(397))


def test_the_others_follow_and_lose_no_turn() -> None:
    """Later candidates are all the others, and asking for them takes nobody's turn away."""
    policy = RoundRobin(dict.fromkeys(ENDPOINTS, 1), Rng(2))
    order = list(policy.candidates(0))
    assert sorted(order) == ENDPOINTS
    assert turns(policy, 5) == order[1:]


def test_starts_differ_between_workers() -> None:
    """Policies made anew with other random numbers do not all begin with the same endpoint."""
    weights: dict[Endpoint, float] = dict.fromkeys(ENDPOINTS, 1)
    assert {next(RoundRobin(weights, Rng(seed)).candidates(0)) for seed in range(100)} == set(ENDPOINTS)


def test_nobody_and_explaining() -> None:
    """Without endpoints there are no candidates; an operator reads among how many the turns go round."""
    assert list(islice(RoundRobin({}, Rng(3)).candidates(0), 1)) == []
    policy = RoundRobin(dict.fromkeys(ENDPOINTS, 1), Rng(3))
    assert policy.explain(0) == "round_robin: 6 endpoints in turn by weight"
