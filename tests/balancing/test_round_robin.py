from collections import Counter
from itertools import islice
from random import Random as Rng

from hypothesis import given
from hypothesis import strategies as st

from tcpgw.balancing.round_robin import RoundRobin
from tcpgw.balancing.standing import Share
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


@given(st.integers(0, 5), st.integers(), st.integers(0, 20))
def test_who_is_out_takes_no_turn_away(out: int, seed: int, before: int) -> None:
    """The others go on in turn as if it were not there, and when it is back all go round again."""
    weights: dict[Endpoint, float] = dict.fromkeys(ENDPOINTS, 1)
    policy = RoundRobin(weights, Rng(seed))
    turns(policy, before)
    others = sorted({*ENDPOINTS} - {ENDPOINTS[out]})
    order = turns(policy.under({ENDPOINTS[out]: Share(0.0)}), 50)
    for start in range(45):
        assert sorted(order[start : start + 5]) == others
    order = turns(policy.under({}), 60)
    for start in range(54):
        assert sorted(order[start : start + 6]) == ENDPOINTS


@given(st.integers())
def test_other_shares_keep_the_turns(seed: int) -> None:
    """A step of one's slow start begins no new round: the others have turns in the order that they had."""
    weights: dict[Endpoint, float] = dict.fromkeys(ENDPOINTS, 1)
    policy = RoundRobin(weights, Rng(seed))
    order = []
    for step in range(1, 100):
        order += turns(policy.under({ENDPOINTS[0]: Share(step / 100)}), 1)
    others = [endpoint for endpoint in order if endpoint != ENDPOINTS[0]]
    for start in range(len(others) - 4):
        assert sorted(others[start : start + 5]) == ENDPOINTS[1:]


def test_all_out_and_back() -> None:
    """There is nobody, and then there are all again."""
    policy = RoundRobin(dict.fromkeys(ENDPOINTS, 1), Rng(4))
    nobody = policy.under(dict.fromkeys(ENDPOINTS, Share(0.0)))
    assert list(nobody.candidates(0)) == []
    assert sorted(turns(policy.under({}), 6)) == ENDPOINTS


def test_starts_differ_between_workers() -> None:
    """Policies made anew with other random numbers do not all begin with the same endpoint."""
    weights: dict[Endpoint, float] = dict.fromkeys(ENDPOINTS, 1)
    assert {next(RoundRobin(weights, Rng(seed)).candidates(0)) for seed in range(100)} == set(ENDPOINTS)


def test_nobody_and_explaining() -> None:
    """Without endpoints there are no candidates; an operator reads among how many the turns go round."""
    assert list(islice(RoundRobin({}, Rng(3)).candidates(0), 1)) == []
    policy = RoundRobin(dict.fromkeys(ENDPOINTS, 1), Rng(3))
    assert policy.explain(0) == "round_robin: 6 endpoints in turn by weight"
