"""Maglev hashing (Eisenbud et al., NSDI'16, section 3.4), weighted as Envoy does it.

Each endpoint has its own order in which it would like the table's entries: from a slot of its own in steps of
its own, which visits every slot once because the table's size is prime. The endpoints take turns, and each
takes the first entry of its order that is still free. So each gets its share almost exactly, and when one
leaves, few entries but its own change hands.

Weights decide who has a turn in a round: the heaviest in every round, one of a third of its weight in every
third (Envoy's `target_weight`).
"""

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle, islice
from math import ceil, inf, isqrt

from xxhash import xxh64_intdigest

from tcpgw.balancing.hashing import bucket
from tcpgw.balancing.passing import Passing
from tcpgw.balancing.policy import Policy
from tcpgw.balancing.standing import Share
from tcpgw.balancing.walk import walk
from tcpgw.endpoints import Endpoint

# Entries looked at between two calls of `breathe`: half a millisecond, or one on a slow machine. What a turn
# costs besides its walk is as much as looking at eight.
_BREATH = 8192
_TURN = 8


class Maglev:
    """A Maglev table of `size` entries (prime; Envoy's and Katran's default).

    Depends on nothing but the endpoints, their weights and `size`, so that separate gateways agree.
    Building takes tens of milliseconds: do it in a thread, with a `breathe` that lets the event loop have the
    interpreter (called about every millisecond). Raises ValueError where `size` is not prime, since the build
    would never end.
    """

    spills = False

    def __init__(
        self,
        weights: Mapping[Endpoint, float],
        size: int = 65537,
        breathe: Callable[[], None] = lambda: None,
    ) -> None:
        if size < 2 or any(size % factor == 0 for factor in range(2, isqrt(size) + 1)):
            raise ValueError(
                f"a Maglev table cannot have {size} entries: the number must be prime, e.g. 65537"
            )
        ordered = sorted(weights.items())
        self._size = size
        self._endpoints = [endpoint for endpoint, _ in ordered]
        self._owners = array("I")
        if ordered:
            self._owners = _build(self._endpoints, [weight for _, weight in ordered], size, breathe)

    def candidates(self, position: int) -> Iterator[Endpoint]:
        """The owner of the position's bucket, then those of the buckets after it. O(1) for the first."""
        return walk(self._endpoints, self._owners, bucket(position, self._size))

    def home(self, position: int) -> Endpoint | None:
        """Return the owner of the position's bucket."""
        if not self._endpoints:
            return None
        return self._endpoints[self._owners[bucket(position, self._size)]]

    def share(self, endpoint: Endpoint) -> float:  # noqa: ARG002  # the interface's
        """Return no bound: a hash looks at no load."""
        return inf

    def under(self, shares: Mapping[Endpoint, Share]) -> Policy:
        return Passing(self, shares) if shares else self

    def explain(self, position: int) -> str:
        return f"maglev: bucket {bucket(position, self._size)} of {self._size}"


def _build(
    endpoints: Sequence[Endpoint], weights: Sequence[float], size: int, breathe: Callable[[], None]
) -> "array[int]":
    slots, steps = [], []
    for index, endpoint in enumerate(endpoints, 1):
        name = str(endpoint).encode()
        slots.append(xxh64_intdigest(name) % size)
        steps.append(xxh64_intdigest(name, 1) % (size - 1) + 1)
        if index % 256 == 0:
            breathe()
    owners = array("I", bytes(4 * size))
    # Not a test of `owners`: this lookup is most of the build, and a list of bools has the fastest.
    taken = [False] * size
    turns = _turns(weights)
    free = size
    while free:
        # A walk looks at size / free entries on average.
        batch = min(max(1, _BREATH // (_TURN + size // free)), free)
        for index in islice(turns, batch):
            slot, step = slots[index], steps[index]
            while taken[slot]:
                slot = (slot + step) % size
            taken[slot] = True
            owners[slot] = index
            slots[index] = slot
        free -= batch
        breathe()
    return owners


def _turns(weights: Sequence[float]) -> Iterator[int]:
    """Whose turn it is, without end: indexes into `weights`.

    Envoy looks in each round at every endpoint; with one heavy endpoint among a thousand light ones that is
    thousands of looks per turn, so here a calendar says who is due in which round.
    """
    heaviest = max(weights)
    if heaviest == min(weights):
        yield from cycle(range(len(weights)))
    calendar: defaultdict[int, list[int]] = defaultdict(list)
    calendar[1] = list(range(len(weights)))
    had = [0] * len(weights)
    current = 0
    while True:
        current += 1
        due = calendar.pop(current)  # never missing: the heaviest is due in every round
        due.sort()
        for index in due:
            yield index
            had[index] += 1
            following = ceil(had[index] * heaviest / weights[index])
            calendar[following if following > current else current + 1].append(index)
