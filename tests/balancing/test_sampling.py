from collections import Counter
from itertools import islice
from random import Random as Rng

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tcpgw.balancing.sampling import Random, better_of_two
from tcpgw.endpoints import Endpoint

ENDPOINTS = [Endpoint.of(f"10.0.0.{n}", 80) for n in range(1, 7)]
WEIGHTED: dict[Endpoint, float] = dict(zip(ENDPOINTS, (1, 2, 3, 4, 5, 5), strict=True))

weights_of_some = st.lists(st.floats(1e-9, 1e9), max_size=6).map(
    lambda weights: dict(zip(ENDPOINTS, weights, strict=False))
)


@given(weights_of_some, st.integers())
@example({ENDPOINTS[0]: 1e-9, ENDPOINTS[1]: 1e9, ENDPOINTS[2]: 1e-9}, 1)
def test_each_endpoint_comes_once(weights: dict[Endpoint, float], seed: int) -> None:
    """Every draw differs from those before it, also where one weight outweighs all others by far."""
    assert sorted(Random(weights, Rng(seed)).candidates(0)) == sorted(weights)


def test_firsts_follow_weights() -> None:
    """Over many draws each endpoint is first as often as its weight says."""
    policy = Random(WEIGHTED, Rng(1))
    counts = Counter(next(policy.candidates(n)) for n in range(20_000))
    for endpoint, weight in WEIGHTED.items():
        assert counts[endpoint] == pytest.approx(20_000 * weight / 20, rel=0.1)


@pytest.mark.parametrize("place", [1, 2])
def test_later_ones_are_drawn_by_weight_from_what_is_left(place: int) -> None:
    """The second and the third choice share out like a draw from the endpoints not drawn before."""
    policy = Random(WEIGHTED, Rng(2))
    counts: Counter[Endpoint] = Counter()
    expected: Counter[Endpoint] = Counter()
    for n in range(20_000):
        drawn = list(islice(policy.candidates(n), place + 1))
        counts[drawn[place]] += 1
        left = {endpoint: weight for endpoint, weight in WEIGHTED.items() if endpoint not in drawn[:place]}
        for endpoint, weight in left.items():
            expected[endpoint] += weight / sum(left.values())  # type: ignore[assignment]  # shares, summed up
    for endpoint in ENDPOINTS:
        assert counts[endpoint] == pytest.approx(expected[endpoint], rel=0.1)


def test_one_seed_one_order() -> None:
    """All chance comes from the generator that was given."""
    one, two = Random(WEIGHTED, Rng(3)), Random(WEIGHTED, Rng(3))
    for position in range(50):
        assert list(one.candidates(position)) == list(two.candidates(0))


def test_the_cheaper_of_the_first_two_leads() -> None:
    """Only the first two change places, and only where the second is cheaper."""
    costs = dict(zip("abcd", (2, 1, 0, 0), strict=True))

    def cost(endpoint: Endpoint) -> float:
        return costs[endpoint.host]

    def order(names: str) -> str:
        drawn = (Endpoint(name, 80) for name in names)
        return "".join(endpoint.host for endpoint in better_of_two(drawn, cost))

    assert [order(names) for names in ("abcd", "bacd", "cdab", "dcab", "a", "")] == [
        "bacd",
        "bacd",
        "cdab",
        "dcab",
        "a",
        "",
    ]


def test_explains_itself() -> None:
    """An operator reads that it is chance, and among how many."""
    assert Random(WEIGHTED, Rng(4)).explain(0) == "random: 6 endpoints by weight"
