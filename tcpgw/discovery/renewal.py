"""A credential that ends: asked for once on behalf of all, renewed before its end."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import structlog
from yarl import URL

from tcpgw.errors import ApiError, CredentialError, DiscoveryError

# At two thirds a day's token leaves eight hours to repair IAM in, and is asked for twice a day.
RENEW_AT = 2 / 3
# Where the cloud does not say when a credential ends. Short, because too long means a refused call.
UNKNOWN_LIFE = 3600.0
# IAM locks a user after five wrong passwords in fifteen minutes. One question in five minutes, for all
# services together, stays below that.
REFUSED_PAUSE = 300.0
# After any other failure: long enough that the services of one user do not each ask a cloud that is down.
FAILED_PAUSE = 10.0

T = TypeVar("T")
log = structlog.get_logger()


class Credentials(Protocol):
    """What proves to the cloud who is calling."""

    async def headers(self, url: URL) -> dict[str, str]:
        """Return the headers for a GET of `url`. Raises DiscoveryError where no credential is to be had."""

    def refused(self, headers: dict[str, str]) -> bool:
        """The cloud took these headers for no proof: True where another try may have better ones."""


class Lease(NamedTuple, Generic[T]):
    """A credential and the seconds from when it was asked for until it ends."""

    value: T
    life: float


class Renewed(Generic[T]):
    """Holds a credential that `ask` makes. Safe for concurrent use in one event loop.

    At most one `ask` runs at a time and all callers share what it brings. It is cancelled with the caller
    that runs it, and the next caller asks anew: no task outlives its callers. A failure is remembered for a
    while, and is raised only where the old credential has ended as well.
    """

    def __init__(
        self,
        ask: Callable[[], Awaitable[Lease[T]]],
        *,
        name: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._name = name
        self._clock = clock
        self._one = asyncio.Lock()
        self._lease: Lease[T] | None = None
        self._taken_at = 0.0
        self._failure: DiscoveryError | None = None
        self._retry_at = 0.0

    async def get(self) -> T:
        """Return a credential that has not ended. Raises the DiscoveryError of `ask`."""
        # While somebody renews it, the old one does until its end.
        if (value := self._within(1 if self._one.locked() else RENEW_AT)) is not None:
            return value
        async with self._one:
            if (value := self._within(RENEW_AT)) is not None:
                return value
            if self._failure is None or self._clock() >= self._retry_at:
                await self._renew()
            if (value := self._within(1)) is not None:
                return value
            if self._failure is None:
                raise CredentialError(f"{self._name} had ended when it came; check this machine's clock")
            raise self._failure.with_traceback(None)  # raised again and again, it would grow with each

    def drop(self, refused: Callable[[T], bool]) -> None:
        """Forget a credential that the cloud refused. Does nothing where another has taken its place."""
        if self._lease is not None and refused(self._lease.value):
            self._lease = None

    def _within(self, part: float) -> T | None:
        """The credential, unless more than this part of its life is over."""
        if self._lease is None or self._clock() - self._taken_at >= part * self._lease.life:
            return None
        return self._lease.value

    async def _renew(self) -> None:
        asked_at = self._clock()
        try:
            self._lease = await self._ask()
        except DiscoveryError as error:
            pause = REFUSED_PAUSE if isinstance(error, CredentialError) else FAILED_PAUSE
            told = (error.retry_after if isinstance(error, ApiError) else None) or 0.0
            self._failure, self._retry_at = error, self._clock() + max(pause, told)
            log.warning("credential_not_renewed", credential=self._name, error=str(error))
        else:
            self._failure, self._taken_at = None, asked_at
            log.info("credential_renewed", credential=self._name, life=round(self._lease.life))


def life(expires_at: Any, since: Any) -> float:
    """Seconds between two ISO 8601 times, or UNKNOWN_LIFE where one cannot be read."""
    try:
        return (_moment(expires_at) - _moment(since)).total_seconds()
    except (TypeError, ValueError):
        return UNKNOWN_LIFE


def _moment(value: Any) -> datetime:
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
