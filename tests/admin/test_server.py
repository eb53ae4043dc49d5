"""The admin server on real sockets: every answer, and every refusal."""

import asyncio
import json
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientError, ClientSession, UnixConnector
from structlog.testing import capture_logs

from tcpgw.admin import handlers, server
from tcpgw.admin.assets import load
from tests.support.admin import (
    TOKEN,
    Pretended,
    UnknownEndpointError,
    answer,
    gone,
    log_in,
    raw,
    served,
    settings,
)

BEARER = {"Authorization": f"Bearer {TOKEN}"}
DRAIN = {"endpoint": "10.0.1.11:8080"}

# ---- figures ----


async def test_probes(http: ClientSession, source: Pretended) -> None:
    """Alive while it answers; ready unless the gateway says why not. Both without a token and by any name."""
    async with served(source, settings(token=TOKEN)) as base:
        strange = {"Host": "10.1.2.3"}
        assert await answer(http, "GET", f"{base}/healthz", headers=strange) == (200, {"status": "ok"})
        assert await answer(http, "GET", f"{base}/readyz", headers=strange) == (200, {"status": "ready"})
        source.reason = "no worker accepts"
        assert await answer(http, "GET", f"{base}/readyz") == (503, {"error": "no worker accepts"})
        assert (await answer(http, "GET", f"{base}/healthz"))[0] == 200


async def test_figures(http: ClientSession, source: Pretended) -> None:
    """Each path has what the source gives."""
    source.history = {"ranker": {"at": [1.0]}}
    async with served(source) as base:
        assert await answer(http, "GET", f"{base}/status") == (200, {"version": "1", "state": "ready"})
        assert await answer(http, "GET", f"{base}/view") == (200, source.shown)
        assert await answer(http, "GET", f"{base}/charts") == (200, source.history)
        source.shown = None
        status, said = await answer(http, "GET", f"{base}/view")
        assert (status, list(said)) == (503, ["error"])


async def test_a_text_that_is_no_unicode(http: ClientSession, source: Pretended) -> None:
    """It is escaped, and takes nothing else of the view away, nor of the events."""
    source.shown = {"comment": "f\udcfcr", "at": 1}
    async with served(source) as base:
        assert await answer(http, "GET", f"{base}/view") == (200, source.shown)
        async with http.get(f"{base}/events") as response:
            await response.content.readuntil(b"data: ")
            assert json.loads(await response.content.readline()) == source.shown


async def test_metrics_have_the_form_that_was_asked_for(http: ClientSession, source: Pretended) -> None:
    """The source sees Accept, and its Content-Type is the answer's."""
    async with served(source) as base:
        for accept, kind in (("*/*", "text/plain"), ("application/openmetrics-text", None)):
            async with http.get(f"{base}/metrics", headers={"Accept": accept}) as response:
                wanted = f"{kind or accept}; version=1.0.0; charset=utf-8"
                assert response.headers["Content-Type"] == wanted
                assert await response.read() == b"tcpgw_build_info 1\n"


async def test_every_answer_has_the_headers_that_browsers_obey(
    http: ClientSession, source: Pretended
) -> None:
    """Errors and streams too: nothing is kept, framed, guessed or run that is not the page's own."""
    async with served(source) as base:
        for path in ("/", "/page.js", "/status", "/events", "/nothing", "/healthz"):
            async with http.get(f"{base}{path}") as response:
                assert "default-src 'self'" in response.headers["Content-Security-Policy"]
                assert "unsafe" not in response.headers["Content-Security-Policy"]
                assert response.headers["X-Frame-Options"] == "DENY"
                assert response.headers["X-Content-Type-Options"] == "nosniff"
                assert response.headers["Cache-Control"] == "no-store"
                assert response.headers["Referrer-Policy"] == "no-referrer"
                assert "Access-Control-Allow-Origin" not in response.headers


async def test_the_page_s_files(http: ClientSession, source: Pretended) -> None:
    """All that the page names are there, with their types, and nothing of it is another server's."""
    page = load()
    assert {"/", "/page.js", "/page.css", "/icon.svg"} <= page.keys()
    text = b"".join(asset.body for asset in page.values())
    assert text.count(b"://") == text.count(b"http://www.w3.org/2000/svg")
    assert b"innerHTML" not in text
    assert b"<script>" not in text
    assert b"style=" not in page["/"].body
    async with served(source, settings(token=TOKEN)) as base:
        for path, asset in page.items():
            async with http.get(f"{base}{path}") as response:
                assert (response.status, response.headers["Content-Type"]) == (200, asset.kind)


