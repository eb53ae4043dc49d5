import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from tcpgw.config.schema import ModelArtsCloud, ModelArtsDiscovery
from tcpgw.demo.cloud import _ERRORS, SHAPES, Cloud, Fault
from tcpgw.discovery.modelarts import LONGEST_BACKOFF, Account, ModelArtsSource, backoff
from tcpgw.errors import AnswerError, ApiError, CredentialError, DiscoveryError

INSTANCES = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:81", "10.0.0.4:81"]


@pytest.fixture
async def cloud() -> AsyncIterator[Cloud]:
    async with Cloud({"svc": INSTANCES, "two": ["10.0.1.1:80"]}) as running:
        yield running


def password(cloud: Cloud) -> dict[str, Any]:
    who = {"domain": cloud.domain, "user": cloud.user, "password": cloud.password}
    return {"type": "password", "iam": cloud.url, **who}


def access_key(cloud: Cloud) -> dict[str, Any]:
    return {"type": "aksk", "access_key": cloud.access_key, "secret_key": cloud.secret_key}


def agency(cloud: Cloud) -> dict[str, Any]:
    return {"type": "agency", "metadata": cloud.url}


class Clock:
    """A clock that only sleeping moves. Stopped, it lets sleepers wait in real time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.stopped = False

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds if self.stopped else 0)
        self.now += seconds


def account_of(cloud: Cloud, clock: Clock | None = None, **changes: Any) -> Account:
    table = {"endpoint": cloud.url, "project_id": cloud.project_id, "auth": password(cloud), "timeout": 2}
    settings = ModelArtsCloud.model_validate(table | changes)
    return Account("demo", settings, clock=clock, sleep=clock.sleep) if clock else Account("demo", settings)


class Waits:
    """Records how long was waited, and waits not at all."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


def source_of(
    account: Account, waits: Waits | None = None, service: str = "svc", **changes: Any
) -> ModelArtsSource:
    settings = ModelArtsDiscovery.model_validate({"type": "modelarts", "service_id": service} | changes)
    return ModelArtsSource(settings, account, sleep=waits or asyncio.sleep)


@pytest.fixture
async def source(cloud: Cloud) -> AsyncIterator[ModelArtsSource]:
    made = source_of(account_of(cloud), Waits())
    yield made
    await made.close()


async def fetched(source: ModelArtsSource) -> list[str]:
    return [str(member.endpoint) for member in await source.fetch()]


@contextmanager
def logged() -> Iterator[list[Any]]:
    structlog.configure(cache_logger_on_first_use=False)
    with capture_logs() as lines:
        yield lines


@pytest.mark.parametrize("auth", [password, access_key, agency])
async def test_instances_come_with_each_kind_of_credentials(cloud: Cloud, auth: Any) -> None:
    """Password, access key and agency each get the service's instances."""
    source = source_of(account_of(cloud, auth=auth(cloud)))
    assert await fetched(source) == INSTANCES
    await source.close()


async def test_instances_come_with_a_static_token(cloud: Cloud, source: ModelArtsSource) -> None:
    """A token made by hand is enough, and says so when it ends."""
    await source.fetch()
    (token,) = cloud._tokens
    by_hand = source_of(account_of(cloud, auth={"type": "token", "token": token}))
    assert await fetched(by_hand) == INSTANCES
    cloud.revoke_tokens()
    with pytest.raises(ApiError, match="a token made by hand ends after 24 hours") as caught:
        await by_hand.fetch()
    assert token not in str(caught.value)
    await by_hand.close()


@pytest.mark.parametrize("shape", sorted(SHAPES))
async def test_every_shape_of_the_answer_is_read(cloud: Cloud, source: ModelArtsSource, shape: str) -> None:
    """The same instances come out of each plausible form of the answer."""
    cloud.shape = shape
    assert await fetched(source) == INSTANCES


async def test_token_is_renewed_once_at_a_refusal(cloud: Cloud, source: ModelArtsSource) -> None:
    """A token that ended early costs one more call and no failure."""
    await source.fetch()
    cloud.revoke_tokens()
    assert await fetched(source) == INSTANCES
    assert (cloud.api_calls, cloud.token_calls) == (3, 2)


