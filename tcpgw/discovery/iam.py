"""Tokens: one made by hand, or made by IAM from a user's password and renewed."""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from yarl import URL

from tcpgw.config.schema import PasswordAuth
from tcpgw.discovery import cloud_errors
from tcpgw.discovery.call import Caller, Reply
from tcpgw.discovery.renewal import Lease, Renewed, life
from tcpgw.errors import AnswerError, CredentialError

HEADER = "X-Auth-Token"


class StaticToken:
    """A token that the operator made. It cannot be renewed."""

    def __init__(self, table: str, token: str) -> None:
        """Raises CredentialError where `token` cannot stand in an HTTP header."""
        if not (token.isascii() and token.isprintable()):
            raise CredentialError(
                f"{table}.auth.token is no token: it has line breaks or other odd characters"
            )
        self._token = token

    async def headers(self, _url: URL) -> dict[str, str]:
        return {HEADER: self._token}

    def refused(self, _headers: dict[str, str]) -> bool:
        return False


class PasswordToken:
    """Tokens of an IAM user for one project, by `POST /v3/auth/tokens` (Keystone's password method)."""

    def __init__(
        self,
        table: str,
        auth: PasswordAuth,
        project_id: str,
        caller: Caller,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._table = table
        self._auth = auth
        self._project_id = project_id
        self._caller = caller
        self._token = Renewed(self._ask, name=f"{table} token", clock=clock)

    async def headers(self, _url: URL) -> dict[str, str]:
        return {HEADER: await self._token.get()}

    def refused(self, headers: dict[str, str]) -> bool:
        self._token.drop(lambda token: token == headers[HEADER])
        return True

    async def _ask(self) -> Lease[str]:
        # nocatalog: the catalog of all services is 50 kB that nobody reads.
        url = URL(f"{self._auth.iam}/v3/auth/tokens?nocatalog=1")
        reply = await self._caller.call("POST", url, setting=f"{self._table}.auth.iam", json=self._request())
        if reply.status not in {200, 201}:
            raise self._refusal(reply)
        token = reply.headers.get("X-Subject-Token", "")
        if not token:
            raise AnswerError(
                f"POST {url.path} of {url.origin()} answered {reply.status} without X-Subject-Token; "
                f"check that {self._table}.auth.iam is IAM's address"
            )
        return Lease(token, _life(reply.body))

    def _request(self) -> dict[str, Any]:
        user = {
            "name": self._auth.user,
            "password": self._auth.password.get_secret_value(),
            "domain": {"name": self._auth.domain},
        }
        identity = {"methods": ["password"], "password": {"user": user}}
        return {"auth": {"identity": identity, "scope": {"project": {"id": self._project_id}}}}

    def _refusal(self, reply: Reply) -> Exception:
        error = cloud_errors.api_error(
            *reply,
            call=f"a token from {self._auth.iam}",
            table=self._table,
            advice=cloud_errors.IAM,
            now=time.time(),
            secrets=[self._auth.password.get_secret_value()],
        )
        return CredentialError(str(error)) if error.status in cloud_errors.IAM else error


def _life(body: bytes) -> float:
    """The token's seconds. Its own `issued_at` is the start, so that a wrong clock here does no harm."""
    try:
        token = json.loads(body)["token"]
        return life(token["expires_at"], token.get("issued_at") or datetime.now(UTC))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return life(None, None)
