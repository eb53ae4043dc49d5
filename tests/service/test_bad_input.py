"""What clients send that a service cannot read: whose trouble it is, and what goes on."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tcpgw.client import RpcError, connect
from tcpgw.errors import Code
from tcpgw.service import Service, connection
from tests.support.rpc_ends import frame, nothing_left, peer_of, read_message
from tests.support.streams import SMALL, Peer, until


@pytest.fixture(autouse=True)
async def leaves_nothing() -> AsyncIterator[None]:
    async with nothing_left():
        yield


LOCAL = "127.0.0.1:0"


async def echo(value: Any) -> Any:
    return value


def request(number: int, method: str, *params: Any) -> bytes:
    return frame(0, number, method, params)


HEAD = b"\x94\0\7"  # of a request with the id 7
raws = pytest.mark.parametrize("raw", [False, True], ids=["framed", "raw"])


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


async def read_answer(peer: Peer, *, raw: bool) -> Any:
    if not raw:
        return await read_message(peer)
    scan = msgpack.Unpacker()
    while True:
        scan.feed(await peer.read(1))
        with contextlib.suppress(msgpack.OutOfData):
            return scan.unpack()


@raws
@pytest.mark.parametrize(
    "bad",
    [
        b"\x92\0\7",
        b"\x93\0\7\xa4gate",
        b"\x95\0\7\xa4gate\x90\xc0",
        HEAD + b"\xa4gate\x80",
        HEAD + b"\5\x90",
        HEAD + b"\xa4gate\x91\x81\x91\1\xc0",  # a map's key that is a list
        HEAD + b"\xa4gate\x91\xc7\3\xff\1\2\3",  # a timestamp of 3 bytes
        HEAD + b"\xa4gate\x91\xd7\xff" + b"\xff" * 8,  # of 2³⁰ - 1 nanoseconds
    ],
)
async def test_a_bad_request_is_answered(bad: bytes, raw: bool) -> None:
    """A request that cannot be read gets `bad_frame` under its id; all others of its connection go on."""
    begun, go, cut = [], asyncio.Event(), 4 if raw else 0

    async def gate(value: str) -> str:
        begun.append(value)
        await go.wait()
        return value

    async with Service({"gate": gate}).serving(LOCAL) as address:
        with peer_of(address) as peer, capture_logs() as logs:
            await peer.send(request(1, "gate", "before")[cut:] + framed(bad)[cut:])
            kind, number, error, result = await read_answer(peer, raw=raw)
            assert (kind, number, error["code"], result) == (1, 7, "bad_frame", None)
            await peer.send(request(2, "gate", "after")[cut:])
            await until(lambda: begun == ["before", "after"])
            go.set()
            assert await read_answer(peer, raw=raw) == [1, 1, None, "before"]
            assert await read_answer(peer, raw=raw) == [1, 2, None, "after"]
    (line,) = logs
    assert (line["event"], line["count"]) == ("messages_unreadable", 1)
    assert line["error"] == error["message"] != ""


@pytest.mark.parametrize(
    "rest",
    [b"", b"\xc1", b"\x90", b"\xa4echo\x90\0", b"\xa4echo\x91\xa9cut", b"\xa4echo" + b"\x91" * 2000 + b"\0"],
)
async def test_a_frame_bounds_what_is_bad(rest: bytes) -> None:
    """What follows a readable head may be no MessagePack, too little, too much or too deep."""
    async with Service({"echo": echo}).serving(LOCAL) as address:
        with peer_of(address) as peer, capture_logs():
            await peer.send(framed(HEAD + rest) + request(8, "echo", "next"))
            assert (await read_message(peer))[1] == 7
            assert await read_message(peer) == [1, 8, None, "next"]


@raws
@pytest.mark.parametrize(
    "bad", [b"\x93\2\xa4echo\x80", b"\x93\2\5\x90", b"\x92\2\xa4echo", b"\x94\1\7\xc0\xc0"]
)
async def test_what_nobody_waits_for_is_dropped(bad: bytes, raw: bool) -> None:
    """A notification that cannot be read, or an answer to nothing, is not answered, and harms nobody."""
    cut = 4 if raw else 0
    async with Service({"echo": echo}).serving(LOCAL) as address:
        with peer_of(address) as peer, capture_logs() as logs:
            await peer.send(request(7, "echo", 1)[cut:] + framed(bad)[cut:] + request(8, "echo", 2)[cut:])
            assert await read_answer(peer, raw=raw) == [1, 7, None, 1]
            assert await read_answer(peer, raw=raw) == [1, 8, None, 2]
    assert [line["event"] for line in logs] == ["messages_unreadable"]


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\xc1",
        b"\5",
        b"\1\2",
        b"\x94\0",
        b"\x94\0\xa17\xa4echo\x90",
        b"\x94\3\7\xa4echo\x90",
        b"\x91" * 5000,
    ],
)
async def test_a_frame_without_a_head_is_dropped(bad: bytes) -> None:
    """A frame that does not say whose it is is not answered, and the next one is served."""
    async with Service({"echo": echo}).serving(LOCAL) as address:
        with peer_of(address) as peer, capture_logs() as logs:
            await peer.send(request(7, "echo", 1) + framed(bad) + request(8, "echo", 2))
            assert await read_message(peer) == [1, 7, None, 1]
            assert await read_message(peer) == [1, 8, None, 2]
    assert [line["event"] for line in logs] == ["messages_unreadable"]


async def test_bad_messages_do_not_fill_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection has a line about bad messages now and then, with how many there were since the last."""
    monkeypatch.setattr(connection, "_QUIET", 0.05)
    async with Service().serving(LOCAL) as address:
        with peer_of(address) as peer, capture_logs() as logs:
            sent = 0
            while len(logs) < 3:
                await peer.send(framed(HEAD))
                await read_message(peer)
                sent += 1
    assert logs[0]["count"] == 1
    assert sum(line["count"] for line in logs) == sent > 3


