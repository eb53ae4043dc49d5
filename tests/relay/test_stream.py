"""The relay's promises, byte for byte: the test holds the client's and the instance's sockets."""

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tcpgw.relay.reasons import Reason
from tcpgw.relay.stream import Relay
from tests.support.streams import SMALL, MiB, Peer, bed, dial, until

# More than one read, one write and the smaller buffers hold.
LARGE = random.Random(0).randbytes(5 * MiB)
# What a relay may hold in memory for a side that reads nothing: the transport's high-water mark (64 KiB) and
# the one read (256 KiB at most in uvloop) that went over it.
HELD = 320 * 1024


# ---- FIN ----


async def test_bytes_go_both_ways_and_are_counted() -> None:
    """A question and an answer arrive unchanged, and the closing line tells of both."""
    async with bed() as b:
        client, instance = await b.pair()
        await client.send(b"question")
        assert await instance.read(8) == b"question"
        await instance.send(b"the answer")
        assert await client.read(10) == b"the answer"
        address, endpoint = client.address, b.endpoint()
        client.fin()
        assert await instance.read_to_end() == b""
        instance.fin()
        assert await client.read_to_end() == b""
        line = await b.line()
    assert line["client"] == address
    assert line["endpoint"] == endpoint
    assert (line["listener"], line["service"]) == ("l", "s")
    assert (line["bytes_in"], line["bytes_out"]) == (8, 10)
    assert 0 < line["connect_time"] < line["duration"]
    assert line["tries"] == 1
    assert line["reason"] == "client_fin"
    assert "error" not in line
    assert "peer" not in line


async def test_a_client_that_ends_first_gets_the_whole_answer() -> None:
    """The client's FIN arrives at once; the other direction goes on for megabytes after it."""
    async with bed() as b:
        client, instance = await b.pair()
        client.fin()
        assert await instance.read_to_end() == b""
        async with asyncio.TaskGroup() as tasks:
            answer = tasks.create_task(client.read_to_end())
            await instance.send(LARGE)
            instance.fin()
        assert answer.result() == LARGE
        assert (await b.line())["reason"] == "client_fin"


async def test_an_instance_that_ends_first_gets_the_whole_request() -> None:
    """The same in the other direction."""
    async with bed() as b:
        client, instance = await b.pair()
        instance.fin()
        assert await client.read_to_end() == b""
        async with asyncio.TaskGroup() as tasks:
            request = tasks.create_task(instance.read_to_end())
            await client.send(LARGE)
            client.fin()
        assert request.result() == LARGE
        assert (await b.line())["reason"] == "instance_fin"


async def test_bytes_before_a_fin_arrive_before_it() -> None:
    """Megabytes with FIN behind them, to readers that start late, arrive whole in both directions."""
    async with bed() as b:
        client, instance = await b.pair()

        async def send(peer: Peer) -> None:
            await peer.send(LARGE)
            peer.fin()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send(client))
            tasks.create_task(send(instance))
            await asyncio.sleep(0.05)
            received = [tasks.create_task(peer.read_to_end()) for peer in (client, instance)]
        assert [task.result() for task in received] == [LARGE, LARGE]
        line = await b.line()
    assert (line["bytes_in"], line["bytes_out"]) == (len(LARGE), len(LARGE))


async def test_a_client_that_is_done_before_the_instance_is_connected() -> None:
    """Data and FIN that came while nobody was connected yet are passed on."""
    async with bed() as b:
        client = b.dial()  # the gateway has had no turn yet
        client.sock.send(b"all of it")
        client.fin()
        instance = await b.accept()
        assert await instance.read_to_end() == b"all of it"
        await instance.send(b"thanks")
        instance.close()
        assert await client.read_to_end() == b"thanks"
        assert (await b.line())["reason"] == "client_fin"


@pytest.mark.parametrize("first", ["client", "instance"])
async def test_an_empty_connection(first: str) -> None:
    """A connection without a byte ends with the FIN of whoever closed first, and no error."""
    async with bed() as b:
        peers = dict(zip(("client", "instance"), await b.pair(), strict=True))
        peers.pop(first).close()
        (other,) = peers.values()
        assert await other.read_to_end() == b""
        other.close()
        line = await b.line()
    assert line["reason"] == f"{first}_fin"
    assert (line["bytes_in"], line["bytes_out"]) == (0, 0)


# ---- RST ----


@pytest.mark.parametrize("culprit", ["client", "instance"])
@pytest.mark.parametrize("stage", ["empty", "after bytes", "after the other's fin"])
async def test_a_reset_is_passed_on_as_a_reset(culprit: str, stage: str) -> None:
    """A connection that broke off must not look finished to the other side."""
    async with bed() as b:
        peers = dict(zip(("client", "instance"), await b.pair(), strict=True))
        broken, other = peers.pop(culprit), *peers.values()
        if stage == "after bytes":
            await broken.send(b"half an ans")
            assert await other.read(11) == b"half an ans"
        if stage == "after the other's fin":
            other.fin()
            assert await broken.read_to_end() == b""
        broken.reset()
        assert await other.is_reset()
        assert (await b.line())["reason"] == f"{culprit}_reset"


