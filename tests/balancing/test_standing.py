import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgw.balancing.standing import Share, rank, seed, usable
from tcpgw.endpoints import Endpoint

A, B, C, D = (Endpoint.of(f"10.0.0.{n}", 80) for n in (1, 2, 3, 4))


def test_usable_weights() -> None:
    """Without a share it is the whole weight, with one that part, and what gets nothing is not there."""
    shares = {B: Share(0.5), C: Share(0.0), D: Share(0.25, by_key=False)}
    assert usable({A: 3, B: 3, C: 3, D: 4}, shares) == {A: 3, B: 1.5, D: 1}
    assert usable({A: 3}, {}) == {A: 3}
    assert usable({}, shares) == {}


@given(st.integers(0, 2**32 - 1))
def test_a_rank_is_a_share(position: int) -> None:
    """Whatever the key, there is a share below 1 from which on it comes over, the same each time."""
    assert 0 <= rank(position, seed(A)) <= 1
    assert rank(position, seed(A)) == rank(position, seed(A))


def test_ranks_are_even_and_each_endpoint_s_own() -> None:
    """Of all keys a share's part has a rank below it, and of those the same part at another endpoint."""
    positions = range(0, 2**32, 2**18)
    low = [position for position in positions if rank(position, seed(A)) < 0.3]
    assert len(low) / len(positions) == pytest.approx(0.3, abs=0.02)
    both = [position for position in low if rank(position, seed(B)) < 0.3]
    assert len(both) / len(low) == pytest.approx(0.3, abs=0.03)


def test_ranks_are_the_same_everywhere() -> None:
    """Gateways of other versions have the same keys come over first."""
    assert [round(rank(position, seed(A)), 6) for position in (0, 1, 2**32 - 1)] == PINNED


PINNED = [0.460912, 0.086172, 0.481194]
