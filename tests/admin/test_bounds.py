"""The admin server on real sockets: streams of events, slow clients, too many of them, its end."""

import asyncio
import json
import socket
import time
from typing import Any

import pytest
from aiohttp import ClientError, ClientSession

from tcpgw.admin import connections, events, handlers, server
from tests.support.admin import (
    TOKEN,
    Pretended,
    answer,
    gone,
    log_in,
    raw,
    served,
    settings,
)

# ---- events ----


async def test_events_bring_each_view(http: ClientSession, source: Pretended) -> None:
    """The newest at once, and then each new one."""
    async with served(source) as base, http.get(f"{base}/events") as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        for at in (source.shown, {"at": 2}, {"at": 3}):
            source.shown = at
            assert await next_view(response.content) == at


async def next_view(content: Any) -> Any:
    async with asyncio.timeout(5):
        while not (line := await content.readline()).startswith(b"data: "):
            assert line
    return json.loads(line.removeprefix(b"data: "))


async def test_a_stream_without_news_says_that_it_lives(
    http: ClientSession, source: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first view and between views: comments."""
    monkeypatch.setattr(events, "_QUIET", 1.0)
    source.shown = None
    async with served(source) as base, http.get(f"{base}/events") as response:
        assert b": still here" in await asyncio.wait_for(response.content.readuntil(b": still here\n"), 5)


async def test_subscribers_are_bounded(
    http: ClientSession, source: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the bound they are told to come again, and one that leaves makes room."""
    monkeypatch.setattr(events, "MOST", 2)
    async with served(source) as base:
        first, second = await http.get(f"{base}/events"), await http.get(f"{base}/events")
        async with http.get(f"{base}/events") as third:
            assert third.status == 503
            assert third.headers["Retry-After"] == "5"
        first.close()
        async with asyncio.timeout(5):
            while (again := await http.get(f"{base}/events")).status != 200:
                source.shown = {"at": time.time()}
        again.close()
        second.close()


async def test_a_slow_subscriber_is_cut_off(
    http: ClientSession, source: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that takes nothing holds a bounded part of memory for a bounded time, and nobody up."""
    monkeypatch.setattr(events, "_SLOWEST", 0.2)
    monkeypatch.setattr(events, "_EVERY", 0.01)
    monkeypatch.setattr(source, "view", lambda: {"at": time.time(), "much": "x" * 400_000})
    async with served(source) as base:
        reader, writer = await raw(base, "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with http.get(f"{base}/events") as other:
            for _ in range(3):
                await next_view_of(other.content)
            await asyncio.sleep(0.5)
            assert await gone(reader, writer)
            await next_view_of(other.content)


async def next_view_of(content: Any) -> None:
    async with asyncio.timeout(5):
        await content.readuntil(b"\n\n")


async def test_a_stream_ends_with_its_session(http: ClientSession, source: Pretended) -> None:
    """Who logged out sees nothing more."""
    async with served(source, settings(token=TOKEN)) as base:
        await log_in(http, base)
        async with http.get(f"{base}/events") as response:
            await next_view(response.content)
            await answer(http, "POST", f"{base}/logout", headers={"Origin": base})
            assert b"data" not in await asyncio.wait_for(response.content.read(), 5)


async def test_a_stream_that_cannot_go_on(http: ClientSession, source: Pretended) -> None:
    """It ends without anything that looks like a view or another answer; the next one is served."""
    async with served(source) as base:
        async with http.get(f"{base}/events") as response:
            await next_view(response.content)
            source.shown = {"no JSON": object()}
            with pytest.raises(ClientError):
                await response.content.read()
        source.shown = {"at": 1}
        assert (await answer(http, "GET", f"{base}/view"))[0] == 200


# ---- bounds ----


async def test_a_slow_head_is_cut_off(source: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who sends nothing, or byte by byte, is let go; the first request and the next."""
    monkeypatch.setattr(server, "_IDLE", 0.3)
    async with served(source) as base:
        for text in ("", "GET /healthz HTTP/1.1\r\nX", "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\nGET /heal"):
            began = time.monotonic()
            reader, writer = await raw(base, text)
            dripping = asyncio.create_task(drip(writer))
            await gone(reader, writer)
            dripping.cancel()
            assert time.monotonic() - began < 3


async def drip(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"y")
        await asyncio.sleep(0.05)


async def test_a_slow_body_is_cut_off(source: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that does not come is told of, and not waited for."""
    monkeypatch.setattr(handlers, "_BODY", 0.1)
    async with served(source, settings(token=TOKEN)) as base:
        head = f"POST /actions/drain HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
        reader, writer = await raw(base, f"{head}Content-Length: 100\r\n\r\n{{")
        assert b" 408 " in await gone(reader, writer)


async def test_a_slow_reader_is_cut_off(source: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that nobody takes is not kept."""
    monkeypatch.setattr(server, "_SLOWEST", 0.2)
    source.shown = {"much": "x" * 20_000_000}
    async with served(source) as base:
        reader, writer = await raw(base, "GET /view HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await asyncio.sleep(0.6)
        assert len(await gone(reader, writer)) < 20_000_000


async def test_nonsense_is_refused(
    http: ClientSession, source: Pretended, capfd: pytest.CaptureFixture[str]
) -> None:
    """Heads that are too long or no HTTP end their connection, without a line in the log."""
    async with served(source) as base:
        for text in (
            "\x16\x03\x01\r\n\r\n",
            f"GET /{'a' * 9000} HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\n: \r\n\r\n",
        ):
            assert b" 400 " in await gone(*await raw(base, text))
        assert (await answer(http, "GET", f"{base}/healthz"))[0] == 200
    assert capfd.readouterr().err == ""


async def test_who_only_holds_connections_keeps_nobody_out(
    http: ClientSession, source: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest that has asked for nothing makes room."""
    monkeypatch.setattr(connections, "MOST", 3)
    async with served(source) as base:
        held = [await raw(base, "GET ") for _ in range(3)]
        await asyncio.sleep(0.1)
        assert (await answer(http, "GET", f"{base}/healthz"))[0] == 200
        assert await gone(*held[0]) == b""
        for _, writer in held[1:]:
            assert not writer.is_closing()
            writer.close()


async def test_who_had_an_answer_stays_before_who_had_none(
    source: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it is connected already; among those that had one, who asked last stays longest."""
    monkeypatch.setattr(connections, "MOST", 3)
    async with served(source) as base:
        scraper, page = [await raw(base, PROBE) for _ in range(2)]
        for reader, _ in (scraper, page):
            await answered(reader)
        silent, last = [await raw(base, "") for _ in range(2)]
        assert await gone(*silent) == b""
        last[1].write(PROBE.encode())
        await answered(last[0])
        scraper[1].write(PROBE.encode())
        await answered(scraper[0])
        _, another = await raw(base, "")
        assert await gone(*page) == b""
        for reader, writer in (scraper, last):
            writer.write(PROBE.encode())
            await answered(reader)
            writer.close()
        another.close()


PROBE = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def answered(reader: asyncio.StreamReader) -> None:
    async with asyncio.timeout(5):
        assert (await reader.readuntil(b"}")).endswith(b'{"status":"ok"}')


async def test_who_waits_for_an_answer_stays(
    http: ClientSession, source: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all do, one too many is told so and let go; when one of the others ends there is room again."""
    monkeypatch.setattr(connections, "MOST", 2)
    async with served(source) as base:
        streams = [await http.get(f"{base}/events") for _ in range(2)]
        said = await gone(*await raw(base, "GET /healthz HTTP/1.1\r\n\r\n"))
        assert said.startswith(b"HTTP/1.1 503 ")
        assert json.loads(said.partition(b"\r\n\r\n")[2])["error"].startswith("too many connections")
        for stream in streams:
            await next_view(stream.content)
            stream.close()
        await asyncio.sleep(0.1)
        assert (await answer(http, "GET", f"{base}/healthz"))[0] == 200


async def test_it_ends_at_once_with_subscribers(http: ClientSession, source: Pretended) -> None:
    """Within two seconds, whatever its clients do; their streams end as streams do."""
    async with served(source) as base:
        streams = [await http.get(f"{base}/events") for _ in range(5)]
        idle = await raw(base, "GET /ev")
        for stream in streams:
            await next_view(stream.content)
        began = time.monotonic()
    assert time.monotonic() - began < 2
    for stream in streams:
        await stream.content.read()
        stream.close()
    await gone(*idle)


async def test_its_end_does_not_wait_for_the_source(
    source: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question that is never answered, and a reader that takes nothing, hold nobody up."""

    async def never() -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(source, "status", never)
    source.shown = {"much": "x" * 20_000_000}
    async with served(source) as base:
        clients = [
            await raw(base, f"GET /{path} HTTP/1.1\r\nHost: localhost\r\n\r\n") for path in ("status", "view")
        ]
        await asyncio.sleep(0.2)
        began = time.monotonic()
    assert time.monotonic() - began < 2
    for reader, writer in clients:
        await gone(reader, writer)


async def test_a_socket_can_be_served_again(http: ClientSession, source: Pretended) -> None:
    """It stays the caller's: another server, of a successor, takes who comes meanwhile."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}/healthz"
        for _ in range(2):
            waiting = asyncio.create_task(answer(http, "GET", url))
            await asyncio.sleep(0.05)
            async with server.AdminServer(settings(), source).serving(sock):
                assert (await waiting)[0] == 200
