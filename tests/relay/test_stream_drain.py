"""The ends of plain relays that the gateway chooses: at a moment at which nothing seems to be under way."""

import asyncio
import contextlib

import pytest

from tcpgw.relay import draining, stream_plane
from tcpgw.relay.draining import Cause
from tests.support.streams import SMALL, Bed, Peer, bed, in_time, silent, until


async def ask(client: Peer, instance: Peer) -> None:
    """A question and its answer."""
    await client.send(b"question")
    assert await instance.read(8) == b"question"
    await instance.send(b"answer")
    assert await client.read(6) == b"answer"


def stages(b: Bed, cause: Cause = Cause.SHUTDOWN) -> dict[str, int]:
    return {stage: count for stage, count in b.listener.status()["drains"][cause.value].items() if count}


async def test_drain_ends_quiet_connections() -> None:
    """Where the instance sent last, or nobody ever did, both sides get FIN within a fraction of a second."""
    async with bed() as b:
        pairs = [await b.pair() for _ in range(3)]
        await ask(*pairs[1])
        await pairs[2][1].send(b"welcome")
        assert await pairs[2][0].read(7) == b"welcome"
        began = asyncio.get_running_loop().time()
        drain = asyncio.create_task(b.gateway.drain())
        for peer in (peer for pair in pairs for peer in pair):
            assert await peer.read_to_end() == b""
            peer.close()
        await in_time(drain)
        assert asyncio.get_running_loop().time() - began < 1.5
        assert stages(b) == {"started": 3, "closed": 3}
    assert [line["reason"] for line in b.lines] == ["drained"] * 3
    assert not any("error" in line for line in b.lines)


async def test_drain_waits_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the client sent last, an answer is probably owed: only a longer silence ends it."""
    async with bed() as b:
        client, instance = await b.pair()
        await ask(client, instance)
        await client.send(b"a second question")
        assert await instance.read(17) == b"a second question"
        drain = asyncio.create_task(b.gateway.drain())
        await asyncio.sleep(0.4)
        assert not b.lines
        await instance.send(b"answer")
        assert await client.read_to_end() == b"answer"
        client.close()
        instance.close()
        await in_time(drain)
        assert (await b.line())["reason"] == "drained"

    monkeypatch.setattr(stream_plane, "_STILL_OWED", 4)
    async with bed() as b:
        client, instance = await b.pair()
        await client.send(b"just so you know")
        began = asyncio.get_running_loop().time()
        drain = asyncio.create_task(b.gateway.drain())
        assert await client.read_to_end() == b""
        assert asyncio.get_running_loop().time() - began > 0.3
        assert await instance.read_to_end() == b"just so you know"
        client.close()
        instance.close()
        await in_time(drain)


async def test_drain_does_not_end_what_moves() -> None:
    """An answer that goes on without a longer pause is let through to its end."""
    async with bed() as b:
        client, instance = await b.pair()
        await client.send(b"question")
        assert await instance.read(8) == b"question"
        drain = asyncio.create_task(b.gateway.drain())
        for _ in range(20):
            await instance.send(b"token ")
            assert await client.read(6) == b"token "
            await asyncio.sleep(0.02)
        assert not b.lines
        assert await client.read_to_end() == b""
        client.close()
        instance.close()
        await in_time(drain)
        assert (await b.line())["bytes_out"] == 120


async def test_drain_waits_for_a_slow_reader() -> None:
    """While something waits to be written, nothing moves, and still nothing is cut off."""
    async with bed() as b:
        client, instance = await b.pair(receive_buffer=SMALL)
        await client.send(b"question")
        sent = await instance.send_until_stalled()
        drain = asyncio.create_task(b.gateway.drain())
        await asyncio.sleep(0.4)
        assert not b.lines
        received = len(await client.read_to_end())
        assert received == sent
        client.close()
        instance.close()
        await in_time(drain)
        assert (await b.line())["reason"] == "drained"


async def test_drain_leaves_half_closed_connections_to_themselves() -> None:
    """A client that has ended its request gets its whole answer, however long that pauses."""
    async with bed() as b:
        client, instance = await b.pair()
        await client.send(b"question")
        client.fin()
        assert await instance.read_to_end() == b"question"
        await instance.send(b"half an ")
        drain = asyncio.create_task(b.gateway.drain())
        await asyncio.sleep(0.4)
        await instance.send(b"answer")
        instance.close()
        assert await client.read_to_end() == b"half an answer"
        await in_time(drain)
        assert stages(b) == {"started": 1, "finished": 1}
    assert [line["reason"] for line in b.lines] == ["client_fin"]


async def test_what_is_sent_after_the_end() -> None:
    """It goes nowhere and does not count, and who sends it is not reset before it could read FIN."""
    async with bed() as b:
        client, instance = await b.pair()
        await ask(client, instance)
        b.listener.drain()
        assert await instance.read_to_end() == b""
        await client.send(b"too late")
        await instance.send(b"and so is this")
        await asyncio.sleep(0.05)
        assert await client.read_to_end() == b""
        client.close()
        instance.close()
        line = await b.line()
    assert (line["reason"], line["bytes_in"], line["bytes_out"]) == ("drained", 8, 6)


async def test_drain_does_not_wait_for_those_who_do_not_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that never looks at its idle connection does not hold up the stop, nor one that sends on."""
    monkeypatch.setattr(stream_plane, "_LINGER", 3)
    async with bed() as b:
        await b.pair()
        client, instance = await b.pair()
        drain = asyncio.create_task(b.gateway.drain())
        assert await instance.read_to_end() == b""
        while not drain.done():
            with contextlib.suppress(OSError):
                await client.send(b"on and on")
            await asyncio.sleep(0.01)
        await in_time(drain, 3.0)
        assert stages(b) == {"started": 2, "closed": 2}


