"""A set of keys behind a URL, against a real HTTP server."""

import asyncio
import contextlib
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import structlog
from aiohttp import web

from tcpgw.access.jwks import AT_MOST_EVERY, REFRESH, JwksUrl
from tcpgw.access.jwt import MAX_SET, KeySetError
from tests.support.tokens import jwks, public_ec, public_rsa

Answer = Callable[[], Awaitable[web.StreamResponse]]


class Issuer:
    """Answers with `answer`, and counts."""

    def __init__(self) -> None:
        self.asked = 0
        self.was_asked = asyncio.Event()
        self.url = ""
        self.answer: Answer = self.of(jwks(public_rsa()))

    @staticmethod
    def of(body: str | bytes, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
        async def answer() -> web.Response:
            data = body if isinstance(body, bytes) else body.encode()
            return web.Response(body=data, status=status, headers=headers)

        return answer

    async def handle(self, _request: web.Request) -> web.StreamResponse:
        self.asked += 1
        self.was_asked.set()
        return await self.answer()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    made = Issuer()
    app = web.Application()
    app.router.add_get("/jwks", made.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/jwks"
    yield made
    await runner.cleanup()


@pytest.fixture
async def clock() -> Clock:
    return Clock()


@pytest.fixture
async def source(issuer: Issuer, clock: Clock) -> AsyncIterator[JwksUrl]:
    made = JwksUrl(issuer.url, clock=clock)
    yield made
    await made.close()


async def failure(source: JwksUrl) -> str:
    with pytest.raises(KeySetError) as caught:
        await source.fetch()
    return str(caught.value)


async def test_fetch(source: JwksUrl) -> None:
    """The set is there after the first answer, and not before."""
    assert source.keys is None
    keys = await source.fetch()
    assert set(keys.keys) == {("RS256", "r1")}
    assert source.keys is keys


async def test_an_equal_answer_changes_nothing(source: JwksUrl, issuer: Issuer) -> None:
    """The same set again is the same object, so whoever built on it need not build anew; another is not."""
    first = await source.fetch()
    assert await source.fetch() is first
    issuer.answer = issuer.of(jwks(public_ec()))
    assert set((await source.fetch()).keys) == {("ES256", "e1")}


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Issuer.of("gone", 404), "answered 404; is this the address of the issuer's keys"),
        (Issuer.of("", 302, {"Location": "/elsewhere"}), "answered 302"),
        (Issuer.of("<html>"), "not a set of keys"),
        (Issuer.of(jwks(public_rsa(d="AA"))), "is a private key"),
        (Issuer.of(b" " * (MAX_SET + 1)), "more than 1 MiB"),
        (
            Issuer.of(zlib.compress(b" " * (MAX_SET + 1)), 200, {"Content-Encoding": "deflate"}),
            "more than 1 MiB",
        ),
    ],
)
async def test_the_last_good_set_stays(source: JwksUrl, issuer: Issuer, answer: Answer, told: str) -> None:
    """A bad answer is told with its address and takes nothing away; a good one is taken again."""
    good = await source.fetch()
    issuer.answer = answer
    error = await failure(source)
    assert told in error
    assert error.startswith(issuer.url)
    assert source.keys is good
    issuer.answer = issuer.of(jwks(public_ec()))
    assert await source.fetch() is not good


async def test_nobody_listens() -> None:
    """An address where nothing listens is told as such."""
    other = JwksUrl("http://127.0.0.1:1/jwks")
    assert "check the URL, and this machine's network and DNS" in await failure(other)
    await other.close()


async def test_a_slow_issuer(issuer: Issuer) -> None:
    """An answer that does not come in time is given up."""
    issuer.answer = asyncio.Event().wait  # type: ignore[assignment]
    source = JwksUrl(issuer.url, timeout=0.05)
    assert "no whole answer within 0.05 s" in await failure(source)
    await source.close()


async def test_refresh_has_a_rate(source: JwksUrl, issuer: Issuer, clock: Clock) -> None:
    """However many unknown keys are named, the issuer is asked once in 30 s."""
    for _ in range(3):
        assert await source.refresh() is source.keys
    assert issuer.asked == 1
    clock.now = AT_MOST_EVERY - 0.1
    await source.refresh()
    assert issuer.asked == 1
    clock.now = AT_MOST_EVERY
    issuer.answer = issuer.of(jwks(public_rsa(), public_rsa("r2")))
    keys = await source.refresh()
    assert keys is not None
    assert ("RS256", "r2") in keys.keys
    assert issuer.asked == 2


