import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from yarl import URL

from tcpgw.config.schema import PasswordAuth
from tcpgw.demo.cloud import Cloud
from tcpgw.discovery.call import Caller
from tcpgw.discovery.iam import PasswordToken, StaticToken
from tcpgw.errors import AnswerError, CredentialError, DiscoveryError

URL_ = URL("http://unused.invalid/")


@pytest.fixture
async def cloud() -> AsyncIterator[Cloud]:
    async with Cloud({"svc": ["10.0.0.1:80"]}) as running:
        yield running


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    made = Caller(5)
    yield made
    await made.close()


def provider(
    cloud: Cloud,
    caller: Caller,
    project: str = "",
    clock: Callable[[], float] = time.monotonic,
    **changes: Any,
) -> PasswordToken:
    table = {
        "type": "password",
        "iam": cloud.url,
        "domain": cloud.domain,
        "user": cloud.user,
        "password": cloud.password,
    }
    auth = PasswordAuth.model_validate(table | changes)
    return PasswordToken("cloud.x", auth, project or cloud.project_id, caller, clock)


async def status_of(cloud: Cloud, caller: Caller, headers: dict[str, str]) -> int:
    url = URL(f"{cloud.url}/v1/{cloud.project_id}/services/svc/predict/endpoints?type=host_endpoints")
    return (await caller.call("GET", url, setting="", headers=headers)).status


async def test_password_buys_a_token_that_the_cloud_takes(cloud: Cloud, caller: Caller) -> None:
    """User, domain, password and project give a token, which then is kept."""
    token = provider(cloud, caller)
    headers = await token.headers(URL_)
    assert await status_of(cloud, caller, headers) == 200
    assert await token.headers(URL_) == headers
    assert cloud.token_calls == 1


async def test_concurrent_callers_share_one_request(cloud: Cloud, caller: Caller) -> None:
    """All services of a user start with one token request, even if one of them is stopped meanwhile."""
    token = provider(cloud, caller)
    tasks = [asyncio.create_task(token.headers(URL_)) for _ in range(10)]
    await asyncio.sleep(0)
    tasks[5].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    tokens = {tuple(result.items()) for result in results if isinstance(result, dict)}
    assert len(tokens) == 1
    assert cloud.token_calls == 1


async def test_tokens_are_renewed_before_their_end(caller: Caller) -> None:
    """The life that `expires_at` tells is honoured, even by a gateway whose clock is years off."""
    now = 1_700_000_000.0
    async with Cloud({"svc": ["10.0.0.1:80"]}, token_life=600, clock=lambda: now) as cloud:
        token = provider(cloud, caller, clock=lambda: now)
        first = await token.headers(URL_)
        now += 399
        assert await token.headers(URL_) == first
        now += 2
        second = await token.headers(URL_)
        assert second != first
        now += 200
        assert await status_of(cloud, caller, first) == 401
        assert await status_of(cloud, caller, second) == 200


async def test_refused_token_is_replaced(cloud: Cloud, caller: Caller) -> None:
    """After a refusal the next headers hold another token."""
    token = provider(cloud, caller)
    first = await token.headers(URL_)
    assert token.refused(first)
    assert await token.headers(URL_) != first


@pytest.mark.parametrize("wrong", ["user", "password", "domain"])
async def test_wrong_credentials_name_their_settings(cloud: Cloud, caller: Caller, wrong: str) -> None:
    """A wrong user, password or domain is the operator's to mend, told without the password, asked once."""
    changes: dict[str, Any] = {wrong: "not-the-right-one"}
    token = provider(cloud, caller, **changes)
    for _ in range(3):
        with pytest.raises(CredentialError) as caught:
            await token.headers(URL_)
        assert "The username or password is wrong" in str(caught.value)
        assert "check user, password and domain of cloud.x.auth" in str(caught.value)
        assert cloud.password not in str(caught.value)
    assert cloud.token_calls == 1


async def test_wrong_project_is_named(cloud: Cloud, caller: Caller) -> None:
    """A project that IAM does not know is a matter of the credentials too."""
    with pytest.raises(CredentialError, match=r"cloud\.x\.project_id"):
        await provider(cloud, caller, project="nope").headers(URL_)


async def test_iam_that_is_down_is_not_the_operators_fault(caller: Caller) -> None:
    """An IAM that cannot be reached is a failure to retry, not a wrong credential."""
    async with Cloud() as cloud:
        token = provider(cloud, caller)
    with pytest.raises(DiscoveryError, match=r"check cloud\.x\.auth\.iam") as caught:
        await token.headers(URL_)
    assert not isinstance(caught.value, CredentialError)


@asynccontextmanager
async def other_server(headers: dict[str, str], body: str) -> AsyncIterator[str]:
    """A server that answers every request with 200, these headers and this body."""

    async def handler(_request: web.Request) -> web.Response:
        return web.Response(headers=headers, text=body)

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_address_that_is_not_iam_is_told(cloud: Cloud, caller: Caller) -> None:
    """Another server's 200 without a token is an error that names the setting."""
    async with other_server({}, "hello") as url:
        with pytest.raises(AnswerError, match=r"without X-Subject-Token; check that cloud\.x\.auth\.iam"):
            await provider(cloud, caller, iam=url).headers(URL_)


@pytest.mark.parametrize("body", ["", "[]", '{"token": 7}', '{"token": {"expires_at": "x"}}', "[" * 99_999])
async def test_token_whose_end_is_unknown_is_used(cloud: Cloud, caller: Caller, body: str) -> None:
    """A token is taken even where the body does not say when it ends, and then kept for less than an hour."""
    now = 0.0
    async with other_server({"X-Subject-Token": "MIIx"}, body) as url:
        token = provider(cloud, caller, clock=lambda: now, iam=url)
        assert await token.headers(URL_) == {"X-Auth-Token": "MIIx"}
    now = 2399.0
    assert await token.headers(URL_) == {"X-Auth-Token": "MIIx"}
    now = 3600.0
    with pytest.raises(DiscoveryError):
        await token.headers(URL_)


async def test_static_token_is_sent_as_it_is() -> None:
    """A token made by hand is used for every call and cannot be renewed."""
    token = StaticToken("cloud.x", "MIIabc")
    assert await token.headers(URL_) == {"X-Auth-Token": "MIIabc"}
    assert not token.refused({"X-Auth-Token": "MIIabc"})


@pytest.mark.parametrize("text", ["MII\nabc", "MII abc\r", "MIIä", "MII\0"])
def test_static_token_with_line_breaks_is_refused(text: str) -> None:
    """A token that would break the HTTP header is refused at once, without being shown."""
    with pytest.raises(CredentialError, match=r"cloud\.x\.auth\.token") as caught:
        StaticToken("cloud.x", text)
    assert "MII" not in str(caught.value)
