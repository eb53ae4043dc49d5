"""The less loaded of two endpoints drawn at random."""

from tcpgw.balancing.sampling import BetterOfTwo
from tcpgw.endpoints import Endpoint


class LeastRequest(BetterOfTwo):
    """Power of two choices: two endpoints drawn by weight, the one with fewer in flight per weight first.

    As nginx's `least_conn`, by inflight / weight and not (inflight + 1) / weight: with the latter a heavier
    endpoint would look less loaded while both are idle, and at low traffic a weight of 2 beside two of 1
    would get five sixths of all connections instead of half.
    """

    def explain(self, position: int) -> str:  # noqa: ARG002  # the interface's
        return "least_request: of two drawn by weight the one with fewer in flight per weight"

    def _cost(self, endpoint: Endpoint) -> float:
        return self._loads.inflight(endpoint) / self._usable[endpoint]
