"""A service's connections, byte by byte: framings, bounds, clients that misbehave."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aio_msgpack_rpc
import msgpack
import pytest
from structlog.testing import capture_logs

from tcpgw.address import Address
from tcpgw.client import connect
from tcpgw.service import Service
from tests.support.rpc_ends import frame, nothing_left, peer_of, read_message
from tests.support.streams import PATIENCE, SMALL, MiB, in_time, until


@pytest.fixture(autouse=True)
async def leaves_nothing() -> AsyncIterator[None]:
    async with nothing_left():
        yield


LOCAL = "127.0.0.1:0"


class Gate:
    """A method that ends when it is let go, one call for each `release`."""

    def __init__(self) -> None:
        self.begun: list[Any] = []
        self.cancelled = 0
        self._open = asyncio.Semaphore(0)

    async def __call__(self, value: Any = None) -> Any:
        self.begun.append(value)
        try:
            await self._open.acquire()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return value

    def release(self, count: int = 1) -> None:
        for _ in range(count):
            self._open.release()


async def echo(value: Any) -> Any:
    return value


def request(number: int, method: str, *params: Any) -> bytes:
    return frame(0, number, method, params)


# ---- framings ----


async def test_frames_are_answered_in_frames() -> None:
    """A first byte below 0x10 is a length, and so are the answers framed."""
    async with Service({"echo": echo}).serving(LOCAL) as address:
        with peer_of(address) as peer:
            await peer.send(request(7, "echo", 1) + request(2**32 - 1, "echo", 2))
            assert await read_message(peer) == [1, 7, None, 1]
            assert await read_message(peer) == [1, 2**32 - 1, None, 2]


async def test_a_raw_stream_is_answered_raw() -> None:
    """A first byte that is an array's is a raw message, and so are the answers."""
    async with Service({"echo": echo}).serving(LOCAL) as address:
        with peer_of(address) as peer:
            await peer.send(
                msgpack.packb([0, 7, "echo", [1]]) + b"\xdc\0\4\0\x08" + msgpack.packb("echo") + b"\x91\2"
            )
            answers = msgpack.packb([1, 7, None, 1]) + msgpack.packb([1, 8, None, 2])
            assert await peer.read(len(answers)) == answers


@pytest.mark.parametrize("raw", [False, True])
async def test_requests_in_single_bytes(raw: bool) -> None:
    """A request may come in pieces of any size, in both framings."""
    async with Service({"echo": echo}).serving(LOCAL) as address:
        with peer_of(address) as peer:
            for number in range(2):
                for byte in request(number, "echo", "value")[4 if raw else 0 :]:
                    await peer.send(bytes([byte]))
                    await asyncio.sleep(0)
                expected = frame(1, number, None, "value")[4 if raw else 0 :]
                assert await peer.read(len(expected)) == expected


async def test_a_client_that_nobody_here_wrote() -> None:
    """aio-msgpack-rpc's client gets results and errors, many at a time, in its raw stream."""
    async with Service({"echo": echo}).serving(LOCAL) as address:
        where = Address.parse(address)
        reader, writer = await asyncio.open_connection(where.host, where.port)
        client = aio_msgpack_rpc.Client(reader, writer)
        values = [0, "text", b"bytes", [1, [2]], {"k": None}, "x" * 100_000] * 20
        assert await in_time(asyncio.gather(*(client.call("echo", value) for value in values))) == values
        with pytest.raises(aio_msgpack_rpc.error.RPCResponseError, match="unknown_method"):
            await in_time(client.call("nothing"))
        await client.notify("echo", 1)
        assert await in_time(client.call("echo", "last")) == "last"
        await asyncio.sleep(0.01)  # its receiver ends with the last answer, or closing would cancel it
        client.close()
        await writer.wait_closed()


async def test_old_clients_send_names_and_texts_as_bytes() -> None:
    """A method's name may be a byte string, and text may hold any bytes: they come back as they were."""
    async with Service({"echo": echo}).serving(LOCAL) as address:
        with peer_of(address) as peer:
            await peer.send(b"\x94\0\1\xc4\4echo\x91\xa2\xff\xfe")
            assert await peer.read(7) == b"\x94\1\1\xc0\xa2\xff\xfe"


