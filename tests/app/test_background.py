"""Tasks that run as long as their owner."""

import asyncio

import pytest

from tcpgw.app.background import Background, first
from tests.support.streams import in_time


async def forever(ended: list[str], name: str = "x") -> None:
    try:
        await asyncio.Event().wait()
    finally:
        ended.append(name)


async def fail() -> None:
    raise RuntimeError("a bug")


async def test_closing_ends_all() -> None:
    """And waits for their ends; twice is once."""
    background, ended = Background(), list[str]()
    for name in "ab":
        background.start(forever(ended, name), name)
    await asyncio.sleep(0)
    await in_time(background.close())
    await in_time(background.close())
    assert sorted(ended) == ["a", "b"]


async def test_the_first_failure_is_told() -> None:
    """Also to who asks later; a task that ends well, or is stopped, is none."""
    background, ended = Background(), list[str]()
    background.start(asyncio.sleep(0), "fine")
    stopped = background.start(forever(ended), "stopped")
    await asyncio.sleep(0)
    await in_time(background.stop(stopped))
    waiting = asyncio.create_task(background.failed())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    background.start(fail(), "fails")
    for asked in (waiting, background.failed()):
        with pytest.raises(RuntimeError, match="a bug"):
            await in_time(asked)
    await in_time(background.close())


async def test_the_first_of_several_counts() -> None:
    """The others are cancelled, and have ended when it returns; what it raised is raised."""
    ended: list[str] = []
    await in_time(first(asyncio.sleep(0.01), forever(ended)))
    assert ended == ["x"]
    with pytest.raises(RuntimeError, match="a bug"):
        await in_time(first(forever(ended), fail()))
    assert ended == ["x", "x"]
