"""How late an event loop is: what it has to do before it comes to what is due."""

import asyncio
import time
from collections import deque

# Seconds between looks: some in the least lateness that matters, at no cost that can be seen.
_LOOK = 0.05


class Lag:
    """Of the loop in which `look` is called again and again."""

    def __init__(self) -> None:
        self._lags: deque[float] = deque(maxlen=round(1 / _LOOK))

    @property
    def greatest(self) -> float:
        """In the last second, in seconds."""
        return max(self._lags, default=0.0)

    async def look(self) -> float:
        """Sleep, and return by how many seconds that was too long."""
        due = asyncio.get_running_loop().time() + _LOOK
        await asyncio.sleep(_LOOK)
        # The clock and not loop.time(): that is of the beginning of this turn.
        lag = time.monotonic() - due
        self._lags.append(lag)
        return lag