@pytest.mark.parametrize("culprit", ["client", "instance"])
async def test_a_reset_reaches_a_side_that_had_stalled(culprit: str) -> None:
    """Whoever reads late reads a beginning of what was sent, then the reset, never a FIN."""
    async with bed() as b:
        client, instance = await b.pair(receive_buffer=SMALL)
        broken, late = (client, instance) if culprit == "client" else (instance, client)
        await broken.send_until_stalled()
        broken.reset()
        assert await late.is_reset()
        assert (await b.line())["reason"] == f"{culprit}_reset"


@pytest.mark.parametrize("culprit", ["client", "instance"])
async def test_a_reset_by_a_side_that_had_stalled(culprit: str) -> None:
    """Its sender, whose bytes have nowhere to go, hears of it."""
    async with bed() as b:
        client, instance = await b.pair(receive_buffer=SMALL)
        broken, sender = (client, instance) if culprit == "client" else (instance, client)
        await sender.send_until_stalled()
        broken.reset()
        assert await sender.is_reset()
        assert (await b.line())["reason"] == f"{culprit}_reset"


async def test_a_client_that_hangs_up_on_its_answer() -> None:
    """A client that ended its request and then resets was not delivered everything: no `client_fin`."""
    async with bed() as b:
        client, instance = await b.pair(receive_buffer=SMALL)
        await client.send(b"GET /")
        client.fin()
        assert await instance.read_to_end() == b"GET /"
        await instance.send_until_stalled()
        client.reset()
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            await instance.send(LARGE)
        assert (await b.line())["reason"] == "client_reset"


async def test_an_early_answer_to_a_request_that_goes_on() -> None:
    """An instance that answers and closes with half the request unread is heard, as without a gateway."""
    async with bed() as b:
        for _ in range(20):
            client, instance = await b.pair()
            sending = asyncio.create_task(client.send(LARGE))
            await instance.read(6)
            await instance.send(b"413")
            instance.close()
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                await sending
            assert await client.read(3) == b"413"
            client.close()


async def test_an_instance_that_stops_listening_after_its_answer() -> None:
    """An early answer with FIN reaches the client whole, although the rest of its request is refused."""
    async with bed() as b:
        client, instance = await b.pair()
        await client.send(b"POST /")
        assert await instance.read(6) == b"POST /"
        await instance.send(b"413")
        instance.close()
        assert await client.read_to_end() == b"413"
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            await client.send(LARGE)
        assert (await b.line())["reason"] == "instance_fin"


# ---- back-pressure ----


async def test_the_buffer_is_as_large_as_configured() -> None:
    """A side that reads nothing is read ahead for by `buffer` bytes, and one read more."""
    async with bed(listener='buffer = "4MiB"') as b:
        client, instance = await b.pair(receive_buffer=65536)
        await instance.send_until_stalled()
        transport = (await b.relay()).client.transport
        assert transport is not None
        assert 4 * MiB <= transport.get_write_buffer_size() <= 4 * MiB + HELD
        client.reset()


@pytest.mark.parametrize("sender", ["client", "instance"])
async def test_a_reader_that_stalls_holds_memory_flat(sender: str) -> None:
    """An endless sender is stopped, user space holds one buffer of it, others go on; then it flows again."""
    async with bed() as b:
        client, instance = await b.pair(receive_buffer=SMALL)
        relay = await b.relay()
        source, reader = (client, instance) if sender == "client" else (instance, client)
        from_, to = (relay.client, relay.instance) if sender == "client" else (relay.instance, relay.client)
        sent = await source.send_until_stalled()
        assert to.transport is not None
        assert 0 < to.transport.get_write_buffer_size() <= HELD
        stalled_at = from_.received

        other_client, other_instance = await b.pair()
        await other_client.send(LARGE[:1000])
        assert await other_instance.read(1000) == LARGE[:1000]
        other_client.fin()
        other_instance.fin()
        await until(lambda: b.lines)

        with pytest.raises(BlockingIOError):
            source.sock.send(b"x")
        assert from_.received == stalled_at
        assert to.transport.get_write_buffer_size() <= HELD
        assert await reader.read(sent) == bytes(sent)
        source.fin()
        assert await reader.read_to_end() == b""


async def test_a_stalled_direction_does_not_stop_the_other() -> None:
    """A client that reads nothing can still send."""
    async with bed() as b:
        client, instance = await b.pair(receive_buffer=SMALL)
        await instance.send_until_stalled()
        async with asyncio.TaskGroup() as tasks:
            upload = tasks.create_task(instance.read(len(LARGE)))
            await client.send(LARGE)
        assert upload.result() == LARGE


