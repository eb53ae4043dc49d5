"""The ends of framed relays that the gateway chooses: between two frames where it may, at once where not."""

import asyncio
import contextlib

import pytest

from tcpgw.relay import framed, stream_plane
from tests.support.framed import FIFO, U32BE, ask, session, u32be
from tests.support.streams import bed, in_time


async def test_drain_ends_quiet_connections() -> None:
    """Between two frames both sides get FIN, within a fraction of a second, and the reason says so."""
    async with bed(listener=FIFO) as b:
        pairs = [await b.pair() for _ in range(3)]
        for client, instance in pairs[1:]:
            await ask(client, instance)
        began = asyncio.get_running_loop().time()
        draining = asyncio.create_task(b.gateway.drain())
        for peer in (peer for pair in pairs for peer in pair):
            assert await peer.read_to_end() == b""
            peer.close()
        await in_time(draining)
        assert asyncio.get_running_loop().time() - began < 1.5
    assert [line["reason"] for line in b.lines] == ["drained"] * 3


async def test_drain_ends_a_busy_connection_with_its_last_answer() -> None:
    """A client that asks again and again hears of the end behind an answer; what it asks then is not done."""
    async with bed(listener=FIFO) as b:
        client, instance = await b.pair()
        executed = 0

        async def answer() -> None:
            nonlocal executed
            with contextlib.suppress(EOFError):
                while await instance.read(5):
                    await asyncio.sleep(0.01)
                    executed += 1
                    await instance.send(u32be(b"a"))
            instance.close()

        answering = asyncio.create_task(answer())
        answered = 0
        draining = None
        with contextlib.suppress(EOFError):
            for _ in range(100):
                await client.send(u32be(b"q"))
                assert await client.read(5) == u32be(b"a")
                answered += 1
                if answered == 3:
                    draining = asyncio.create_task(b.gateway.drain())
        client.close()
        await answering
        assert draining
        await in_time(draining)
        line = await b.line()
    assert line["reason"] == "drained"
    assert 3 <= answered == executed == line["answers"] == line["requests"] <= 5


@pytest.mark.parametrize("listener", [U32BE, FIFO])
@pytest.mark.parametrize("slow", ["client", "instance"])
async def test_drain_waits_for_the_end_of_a_frame(slow: str, listener: str) -> None:
    """A frame that has begun is let through, however long it takes, in either direction."""
    async with bed(listener=listener) as b:
        client, instance = await b.pair()
        await ask(client, instance)
        sender, reader = (client, instance) if slow == "client" else (instance, client)
        await sender.send(u32be(b"late")[:6])
        draining = asyncio.create_task(b.gateway.drain())
        await asyncio.sleep(0.4)
        assert not b.lines
        await sender.send(u32be(b"late")[6:])
        assert await reader.read(8) == u32be(b"late")
        if slow == "client":
            await instance.send(u32be(b"a"))
            assert await client.read(5) == u32be(b"a")
        assert await client.read_to_end() == await instance.read_to_end() == b""
        client.close()
        instance.close()
        await in_time(draining)
        assert (await b.line())["reason"] == "drained"


@pytest.mark.parametrize("listener", [U32BE, FIFO])
async def test_drain_waits_for_answers_that_are_owed(listener: str) -> None:
    """A request that was not answered yet keeps its connection; a further one that comes is served too."""
    async with bed(listener=listener) as b:
        client, instance = await b.pair()
        await client.send(u32be(b"q"))
        await instance.read(5)
        draining = asyncio.create_task(b.gateway.drain())
        await asyncio.sleep(0.4)
        await client.send(u32be(b"r"))
        assert await instance.read(5) == u32be(b"r")
        await instance.send(u32be(b"a"))
        await asyncio.sleep(0.4)
        assert not b.lines
        await instance.send(u32be(b"b"))
        assert await client.read_to_end() == u32be(b"a") + u32be(b"b")
        client.close()
        instance.close()
        await in_time(draining)
        line = await b.line()
    assert (line["reason"], line["requests"], line["answers"]) == ("drained", 2, 2)


