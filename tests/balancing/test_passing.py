"""Who has a key while endpoints have less than their weight: nobody's moves but theirs, and it comes back."""

from collections import Counter
from itertools import pairwise
from math import inf
from random import Random as Rng

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgw.balancing.bounded import Bounded
from tcpgw.balancing.loads import Loads
from tcpgw.balancing.maglev import Maglev
from tcpgw.balancing.passing import Passing
from tcpgw.balancing.policy import Policy
from tcpgw.balancing.ring import Ring
from tcpgw.balancing.standing import Share
from tcpgw.endpoints import Endpoint

ENDPOINTS = [Endpoint.of(f"10.0.0.{n}", 80) for n in range(10, 20)]
SICK, OTHER, *REST = ENDPOINTS
WEIGHTS: dict[Endpoint, float] = dict.fromkeys(ENDPOINTS, 1)
KEYS = range(0, 2**32, 2**19)
POLICIES: dict[str, Policy] = {
    "maglev": Maglev(WEIGHTS),
    "ring": Ring(WEIGHTS, 1000),
    "bounded maglev": Bounded(Maglev(WEIGHTS), WEIGHTS, Loads(lambda: 0.0)),
}
every_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)

some_shares = st.dictionaries(
    st.sampled_from(ENDPOINTS),
    st.builds(Share, st.sampled_from([0.0, 0.01, 0.5, 0.99]), st.booleans()),
)
positions = st.integers(0, 2**32 - 1)


def homes(policy: Policy) -> dict[int, Endpoint]:
    """Of all keys, as they are chosen."""
    return {position: next(policy.candidates(position)) for position in KEYS}


@every_policy
def test_who_is_out_loses_its_keys_and_nobody_else_any(policy: Policy) -> None:
    """They go to all others alike, and when it is back every key is where it was."""
    before = homes(policy)
    during = homes(policy.under({SICK: Share(0.0)}))
    assert {before[key] for key in KEYS if before[key] != during[key]} == {SICK}
    heirs = Counter(during[key] for key in KEYS if before[key] == SICK)
    assert SICK not in heirs
    assert len(heirs) == 9
    assert max(heirs.values()) < 1.5 * sum(heirs.values()) / 9
    assert homes(policy.under({})) == before


@every_policy
def test_a_slow_start_takes_key_after_key(policy: Policy) -> None:
    """With a growing share keys come over and none goes back; others' own keys do not move at all."""
    before = homes(policy)
    held = [set[int]()]
    for value in (0.0, 0.001, 0.1, 0.3, 0.6, 0.99):
        during = homes(policy.under({SICK: Share(value)}))
        held.append({key for key in KEYS if during[key] == SICK})
        assert all(during[key] == before[key] for key in KEYS if before[key] != SICK)
        own = [key for key in KEYS if before[key] == SICK]
        assert len(held[-1]) / len(own) == pytest.approx(value, abs=0.05)
    assert all(earlier <= later for earlier, later in pairwise(held))
    assert held[-1] < {key for key in KEYS if before[key] == SICK}


@every_policy
def test_who_is_not_to_have_a_key_yet_is_behind_the_others(policy: Policy) -> None:
    """For a retry there are still all, but for those that get nothing."""
    under = policy.under({SICK: Share(1e-9), OTHER: Share(1e-9, by_key=False), REST[0]: Share(0.0)})
    for position in KEYS[:200]:
        plain = [endpoint for endpoint in policy.candidates(position) if endpoint in REST[1:]]
        assert list(under.candidates(position)) == [*plain, SICK, OTHER]


def test_a_trial_is_by_chance() -> None:
    """For each of its keys the endpoint is chosen about as often as its share says, again and again."""
    maglev = Maglev(WEIGHTS)
    under = Passing(maglev, {SICK: Share(0.1, by_key=False)}, Rng(1).random)
    own = [key for key in KEYS if maglev.home(key) == SICK][:5]
    for position in own:
        count = sum(next(under.candidates(position)) == SICK for _ in range(10_000))
        assert count == pytest.approx(1000, rel=0.15)
        assert under.home(position) is None


def test_chance_says_nothing_of_others_keys() -> None:
    """Where an endpoint in trial would not come first, keys have homes as ever."""
    maglev = Maglev(WEIGHTS)
    under = maglev.under({SICK: Share(0.1, by_key=False)})
    for position in KEYS:
        if (home := maglev.home(position)) != SICK:
            assert under.home(position) == next(under.candidates(position)) == home


def test_chance_decides_wherever_a_trial_stands_before_the_first() -> None:
    """Behind who is out, and behind who has not enough of its slow start yet."""
    maglev = Maglev(WEIGHTS)
    position = next(key for key in KEYS if list(maglev.candidates(key))[:2] == [SICK, OTHER])
    trial = Share(0.5, by_key=False)
    for first in (Share(0.0), Share(1e-9)):
        assert maglev.under({SICK: first, OTHER: trial}).home(position) is None
    assert maglev.under({SICK: Share(1 - 1e-9), OTHER: trial}).home(position) == SICK


@given(some_shares, positions)
def test_a_home_is_the_first_candidate(shares: dict[Endpoint, Share], position: int) -> None:
    """Where there is one; and without one there is a trial, or nobody."""
    under = POLICIES["ring"].under(shares)
    order = list(under.candidates(position))
    home = under.home(position)
    if home is not None:
        assert order[0] == home
    else:
        assert not order or any(not share.by_key and share.value for share in shares.values())
    out = {endpoint for endpoint, share in shares.items() if not share.value}
    assert sorted(order) == [endpoint for endpoint in ENDPOINTS if endpoint not in out]


@pytest.mark.parametrize("by_key", [True, False])
def test_where_all_start_somebody_is_chosen(by_key: bool) -> None:
    """A service of newcomers alone serves."""
    under = POLICIES["maglev"].under(dict.fromkeys(ENDPOINTS, Share(0.01, by_key)))
    assert all(sorted(under.candidates(position)) == ENDPOINTS for position in KEYS[:50])
    if by_key:
        assert all(under.home(key) == next(under.candidates(key)) for key in KEYS[:50])


def test_where_all_are_out_there_is_nobody() -> None:
    """Neither a candidate nor a home."""
    under = POLICIES["bounded maglev"].under(dict.fromkeys(ENDPOINTS, Share(0.0)))
    assert list(under.candidates(7)) == []
    assert under.home(7) is None


def test_without_endpoints() -> None:
    """There is no home to look up."""
    assert Passing(Maglev({}), {}).home(7) is None


def test_shares_of_the_load_stay_the_policy_s() -> None:
    """But who gets nothing has none."""
    under = POLICIES["ring"].under({SICK: Share(0.0), OTHER: Share(0.5)})
    assert [under.share(endpoint) for endpoint in (SICK, OTHER, REST[0])] == [0.0, inf, inf]


def test_other_shares_take_the_place_of_those_before() -> None:
    """As if there had been none."""
    maglev = POLICIES["maglev"]
    under = maglev.under({SICK: Share(0.0)})
    assert homes(under.under({OTHER: Share(0.0)})) == homes(maglev.under({OTHER: Share(0.0)}))
    assert under.under({}) is maglev
    assert not under.spills


def test_explains_itself() -> None:
    """An operator reads how many endpoints are held back."""
    under = POLICIES["maglev"].under({SICK: Share(0.0), OTHER: Share(0.5)})
    assert under.explain(0) == "maglev: bucket 0 of 65537; 2 endpoints with less than their weight"
