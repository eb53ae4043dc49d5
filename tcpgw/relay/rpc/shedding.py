"""Which of the requests that wait are given up first when the gateway has more to do than it can."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from heapq import nsmallest
from typing import TYPE_CHECKING

from tcpgw.balancing.fair_queue import PRIORITIES

if TYPE_CHECKING:
    from tcpgw.relay.rpc.call import Call
    from tcpgw.relay.rpc.lane import Lane


def take_oldest(lanes: Sequence[Lane], count: int) -> list[Call]:
    """Take `count` requests from where they wait: of the lowest priority first, and of one the oldest.

    The oldest are those whose time is up first: with them goes the work that would most likely be for nobody.
    By age and not by turns, so that the flood which keeps others waiting gives most. Takes O(waiting).
    """
    taken: list[Call] = []
    for priority in reversed(range(PRIORITIES)):
        if len(taken) < count:
            waiting = (
                (until, place) for place, lane in enumerate(lanes) for until in lane.queue.untils(priority)
            )
            portions = Counter(place for _, place in nsmallest(count - len(taken), waiting))
            for place, portion in portions.items():
                taken += lanes[place].queue.shed(priority, portion)
    return taken
