"""How many lines a second may tell of clients: these decide how much there is to tell."""

import math
import time
from collections.abc import Callable
from typing import Any

from tcpgw.observe.later import Later, Timer, later

# Seconds from the first line that is left out until it is said how many were.
_SAY_AFTER = 10.0
# Part of the lines that is kept for those that matter more.
_KEPT = 4


class LineLimit:
    """So many lines a second, and as many at once. What is beyond is counted and told of, every ten seconds.

    `say` is called with the fields of the line that tells, and with `setting`, the key that bounds them.
    """

    def __init__(
        self,
        setting: str,
        per_second: int,
        say: Callable[..., Any],
        *,
        clock: Callable[[], float] = time.monotonic,
        later: Later = later,
    ) -> None:
        self._setting = setting
        self._say = say
        self._clock = clock
        self._later = later
        self._left_out = 0
        self._timer: Timer | None = None
        self._at = clock()
        self.change(per_second)
        self._room = float(per_second)

    def change(self, per_second: int) -> None:
        """Let so many through from now on."""
        self._most = per_second
        self._kept = math.ceil(per_second / _KEPT) if per_second > 1 else 0

    def take(self, *, matters: bool) -> bool:
        """Whether one more line may be written. What `matters` has a quarter, rounded up, for itself."""
        now = self._clock()
        room = min(self._most, self._room + (now - self._at) * self._most)
        self._at = now
        if room - 1 >= (0 if matters else self._kept):
            self._room = room - 1
            return True
        self._room = room
        self._left_out += 1
        if self._timer is None:
            self._timer = self._later(_SAY_AFTER, self.tell)
        return False

    def tell(self) -> None:
        """Say what was left out since it was last said. Call it at the end, too."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        count, self._left_out = self._left_out, 0
        if count:
            self._say("log_lines_suppressed", count=count, setting=self._setting)
