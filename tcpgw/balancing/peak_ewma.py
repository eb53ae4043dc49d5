"""The one of two random endpoints that is likely to answer sooner."""

from tcpgw.balancing.sampling import BetterOfTwo
from tcpgw.endpoints import Endpoint

# Seconds. An endpoint that has something in flight but no latency yet counts as slower than any that has,
# so a new one gets one connection to be measured by and not all of them (Finagle's penalty).
_UNMEASURED = 3600.0


class PeakEwma(BetterOfTwo):
    """Finagle's and Linkerd's peak EWMA: latency * (in flight + 1) / weight of two endpoints drawn by weight.

    The latency is that of `Loads.observe`: it rises at once and falls over 10 s, so that an endpoint that
    stalls is avoided from its first slow answer on. Where nobody observes, this is least request.

    Under shares what is in flight is divided by what is usable of the weight.
    """

    def explain(self, position: int) -> str:  # noqa: ARG002  # the interface's
        return "peak_ewma: of two drawn by weight the one with the lower latency * (in flight + 1) / weight"

    def _cost(self, endpoint: Endpoint) -> float:
        inflight = self._loads.inflight(endpoint)
        latency = self._loads.latency(endpoint)
        if not latency and inflight:
            latency = _UNMEASURED
        # An idle service shares out by how often one is drawn: to count the share here too would give an
        # endpoint in trial hardly anything.
        return latency * (inflight / self._usable[endpoint] + 1 / self._weights[endpoint])
