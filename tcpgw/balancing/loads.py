"""What a service's endpoints are doing: connections in flight and how fast they answer.

One `Loads` belongs to one service and outlives its snapshots and policies; policies only read it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import exp

from tcpgw.endpoints import Endpoint

# Seconds after which an old latency counts 1/e: Finagle's and Linkerd's default.
_DECAY = 10.0


@dataclass(slots=True)
class Load:
    """One endpoint's."""

    inflight: int = 0
    leaving: bool = False
    latency: float = 0.0
    observed_at: float = 0.0


class Loads:
    """In-flight counts and latencies per endpoint. `clock` gives monotonic seconds.

    Used from the event loop only, so it takes no lock. An endpoint is known from its first use on; of an
    unknown one everything is 0.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._loads: dict[Endpoint, Load] = {}
        # All in flight, but for those at endpoints that the last `retain` left out.
        self.total = 0

    def of(self, endpoint: Endpoint) -> Load:
        """The endpoint's load, for who counts there often: valid while `retain` is told of the endpoint.

        What is added to its `inflight` is to be added to `total` too, as `begin` does.
        """
        return self._loads.get(endpoint) or self._add(endpoint)

    def begin(self, endpoint: Endpoint, count: int = 1) -> None:
        """Count `count` more in flight (at least 1). What is begun is ended exactly once, in any portions."""
        load = self._loads.get(endpoint) or self._add(endpoint)
        load.inflight += count
        if not load.leaving:
            self.total += count

    def end(self, endpoint: Endpoint, count: int = 1) -> None:
        """Count `count` less in flight. Raises KeyError where the endpoint was never begun."""
        load = self._loads[endpoint]
        load.inflight -= count
        if not load.leaving:
            self.total -= count
        elif not load.inflight:
            del self._loads[endpoint]

    def observe(self, endpoint: Endpoint, seconds: float) -> None:
        """Take a measured latency. A worse one counts at once and in full, a better one little by little.

        Tell a failure as the time-out it could have been: a refused connection is quick, and would make a
        dead endpoint the best of all.
        """
        load = self._loads.get(endpoint) or self._add(endpoint)
        now = self._clock()
        kept = exp((load.observed_at - now) / _DECAY)
        load.latency = max(seconds, load.latency * kept + seconds * (1.0 - kept))
        load.observed_at = now

    def inflight(self, endpoint: Endpoint) -> int:
        load = self._loads.get(endpoint)
        return load.inflight if load else 0

    def latency(self, endpoint: Endpoint) -> float:
        """Seconds; 0 where nothing is known. Fades while nothing is observed: a slow one gets a new try."""
        load = self._loads.get(endpoint)
        return load.latency * exp((load.observed_at - self._clock()) / _DECAY) if load else 0.0

    def retain(self, endpoints: Iterable[Endpoint]) -> None:
        """Keep what is known of these; forget others as soon as nothing is in flight there. Idempotent."""
        kept = set(endpoints)
        for endpoint, load in list(self._loads.items()):
            load.leaving = endpoint not in kept
            if load.leaving and not load.inflight:
                del self._loads[endpoint]
        self.total = sum(load.inflight for load in self._loads.values() if not load.leaving)

    def _add(self, endpoint: Endpoint) -> Load:
        load = self._loads[endpoint] = Load()
        return load
