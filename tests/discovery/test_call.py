import asyncio
import socket
import zlib
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from yarl import URL

from tcpgw.discovery.call import MAX_ANSWER, Caller, Reply
from tcpgw.errors import AnswerError, DiscoveryError
from tests.support.serving import Serve, serving


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    async with serving("/path?query=1") as start:
        yield start


async def get(url: URL, timeout: float = 5) -> Reply:  # noqa: ASYNC109
    caller = Caller(timeout)
    try:
        return await caller.call("GET", url, setting="cloud.x.endpoint")
    finally:
        await caller.close()


async def test_whole_answer_is_returned(serve: Serve) -> None:
    """Status, headers and body come back, whatever the status."""

    async def handler(_request: web.Request) -> web.Response:
        return web.Response(status=418, headers={"X-A": "b"}, body=b"tea")

    reply = await get(await serve(handler))
    assert (reply.status, reply.headers["x-a"], reply.body) == (418, "b", b"tea")


async def test_redirect_is_not_followed(serve: Serve) -> None:
    """A redirect is handed back, so credentials go nowhere else."""
    seen: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.path)
        return web.Response(status=302, headers={"Location": "/elsewhere"})

    assert (await get(await serve(handler))).status == 302
    assert seen == ["/path"]


async def test_cookies_are_not_kept(serve: Serve) -> None:
    """A call carries nothing of the one before it."""
    cookies: list[str | None] = []

    async def handler(request: web.Request) -> web.Response:
        cookies.append(request.headers.get("Cookie"))
        return web.Response(headers={"Set-Cookie": "a=b"})

    url, caller = (await serve(handler)).with_host("localhost"), Caller(5)
    await caller.call("GET", url, setting="")
    await caller.call("GET", url, setting="")
    await caller.close()
    assert cookies == [None, None]


@pytest.mark.parametrize("body", [b"x" * (MAX_ANSWER + 1), zlib.compress(b"x" * (MAX_ANSWER + 1))])
async def test_too_big_an_answer_is_refused(serve: Serve, body: bytes) -> None:
    """More than the limit is not kept in memory, compressed or not."""

    async def handler(_request: web.Request) -> web.Response:
        packed = {"Content-Encoding": "deflate"} if len(body) < MAX_ANSWER else {}
        return web.Response(body=body, headers=packed)

    with pytest.raises(AnswerError, match="more than 4 MiB"):
        await get(await serve(handler))


async def test_silence_ends_with_the_timeout(serve: Serve) -> None:
    """A server that does not answer is given up, with the key path to look at."""

    async def handler(_request: web.Request) -> web.Response:
        await asyncio.sleep(3600)
        return web.Response()

    url = await serve(handler)
    with pytest.raises(DiscoveryError, match=r"no whole answer within 0.1 s; check cloud\.x\.endpoint"):
        await get(url, 0.1)


async def test_slow_drip_ends_with_the_timeout(serve: Serve) -> None:
    """The timeout is for the whole answer, so a byte now and then does not prolong it."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x")
            await asyncio.sleep(0.02)

    url = await serve(handler)
    async with asyncio.timeout(5):
        with pytest.raises(DiscoveryError, match=r"within 0\.2 s"):
            await get(url, 0.2)


async def test_refused_connection_says_where() -> None:
    """Where nothing listens, the message names the address, the setting and what to check."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = URL(f"http://127.0.0.1:{free.getsockname()[1]}/v1?secret=1")
        with pytest.raises(DiscoveryError) as caught:
            await get(url)
    assert str(caught.value).startswith(f"GET http://127.0.0.1:{url.port}/v1: ")
    assert "check cloud.x.endpoint" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("host", ["a..b", "x" * 64])
async def test_host_that_is_no_name_is_a_discovery_error(host: str) -> None:
    """A host that the network's encoding refuses is told as any other that cannot be reached."""
    with pytest.raises(DiscoveryError, match=r"check cloud\.x\.endpoint"):
        await get(URL(f"http://{host}/v1", encoded=True))


async def test_broken_answer_is_a_discovery_error(serve: Serve) -> None:
    """A connection that ends within the answer is told as such."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"x")
        assert request.transport is not None
        request.transport.abort()
        return response

    with pytest.raises(DiscoveryError):
        await get(await serve(handler))


async def test_close_is_idempotent_and_not_final(serve: Serve) -> None:
    """Closing twice does no harm, and a later call opens connections anew."""

    async def handler(_request: web.Request) -> web.Response:
        return web.Response()

    url, caller = await serve(handler), Caller(5)
    await caller.close()
    for _ in range(2):
        assert (await caller.call("GET", url, setting="")).status == 200
        await caller.close()
        await caller.close()