async def test_errors_say_what_to_do(http: ClientSession, source: Pretended) -> None:
    """In JSON, whoever found them; those of the gateway's own code without its details."""
    async with served(source) as base:
        assert (await answer(http, "GET", f"{base}/nothing"))[0] == 404
        status, said = await answer(http, "POST", f"{base}/status")
        assert (status, said) == (405, {"error": "not by this method: GET,HEAD"})
        source.error = RuntimeError("hush")
        status, said = await answer(http, "GET", f"{base}/status")
        assert status == 500
        assert "hush" not in said["error"]


async def test_faults_do_not_flood_the_log(http: ClientSession, source: Pretended) -> None:
    """One line with its traceback for some time, and how many more there were, by the end at the latest."""
    source.error = RuntimeError("hush")
    with socket.create_server(("127.0.0.1", 0)) as sock, capture_logs() as lines:
        async with server.AdminServer(settings(), source).serving(sock):
            url = f"http://127.0.0.1:{sock.getsockname()[1]}/status"
            for _ in range(5):
                assert (await answer(http, "GET", url))[0] == 500
    told = [line for line in lines if line["event"] == "admin_failed"]
    assert told == [
        {"event": "admin_failed", "log_level": "error", "path": "/status", "exc_info": source.error},
        {"event": "admin_failed", "log_level": "error", "more": 4},
    ]


async def test_an_origin_that_is_none(http: ClientSession, source: Pretended) -> None:
    """It is another page's."""
    async with served(source) as base:
        assert (await answer(http, "GET", f"{base}/view", headers={"Origin": "http://["}))[0] == 403
        assert (await answer(http, "POST", f"{base}/logout", headers={"Origin": "http://["}))[0] == 200


