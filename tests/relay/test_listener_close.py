"""The end of a listener: whatever stage a connection is in, nothing of it is left, and it is logged once.

That nothing is left (no task, no socket, no load, one line each) is checked at the end of every `bed`.
"""

import asyncio
import contextlib

import pytest

from tests.support.streams import SMALL, Bed, Peer, bed, dial, in_time, silent, until

TRUST_LOOPBACK = 'accept_proxy = ["127.0.0.0/8"]'


def reasons(b: Bed) -> list[str]:
    return [line["reason"] for line in b.lines]


async def ends(peer: Peer) -> None:
    with contextlib.suppress(ConnectionResetError):
        await peer.read_to_end()


# ---- close ----


@pytest.mark.parametrize("turns", range(14))
@pytest.mark.parametrize("listener", ["", TRUST_LOOPBACK], ids=["", "with header"])
async def test_close_at_any_turn(turns: int, listener: str) -> None:
    """Closed in whichever turn of the loop after a client came, from its accept to its relay."""
    async with bed(listener=listener) as b:
        client = b.dial()
        client.sock.send(b"PROXY UNKNOWN\r\nhello")
        for _ in range(turns):
            await asyncio.sleep(0)
        await in_time(b.listener.close())
        await ends(client)
    assert reasons(b) == ["shutdown"] * b.listener.accepted


async def test_the_turns_reach_from_nothing_to_a_relay() -> None:
    """The range above covers every stage: before the accept, before its task's first turn, …, relaying."""
    stages = set()
    for turns in range(14):
        async with bed() as b:
            b.dial()
            for _ in range(turns):
                await asyncio.sleep(0)
            connection = next(iter(b.listener.connections.values()), None)
            stages.add(
                "waiting"
                if connection is None
                else "relaying"
                if connection.session
                else "connecting"
                if connection.facts
                else "accepted"
            )
    assert stages == {"waiting", "accepted", "connecting", "relaying"}


async def test_close_while_a_header_is_awaited() -> None:
    """A client that has not said who it is."""
    async with bed(listener=TRUST_LOOPBACK) as b:
        client = b.dial()
        await until(lambda: b.listener.accepted)
        await asyncio.sleep(0.01)
        await in_time(b.listener.close())
        await ends(client)
    assert reasons(b) == ["shutdown"]
    assert b.lines[0]["service"] is None


async def test_close_while_connecting() -> None:
    """A client that waits for an instance which does not answer."""
    with silent() as nobody:
        async with bed(instances=0, endpoints=[nobody], service='connect = { timeout = "1h" }') as b:
            client = b.dial()
            await until(lambda: b.pool.loads.total)
            await in_time(b.listener.close())
            await ends(client)
    assert reasons(b) == ["shutdown"]
    assert b.lines[0]["service"] == "s"


@pytest.mark.parametrize("state", ["open", "client fin", "instance fin", "stalled", "both fin and stalled"])
async def test_close_while_relaying(state: str) -> None:
    """Who was not told of an end before is reset: what was cut off must not look finished."""
    async with bed() as b:
        client, instance = await b.pair(receive_buffer=SMALL)
        await client.send(b"hello")
        await instance.read(5)
        if "stalled" in state:
            await instance.send_until_stalled(quiet=0.05)
        if "client fin" in state or "both" in state:
            client.fin()
        if "instance fin" in state or "both" in state:
            instance.fin()
        await asyncio.sleep(0.01)
        await in_time(b.listener.close())
        assert await (instance if state == "instance fin" else client).is_reset()
    assert reasons(b) == ["shutdown"]


async def test_close_with_a_client_that_was_not_accepted() -> None:
    """One that waits for its turn beyond max_connections is turned away, without a line: it never came in."""
    async with bed(listener="max_connections = 1") as b:
        client, _ = await b.pair()
        waiting = b.dial()
        await asyncio.sleep(0.01)
        await in_time(b.listener.close())
        assert await client.is_reset()
        assert await waiting.is_reset()
    assert reasons(b) == ["shutdown"]


