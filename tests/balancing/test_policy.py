"""What all policies promise alike to who keeps a key's endpoint instead of asking for every request."""

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


def test_only_plain_hashing_never_spills() -> None:
    """Load may send a request to a later candidate, but for a hash policy without bounded load."""
    makes = HASH | BOUNDED | KEYLESS
    spilling = {name for name, make in makes.items() if make({}, Loads(lambda: 0.0)).spills}
    assert spilling == {*BOUNDED, *KEYLESS}
