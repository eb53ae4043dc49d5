"""Receivers of every mood: what they take, what is tried again, and that nobody waits for them."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs
from yarl import URL

from tcpgw.alerts.senders import MOST, Sender
from tests.support.processes import free_port
from tests.support.serving import Serve, serving
from tests.support.streams import in_time, until

SECRET = "hush-4f1c"


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    async with serving() as start:
        yield start


class Time:
    """A clock that sleeping moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def sending(
    url: URL | str, time: Time | None = None, headers: dict[str, str] | None = None, **terms: float
) -> AsyncIterator[Sender]:
    time = time or Time()
    whole: dict[str, Any] = {"timeout": 5.0, "lasting": 900.0, **terms}
    sender = Sender("r", str(url), headers or {}, clock=lambda: time.now, sleep=time.sleep, **whole)
    task = asyncio.create_task(sender.run())
    try:
        yield sender
    finally:
        task.cancel()
        async with asyncio.timeout(2):
            await asyncio.gather(task, return_exceptions=True)


class Inbox:
    """A receiver that answers with these statuses in turn, the last one for ever."""

    def __init__(self, *statuses: int, **headers: str) -> None:
        self.got: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self._statuses = list(statuses) or [200]
        self._more = headers

    async def handle(self, request: web.Request) -> web.Response:
        self.got.append(json.loads(await request.read()))
        self.headers.append(dict(request.headers) | {"path": request.raw_path, "method": request.method})
        status = self._statuses.pop(0) if len(self._statuses) > 1 else self._statuses[0]
        return web.Response(status=status, headers={k.replace("_", "-"): v for k, v in self._more.items()})


async def test_messages_arrive_in_order(serve: Serve) -> None:
    """As JSON by POST, with the receiver's headers, at the URL as it was written."""
    inbox = Inbox()
    url = f"{await serve(inbox.handle)}hook%2Fx?key=a%20b"
    async with sending(url, headers={"X-Key": "k", "Authorization": "Bearer t"}) as sender:
        for number in range(3):
            sender.send(b"%d" % number)
        await until(lambda: sender.sent == 3)
    assert inbox.got == [0, 1, 2]
    (first, *_) = inbox.headers
    assert (first["method"], first["path"]) == ("POST", "/hook%2Fx?key=a%20b")
    assert (first["Content-Type"], first["X-Key"], first["Authorization"]) == (
        "application/json",
        "k",
        "Bearer t",
    )
    assert first["User-Agent"].startswith("tcpgw/")


@pytest.mark.parametrize("status", [500, 503, 429, 408])
async def test_what_may_pass_is_tried_again(serve: Serve, status: int) -> None:
    """Further and further apart; then the next message has its turn."""
    inbox, time = Inbox(status, status, status, 200), Time()
    with capture_logs() as lines:
        async with sending(await serve(inbox.handle), time) as sender:
            sender.send(b"1")
            sender.send(b"2")
            await until(lambda: sender.sent == 2)
    assert inbox.got == [1, 1, 1, 1, 2]
    assert [0.5 <= time.slept[0] <= 1, 1 <= time.slept[1] <= 2, 2 <= time.slept[2] <= 4] == [True] * 3
    assert (sender.failed, sender.dropped, sender.error) == (3, 0, "")
    assert [line["event"] for line in lines] == ["alert_not_sent_yet", "alert_receiver_works"]


@pytest.mark.parametrize("status", [400, 401, 404, 413, 302])
async def test_what_will_not_pass_is_not(serve: Serve, status: int) -> None:
    """A wrong URL or credential gets no better by trying; and a redirect leads nowhere."""
    inbox = Inbox(status, 200, Location="/elsewhere")
    with capture_logs() as lines:
        async with sending(await serve(inbox.handle)) as sender:
            sender.send(b"1")
            sender.send(b"2")
            await until(lambda: sender.sent == 1)
    assert inbox.got == [1, 2]
    assert [headers["path"] for headers in inbox.headers] == ["/", "/"]
    assert (sender.failed, sender.dropped) == (1, 1)
    assert lines[0]["event"] == "alert_not_sent"
    assert f"status {status}" in lines[0]["error"]
    assert "[alerts]" in lines[0]["hint"]


