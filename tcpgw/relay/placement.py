"""Where a service's connections are, and where its snapshot says that they should be.

An endpoint that leaves the snapshot takes its connections with it: they drain, unless it comes back in time.
One that gets nothing new for its health keeps them: who has a connection that works is better off with it,
and one that does not work ends by itself.

An endpoint that is added is home to keys whose connections are elsewhere; where the operator wants that,
these are closed little by little while they are idle, for their clients to come back to it, as soon as it has
its whole weight. Else nothing moves for anybody's health, neither away nor back: an instance that falls ill
again and again would move everybody about.

A change of the snapshot looks at all connections once. That is rare, and so a new connection pays nothing for
it: no set of connections is kept for each endpoint.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from math import inf
from time import monotonic
from typing import NamedTuple

from tcpgw.balancing.policy import Policy
from tcpgw.endpoints import Endpoint
from tcpgw.pool import Pool
from tcpgw.relay.draining import LOOK, Cause
from tcpgw.relay.listener import Listener
from tcpgw.relay.reasons import Reason
from tcpgw.relay.session import Connection
from tcpgw.relay.stream_plane import StreamSession

# Connections looked at in one turn of the loop: about a third of a millisecond.
_BATCH = 256
# Connections among which idle ones are looked for at a time, at least: more than a slow rate needs, so that
# some busy ones among them do not stop it.
_WINDOW = 64


class _Candidate(NamedTuple):
    """A connection that may be in the wrong place."""

    listener: Listener
    connection: Connection

    @property
    def session(self) -> StreamSession | None:
        """Its session, if that is to go on as far as is known."""
        session = self.connection.session
        if not isinstance(session, StreamSession) or session.reason is not None:
            return None
        return None if self.connection in self.listener.draining else session


class Placement:
    """Follows the snapshot of one service while `run` runs, on the stream and framed planes.

    `listeners` are all that there are at the moment; what is not the service's there is passed over.
    `rebalance`: connections that may be closed in a second for endpoints that were added; 0: none is. It may
    change at any time.
    """

    def __init__(
        self, pool: Pool, listeners: Callable[[], Iterable[Listener]], *, rebalance: float = 0.0
    ) -> None:
        self._pool = pool
        self._listeners = listeners
        self.rebalance = rebalance
        self._members: set[Endpoint] = set()
        self._added: set[Endpoint] = set()
        self._starting: set[Endpoint] = set()  # added too, but without their whole weight yet
        self._tables: Policy | None = None  # by which connections were found to be misplaced
        self._unsettled: list[_Candidate] = []  # they may still connect to what has left
        self._misplaced: deque[_Candidate] = deque()
        self._looked_at: list[_Candidate] = []  # misplaced ones that the next look may find idle
        self._credit = 0.0
        self._moved_at = 0.0

    async def run(self) -> None:
        """Follow until cancelled."""
        changed = asyncio.Event()
        unsubscribe = self._pool.subscribe(changed.set)
        self._members = {member.endpoint for member in self._pool.members}
        self._tables = self._pool.tables
        try:
            while True:
                await self._wait(changed)
                if changed.is_set():
                    changed.clear()
                    await self._follow()
                unsettled, self._unsettled = self._unsettled, []
                for candidate in unsettled:
                    self._place(candidate)
                self._move(monotonic())
        finally:
            unsubscribe()

    async def _wait(self, changed: asyncio.Event) -> None:
        busy = self._unsettled or self._misplaced or self._looked_at
        try:
            async with asyncio.timeout(LOOK if busy else None):
                await changed.wait()
        except TimeoutError:
            pass

    async def _follow(self) -> None:
        """Look at every connection. A pass of closing that is not at its end begins anew with the rest.

        Where no more than shares have changed, and those of none that was added, all is as it was.
        """
        unfinished = self._added if self._misplaced or self._looked_at else set()
        members = {member.endpoint for member in self._pool.members}
        came = (unfinished | self._starting | members - self._members) & members
        self._starting = came & self._pool.shares.keys()
        added = came - self._starting
        same = (members, added, self._pool.tables) == (self._members, unfinished, self._tables)
        self._members, self._added, self._tables = members, added, self._pool.tables
        if same:
            return
        self._misplaced.clear()
        self._looked_at.clear()
        self._unsettled.clear()
        for listener in list(self._listeners()):
            for count, connection in enumerate(list(listener.connections.values()), 1):
                if count % _BATCH == 0:
                    await asyncio.sleep(0)
                self._place(_Candidate(listener, connection))

    def _place(self, candidate: _Candidate) -> None:
        listener, connection = candidate
        session = connection.session
        if session is None:
            if connection.setup:
                self._unsettled.append(candidate)
            return
        if not isinstance(session, StreamSession) or session.upstream.pool is not self._pool:
            return
        if session.endpoint not in self._members:
            listener.draining.add(connection, Cause.ENDPOINT_REMOVED, at=monotonic())
        elif listener.draining.only_cause(connection) is Cause.ENDPOINT_REMOVED:
            if session.undrain():
                listener.draining.spare(connection)
        elif self.rebalance and self._is_misplaced(session):
            self._misplaced.append(candidate)

    def _is_misplaced(self, session: StreamSession) -> bool:
        # Not by the pool's own word: while an endpoint is out, that names another for its keys.
        home = self._tables.home(session.position) if self._tables is not None else None
        return session.endpoint not in self._added and home in self._added

    # ---- rebalancing ----

    def _move(self, now: float) -> None:
        """Close idle connections that belong elsewhere, as many as may be by now."""
        since = now - self._moved_at
        if since < 0.9 * LOOK:  # a change came in between, and two looks that close tell nothing
            return
        self._moved_at = now
        per_look = self.rebalance * LOOK
        self._credit = min(self._credit + since * self.rebalance, max(1.0, per_look))
        seen, self._looked_at = self._looked_at, []
        size = max(_WINDOW, int(4 * per_look)) - len(seen)
        new = [self._misplaced.popleft() for _ in range(min(size, len(self._misplaced)))]
        for candidate in seen:
            self._look_at(candidate, busy=self._misplaced)
        for candidate in new:
            self._look_at(candidate, busy=self._looked_at)

    def _look_at(self, candidate: _Candidate, busy: "deque[_Candidate] | list[_Candidate]") -> None:
        session = candidate.session
        if session is None:
            return
        if not session.rests():  # as far as the looks so far can tell
            busy.append(candidate)
        elif self._credit < 1.0:
            self._looked_at.append(candidate)
        else:
            self._credit -= 1.0
            session.end(Reason.REBALANCED)
            candidate.listener.draining.add(candidate.connection, Cause.REBALANCED, at=monotonic(), until=inf)