async def test_drain_does_not_wait_for_ever_for_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protocols have requests that nobody answers: after a longer silence the connection ends."""
    monkeypatch.setattr(framed, "_STILL_OWED", 4)
    async with bed(listener=U32BE) as b:
        client, instance = await b.pair()
        await client.send(u32be(b"just so you know"))
        began = asyncio.get_running_loop().time()
        draining = asyncio.create_task(b.gateway.drain())
        assert await client.read_to_end() == b""
        assert asyncio.get_running_loop().time() - began > 0.3
        assert await instance.read_to_end() == u32be(b"just so you know")
        client.close()
        instance.close()
        await in_time(draining)
        assert (await b.line())["reason"] == "drained"


async def test_drain_waits_for_answers_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where each request is answered, no silence is long enough."""
    monkeypatch.setattr(framed, "_STILL_OWED", 2)
    async with bed(listener=FIFO) as b:
        client, instance = await b.pair()
        await instance.send(u32be(b"welcome"))  # answers nothing
        assert await client.read(11) == u32be(b"welcome")
        await client.send(u32be(b"q"))
        assert await instance.read(5) == u32be(b"q")
        draining = asyncio.create_task(b.gateway.drain())
        await asyncio.sleep(0.5)
        assert not b.lines
        await instance.send(u32be(b"a"))
        assert await client.read_to_end() == u32be(b"a")
        client.close()
        instance.close()
        await in_time(draining)
        assert (await b.line())["reason"] == "drained"


async def test_drain_resets_nobody_who_was_just_sending() -> None:
    """What a client sends at the moment of our FIN is not done, and it reads its answer and FIN after it."""
    async with bed(listener=FIFO) as b:
        client, instance = await b.pair()
        await ask(client, instance)
        await client.send(u32be(b"q"))
        assert await instance.read(5) == u32be(b"q")
        (await session(b)).drain()
        instance.sock.send(u32be(b"b"))  # the gateway has no turn between the two
        client.sock.send(u32be(b"too late"))
        assert await instance.read_to_end() == b""
        await client.send(u32be(b"and again"))
        assert await client.read_to_end() == u32be(b"b")
        client.close()
        instance.close()
        line = await b.line()
    assert (line["reason"], line["requests"], line["bytes_in"]) == ("drained", 2, 10)


async def test_drain_does_not_wait_for_those_who_do_not_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that never looks at its idle connection does not hold up the stop."""
    monkeypatch.setattr(stream_plane, "_LINGER", 2)
    async with bed(listener=U32BE) as b:
        await b.pair()
        await in_time(b.gateway.drain(), 3.0)
        assert (await b.line())["reason"] == "drained"


async def test_drain_of_a_connection_that_ends_by_itself() -> None:
    """A drain that is asked for and not needed any more changes nothing, asked twice too."""
    async with bed(listener=U32BE) as b:
        client, instance = await b.pair()
        await client.send(u32be(b"q"))
        await instance.read(5)
        await session(b)
        b.listener.drain()
        b.listener.drain()
        client.fin()
        await instance.send(u32be(b"a"))
        instance.close()
        assert await client.read_to_end() == u32be(b"a")
        line = await b.line()
        assert not b.listener.draining
        assert b.listener.draining._timer is None
    assert line["reason"] == "client_fin"


@pytest.mark.parametrize("turns", range(0, 14, 2))
async def test_close_at_any_turn(turns: int) -> None:
    """Closed in whichever turn of the loop after a client came: nothing is left (`bed` looks)."""
    async with bed(listener=FIFO + '\naccept_proxy = ["127.0.0.0/8"]') as b:
        client = b.dial()
        client.sock.send(b"PROXY UNKNOWN\r\n" + u32be(b"hello"))
        for _ in range(turns):
            await asyncio.sleep(0)
        if turns % 4:
            b.listener.drain()
        await in_time(b.listener.close())
        with contextlib.suppress(ConnectionResetError):
            await client.read_to_end()
    assert {line["reason"] for line in b.lines} <= {"shutdown"}
