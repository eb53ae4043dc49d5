import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest

from tcpgw.config.schema import PRIVATE_NETWORKS
from tcpgw.demo.cloud import SHAPES, Cloud, Fault
from tcpgw.discovery.answer import parse
from tcpgw.endpoints import Endpoint

INSTANCES = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:81"]


@pytest.fixture
async def cloud() -> AsyncIterator[Cloud]:
    async with Cloud({"svc": INSTANCES}) as running:
        yield running


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as made:
        yield made


def login(cloud: Cloud, **changes: str) -> dict[str, Any]:
    user = {"name": cloud.user, "password": cloud.password, "domain": {"name": cloud.domain}} | changes
    identity = {"methods": ["password"], "password": {"user": user}}
    return {"auth": {"identity": identity, "scope": {"project": {"id": cloud.project_id}}}}


async def token_of(cloud: Cloud, session: aiohttp.ClientSession) -> str:
    async with session.post(f"{cloud.url}/v3/auth/tokens?nocatalog=1", json=login(cloud)) as response:
        assert response.status == 201
        return response.headers["X-Subject-Token"]


async def ask(
    cloud: Cloud,
    session: aiohttp.ClientSession,
    headers: dict[str, str],
    *,
    service: str = "svc",
    query: str = "?type=host_endpoints",
) -> tuple[int, Any]:
    url = f"{cloud.url}/v1/{cloud.project_id}/services/{service}/predict/endpoints{query}"
    async with session.get(url, headers=headers) as response:
        return response.status, await response.json(content_type=None)


async def test_token_has_its_end_in_the_body(cloud: Cloud, session: aiohttp.ClientSession) -> None:
    """IAM's answer has the token in the header and its life in the body."""
    cloud.token_life = 100
    async with session.post(f"{cloud.url}/v3/auth/tokens?nocatalog=1", json=login(cloud)) as response:
        token = (await response.json())["token"]
    begin, end = (datetime.fromisoformat(token[name]) for name in ("issued_at", "expires_at"))
    assert (end - begin).total_seconds() == pytest.approx(100, abs=0.01)
    assert cloud.token_calls == 1


@pytest.mark.parametrize(
    ("change", "status"),
    [({"password": "x"}, 401), ({"name": "x"}, 401), ({"domain": "x"}, 401)],
)
async def test_iam_checks_the_credentials(
    cloud: Cloud, session: aiohttp.ClientSession, change: dict[str, str], status: int
) -> None:
    """Nobody gets a token with a wrong name, password or domain."""
    async with session.post(f"{cloud.url}/v3/auth/tokens", json=login(cloud, **change)) as response:
        assert response.status == status
        assert (await response.json())["error"]["code"] == status


@pytest.mark.parametrize("body", ["", "[]", "{}", '{"auth": 7}'])
async def test_iam_refuses_other_requests(cloud: Cloud, session: aiohttp.ClientSession, body: str) -> None:
    """A body that is no login is a bad request."""
    async with session.post(f"{cloud.url}/v3/auth/tokens", data=body) as response:
        assert response.status == 400


async def test_endpoints_need_a_living_token(session: aiohttp.ClientSession) -> None:
    """Without a token, with a foreign one and after its end the call is refused."""
    now = 1000.0
    async with Cloud({"svc": INSTANCES}, token_life=60, clock=lambda: now) as cloud:
        good = {"X-Auth-Token": await token_of(cloud, session)}
        assert (await ask(cloud, session, good))[0] == 200
        assert (await ask(cloud, session, {}))[0] == 401
        assert (await ask(cloud, session, {"X-Auth-Token": "x"}))[0] == 401
        now = 1060.0
        assert (await ask(cloud, session, good))[0] == 401


async def test_services_change_at_run_time(cloud: Cloud, session: aiohttp.ClientSession) -> None:
    """What `services` holds is what the next call answers."""
    headers = {"X-Auth-Token": await token_of(cloud, session)}
    cloud.services["svc"] = [Endpoint("10.9.9.9", 1)]
    assert (await ask(cloud, session, headers))[1]["host_endpoints"] == [
        {"schema": "http", "ip": "10.9.9.9", "port": 1}
    ]
    assert (await ask(cloud, session, headers, service="other"))[0] == 404
    assert (await ask(cloud, session, headers, query=""))[0] == 400


