"""Who logged in by the page: a bounded number of sessions, each for a while. Reads no clock."""

import secrets
from dataclasses import dataclass

# Seconds: a shift and its handover, so that nobody is logged out in the middle of an incident.
LASTS = 12 * 3600.0
# More than the people who look after a gateway, and their browsers; beyond, the oldest is logged out.
MOST = 64


@dataclass(frozen=True, slots=True)
class Session:
    """`id` is for the cookie, `csrf` for the header that a page of another origin cannot set."""

    id: str
    csrf: str
    ends: float


class Sessions:
    """`now` is any clock that only goes forward, the same in all calls."""

    def __init__(self) -> None:
        self._open: dict[str, Session] = {}  # the oldest first

    def begin(self, now: float) -> Session:
        """Open a session."""
        if len(self._open) >= MOST:
            del self._open[next(iter(self._open))]
        session = Session(secrets.token_urlsafe(32), secrets.token_urlsafe(32), now + LASTS)
        self._open[session.id] = session
        return session

    def find(self, id_: str, now: float) -> Session | None:
        """Return the open session of that id, if there is one."""
        session = self._open.get(id_)
        if session is not None and session.ends <= now:
            del self._open[id_]
            return None
        return session

    def end(self, id_: str) -> None:
        """Close a session. Idempotent."""
        self._open.pop(id_, None)
