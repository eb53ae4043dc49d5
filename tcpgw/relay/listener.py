"""An address that clients connect to: accept, find out who it is, hand over to a plane, log once.

The listener accepts from its socket itself rather than through `loop.create_server`. That makes
`max_connections` exact (what is beyond waits in the kernel's queue, not in ours), costs no more CPU, and lets
the client's bytes wait in the kernel until an instance is connected. asyncio's streams were tried for this
conversation and left out: it reads at most one PROXY header, and a reader and writer per connection cost
more than everything else here.
"""

import asyncio
import contextlib
import itertools
import socket
import time
from collections import Counter
from collections.abc import Sequence
from math import inf
from typing import Any

import structlog

from tcpgw.access.guard import OPEN, Guard
from tcpgw.address import Address as Bound
from tcpgw.config.schema import Listener as Settings
from tcpgw.errors import ConnectError, OverloadError, ProtocolError
from tcpgw.relay.accepting import Acceptor, Peer
from tcpgw.relay.admission import Admission, tell_denied
from tcpgw.relay.denials import Denials, DeniedError
from tcpgw.relay.draining import Cause, Draining, Retreat
from tcpgw.relay.lines import ConnectionLines, End, shown
from tcpgw.relay.reasons import Reason
from tcpgw.relay.session import Connection, Plane, canonical
from tcpgw.relay.sockets import listen
from tcpgw.relay.tally import Tallies
from tcpgw.relay.tracing import Tracer
from tcpgw.relay.upstream import NoEndpointError

log = structlog.get_logger()

# A quiet connection is found at the latest this share of its time-out late.
_SWEEPS_PER_TIMEOUT = 8
# Seconds between two sweeps that are made for the log alone: with 10,000 connections one takes 13 ms.
_LOG_SWEEP = 1.0
# Connections looked at in one turn of the loop: about a third of a millisecond.
_SWEEP_BATCH = 256
# Share of max_age by which connections differ, so that those that came together do not all return together.
_AGE_JITTER = 0.1
# Its multiples, modulo 1, are spread evenly however many they are: so a connection's number is its draw, and
# one that never gets old pays nothing.
_GOLDEN = 0.6180339887498949