async def test_agency_keys_are_renewed_once_at_a_refusal(cloud: Cloud) -> None:
    """The same holds for temporary keys."""
    source = source_of(account_of(cloud, auth=agency(cloud)))
    await source.fetch()
    cloud.revoke_tokens()
    assert await fetched(source) == INSTANCES
    assert (cloud.api_calls, cloud.key_calls) == (3, 2)
    await source.close()


async def test_services_of_a_user_share_the_token(cloud: Cloud) -> None:
    """Many services that start together, and are refused together, make one token request each time."""
    account = account_of(cloud)
    sources = [source_of(account) for _ in range(5)]
    await asyncio.gather(*(source.fetch() for source in sources))
    assert cloud.token_calls == 1
    cloud.revoke_tokens()
    cloud.calls_per_minute = 100
    await asyncio.gather(*(source.fetch() for source in sources[:2]))
    assert cloud.token_calls == 2
    for source in sources:
        await source.close()


@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        (401, ApiError, "check cloud.demo.auth"),
        (403, ApiError, "give it a ModelArts role"),
        (404, ApiError, "check the service's discovery.service_id"),
        (429, ApiError, "lower cloud.demo.calls_per_minute"),
        (500, ApiError, "the fault is the cloud's"),
        ("garbage", AnswerError, "is not JSON"),
    ],
)
async def test_each_fault_says_what_happened(
    cloud: Cloud, source: ModelArtsSource, fault: Fault, error: type[DiscoveryError], says: str
) -> None:
    """Whatever is wrong with the API, the error says so and what to do, and the next good answer counts."""
    cloud.fault = fault
    with pytest.raises(error) as caught:
        await source.fetch()
    assert says in str(caught.value)
    assert all(token not in str(caught.value) for token in cloud._tokens)


@pytest.mark.parametrize("fault", ["timeout", "drip"])
async def test_silence_and_slow_drip_end_with_the_timeout(cloud: Cloud, fault: Fault) -> None:
    """An answer that does not come, or never ends, is given up after the configured time."""
    source = source_of(account_of(cloud, timeout="200ms"))
    cloud.fault = fault
    async with asyncio.timeout(2):
        with pytest.raises(
            DiscoveryError, match=r"no whole answer within 0\.2 s; check cloud\.demo\.endpoint"
        ):
            await source.fetch()
    cloud.fault = None
    assert await fetched(source) == INSTANCES
    await source.close()


async def test_empty_and_halved_answers_are_answers(cloud: Cloud, source: ModelArtsSource) -> None:
    """What to think of a shrunken list is not the source's to decide."""
    cloud.fault = "half"
    assert await fetched(source) == INSTANCES[:2]
    cloud.fault = "empty"
    assert await fetched(source) == []


async def test_unknown_service_is_named(cloud: Cloud) -> None:
    """A wrong service id leads to the key that holds it."""
    source = source_of(account_of(cloud), service="nope")
    with pytest.raises(ApiError, match=r"services/nope/.*ModelArts\.3502.*discovery\.service_id") as caught:
        await source.fetch()
    assert caught.value.status == 404
    await source.close()


async def test_cancelled_fetch_leaves_nothing_open(cloud: Cloud, source: ModelArtsSource) -> None:
    """A fetch that is cancelled while the cloud is silent ends at once, and the next one works."""
    await source.fetch()
    cloud.fault = "timeout"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await source.fetch()
    assert cloud.api_calls == 2
    cloud.fault = None
    assert await fetched(source) == INSTANCES


async def test_wrong_password_is_asked_about_once(cloud: Cloud) -> None:
    """Ten services with a wrong password make one token request, so that IAM does not lock the user."""
    account = account_of(cloud, auth=password(cloud) | {"password": "wrong"})
    sources = [source_of(account) for _ in range(10)]
    results = await asyncio.gather(*(source.fetch() for source in sources), return_exceptions=True)
    assert all(isinstance(result, CredentialError) for result in results)
    assert (cloud.token_calls, cloud.api_calls, account.budget.left) == (1, 0, 20)
    for source in sources:
        await source.close()


async def outcome(source: ModelArtsSource) -> type[Exception] | None:
    try:
        await source.fetch()
    except DiscoveryError as error:
        return type(error)
    return None


