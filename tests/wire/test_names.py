"""Seeing a request's name without reading the request, so that runs of one name can pass in one call."""

import struct
from collections.abc import Callable

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcpgw.errors import ProtocolError
from tcpgw.wire.codec import Codec, Entry, Piece
from tcpgw.wire.msgpack_rpc import MsgpackRpc
from tcpgw.wire.thrift import Thrift
from tests.support.batches import Shared

BATCH = Shared("a batch", 1.0)
Make = Callable[[int, str, bytes], bytes]


def framed(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


def msgpack_request(number: int, name: str, body: bytes) -> bytes:
    return framed(msgpack.packb([0, number, name, [body]]))


def thrift_request(number: int, name: str, body: bytes) -> bytes:
    head = struct.pack(">II", 0x80010001, len(name.encode())) + name.encode() + struct.pack(">i", number)
    return framed(head + b"\x0b\0\1" + struct.pack(">I", len(body)) + body + b"\0")


CODECS: list[tuple[Codec, Make]] = [(MsgpackRpc(framed=True), msgpack_request), (Thrift(), thrift_request)]
both = pytest.mark.parametrize(("codec", "make"), CODECS, ids=["msgpack", "thrift"])
names = st.sampled_from(["", "m", "predict", "predict2", "predic", "x" * 31, "x" * 32, "é" * 100])
requests = st.tuples(st.integers(0, 1 << 20), names, st.binary(max_size=30))


def passed(
    codec: Codec, data: bytes, name: bytes, limit: int = 100
) -> tuple[int, int, bytes, dict[int, Entry]]:
    parts: list[Piece] = []
    pending: dict[int, Entry] = {}
    end, number = codec.take_requests(
        data, 0, pending, parts.append, range(70_000, 70_000 + limit), "client", BATCH, name
    )
    return end, number - 70_000, b"".join(parts), pending


@both
@settings(max_examples=60)
@given(messages=st.lists(requests, min_size=1, max_size=8))
def test_a_run_ends_where_the_name_changes(
    codec: Codec, make: Make, messages: list[tuple[int, str, bytes]]
) -> None:
    """With the first one's name, exactly those in front of another name pass, as they would without one."""
    frames = [make(*message) for message in messages]
    data = b"".join(frames)
    name = codec.name_at(data, 0)
    assert codec.method(name) == messages[0][1].encode()
    alike = next((at for at, message in enumerate(messages) if message[1] != messages[0][1]), len(messages))
    front = b"".join(frames[:alike])
    assert passed(codec, data, name) == passed(codec, front, b"")
    assert passed(codec, data, name)[:2] == (len(front), alike)


@both
def test_many_small_requests_end_there_too(codec: Codec, make: Make) -> None:
    """Also where a codec passes a whole read in one piece."""
    frames = [make(at, "predict" if at < 300 else "train", b"x" * 40) for at in range(400)]
    data = b"".join(frames)
    end, count, sent, pending = passed(codec, data, codec.name_at(data, 0), 400)
    assert (count, len(pending)) == (300, 300)
    assert end == len(b"".join(frames[:300]))
    assert sent.count(b"predict") == 300
    assert b"train" not in sent


@both
@settings(max_examples=80)
@given(message=requests, cut=st.integers(0, 60), junk=st.binary(max_size=40))
def test_whatever_the_bytes_a_name_is_told_or_not(
    codec: Codec, make: Make, message: tuple[int, str, bytes], cut: int, junk: bytes
) -> None:
    """Of less than a whole request nothing but the truth is told; of no request anything, but no error."""
    whole = make(*message)
    name = codec.name_at(whole, 0)
    assert codec.name_at(b"before" + whole + junk, 6) in (name, codec.name_at(whole + junk, 0))
    assert codec.read(whole, 0, len(whole)).method == codec.method(name)
    seen = codec.name_at(whole[:cut], 0)
    assert name.startswith(seen)
    for data in (junk, whole[:6] + junk):
        found = codec.name_at(data, 0)
        if found:
            codec.method(found)
            try:
                codec.read(data, 0, len(data))
            except ProtocolError:
                continue
