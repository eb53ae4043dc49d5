import asyncio

import pytest

from tcpgw.config.schema import StaticDiscovery
from tcpgw.discovery.static import StaticSource
from tcpgw.endpoints import Endpoint, Member


def source() -> StaticSource:
    endpoints = ["10.0.0.1:80", {"address": "[fd00::1]:81", "weight": 2}]
    return StaticSource(StaticDiscovery.model_validate({"type": "static", "endpoints": endpoints}))


async def test_names_what_is_configured() -> None:
    """The answer is the configured list, with its weights."""
    assert list(await source().fetch()) == [
        Member(Endpoint("10.0.0.1", 80)),
        Member(Endpoint("fd00::1", 81), 2),
    ]


async def test_never_worth_asking_again() -> None:
    """Waiting does not end by itself, and can be cancelled."""
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(source().wait(), 0.01)


async def test_close_is_idempotent() -> None:
    """Closing twice is harmless."""
    closing = source()
    await closing.close()
    await closing.close()
