"""What became of what endpoints were asked for: for the status, and for who judges their health.

Counting is on the hot path and judging is not. So a success is an addition to `Outcome.successes` and nothing
else; what it means for a streak of failures is found out at the next failure, or where somebody asks.

What counts as one failure is one piece of evidence: a connection that could not be made, one that broke with
requests under way however many those were, one frame that the protocol forbids, a client's requests that
are found without an answer in time at one look at their connection.
"""

import errno
import time
from collections.abc import Callable, Collection, Iterable
from collections.abc import Set as AbstractSet
from enum import StrEnum
from math import inf
from typing import NamedTuple

from tcpgw.endpoints import Endpoint
from tcpgw.observe.histogram import Histogram
from tcpgw.pool import Pool


class Kind(StrEnum):
    """What a failure was. A closed list: operators choose from it, and it is a metric label."""

    CONNECT = "connect"  # refused, unreachable or not in time
    RESET = "reset"  # it broke off before it had answered
    PROTOCOL = "protocol"  # it sent what its protocol does not allow
    TIMEOUT = "timeout"  # no answer in time
    ERROR = "error"  # it answered with an error of its protocol


class News(NamedTuple):
    """Of an endpoint since it was last told: successes and failures that count; and the `streak` now.

    `last` is what the last of these failures was, "" without any.
    """

    successes: int
    failures: int
    streak: int
    last: str = ""


class Outcome:
    """Of one endpoint, since it is known. Add to `successes` as they come; failures go by `Outcomes.fail`."""

    __slots__ = (
        "_at", "_failures", "_last", "_streak", "_successes", "_told",
        "connected", "failed", "failures", "picked", "successes",
    )  # fmt: skip

    def __init__(self, now: float) -> None:
        self.picked = 0  # connections or requests that were to go there
        self.connected = 0
        self.failed = 0  # to connect
        self.successes = 0
        self.failures = dict.fromkeys(Kind, 0)
        self._streak = 0  # as it was at the last failure
        self._at = 0  # successes by then
        self._failures = 0  # that count, since it was last told
        self._last = ""  # of which kind the last one was
        self._successes = 0  # that were told
        self._told = now  # when it was last told

    @property
    def streak(self) -> int:
        """Failures of kinds that count since the last success."""
        return self._streak if self._at == self.successes else 0

    def count(self, kind: Kind, failures: int) -> int:
        """Count failures that count. Returns the streak."""
        self._streak = self.streak + failures
        self._at = self.successes
        self._failures += failures
        self._last = kind.value
        return self._streak

    def take(self, now: float, window: float) -> News:
        """What is new. Of the successes of more than `window` seconds it is the share that these make up.

        Nobody knows when they came, and those of an hour would hide the failures of some seconds. But if
        there were any it is one at least: without a success, who judges takes the failures before and after
        for failures in a row.
        """
        successes = self.successes - self._successes
        if successes and now - self._told > window:
            successes = max(1, round(successes * window / (now - self._told)))
        news = News(successes, self._failures, self.streak, self._last if self._failures else "")
        self._successes, self._failures, self._told = self.successes, 0, now
        return news

    def forget(self, now: float) -> None:
        """Never tell of the successes until now, unless some may be of after what was told or is to be."""
        if not self._failures and now - self._told > _FRESH:
            self._successes, self._told = self.successes, now


# Seconds since it was last told of an endpoint, up to which a wish to watch it follows from that.
_FRESH = 1.0


class Outcomes(dict[Endpoint, Outcome]):
    """By endpoint, since it is known. One for a service, or one for each of its upstreams, to be added up.

    Endpoints that have left, and have no connections any more, are forgotten when another comes and more are
    known than the service has.

    """

    def __init__(
        self,
        pool: Pool,
        urgent: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        news: Callable[[], None] = lambda: None,
    ) -> None:
        """`urgent` is called as soon as a streak reaches the limit, from within `fail`; it may `take`.

        `news` is called before, at each failure that counts.
        """
        super().__init__()
        self.connecting = Histogram()  # how long instances took to accept
        self.retried = 0  # connections that were tried once more
        self._watched: AbstractSet[Endpoint] = frozenset()
        self.judges_answers = False
        """Whether answers are to be told by `judge`: kind `error` counts."""
        self._pool = pool
        self._urgent = urgent
        self._news = news
        self._clock = clock
        self._on: frozenset[Kind] = frozenset()
        self._limit = 0
        self._window = inf
        self._failing: dict[Endpoint, None] = {}  # with failures that count, since they were last told

    def change(self, on: Collection[Kind], *, failures: int, window: float = inf) -> None:
        """Say which kinds count from now on (before the first call: none), and the limit for a streak.

        `window`: seconds for which successes are of interest.
        """
        self._on = frozenset(on)
        self._limit = failures
        self._window = window
        self.judges_answers = Kind.ERROR in self._on

    @property
    def watched(self) -> AbstractSet[Endpoint]:
        """Endpoints of which successes are news too, as whoever judges them waits for these.

        Those from then on: what piled up before proves nothing in a trial that begins now. Of others they are
        told with the next failure, so that there is no news of what is well.
        """
        return self._watched

    @watched.setter
    def watched(self, endpoints: AbstractSet[Endpoint]) -> None:
        now = self._clock()
        for endpoint in endpoints - self._watched:
            if (outcome := self.get(endpoint)) is not None:
                outcome.forget(now)
        self._watched = endpoints

    def __missing__(self, endpoint: Endpoint) -> Outcome:
        members = self._pool.members
        if len(self) >= len(members):  # not with each of the first ones, or a thousand would cost seconds
            kept = {member.endpoint for member in members}
            for known in [known for known in self if known not in kept]:
                if not self._pool.loads.inflight(known):
                    del self[known]
        outcome = self[endpoint] = Outcome(self._clock())
        return outcome

    def fail(self, endpoint: Endpoint, kind: Kind, count: int = 1) -> None:
        """Count failures that came one after the other."""
        outcome = self[endpoint]
        outcome.failures[kind] += count
        if kind not in self._on:
            return
        streak = outcome.count(kind, count)
        self._failing[endpoint] = None
        self._news()
        if streak - count < self._limit <= streak:
            self._urgent()

    def judge(self, endpoint: Endpoint, errors: Iterable[bool]) -> None:
        """Count answers, in their order, by whether each is an error."""
        outcome = self[endpoint]
        for is_error in errors:
            if is_error:
                self.fail(endpoint, Kind.ERROR)
            else:
                outcome.successes += 1

    def take(self) -> dict[Endpoint, News]:
        """What is new since the last call: of endpoints that failed, and of those that are `watched`."""
        now = self._clock()
        failing, self._failing = self._failing, {}
        asked = {**failing, **dict.fromkeys(self._watched)}
        news = {
            endpoint: outcome.take(now, self._window)
            for endpoint in asked
            if (outcome := self.get(endpoint)) is not None
        }
        return {endpoint: one for endpoint, one in news.items() if one.successes or one.failures}


# What fails here and not at the instance: trying the next would fail as well, and blame that one too.
_OUR_OWN = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


def is_our_own(exc: OSError) -> bool:
    """Whether connecting failed for what the gateway's host has too little of, wherever to."""
    return exc.errno in _OUR_OWN


def blames(exc: OSError) -> bool:
    """Whether a failure to connect says anything about the instance.

    EADDRNOTAVAIL does not: this host has no port left towards that endpoint, and may have one to another.
    """
    return exc.errno not in _OUR_OWN and exc.errno != errno.EADDRNOTAVAIL
