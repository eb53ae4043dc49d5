"""Who ends the tasks of receivers, and a receiver."""

from collections.abc import AsyncIterator

import pytest

from tcpgw.app.background import Background
from tests.support.inbox import Inbox, inbox


@pytest.fixture
async def background() -> AsyncIterator[Background]:
    made = Background()
    yield made
    assert not made._failed.is_set()
    await made.close()


@pytest.fixture
async def received() -> AsyncIterator[Inbox]:
    async with inbox() as made:
        yield made
