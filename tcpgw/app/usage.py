"""How many connections sources and subjects have at each worker, for the others to count with.

The kernel spreads a source's connections over the workers, so each sees only some of them. One that has as
many as it may has at least its limit's even part of them at some worker. That one tells of it, and from then
on all do, for as long as it has connections at more than one: so most names, which have few, cost nothing.

What is promised: beyond its limit a name gets no connection at any worker that was told of those at the
others. Word goes out with the first turn of a loop that has some, and then every 5 ms; on its way are two
hops over sockets, so mostly it is there within 2 ms. Only what comes to several workers within that time may
be too much, and each of them alone keeps the limit: `workers` times the limit is the most that one gets. What
is too much stays, and counts. A worker that leaves tells of all that it still has; one that dies is forgotten
once it is gone. Workers of another supervisor (an upgrade's) do not know of these.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from math import inf
from typing import Any

from tcpgw.access.guard import Guard
from tcpgw.access.limits import Limiter
from tcpgw.config import schema

Told = Mapping[str, tuple[bool, Mapping[str, int]]]
"""By limiter (a listener's sources or subjects): connections by name; and whether that is all, or changes."""

Elsewhere = dict[str, dict[str, int]]
"""By limiter: of names for which it is another than before, how many connections they have at all others."""


class Usage:
    """What workers told. Keys of `note` and `forget` are whoever tells, and so are those of what they return:
    what each is to be told then.
    """

    def __init__(self) -> None:
        self._told: dict[Any, dict[str, dict[str, int]]] = {}
        self._totals: dict[str, Counter[str]] = {}

    def note(self, worker: Any, told: Told) -> dict[Any, Elsewhere]:
        """Take what a worker has. Who tells all of a limiter is told all of the others'."""
        limiters = self._told.setdefault(worker, {})
        news: dict[Any, Elsewhere] = {}
        for limiter, (whole, names) in told.items():
            own = limiters.setdefault(limiter, {})
            changed = {**dict.fromkeys(own, 0), **names} if whole else names
            self._count(limiter, own, changed)
            total = self._totals[limiter]
            for other, theirs in self._told.items():
                if other is not worker:
                    known = theirs.get(limiter, {})
                    found = {name: total[name] - known.get(name, 0) for name in changed}
                    if found:
                        news.setdefault(other, {})[limiter] = found
                elif whole:
                    found = {name: count - own.get(name, 0) for name, count in total.items()}
                    news.setdefault(worker, {})[limiter] = {name: n for name, n in found.items() if n}
        return news

    def forget(self, worker: Any) -> dict[Any, Elsewhere]:
        """A worker is gone, and its connections with it. Idempotent."""
        news = self.note(worker, {limiter: (True, {}) for limiter in self._told.get(worker, {})})
        del self._told[worker]
        news.pop(worker, None)
        return news

    def _count(self, limiter: str, own: dict[str, int], changed: Mapping[str, int]) -> None:
        total = self._totals.setdefault(limiter, Counter())
        for name, count in changed.items():
            total[name] += count - own.pop(name, 0)
            if count:
                own[name] = count
            if not total[name]:
                del total[name]


class Shares:
    """A worker's side: what it has to tell of its limiters, and what it is told.

    `heard` is called when there are `news`.
    """

    def __init__(self, heard: Callable[[], None]) -> None:
        self._heard = heard
        self._limiters: dict[str, Limiter] = {}
        self._fresh: set[str] = set()  # of which the others do not know what this one has

    def follow(
        self, config: schema.Config, guards: Mapping[str, Guard], workers: int, *, leaving: bool = False
    ) -> None:
        """Go by this configuration, as one of so many workers; `leaving`: one that takes no more clients."""
        limiters = {name: (limiter, most) for name, limiter, most in _limiters(config, guards)}
        self._fresh |= self._limiters.keys() - limiters.keys()
        for name, (limiter, most) in limiters.items():
            if self._limiters.get(name) is not limiter:
                self._fresh.add(name)
            limiter.heard = self._heard
            limiter.divide(_share(most, workers, leaving=leaving))
        self._limiters = {name: limiter for name, (limiter, _) in limiters.items()}
        if self._fresh:
            self._heard()

    def news(self) -> Told:
        """What others are to know since the last time. Empty: nothing."""
        told: dict[str, tuple[bool, Mapping[str, int]]] = {}
        for name in self._fresh - self._limiters.keys():
            told[name] = True, {}
        for name, limiter in self._limiters.items():
            fresh = name in self._fresh
            names = limiter.all_told() if fresh else limiter.news()
            if fresh or names:
                told[name] = fresh, names
        self._fresh = set()
        return told

    def take(self, told: Mapping[str, Mapping[str, int]]) -> None:
        """Count with what others have."""
        for name, elsewhere in told.items():
            if name in self._limiters:
                self._limiters[name].hear(elsewhere)


def _share(most: int, workers: int, *, leaving: bool) -> float:
    # What one that leaves has is no part of what the others may reach together: they are to know all of it.
    if leaving:
        return 1
    return -(-most // workers) if workers > 1 else inf


def _limiters(config: schema.Config, guards: Mapping[str, Guard]) -> Iterator[tuple[str, Limiter, int]]:
    """Those that limit connections: a name that all workers know them by, and how many."""
    for listener in config.listener:
        guard, limits = guards[listener.name], listener.limits
        for kind, limiter, quota in (
            ("source", guard.sources, limits.per_source),
            ("subject", guard.subjects, limits.per_subject),
        ):
            if limiter is not None and quota is not None and quota.connections is not None:
                yield f"{kind} {listener.name}", limiter, quota.connections
