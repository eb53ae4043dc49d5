"""The lines of the log about connections: at the end of each, and where they are asked for also before it.

A line at the end names what is known of a connection; those before it name what is known by then.
"""

from collections.abc import Mapping
from logging import INFO
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

from tcpgw.config.log import ConnectionLog
from tcpgw.observe.faults import Faults
from tcpgw.relay.line_limit import LineLimit
from tcpgw.relay.reasons import Reason

if TYPE_CHECKING:
    from tcpgw.relay.session import Address, Connection, Session

log = structlog.get_logger()

Facts = Mapping[str, object]

# How connections are meant to end. With an `error` they were cut all the same.
_WELL = frozenset(
    {
        Reason.CLIENT_FIN, Reason.INSTANCE_FIN, Reason.IDLE_TIMEOUT, Reason.DRAINED, Reason.MAX_AGE,
        Reason.REBALANCED,
    }
)  # fmt: skip
# Its multiples, modulo 1, are spread evenly: a connection's number is its draw, so that all its lines are
# drawn together. Another one than that of max_age, or those that are drawn would be those that live shorter.
_SILVER = 0.41421356237309505


class ConnectionLines:
    """Which connections of a process have lines, and those lines. Its listeners share it.

    `every`: seconds between two lines of one that is open; inf without any. `log` and `unknown` are the
    listener's, bound to its name, and its plane's.
    """

    def __init__(self, settings: ConnectionLog | None) -> None:
        made = settings or ConnectionLog()
        say = log.bind()
        self._limit = LineLimit("gateway.log.connections.per_second", made.per_second, say.warning)
        self._faults = Faults("connection_error", say.error)
        self._sweep_faults = Faults("connection_not_tended", say.error)
        self.change(settings)

    def change(self, settings: ConnectionLog | None) -> None:
        """Go by other settings from now on, for the connections that there are too. None: no lines."""
        if not log.bind().is_enabled_for(
            INFO
        ):  # else what is not written would be made, and counted as left out
            settings = None
        self._ends = settings is not None
        made = settings or ConnectionLog()
        self._opens = made.opened
        self.every = inf if made.every == "off" else made.every
        self._sample = made.sample
        self._share = {"sample": made.sample} if made.sample < 1 else {}
        self._limit.change(made.per_second)

    def close(self) -> None:
        """Tell what was not told yet. Idempotent."""
        self._limit.tell()
        self._faults.tell()
        self._sweep_faults.tell()

    def failed(self, listener: str, connection: "Connection", fault: Exception) -> None:
        """Tell of a fault of ours that ends a connection. Clients may know how to have it."""
        self._faults.add(fault, listener=listener, conn=connection.id)

    def not_tended(self, listener: str, connection: "Connection", fault: Exception) -> None:
        """Tell of one that keeps a connection's time-outs from being looked at: it returns with each look."""
        self._sweep_faults.add(fault, listener=listener, conn=connection.id)

    def opened(self, log: Any, connection: "Connection", unknown: Facts) -> None:
        """Tell that a connection has a session now."""
        if self._opens and self._drawn(connection) and self._limit.take(matters=False):
            line = _known(connection, connection.session, unknown, {})
            log.info("connection_opened", **line, **_who(connection), **self._share)

    def look(self, log: Any, connection: "Connection", unknown: Facts, before: float, now: float) -> None:
        """Tell of one that is open, if it has come to an age to tell of since the last look, at `before`."""
        age, session = now - connection.opened, connection.session
        if age < self.every or age // self.every <= (before - connection.opened) // self.every:
            return
        if session is not None and self._drawn(connection) and self._limit.take(matters=False):
            moved = {
                "bytes_in": session.received,
                "bytes_out": session.sent,
                "age": round(age, 3),
                # Something may have moved since `now`: it is when the look at all of them began.
                "idle": round(max(0.0, session.idle_seconds(now)), 3),
            }
            line = _known(connection, session, unknown, moved)
            log.info("connection_open", **line, **_who(connection), **self._share)

    def closed(
        self,
        log: Any,
        connection: "Connection",
        session: "Session | None",
        unknown: Facts,
        end: "End",
    ) -> None:
        """Tell how a connection ended; `session` is the one that it had."""
        reason, error, moved = end
        well = reason in _WELL and not error
        if not self._ends or (well and not self._drawn(connection)) or not self._limit.take(matters=not well):
            return
        line = _known(connection, session, unknown, moved)
        line["reason"] = reason.value
        if error:
            line["error"] = error
        log.info("connection_closed", **line, **_who(connection), **(self._share if well else {}))

    def _drawn(self, connection: "Connection") -> bool:
        return connection.id * _SILVER % 1.0 < self._sample


class End(NamedTuple):
    """How a connection ended, and what it had come to."""

    reason: Reason
    error: str
    moved: Facts


def _known(
    connection: "Connection", session: "Session | None", unknown: Facts, moved: Facts
) -> dict[str, object]:
    return {
        "conn": connection.id,
        "client": shown(connection.address),
        "service": None,
        **moved,
        **unknown,
        **connection.facts,
        **(session.facts() if session else {}),
    }


def _who(connection: "Connection") -> dict[str, object]:
    """Whose it is, beyond its address."""
    said: dict[str, object] = {}
    if connection.grant is not None:
        said["subject"] = connection.grant.subject
        if connection.grant.key_id:
            said["key"] = connection.grant.key_id
    if connection.peer != connection.address:
        said["peer"] = shown(connection.peer)
    return said


def shown(address: "Address | None") -> str:
    """A client of a Unix socket has no address."""
    if address is None:
        return "unix"
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
