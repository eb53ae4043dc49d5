"""Faults of the gateway's own, told in the log: whoever finds one can have it as often as they like."""

import time
from collections.abc import Callable
from typing import Any

from tcpgw.observe.later import Later, Timer, later

# Seconds between two lines with a traceback.
SAY_EVERY = 60.0


class Faults:
    """Of one kind, the `event`. Used in one running event loop; `clock` only goes forward.

    `say` is called with the fields of a line: a fault's own and its traceback, or how many `more` there were.
    """

    def __init__(
        self,
        event: str,
        say: Callable[..., Any],
        *,
        clock: Callable[[], float] = time.monotonic,
        later: Later = later,
    ) -> None:
        self._event = event
        self._say = say
        self._clock = clock
        self._later = later
        self._next = 0.0
        self._unsaid = 0
        self._timer: Timer | None = None

    def add(self, fault: Exception, **fields: object) -> None:
        """Tell of a fault: at once if none was told lately, else as one of `more` by the end of that time."""
        now = self._clock()
        if now >= self._next:
            self.tell()
            self._next = now + SAY_EVERY
            self._say(self._event, **fields, exc_info=fault)
            return
        self._unsaid += 1
        if self._timer is None:
            self._timer = self._later(self._next - now, self.tell)

    def tell(self) -> None:
        """Say how many were not told of. Call it at the end, too."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        count, self._unsaid = self._unsaid, 0
        if count:
            self._say(self._event, more=count)
