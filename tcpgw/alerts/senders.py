"""Takes alerts to who is to be told, whatever state that one is in.

Each receiver has a queue and a task of its own: one that is slow or gone holds up nobody else. What it does
not take is tried again for some time, in order, and then dropped: old news would hide the new.
"""

import asyncio
import os
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

import aiohttp
import structlog
from yarl import URL

from tcpgw import __version__

log = structlog.get_logger()

# Messages that wait for one receiver. Beyond, the oldest goes: what holds now is in the latest.
MOST = 100
# Tries of one message, and the seconds between them: 1, 2, 4 and so on, half of it at random.
_TRIES = 10
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
# Seconds between two lines about a receiver that fails.
_SAID = 60.0

_HINT = (
    "see the receiver in [alerts], its own log, and the network to it; the alerts stand in this log as well"
)


class Sender:
    """Posts JSON to one URL. `lasting` is for how many seconds a message is worth another try.

    Counts since the start: `sent`, `failed` (tries), `dropped` (messages). `error` is what was wrong last, or
    empty once a message was taken.
    """

    def __init__(
        self,
        receiver: str,
        url: str,
        headers: Mapping[str, str],
        *,
        timeout: float,
        lasting: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.sent = self.failed = self.dropped = 0
        self.error = ""
        self._receiver = receiver
        self._lasting = lasting
        self._clock = clock
        self._sleep = sleep
        self._waiting: deque[tuple[bytes, float]] = deque()
        self._some = asyncio.Event()
        self._said = 0.0
        self.change(url, headers, timeout=timeout)

    def change(self, url: str, headers: Mapping[str, str], *, timeout: float) -> None:
        """Send so from the next try on: what waits, too."""
        self._url = URL(url, encoded=True)  # a key in it stays as it was written
        self._headers = {"User-Agent": f"tcpgw/{__version__}", **headers, "Content-Type": "application/json"}
        self._timeout = timeout

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def send(self, body: bytes) -> None:
        """Have a message sent. Never waits."""
        if len(self._waiting) >= MOST:
            self._waiting.popleft()
            self.dropped += 1
        self._waiting.append((body, self._clock()))
        self._some.set()

    async def run(self) -> None:
        """Send what comes, for ever. Cancellation closes the connection and loses what waits."""
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=1),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,  # a proxy of the environment would read what is a secret of the receiver's
        ) as session:
            while True:
                await self._some.wait()
                body, since = self._waiting.popleft()
                if not self._waiting:
                    self._some.clear()
                await self._deliver(session, body, since)

    async def _deliver(self, session: aiohttp.ClientSession, body: bytes, since: float) -> None:
        for tried in range(1, _TRIES + 1):
            refusal = await self._post(session, body)
            if refusal is None:
                self.sent += 1
                if self.error:
                    log.info("alert_receiver_works", receiver=self._receiver, url=self.where)
                    self.error, self._said = "", 0.0
                return
            self.error, again, pause = refusal
            self.failed += 1
            pause = max(pause, _pause(tried))
            if not again or tried == _TRIES or self._clock() + pause - since > self._lasting:
                break
            self._say("alert_not_sent_yet", tries=tried)
            await self._sleep(pause)
        self.dropped += 1
        self._say("alert_not_sent", tries=tried)

    async def _post(self, session: aiohttp.ClientSession, body: bytes) -> tuple[str, bool, float] | None:
        """Try once. None: it was taken. Else what was wrong, whether another try may help, and after what."""
        timeout = self._timeout
        try:
            async with session.post(
                self._url,
                data=body,
                headers=self._headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=timeout),
            ) as response:
                return _refusal(response.status, response.headers.get("Retry-After", ""))
        except TimeoutError:
            return f"no answer within {timeout:g} s", True, 0.0
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return _fault(error), True, 0.0

    def _say(self, event: str, tries: int) -> None:
        now = self._clock()
        if not self._said or now - self._said >= _SAID:
            self._said = now
            log.warning(
                event, receiver=self._receiver, url=self.where, error=self.error, tries=tries,
                dropped=self.dropped, hint=_HINT,
            )  # fmt: skip

    @property
    def where(self) -> str:
        """The URL without what may be a secret in it."""
        return str(self._url.origin())


def _pause(tried: int) -> float:
    return min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** (tried - 1)) * random.uniform(0.5, 1)


def _fault(error: Exception) -> str:
    """What was wrong, in a few words. Texts of aiohttp's may hold the whole URL."""
    if isinstance(error, aiohttp.ClientConnectorError):
        # asyncio's text of a refused connection repeats the address.
        code = error.os_error.errno
        return os.strerror(code) if code and code > 0 else error.os_error.strerror or str(error.os_error)
    told = isinstance(error, aiohttp.ClientConnectionError | OSError)
    return str(error) if told and str(error) else type(error).__name__


def _refusal(status: int, retry_after: str) -> tuple[str, bool, float] | None:
    if 200 <= status < 300:
        return None
    if 300 <= status < 400:
        return (
            f"status {status}: a redirect, which is not followed; write the URL that it leads to",
            False,
            0.0,
        )
    again = status in {408, 425, 429} or status >= 500
    pause = 0.0
    with suppress(ValueError):
        pause = min(_LONGEST_PAUSE, float(retry_after))
    return f"status {status}", again, pause
