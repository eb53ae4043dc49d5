"""Clients that are turned away: each counted, and some told of in the log.

Who is not let in can come as often as it likes, so it must not cost a line of the log each time.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

from tcpgw.errors import TcpgwError
from tcpgw.relay.reasons import Reason

# Seconds between two lines of one reason.
_SAY_EVERY = 10.0


class DeniedError(TcpgwError):
    """A client may not use what it asked for. The text is for the log: the client is told nothing of it."""

    blame = "client"

    def __init__(self, reason: Reason, text: str = "") -> None:
        super().__init__(text)
        self.reason = reason


class Denials:
    """The log lines of one listener's denials. `say` is called with the fields of a line."""

    def __init__(self, clock: Callable[[], float], say: Callable[..., Any]) -> None:
        self._clock = clock
        self._say = say
        self._next: dict[Reason, float] = {}
        self._unsaid: Counter[Reason] = Counter()

    def add(self, reason: Reason, client: str, error: str, **fields: object) -> None:
        """Tell of a denial: at once if none of its reason was told lately, else as a number with the next."""
        now = self._clock()
        if now < self._next.get(reason, 0.0):
            self._unsaid[reason] += 1
            return
        self._next[reason] = now + _SAY_EVERY
        more = {"error": error, "more": self._unsaid.pop(reason, 0)}
        said = {key: one for key, one in more.items() if one}
        self._say("denied", client=client, reason=reason.value, **said, **fields)
