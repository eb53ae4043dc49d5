"""What every balancing policy offers: an order of endpoints for a key, not a single answer."""

from collections.abc import Iterator, Mapping
from math import inf
from typing import Protocol

from tcpgw.balancing.standing import Share
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

    def home(self, position: int) -> Endpoint | None:
        """Return the endpoint that the key belongs to whatever the load; None where keys belong to nobody.

        So it is too while an endpoint in trial may get the key: each choice is a new one then.

        While that has room (see `share`), it is the first candidate: so who sends many requests of one key
        may ask once, and from then on look at the loads alone.
        """

    def share(self, endpoint: Endpoint) -> float:
        """Return its share of the load: it has room while it has less than this times (all in flight + 1).

        inf where nothing bounds it. One that is none of the policy's has none.
        """

    def under(self, shares: Mapping[Endpoint, Share]) -> "Policy":
        """Return what chooses in its stead while these shares hold; where there are none, what it was.

        Quick: no table is built. What this returned before, for other shares, is not used any more. `shares`
        are of its endpoints alone, and below 1.
        """

    @property
    def spills(self) -> bool:
        """Whether load may send a key past its first candidate.

        False: a key waits for its first one, however long; the next are for when that cannot be reached.
        """

    def explain(self, position: int) -> str:
        """Say for an operator, in a few words, how `candidates` came to its order."""


class Keyless:
    """What every policy that ignores the key says: no key has a home, and nothing bounds an endpoint.

    Load may be part of how such a policy draws its order; it passes over nobody. A share makes a weight less,
    of slow starts and of trials alike: there are no keys that could stay where they are.
    """

    spills = True

    def home(self, position: int) -> Endpoint | None:  # noqa: ARG002  # the interface's
        return None

    def share(self, endpoint: Endpoint) -> float:  # noqa: ARG002  # the interface's
        return inf
