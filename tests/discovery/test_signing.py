import sys
from collections.abc import AsyncIterator

import pytest
from yarl import URL

from tcpgw.demo.cloud import Cloud
from tcpgw.discovery.call import Caller
from tcpgw.discovery.renewal import REFUSED_PAUSE
from tcpgw.discovery.signing import AccessKey, Agency, Keys, Signer
from tcpgw.errors import AnswerError, CredentialError


@pytest.fixture
async def cloud() -> AsyncIterator[Cloud]:
    async with Cloud({"svc": ["10.0.0.1:80"]}) as running:
        yield running


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    made = Caller(5)
    yield made
    await made.close()


def endpoints_url(cloud: Cloud, service: str = "svc") -> URL:
    path = f"/v1/{cloud.project_id}/services/{service}/predict/endpoints?type=host_endpoints"
    return URL(f"{cloud.url}{path}", encoded=True)


async def status_of(caller: Caller, url: URL, headers: dict[str, str]) -> int:
    return (await caller.call("GET", url, setting="", headers=headers)).status


async def test_signature_holds_where_it_is_checked(cloud: Cloud, caller: Caller) -> None:
    """A request signed by the cloud's package passes the emulation's own computation of the signature."""
    key = AccessKey("cloud.x", Signer("cloud.x", cloud.project_id), cloud.access_key, cloud.secret_key)
    url = endpoints_url(cloud)
    headers = await key.headers(url)
    assert await status_of(caller, url, headers) == 200
    assert not key.refused(headers)


@pytest.mark.parametrize("service", ["a%20b", "%C3%A9", "a+b", "a~b_c.d"])
async def test_signature_holds_for_odd_paths(cloud: Cloud, caller: Caller, service: str) -> None:
    """What is signed is what is sent, whatever characters an id has (404: no such service)."""
    key = AccessKey("cloud.x", Signer("cloud.x", cloud.project_id), cloud.access_key, cloud.secret_key)
    url = endpoints_url(cloud, service)
    assert await status_of(caller, url, await key.headers(url)) == 404


async def test_signature_is_bound_to_request_and_key(cloud: Cloud, caller: Caller) -> None:
    """Another path, another date, another project or another secret key: refused."""
    signer = Signer("cloud.x", cloud.project_id)
    key, url = AccessKey("cloud.x", signer, cloud.access_key, cloud.secret_key), endpoints_url(cloud)
    headers = await key.headers(url)
    assert await status_of(caller, endpoints_url(cloud, "other"), headers) == 401
    assert await status_of(caller, url, headers | {"X-Sdk-Date": "20200101T000000Z"}) == 401
    assert await status_of(caller, url, headers | {"X-Project-Id": "other"}) == 401
    wrong = AccessKey("cloud.x", signer, cloud.access_key, "wrong")
    assert await status_of(caller, url, await wrong.headers(url)) == 401


async def test_refused_key_rests(cloud: Cloud) -> None:
    """After a refusal nothing is signed for five minutes, and the message says why and what to check."""
    now = 0.0
    key = AccessKey("cloud.x", Signer("cloud.x", cloud.project_id), "AK", "hush", clock=lambda: now)
    url = endpoints_url(cloud)
    assert not key.refused(await key.headers(url))
    now = REFUSED_PAUSE - 1
    with pytest.raises(CredentialError, match=r"rests for 5 minutes.*check cloud\.x\.auth") as caught:
        await key.headers(url)
    assert "AK" not in str(caught.value)
    now = REFUSED_PAUSE
    assert await key.headers(url)


async def test_agency_keys_come_from_the_metadata_service(cloud: Cloud, caller: Caller) -> None:
    """Temporary keys are fetched once, sign with their security token, and are kept."""
    agency, url = (
        Agency("cloud.x", Signer("cloud.x", cloud.project_id), cloud.url, caller),
        endpoints_url(cloud),
    )
    for _ in range(3):
        headers = await agency.headers(url)
        assert headers["X-Security-Token"]
        assert await status_of(caller, url, headers) == 200
    assert cloud.key_calls == 1


async def test_agency_keys_need_their_security_token(cloud: Cloud, caller: Caller) -> None:
    """The emulation refuses temporary keys without their token, as the cloud does."""
    agency, url = (
        Agency("cloud.x", Signer("cloud.x", cloud.project_id), cloud.url, caller),
        endpoints_url(cloud),
    )
    headers = await agency.headers(url)
    assert await status_of(caller, url, headers | {"X-Security-Token": "other"}) == 401


async def test_agency_keys_are_renewed(cloud: Cloud, caller: Caller) -> None:
    """Before their end, and after a refusal, other keys are fetched."""
    now = 0.0
    signer, url = Signer("cloud.x", cloud.project_id), endpoints_url(cloud)
    agency = Agency("cloud.x", signer, cloud.url, caller, clock=lambda: now)
    first = await agency.headers(url)
    now = 0.7 * cloud.token_life
    second = await agency.headers(url)
    assert second["X-Security-Token"] != first["X-Security-Token"]
    assert await status_of(caller, url, second) == 200
    assert agency.refused(second)
    third = await agency.headers(url)
    assert third["X-Security-Token"] != second["X-Security-Token"]
    assert cloud.key_calls == 3


async def test_server_without_agency_is_told_what_to_do(cloud: Cloud, caller: Caller) -> None:
    """Without an agency the message says where to set one."""
    cloud.agency = False
    agency = Agency("cloud.x", Signer("cloud.x", cloud.project_id), cloud.url, caller)
    with pytest.raises(CredentialError, match="the server has no agency: set one"):
        await agency.headers(endpoints_url(cloud))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'{"credential": null}',
        b'{"credential": {"access": "a", "secret": "hush"}}',
        b'{"credential": {"access": "a", "secret": "hush\\n", "securitytoken": "c"}}',
        b'{"credential": {"access": 1, "secret": "hush", "securitytoken": "c"}}',
    ],
)
def test_keys_that_are_none_are_refused_unseen(body: bytes) -> None:
    """What is no set of keys is refused without being quoted."""
    agency = Agency("cloud.x", Signer("cloud.x", "p"), "http://127.0.0.1:1", Caller(1))
    with pytest.raises(AnswerError, match=r"check cloud\.x\.auth\.metadata") as caught:
        agency._read(body)
    assert "hush" not in str(caught.value)


def test_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra the message is the command that brings it."""
    for name in [name for name in sys.modules if name.startswith("huaweicloudsdkcore")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "huaweicloudsdkcore", None)
    with pytest.raises(CredentialError, match=r"pip install 'tcpgw\[aksk\]'"):
        Signer("cloud.x", "p")


def test_keys_do_not_show_themselves() -> None:
    """Keys that get into a traceback or a log are not readable there."""
    assert "hush" not in f"{Keys('a', 'hush', 'hush')!r} {Keys('a', 'hush')}"