async def test_wrong_access_key_is_refused_once(cloud: Cloud) -> None:
    """Ten services with a wrong key are refused once in five minutes, so that the cloud does not lock it."""
    clock = Clock()
    account = account_of(cloud, clock, auth=access_key(cloud) | {"secret_key": "wrong"})
    sources = [source_of(account) for _ in range(10)]
    for calls in (1, 2):
        outcomes = await asyncio.gather(*map(outcome, sources))
        assert Counter(outcomes) == {ApiError: 1, CredentialError: 9}
        assert set(await asyncio.gather(*map(outcome, sources))) == {CredentialError}
        assert cloud.api_calls == calls
        clock.now += 300
    for source in sources:
        await source.close()


async def test_right_access_key_serves_all(cloud: Cloud) -> None:
    """Services that start together get their instances, and a first call that fails holds none of them up."""
    account = account_of(cloud, auth=access_key(cloud), timeout="300ms")
    sources = [source_of(account) for _ in range(5)]
    assert await asyncio.gather(*map(outcome, sources)) == [None] * 5
    silent = account_of(cloud, auth=access_key(cloud), timeout="300ms")
    others = [source_of(silent) for _ in range(5)]
    cloud.fault = "timeout"
    async with asyncio.timeout(1):  # the first, then all others at once
        assert await asyncio.gather(*map(outcome, others)) == [DiscoveryError] * 5
    for source in (*sources, *others):
        await source.close()


