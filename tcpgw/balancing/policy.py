"""What every balancing policy offers: an order of endpoints for a key, not a single answer."""

from collections.abc import Iterator
from typing import Protocol

from tcpgw.endpoints import Endpoint


class Policy(Protocol):
    """A way to choose among one snapshot's endpoints. Immutable but for the loads it was given to read.

    Constructors take `Mapping[Endpoint, float]` (weights above 0) and may be slow: they run off the event
    loop.
    """

    def candidates(self, position: int) -> Iterator[Endpoint]:
        """Yield each endpoint at most once, best first. `position` is the key's hash, 32 bits unsigned.

        Lazy: the caller mostly takes one. Hash policies depend on `position` alone; the others ignore it.
        """

    def explain(self, position: int) -> str:
        """Say for an operator, in a few words, how `candidates` came to its order."""
