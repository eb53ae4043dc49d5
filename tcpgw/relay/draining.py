"""Connections that are to end: each is asked to at its moment, looked at until it has, or else cut.

Stages of a connection here: waiting for its moment → asked to end (`Session.drain`) and looked at → ended.
One timer serves all of a listener's, and only while there are any; one for each would be ten thousand timers
at once where a gateway with as many connections stops.
"""

import asyncio
import heapq
import itertools
import random
from enum import StrEnum
from time import monotonic
from types import MappingProxyType
from typing import NamedTuple

from tcpgw.relay.reasons import Reason
from tcpgw.relay.session import Connection

# Seconds between looks at connections that drain. A client may send its next request at any moment, and what
# comes after our FIN is lost, so a session waits for a silence in which none is likely to be on its way.
LOOK = 0.1
# Seconds that a connection which is asked to end may take where nobody configured another time: longer than
# nearly every request, short enough that an operator who waits for it does wait.
CUT_AFTER = 30.0
# Connections looked at in one turn of the loop: about a third of a millisecond.
_BATCH = 256


class Cause(StrEnum):
    """Why connections are to end: what the stages are counted by."""

    SHUTDOWN = "shutdown"
    LISTENER_REMOVED = "listener_removed"
    ENDPOINT_REMOVED = "endpoint_removed"
    MAX_AGE = "max_age"
    REBALANCED = "rebalanced"
    ACCESS_ENDED = "access_ended"

    @property
    def reason(self) -> Reason:
        """What stands on the closing line of a connection that we end for it."""
        return _REASONS.get(self, Reason.DRAINED)


_REASONS = MappingProxyType(
    {
        Cause.MAX_AGE: Reason.MAX_AGE,
        Cause.REBALANCED: Reason.REBALANCED,
        Cause.ACCESS_ENDED: Reason.ACCESS_ENDED,
    }
)

_STAGES = ("started", "finished", "closed", "reset", "spared")


class _Entry:
    __slots__ = ("asked_at", "at", "cause", "connection", "cut", "settled", "until")

    def __init__(self, connection: Connection, cause: Cause, at: float, until: float) -> None:
        self.connection = connection
        self.cause = cause
        self.at = at
        self.until = until
        self.asked_at: float | None = None
        self.settled = False  # for more than one cause: it ends even where the first is taken back
        self.cut = False


