"""Which requests are given up first, among all the queues of a service."""

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tcpgw.balancing.fair_queue import FairQueue
from tcpgw.relay.rpc.shedding import take_oldest

items = st.tuples(st.integers(0, 2), st.sampled_from("abc"), st.integers(0, 2), st.integers(0, 9))


@given(st.lists(items, max_size=20), st.integers(0, 25))
def test_the_lowest_priority_and_then_the_oldest(
    waiting: list[tuple[int, str, int, int]], count: int
) -> None:
    """Wherever and whosever they are; never more than wait, and the others stay."""
    lanes: list[Any] = [SimpleNamespace(queue=FairQueue[str, int](100)) for _ in range(3)]
    ranks = {}
    for number, (lane, owner, priority, until) in enumerate(waiting):
        lanes[lane].queue.push(owner, number, priority, float(until))
        ranks[number] = (-priority, until)
    taken: list[Any] = take_oldest(lanes, count)
    left = [number for lane in lanes for number in lane.queue.take_all()]
    assert len(taken) == min(count, len(waiting))
    assert sorted(taken + left) == sorted(ranks)
    assert sorted(ranks[number] for number in taken) == sorted(ranks.values())[: len(taken)]
