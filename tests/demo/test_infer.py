"""The demo's rpc instance, as a process of its own."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tcpgw.client import Client, connect
from tcpgw.demo.instances import Instance


@pytest.fixture
async def instance() -> AsyncIterator[Instance]:
    started = await Instance.start("infer", "infer-1")
    try:
        await started.ready()
        yield started
    finally:
        await started.kill()


async def _connections(client: Client) -> int:
    stats = await client.call("stats")
    assert stats["instance"] == "infer-1"
    return int(stats["connections"])


async def test_an_answer_names_the_instance_and_what_it_was_asked(instance: Instance) -> None:
    """Who asks can tell from each answer who gave it and whether it is its own."""
    async with connect(str(instance.endpoint)) as client:
        values = [{"a": "a"}, None, b"\x00\xff"]
        answers = await asyncio.gather(*(client.call("predict", value) for value in values))
        assert answers == [{"instance": "infer-1", "input": value} for value in values]
        assert (await client.call("stats"))["requests"] == 3


async def test_the_instance_counts_its_connections(instance: Instance) -> None:
    """It tells how many are open at this moment, the asking one included, and never any that is not."""
    address = str(instance.endpoint)
    async with connect(address) as asking:
        assert await _connections(asking) == 1
        async with connect(address) as one, connect(address) as other:
            await asyncio.gather(one.call("stats"), other.call("stats"))
            assert await _connections(asking) == 3
        async with asyncio.timeout(10):
            while await _connections(asking) != 1:  # noqa: ASYNC110 - another process's
                await asyncio.sleep(0.01)


async def test_counting_leaves_nothing_open(instance: Instance) -> None:
    """Asked as often as you like, the instance has the same descriptors as before."""

    def descriptors() -> int:
        return len(list(Path(f"/proc/{instance._process.pid}/fd").iterdir()))

    async with connect(str(instance.endpoint)) as client:
        await client.call("stats")
        before = descriptors()
        for _ in range(50):
            await client.call("stats")
        assert descriptors() == before
