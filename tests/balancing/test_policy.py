"""What all policies promise alike to who keeps a key's endpoint instead of asking for every request."""

from collections import Counter
from collections.abc import Callable, Mapping
from math import inf
from random import Random as Rng

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tcpgw.balancing.bounded import Bounded
from tcpgw.balancing.least_request import LeastRequest
from tcpgw.balancing.loads import Loads
from tcpgw.balancing.maglev import Maglev
from tcpgw.balancing.peak_ewma import PeakEwma
from tcpgw.balancing.policy import Policy
from tcpgw.balancing.ring import Ring
from tcpgw.balancing.round_robin import RoundRobin
from tcpgw.balancing.sampling import Random
from tcpgw.balancing.standing import Share, usable
from tcpgw.endpoints import Endpoint

Make = Callable[[Mapping[Endpoint, float], Loads], Policy]

HASH: dict[str, Make] = {
    "maglev": lambda weights, _: Maglev(weights, 251),
    "ring": lambda weights, _: Ring(weights),
}
BOUNDED: dict[str, Make] = {
    "bounded maglev": lambda weights, loads: Bounded(Maglev(weights, 251), weights, loads),
    "bounded ring": lambda weights, loads: Bounded(Ring(weights), weights, loads),
}
KEYLESS: dict[str, Make] = {
    "random": lambda weights, _: Random(weights, Rng(1)),
    "round_robin": lambda weights, _: RoundRobin(weights, Rng(1)),
    "least_request": lambda weights, loads: LeastRequest(weights, loads, Rng(1)),
    "peak_ewma": lambda weights, loads: PeakEwma(weights, loads, Rng(1)),
}

weights_of_some = st.dictionaries(
    st.builds(lambda n: Endpoint.of(f"10.0.0.{n}", 80), st.integers(1, 250)), st.integers(1, 5), max_size=6
)
positions = st.integers(0, 2**32 - 1)


shares = st.builds(Share, st.sampled_from([0.0, 0.05, 0.5]), st.booleans())


def loaded(weights: Mapping[Endpoint, float], data: st.DataObject) -> Loads:
    loads = Loads(lambda: 0.0)
    for endpoint in sorted(weights):
        if busy := data.draw(st.integers(0, 12)):
            loads.begin(endpoint, busy)
    return loads


@pytest.mark.parametrize("make", (HASH | BOUNDED | KEYLESS).values(), ids=[*HASH, *BOUNDED, *KEYLESS])
@settings(max_examples=40)
@given(weights_of_some, positions, st.data())
@example({}, 0, None)
def test_a_home_that_has_room_is_the_first_candidate(
    make: Make, weights: dict[Endpoint, float], position: int, data: st.DataObject
) -> None:
    """Whatever the load: who keeps a key at its home while that has room chooses as `candidates` would."""
    loads = loaded(weights, data)
    policy = make(weights, loads)
    if weights:  # without there is nothing to draw from, nor in the example
        policy = policy.under(data.draw(st.dictionaries(st.sampled_from(sorted(weights)), shares)))
    home = policy.home(position)
    if home is not None and loads.inflight(home) < policy.share(home) * (loads.total + 1):
        assert next(policy.candidates(position)) == home


@pytest.mark.parametrize("make", (HASH | BOUNDED).values(), ids=[*HASH, *BOUNDED])
@settings(max_examples=40)
@given(weights_of_some, positions, st.data())
@example({}, 2**32 - 1, None)
def test_a_keys_home_does_not_depend_on_load(
    make: Make, weights: dict[Endpoint, float], position: int, data: st.DataObject
) -> None:
    """A hash policy's home is the first candidate of an idle service; without endpoints there is none."""
    idle = make(weights, Loads(lambda: 0.0))
    assert make(weights, loaded(weights, data)).home(position) == next(idle.candidates(position), None)


