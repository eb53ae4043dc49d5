"""Every endpoint in its turn."""

from collections.abc import Iterator, Mapping
from heapq import heapify, heapreplace
from random import Random as Rng
from typing import Self

from tcpgw.balancing.policy import Keyless
from tcpgw.balancing.standing import Share, usable
from tcpgw.endpoints import Endpoint


class RoundRobin(Keyless):
    """Weighted round robin that spreads a heavy endpoint's turns evenly (earliest deadline first, as Envoy).

    Each endpoint is due every 1/weight. nginx's smooth scheme gives the same evenness, but looks at every
    endpoint for every connection. The first turns are at random moments: otherwise each worker and each new
    snapshot would begin with the same endpoint, which under frequent changes gets the most.
    """

    def __init__(self, weights: Mapping[Endpoint, float], rng: Rng) -> None:
        self._weights = weights
        self._rng = rng
        self._periods = {endpoint: 1 / weight for endpoint, weight in weights.items()}
        self._due = [(rng.random() * period, endpoint) for endpoint, period in sorted(self._periods.items())]
        heapify(self._due)

    def candidates(self, position: int) -> Iterator[Endpoint]:  # noqa: ARG002  # the interface's
        """Whose turn it is, in O(log n), then the others in the order of their next turns.

        Only taking the first uses up a turn.
        """
        if not self._due:
            return
        moment, chosen = self._due[0]
        heapreplace(self._due, (moment + self._periods[chosen], chosen))
        yield chosen
        for _, endpoint in sorted(self._due):
            if endpoint != chosen:
                yield endpoint

    def under(self, shares: Mapping[Endpoint, Share]) -> Self:
        """Return itself. Who had to wait for a part of its period waits for that part of the new one.

        Beginning anew with each step of a slow start would be choice at random where little is asked.
        """
        now = self._due[0][0] if self._due else 0.0
        left = {endpoint: (moment - now) / self._periods[endpoint] for moment, endpoint in self._due}
        weights = usable(self._weights, shares)
        self._periods = {endpoint: 1 / weight for endpoint, weight in weights.items()}
        self._due = [
            (now + (left[endpoint] if endpoint in left else self._rng.random()) * period, endpoint)
            for endpoint, period in sorted(self._periods.items())
        ]
        heapify(self._due)
        return self

    def explain(self, position: int) -> str:  # noqa: ARG002  # the interface's
        return f"round_robin: {len(self._due)} endpoints in turn by weight"
