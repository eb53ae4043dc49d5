"""What the tests of the admin server begin with."""

from collections.abc import AsyncIterator

import pytest
from aiohttp import ClientSession, ClientTimeout, CookieJar

from tests.support.admin import Pretended, endpoint, service, view


@pytest.fixture
def source() -> Pretended:
    return Pretended(view([service("ranker", [endpoint("10.0.1.11:8080")])]))


@pytest.fixture
async def http() -> AsyncIterator[ClientSession]:
    async with ClientSession(timeout=ClientTimeout(10), cookie_jar=CookieJar(unsafe=True)) as session:
        yield session