async def test_bad_requests_wait_for_who_does_not_read() -> None:
    """Answers to bad requests count as any: who reads none of them is not read either."""
    async with Service(stall_timeout=0.2).serving(LOCAL) as address:
        with peer_of(address, receive_buffer=SMALL) as peer, capture_logs() as logs:
            sending = asyncio.create_task(peer.send(framed(HEAD) * 2_000_000))
            await until(lambda: logs[1:])
            assert logs[1]["reason"] == "the client reads no answers"
            with pytest.raises(ConnectionError):
                await sending


@pytest.mark.parametrize("bad", [b"\x01\0\0\1", b"\0\0\x27\x11"])
async def test_a_frame_too_large_ends_its_connection(bad: bytes) -> None:
    """A length above max_frame is answered with a code and no id, then FIN, after what came before."""
    service = Service({"echo": echo}, max_frame=10_000)
    async with service.serving(LOCAL) as address, connect(address) as other:
        with peer_of(address) as peer, capture_logs() as logs:
            await peer.send(request(1, "tcpgw.ping") + bad + request(2, "tcpgw.ping"))
            assert await read_message(peer) == [1, 1, None, "pong"]
            kind, number, error, result = await read_message(peer)
            assert (kind, number, error["code"], result) == (1, None, "frame_too_large", None)
            assert error["message"]
            assert await peer.read_to_end() == b""
            assert (logs[0]["event"], logs[0]["reason"]) == ("client_refused", "frame_too_large")
        assert await other.call("echo", 1) == 1


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (b"\x93\2\xc1", "bad_frame"),
        (HEAD + b"\xc1", "bad_frame"),
        (b"\x94" * 5000, "bad_frame"),
        (b"\x93\5\5\5", "bad_frame"),
        (b"\x94\0\xa17\xa4echo\x90", "bad_frame"),
        (b"\x94\0\1\xdb\0\1\0\0" + bytes(9999), "frame_too_large"),
    ],
)
async def test_a_raw_stream_that_lost_its_order_ends(bad: bytes, code: str) -> None:
    """What is no MessagePack, or no message by its head, is answered raw and without an id; then FIN."""
    async with Service(max_frame=10_000).serving(LOCAL) as address:
        with peer_of(address) as peer, capture_logs() as logs:
            await peer.send(request(1, "tcpgw.ping")[4:] + bad)
            assert await read_answer(peer, raw=True) == [1, 1, None, "pong"]
            kind, number, error, result = msgpack.unpackb(await peer.read_to_end())
            assert (kind, number, error["code"], result) == (1, None, code, None)
            assert (logs[0]["event"], logs[0]["reason"]) == ("client_refused", code)


