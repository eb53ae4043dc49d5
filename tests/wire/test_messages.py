"""Messages decoded whole, and their two framings."""

import contextlib
import tracemalloc
from itertools import pairwise
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgw.errors import FrameTooLargeError, ProtocolError
from tcpgw.wire.codec import Kind
from tcpgw.wire.messages import (
    LengthFrames,
    MessageError,
    RpcError,
    StreamFrames,
    pack,
    pack_frame,
    unpack,
    unpack_call,
)

LIMIT = 1 << 20


def _packable(value: Any) -> bool:
    try:
        pack(value)
    except ValueError:
        return False
    return True


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=40)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=10)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.integers() | st.text(), inner, max_size=4),
    max_leaves=10,
).filter(_packable)


def taken(frames: LengthFrames | StreamFrames, data: bytes, cuts: list[int]) -> list[bytes]:
    """Everything that a splitter takes when the data comes cut at these places."""
    found = []
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in pairwise(places):
        frames.feed(data[start:end])
        while (body := frames.take()) is not None:
            found.append(bytes(body))
    return found


@given(VALUES)
def test_what_is_packed_unpacks_the_same(value: Any) -> None:
    """Packing loses nothing."""
    assert unpack(pack(value)) == value


@given(st.binary(max_size=200))
def test_any_bytes_unpack_or_are_refused(data: bytes) -> None:
    """Only ProtocolError comes of bytes that are no value."""
    with contextlib.suppress(ProtocolError):
        unpack(data)


@pytest.mark.parametrize("size", [100, 100_000])
def test_text_that_is_none_passes_unharmed(size: int) -> None:
    """Bytes that an old client sends as text go out as they came."""
    body = msgpack.packb("é" * size)[:-1] + b"\xff"
    assert pack(unpack(body)) == body


def refused(body: bytes) -> MessageError | None:
    try:
        assert unpack_call(body)[0] in (Kind.REQUEST, Kind.NOTIFY)
    except MessageError as exc:
        return exc
    return None


@given(st.binary(max_size=200))
def test_any_bytes_are_a_call_or_refused(data: bytes) -> None:
    """Only MessageError comes of bytes that are no call, and its head does not depend on what follows."""
    refused(data)
    if error := refused(b"\x94\0\7" + data):
        assert (error.kind, error.number) == (Kind.REQUEST, 7)
    if error := refused(b"\x94\0\7\xa1m\x91" + data):
        assert (error.kind, error.number) == (Kind.REQUEST, 7)
    if error := refused(b"\x93\2\xa1m\x91" + data):
        assert (error.kind, error.number) == (Kind.NOTIFY, None)


@pytest.mark.parametrize(
    ("body", "kind", "number"),
    [
        (b"\x94\0\7\xa1m\x91\xc1", Kind.REQUEST, 7),
        (b"\x94\0\7", Kind.REQUEST, 7),
        (b"\x92\0\7", Kind.REQUEST, 7),
        (b"\x94\0\xff\5\x90", Kind.REQUEST, -1),
        (b"\xdd\0\0\0\4" + b"\xcf" + bytes(8) + b"\xcf" + b"\xff" * 8, Kind.REQUEST, 2**64 - 1),
        (b"\x94\0\7\xa1m" + b"\x91" * 2000 + b"\xc0", Kind.REQUEST, 7),
        (b"\x94\1\7\xc0\xc0", Kind.ANSWER, None),
        (b"\x93\2\xa1m\x80", Kind.NOTIFY, None),
        (b"\x91\2", Kind.NOTIFY, None),
        (b"", None, None),
        (b"\x90\0\7", None, None),
        (b"\x90\2", None, None),
        (b"\x91\0\7", None, None),
        (b"\x94\0", None, None),
        (b"\x94\0\xcf\0", None, None),
        (b"\x94\0\xa1m\xa1m\x90", None, None),
        (b"\x94\0\x81\x90\0\xa1m", None, None),
        (b"\x94\0\xdd\xff\xff\xff\xff", None, None),
        (b"\x94\3\7\xa1m\x90", None, None),
        (b"\x94\x90\7\xa1m\x90", None, None),
        (b"\x84\0\7", None, None),
        (b"\xc1", None, None),
    ],
)
def test_a_bad_message_says_whose_it_is(body: bytes, kind: Kind | None, number: int | None) -> None:
    """Of a message that cannot be taken, the head is read alone: any form of array, type and id."""
    with pytest.raises(MessageError) as raised:
        unpack_call(body)
    assert (raised.value.kind, raised.value.number) == (kind, number)


