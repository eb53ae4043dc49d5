from collections import UserList
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tcpgw.balancing.walk import walk
from tcpgw.endpoints import Endpoint

ENDPOINTS = [Endpoint.of(f"10.0.0.{n}", 80) for n in range(1, 9)]


@given(st.lists(st.integers(0, 7), min_size=2, max_size=40), st.integers(0, 100))
def test_owners_come_in_the_tables_order_and_the_others_after_them(owners: list[int], start: int) -> None:
    """Every endpoint comes once: as met from the start on, round the end; then those without an entry."""
    turned = [owners[(start + n) % len(owners)] for n in range(len(owners))]
    met = [ENDPOINTS[owner] for owner in dict.fromkeys(turned)]
    order = list(walk(ENDPOINTS, owners, start))
    assert order[: len(met)] == met
    assert sorted(order) == ENDPOINTS


def test_a_long_walk_ends_early() -> None:
    """An endpoint whose only entry is far away still comes, and the table is not searched for it."""

    class Counting(UserList[int]):
        looks = 0

        def __getitem__(self, index: Any) -> Any:
            self.looks += 1
            return super().__getitem__(index)

    owners = Counting([0] * 50_000 + [1])
    assert list(walk(ENDPOINTS[:2], owners, 0)) == ENDPOINTS[:2]
    assert owners.looks <= 1024


def test_the_unmet_do_not_always_begin_with_the_same() -> None:
    """Starts share out who is the first of those that the walk did not meet."""
    second = {list(walk(ENDPOINTS, [0, 0, 0, 0, 0, 0, 0], start))[1] for start in range(7)}
    assert second == set(ENDPOINTS[1:])


def test_nobody() -> None:
    """Without endpoints there are no candidates."""
    assert list(walk([], [], 0)) == []
