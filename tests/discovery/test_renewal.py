import asyncio
from datetime import UTC, datetime

import pytest

from tcpgw.discovery.renewal import (
    FAILED_PAUSE,
    REFUSED_PAUSE,
    RENEW_AT,
    UNKNOWN_LIFE,
    Lease,
    Renewed,
    life,
)
from tcpgw.errors import ApiError, CredentialError, DiscoveryError

DAY = 86_400.0


class Issuer:
    """Hands out credentials `c1`, `c2`, … and keeps the time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked = 0
        self.life = DAY
        self.failure: DiscoveryError | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.renewed = Renewed(self._ask, name="test", clock=lambda: self.now)

    async def _ask(self) -> Lease[str]:
        self.asked += 1
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return Lease(f"c{self.asked}", self.life)


async def test_one_question_serves_all_callers() -> None:
    """Callers that come together share one question and its answer."""
    issuer = Issuer()
    assert set(await asyncio.gather(*(issuer.renewed.get() for _ in range(20)))) == {"c1"}
    assert issuer.asked == 1


async def test_cancelled_caller_does_not_disturb_others() -> None:
    """When the caller whose turn it is gives up, the others still get a credential."""
    issuer = Issuer()
    issuer.gate.clear()
    callers = [asyncio.create_task(issuer.renewed.get()) for _ in range(5)]
    await asyncio.sleep(0)
    callers[0].cancel()
    issuer.gate.set()
    assert set(await asyncio.gather(*callers[1:])) == {"c2"}
    assert callers[0].cancelled()
    assert issuer.asked == 2


async def test_renewed_well_before_its_end() -> None:
    """A credential is kept for two thirds of its life and then replaced."""
    issuer = Issuer()
    await issuer.renewed.get()
    issuer.now = RENEW_AT * DAY - 1
    assert await issuer.renewed.get() == "c1"
    issuer.now = RENEW_AT * DAY
    assert await issuer.renewed.get() == "c2"


async def test_failing_renewal_keeps_the_old_one() -> None:
    """While the old credential is valid, a failing renewal costs nothing, and is not tried at each call."""
    issuer = Issuer()
    await issuer.renewed.get()
    issuer.failure = DiscoveryError("IAM is down")
    issuer.now = RENEW_AT * DAY
    assert [await issuer.renewed.get() for _ in range(3)] == ["c1"] * 3
    assert issuer.asked == 2
    issuer.now = DAY
    with pytest.raises(DiscoveryError, match="IAM is down"):
        await issuer.renewed.get()


async def test_slow_renewal_delays_nobody_else() -> None:
    """While one caller renews, the others go on with the old credential."""
    issuer = Issuer()
    await issuer.renewed.get()
    issuer.now = RENEW_AT * DAY
    issuer.gate.clear()
    renewing = asyncio.create_task(issuer.renewed.get())
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        assert await issuer.renewed.get() == "c1"
    issuer.gate.set()
    assert await renewing == "c2"


@pytest.mark.parametrize(
    ("failure", "pause"),
    [
        (CredentialError("wrong password"), REFUSED_PAUSE),
        (DiscoveryError("down"), FAILED_PAUSE),
        (ApiError("busy", status=429, retry_after=40), 40),
        (ApiError("broken", status=500), FAILED_PAUSE),
    ],
)
async def test_failure_is_remembered(failure: DiscoveryError, pause: float) -> None:
    """After a failure nobody asks for a while (longest for wrong credentials, which may lock the user)."""
    issuer = Issuer()
    issuer.failure = failure
    for _ in range(3):
        with pytest.raises(type(failure), match=str(failure)):
            await issuer.renewed.get()
    assert issuer.asked == 1
    issuer.now, issuer.failure = pause, None
    assert await issuer.renewed.get() == "c2"


async def test_refused_credential_is_dropped_once() -> None:
    """Two calls that the cloud refused with the same credential lead to one renewal."""
    issuer = Issuer()
    await issuer.renewed.get()
    issuer.renewed.drop(lambda value: value == "c1")
    assert await issuer.renewed.get() == "c2"
    issuer.renewed.drop(lambda value: value == "c1")
    assert await issuer.renewed.get() == "c2"


async def test_credential_that_has_ended_already_is_refused() -> None:
    """A credential whose end lies in the past points at a wrong clock, and is not used."""
    issuer = Issuer()
    issuer.life = -5.0
    with pytest.raises(CredentialError, match="clock"):
        await issuer.renewed.get()


@pytest.mark.parametrize(
    ("expires_at", "since", "seconds"),
    [
        ("2026-01-02T00:00:00.000000Z", "2026-01-01T00:00:00.000000Z", DAY),
        ("2026-01-01T01:00:00Z", datetime(2026, 1, 1, tzinfo=UTC), 3600),
        ("2026-01-01T01:00:00", "2026-01-01T00:00:00Z", 3600),
        ("2025-12-31T23:59:00Z", "2026-01-01T00:00:00Z", -60),
        ("tomorrow", "2026-01-01T00:00:00Z", UNKNOWN_LIFE),
        (None, None, UNKNOWN_LIFE),
        (17, "2026-01-01T00:00:00Z", UNKNOWN_LIFE),
    ],
)
def test_life_is_read_from_the_clouds_times(expires_at: object, since: object, seconds: float) -> None:
    """Times with and without fraction and zone are read; one that cannot be read means an hour."""
    assert life(expires_at, since) == seconds
