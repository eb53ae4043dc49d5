"""Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam 2017)."""

from collections.abc import Iterator, Mapping

from tcpgw.balancing.loads import Loads
from tcpgw.balancing.policy import Policy
from tcpgw.endpoints import Endpoint


class Bounded:
    """A hash policy under which no endpoint takes more than `factor` times its share of what is in flight.

    The cap of an endpoint is ceil(factor * (total in flight + 1) * weight / total weight), where the total is
    of this service's endpoints in this process. With `factor` at least 1 someone is always below it, so
    nothing is refused; the endpoints at their cap come last and are for retries.
    """

    def __init__(
        self, policy: Policy, weights: Mapping[Endpoint, float], loads: Loads, factor: float = 1.25
    ) -> None:
        self._policy = policy
        self._weights = dict(weights)
        self._total_weight = sum(weights.values())
        self._loads = loads
        self._factor = factor

    def candidates(self, position: int) -> Iterator[Endpoint]:
        """Those below their cap in the inner policy's order, then the others, likewise."""
        full = []
        for endpoint in self._policy.candidates(position):
            if self._has_room(endpoint):
                yield endpoint
            else:
                full.append(endpoint)
        yield from full

    def explain(self, position: int) -> str:
        full = sum(not self._has_room(endpoint) for endpoint in self._weights)
        return (
            f"{self._policy.explain(position)}; bounded load {self._factor:g}: "
            f"{full} of {len(self._weights)} endpoints at their cap"
        )

    def _has_room(self, endpoint: Endpoint) -> bool:
        # For a whole number n, n < ceil(x) and n < x are the same.
        share = self._factor * (self._loads.total + 1) * self._weights[endpoint] / self._total_weight
        return self._loads.inflight(endpoint) < share
