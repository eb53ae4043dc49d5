from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcpgw.balancing.split import Split

weights_of_some = st.dictionaries(
    st.text(min_size=1, max_size=10), st.integers(1, 100), min_size=2, max_size=5
)

# One position of every 64th slot: enough to see shares to within some per cent, and quick.
POSITIONS = range(0, 2**32, 2**22)


def chosen(weights: dict[str, int]) -> list[str]:
    split = Split(weights)
    return [split.choose(position) for position in POSITIONS]


def test_shares_follow_weights() -> None:
    """Over all slots each service has its share to within half a per cent."""
    split = Split({"v1": 90, "v2": 9, "v3": 1})
    counts = Counter(split.choose(slot << 16) for slot in range(65536))
    for service, weight in {"v1": 90, "v2": 9, "v3": 1}.items():
        assert counts[service] / 65536 == pytest.approx(weight / 100, abs=0.005)


@settings(max_examples=15, deadline=None)
@given(weights_of_some, st.data())
def test_a_growing_weight_only_wins_keys(weights: dict[str, int], data: st.DataObject) -> None:
    """Where one weight grows, keys move to that service alone; where it shrinks, from it alone."""
    grown = data.draw(st.sampled_from(sorted(weights)))
    more = weights | {grown: weights[grown] + data.draw(st.integers(1, 100))}
    before, after = chosen(weights), chosen(more)
    assert all(new in (grown, old) for old, new in zip(before, after, strict=True))
    moved = sum(old != new for old, new in zip(before, after, strict=True)) / len(POSITIONS)
    wanted = more[grown] / sum(more.values()) - weights[grown] / sum(weights.values())
    assert moved == pytest.approx(wanted, abs=0.08)


@settings(max_examples=15, deadline=None)
@given(weights_of_some, st.data())
def test_removing_a_service_moves_only_its_keys(weights: dict[str, int], data: st.DataObject) -> None:
    """Between a split and the same without one service, no key moves that is not that service's."""
    gone = data.draw(st.sampled_from(sorted(weights)))
    without = {service: weight for service, weight in weights.items() if service != gone}
    for old, new in zip(chosen(weights), chosen(without), strict=True):
        assert old in (gone, new)
    assert chosen(weights | {gone: 0}) == chosen(without)


@given(weights_of_some, st.integers(0, 2**32 - 1))
def test_a_key_stays_whatever_the_inputs_order(weights: dict[str, int], position: int) -> None:
    """The choice depends on names and weights alone, and is the same each time."""
    split = Split(weights)
    service = split.choose(position)
    assert split.choose(position) == service
    assert Split(dict(reversed(weights.items()))).choose(position) == service


def test_scaling_all_weights_moves_nothing() -> None:
    """9 to 1 and 90 to 10 are the same split."""
    assert chosen({"a": 9, "b": 1}) == chosen({"a": 90, "b": 10})


def test_one_service_has_every_key() -> None:
    """A single service, or the only one above weight 0, is always chosen."""
    assert set(chosen({"only": 1})) == {"only"}
    assert set(chosen({"on": 5, "off": 0})) == {"on"}


@pytest.mark.parametrize("weights", [{}, {"a": 0, "b": 0}])
def test_a_split_without_weight_is_refused(weights: dict[str, int]) -> None:
    """A split that could choose nobody cannot be made."""
    with pytest.raises(ValueError, match="a split needs a service with a weight above 0"):
        Split(weights)