@pytest.mark.parametrize("shape", sorted(SHAPES))
async def test_every_shape_can_be_read(cloud: Cloud, session: aiohttp.ClientSession, shape: str) -> None:
    """Each form of the answer holds the same instances for the parser."""
    cloud.shape = shape
    _, document = await ask(cloud, session, {"X-Auth-Token": await token_of(cloud, session)})
    members = parse(document, PRIVATE_NETWORKS).members
    assert [str(member.endpoint) for member in members] == INSTANCES


async def test_rate_limit_is_enforced_over_a_sliding_minute(session: aiohttp.ClientSession) -> None:
    """The limit-plus-first call in a minute gets APIG's refusal, whatever token it carries."""
    now = 0.0
    async with Cloud({"svc": INSTANCES}, calls_per_minute=3, clock=lambda: now) as cloud:
        statuses = []
        for moment in (0.0, 30.0, 59.0, 59.9, 60.0, 61.0):
            now = moment
            headers = {"X-Auth-Token": await token_of(cloud, session)}
            status, document = await ask(cloud, session, headers)
            statuses.append(status)
            if status == 429:
                assert document["error_code"] == "APIG.0308"
                assert "limit:3,time:1 minute" in document["error_msg"]
        assert statuses == [200, 200, 200, 429, 200, 429]
        assert cloud.throttled_calls == 2
        assert cloud.api_calls == 6


async def test_faults_can_be_switched(cloud: Cloud, session: aiohttp.ClientSession) -> None:
    """Statuses, an empty list and half a list come as ordered, and go again."""
    headers = {"X-Auth-Token": await token_of(cloud, session)}
    for status in (401, 403, 404, 429, 500):
        cloud.fault = status
        answered, document = await ask(cloud, session, headers)
        assert answered == status
        assert document["error_code"]
    cloud.fault = "empty"
    assert (await ask(cloud, session, headers))[1]["host_endpoints"] == []
    cloud.fault = "half"
    assert len((await ask(cloud, session, headers))[1]["host_endpoints"]) == 1
    cloud.fault = None
    assert len((await ask(cloud, session, headers))[1]["host_endpoints"]) == 3


async def test_hanging_calls_do_not_hold_up_the_end(session: aiohttp.ClientSession) -> None:
    """A cloud with calls that hang on purpose stops at once."""
    async with Cloud({"svc": INSTANCES}) as cloud:
        headers = {"X-Auth-Token": await token_of(cloud, session)}
        tasks = []
        faults: tuple[Fault, ...] = ("timeout", "drip")
        for fault in faults:
            cloud.fault = fault
            tasks.append(asyncio.create_task(ask(cloud, session, headers)))
            await asyncio.sleep(0.05)
        end = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - end < 2
    await asyncio.gather(*tasks, return_exceptions=True)


def sign(cloud: Cloud, host: str, date: str) -> dict[str, str]:
    """The published recipe of SDK-HMAC-SHA256, written out for one fixed request."""
    canonical = (
        f"GET\n/v1/{cloud.project_id}/services/svc/predict/endpoints/\ntype=host_endpoints\n"
        f"host:{host}\nx-sdk-date:{date}\n\nhost;x-sdk-date\n{hashlib.sha256().hexdigest()}"
    )
    to_sign = f"SDK-HMAC-SHA256\n{date}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    signature = hmac.new(cloud.secret_key.encode(), to_sign.encode(), "sha256").hexdigest()
    access = (
        f"SDK-HMAC-SHA256 Access={cloud.access_key}, SignedHeaders=host;x-sdk-date, Signature={signature}"
    )
    return {"Host": host, "X-Sdk-Date": date, "Authorization": access}


async def test_signatures_are_recomputed(cloud: Cloud, session: aiohttp.ClientSession) -> None:
    """A right signature is taken; a stale or altered one, or one that leaves the host out, is not."""
    host = cloud.url.removeprefix("http://")
    good = sign(cloud, host, datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ"))
    assert (await ask(cloud, session, good))[0] == 200
    stale = sign(cloud, host, "20200101T000000Z")
    altered = good | {"Authorization": good["Authorization"][:-64] + "0" * 64}
    hostless = good | {"Authorization": good["Authorization"].replace("host;", "")}
    for bad in (stale, altered, hostless, good | {"X-Sdk-Date": "today"}):
        assert (await ask(cloud, session, bad))[0] == 401