async def test_signature_refused_with_another_status_counts(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 403 with the code of a refused signature rests the key; any other 403 is a matter of roles."""
    source = source_of(account_of(cloud, auth=access_key(cloud)))
    cloud.fault = 403
    assert [await outcome(source) for _ in range(2)] == [ApiError, ApiError]
    monkeypatch.setitem(_ERRORS, 403, ("APIG.0301", "verify aksk signature fail"))
    assert [await outcome(source) for _ in range(2)] == [ApiError, CredentialError]
    await source.close()


async def test_foreign_addresses_are_refused(cloud: Cloud) -> None:
    """Addresses outside the configured networks are no answer, and the operator's own choice is."""
    cloud.services["svc"] = ["127.0.0.1:80"]
    account = account_of(cloud)
    strict, open_ = source_of(account), source_of(account, networks=["127.0.0.0/8"])
    with pytest.raises(AnswerError, match=r"service\[\.\.\]\.discovery\.networks"):
        await strict.fetch()
    assert await fetched(open_) == ["127.0.0.1:80"]
    await strict.close()
    await open_.close()


async def test_jmespath_is_applied(cloud: Cloud) -> None:
    """The configured expression decides what is read."""
    source = source_of(account_of(cloud), jmespath="host_endpoints[?port==`81`]")
    assert await fetched(source) == INSTANCES[2:]
    await source.close()


async def test_complaints_are_logged_when_they_change(cloud: Cloud, source: ModelArtsSource) -> None:
    """What could not be read is said once, not with every refresh."""
    cloud.services["svc"] = [*INSTANCES, "8.8.8.8:80"]
    with logged() as lines:
        for _ in range(3):
            assert await fetched(source) == INSTANCES
        cloud.services["svc"] = [*INSTANCES, "8.8.4.4:80"]
        await source.fetch()
    said = [line for line in lines if line["event"] == "answer_read_in_part"]
    assert [("8.8.8.8" in str(line), "8.8.4.4" in str(line)) for line in said] == [
        (True, False),
        (False, True),
    ]


async def test_logs_hold_no_secrets(cloud: Cloud, source: ModelArtsSource) -> None:
    """Neither the password nor a token gets into a log line, well or ill."""
    with logged() as lines:
        await source.fetch()
        for fault in (401, 429):
            cloud.fault = fault
            with pytest.raises(ApiError):
                await source.fetch()
    assert lines
    for secret in (cloud.password, *cloud._tokens):
        assert secret not in str(lines)


# ---- waiting ----


async def waited(source: ModelArtsSource, waits: Waits, *, fails: bool = False) -> float:
    """Fetch once, and tell how long the source then wants to wait."""
    if fails:
        with pytest.raises(DiscoveryError):
            await source.fetch()
    else:
        await source.fetch()
    await source.wait()
    return waits.seconds.pop()


async def test_refresh_is_jittered(cloud: Cloud) -> None:
    """The interval varies by 10 %, so that gateways do not fall into step."""
    cloud.calls_per_minute = 1000
    waits = Waits()
    source = source_of(account_of(cloud, calls_per_minute=1000), waits)
    await waited(source, waits)
    intervals = [await waited(source, waits) for _ in range(50)]
    assert all(9 <= interval <= 11 for interval in intervals)
    assert max(intervals) - min(intervals) > 0.5
    await source.close()


async def test_first_waits_are_spread(cloud: Cloud) -> None:
    """Services that start together come apart with their first refresh."""
    waits = Waits()
    account = account_of(cloud)
    sources = [source_of(account, waits, refresh=20) for _ in range(4)]
    assert [await waited(source, waits) for source in sources] == pytest.approx([5, 10, 15, 20])
    for source in sources:
        await source.close()


async def test_refresh_stretches_evenly_where_the_budget_is_short(cloud: Cloud) -> None:
    """Services that want twice the budget each get half as many refreshes, and the log says it once."""
    waits = Waits()
    account = account_of(cloud, calls_per_minute=10)
    sources = [source_of(account, waits, refresh=refresh) for refresh in (6, 12, 12)]
    stretch = 20 / account.budget.per_minute
    with logged() as lines:
        for _ in range(2):
            for source in sources:
                await source.wait()
        assert waits.seconds[:3] == pytest.approx([2 * stretch, 8 * stretch, 12 * stretch])
        for interval, refresh in zip(waits.seconds[3:], (6, 12, 12), strict=True):
            assert interval == pytest.approx(refresh * stretch, rel=0.1001)
        for source in sources[1:]:
            await source.close()
        await sources[0].wait()
        assert waits.seconds[-1] == pytest.approx(60 / account.budget.per_minute, rel=0.1001)
    said = [line for line in lines if line["event"] == "refresh_stretched"]
    assert [(line["services"], line["interval"]) for line in said] == [(3, round(12 * stretch, 1))]
    await sources[0].close()


async def test_failures_back_off(cloud: Cloud) -> None:
    """Each further failure about doubles the wait, up to a minute; a success ends that."""
    cloud.calls_per_minute = 1000
    waits = Waits()
    source = source_of(account_of(cloud, calls_per_minute=1000), waits, refresh=4)
    await waited(source, waits)
    cloud.fault = 500
    delays = [await waited(source, waits, fails=True) for _ in range(8)]
    for delay, longest in zip(delays, [8, 16, 32, 60, 60, 60, 60, 60], strict=True):
        assert longest / 2 <= delay <= longest
    cloud.fault = None
    assert await waited(source, waits) == pytest.approx(4, rel=0.1001)
    await source.close()


def test_backoff_never_asks_more_often_than_usual() -> None:
    """With a refresh above the cap, failures do not shorten the interval below half of it."""
    assert all(150 <= backoff(n, 300) <= 300 for n in range(50))
    assert all(backoff(n, 1) <= LONGEST_BACKOFF for n in range(2000))


@pytest.mark.parametrize(("retry_after", "seconds"), [("70", 70), (None, 60)])
async def test_throttling_pauses_all_services(cloud: Cloud, retry_after: str | None, seconds: float) -> None:
    """After a 429 no service of that user calls until the time that the cloud named is over."""
    clock = Clock()
    account = account_of(cloud, clock)
    one, two = (
        ModelArtsSource(ModelArtsDiscovery(type="modelarts", service_id=name), account, sleep=clock.sleep)
        for name in ("svc", "two")
    )
    cloud.fault, cloud.retry_after = 429, retry_after
    with pytest.raises(ApiError) as caught:
        await one.fetch()
    assert caught.value.retry_after == seconds
    await two.wait()
    assert seconds <= clock.now <= 1.1 * seconds
    await one.wait()
    assert seconds <= clock.now <= 2.2 * seconds
    await one.close()
    await two.close()


async def test_retry_after_of_other_errors_is_honoured(cloud: Cloud) -> None:
    """A 503-like refusal that names a time is not asked again before it."""
    waits = Waits()
    source = source_of(account_of(cloud), waits, refresh=1)
    cloud.fault, cloud.retry_after = 500, "45"
    assert 45 <= await waited(source, waits, fails=True) <= 1.1 * 45
    await source.close()


async def test_throttling_without_a_time_backs_off(cloud: Cloud) -> None:
    """A 429 that names no time pauses for a time that grows with each further one."""
    clock = Clock()
    cloud.fault, cloud.throttle_message = 429, "Too many requests."
    account = account_of(cloud, clock)
    source = source_of(account, Waits())
    pauses = []
    for _ in range(4):
        with pytest.raises(ApiError):
            await source.fetch()
        pauses.append(account.budget.pause_left)
        clock.now += 10_000
    for pause, longest in zip(pauses, [10, 20, 40, 60], strict=True):
        assert longest / 2 <= pause <= longest
    await source.close()


async def test_wait_outlasts_a_pause_that_begins_meanwhile(cloud: Cloud) -> None:
    """A service that is waiting when another is throttled does not come back before the pause is over."""
    clock = Clock()
    account = account_of(cloud, clock)

    async def sleep(seconds: float) -> None:
        await clock.sleep(seconds)
        account.budget.pause(100)

    settings = ModelArtsDiscovery(type="modelarts", service_id="svc", refresh=10)
    source = ModelArtsSource(settings, account, sleep=sleep)
    await source.wait()
    assert clock.now == 110
    assert await fetched(source) == INSTANCES
    await source.close()


async def test_start_of_many_services_waits_for_nobody_long(cloud: Cloud) -> None:
    """A service whose first turn does not come in time fails, so what it had before is used meanwhile.

    Then it waits in the queue, without a back-off, and its next fetch is the call.
    """
    clock, waits = Clock(), Waits()
    account = account_of(cloud, clock, timeout="100ms", calls_per_minute=2)
    late = source_of(account, waits, service="two")
    others = [source_of(account) for _ in range(2)]
    for source in others:
        assert await fetched(source) == INSTANCES
    clock.stopped = True
    with pytest.raises(DiscoveryError, match=r"cloud\.demo \(2 calls a minute for 3 services\) is spent"):
        await late.fetch()
    assert cloud.api_calls == 2
    clock.stopped = False
    await late.wait()
    assert waits.seconds == []
    assert await fetched(late) == ["10.0.1.1:80"]
    for source in (late, *others):
        await source.close()


async def test_start_during_a_pause_says_so(cloud: Cloud) -> None:
    """A service that starts while the cloud has all calls wait says so, not that the budget is spent."""
    account = account_of(cloud, timeout="50ms")
    account.budget.pause(60)
    source = source_of(account)
    with pytest.raises(DiscoveryError, match=r"for 1 services\) is paused by the cloud$"):
        await source.fetch()
    await source.close()


async def test_closing_gives_the_turn_back(cloud: Cloud) -> None:
    """A service that is stopped between its turn and its call costs the others nothing."""
    account = account_of(cloud)
    source = source_of(account, Waits())
    await source.wait()
    assert account.budget.left == 19
    await source.close()
    assert account.budget.left == 20


async def test_the_clouds_limit_is_never_met(cloud: Cloud) -> None:
    """Services that ask as often as they can stay within the budget that the cloud enforces."""
    cloud.calls_per_minute = 8
    account = account_of(cloud, calls_per_minute=8)
    waits = Waits()  # no service waits of its own accord
    sources = [source_of(account, waits) for _ in range(4)]

    async def run(source: ModelArtsSource) -> None:
        while True:
            await source.fetch()
            await source.wait()

    tasks = [asyncio.create_task(run(source)) for source in sources]
    await asyncio.sleep(0.5)
    assert not any(task.done() for task in tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert 4 <= cloud.api_calls <= 8
    assert cloud.throttled_calls == 0
    for source in sources:
        await source.close()


async def test_last_service_closes_the_account(cloud: Cloud) -> None:
    """Closing is idempotent; connections live as long as any service of the user does."""
    account = account_of(cloud)
    one, two = source_of(account), source_of(account, service="two")
    await one.fetch()
    await one.close()
    await one.close()
    assert await fetched(two) == ["10.0.1.1:80"]
    await two.close()
    assert account._caller._session is None
    await account.close()
    await account.close()
