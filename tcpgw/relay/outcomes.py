"""What became of what endpoints were asked for."""

from tcpgw.endpoints import Endpoint
from tcpgw.pool import Pool


class Outcome:
    """How often connecting to an endpoint came to what."""

    __slots__ = ("connected", "failed")

    def __init__(self) -> None:
        self.connected = 0
        self.failed = 0


class Outcomes(dict[Endpoint, Outcome]):
    """By endpoint, since it is known. One for a service, or one for each of its upstreams, to be added up.

    Endpoints that have left, and have no connections any more, are forgotten when another comes.
    """

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self._pool = pool

    def __missing__(self, endpoint: Endpoint) -> Outcome:
        members = {member.endpoint for member in self._pool.members}
        for known in [known for known in self if known not in members]:
            if not self._pool.loads.inflight(known):
                del self[known]
        outcome = self[endpoint] = Outcome()
        return outcome
