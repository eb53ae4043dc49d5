"""What each path of the admin server answers, and what one must be allowed for it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from math import ceil
from typing import Any

import structlog
from aiohttp import hdrs, web
from pydantic import Field

from tcpgw.admin.actions import ACTIONS, BadRequestError, Nothing, read
from tcpgw.admin.assets import Asset
from tcpgw.admin.encoding import encoded
from tcpgw.admin.events import Events
from tcpgw.admin.guard import Asked, Guard, Need, Refused
from tcpgw.admin.sessions import LASTS
from tcpgw.admin.source import Source
from tcpgw.config.admin import Admin
from tcpgw.observe.faults import Faults

log = structlog.get_logger()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# Seconds for a body, which comes with its head where nobody dawdles.
_BODY = 5.0
# Seconds for figures: workers are given one to answer.
_FIGURES = 5.0
# Seconds for an action: a reload waits for discovery and for new workers.
_ACTION = 60.0

_BY: web.RequestKey[str] = web.RequestKey("by", str)


class Login(Nothing):
    """What is posted to log in."""

    token: str = Field(max_length=512)


class Handlers:
    """Of one server; `over` ends its streams."""

    def __init__(
        self, settings: Admin, source: Source, guard: Guard, over: asyncio.Event, faults: Faults
    ) -> None:
        self._source = source
        self._guard = guard
        self._events = Events(source, over, faults)
        # Browsers send cookies to all ports of a host, and another gateway may have one of them.
        self._cookie = f"tcpgw_{settings.bind.port}"

    def routes(self, page: Mapping[str, Asset]) -> list[web.RouteDef]:
        """All paths; `page` has the files of the page by theirs."""
        return [
            web.get("/healthz", self._for(Need.OPEN, _healthz)),
            web.get("/readyz", self._for(Need.OPEN, self._readyz)),
            web.get("/session", self._for(Need.PAGE, self._session)),
            web.post("/login", self._for(Need.PAGE, self._login)),
            web.post("/logout", self._for(Need.PAGE, self._logout)),
            web.get("/metrics", self._for(Need.READ, self._metrics)),
            web.get("/status", self._for(Need.READ, self._status)),
            web.get("/view", self._for(Need.READ, self._view)),
            web.get("/charts", self._for(Need.READ, self._charts)),
            web.get("/events", self._for(Need.READ, self._subscribe), allow_head=False),
            *(web.post(f"/actions/{name}", self._for(Need.ACT, self._action(name))) for name in ACTIONS),
            *(web.get(path, self._for(Need.PAGE, _sent(asset))) for path, asset in page.items()),
        ]

    def _for(self, need: Need, handler: Handler) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            request[_BY] = self._guard.check(self._asked(request), need)
            return await handler(request)

        return handle

    def _asked(self, request: web.Request) -> Asked:
        headers = request.headers
        scheme, _, token = headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        return Asked(
            source=request.remote or "",
            host=headers.get(hdrs.HOST, ""),
            token=token.strip() if scheme.lower() == "bearer" else "",
            session=request.cookies.get(self._cookie, ""),
            csrf=headers.get("X-CSRF-Token", ""),
            origin=headers.get(hdrs.ORIGIN, ""),
            site=headers.get("Sec-Fetch-Site", ""),
        )

    # ---- figures ----

    async def _readyz(self, _: web.Request) -> web.Response:
        reason = self._source.ready()
        return json_error(503, reason) if reason else _json({"status": "ready"})

    async def _metrics(self, request: web.Request) -> web.Response:
        async with asyncio.timeout(_FIGURES):
            body, kind = await self._source.metrics(request.headers.get(hdrs.ACCEPT, ""))
        return web.Response(body=body, headers={hdrs.CONTENT_TYPE: kind})

    async def _status(self, _: web.Request) -> web.Response:
        async with asyncio.timeout(_FIGURES):
            return _json(await self._source.status())

    async def _view(self, _: web.Request) -> web.Response:
        view = self._source.view()
        return (
            json_error(503, "there are no figures yet: ask again in a second")
            if view is None
            else _json(view)
        )

    async def _charts(self, _: web.Request) -> web.Response:
        return _json(self._source.charts())

    async def _subscribe(self, request: web.Request) -> web.StreamResponse:
        if self._events.full:
            return json_error(503, "too many listen to events: ask /view, or try again", wait=5.0)
        asked, by_session = self._asked(request), request[_BY] == "session"
        return await self._events.serve(request, lambda: not by_session or self._guard.is_logged_in(asked))

    # ---- who ----

    async def _session(self, request: web.Request) -> web.Response:
        return _json(self._guard.standing(self._asked(request)))

    async def _login(self, request: web.Request) -> web.Response:
        asked = self._asked(request)
        session = self._guard.log_in((await _read(request, Login)).token, asked)
        log.info("admin_logged_in", source=asked.source or "unix")
        response = _json({})
        response.set_cookie(
            self._cookie,
            session.id,
            max_age=int(LASTS),
            path="/",
            httponly=True,
            samesite="Strict",
            # The browser knows whether TLS ends in front of this server, and only cheats itself.
            secure=asked.origin.startswith("https:"),
        )
        return response

    async def _logout(self, request: web.Request) -> web.Response:
        self._guard.log_out(self._asked(request))
        response = _json({})
        response.del_cookie(self._cookie, path="/", httponly=True, samesite="Strict")
        return response

    # ---- actions ----

    def _action(self, name: str) -> Handler:
        kind, perform = ACTIONS[name]

        async def handle(request: web.Request) -> web.Response:
            body = await _read(request, kind)
            said = body.model_dump(mode="json", exclude_defaults=True)
            told = log.bind(action=name, by=request[_BY], source=request.remote or "unix", **said)
            try:
                async with asyncio.timeout(_ACTION):
                    result = await perform(self._source, body)
            except BaseException as exc:
                told.warning("admin_action", error=_why(exc))
                raise
            told.info("admin_action")
            return _json({"result": result})

        return handle


async def _healthz(_: web.Request) -> web.Response:
    return _json({"status": "ok"})


def _sent(asset: Asset) -> Handler:
    async def handle(_: web.Request) -> web.Response:
        return web.Response(body=asset.body, headers={hdrs.CONTENT_TYPE: asset.kind})

    return handle


async def _read(request: web.Request, kind: type[Nothing]) -> Any:
    """Read a request's body. Raises BadRequestError, Refused, and aiohttp's where it is too long."""
    try:
        async with asyncio.timeout(_BODY):
            body = await request.read()
    except TimeoutError:
        raise Refused(408, f"the body was not here in {_BODY:g} s: send it with its head") from None
    # A form of another page can send everything but this without asking the browser first.
    if body and request.content_type != "application/json":
        raise BadRequestError("send the body with Content-Type: application/json")
    return read(kind, body)


def _why(exc: BaseException) -> str:
    """What an action came to that did not return."""
    match exc:
        case TimeoutError():
            return f"not done in {_ACTION:g} s, but it may still be"
        case asyncio.CancelledError():  # as by a reload that opens this server anew
            return "the connection ended before it was done, but it may still be"
    return str(exc) or type(exc).__name__


def _json(value: Any) -> web.Response:
    return web.Response(body=encoded(value), content_type="application/json")


def json_error(status: int, error: str, *, wait: float = 0.0, allow: str = "") -> web.Response:
    """Answer with what went wrong and what to do, and when to try again."""
    response = web.Response(status=status, body=encoded({"error": error}), content_type="application/json")
    if status == 401:
        response.headers[hdrs.WWW_AUTHENTICATE] = 'Bearer realm="tcpgw"'
    if wait > 0:
        response.headers[hdrs.RETRY_AFTER] = str(ceil(wait))
    if allow:
        response.headers[hdrs.ALLOW] = allow
    if status in {408, 413}:  # what is left of the body is not worth waiting for
        response.force_close()
    return response
