"""Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam 2017)."""

from collections.abc import Iterator, Mapping

from tcpgw.balancing.loads import Loads
from tcpgw.balancing.policy import Policy
from tcpgw.balancing.standing import Share, usable
from tcpgw.endpoints import Endpoint


class Bounded:
    """A hash policy under which no endpoint takes more than `factor` times its share of what is in flight.

    The cap of an endpoint is ceil(factor * (total in flight + 1) * weight / total weight), where the total is
    of this service's endpoints in this process. With `factor` at least 1 someone is always below it, so
    nothing is refused; the endpoints at their cap come last and are for retries.

    Under shares the weights are what is usable of them: of three endpoints without one, each of the other two
    has half.
    """

    spills = True

    def __init__(
        self, policy: Policy, weights: Mapping[Endpoint, float], loads: Loads, factor: float = 1.25
    ) -> None:
        self._policy = policy
        self._weights = weights
        # Less a hair: rounding must not make a cap that should be 63 come out as 64.
        total = sum(weights.values()) * (1 + 1e-12)
        self._shares = {endpoint: factor * weight / total for endpoint, weight in weights.items()}
        self._loads = loads
        self._factor = factor

    def candidates(self, position: int) -> Iterator[Endpoint]:
        """Those below their cap in the inner policy's order, then the others, likewise."""
        full = []
        for endpoint in self._policy.candidates(position):
            if self.has_room(endpoint):
                yield endpoint
            else:
                full.append(endpoint)
        yield from full

    def home(self, position: int) -> Endpoint | None:
        """Return the inner policy's."""
        return self._policy.home(position)

    def has_room(self, endpoint: Endpoint) -> bool:
        """Whether the endpoint is below its cap. An unknown one is not: nothing is chosen that has left."""
        # For a whole number n, n < ceil(x) and n < x are the same.
        return self._loads.inflight(endpoint) < self.share(endpoint) * (self._loads.total + 1)

    def share(self, endpoint: Endpoint) -> float:
        """Of an unknown one 0: nothing is chosen that has left."""
        return self._shares.get(endpoint, 0.0)

    def under(self, shares: Mapping[Endpoint, Share]) -> Policy:
        if not shares:
            return self
        weights = usable(self._weights, shares)
        return Bounded(self._policy.under(shares), weights, self._loads, self._factor)

    def explain(self, position: int) -> str:
        full = sum(not self.has_room(endpoint) for endpoint in self._shares)
        return (
            f"{self._policy.explain(position)}; bounded load {self._factor:g}: "
            f"{full} of {len(self._shares)} endpoints at their cap"
        )
