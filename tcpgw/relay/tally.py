"""What the connections of a listener came to, by the service that they were for."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from tcpgw.observe.histogram import Histogram
from tcpgw.relay.reasons import Reason

if TYPE_CHECKING:
    from tcpgw.relay.session import Connection

AGES = (1, 10, 60, 600, 3600, 86400)
"""Seconds: a request, a short session, a long one, and up to what is left of last week."""


class Tally:
    """Of one service's connections: `opened` less all of `ended` are there now, bytes are those of the ended.

    Those that end before they have a session are opened and ended at once.
    """

    __slots__ = ("bytes_in", "bytes_out", "duration", "ended", "opened")

    def __init__(self) -> None:
        self.opened = 0
        self.ended: Counter[Reason] = Counter()
        self.bytes_in = 0  # from clients
        self.bytes_out = 0
        self.duration = Histogram()

    def end(self, reason: Reason, bytes_in: int, bytes_out: int, seconds: float) -> None:
        """Count one that ended."""
        self.ended[reason] += 1
        self.bytes_in += bytes_in
        self.bytes_out += bytes_out
        self.duration.add(seconds)

    def figures(self, bytes_in: int, bytes_out: int) -> dict[str, Any]:
        """Return plain values; with these bytes of connections that go on."""
        return {
            "opened": self.opened,
            "active": self.opened - self.ended.total(),
            "bytes_in": self.bytes_in + bytes_in,
            "bytes_out": self.bytes_out + bytes_out,
            "ended": {reason.value: count for reason, count in self.ended.items()},
            "duration": self.duration.figures(),
        }


class Tallies(dict[str, Tally]):
    """By service; "" is for those that had none, and is there from the start."""

    def __init__(self) -> None:
        super().__init__({"": Tally()})

    def open(self, service: str) -> Tally:
        """Count one more, and return where it is to be ended."""
        if service not in self:
            self[service] = Tally()
        tally = self[service]
        tally.opened += 1
        return tally

    @property
    def ended(self) -> Counter[Reason]:
        return sum((tally.ended for tally in self.values()), Counter())

    def figures(self, connections: Collection["Connection"], now: float) -> dict[str, Any]:
        """Return plain values: of all, `services` by service, and `ages` by AGES.

        `connections` are those there are, the oldest first. Under "" those being set up are `active`.
        """
        moved = _moved(connections)
        services = {name: tally.figures(*moved.get(tally, (0, 0))) for name, tally in self.items()}
        services[""]["active"] += len(connections) - sum(one["active"] for one in services.values())
        return {
            "active": len(connections),
            "bytes_in": sum(one["bytes_in"] for one in services.values()),
            "bytes_out": sum(one["bytes_out"] for one in services.values()),
            "ended": {reason.value: count for reason, count in self.ended.items()},
            "services": services,
            "ages": _ages([connection.opened for connection in connections], now),
        }


def _moved(connections: Iterable["Connection"]) -> dict[Tally, tuple[int, int]]:
    """Bytes in and out of connections that go on."""
    moved: dict[Tally, tuple[int, int]] = {}
    for connection in connections:
        session, tally = connection.session, connection.tally
        if session is not None and tally is not None:
            bytes_in, bytes_out = moved.get(tally, (0, 0))
            moved[tally] = bytes_in + session.received, bytes_out + session.sent
    return moved


def _ages(opened: list[float], now: float) -> dict[str, int]:
    """How many are at most so many seconds old, and older than those before; "" is the rest."""
    older = [bisect_right(opened, now - age) for age in AGES]
    counts = [before - after for before, after in pairwise((len(opened), *older))]
    return {**dict(zip(map(str, AGES), counts, strict=True)), "": older[-1]}
