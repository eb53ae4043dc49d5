"""When this process has more to do than it can: by how late its event loop is, or by its memory.

Then it takes nothing new, so that what it has goes on: clients that come are closed at once, and of what
waits for an instance the oldest goes first, since who asked it is likely to have given up.
"""

import time
from collections.abc import Callable
from math import inf
from pathlib import Path
from resource import getpagesize

import structlog

from tcpgw.config import schema
from tcpgw.process.lag import Lag
from tcpgw.process.limits import release_heap

log = structlog.get_logger()

# Looks in a row that must find the loop late: one is a table that was built, or a page that was read.
_LATE = 3
# Seconds without it until it is over, at half the mark: else it would come and go with each client let in.
_OVER = 1.0
# Share of the memory mark below which it is over.
_RELIEF = 0.95
# Seconds between two times that memory which was freed is given back: it is kept for what is read next, and
# would count as in use for good.
_RELEASE = 1.0


class Strain:
    """Whether there is too much to do, by marks for lateness (seconds) and memory (bytes). Pure."""

    def __init__(self, lag: float = inf, memory: float = inf) -> None:
        self.overloaded = False
        self.why = ""
        self._lag = lag
        self._memory = memory
        self._late = 0
        self._well_since = -inf

    def change(self, lag: float, memory: float) -> None:
        """Take other marks."""
        self._lag, self._memory = lag, memory

    def look(self, lag: float, memory: int, now: float) -> bool:
        """Take what there is now. Returns whether `overloaded` is another than before."""
        before = self.overloaded
        self._late = self._late + 1 if lag >= self._lag else 0
        if self._late >= _LATE or memory >= self._memory:
            self.overloaded, self._well_since = True, inf
            late = f"the event loop is {lag:.3g} s late" if self._late >= _LATE else ""
            full = f"{memory >> 20} MiB of memory are in use" if memory >= self._memory else ""
            self.why = " and ".join(filter(None, (late, full)))
        elif lag < self._lag / 2 and memory < self._memory * _RELIEF:
            self._well_since = min(self._well_since, now)
            self.overloaded = self.overloaded and now - self._well_since < _OVER
        else:
            self._well_since = inf
        return before != self.overloaded


def _resident() -> int:
    """Bytes of memory that this process has. Reading them waits for nothing: proc(5), statm."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * getpagesize()


class Overload:
    """Looks at one process. `shed` is called at each look while it is overloaded, and returns what it let go.

    `changed` hears when that begins and ends. `change` before `run`. Used in one running event loop.
    """

    def __init__(self, changed: Callable[[bool], None], shed: Callable[[], int]) -> None:
        self.times = 0
        self.shed = 0
        self._changed = changed
        self._shed = shed
        self._strain = Strain()
        self._mark = inf  # of memory, in bytes
        self._released = -inf
        self._lag = Lag()

    @property
    def lag(self) -> float:
        """Greatest number of seconds by which the loop was late in the last one."""
        return self._lag.greatest

    @property
    def overloaded(self) -> bool:
        return self._strain.overloaded

    def change(self, settings: schema.Overload) -> None:
        lag = inf if settings.lag == "off" else settings.lag
        self._mark = settings.memory if settings.memory is not None else inf
        self._strain.change(lag, self._mark)

    async def run(self) -> None:
        before = 0
        while True:
            lag = await self._lag.look()
            now = time.monotonic()
            if self._strain.look(lag, self._memory(now), now):
                self.times += self.overloaded
                self._changed(self.overloaded)
                self._say(self.shed - before)
                before = self.shed
            if self.overloaded:
                self.shed += self._shed()

    def _memory(self, now: float) -> int:
        """Bytes that are in use, as far as somebody wants to know."""
        if self._mark == inf:
            return 0
        memory = _resident()
        if memory >= self._mark * _RELIEF and now >= self._released + _RELEASE:
            self._released = now
            release_heap()
            memory = _resident()
        return memory

    def _say(self, shed: int) -> None:
        if self.overloaded:
            hint = "new connections are closed and what waits for instances is answered `overloaded`"
            log.error("overloaded", why=self._strain.why, hint=f"{hint}; see gateway.overload")
        else:
            log.warning("overload_over", shed=shed)

    def status(self) -> dict[str, int]:
        """How often it was, what was let go; and whether it is (1 or 0)."""
        return {"active": int(self.overloaded), "times": self.times, "shed": self.shed}