async def test_the_ends_are_spread() -> None:
    """Each connection ends at a moment of its own within the time, so that not all clients return at once."""
    async with bed() as b:
        pairs = [await b.pair() for _ in range(40)]
        loop = asyncio.get_running_loop()
        began = loop.time()
        drain = asyncio.create_task(b.gateway.drain(1.0, 20.0))

        async def end(client: Peer, instance: Peer) -> float:
            assert await client.read_to_end() == b""
            client.close()
            instance.close()
            return loop.time() - began

        ends = await asyncio.gather(*(end(*pair) for pair in pairs))
        await in_time(drain)
        assert max(ends) < 3.0
        # A second of quiet after its moment.
        assert sum(at < 1.6 for at in ends) > 5
        assert sum(at > 1.6 for at in ends) > 5


async def test_connections_in_set_up_are_drained_once_they_stand() -> None:
    """They had been accepted; their moment comes when there is something to end."""
    async with bed(listener='accept_proxy = ["127.0.0.0/8"]') as b:
        client = b.dial()
        await until(lambda: b.listener.accepted)
        drain = asyncio.create_task(b.gateway.drain(0.0, 20.0))
        await asyncio.sleep(0.05)
        assert not drain.done()
        await client.send(b"PROXY UNKNOWN\r\nquestion")
        instance = await b.accept()
        assert await instance.read(8) == b"question"
        await instance.send(b"answer")
        assert await client.read_to_end() == b"answer"
        client.close()
        instance.close()
        await in_time(drain)
        assert stages(b) == {"started": 1, "closed": 1}


@pytest.mark.parametrize("header", [True, False])
async def test_a_set_up_does_not_hold_up_the_end(header: bool) -> None:
    """Who has not said who it is, or waits for an instance that does not answer, is turned away in time."""
    listener = 'accept_proxy = ["127.0.0.0/8"]\nproxy_timeout = "1h"' if header else ""
    with silent() as nobody:
        connect = 'connect = { timeout = "1h" }'
        async with bed(listener=listener, instances=0, endpoints=[nobody], service=connect) as b:
            client = b.dial()
            await until(lambda: b.listener.accepted)
            await asyncio.sleep(0.02)
            await in_time(b.gateway.drain(0.0, 0.1), 3.0)
            with contextlib.suppress(ConnectionResetError):
                assert await client.read_to_end() == b""
            assert b.listener._cutting is None
    assert [line["reason"] for line in b.lines] == ["shutdown"]


# ---- max_age ----


@pytest.mark.parametrize("mode", ["tcp", "rpc"])
async def test_old_connections_end(mode: str) -> None:
    """At their age, give or take a tenth, those that are quiet get FIN."""
    frames = '\nmode = "rpc"\ncodec = "u32be"' if mode == "rpc" else ""
    async with bed(listener='max_age = "500ms"' + frames) as b:
        pairs = [await b.pair() for _ in range(10)]
        for client, instance in pairs:
            assert await client.read_to_end() == b""
            client.close()
            instance.close()
        await b.closed(10)
        assert stages(b, Cause.MAX_AGE) == {"started": 10, "closed": 10}
        client, instance = await b.pair()
        client.close()
        instance.close()
        await b.closed(11)
        assert stages(b, Cause.MAX_AGE)["started"] == 10
    assert [line["reason"] for line in b.lines[:10]] == ["max_age"] * 10
    durations = [line["duration"] for line in b.lines[:10]]
    assert min(durations) >= 0.45
    assert max(durations) < 2.5


async def test_those_that_came_together_do_not_all_end_together() -> None:
    """Ages differ by a tenth both ways."""
    async with bed(listener='max_age = "1500ms"') as b:
        pairs = [await b.pair() for _ in range(20)]
        loop = asyncio.get_running_loop()

        async def end(client: Peer, instance: Peer) -> float:
            assert await client.read_to_end() == b""
            client.close()
            instance.close()
            return loop.time()

        ends = await asyncio.gather(*(end(*pair) for pair in pairs))
        assert 0.05 < max(ends) - min(ends) < 1.0


async def test_old_connections_that_do_not_end_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that still waits for its answer some time after its age is reset, and its line says why."""
    monkeypatch.setattr(draining, "CUT_AFTER", 0.2)
    async with bed(listener='max_age = "200ms"') as b:
        client, instance = await b.pair()
        await client.send(b"question")
        assert await instance.is_reset()
        line = await b.line()
        assert stages(b, Cause.MAX_AGE) == {"started": 1, "reset": 1}
    assert line["reason"] == "max_age"
    assert line["error"].startswith("not ended within 0.")
