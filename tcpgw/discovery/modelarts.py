"""Instances of a ModelArts online service, from the cloud's API.

The published documentation of the VPC high-speed channel names the call and its limits: 2000 a minute for an
account, 20 for an IAM user. So everything that belongs to the user (credentials, connections, budget) is one
`Account`, and a `ModelArtsSource` is a service's view of it.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import quote

import structlog
from yarl import URL

from tcpgw.config.schema import (
    AgencyAuth,
    AkSkAuth,
    ModelArtsCloud,
    ModelArtsDiscovery,
    PasswordAuth,
    TokenAuth,
)
from tcpgw.discovery import answer, cloud_errors
from tcpgw.discovery.budget import Budget, Token
from tcpgw.discovery.call import Caller, Reply
from tcpgw.discovery.iam import PasswordToken, StaticToken
from tcpgw.discovery.renewal import Credentials
from tcpgw.discovery.signing import AccessKey, Agency, Signer
from tcpgw.endpoints import Member
from tcpgw.errors import ApiError, DiscoveryError

JITTER = 0.1
# The cloud counts by the minute, so a longer wait spares it nothing and keeps a service on old instances.
LONGEST_BACKOFF = 60.0
THROTTLE_BASE = 10.0

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]

log = structlog.get_logger()
# Spreads load; nothing secret depends on it.
_random = random.Random()


class Account:
    """One IAM user's access to ModelArts, `[cloud.NAME]`, shared by all services that name it."""

    def __init__(
        self,
        name: str,
        settings: ModelArtsCloud,
        *,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """Raises CredentialError where the credentials cannot be used at all."""
        self.budget = Budget(settings.calls_per_minute, clock=clock, sleep=sleep)
        self._table = f"cloud.{name}"
        self._settings = settings
        self._caller = Caller(settings.timeout)
        self._credentials = _credentials(self._table, settings, self._caller, clock)
        # The cloud locks an access key after five refusals in a row: services that start together must not
        # all be refused. So the first call goes alone, and the first after a refusal.
        self._first = isinstance(settings.auth, AkSkAuth)
        self._alone = asyncio.Lock()
        self._services: list[ModelArtsSource] = []
        self._throttled = 0
        self._said_stretch = 1.0

    async def take_soon(self) -> Token:
        """Take a token from the budget. Raises DiscoveryError where none comes within the time-out."""
        try:
            async with asyncio.timeout(self._settings.timeout):
                return await self.budget.take()
        except TimeoutError:
            state = "paused by the cloud" if self.budget.pause_left > 0 else "spent for now"
            raise DiscoveryError(
                f"the budget of {self._table} ({self._settings.calls_per_minute} calls a minute for "
                f"{len(self._services)} services) is {state}"
            ) from None

    async def host_endpoints(self, service_id: str, token: Token) -> bytes:
        """Make the call that `token` is for, and return the answer's body, not yet read.

        Renews refused credentials and tries once more, with a further token. Gives all tokens back.
        Raises ApiError where the cloud refuses, CredentialError or another DiscoveryError where no call was
        possible. Takes at most five time-outs: two calls, credentials (or the first call) before each, and a
        token.
        """
        url = self._url(service_id)
        reply, headers = await self._call(url, token)
        if _refused(reply) and self._renews(headers):
            reply, headers = await self._call(url, await self.take_soon())
        if reply.status == 200:
            self._throttled = 0
            return reply.body
        raise self._refusal(reply, url, headers)

    def _renews(self, headers: dict[str, str]) -> bool:
        self._first = isinstance(self._settings.auth, AkSkAuth)
        return self._credentials.refused(headers)

    async def _call(self, url: URL, token: Token) -> tuple[Reply, dict[str, str]]:
        try:
            async with self._alone:
                if self._first:
                    return await self._call_now(url, token)
            return await self._call_now(url, token)
        finally:
            token.give_back()

    async def _call_now(self, url: URL, token: Token) -> tuple[Reply, dict[str, str]]:
        headers = await self._credentials.headers(url)
        token.called = True
        setting, language = f"{self._table}.endpoint", {"X-Language": "en-us"}  # of error messages
        try:
            reply = await self._caller.call("GET", url, setting=setting, headers=headers | language)
        finally:
            self._first = False
        return reply, headers

    def join(self, source: "ModelArtsSource") -> None:
        """Give a service its share of the budget."""
        self._services.append(source)

    async def leave(self, source: "ModelArtsSource") -> None:
        """Take a service's share back; the last one closes the connections. Idempotent."""
        if source in self._services:
            self._services.remove(source)
        if not self._services:
            await self.close()

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        await self._caller.close()

    def phase(self, source: "ModelArtsSource") -> float:
        """A service's place in the round, above 0 and up to 1: spreads calls that would come together."""
        return (self._services.index(source) + 1) / len(self._services)

    def stretch(self) -> float:
        """By what all refresh intervals are multiplied so that the calls fit the budget; at least 1."""
        wanted = sum(60 / source.refresh for source in self._services)
        stretch = max(1.0, wanted / self.budget.per_minute)
        if stretch != self._said_stretch:
            self._said_stretch = stretch
            if stretch > 1 + JITTER:
                self._say_stretch(stretch, wanted)
        return stretch

    def _say_stretch(self, stretch: float, wanted: float) -> None:
        longest = max(source.refresh for source in self._services)
        log.warning(
            "refresh_stretched",
            cloud=self._table,
            services=len(self._services),
            calls_wanted=round(wanted, 1),
            calls_per_minute=self._settings.calls_per_minute,
            interval=round(longest * stretch, 1),
            hint="longer refresh, or some services on an IAM user of their own",
        )

    def _url(self, service_id: str) -> URL:
        project, service = (quote(part, safe="") for part in (self._settings.project_id, service_id))
        path = f"/v1/{project}/services/{service}/predict/endpoints?type=host_endpoints"
        # Encoded once and for all: a signature holds for these very bytes.
        return URL(f"{self._settings.endpoint}{path}", encoded=True)

    def _refusal(self, reply: Reply, url: URL, headers: dict[str, str]) -> ApiError:
        error = cloud_errors.api_error(
            *reply,
            call=f"GET {url}",
            table=self._table,
            advice=cloud_errors.MODELARTS,
            now=time.time(),
            secrets=headers.values(),
        )
        if error.status == 429:
            # The cloud counts by user: what one service was told holds for all of them.
            told = error.retry_after
            seconds = (
                backoff(self._throttled, THROTTLE_BASE)
                if told is None
                else told * _random.uniform(1, 1 + JITTER)
            )
            self._throttled += 1
            self.budget.pause(seconds)
            log.warning("calls_paused", cloud=self._table, seconds=round(seconds, 1))
        return error


def _refused(reply: Reply) -> bool:
    """Whether the credentials were: APIG says 401, a service behind it may say 403 for the same."""
    return reply.status == 401 or (reply.status == 403 and cloud_errors.REFUSED.encode() in reply.body)


def _credentials(table: str, settings: ModelArtsCloud, caller: Caller, clock: Clock) -> Credentials:
    match settings.auth:
        case TokenAuth(token=token):
            return StaticToken(table, token.get_secret_value())
        case PasswordAuth() as password:
            return PasswordToken(table, password, settings.project_id, caller, clock)
        case AkSkAuth(access_key=access, secret_key=secret):
            signer = Signer(table, settings.project_id)
            return AccessKey(table, signer, access.get_secret_value(), secret.get_secret_value(), clock)
        case AgencyAuth(metadata=metadata):
            return Agency(table, Signer(table, settings.project_id), metadata, caller, clock)


def backoff(failures: int, base: float) -> float:
    """Seconds after so many failures in a row: doubling from `base`, half of it at random, capped."""
    longest = min(max(LONGEST_BACKOFF, base), base * 2.0 ** min(failures, 30))
    return longest * _random.uniform(0.5, 1)


class ModelArtsSource:
    """One online service's instances, as `host_endpoints` names them."""

    def __init__(
        self, settings: ModelArtsDiscovery, account: Account, *, sleep: Sleep = asyncio.sleep
    ) -> None:
        self._settings = settings
        self._account = account
        self._sleep = sleep
        self._failures = 0
        self._told = 0.0
        self._waited = False
        self._token: Token | None = None
        self._late = False  # no turn came for the first call
        self._complaints: tuple[str, ...] = ()
        account.join(self)

    @property
    def refresh(self) -> float:
        """The configured seconds between two calls."""
        return self._settings.refresh

    async def fetch(self) -> Sequence[Member]:
        # Only the first call comes without a token: `wait` brings one. It must not wait long for its turn,
        # since what the service had before the start is used only when this has failed.
        self._late = self._token is None
        token, self._token = self._token or await self._account.take_soon(), None
        self._late = False
        try:
            members = await self._fetch(token)
        except DiscoveryError as error:
            self._failures += 1
            self._told = (error.retry_after if isinstance(error, ApiError) else None) or 0.0
            raise
        self._failures, self._told = 0, 0.0
        return members

    async def _fetch(self, token: Token) -> Sequence[Member]:
        body = await self._account.host_endpoints(self._settings.service_id, token)
        # Off the loop, because a document of some MiB, however senseless, would hold it for a second.
        found = await asyncio.to_thread(answer.read, body, self._settings.networks, self._settings.jmespath)
        if found.complaints and found.complaints != self._complaints:
            log.warning(
                "answer_read_in_part", service_id=self._settings.service_id, complaints=list(found.complaints)
            )
        self._complaints = found.complaints
        return found.members

    async def wait(self) -> None:
        if not self._late:
            await self._sleep(self._delay())
        if self._token is None:
            self._token = await self._account.budget.take()

    def _delay(self) -> float:
        first, self._waited = not self._waited, True
        interval = self._settings.refresh * self._account.stretch()
        if self._told:
            return max(interval, self._told * _random.uniform(1, 1 + JITTER))
        if self._failures:
            return backoff(self._failures, interval)
        if first:
            return interval * self._account.phase(self)
        return interval * _random.uniform(1 - JITTER, 1 + JITTER)

    async def close(self) -> None:
        if self._token is not None:
            self._token.give_back()
        await self._account.leave(self)