async def test_a_receiver_may_say_when(serve: Serve) -> None:
    """Up to a minute."""
    time = Time()
    async with sending(await serve(Inbox(429, 200, Retry_After="30").handle), time) as sender:
        sender.send(b"1")
        await until(lambda: sender.sent)
    assert time.slept == [30]


async def test_one_that_refuses_is_given_up() -> None:
    """After some tries, or when the news is old; what comes then is tried anew."""
    nobody = f"http://127.0.0.1:{free_port()}/{SECRET}"
    time = Time()
    with capture_logs() as lines:
        async with sending(nobody, time) as sender:
            sender.send(b"1")
            await until(lambda: sender.dropped)
    assert sender.failed == 10
    assert 90 < sum(time.slept) < 900
    assert max(time.slept) <= 60
    assert sender.error == "Connection refused"
    # A line a minute.
    assert 3 <= len(lines) <= 5
    time = Time()
    async with sending(nobody, time, lasting=10) as sender:
        sender.send(b"1")
        await until(lambda: sender.dropped)
    assert sum(time.slept) <= 10


async def test_one_that_hangs_is_given_up(serve: Serve) -> None:
    """After the time-out, and it holds up neither who sends nor its own end."""

    async def hang(_request: web.Request) -> web.Response:
        await asyncio.sleep(3600)
        return web.Response()

    url = await serve(hang)
    async with sending(url, timeout=0.05, lasting=0.01) as sender:
        sender.send(b"1")
        await until(lambda: sender.dropped)
        assert sender.error == "no answer within 0.05 s"
    async with sending(url, timeout=3600) as sender:
        sender.send(b"1")
        await until(lambda: not sender.waiting)


async def test_what_waits_is_bounded() -> None:
    """The oldest goes first."""
    sender = Sender("r", "http://127.0.0.1:1/", {}, timeout=1, lasting=1)
    for number in range(MOST + 5):
        sender.send(b"%d" % number)
    assert (sender.waiting, sender.dropped) == (MOST, 5)
    await in_time(asyncio.sleep(0))


async def test_nonsense_for_an_answer_is_a_failure() -> None:
    """And is tried again."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"\0\1\2 nonsense\r\n\r\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, sending(f"http://127.0.0.1:{port}/{SECRET}?key={SECRET}", lasting=0.1) as sender:
        sender.send(b"1")
        await until(lambda: sender.dropped)
    assert sender.failed
    assert SECRET not in sender.error


@pytest.mark.parametrize("host", ["127.0.0.1:1", "no-such-host.invalid", "a..b"])
async def test_no_line_holds_what_may_be_a_secret(host: str) -> None:
    """Of the URL only where it is; of headers nothing."""
    with capture_logs() as lines:
        async with sending(
            f"http://{host}/{SECRET}?key={SECRET}", headers={"X-Key": SECRET}, lasting=0.1
        ) as sender:
            sender.send(b"1")
            await until(lambda: sender.dropped)
    assert lines
    assert SECRET not in repr(lines)
    assert SECRET not in sender.error
    assert lines[0]["url"] == f"http://{host}"


async def test_what_waits_is_sent_as_it_is_changed(serve: Serve) -> None:
    """The message that is being tried as well; what was counted stays."""
    inbox = Inbox()
    right = await serve(inbox.handle)

    async def refuse(_: web.Request) -> web.Response:
        sender.change(f"{right}new", {"X-Key": "n"}, timeout=9)
        return web.Response(status=500)

    async with sending(await serve(refuse), headers={"X-Key": "o"}) as sender:
        sender.send(b"1")
        sender.send(b"2")
        await until(lambda: sender.sent == 2)
    assert (inbox.got, sender.failed, sender.dropped) == ([1, 2], 1, 0)
    assert {(one["path"], one["X-Key"]) for one in inbox.headers} == {("/new", "n")}


async def test_a_proxy_of_the_environment_is_not_asked(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would see the secrets."""
    proxy = Inbox(500)
    monkeypatch.setenv("HTTP_PROXY", str(await serve(proxy.handle)))
    inbox = Inbox()
    async with sending(await serve(inbox.handle)) as sender:
        sender.send(b"1")
        await until(lambda: sender.sent)
    assert (inbox.got, proxy.got) == ([1], [])