async def test_a_source_that_does_not_answer(
    http: ClientSession, source: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks is told in time."""
    monkeypatch.setattr(handlers, "_FIGURES", 0.01)

    async def never() -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(source, "status", never)
    async with served(source) as base:
        assert (await answer(http, "GET", f"{base}/status"))[0] == 504


# ---- who may ----


async def test_figures_need_the_token_where_there_is_one(http: ClientSession, source: Pretended) -> None:
    """A wrong one is refused, the right one shows all."""
    async with served(source, settings(token=TOKEN)) as base:
        for path in ("/status", "/view", "/charts", "/metrics", "/events"):
            async with http.get(f"{base}{path}") as response:
                assert response.status == 401
                assert response.headers["WWW-Authenticate"].startswith("Bearer")
            wrong = {"Authorization": f"Bearer {TOKEN}x"}
            if path != "/events":
                assert (await answer(http, "GET", f"{base}{path}", headers=BEARER))[0] == 200
        assert (await answer(http, "GET", f"{base}/status", headers=wrong))[0] == 401


async def test_another_s_name_for_this_machine(http: ClientSession, source: Pretended) -> None:
    """A page of evil.example that is led here gets neither figures nor this page."""
    async with served(source, settings(hosts=("gw.example.com",))) as base:
        for path in ("/", "/status", "/events", "/session"):
            status, said = await answer(http, "GET", f"{base}{path}", headers={"Host": "evil.example"})
            assert status == 403
            assert "evil.example" in said["error"]
        assert (await answer(http, "GET", f"{base}/view", headers={"Host": "gw.example.com"}))[0] == 200


async def test_without_a_token_nothing_changes(http: ClientSession, source: Pretended) -> None:
    """On loopback actions are refused with what would allow them."""
    async with served(source) as base:
        status, said = await answer(http, "POST", f"{base}/actions/drain", json=DRAIN)
        assert status == 403
        assert "gateway.admin" in said["error"]
        assert source.done == []


async def test_a_unix_socket(source: Pretended, tmp_path: Path) -> None:
    """Who may use it may read and act; the file is there afterwards, its owner's."""
    path = str(tmp_path / "admin.sock")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        async with served_at(sock, source), ClientSession(connector=UnixConnector(path)) as http:
            assert (await answer(http, "GET", "http://any/view"))[0] == 200
            assert (await answer(http, "POST", "http://any/actions/drain", json=DRAIN))[0] == 200
        assert stat.S_ISSOCK(os.stat(path).st_mode)  # noqa: PTH116 - at once
    assert source.done == [("drain", "10.0.1.11:8080", None)]


def served_at(sock: socket.socket, source: Pretended) -> Any:
    admin = settings(bind=f"unix:{sock.getsockname()}")
    return server.AdminServer(admin, source).serving(sock)


# ---- actions ----

ACTIONS = {
    "drain": (DRAIN | {"service": "ranker"}, ("drain", "10.0.1.11:8080", "ranker")),
    "undrain": (DRAIN, ("undrain", "10.0.1.11:8080", None)),
    "weight": (DRAIN | {"weight": 7}, ("weight", "10.0.1.11:8080", 7, None)),
    "reset": (DRAIN | {"weight": None}, ("weight", "10.0.1.11:8080", None, None)),
    "silence": (
        {"alert": "no_endpoint", "labels": {"service": "ranker"}, "seconds": 3600, "comment": "known"},
        ("silence", "no_endpoint", {"service": "ranker"}, 3600, "known"),
    ),
    "unsilence": ({"alert": "no_endpoint"}, ("unsilence", "no_endpoint", {})),
    "reload": ({}, ("reload",)),
}


@pytest.mark.parametrize("case", ACTIONS)
async def test_an_action_is_done(http: ClientSession, source: Pretended, case: str) -> None:
    """With the token, as its body says; what it returns is the answer."""
    body, done = ACTIONS[case]
    name = done[0]
    async with served(source, settings(token=TOKEN)) as base:
        with capture_logs() as logs:
            status, said = await answer(http, "POST", f"{base}/actions/{name}", json=body, headers=BEARER)
    assert (status, list(said)) == (200, ["result"])
    assert source.done == [done]
    (line,) = logs
    assert (line["event"], line["log_level"], line["action"]) == ("admin_action", "info", name)
    assert (line["by"], line["source"]) == ("token", "127.0.0.1")


@pytest.mark.parametrize(
    ("name", "body", "told"),
    [
        ("drain", {}, "endpoint: Field required"),
        ("drain", {"endpoint": "ranker:80"}, "endpoint: "),
        ("drain", DRAIN | {"weight": 1}, "weight: Extra inputs"),
        ("weight", DRAIN, "weight: Field required"),
        ("weight", DRAIN | {"weight": 0}, "weight: "),
        ("weight", DRAIN | {"weight": 65536}, "weight: "),
        ("weight", DRAIN | {"weight": True}, "weight: "),
        ("silence", {"alert": "a", "seconds": "long"}, "seconds: "),
        ("silence", {"alert": "a", "labels": {"a": 1}, "seconds": 1}, "labels.a: "),
        ("silence", {"seconds": 1}, "alert: "),
        ("reload", [], "with nothing"),
    ],
)
async def test_a_body_that_is_not_right(
    http: ClientSession, source: Pretended, name: str, body: Any, told: str
) -> None:
    """It is refused with the field and what is wrong with it; nothing is done."""
    async with served(source, settings(token=TOKEN)) as base:
        status, said = await answer(http, "POST", f"{base}/actions/{name}", json=body, headers=BEARER)
    assert status == 400
    assert told in said["error"]
    assert source.done == []


async def test_bodies_that_are_no_json(http: ClientSession, source: Pretended) -> None:
    """Nor those of forms, nor those that are too long, nor broken ones."""
    async with served(source, settings(token=TOKEN)) as base:
        url = f"{base}/actions/drain"
        typed = BEARER | {"Content-Type": "application/json"}
        assert (await answer(http, "POST", url, data="{", headers=typed))[0] == 400
        assert (await answer(http, "POST", url, data={"endpoint": "a"}, headers=BEARER))[0] == 400
        status, said = await answer(http, "POST", url, data=b" " * 20_000, headers=typed)
        assert status == 413
        assert "16384 bytes" in said["error"]
        assert (await answer(http, "POST", f"{base}/actions/reload", headers=BEARER))[0] == 200
        broken = f"POST /actions/drain HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\nHost: localhost\r\n"
        reader, writer = await raw(base, f"{broken}Transfer-Encoding: chunked\r\n\r\nnonsense\r\n")
        assert b" 400 " in await gone(reader, writer)


@pytest.mark.parametrize(("blame", "status"), [("operator", 409), ("gateway", 503)])
async def test_an_action_that_cannot_be_done(
    http: ClientSession, source: Pretended, monkeypatch: pytest.MonkeyPatch, blame: str, status: int
) -> None:
    """Its error is the answer, with whose fault it is, and in the log, where nobody takes it for done."""
    monkeypatch.setattr(UnknownEndpointError, "blame", blame)
    source.error = UnknownEndpointError("no service has 10.0.1.11:8080")
    async with served(source, settings(token=TOKEN)) as base:
        with capture_logs() as logs:
            said = await answer(http, "POST", f"{base}/actions/drain", json=DRAIN, headers=BEARER)
    assert said == (status, {"error": "no service has 10.0.1.11:8080"})
    (line,) = logs
    assert (line["event"], line["log_level"]) == ("admin_action", "warning")
    assert (line["endpoint"], line["error"]) == (DRAIN["endpoint"], "no service has 10.0.1.11:8080")


async def test_an_action_whose_end_nobody_sees(
    http: ClientSession, source: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that takes too long, or is under way when the server ends: the log says that it may be done."""
    asked = asyncio.Event()

    async def never() -> Any:
        asked.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(source, "reload", never)
    with capture_logs() as logs:
        async with served(source, settings(token=TOKEN)) as base:
            with monkeypatch.context() as short:
                short.setattr(handlers, "_ACTION", 0.01)
                status, _ = await answer(http, "POST", f"{base}/actions/reload", headers=BEARER)
            assert status == 504
            asked.clear()
            waiting = asyncio.create_task(answer(http, "POST", f"{base}/actions/reload", headers=BEARER))
            await asked.wait()
        with pytest.raises(ClientError):
            await waiting
    assert [line["log_level"] for line in logs] == ["warning", "warning"]
    assert "not done in 0.01 s, but it may still be" in logs[0]["error"]
    assert "ended before it was done, but it may still be" in logs[1]["error"]


# ---- the page's session ----


async def test_a_login_gives_a_cookie_that_no_script_sees(http: ClientSession, source: Pretended) -> None:
    """It is for this site alone, ends, and is not the token; a wrong token gives none."""
    async with served(source, settings(token=TOKEN)) as base:
        assert await log_in(http, base, "wrong") == (401, "")
        status, cookie = await log_in(http, base)
        assert status == 200
        assert {"HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=43200"} <= set(cookie.split("; "))
        assert "Secure" not in cookie
        assert TOKEN not in cookie
        assert (await answer(http, "GET", f"{base}/view"))[0] == 200
        https = {"Origin": base.replace("http:", "https:")}
        async with http.post(f"{base}/login", json={"token": TOKEN}, headers=https) as response:
            assert "Secure" in response.headers["Set-Cookie"]


async def test_acts_by_cookie(http: ClientSession, source: Pretended) -> None:
    """Not from another page, not without the session's own header, and not after the log-out."""
    async with served(source, settings(token=TOKEN)) as base:
        await log_in(http, base)
        _, standing = await answer(http, "GET", f"{base}/session")
        csrf = {"X-CSRF-Token": standing["csrf"]}
        url = f"{base}/actions/drain"
        for headers in ({}, {"Origin": base}, csrf, csrf | {"Origin": "https://evil.example"}):
            assert (await answer(http, "POST", url, json=DRAIN, headers=headers))[0] == 403
        assert source.done == []
        assert (await answer(http, "POST", url, json=DRAIN, headers=csrf | {"Origin": base}))[0] == 200
        assert len(source.done) == 1
        assert (await answer(http, "POST", f"{base}/logout", headers={"Origin": base}))[0] == 200
        assert (await answer(http, "GET", f"{base}/view"))[0] == 401


async def test_guessing_is_told_to_wait(http: ClientSession, source: Pretended) -> None:
    """After some wrong tokens the answer is 429, and when to come back."""
    async with served(source, settings(token=TOKEN)) as base:
        wrong = {"Authorization": "Bearer wrong"}
        told = [(await answer(http, "GET", f"{base}/view", headers=wrong))[0] for _ in range(12)]
        assert told == [401] * 10 + [429] * 2
        async with http.get(f"{base}/view", headers=BEARER) as response:
            assert response.status == 429
            assert 0 < int(response.headers["Retry-After"]) <= 6
