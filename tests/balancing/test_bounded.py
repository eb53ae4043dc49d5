from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcpgw.balancing.bounded import Bounded
from tcpgw.balancing.loads import Loads
from tcpgw.balancing.maglev import Maglev
from tcpgw.balancing.standing import Share
from tcpgw.endpoints import Endpoint

A, B, C = (Endpoint.of(f"10.0.0.{n}", 80) for n in (1, 2, 3))
EQUAL: dict[Endpoint, float] = {A: 1, B: 1, C: 1}

weights_of_some = st.dictionaries(
    st.builds(lambda n: Endpoint.of(f"10.0.0.{n}", 80), st.integers(1, 250)),
    st.integers(1, 10),
    min_size=1,
    max_size=10,
)
positions = st.integers(0, 2**32 - 1)


def new_loads() -> Loads:
    return Loads(lambda: 0.0)


@settings(deadline=None, max_examples=40)
@given(
    weights_of_some,
    st.sampled_from([1.0, 1.25, 2.0]),
    st.lists(st.tuples(st.booleans(), st.sampled_from([7, 2**31, 2**32 - 1])), max_size=120),
)
def test_placing_never_exceeds_the_cap(
    weights: dict[Endpoint, int], factor: float, steps: list[tuple[bool, int]]
) -> None:
    """Under the worst traffic, few keys with connections that come and go, nobody is placed past a cap."""
    loads = new_loads()
    bounded = Bounded(Maglev(weights, 251), weights, loads, factor)
    placed: list[Endpoint] = []
    for ends, position in steps:
        if ends and placed:
            loads.end(placed.pop(0))
            continue
        endpoint = next(bounded.candidates(position))
        cap = ceil(Fraction(factor) * (loads.total + 1) * weights[endpoint] / sum(weights.values()))
        loads.begin(endpoint)
        placed.append(endpoint)
        assert loads.inflight(endpoint) <= cap


@settings(deadline=None, max_examples=40)
@given(weights_of_some, positions, st.data())
def test_nothing_is_refused(weights: dict[Endpoint, int], position: int, data: st.DataObject) -> None:
    """Every endpoint comes once: those below their cap in the inner order, then those at it, likewise."""
    loads = new_loads()
    for endpoint in data.draw(st.lists(st.sampled_from(sorted(weights)), max_size=40)):
        loads.begin(endpoint)
    maglev = Maglev(weights, 251)
    total = sum(weights.values())
    inner = list(maglev.candidates(position))
    full = [e for e in inner if loads.inflight(e) >= Fraction(5, 4) * (loads.total + 1) * weights[e] / total]
    order = list(Bounded(maglev, weights, loads).candidates(position))
    assert order == [e for e in inner if e not in full] + full
    assert len(full) < len(inner)


def test_a_cap_is_not_raised_by_rounding() -> None:
    """At 1.0 * 77 * 9 / 11 = 63 the cap is 63, though floats make it a little more."""
    weights: dict[Endpoint, float] = {A: 9, B: 2}
    loads = new_loads()
    loads.begin(A, 63)
    loads.begin(B, 13)
    assert not Bounded(Maglev(weights, 251), weights, loads, 1.0).has_room(A)


def test_an_idle_service_keeps_the_inner_order() -> None:
    """Without load, bounding changes nothing."""
    maglev = Maglev(EQUAL)
    for position in range(0, 2**32, 2**27):
        order = list(Bounded(maglev, EQUAL, new_loads()).candidates(position))
        assert order == list(maglev.candidates(position))


def test_what_drains_elsewhere_lifts_no_cap() -> None:
    """Connections at an endpoint that left the service do not count in the total that caps are made of."""
    loads = new_loads()
    gone = Endpoint.of("10.0.0.9", 80)
    for _ in range(100):
        loads.begin(gone)
    loads.retain(EQUAL)
    bounded = Bounded(Maglev(EQUAL), EQUAL, loads)
    first, second = (next(bounded.candidates(0)), None)
    loads.begin(first)  # its cap at a total of 1 is ceil(1.25 * 2 / 3) = 1
    second = next(bounded.candidates(0))
    assert second != first


def test_has_room_below_the_cap_only() -> None:
    """At its cap an endpoint has no room until one ends there or the others have more; homes stay."""
    loads = new_loads()
    bounded = Bounded(Maglev(EQUAL), EQUAL, loads)
    home = bounded.home(0)
    assert home == next(Maglev(EQUAL).candidates(0))
    assert bounded.has_room(home)
    loads.begin(home)  # the cap at a total of 1 is ceil(1.25 * 2 / 3) = 1
    assert not bounded.has_room(home)
    assert bounded.home(0) == home
    loads.end(home)
    assert bounded.has_room(home)
    loads.begin(home)
    for other in {A, B, C} - {home}:
        loads.begin(other)  # at a total of 3 it is ceil(1.25 * 4 / 3) = 2
    assert bounded.has_room(home)


def test_caps_are_of_what_is_usable() -> None:
    """Of three endpoints without one the other two have half each; who starts slowly has its part."""
    bounded = Bounded(Maglev(EQUAL), EQUAL, new_loads())
    under = bounded.under({A: Share(0.0)})
    assert [under.share(endpoint) for endpoint in (A, B, C)] == pytest.approx([0.0, 0.625, 0.625])
    under = bounded.under({A: Share(0.5)})
    assert [under.share(endpoint) for endpoint in (A, B, C)] == pytest.approx([0.25, 0.5, 0.5])
    assert bounded.under({}).share(A) == pytest.approx(1.25 / 3)


@settings(deadline=None, max_examples=40)
@given(
    positions,
    st.sampled_from([0.0, 0.1, 0.5]),
    st.booleans(),
    st.lists(st.sampled_from([A, B, C]), max_size=40),
)
def test_under_shares_somebody_has_room(
    position: int, value: float, by_key: bool, busy: list[Endpoint]
) -> None:
    """The first candidate is below its cap, also where much hangs at an endpoint that gets nothing."""
    loads = new_loads()
    bounded = Bounded(Maglev(EQUAL, 251), EQUAL, loads)
    for endpoint in busy:
        loads.begin(endpoint)
    if not value:
        loads.retain([B, C])
    under = bounded.under({A: Share(value, by_key)})
    first = next(under.candidates(position))
    assert loads.inflight(first) < under.share(first) * (loads.total + 1)


def test_who_is_none_of_the_policys_has_no_room() -> None:
    """An endpoint that left the service is not taken for one that is idle."""
    assert not Bounded(Maglev({A: 1, B: 1}), {A: 1, B: 1}, new_loads()).has_room(C)
    assert not Bounded(Maglev({}), {}, new_loads()).has_room(A)
    assert Bounded(Maglev({A: 1}), {A: 1}, new_loads()).share(B) == 0.0


def test_explains_the_inner_choice_and_the_caps() -> None:
    """An operator sees the inner policy's reason and how many endpoints are full."""
    loads = new_loads()
    bounded = Bounded(Maglev(EQUAL), EQUAL, loads)
    assert bounded.explain(0) == "maglev: bucket 0 of 65537; bounded load 1.25: 0 of 3 endpoints at their cap"
    for _ in range(2):
        loads.begin(B)
    assert bounded.explain(0).endswith("1 of 3 endpoints at their cap")


@pytest.mark.parametrize("position", [0, 2**32 - 1])
def test_nobody(position: int) -> None:
    """Without endpoints there are no candidates."""
    bounded = Bounded(Maglev({}), {}, new_loads())
    assert list(bounded.candidates(position)) == []
    assert bounded.explain(position).endswith("0 of 0 endpoints at their cap")
