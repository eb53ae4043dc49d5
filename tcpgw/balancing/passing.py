"""A hash policy while endpoints have less than their weight: the table stands, and they are passed over.

A table of those that are left would take tens of milliseconds, for each step of a slow start too, and would
move keys among endpoints that nothing happened to: where one of 100 leaves a Maglev table, 0.6 % of the keys
of those that stay, and again when it is back.
"""

import random
from collections.abc import Callable, Iterator, Mapping

from tcpgw.balancing.policy import Policy
from tcpgw.balancing.standing import Share, rank, seed
from tcpgw.endpoints import Endpoint


class Passing:
    """The order of `policy`, without who gets nothing, and with others behind for what they are not to have.

    `chance` gives numbers from 0 to 1 (1 excluded), for trials.
    """

    def __init__(
        self,
        policy: Policy,
        shares: Mapping[Endpoint, Share],
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.spills = policy.spills
        self._policy = policy
        self._shares = shares
        self._seeds = {endpoint: seed(endpoint) for endpoint, share in shares.items() if share.by_key}
        self._chance = chance

    def candidates(self, position: int) -> Iterator[Endpoint]:
        """Who is to have the key in the policy's order; then slow starters passed over; then trials."""
        starting, tried = [], []
        for endpoint in self._policy.candidates(position):
            share = self._shares.get(endpoint)
            if share is None:
                yield endpoint
            elif share.value <= 0:
                continue
            elif share.by_key:
                if self._has(endpoint, position, share):
                    yield endpoint
                else:
                    starting.append(endpoint)
            elif self._chance() < share.value:
                yield endpoint
            else:
                tried.append(endpoint)
        yield from starting
        yield from tried

    def home(self, position: int) -> Endpoint | None:
        """Return whose the key is at present; None where a trial comes into it, and so chance decides."""
        home = self._policy.home(position)
        if home is None or home not in self._shares:
            return home
        starting = None
        for endpoint in self._policy.candidates(position):
            share = self._shares.get(endpoint)
            if share is None or self._has(endpoint, position, share):
                return endpoint
            if share.value > 0:
                if not share.by_key:
                    return None
                starting = starting or endpoint
        return starting

    def share(self, endpoint: Endpoint) -> float:
        """Return the policy's, and 0 for who gets nothing."""
        share = self._shares.get(endpoint)
        return self._policy.share(endpoint) if share is None or share.value > 0 else 0.0

    def under(self, shares: Mapping[Endpoint, Share]) -> Policy:
        return self._policy.under(shares)

    def explain(self, position: int) -> str:
        return f"{self._policy.explain(position)}; {len(self._shares)} endpoints with less than their weight"

    def _has(self, endpoint: Endpoint, position: int, share: Share) -> bool:
        """Whether it has the key by its slow start."""
        return share.by_key and rank(position, self._seeds[endpoint]) < share.value
