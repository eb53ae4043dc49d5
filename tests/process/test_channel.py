"""Messages between two ends of a socketpair, with descriptors beside them."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from tcpgw.errors import TcpgwError
from tcpgw.process.channel import Channel, ChannelError, Handler
from tests.support.processes import open_files

PATIENCE = 10.0


@contextlib.asynccontextmanager
async def pair(handlers: dict[str, Handler], with_fds: tuple[str, ...] = ()) -> AsyncIterator[Channel]:
    """One end, whose other end has these handlers."""
    ours, theirs = socket.socketpair()
    near, far = Channel(ours, {}), Channel(theirs, handlers, with_fds=with_fds)
    tasks = [asyncio.create_task(end.run()) for end in (near, far)]
    try:
        yield near
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_call_is_answered_by_what_the_other_side_returns() -> None:
    """Parameters and results are what MessagePack can hold; handlers may be async or not."""

    async def later(value: object) -> object:
        await asyncio.sleep(0)
        return [value]

    async with pair({"now": lambda *params: list(params), "later": later}) as near:
        assert await near.call("now", 1, "two", {"three": None}, timeout=PATIENCE) == [
            1,
            "two",
            {"three": None},
        ]
        assert await near.call("later", b"x", timeout=PATIENCE) == [b"x"]


async def test_messages_are_done_in_their_order() -> None:
    """One that takes its time is done before what was said after it."""
    done: list[int] = []

    async def note(number: int) -> None:
        await asyncio.sleep(0.01 if number == 1 else 0)
        done.append(number)

    async with pair({"note": note}) as near:
        near.tell("note", 1)
        near.tell("note", 2)
        await near.call("note", 3, timeout=PATIENCE)
    assert done == [1, 2, 3]


async def test_large_messages_pass_whole_both_ways() -> None:
    """More than the kernel holds at a time is written as the other side reads."""
    data = os.urandom(5 << 20)
    async with pair({"echo": lambda value: value}) as near:
        assert await near.call("echo", data, timeout=PATIENCE) == data


async def test_descriptors_come_with_their_message() -> None:
    """Each message has its own, however many are sent at once, and the sender may close its own at once."""
    got: list[tuple[int, str]] = []

    def take(fds: list[int], text: str) -> None:
        for fd in fds:
            got.append((len(fds), f"{text}: {os.read(fd, 10).decode()}"))
            os.close(fd)

    before = open_files()
    async with pair({"take": take, "other": lambda: None}, ("take",)) as near:
        calls = []
        for number in range(20):
            pipes = [os.pipe() for _ in range(number % 3)]
            for _, write in pipes:
                os.write(write, str(number).encode())
                os.close(write)
            calls.append(
                asyncio.create_task(
                    near.call("take", f"m{number}", fds=[read for read, _ in pipes], timeout=PATIENCE)
                )
            )
            await asyncio.sleep(0)
            for read, _ in pipes:
                os.close(read)
            near.tell("other")
        await asyncio.gather(*calls)
    assert got == [(n % 3, f"m{n}: {n}") for n in range(20) for _ in range(n % 3)]
    assert open_files() == before


async def test_descriptors_that_nobody_wants_are_closed() -> None:
    """Neither a message without a handler nor one that waits when the channel closes leaves any open."""
    before = open_files()
    read, write = os.pipe()
    async with pair({}) as near:
        with pytest.raises(ChannelError, match="unknown_method: nothing"):
            await near.call("nothing", fds=[read], timeout=PATIENCE)
        near.close()
    os.close(read)
    os.close(write)
    assert open_files() == before


async def test_an_error_is_the_callers() -> None:
    """What a handler raises reaches who asked, with its text; a bug is logged too, and calls go on."""

    def refuse() -> None:
        raise TcpgwError("not today")

    def fail() -> None:
        raise KeyError("bug")

    async with pair({"refuse": refuse, "fail": fail, "go": lambda: "on"}) as near:
        with pytest.raises(ChannelError, match="not today"):
            await near.call("refuse", timeout=PATIENCE)
        with capture_logs() as logs, pytest.raises(ChannelError, match="KeyError"):
            await near.call("fail", timeout=PATIENCE)
        assert [line["event"] for line in logs] == ["channel_error"]
        assert await near.call("go", timeout=PATIENCE) == "on"


async def test_a_call_waits_as_long_as_it_says() -> None:
    """Then it raises, and its late answer disturbs nobody."""
    go = asyncio.Event()

    async def wait() -> str:
        await go.wait()
        return "late"

    async with pair({"wait": wait, "now": lambda: "now"}) as near:
        with pytest.raises(ChannelError, match=r"no answer within 0\.01 s"):
            await near.call("wait", timeout=0.01)
        go.set()
        assert await near.call("now", timeout=PATIENCE) == "now"


@pytest.mark.parametrize("how", ["close", "nonsense", "another form"])
async def test_the_other_sides_end_is_noticed(how: str) -> None:
    """Calls under way raise, later ones too, and `closed` is set; telling does nothing."""
    ours, theirs = socket.socketpair()
    near = Channel(ours, {})
    running = asyncio.create_task(near.run())
    call: asyncio.Task[Any] = asyncio.create_task(near.call("x", timeout=PATIENCE))
    await asyncio.sleep(0)
    if how == "nonsense":
        theirs.sendall(b"\0\0\0\1\xc1")
    elif how == "another form":
        theirs.sendall(b"\0\0\0\2\x91\x07")
    theirs.shutdown(socket.SHUT_WR)
    async with asyncio.timeout(PATIENCE):
        await near.closed.wait()
        await running
    with pytest.raises(ChannelError, match="gone"):
        await call
    with pytest.raises(ChannelError, match="gone"):
        await near.call("x", timeout=PATIENCE)
    near.tell("x")
    theirs.close()


async def test_who_reads_nothing_is_given_up() -> None:
    """What waits for it is bounded: beyond, the channel is closed instead."""
    ours, theirs = socket.socketpair()
    near = Channel(ours, {})
    with theirs:
        data = bytes(32 << 20)
        for _ in range(4):
            near.tell("take", data)
        with pytest.raises(ChannelError, match="reads nothing"):
            await near.call("take", data, timeout=PATIENCE)
        assert near.closed.is_set()


async def test_what_was_told_last_is_delivered() -> None:
    """`flushed` returns when a close loses nothing."""
    heard = asyncio.Event()
    ours, theirs = socket.socketpair()
    near, far = Channel(ours, {}), Channel(theirs, {"bye": lambda _: heard.set()})
    near.tell("bye", bytes(3 << 20))
    running = asyncio.create_task(far.run())
    async with asyncio.timeout(PATIENCE):
        await near.flushed()
        near.close()
        await running
    assert heard.is_set()
