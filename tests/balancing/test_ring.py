from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uhashring import HashRing

from tcpgw.balancing import ring as ring_module
from tcpgw.balancing.ring import Ring
from tcpgw.endpoints import Endpoint

endpoints = st.builds(
    lambda address, port: Endpoint.of(str(address), port), st.ip_addresses(), st.integers(1, 65535)
)
weights_of_some = st.dictionaries(endpoints, st.integers(1, 5), min_size=1, max_size=12)

POSITIONS = range(0, 2**32, 2**32 // 2000)


def owners(ring: Ring) -> list[Endpoint]:
    return [next(ring.candidates(position)) for position in POSITIONS]


@settings(deadline=None, max_examples=12)
@given(weights_of_some)
def test_the_points_are_ketamas(weights: dict[Endpoint, float]) -> None:
    """Each point of an independent ketama ring (weights scaled to a mean of 1) has the same owner here."""
    oracle = HashRing(nodes={str(e): {"weight": w} for e, w in weights.items()}, hash_fn="ketama")
    mean = sum(weights.values()) / len(weights)
    ring = Ring({endpoint: weight / mean for endpoint, weight in weights.items()})
    assert len(oracle.ring) > 0
    for point, name in oracle.ring.items():
        assert str(next(ring.candidates(point))) == name
    assert ring.explain(0) == f"ring: point 0 of {len(oracle.ring)}"


def test_keys_of_an_equal_ring_belong_to_the_oracles_owner() -> None:
    """With ketama's own positions, every key has the owner that ketama gives it."""
    weights: dict[Endpoint, float] = {Endpoint.of(f"10.0.0.{n}", 11210): 1 for n in range(1, 11)}
    oracle = HashRing(nodes=[str(endpoint) for endpoint in weights], hash_fn="ketama")
    ring = Ring(weights)
    for n in range(2000):
        assert str(next(ring.candidates(oracle.hashi(f"key-{n}")))) == oracle.get_node(f"key-{n}")


@settings(deadline=None, max_examples=12)
@given(weights_of_some, st.data())
def test_removing_one_moves_only_its_keys(weights: dict[Endpoint, float], data: st.DataObject) -> None:
    """Between a set and the same set without one, no key moves that is not that one's."""
    gone = data.draw(st.sampled_from(sorted(weights)))
    rest = {endpoint: weight for endpoint, weight in weights.items() if endpoint != gone}
    if not rest:
        return
    for old, new in zip(owners(Ring(weights)), owners(Ring(rest)), strict=True):
        assert old in (gone, new)


@settings(deadline=None, max_examples=12)
@given(weights_of_some, st.data())
def test_a_growing_weight_only_wins_keys(weights: dict[Endpoint, float], data: st.DataObject) -> None:
    """Where one weight grows, keys move to that endpoint and nowhere else."""
    grown = data.draw(st.sampled_from(sorted(weights)))
    for old, new in zip(owners(Ring(weights)), owners(Ring(weights | {grown: 7})), strict=True):
        assert new in (grown, old)


def test_shares_follow_weights() -> None:
    """160 points per unit keep shares within a fifth of the weights' (the ring's nature; Maglev is exact)."""
    weights: dict[Endpoint, float] = {Endpoint.of(f"10.0.0.{n}", 80): n for n in range(1, 9)}
    counts = Counter(owners(Ring(weights)))
    for endpoint, weight in weights.items():
        assert counts[endpoint] / len(POSITIONS) == pytest.approx(weight / 36, rel=0.2)


@settings(deadline=None, max_examples=12)
@given(weights_of_some, st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
def test_candidates_hold_each_endpoint_once_whatever_the_inputs_order(
    weights: dict[Endpoint, float], position: int, rng: object
) -> None:
    """Whoever goes on asking gets every endpoint exactly once, in an order that depends on the set alone."""
    shuffled = list(weights.items())
    rng.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis hides its type
    order = list(Ring(weights).candidates(position))
    assert sorted(order) == sorted(weights)
    assert order == list(Ring(dict(shuffled)).candidates(position))


def test_the_smallest_weight_still_has_points() -> None:
    """A weight too small for a point of its own gets one digest, so that no endpoint is out of reach."""
    light, heavy = Endpoint.of("10.0.0.1", 80), Endpoint.of("10.0.0.2", 80)
    assert Ring({light: 0.001, heavy: 1}).explain(0) == "ring: point 0 of 164"
    assert Ring({light: 0.001, heavy: 1}).explain(2**32 - 1) == "ring: point 0 of 164"


def test_huge_weights_get_fewer_points_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights whose points would fill the memory share the most there may be."""
    monkeypatch.setattr(ring_module, "_MOST_POINTS", 4096)
    light, heavy = Endpoint.of("10.0.0.1", 80), Endpoint.of("10.0.0.2", 80)
    ring = Ring({light: 16384, heavy: 3 * 16384})
    assert ring.explain(0) == "ring: point 0 of 4096"
    assert Counter(owners(ring))[heavy] / len(POSITIONS) == pytest.approx(0.75, rel=0.1)


def test_the_build_breathes() -> None:
    """`breathe` is called while points are made and again while they are sorted."""
    breaths = 0

    def breathe() -> None:
        nonlocal breaths
        breaths += 1

    Ring({Endpoint.of(f"10.0.0.{n}", 80): 1 for n in range(1, 101)}, breathe=breathe)
    assert breaths > 256


def test_nobody() -> None:
    """Without endpoints there are no candidates, and explaining still works."""
    ring = Ring({})
    assert list(ring.candidates(1)) == []
    assert ring.explain(1) == "ring: point 0 of 0"
