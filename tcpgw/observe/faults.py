"""The admin server's own faults, told in the log: whoever finds one can have it as often as he likes."""

from collections.abc import Callable

import structlog

log = structlog.get_logger()

# Seconds between two lines: each has a traceback.
SAY_EVERY = 60.0


class Faults:
    """Of one server. `clock` only goes forward."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._next = 0.0
        self._unsaid = 0

    def add(self, fault: Exception, path: str) -> None:
        """Tell of a fault: at once if none was told lately, else as one of `more` in the next line."""
        now = self._clock()
        if now < self._next:
            self._unsaid += 1
            return
        log.error("admin_failed", path=path, more=self._unsaid, exc_info=fault)
        self._next, self._unsaid = now + SAY_EVERY, 0