@pytest.mark.parametrize("make", (HASH | KEYLESS).values(), ids=[*HASH, *KEYLESS])
def test_only_a_cap_bounds_a_share(make: Make) -> None:
    """Without bounded load no endpoint is passed over, however much it has in flight."""
    policy = make({Endpoint.of("10.0.0.1", 80): 1.0}, Loads(lambda: 0.0))
    assert policy.share(Endpoint.of("10.0.0.1", 80)) == inf


@pytest.mark.parametrize("make", KEYLESS.values(), ids=[*KEYLESS])
def test_policies_without_keys_have_no_homes(make: Make) -> None:
    """Where the key is ignored, no endpoint is a key's own."""
    policy = make({Endpoint.of("10.0.0.1", 80): 1}, Loads(lambda: 0.0))
    assert {policy.home(position) for position in (0, 2**31, 2**32 - 1)} == {None}


@pytest.mark.parametrize("make", (HASH | BOUNDED | KEYLESS).values(), ids=[*HASH, *BOUNDED, *KEYLESS])
@settings(max_examples=40)
@given(weights_of_some.filter(bool), positions, st.data())
def test_who_gets_something_comes_once(
    make: Make, weights: dict[Endpoint, float], position: int, data: st.DataObject
) -> None:
    """Under all shares and loads, one after another: each endpoint but those that get nothing."""
    loads = loaded(weights, data)
    policy = make(weights, loads)
    some = st.dictionaries(st.sampled_from(sorted(weights)), shares)
    for given_ in (data.draw(some), data.draw(some), {}):
        under = policy.under(given_)
        for _ in range(3):
            assert sorted(under.candidates(position)) == sorted(usable(weights, given_))
        assert under.spills == policy.spills


@pytest.mark.parametrize("by_key", [True, False], ids=["slow start", "trial"])
@pytest.mark.parametrize("make", KEYLESS.values(), ids=[*KEYLESS])
def test_without_keys_a_share_makes_a_weight_less(make: Make, by_key: bool) -> None:
    """Over many choices each endpoint of an idle service is chosen as often as is usable of its weight."""
    weights = {Endpoint.of(f"10.0.0.{n}", 80): float(n) for n in range(1, 6)}
    one, two, three, *_ = weights
    policy = make(weights, Loads(lambda: 0.0))
    for values in ({one: 0.5, two: 0.1, three: 0.0}, {one: 0.75, three: 0.2}, {}):
        under = policy.under({endpoint: Share(value, by_key) for endpoint, value in values.items()})
        counts = Counter(next(under.candidates(n)) for n in range(10_000))
        expected = usable(weights, {endpoint: Share(value) for endpoint, value in values.items()})
        assert counts.keys() == expected.keys()
        for endpoint, weight in expected.items():
            assert counts[endpoint] / 10_000 == pytest.approx(weight / sum(expected.values()), abs=0.015)


@pytest.mark.parametrize("make", KEYLESS.values(), ids=[*KEYLESS])
def test_a_ramp_without_keys_in_many_steps(make: Make) -> None:
    """However often its share grows, who starts slowly has as much as the shares so far came to."""
    weights = {Endpoint.of(f"10.0.0.{n}", 80): 1.0 for n in range(1, 5)}
    (first, *_) = weights
    policy = make(weights, Loads(lambda: 0.0))
    counts: Counter[Endpoint] = Counter()
    expected = 0.0
    for step in range(2000):
        value = (step + 1) / 2001
        under = policy.under({first: Share(value)})
        counts.update(next(under.candidates(n)) for n in range(5))
        expected += 5 * value / (3 + value)
    assert counts[first] == pytest.approx(expected, rel=0.07)


def test_only_plain_hashing_never_spills() -> None:
    """Load may send a request to a later candidate, but for a hash policy without bounded load."""
    makes = HASH | BOUNDED | KEYLESS
    spilling = {name for name, make in makes.items() if make({}, Loads(lambda: 0.0)).spills}
    assert spilling == {*BOUNDED, *KEYLESS}