async def test_a_client_hears_that_its_request_was_bad() -> None:
    """What tcpgw.client packs and nobody unpacks fails its call with the code, and the connection stays."""
    async with Service({"echo": echo}).serving(LOCAL) as address, connect(address) as client:
        with capture_logs(), pytest.raises(RpcError, match=r"^bad_frame: not MessagePack: ") as raised:
            await client.call("echo", {(1, 2): 3})
        assert raised.value.code == Code.BAD_FRAME
        assert await client.call("echo", 1) == 1


ATOMS = st.one_of(
    st.sampled_from([None, True, 0, -1, 2**64 - 1, 0.5, "text", b"bytes"]).map(msgpack.packb),
    st.binary(max_size=3).map(lambda data: b"\xa3" + data.ljust(3, b"\xff")),  # texts that are none
    st.tuples(st.binary(min_size=1, max_size=1), st.binary(max_size=12)).map(
        lambda parts: b"\xc7" + bytes([len(parts[1])]) + b"".join(parts)
    ),
    st.binary(max_size=12).map(lambda data: b"\xc7" + bytes([len(data)]) + b"\xff" + data),  # timestamps
)
VALUES = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda items: bytes([0x90 + len(items)]) + b"".join(items)),
        st.lists(inner, max_size=6)
        .filter(lambda items: len(items) % 2 == 0)
        .map(lambda items: bytes([0x80 + len(items) // 2]) + b"".join(items)),
    ),
    max_leaves=12,
)
ID = b"\xce\x31\x41\x59\x26"  # which no other bytes here come to by chance
HEADS = st.sampled_from([b"", b"\x94\0" + ID, b"\x94\0" + ID + b"\xa4echo\x91", b"\x93\2\xa4echo"])
BODIES = st.tuples(HEADS, st.one_of(st.binary(max_size=40), VALUES)).map(b"".join)
# Whole MessagePack, as a raw stream can have it.
CALLS = st.tuples(st.sampled_from([b"\0" + ID, b"\2"]), st.lists(VALUES, max_size=3)).map(
    lambda parts: (
        bytes([0x90 + len(parts[1]) + (1 if parts[0] == b"\2" else 2)]) + parts[0] + b"".join(parts[1])
    )
)


@raws
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_no_body_ends_a_connection(raw: bool, data: st.DataObject) -> None:
    """Whatever stands in a frame, or behind a head in a raw stream, each request is answered once.

    One in front, one behind, and between them all those whose heads can be read.
    """
    bodies = data.draw(st.lists(CALLS if raw else BODIES, min_size=1, max_size=20))
    cut = 4 if raw else 0
    stream = [request(1, "echo", 1), *map(framed, bodies), request(2, "echo", 2)]
    async with Service({"echo": echo}).serving(LOCAL) as address:
        with peer_of(address) as peer, capture_logs():
            await peer.send(b"".join(message[cut:] for message in stream))
            peer.fin()
            answers = read_all(await peer.read_to_end(), raw=raw)
    assert [1, 1, None, 1] in answers
    assert [1, 2, None, 2] in answers
    asked = sum(body.startswith(b"\0" + ID, 1) for body in bodies)
    assert [answer[1] for answer in answers].count(int.from_bytes(ID[1:])) == asked


def read_all(data: bytes, *, raw: bool) -> list[Any]:
    scan = msgpack.Unpacker(strict_map_key=False, unicode_errors="surrogateescape")
    while data and not raw:
        (size,) = struct.unpack_from(">I", data)
        scan.feed(data[4 : 4 + size])
        data = data[4 + size :]
    scan.feed(data)
    return list(scan)
