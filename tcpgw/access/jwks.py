"""A set of keys (JWKS) behind a URL: fetched, kept, and fetched anew when a token names a key it lacks."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from ipaddress import ip_address

import aiohttp
import structlog
from yarl import URL

from tcpgw.access.jwt import MAX_SET, KeySet, KeySetError

# Seconds for the whole answer. Longer than a client waits for its own verdict, so that a slow issuer's answer
# is there for the next one.
TIMEOUT = 10.0
# Seconds between two questions that strangers can bring about, by naming keys that do not exist; and after a
# failure, until the next try.
AT_MOST_EVERY = 30.0
# Seconds. How long a key that the issuer has withdrawn is still taken, at most. What the answer says of its
# own age (Cache-Control) does not count: issuers say anything from nothing to a year.
REFRESH = 3600.0

log = structlog.get_logger()


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())


class JwksUrl:
    """One URL's set of keys. The last good one stays in force whatever happens after it.

    At most one question is under way, and all who ask meanwhile wait for that one. It belongs to this object
    and not to the first who asked: his time-out must not take the answer from the others. So `close` must be
    called. Each question has a connection of its own, because an hour is too long to keep one.
    """

    def __init__(
        self,
        url: str,
        *,
        session: Callable[[], aiohttp.ClientSession] = _session,
        clock: Callable[[], float] = time.monotonic,
        timeout: float = TIMEOUT,
    ) -> None:
        """Raises KeySetError for a URL that others could answer for: http, but to this machine itself."""
        self._url = _checked(url)
        self._where = f"{self._url.origin()}{self._url.path}"
        self._session = session
        self._clock = clock
        self._timeout = timeout
        self._log = log.bind(jwks=self._where)
        self._asking: asyncio.Task[KeySet | KeySetError] | None = None
        self._asked_at = -math.inf
        self._body = b""
        self._keys: KeySet | None = None
        self._trouble: str | None = None

    @property
    def keys(self) -> KeySet | None:
        """The set in force, None before the first."""
        return self._keys

    @property
    def text(self) -> bytes:
        """The set in force as it came, b"" before the first: for those who may not ask themselves."""
        return self._body

    async def fetch(self) -> KeySet:
        """Ask now, and give what is in force then. Raises KeySetError where the answer is not to be had."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        asking = self._asking
        # Not `await asking`: a caller's cancellation would be the others' too.
        await asyncio.wait([asking])
        if asking.cancelled():
            raise KeySetError(f"{self._where}: closed while it was asked")
        outcome = asking.result()
        if isinstance(outcome, KeySetError):
            raise outcome.with_traceback(None)  # raised for each who waits, it would grow with each
        return outcome

    async def refresh(self) -> KeySet | None:
        """Ask anew because a key is unknown, unless that was done just now, and give what is in force.

        Raises nothing: a failure is logged, and leaves the key unknown.
        """
        under_way = self._asking is not None and not self._asking.done()
        if under_way or self._clock() - self._asked_at >= AT_MOST_EVERY:
            try:
                return await self.fetch()
            except KeySetError:
                pass
        return self._keys

    async def run(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Keep the set up to date, for ever. Asks at once, then each hour, sooner after a failure."""
        while True:
            try:
                await self.fetch()
            except KeySetError:
                await sleep(AT_MOST_EVERY)
            else:
                await sleep(REFRESH)

    async def close(self) -> None:
        """Give up the question under way. Idempotent."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    async def _ask(self) -> KeySet | KeySetError:
        """Ask once. An error is returned: raised, it would be lost where nobody waits any more."""
        self._asked_at = self._clock()
        try:
            body = await self._read()
            if self._keys is None or body != self._body:
                self._keys, self._body = KeySet.parse(body), body
                self._log.info("jwks_read", keys=len(self._keys.keys), ignored=list(self._keys.ignored))
        except KeySetError as error:
            told = KeySetError(f"{self._where}: {error}")
            if self._trouble is None:
                self._log.error("jwks_failed", error=str(told), in_force=self._keys is not None)
            self._trouble = str(told)
            return told
        if self._trouble is not None:
            self._log.info("jwks_recovered", error=self._trouble)
            self._trouble = None
        return self._keys

    async def _read(self) -> bytes:
        try:
            async with (
                asyncio.timeout(self._timeout),
                self._session() as session,
                # A redirect would leave the one host that is trusted to name keys.
                session.get(self._url, allow_redirects=False) as response,
            ):
                if response.status != 200:
                    raise KeySetError(
                        f"answered {response.status}; is this the address of the issuer's keys (jwks_uri)?"
                    )
                return await _bounded(response)
        except TimeoutError:
            raise KeySetError(
                f"no whole answer within {self._timeout:g} s; check the URL, and the network to its host"
            ) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:  # ValueError: a host that is no name
            text = str(error) or type(error).__name__
            raise KeySetError(f"{text}; check the URL, and this machine's network and DNS") from error


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():  # after decompression, so a small bomb does not pass
        body += chunk
        if len(body) > MAX_SET:
            raise KeySetError(f"the answer has more than {MAX_SET >> 20} MiB; this is no set of keys")
    return bytes(body)


def _checked(text: str) -> URL:
    try:
        url = URL(text)
        origin = url.origin()
    except ValueError:
        raise KeySetError("the address of a set of keys must be a URL: https://host/path") from None
    if url.scheme != "https" and not (url.scheme == "http" and _is_loopback(url.host or "")):
        raise KeySetError(
            f"{origin}: keys are taken over https only, or over http from this machine: on the way anybody "
            "could put in a key of his own"
        )
    return url


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