# ---- before the client is connected: an instance may speak first ----


@asynccontextmanager
async def instance_first(
    receive_buffer: int | None = None,
) -> AsyncIterator[tuple[Relay, Peer, Peer, socket.socket, list[Reason]]]:
    """A relay with only its instance connected. Yields it, both far ends, the client's socket, its ends."""
    loop = asyncio.get_running_loop()
    ends: list[Reason] = []
    relay = Relay(lambda reason, _: ends.append(reason), now=1000.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        await loop.create_connection(lambda: relay.instance, *server.getsockname())
        instance = Peer(server.accept()[0])
        client = dial(server.getsockname(), receive_buffer)
        sock = server.accept()[0]
        sock.setblocking(False)
        try:
            yield relay, client, instance, sock, ends
        finally:
            relay.abort(Reason.SHUTDOWN, reset=True)
            await until(lambda: len(ends) == 1 or relay.client.transport is None)
            for open_ in (client, instance):
                open_.close()
            sock.close()


async def join(relay: Relay, sock: socket.socket) -> None:
    await asyncio.get_running_loop().connect_accepted_socket(lambda: relay.client, sock)


async def test_a_greeting_waits_for_the_client() -> None:
    """Bytes that an instance sends before the client's transport stands are the first that it gets."""
    async with instance_first() as (relay, client, instance, sock, _):
        await instance.send(b"220 ready\r\n")
        await until(lambda: relay.instance.received == 11)
        await join(relay, sock)
        await instance.send(b"more")
        assert await client.read(15) == b"220 ready\r\nmore"
        await client.send(b"QUIT")
        assert await instance.read(4) == b"QUIT"


async def test_a_greeting_with_fin_waits_for_the_client() -> None:
    """A whole answer that is complete before the client's transport stands is delivered, large or small."""
    async with instance_first() as (relay, client, instance, sock, ends):
        await instance.send(LARGE[:MiB])
        instance.fin()
        await until(lambda: relay.instance.ended)
        await join(relay, sock)
        assert await client.read_to_end() == LARGE[:MiB]
        await client.send(b"bye")
        client.fin()
        assert await instance.read_to_end() == b"bye"
        await until(lambda: ends)
        assert ends == [Reason.INSTANCE_FIN]


async def test_an_instance_that_is_gone_before_the_client_stands() -> None:
    """The client of an instance that accepted and reset at once is reset, and the relay ends once."""
    async with instance_first() as (relay, client, instance, sock, ends):
        instance.reset()
        await until(lambda: relay.instance.lost)
        await join(relay, sock)
        assert await client.is_reset()
        await until(lambda: ends)
        assert ends == [Reason.INSTANCE_RESET]


async def test_an_abort_ends_a_relay_once() -> None:
    """A second abort changes neither the reason nor the number of ends."""
    async with instance_first() as (relay, client, instance, sock, ends):
        await join(relay, sock)
        relay.abort(Reason.IDLE_TIMEOUT, reset=False)
        relay.abort(Reason.SHUTDOWN, reset=True)
        assert await client.is_reset() or await instance.is_reset()
        await until(lambda: ends)
        relay.abort(Reason.SHUTDOWN, reset=True)
        await asyncio.sleep(0)
        assert ends == [Reason.IDLE_TIMEOUT]


# ---- silence ----


async def test_bytes_and_fins_break_the_silence() -> None:
    """Silence is measured from the last byte read, byte delivered or FIN, at the times that it is asked."""
    async with instance_first() as (relay, client, instance, sock, _):
        await join(relay, sock)
        assert relay.idle_seconds(1000.5) == 0.5
        await client.send(b"x")
        await instance.read(1)
        assert relay.idle_seconds(1001.0) == 0
        assert relay.idle_seconds(1005.0) == 4
        client.fin()
        await until(lambda: relay.half_closed)
        assert relay.idle_seconds(1006.0) == 0
        assert relay.idle_seconds(1007.0) == 1


async def test_a_slow_reader_is_not_silent() -> None:
    """A reader that takes what is buffered keeps its connection, although nothing new comes for it."""
    async with instance_first(receive_buffer=4096) as (relay, client, instance, sock, _):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # so that our own buffer holds some of it
        await join(relay, sock)
        await instance.send(LARGE[:60_000])
        await until(lambda: relay.instance.received == 60_000)
        relay.idle_seconds(1000.0)
        transport = relay.client.transport
        assert transport is not None
        buffered = transport.get_write_buffer_size()
        assert buffered > 0
        while transport.get_write_buffer_size() == buffered:
            await client.read_some(1024)
        assert relay.idle_seconds(1001.0) == 0
        assert relay.idle_seconds(1002.0) == 1
