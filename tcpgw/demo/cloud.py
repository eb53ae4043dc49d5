"""An emulation of the cloud's APIs that discovery uses, for the demo and the tests.

Three APIs on one loopback address, as strict as the cloud's: IAM (`POST /v3/auth/tokens`), ModelArts
(`GET /v1/{project}/services/{service}/predict/endpoints?type=host_endpoints`) and the metadata service
(`GET /openstack/latest/securitykey`). Credentials are checked, signatures recomputed, tokens end, and each
user may make so many calls a minute.
"""

import asyncio
import hashlib
import hmac
import re
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, Self
from urllib.parse import quote, unquote

from aiohttp import web

from tcpgw.endpoints import Endpoint

Fault = int | Literal["garbage", "empty", "half", "timeout", "drip"]
"""A status to refuse with, or what else is wrong with each answer."""


def _objects(endpoints: Iterable[Endpoint]) -> list[dict[str, Any]]:
    return [{"schema": "http", "ip": host, "port": port} for host, port in endpoints]


# The documentation shows the answer as a picture only, so the emulation has several plausible ones.
SHAPES: Mapping[str, Callable[[list[Endpoint]], Any]] = {
    "host_endpoints": lambda endpoints: {"type": "host_endpoints", "host_endpoints": _objects(endpoints)},
    "list": _objects,
    "nested": lambda endpoints: {
        "result": {"endpoints": [{"node": e.host, "host_endpoints": _objects([e])} for e in endpoints]}
    },
    "joined": lambda endpoints: {"endpoints": [str(e) for e in endpoints]},
    "urls": lambda endpoints: {
        "data": {"count": len(endpoints), "list": [{"url": f"http://{e}"} for e in endpoints]}
    },
}

_ERRORS = {
    400: ("ModelArts.0104", "The request parameter is invalid."),
    401: ("APIG.0301", "Incorrect IAM authentication information: decrypt token fail"),
    403: ("ModelArts.0212", "You do not have the permission to perform this action."),
    404: ("ModelArts.3502", "The service does not exist."),
    500: ("ModelArts.0010", "Internal error."),
}
_THROTTLED = "The throttling threshold has been reached: policy user over ratelimit,limit:{},time:1 minute"
_SIGNATURE_AGE = 15 * 60.0