class Listener:
    """Owns its sockets, its connections and the tasks that set them up. `plane` moves their bytes.

    Made and used in one running event loop. `sockets`, one or more, have one address. `outlived`: somebody
    else keeps them open too, and will serve who still waits in their queues.
    """

    def __init__(
        self,
        settings: Settings,
        sockets: Sequence[socket.socket],
        plane: Plane,
        guard: Guard = OPEN,
        *,
        lines: ConnectionLines,
        outlived: bool = False,
    ) -> None:
        self.name = settings.name
        self.tallies = Tallies()
        self.connections: dict[int, Connection] = {}
        self.draining = Draining()
        self.shedding = False  # whoever connects is turned away
        self._settings = settings
        self._plane = plane
        self._admission = Admission(settings, guard, plane)
        self._lines = lines
        self.outlived = outlived
        # Bound and kept because they are asked for with every connection.
        self._heard = self._on_end
        self._log = log.bind(listener=self.name)
        self._loop = asyncio.get_running_loop()
        self._acceptor = Acceptor(sockets, self.connections, self._room, self._open, self._log)
        self._denials = Denials(time.monotonic, self._log.warning)
        self._ids = itertools.count(1)
        self._sweeper: asyncio.Task[None] | None = None
        self._drain: Retreat | None = None
        self._cutting: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def address(self) -> str:
        """Where clients connect, with the port that the kernel chose where the configuration says 0."""
        return str(Bound.of_socket(self._acceptor.sockets[0]))

    @property
    def accepted(self) -> int:
        return self._acceptor.accepted

    @property
    def paused(self) -> int:
        """How often max_connections stopped the accepting."""
        return self._acceptor.paused

    @property
    def ended(self) -> Counter[Reason]:
        """How many connections ended, by why."""
        return self.tallies.ended

    def status(self) -> dict[str, Any]:
        """Figures since the start, in plain types: bytes with those of connections that go on."""
        return {
            "accepted": self.accepted,
            "paused": self.paused,
            "accept_failures": self._acceptor.failures,
            "drains": self.draining.status(),
            **self.tallies.figures(self.connections.values(), time.monotonic()),
            **self._plane.figures(self.tallies),
        }

    def trace(self, tracer: Tracer | None) -> None:
        """Have the lives of connections that come from now on told; None: no longer of new ones."""
        self._admission.tracer = tracer

    # ---- life ----

    def start(self) -> None:
        """Listen and accept. Call once. Raises BindError where another one listens here since the bind."""
        for sock in self._acceptor.sockets:
            listen(sock, self.address)
        self._sweeper = self._loop.create_task(self._sweep())
        self._acceptor.resume()

    def change(self, settings: Settings, plane: Plane, guard: Guard = OPEN) -> None:
        """Take other settings, another plane and another guard for the connections that come from now on.

        Of the same name, bind, mode and codec; `max_connections` and the time-outs looked at here hold for
        all. Connections that are there keep their plane, which may be the same one.
        """
        self._settings = settings
        self._plane = plane
        before, self._admission.guard = self._admission.guard, guard
        self._admission.settings, self._admission.plane = settings, plane
        if guard is not before:
            for connection in self.connections.values():
                self._ask_to_return(connection)
        self._acceptor.change(settings.keepalive)

    def _ask_to_return(self, connection: Connection) -> None:
        """End the connection of a client that would be given something else now, or nothing."""
        if connection.session is not None and not self._admission.upholds(connection):
            self.draining.add(connection, Cause.ACCESS_ENDED, at=time.monotonic())

    def add_sockets(self, sockets: Sequence[socket.socket]) -> None:
        """Accept on these too, which are of the same address. Raises BindError as `start`."""
        if self._sweeper:
            for sock in sockets:
                listen(sock, self.address)
        self._acceptor.add(sockets)

    def duplicate(self) -> list[socket.socket]:
        """The same sockets once more, for a listener that takes its place.

        Set `outlived` before this one drains, so that who waits in the queue is the other's.
        """
        return [sock.dup() for sock in self._acceptor.sockets]

    def stop_accepting(self, *, outlived: bool | None = None) -> None:
        """Close the listening sockets: new clients are refused, connections go on. Idempotent.

        Who already waits in the kernel's queue is let in, up to max_connections: they have been told that
        they are connected, and would be reset. Unless the sockets are `outlived`; None: as was said before.
        """
        self._acceptor.stop(outlived=self.outlived if outlived is None else outlived)

    def drain(
        self,
        spread: float = 0.0,
        hard: float | None = None,
        *,
        cause: Cause = Cause.SHUTDOWN,
        outlived: bool | None = None,
    ) -> None:
        """Stop accepting, and let each session end when nothing would be lost. Idempotent.

        Each is asked to at a moment of its own within `spread` seconds, so that their clients do not all
        connect to another gateway at once, and is reset `hard` seconds from now (None: never). Those that are
        being set up are asked once they stand, and turned away if they do not by then. Asked again, the
        earlier of both times counts.
        """
        self.stop_accepting(outlived=outlived)
        now = time.monotonic()
        until = inf if hard is None else now + hard
        self._drain = Retreat(cause, now, spread, min(until, self._drain.until if self._drain else inf))
        for connection in list(self.connections.values()):
            if connection.session:
                self._drain.add(self.draining, connection)
        if hard is not None and self.connections:
            self._stop_cutting()
            self._cutting = self._loop.call_later(max(0.0, self._drain.until - now), self._cut_setups)

    def _cut_setups(self) -> None:
        for connection in self.connections.values():
            if connection.setup:
                connection.setup.cancel()

    def _stop_cutting(self) -> None:
        if self._cutting:
            self._cutting.cancel()
            self._cutting = None

    async def drained(self) -> None:
        """Return when no connection is left."""
        await self._empty.wait()

    async def close(self) -> None:
        """Stop accepting and end every connection now. Idempotent; nothing is left open."""
        self.stop_accepting()
        tasks = [connection.setup for connection in self.connections.values() if connection.setup]
        if self._sweeper:
            tasks.append(self._sweeper)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in list(self.connections.values()):
            if connection.session:
                connection.session.abort(Reason.SHUTDOWN, reset=True)
            else:  # its task was cancelled before its first step
                self._end(connection, Reason.SHUTDOWN)
        await self._empty.wait()

    # ---- accept ----

    def _open(self, sock: socket.socket, address: Peer) -> None:
        self._empty.clear()
        peer = None if isinstance(address, str) else (canonical(address[0]), address[1])
        connection = Connection(next(self._ids), sock, peer, time.monotonic(), self._heard)
        self.connections[connection.id] = connection
        admission = self._admission
        try:
            trusted = admission.enter(connection, shedding=self.shedding)
        except DeniedError as exc:
            self._turn_away(connection, exc)
            return
        asked = trusted or admission.guard.talks
        admission.talking += asked
        connection.setup = self._loop.create_task(self._serve(connection, asked=asked, trusted=trusted))

    def _room(self) -> int:
        settings = self._settings
        room = settings.max_connections - len(self.connections)
        return min(room, settings.limits.handshakes - self._admission.talking)

    def _turn_away(self, connection: Connection, why: DeniedError) -> None:
        """Close at once, however many there are. It hears why if it has sent nothing yet."""
        tell_denied(connection, why)
        with contextlib.suppress(OSError):
            connection.socket.setblocking(False)
            connection.socket.send(self._admission.farewell(why.reason))
        self._end(connection, why.reason, str(why), turned_away=True)

    # ---- one connection ----

    async def _serve(self, connection: Connection, *, asked: bool, trusted: bool) -> None:
        """From accept to session, which owns the connection and its end from then on."""
        reason, error, turned_away = Reason.SHUTDOWN, "", False
        guard = self._admission.guard
        admitted = not asked
        try:
            early = await self._admit(connection, trusted=trusted) if asked else b""
            admitted = True
            connection.session = await self._plane.open(connection, early, connection.end)
            connection.tally = self.tallies.open(connection.session.service_name)
            self._lines.opened(self._log, connection, self._plane.unknown)
        except DeniedError as exc:
            reason, error, turned_away = exc.reason, str(exc), True
        except ProtocolError as exc:
            reason, error = Reason.PROTOCOL_ERROR, str(exc)
        except TimeoutError:
            reason = Reason.HEADER_TIMEOUT
        except NoEndpointError as exc:
            reason, error = Reason.NO_ENDPOINT, str(exc)
        except OverloadError as exc:
            reason, error = Reason.OVERLOAD, str(exc)
        except ConnectError as exc:
            reason, error = Reason.CONNECT_FAILED, str(exc)
            connection.facts = {**connection.facts, "tries": exc.tries}
        except OSError as exc:  # the client's own socket
            # Strangers can do that as often as they like; a trusted source that does is worth a line each.
            reason, error = Reason.CLIENT_RESET, str(exc)
            turned_away = guard.talks and not admitted
        except Exception as exc:  # noqa: BLE001 - a bug that one connection meets must not end the others
            reason = Reason.INTERNAL
            self._lines.failed(self.name, connection, exc)
        finally:
            connection.setup = None
            if connection.session is None:
                self._end(connection, reason, error, turned_away=turned_away)
            elif connection.over:
                self._end(connection, *connection.over)
            elif self._drain:
                self._drain.add(self.draining, connection)
            elif self._admission.guard is not guard:
                self._ask_to_return(connection)

    async def _admit(self, connection: Connection, *, trusted: bool) -> bytes:
        try:
            return await self._admission.admit(connection, trusted=trusted)
        finally:
            self._admission.talking -= 1
            self._acceptor.resume()

    # ---- ends ----

    async def _sweep(self) -> None:
        """Let every session look at its time-outs. One pass for all instead of a timer for each."""
        now = time.monotonic()
        while True:
            settings = self._settings  # of now: they may change
            shortest = min(
                settings.idle_timeout, settings.fin_timeout, settings.keepalive, settings.frame_timeout,
                settings.max_age or inf, settings.limits.first_byte_timeout or inf, self._plane.timeout,
                max(self._lines.every, _LOG_SWEEP * _SWEEPS_PER_TIMEOUT),
            )  # fmt: skip
            period = shortest / _SWEEPS_PER_TIMEOUT
            await asyncio.sleep(period)
            before, now = now, time.monotonic()
            for count, connection in enumerate(list(self.connections.values()), 1):
                if count % _SWEEP_BATCH == 0:
                    await asyncio.sleep(0)
                if connection.session is None:
                    continue
                try:
                    connection.session.tend(time.monotonic())
                except Exception as exc:  # noqa: BLE001 - a fault in one must not end the time-outs of all
                    self._lines.not_tended(self.name, connection, exc)
                if connection.id in self.connections:
                    self._look_at(connection, time.monotonic() + period)
                    self._lines.look(self._log, connection, self._plane.unknown, before, now)

    def _look_at(self, connection: Connection, horizon: float) -> None:
        """End a connection whose time is over, by what the listener says."""
        settings, session, grant = self._settings, connection.session, connection.grant
        if settings.max_age:
            self._retire(connection, settings.max_age, horizon)
        if grant is not None and grant.expired(time.time()) and connection not in self.draining:
            self.draining.add(connection, Cause.ACCESS_ENDED, at=time.monotonic())
        first = settings.limits.first_byte_timeout
        if first and session and not session.received and time.monotonic() - connection.opened >= first:
            session.abort(Reason.FIRST_BYTE_TIMEOUT, reset=False)

    def _retire(self, connection: Connection, max_age: float, horizon: float) -> None:
        """Let a connection end at its age, if it comes to it before the next sweep."""
        draw = connection.id * _GOLDEN % 1.0
        at = connection.opened + max_age * (1.0 + _AGE_JITTER * (2.0 * draw - 1.0))
        if at <= horizon and connection not in self.draining:
            self.draining.add(connection, Cause.MAX_AGE, at=at)

    def _on_end(self, connection: Connection, reason: Reason, error: str) -> None:
        if connection.setup:  # it is not known yet whose figures to log
            connection.over = reason, error
        else:
            self._end(connection, reason, error)

    def _end(
        self, connection: Connection, reason: Reason, error: str = "", *, turned_away: bool = False
    ) -> None:
        """Count and log a connection's end. Idempotent: set-up and session may both find that it is over.

        Of those that are `turned_away` the log does not tell each: anybody can come as often as they like.
        """
        if self.connections.pop(connection.id, None) is None:
            return
        if self.draining:
            error = self.draining.ended(connection, reason) or error
        session = connection.session
        connection.session = None  # it knows this connection: no cycle for the collector
        if session is None:
            connection.socket.close()
        for use in connection.uses:
            use.leave(time.monotonic())
        bytes_in = session.received if session else 0
        bytes_out = session.sent if session else 0
        duration = time.monotonic() - connection.opened
        tally = connection.tally or self.tallies.open(str(connection.facts.get("service", "")))
        tally.end(reason, bytes_in, bytes_out, duration)
        if not self.connections:
            self._empty.set()
            self._stop_cutting()
        self._acceptor.resume()
        moved = {"bytes_in": bytes_in, "bytes_out": bytes_out, "duration": round(duration, 6)}
        if connection.trace is not None:
            facts = {**connection.facts, **(session.facts() if session else {}), **moved}
            connection.trace.add("closed", reason=reason, **({"error": error} if error else {}), **facts)
        if turned_away:
            self._denials.add(reason, shown(connection.address), error, conn=connection.id)
        else:
            self._lines.closed(self._log, connection, session, self._plane.unknown, End(reason, error, moved))