class Draining:
    """The connections of one listener that are to end. Made and used in one running event loop.

    Each is counted by its cause as `started`, and then as one of: `finished`, it ended by itself; `closed`,
    we ended it when nothing was lost; `reset`, it was cut; `spared`, it need not end any more.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._counts: dict[Cause, dict[str, int]] = {}
        self._entries: dict[int, _Entry] = {}
        # Entries that have ended stay in it until their moment, or until all have.
        self._waiting: list[tuple[float, int, _Entry]] = []
        self._order = itertools.count()
        self._asked: dict[int, _Entry] = {}
        self._round: list[_Entry] = []  # who is still to be looked at this time
        self._timer: asyncio.TimerHandle | None = None

    def __contains__(self, connection: Connection) -> bool:
        return connection.id in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def status(self) -> dict[str, dict[str, int]]:
        """How many connections came to which stage, by cause."""
        return {cause.value: dict(counts) for cause, counts in self._counts.items()}

    def add(self, connection: Connection, cause: Cause, *, at: float, until: float | None = None) -> None:
        """Ask a connection that stands to end at `at`, and cut it at `until` (both `time.monotonic()`).

        None: `CUT_AFTER` seconds after it was asked; inf: never. Of one that is here already the first cause
        stays, and of both times the earlier.
        """
        now = monotonic()
        if until is None:
            until = max(at, now) + CUT_AFTER
        at = min(at, until)
        entry = self._entries.get(connection.id)
        if entry is None:
            entry = self._entries[connection.id] = _Entry(connection, cause, at, until)
            self._count(entry, "started")
        else:
            entry.settled = entry.settled or cause is not entry.cause
            entry.until = min(entry.until, until)
            if at >= entry.at:
                return
            entry.at = at
        if at <= now:
            self._ask(entry, now)
        else:
            heapq.heappush(self._waiting, (at, next(self._order), entry))
        self._set_timer()

    def only_cause(self, connection: Connection) -> Cause | None:
        """The cause for which alone a connection is to end; None where there is none, or more than one."""
        entry = self._entries.get(connection.id)
        return None if entry is None or entry.settled else entry.cause

    def spare(self, connection: Connection) -> None:
        """Leave a connection alone again, whose session was told so."""
        if entry := self._take(connection):
            self._count(entry, "spared")
            if connection.trace is not None:
                connection.trace.add("spared", cause=entry.cause)

    def ended(self, connection: Connection, reason: Reason) -> str:
        """Count a connection's end, if it was to end. Returns the error for its closing line, or ""."""
        entry = self._take(connection)
        if entry is None:
            return ""
        if entry.cut or reason is Reason.SHUTDOWN:
            self._count(entry, "reset")
        else:
            self._count(entry, "closed" if reason is entry.cause.reason else "finished")
        if not entry.cut or reason is not entry.cause.reason or entry.asked_at is None:
            return ""
        return f"not ended within {entry.until - entry.asked_at:.3g} s of its drain"

    def _count(self, entry: _Entry, stage: str) -> None:
        self._counts.setdefault(entry.cause, dict.fromkeys(_STAGES, 0))[stage] += 1

    def _take(self, connection: Connection) -> _Entry | None:
        entry = self._entries.pop(connection.id, None)
        self._asked.pop(connection.id, None)
        if not self._entries:
            self._waiting.clear()
            self._round.clear()
            if self._timer:
                self._timer.cancel()
                self._timer = None
        return entry

    # ---- time ----

    def _set_timer(self) -> None:
        if self._timer is None and self._entries:
            self._timer = self._loop.call_later(0.0 if self._round else LOOK, self._look)

    def _look(self) -> None:
        self._timer = None
        now = monotonic()
        if not self._round:
            while self._waiting and self._waiting[0][0] <= now:
                entry = heapq.heappop(self._waiting)[2]
                if self._is_here(entry):
                    self._ask(entry, now)
            self._round = list(self._asked.values())
        looked_at, self._round = self._round[:_BATCH], self._round[_BATCH:]
        for entry in looked_at:
            if self._is_here(entry):
                self._look_at(entry, now)
        self._set_timer()

    def _is_here(self, entry: _Entry) -> bool:
        return self._entries.get(entry.connection.id) is entry

    def _ask(self, entry: _Entry, now: float) -> None:
        session = entry.connection.session
        if session is None or entry.asked_at is not None:
            return
        entry.asked_at = now
        self._asked[entry.connection.id] = entry
        if entry.connection.trace is not None:
            entry.connection.trace.add("asked_to_end", cause=entry.cause)
        try:
            session.drain(entry.cause.reason)
        except Exception as exc:  # noqa: BLE001 - a fault in one must not keep the others
            self._report(entry, exc)

    def _look_at(self, entry: _Entry, now: float) -> None:
        session = entry.connection.session
        assert session is not None  # noqa: S101 - at its end it is taken out of here
        try:
            if now < entry.until:
                session.look(now)
            else:
                entry.cut = not session.over
                session.abort(entry.cause.reason, reset=entry.cut)
        except Exception as exc:  # noqa: BLE001 - as above
            self._report(entry, exc)

    def _report(self, entry: _Entry, exc: Exception) -> None:
        message = f"connection {entry.connection.id} was not drained"
        self._loop.call_exception_handler({"message": message, "exception": exc})


class Retreat(NamedTuple):
    """The end of a whole listener: each connection is asked to at a moment of its own within `spread`."""

    cause: Cause
    began: float
    spread: float
    until: float

    def add(self, draining: Draining, connection: Connection) -> None:
        """Let that connection end with the others."""
        at = self.began + random.random() * self.spread
        draining.add(connection, self.cause, at=at, until=self.until)
