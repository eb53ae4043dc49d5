"""Which of a route's services a key belongs to."""

from collections.abc import Mapping
from math import log

from xxhash import xxh64_intdigest

# Share errors of 65536 slots are about 0.2 %, and the kernel plane can hold as many in a map.
_SLOTS = 1 << 16


class Split:
    """A weighted choice among services that stays with a key (weighted rendezvous hashing).

    In each slot every service has a number of its own, made from its name and the slot, that its weight
    scales; the lowest wins. So a service whose weight grows only wins slots, one that shrinks only loses
    some, and between two others nothing moves. Depends on nothing but names and weights. Weight 0: never
    chosen. Raises ValueError where no weight is above 0.
    """

    def __init__(self, weights: Mapping[str, int]) -> None:
        self._services = [
            (name, weight, xxh64_intdigest(name.encode()))
            for name, weight in sorted(weights.items())
            if weight > 0
        ]
        if not self._services:
            raise ValueError("a split needs a service with a weight above 0")
        self._chosen: list[str | None] = [None] * _SLOTS

    def choose(self, position: int) -> str:
        """The service of a key. `position` is hashed with SPLIT_SEED: it must say nothing about endpoints."""
        slot = position >> 16
        chosen = self._chosen[slot]
        if chosen is None:
            chosen = self._chosen[slot] = self._elect(slot)
        return chosen

    def _elect(self, slot: int) -> str:
        key = slot.to_bytes(2, "little")

        def arrival(service: tuple[str, int, int]) -> float:
            # The first of exponential arrivals at rate `weight` is a service with a probability of its share.
            _, weight, seed = service
            return -log((xxh64_intdigest(key, seed) + 1) / 2**64) / weight

        return min(self._services, key=arrival)[0]
