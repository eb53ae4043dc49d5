from collections import Counter
from itertools import islice
from math import isqrt

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from xxhash import xxh64_intdigest

from tcpgw.balancing.maglev import Maglev
from tcpgw.endpoints import Endpoint

PRIMES = [number for number in range(2, 1200) if all(number % n for n in range(2, isqrt(number) + 1))]

endpoints = st.builds(
    lambda address, port: Endpoint.of(str(address), port), st.ip_addresses(), st.integers(1, 65535)
)
weights_of_some = st.dictionaries(endpoints, st.integers(1, 100), min_size=1, max_size=30)


def equal(count: int) -> dict[Endpoint, float]:
    return {Endpoint.of(f"10.0.{n // 250}.{n % 250 + 1}", 8000): 1 for n in range(count)}


def table_of(maglev: Maglev, size: int) -> list[Endpoint]:
    """Who owns each bucket, asked through the lowest position of each."""
    return [next(maglev.candidates(-(-(entry << 32) // size))) for entry in range(size)]


def plain_table(weights: dict[Endpoint, float], size: int) -> list[Endpoint]:
    """The paper's procedure with Envoy's weights, step by step."""
    names = {endpoint: str(endpoint).encode() for endpoint in sorted(weights)}
    looks = dict.fromkeys(names, 0)
    targets: dict[Endpoint, float] = dict.fromkeys(names, 0)
    table: dict[int, Endpoint] = {}
    iteration = 1
    while True:
        for endpoint, name in names.items():
            if iteration * weights[endpoint] < targets[endpoint]:
                continue
            targets[endpoint] += max(weights.values())
            offset, skip = xxh64_intdigest(name) % size, xxh64_intdigest(name, 1) % (size - 1) + 1
            while (slot := (offset + looks[endpoint] * skip) % size) in table:
                looks[endpoint] += 1
            table[slot] = endpoint
            if len(table) == size:
                return [table[slot] for slot in range(size)]
        iteration += 1


@settings(deadline=None, max_examples=25)
@given(weights_of_some, st.sampled_from(PRIMES))
@example(equal(10), 65537)
def test_the_table_is_envoys(weights: dict[Endpoint, float], size: int) -> None:
    """The fast build makes the table of the plain procedure, also with more endpoints than entries."""
    assert table_of(Maglev(weights, size), size) == plain_table(weights, size)


@pytest.mark.parametrize("count", [1, 3, 10, 100, 1000])
def test_equal_weights_own_equal_numbers_of_entries(count: int) -> None:
    """Endpoints of equal weight differ by at most one entry of the default table."""
    counts = Counter(table_of(Maglev(equal(count)), 65537))
    assert len(counts) == count
    assert max(counts.values()) - min(counts.values()) <= 1


@settings(deadline=None, max_examples=12)
@given(weights_of_some)
def test_shares_follow_weights(weights: dict[Endpoint, float]) -> None:
    """Each endpoint owns its weight's share of the entries, to within two entries."""
    counts = Counter(table_of(Maglev(weights, 4099), 4099))
    total = sum(weights.values())
    for endpoint, weight in weights.items():
        assert counts[endpoint] == pytest.approx(4099 * weight / total, abs=2)


@settings(deadline=None, max_examples=12)
@given(weights_of_some, st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(weights: dict[Endpoint, float], rng: object) -> None:
    """Two gateways that were told the same endpoints in another order agree on every key."""
    shuffled = list(weights.items())
    rng.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis hides its type
    assert table_of(Maglev(weights, 1009), 1009) == table_of(Maglev(dict(shuffled), 1009), 1009)


# The same examples each time: in a table this small two endpoints may have steps so alike (one in some ten
# thousand pairs) that they move together, which says nothing about the others.
@settings(deadline=None, max_examples=12, derandomize=True)
@given(st.dictionaries(endpoints, st.just(1), min_size=2, max_size=20), st.data())
def test_removing_or_adding_one_moves_little_else(
    weights: dict[Endpoint, float], data: st.DataObject
) -> None:
    """Between a set and the same set without one, few entries change hands that are not that one's."""
    gone = data.draw(st.sampled_from(sorted(weights)))
    before = table_of(Maglev(weights, 4099), 4099)
    after = table_of(Maglev({e: w for e, w in weights.items() if e != gone}, 4099), 4099)
    moved = sum(old not in (gone, new) for old, new in zip(before, after, strict=True))
    assert moved <= 0.05 * 4099


def test_removing_one_of_ten_moves_a_tenth() -> None:
    """At the default size the movement is within half a per cent of the least possible."""
    weights = equal(10)
    before = table_of(Maglev(weights), 65537)
    del weights[before[0]]
    after = table_of(Maglev(weights), 65537)
    moved = sum(old != new for old, new in zip(before, after, strict=True))
    assert moved / 65537 == pytest.approx(0.1, abs=0.005)


@settings(deadline=None, max_examples=30)
@given(weights_of_some, st.integers(0, 2**32 - 1))
def test_candidates_hold_each_endpoint_once(weights: dict[Endpoint, float], position: int) -> None:
    """Whoever goes on asking gets every endpoint exactly once, and the same order each time."""
    maglev = Maglev(weights, 101)
    order = list(maglev.candidates(position))
    assert sorted(order) == sorted(weights)
    assert order == list(maglev.candidates(position))


def test_the_keys_of_a_failed_endpoint_spread() -> None:
    """Second candidates of one endpoint's keys are spread over all the others."""
    maglev = Maglev(equal(11))
    seconds: Counter[Endpoint] = Counter()
    for position in range(0, 2**32, 2**32 // 20_000):
        first, second = islice(maglev.candidates(position), 2)
        if first == Endpoint.of("10.0.0.1", 8000):
            seconds[second] += 1
    assert len(seconds) == 10
    assert max(seconds.values()) < 2 * min(seconds.values())


def test_the_build_breathes_and_the_table_does_not_depend_on_it() -> None:
    """`breathe` is called often enough for a build of some 40 ms not to keep anyone waiting."""
    breaths = 0

    def breathe() -> None:
        nonlocal breaths
        breaths += 1

    weights = equal(1000)
    breathing = Maglev(weights, breathe=breathe)
    assert breaths >= 80
    assert table_of(breathing, 65537) == table_of(Maglev(weights), 65537)


def test_extreme_weights_do_not_make_it_slow() -> None:
    """One heavy endpoint among many light ones costs turns, not rounds times endpoints (65 million looks)."""
    weights = equal(1000)
    heavy = next(iter(weights))
    weights[heavy] = 10**9
    counts = Counter(table_of(Maglev(weights), 65537))
    assert len(counts) == 1000
    assert counts[heavy] == 65537 - 999


@pytest.mark.parametrize("size", [-7, 0, 1, 4, 65536])
def test_a_size_that_is_not_prime_is_refused(size: int) -> None:
    """A table that could never be filled is refused with a number that works."""
    with pytest.raises(ValueError, match=f"cannot have {size} entries: the number must be prime, e.g. 65537"):
        Maglev(equal(2), size)


def test_nobody() -> None:
    """Without endpoints there are no candidates, and explaining still works."""
    maglev = Maglev({})
    assert list(maglev.candidates(1)) == []
    assert maglev.explain(2**32 - 1) == "maglev: bucket 65536 of 65537"