async def test_notifications_are_not_answered() -> None:
    """Whatever becomes of a notification, only the log says so."""

    async def fail() -> None:
        raise ValueError("why")

    async with Service({"fail": fail}).serving(LOCAL) as address:
        with peer_of(address) as peer, capture_logs() as logs:
            for method in ("fail", "nothing", "tcpgw.ping"):
                await peer.send(frame(2, method, []))
            await peer.send(request(1, "tcpgw.ping"))
            assert await read_message(peer) == [1, 1, None, "pong"]
            await until(lambda: len(logs) == 2)
    assert sorted(line["event"] for line in logs) == ["method_failed", "notification_dropped"]


# ---- bounds ----


async def test_a_connection_has_its_share_in_work() -> None:
    """Beyond per_connection, a connection's requests wait for its own; other connections go on."""
    gate = Gate()
    async with Service({"gate": gate}, per_connection=2).serving(LOCAL) as address:
        with peer_of(address) as greedy, peer_of(address) as other:
            await greedy.send(b"".join(request(n, "gate", n) for n in range(5)))
            await until(lambda: len(gate.begun) == 2)
            await other.send(request(9, "gate", "other"))
            await until(lambda: gate.begun == [0, 1, "other"])
            gate.release(6)
            assert sorted([(await read_message(greedy))[1] for _ in range(5)]) == [0, 1, 2, 3, 4]
            assert await read_message(other) == [1, 9, None, "other"]
            assert gate.begun == [0, 1, "other", 2, 3, 4]


async def test_all_connections_share_max_inflight_in_turns() -> None:
    """Beyond max_inflight, connections wait, and each gets its turn, whoever has more to do."""
    gate = Gate()
    async with Service({"gate": gate}, max_inflight=1).serving(LOCAL) as address:
        with peer_of(address) as greedy, peer_of(address) as modest:
            await greedy.send(b"".join(request(n, "gate", n) for n in range(3)))
            await until(lambda: gate.begun == [0])
            await modest.send(request(9, "gate", "modest"))
            await asyncio.sleep(0.01)
            gate.release(4)
            assert [(await read_message(greedy))[1] for _ in range(3)] == [0, 1, 2]
            assert await read_message(modest) == [1, 9, None, "modest"]
            assert gate.begun == [0, 1, "modest", 2]


async def test_ping_is_answered_when_no_place_is_free() -> None:
    """A full service is healthy: a health check does not wait behind what fills it."""
    gate = Gate()
    async with Service({"gate": gate}, max_inflight=1).serving(LOCAL) as address:
        with peer_of(address) as busy, peer_of(address) as check:
            await busy.send(request(1, "gate") + request(2, "gate"))
            await until(lambda: gate.begun)
            await check.send(request(1, "tcpgw.ping"))
            assert await read_message(check) == [1, 1, None, "pong"]
            gate.release(2)
            assert [(await read_message(busy))[1] for _ in range(2)] == [1, 2]


async def test_a_connection_that_waits_may_go() -> None:
    """A connection that is lost while its request waits for a place leaves none behind."""
    gate = Gate()
    async with Service({"gate": gate}, max_inflight=1).serving(LOCAL) as address:
        with peer_of(address) as first, peer_of(address) as third:
            await first.send(request(1, "gate", 1))
            await until(lambda: gate.begun == [1])
            with peer_of(address) as second:
                await second.send(request(2, "gate", 2) + bytes(4))
                await asyncio.sleep(0.01)
                second.reset()
            await third.send(request(3, "gate", 3))
            await asyncio.sleep(0.01)
            gate.release(3)
            assert await read_message(third) == [1, 3, None, 3]


async def test_a_flood_stays_with_its_sender() -> None:
    """A client that sends more than is done is not read: its requests wait in its own kernel."""
    gate = Gate()
    async with Service({"gate": gate}, per_connection=4).serving(LOCAL) as address:
        with peer_of(address) as peer:
            flood = request(1, "gate", bytes(60_000))
            sending = asyncio.create_task(peer.send(flood * 2000))
            await until(lambda: len(gate.begun) == 4)
            await asyncio.sleep(0.1)
            assert not sending.done()
            assert len(gate.begun) == 4
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sending
            gate.release(2000)


