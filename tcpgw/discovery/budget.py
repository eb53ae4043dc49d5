"""The calls that one IAM user may make in a minute, shared by all services of that user.

A bucket of tokens, one for each call of the limit. A call takes a token, and the token comes back one window
after the call has *ended*. Then the cloud can never count more than the limit in any window, wherever it lies
and however long calls are under way: call number k+limit starts after the token of one of the limit calls
before it came back, hence a whole window after that one ended, hence after it was counted.

The usual token bucket, refilled at limit/window, does not hold this: full, it lets twice the limit minus one
through in one window. One that does (capacity plus refill within the limit) trades the calls at a start, when
every service waits for its first answer, against the calls of every minute after it.

Even spreading: the first half of the tokens may go at once, so that a start with ten services takes one round
trip; from then on calls keep a distance of window/limit.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable

# A minute, and a second for a cloud whose clock does not tick quite like ours.
WINDOW = 61.0


class Token:
    """The right to make one call. Set `called` before the call is made."""

    def __init__(self, give_back: Callable[..., None]) -> None:
        self.called = False
        self._give_back: Callable[..., None] | None = give_back

    def give_back(self) -> None:
        """Say that the call is over, or was not made. Idempotent."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back(called=self.called)


class Budget:
    """Lets at most `calls_per_minute` calls through in any 60 s, first come, first served."""

    def __init__(
        self,
        calls_per_minute: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._limit = calls_per_minute
        self._clock = clock
        self._sleep = sleep
        self._running = 0
        self._returns: deque[float] = deque()  # when the tokens of ended calls come back, soonest first
        self._spaced = clock()  # when the next call may start while calls keep their distance
        self._resumes = clock()
        self._turn = asyncio.Lock()  # wakes those who wait in the order of their coming

    @property
    def per_minute(self) -> float:
        """Calls a minute that the budget sustains, a little below its limit."""
        return self._limit * 60 / WINDOW

    @property
    def left(self) -> int:
        """Tokens in the bucket."""
        now = self._clock()
        while self._returns and self._returns[0] <= now:
            self._returns.popleft()
        return self._limit - self._running - len(self._returns)

    @property
    def pause_left(self) -> float:
        """Seconds until the pause that was asked for is over; 0 without one."""
        return max(0.0, self._resumes - self._clock())

    def pause(self, seconds: float) -> None:
        """Start no call for so long: the cloud counted too many. Of several pauses the longest counts."""
        self._resumes = max(self._resumes, self._clock() + seconds)

    async def take(self) -> "Token":
        """Wait for a token. Cancelled while waiting, it takes none. The taker must give it back."""
        async with self._turn:
            while (delay := self._delay()) > 0:
                await self._sleep(delay)
            self._running += 1
            self._spaced = self._clock() + WINDOW / self._limit
        return Token(self._give_back)

    def _give_back(self, *, called: bool) -> None:
        self._running -= 1
        if called:
            self._returns.append(self._clock() + WINDOW)

    def _delay(self) -> float:
        left, now = self.left, self._clock()
        starts = [now, self._resumes]
        if 2 * left <= self._limit:
            starts.append(self._spaced)
        if left == 0:
            # Where all calls are still under way, the first token comes back a window from now or later.
            starts.append(self._returns[0] if self._returns else now + WINDOW)
        return max(starts) - now