@pytest.mark.parametrize(
    "body",
    [
        (b"\xdd" + LIMIT.to_bytes(4, "big")) * 1000
        + bytes(LIMIT - 5000),  # each level claims all that is left
        b"\xdf\xff\xff\xff\xff" * 1000,
        b"\x91" * LIMIT,
        b"\xc6\x7f\xff\xff\xff" + bytes(10_000),
    ],
)
def test_a_bomb_allocates_nothing(body: bytes) -> None:
    """What headers claim to follow is not allocated before it is there."""
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            unpack(body)
        frames = StreamFrames(LIMIT * 2)
        frames.feed(body)
        with contextlib.suppress(ProtocolError):
            assert frames.take() is None
        assert tracemalloc.get_traced_memory()[1] < 6 * LIMIT
    finally:
        tracemalloc.stop()


@given(st.lists(VALUES, min_size=1, max_size=5), st.lists(st.integers(0, 10_000), max_size=8))
def test_frames_are_found_in_any_split(values: list[Any], cuts: list[int]) -> None:
    """However a stream of frames is cut, the same bodies are taken, and nothing is left."""
    frames = LengthFrames(LIMIT)
    stream = b"".join(pack_frame(value, LIMIT) for value in values)
    assert taken(frames, stream, cuts) == [pack(value) for value in values]
    assert frames.partial == 0


@given(st.lists(VALUES, min_size=1, max_size=5), st.lists(st.integers(0, 10_000), max_size=8))
def test_values_are_found_in_any_split(values: list[Any], cuts: list[int]) -> None:
    """However a raw stream is cut, the same values are taken, and nothing is left."""
    frames = StreamFrames(LIMIT)
    stream = b"".join(map(pack, values))
    assert taken(frames, stream, cuts) == [pack(value) for value in values]
    assert frames.partial == 0


@pytest.mark.parametrize("kind", [LengthFrames, StreamFrames])
def test_single_bytes(kind: type[LengthFrames] | type[StreamFrames]) -> None:
    """A stream that comes byte by byte is taken apart in linear time, whole frames and none before."""
    value = [1, 2, None, list(range(20_000))]
    data = pack(value) if kind is StreamFrames else pack_frame(value, LIMIT)
    frames = kind(LIMIT)
    for number, byte in enumerate(data * 2):
        frames.feed(bytes([byte]))
        body = frames.take()
        assert (body is not None) == ((number + 1) % len(data) == 0)
        assert frames.partial == (number + 1) % len(data)


def test_a_frame_too_large_is_refused_by_its_length() -> None:
    """A frame of max_frame bytes passes; one byte more is refused by its length alone."""
    frames = LengthFrames(10)
    frames.feed(b"\0\0\0\x0a" + bytes(10) + b"\0\0\0\x0b")
    assert frames.take() == bytes(10)
    with pytest.raises(FrameTooLargeError, match=r"a frame of 11 bytes: at most 10 are taken \(max_frame\)"):
        frames.take()
    assert len(pack_frame(bytes(8), 10)) == 14
    with pytest.raises(FrameTooLargeError):
        pack_frame(bytes(9), 10)


def test_a_value_too_large_is_refused_in_a_raw_stream() -> None:
    """A raw value above max_frame is refused, whole or not; one of exactly that passes."""
    frames = StreamFrames(10)
    frames.feed(pack(bytes(8)))
    assert frames.take() == pack(bytes(8))
    for data in (pack(bytes(9)), b"\xc6\0\1\0\0" + bytes(6)):
        frames = StreamFrames(10)
        frames.feed(data)
        with pytest.raises(FrameTooLargeError):
            frames.take()


def test_a_raw_stream_refuses_what_is_no_messagepack() -> None:
    """The one byte that begins no value, and nesting without end, raise ProtocolError."""
    for data in (b"\xc1", b"\x91" * 5000):
        frames = StreamFrames(LIMIT)
        frames.feed(data)
        with pytest.raises(ProtocolError, match="not MessagePack"):
            frames.take()


@pytest.mark.parametrize(
    "error",
    [RpcError("x"), RpcError("denied", "m"), RpcError("x", "m", endpoint="10.0.0.1:80", data={"k": [1]})],
)
def test_an_error_is_read_as_it_was_written(error: RpcError) -> None:
    """An RpcError passes through an answer whole."""
    found = RpcError.read(unpack(pack(error.written())))
    assert vars(found) == vars(error)