async def test_a_client_that_does_not_read_is_cut() -> None:
    """Unread answers stop their connection's work, then cut it after stall_timeout; others are served."""
    made = 0

    async def large() -> bytes:
        nonlocal made
        made += 1
        return bytes(MiB)

    service = Service({"large": large}, stall_timeout=0.2, per_connection=8)
    async with service.serving(LOCAL) as address, connect(address) as other:
        with peer_of(address, receive_buffer=SMALL) as peer, capture_logs() as logs:
            await peer.send(b"".join(request(n, "large") for n in range(1000)))
            while not logs:
                assert await other.call("tcpgw.ping") == "pong"
                await asyncio.sleep(0.005)
            assert made < 30
            assert (logs[0]["event"], logs[0]["reason"]) == ("client_aborted", "the client reads no answers")
            assert await peer.is_reset()


async def test_a_slow_client_gets_everything() -> None:
    """A client that reads slowly, but reads, is not cut, however long the whole takes."""
    async with Service({"echo": echo}, stall_timeout=0.2).serving(LOCAL) as address:
        with peer_of(address, receive_buffer=SMALL) as peer:
            for number in range(4):
                await peer.send(request(number, "echo", bytes(MiB)))
            total = 4 * len(frame(1, 1, None, bytes(MiB)))
            began, read = asyncio.get_running_loop().time(), 0
            while read < total:
                read += len(await peer.read_some(300_000))
                await asyncio.sleep(0.02)
            assert asyncio.get_running_loop().time() - began > 0.25


@pytest.mark.parametrize("begun", [b"\0", b"\0\0\0\x09\x94", b"\x94", b"\x94\0\1\xdb\0\0\0\5ab"])
async def test_a_frame_that_does_not_become_whole_is_cut(begun: bytes) -> None:
    """A frame that drips is cut after stall_timeout, though bytes come; a client between frames may idle."""
    async with Service(stall_timeout=0.1).serving(LOCAL) as address:
        with peer_of(address) as idle, peer_of(address) as dripping, capture_logs() as logs:
            await idle.send(request(1, "tcpgw.ping"))
            await dripping.send(begun)
            assert await dripping.is_reset() or logs
            assert [line["reason"] for line in logs] == ["a frame did not become whole in time"]
            await asyncio.sleep(0.1)
            assert await read_message(idle) == [1, 1, None, "pong"]
            await idle.send(request(2, "tcpgw.ping"))
            assert await read_message(idle) == [1, 2, None, "pong"]


# ---- clients that misbehave ----


async def test_a_client_that_speaks_something_else_is_cut() -> None:
    """HTTP, TLS and other protocols get no answer, which they could not read."""
    async with Service().serving(LOCAL) as address:
        for greeting in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\0\xff", b"\xc1", b"\x80"):
            with peer_of(address) as peer, capture_logs() as logs:
                await peer.send(greeting)
                with contextlib.suppress(ConnectionResetError):
                    assert await peer.read_to_end() == b""
                assert logs[0]["reason"] == "neither a frame nor a MessagePack array"


# ---- clients that go ----


async def test_a_client_that_goes_takes_its_requests_along() -> None:
    """A request whose client is gone is cancelled; a notification is carried out."""
    gate = Gate()
    async with Service({"gate": gate}).serving(LOCAL) as address:
        with peer_of(address) as peer:
            await peer.send(request(1, "gate", "asked") + frame(2, "gate", ["told"]))
            await until(lambda: gate.begun == ["asked", "told"])
            peer.reset()
        await until(lambda: gate.cancelled == 1)
        await asyncio.sleep(0.01)
        assert gate.cancelled == 1
        gate.release()


async def test_a_client_that_sends_fin_gets_its_answers() -> None:
    """FIN after the last request says that nothing more is asked, not that nothing is wanted."""
    gate = Gate()
    async with Service({"gate": gate}, per_connection=1).serving(LOCAL) as address:
        with peer_of(address) as peer:
            await peer.send(request(1, "gate", "a") + request(2, "gate", "b") + frame(2, "gate", ["c"]))
            peer.fin()
            await until(lambda: gate.begun)
            gate.release(3)
            answers = await in_time(peer.read_to_end(), PATIENCE)
            assert answers == frame(1, 1, None, "a") + frame(1, 2, None, "b")
            await until(lambda: gate.begun == ["a", "b", "c"])
