"""Choice at random by weight, and the better of two so chosen."""

from abc import ABC, abstractmethod
from bisect import bisect
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate, islice
from random import Random as Rng
from types import MappingProxyType
from typing import Self

from tcpgw.balancing.loads import Loads
from tcpgw.balancing.policy import Keyless
from tcpgw.balancing.standing import Share, usable
from tcpgw.endpoints import Endpoint


class Random(Keyless):
    """Each endpoint as often as its weight says, without memory."""

    def __init__(self, weights: Mapping[Endpoint, float], rng: Rng) -> None:
        self._all = weights
        ordered = sorted(weights.items())
        self._endpoints = [endpoint for endpoint, _ in ordered]
        self._weights = [weight for _, weight in ordered]
        self._sums = list(accumulate(self._weights))
        self._rng = rng

    def candidates(self, position: int) -> Iterator[Endpoint]:  # noqa: ARG002  # the interface's
        """Each next one drawn by weight from those not yet drawn: two in O(log n), the rest in O(n log n)."""
        endpoints, sums, random = self._endpoints, self._sums, self._rng.random
        if not endpoints:
            return
        last = len(endpoints) - 1
        first = bisect(sums, random() * sums[-1], hi=last)
        yield endpoints[first]
        if not last:
            return
        # The second: draw from what lies before and after the first. No drawing until it differs, which
        # could last as long as the first one is heavy.
        before = sums[first - 1] if first else 0.0
        drawn = random() * (before + sums[-1] - sums[first])
        if drawn >= before:
            drawn = drawn - before + sums[first]
        second = bisect(sums, drawn, hi=last)
        yield endpoints[second]
        rest = [index for index in range(last + 1) if index not in (first, second)]
        # Exponential arrival times at these rates come in just the order of drawing by weight.
        rest.sort(key=lambda index: self._rng.expovariate(self._weights[index]))
        for index in rest:
            yield endpoints[index]

    def under(self, shares: Mapping[Endpoint, Share]) -> "Random":
        return Random(usable(self._all, shares), self._rng) if shares else self

    def explain(self, position: int) -> str:  # noqa: ARG002  # the interface's
        return f"random: {len(self._endpoints)} endpoints by weight"


def better_of_two(drawn: Iterator[Endpoint], cost: Callable[[Endpoint], float]) -> Iterator[Endpoint]:
    """Put the cheaper of the first two first. At equal cost the first drawn stays: by weight it is its turn.

    Mitzenmacher's power of two choices: nearly as even as looking at all, without the herd that follows the
    one best endpoint until its load is known.
    """
    yield from sorted(islice(drawn, 2), key=cost)
    yield from drawn


class BetterOfTwo(Keyless, ABC):
    """A policy of two choices; its kinds differ in what an endpoint costs."""

    def __init__(
        self,
        weights: Mapping[Endpoint, float],
        loads: Loads,
        rng: Rng,
        shares: Mapping[Endpoint, Share] = MappingProxyType({}),
    ) -> None:
        self._weights = weights
        self._usable = usable(weights, shares)
        self._random = Random(self._usable, rng)
        self._loads = loads
        self._rng = rng

    def candidates(self, position: int) -> Iterator[Endpoint]:
        """The better of two, the other, then the rest at random by weight."""
        return better_of_two(self._random.candidates(position), self._cost)

    def under(self, shares: Mapping[Endpoint, Share]) -> Self:
        """Return one that draws and compares by what is usable of the weights.

        By whole weights who starts slowly would win nearly each comparison, having nothing in flight.
        """
        return type(self)(self._weights, self._loads, self._rng, shares) if shares else self

    @abstractmethod
    def explain(self, position: int) -> str:
        """As `Policy.explain`."""

    @abstractmethod
    def _cost(self, endpoint: Endpoint) -> float:
        """What speaks against an endpoint now."""
