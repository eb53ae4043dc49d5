"""One HTTP call to the cloud, bounded in time and size, its failures told in the operator's words."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import aiohttp
from yarl import URL

from tcpgw.errors import AnswerError, DiscoveryError

# 4 MiB hold some 40,000 instances; more is no answer but a fault, and must not fill the memory.
MAX_ANSWER = 4 * 2**20


class Reply(NamedTuple):
    """A whole answer, whatever its status."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Caller:
    """One IAM user's connections. `timeout` is in seconds, for a whole call up to the answer's last byte.

    The session is made with the first call, so that a Caller may be made outside an event loop.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._session: aiohttp.ClientSession | None = None

    async def call(
        self,
        method: str,
        url: URL,
        *,
        setting: str,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
    ) -> Reply:
        """Call and read the whole answer. `setting` is the key path that `url` came from.

        Raises DiscoveryError where `url` cannot be called or no answer came in time, AnswerError where it was
        too big. Redirects are returned, not followed: they would take the credentials to another host.
        Cancellation closes the connection.
        """
        where = f"{method} {url.origin()}{url.path}"
        try:
            async with self._open().request(
                method, url, headers=headers, json=json, allow_redirects=False
            ) as response:
                return Reply(response.status, response.headers, await _read(response, where))
        except TimeoutError as error:
            raise DiscoveryError(
                f"{where}: no whole answer within {self._timeout:g} s; check {setting}, and the network to "
                f"{url.host}"
            ) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:  # ValueError: a host that is no name
            raise DiscoveryError(
                f"{where}: {str(error) or type(error).__name__}; check {setting}, and this machine's network "
                "and DNS"
            ) from error

    async def close(self) -> None:
        """Close all connections. Idempotent; a later call opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=self._timeout),
                cookie_jar=aiohttp.DummyCookieJar(),  # each call carries its own credentials and nothing else
            )
        return self._session


async def _read(response: aiohttp.ClientResponse, where: str) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():  # after decompression, so a small bomb does not pass
        body += chunk
        if len(body) > MAX_ANSWER:
            raise AnswerError(
                f"{where}: the answer has more than {MAX_ANSWER >> 20} MiB; this is no list of instances"
            )
    return bytes(body)