async def test_close_twice() -> None:
    """Closing is idempotent, also while it goes on."""
    async with bed() as b:
        await b.pair()
        await in_time(asyncio.gather(b.listener.close(), b.listener.close()))
        await in_time(b.listener.close())
    assert reasons(b) == ["shutdown"]


async def test_close_many_at_once() -> None:
    """Hundreds of connections in all stages."""
    with silent() as nobody:
        async with bed(endpoints=[nobody], listener=TRUST_LOOPBACK) as b:
            for number in range(150):
                client = b.dial(source=f"127.0.0.{1 + number % 50}")
                if number % 3:
                    client.sock.send(b"PROXY UNKNOWN\r\nhello")
                if number % 10 == 0:
                    await asyncio.sleep(0)
            await until(lambda: b.listener.accepted == 150)
            await in_time(b.listener.close())
    assert reasons(b) == ["shutdown"] * 150


async def test_the_gateway_closes_what_it_opened() -> None:
    """Leaving `async with Gateway` refuses clients and ends connections, even when its body raises."""
    with pytest.raises(RuntimeError, match="body"):  # noqa: PT012 - the block is what is tested
        async with bed() as b:
            address = b.listener.address
            client, _ = await b.pair()
            raise RuntimeError("body")
    assert reasons(b) == ["shutdown"]
    assert not b.pool.loads.total
    host, _, port = address.rpartition(":")
    with pytest.raises(ConnectionRefusedError):
        dial((host, int(port)))
    assert client.sock.fileno() == -1


# ---- drain ----


async def test_drain_lets_connections_finish() -> None:
    """New clients are refused at once; those that are here go on; the drain ends with the last of them."""
    async with bed() as b:
        client, instance = await b.pair()
        address = client.sock.getpeername()
        await client.send(b"a question")
        assert await instance.read(10) == b"a question"
        draining = asyncio.create_task(b.gateway.drain())
        await asyncio.sleep(0)
        with pytest.raises(ConnectionRefusedError):
            dial(address)
        await client.send(b"still")
        assert await instance.read(5) == b"still"
        assert not draining.done()
        client.close()
        instance.close()
        await in_time(draining, 1.0)
        assert not b.listener.connections
    assert reasons(b) == ["client_fin"]


async def test_drain_ends_after_its_time() -> None:
    """Who did not finish by then is reset, and its line says why."""
    async with bed() as b:
        client, instance = await b.pair()
        await client.send(b"a question")
        assert await instance.read(10) == b"a question"
        await in_time(b.gateway.drain(0.0, 0.25), 3.0)
        assert not b.listener.connections
        assert await client.is_reset()
        assert await instance.is_reset()
        (line,) = b.lines
        assert (line["reason"], line["error"]) == ("drained", "not ended within 0.25 s of its drain")
        assert b.listener.status()["drains"] == {
            "shutdown": {"started": 1, "finished": 0, "closed": 0, "reset": 1, "spared": 0}
        }


async def test_drain_without_connections() -> None:
    """Nothing to wait for."""
    async with bed() as b:
        await in_time(b.gateway.drain(), 1.0)


async def test_drain_waits_for_those_being_connected() -> None:
    """A client that was accepted is served, although no instance has answered yet."""
    with silent() as nobody:
        # All that come to the silent one first retry at the same moment.
        connect = 'connect = { timeout = "100ms", retry_budget = 1.0 }'
        async with bed(endpoints=[nobody], service=connect) as b:
            clients = [b.dial(source=f"127.0.0.{number}") for number in range(1, 9)]
            await until(lambda: b.listener.accepted == 8)
            draining = asyncio.create_task(b.gateway.drain())
            for client in clients:
                instance = await b.accept()
                await instance.send(b"welcome")
                instance.close()
                client.fin()
            for client in clients:
                assert await client.read_to_end() == b"welcome"
            await in_time(draining)
            assert not b.listener.connections
    assert max(line["tries"] for line in b.lines) == 2
