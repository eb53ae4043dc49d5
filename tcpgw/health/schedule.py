"""When each endpoint is due for its next check. Pure: the time is an argument."""

from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import NamedTuple

from tcpgw.endpoints import Endpoint

# New endpoints of one snapshot, up to which all are checked at once: one that has just come ought to be known
# soon. More would be a burst, in every interval until jitter has spread it.
_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Terms:
    """How endpoints are checked; times in seconds, from the beginning of a check.

    `fast_interval` applies while an endpoint is in transition. Each interval is longer or shorter by up to
    `jitter`, a fraction of it, so that neither the gateways of a fleet nor the endpoints of a service fall
    into step. `port` 0 is the endpoint's.
    """

    interval: float = 2.0
    fast_interval: float = 0.5
    timeout: float = 1.0
    jitter: float = 0.1
    port: int = 0


class Turn(NamedTuple):
    """An endpoint's next check, or the one that runs. `number` tells it from every other."""

    due: float
    number: int
    endpoint: Endpoint


class Schedule:
    """The turns of the endpoints that are followed: each waits for its turn, or has it.

    Turns of endpoints that were dropped stay in the heap until they are due, an interval at most.
    """

    def __init__(self, terms: Terms, rng: Random) -> None:
        self._terms = terms
        self._rng = rng
        self._numbers = count(1)
        self._waiting: list[Turn] = []
        self._turns: dict[Endpoint, int] = {}

    def follow(self, endpoints: Iterable[Endpoint], now: float) -> list[Endpoint]:
        """Take in the new ones and return those that were dropped.

        A few new ones are due at once, many are spread over an interval.
        """
        wanted = dict.fromkeys(endpoints)
        dropped = [endpoint for endpoint in self._turns if endpoint not in wanted]
        for endpoint in dropped:
            del self._turns[endpoint]
        new = [endpoint for endpoint in wanted if endpoint not in self._turns]
        span = self._terms.interval if len(new) > _AT_ONCE else 0.0
        for endpoint in new:
            self._add(endpoint, now + span * self._rng.random())
        return dropped

    def take(self, now: float) -> Turn | None:
        """Give the longest-due endpoint its turn, if one is due. It waits again after `again`."""
        due = self.next_due()
        return heappop(self._waiting) if due is not None and due <= now else None

    def next_due(self) -> float | None:
        """Return when the next turn is due, None where nobody waits."""
        while self._waiting and not self.holds(self._waiting[0]):
            heappop(self._waiting)
        return self._waiting[0].due if self._waiting else None

    def holds(self, turn: Turn) -> bool:
        """Say whether the endpoint has been followed ever since it was given this turn."""
        return self._turns.get(turn.endpoint) == turn.number

    def again(self, turn: Turn, began: float, *, fast: bool) -> float:
        """Plan the turn after one that `holds` and began then; return when it is due."""
        terms = self._terms
        interval = terms.fast_interval if fast else terms.interval
        return self._add(turn.endpoint, began + interval * (1 + terms.jitter * self._rng.uniform(-1, 1)))

    def _add(self, endpoint: Endpoint, due: float) -> float:
        number = self._turns[endpoint] = next(self._numbers)
        heappush(self._waiting, Turn(due, number, endpoint))
        return due