class _RefusalError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Cloud:
    """`async with Cloud(...) as cloud:` serves on `cloud.url` until the block ends.

    `services` maps a service's id to its instances (`Endpoint` or text) and may be changed at any time, as
    may `fault`, `shape` and `calls_per_minute`. `token_life` is in seconds, for tokens and temporary keys
    alike. `clock` gives Unix time.
    """

    def __init__(
        self,
        services: Mapping[str, Iterable[Endpoint | str]] | None = None,
        *,
        calls_per_minute: int = 20,
        token_life: float = 86_400.0,
        shape: str = "host_endpoints",
        host: str = "127.0.0.1",
        port: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.services = {name: list(endpoints) for name, endpoints in (services or {}).items()}
        self.calls_per_minute = calls_per_minute
        self.token_life = token_life
        self.shape = shape
        self.fault: Fault | None = None
        self.retry_after: str | None = None  # sent with refusals
        self.throttle_message = _THROTTLED
        # Made anew for each cloud, so that no constant here looks like somebody's password.
        self.project_id = secrets.token_hex(16)
        self.domain, self.user, self.password = "demo", "gateway", secrets.token_urlsafe(12)
        self.access_key, self.secret_key = secrets.token_hex(10).upper(), secrets.token_hex(20)
        self.agency = True
        self.api_calls = self.token_calls = self.key_calls = self.throttled_calls = 0
        self._address = host, port
        self._clock = clock
        self._tokens: dict[str, float] = {}
        self._keys: dict[str, tuple[str, str, float]] = {}  # access key: secret key, security token, end
        self._counted: dict[str, deque[float]] = {}
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post("/v3/auth/tokens", self._token)
        app.router.add_get("/openstack/latest/securitykey", self._security_key)
        app.router.add_get("/v1/{project}/services/{service}/predict/endpoints", self._host_endpoints)
        # A handler that hangs on purpose ends with its client, and none holds up the end.
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, *self._address)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def revoke_tokens(self) -> None:
        """End all tokens and temporary keys now, before their time."""
        self._tokens.clear()
        self._keys.clear()

    # ---- IAM ----

    async def _token(self, request: web.Request) -> web.Response:
        self.token_calls += 1
        try:
            asked = (await request.json())["auth"]
            user = asked["identity"]["password"]["user"]
            right = asked["identity"]["methods"] == ["password"] and user == {
                "name": self.user,
                "password": self.password,
                "domain": {"name": self.domain},
            }
            project = asked["scope"]["project"]["id"]
        except (ValueError, KeyError, TypeError):
            return _iam_error(400, "Bad Request", "The request body is invalid.")
        if not right:
            return _iam_error(401, "Unauthorized", "The username or password is wrong.")
        if project != self.project_id:
            return _iam_error(404, "Not Found", f"Could not find project: {project}.")
        token = f"MII{secrets.token_urlsafe(1200)}"
        self._tokens[token] = self._clock() + self.token_life
        life = {"issued_at": _iso(self._clock()), "expires_at": _iso(self._tokens[token])}
        body = {"token": {"methods": ["password"], "project": {"id": project}, **life}}
        return web.json_response(body, status=201, headers={"X-Subject-Token": token})

    # ---- metadata service ----

    async def _security_key(self, _request: web.Request) -> web.Response:
        self.key_calls += 1
        if not self.agency:
            return web.Response(status=404, text="404 Not Found")
        access, secret, token = (
            secrets.token_hex(10).upper(),
            secrets.token_hex(20),
            secrets.token_urlsafe(400),
        )
        self._keys[access] = secret, token, self._clock() + self.token_life
        names = {"access": access, "secret": secret, "securitytoken": token}
        return web.json_response({"credential": {**names, "expires_at": _iso(self._keys[access][2])}})

    # ---- ModelArts ----

    async def _host_endpoints(self, request: web.Request) -> web.StreamResponse:
        self.api_calls += 1
        try:
            self._throttle(self._caller(request))
            return await self._answer(request)
        except _RefusalError as refusal:
            return self._refuse(refusal.status)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if isinstance(self.fault, int):
            raise _RefusalError(self.fault)
        if self.fault == "timeout":
            await asyncio.sleep(3600)
        if self.fault == "drip":
            return await _drip(request)
        if self.fault == "garbage":
            return web.Response(text="<html><h1>504 Gateway Time-out</h1>", content_type="text/html")
        return web.json_response(SHAPES[self.shape](self._instances(request)))

    def _caller(self, request: web.Request) -> str:
        """Who calls, by token or signature."""
        if request.match_info["project"] != self.project_id:
            raise _RefusalError(403)
        if self._tokens.get(request.headers.get("X-Auth-Token", ""), 0.0) > self._clock():
            return self.user
        return self._signer(request)

    def _signer(self, request: web.Request) -> str:
        access = request.headers.get("Authorization", "").partition("Access=")[2].partition(",")[0]
        if access == self.access_key:
            secret, token, end = self.secret_key, None, float("inf")
        else:
            secret, token, end = self._keys.get(access, ("", None, 0.0))
        if end <= self._clock() or request.headers.get("X-Security-Token") != token:
            raise _RefusalError(401)
        if not signature_holds(request, secret, self._clock()):
            raise _RefusalError(401)
        return self.user

    def _throttle(self, user: str) -> None:
        counted, now = self._counted.setdefault(user, deque()), self._clock()
        while counted and counted[0] <= now - 60:
            counted.popleft()
        if len(counted) >= self.calls_per_minute:
            self.throttled_calls += 1
            raise _RefusalError(429)
        counted.append(now)

    def _instances(self, request: web.Request) -> list[Endpoint]:
        if request.query.get("type") != "host_endpoints":
            raise _RefusalError(400)
        if request.match_info["service"] not in self.services:
            raise _RefusalError(404)
        instances = [Endpoint.parse(str(e)) for e in self.services[request.match_info["service"]]]
        kept = {"empty": 0, "half": len(instances) // 2}.get(str(self.fault), len(instances))
        return instances[:kept]

    def _refuse(self, status: int) -> web.Response:
        throttled = "APIG.0308", self.throttle_message.format(self.calls_per_minute)
        code, message = throttled if status == 429 else _ERRORS.get(status, _ERRORS[500])
        request_id = secrets.token_hex(16)
        body = {"error_msg": message, "error_code": code, "request_id": request_id}
        headers = {"X-Request-Id": request_id} | (
            {"Retry-After": self.retry_after} if self.retry_after else {}
        )
        return web.json_response(body, status=status, headers=headers)


def signature_holds(request: web.Request, secret_key: str, now: float) -> bool:
    """Recompute a request's SDK-HMAC-SHA256 signature, from its published description, without the SDK."""
    given = re.fullmatch(
        r"SDK-HMAC-SHA256 Access=\w+, SignedHeaders=([a-z0-9;-]+), Signature=([0-9a-f]{64})",
        request.headers.get("Authorization", ""),
    )
    date = request.headers.get("X-Sdk-Date", "")
    try:
        signed_at = datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return False
    if not given or abs(now - signed_at) > _SIGNATURE_AGE:
        return False
    names = given[1].split(";")
    if not {"host", "x-sdk-date"} <= set(names):
        return False
    path = "/".join(quote(unquote(part), safe="~") for part in request.rel_url.raw_path.split("/"))
    query = sorted((quote(k, safe="~"), quote(v, safe="~")) for k, v in request.query.items())
    lines = [
        request.method,
        path if path.endswith("/") else f"{path}/",
        "&".join(f"{k}={v}" for k, v in query),
        *(f"{name}:{request.headers.get(name, '').strip()}" for name in names),
        "",
        given[1],
        hashlib.sha256(b"").hexdigest(),
    ]
    hashed = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    to_sign = f"SDK-HMAC-SHA256\n{date}\n{hashed}"
    expected = hmac.new(secret_key.encode(), to_sign.encode(), hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected, given[2])


async def _drip(request: web.Request) -> web.StreamResponse:
    """Begin an answer that never ends."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(b"[")
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.05)


def _iam_error(status: int, title: str, message: str) -> web.Response:
    return web.json_response({"error": {"code": status, "message": message, "title": title}}, status=status)


def _iso(unix_time: float) -> str:
    return datetime.fromtimestamp(unix_time, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
