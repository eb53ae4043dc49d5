"""Requests signed with an access key: the operator's own, or the temporary one of the server's agency.

The signature (SDK-HMAC-SHA256) is made by the cloud's own package, which comes with the extra `aksk`.
"""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from yarl import URL

from tcpgw.discovery import cloud_errors
from tcpgw.discovery.call import Caller
from tcpgw.discovery.renewal import REFUSED_PAUSE, Lease, Renewed, life
from tcpgw.errors import AnswerError, CredentialError


class Keys(NamedTuple):
    """An access key. The names are those that the package's signer reads."""

    ak: str
    sk: str
    security_token: str = ""

    def __repr__(self) -> str:
        return "Keys(***)"


class Signer:
    """Signs GET requests for one project."""

    def __init__(self, table: str, project_id: str) -> None:
        """Raises CredentialError where the package is not installed."""
        try:
            # Here and not above, because the extra is optional and its import takes 40 ms.
            from huaweicloudsdkcore.sdk_request import SdkRequest  # noqa: PLC0415
            from huaweicloudsdkcore.signer.signer import Signer as SdkSigner  # noqa: PLC0415
        except ImportError as error:
            raise CredentialError(
                f"{table}.auth needs the cloud's signer, which is not installed: pip install 'tcpgw[aksk]'"
            ) from error
        self._request, self._signer = SdkRequest, SdkSigner
        self._project_id = project_id

    def headers(self, url: URL, keys: Keys) -> dict[str, str]:
        """Return the headers of a signed GET of `url`. They hold for 15 minutes."""
        headers = {
            "X-Project-Id": self._project_id,
            "X-Sdk-Date": datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ"),
        }
        if keys.security_token:
            headers["X-Security-Token"] = keys.security_token
        request = self._request(
            method="GET",
            schema=url.scheme,
            host=url.raw_authority,
            resource_path=url.raw_path,
            query_params=list(url.query.items()),
            header_params=headers,
            body="",
        )
        signed: dict[str, str] = self._signer(keys).sign(request).header_params
        return signed


class AccessKey:
    """The operator's own access key. It cannot be renewed, and rests for REFUSED_PAUSE after a refusal."""

    def __init__(
        self,
        table: str,
        signer: Signer,
        access_key: str,
        secret_key: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._table = table
        self._signer = signer
        self._keys = Keys(access_key, secret_key)
        self._clock = clock
        self._rests_until = clock()

    async def headers(self, url: URL) -> dict[str, str]:
        if self._clock() < self._rests_until:
            raise CredentialError(
                f"the key of {self._table}.auth was refused, and rests for {REFUSED_PAUSE / 60:.0f} minutes: "
                f"the cloud locks it after five refusals in a row; check {self._table}.auth, and that this "
                "machine's clock is right"
            )
        return self._signer.headers(url, self._keys)

    def refused(self, _headers: dict[str, str]) -> bool:
        self._rests_until = self._clock() + REFUSED_PAUSE
        return False


class Agency:
    """Temporary keys of the agency that the server was given, from its metadata service."""

    def __init__(
        self,
        table: str,
        signer: Signer,
        metadata: str,
        caller: Caller,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._table = table
        self._signer = signer
        self._url = URL(f"{metadata}/openstack/latest/securitykey")
        self._caller = caller
        self._keys = Renewed(self._ask, name=f"{table} agency keys", clock=clock)

    async def headers(self, url: URL) -> dict[str, str]:
        return self._signer.headers(url, await self._keys.get())

    def refused(self, headers: dict[str, str]) -> bool:
        self._keys.drop(lambda keys: keys.security_token == headers.get("X-Security-Token"))
        return True

    async def _ask(self) -> Lease[Keys]:
        reply = await self._caller.call("GET", self._url, setting=f"{self._table}.auth.metadata")
        if reply.status == 200:
            return self._read(reply.body)
        error = cloud_errors.api_error(
            *reply,
            call=f"keys from {self._url}",
            table=self._table,
            advice=cloud_errors.METADATA,
            now=time.time(),
        )
        raise CredentialError(str(error)) if error.status in cloud_errors.METADATA else error

    def _read(self, body: bytes) -> Lease[Keys]:
        try:
            credential: dict[str, Any] = json.loads(body)["credential"]
            parts = [credential[name] for name in ("access", "secret", "securitytoken")]
        except (ValueError, KeyError, TypeError, RecursionError):
            parts = []
        if not parts or not all(
            isinstance(part, str) and part.isascii() and part.isprintable() for part in parts
        ):
            # Not quoted, not even as a cause: whatever it is, it stands where secrets stand.
            raise AnswerError(f"{self._url} gave no agency's keys; check {self._table}.auth.metadata")
        return Lease(Keys(*parts), life(credential.get("expires_at"), datetime.now(UTC)))