async def test_a_failed_refresh_counts_too(source: JwksUrl, issuer: Issuer, clock: Clock) -> None:
    """A refresh that fails gives what is in force, and is not tried again at once."""
    good = await source.fetch()
    issuer.answer, clock.now = issuer.of("", 500), 100.0
    assert await source.refresh() is good
    assert await source.refresh() is good
    assert issuer.asked == 2


async def test_all_wait_for_one_answer(source: JwksUrl, issuer: Issuer) -> None:
    """Those who ask while a question is under way get its answer, though the first of them has gone."""
    gate, body = asyncio.Event(), issuer.answer

    async def slowly() -> web.StreamResponse:
        await gate.wait()
        return await body()

    issuer.answer = slowly
    first = asyncio.create_task(source.refresh())
    others = [asyncio.create_task(source.refresh()) for _ in range(5)]
    others.append(asyncio.create_task(source.fetch()))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    gate.set()
    answers = await asyncio.gather(*others)
    assert issuer.asked == 1
    assert all(keys is source.keys for keys in answers)
    assert source.keys is not None


async def test_close_ends_what_is_under_way(source: JwksUrl, issuer: Issuer) -> None:
    """Who waits at the end is told so; the end may come twice, and nothing is left open."""
    issuer.answer = asyncio.Event().wait  # type: ignore[assignment]
    waiting = asyncio.create_task(source.fetch())
    await issuer.was_asked.wait()
    await source.close()
    await source.close()
    with pytest.raises(KeySetError, match="closed while it was asked"):
        await waiting


async def test_run_asks_each_hour_and_sooner_after_a_failure(source: JwksUrl, issuer: Issuer) -> None:
    """The set is kept up to date without anybody asking."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        issuer.answer = issuer.of("", 500) if len(pauses) == 1 else issuer.of(jwks(public_ec()))
        if len(pauses) == 3:
            raise asyncio.CancelledError

    with contextlib.suppress(asyncio.CancelledError):
        await source.run(sleep)
    assert pauses == [REFRESH, AT_MOST_EVERY, REFRESH]
    assert source.keys is not None
    assert set(source.keys.keys) == {("ES256", "e1")}


async def test_a_trouble_is_logged_once(issuer: Issuer) -> None:
    """A trouble is one line at its beginning and one at its end, and a new set one."""
    with structlog.testing.capture_logs() as lines:
        source = JwksUrl(issuer.url)
        for answer in (
            "",
            "x",
            jwks(public_rsa()),
            jwks(public_rsa()),
            jwks(public_ec(), {"kty": "oct"}),
            "[",
        ):
            issuer.answer = issuer.of(answer)
            with contextlib.suppress(KeySetError):
                await source.fetch()
        await source.close()
    assert all(line["jwks"] == issuer.url for line in lines)
    told: list[Any] = [(line["event"], line.get("in_force"), line.get("keys")) for line in lines]
    assert told == [
        ("jwks_failed", False, None),
        ("jwks_read", None, 1),
        ("jwks_recovered", None, None),
        ("jwks_read", None, 1),
        ("jwks_failed", True, None),
    ]
    assert lines[3]["ignored"] == ["key 1: is neither RSA, with n and e, nor EC on P-256, with x and y"]


@pytest.mark.parametrize(
    "url",
    ["https://idp.example.com/jwks", "http://localhost:80/x", "http://127.9.9.9/", "http://[::1]:8080/x"],
)
async def test_safe_addresses(url: str) -> None:
    """Over https, or without leaving this machine; and nothing is asked before somebody wants it."""
    source = JwksUrl(url)
    assert source.keys is None
    await source.close()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://idp.example.com/jwks", "http://idp.example.com: keys are taken over https only"),
        ("http://10.0.0.1/jwks", "https only"),
        ("http://localhost.example.com/jwks", "https only"),
        ("ftp://localhost/jwks", "https only"),
        ("/etc/jwks.json", "must be a URL"),
        ("http://[", "must be a URL"),
        ("", "must be a URL"),
    ],
)
def test_unsafe_addresses(url: str, told: str) -> None:
    """Where somebody on the way could answer, nothing is asked."""
    with pytest.raises(KeySetError, match=told):
        JwksUrl(url)
