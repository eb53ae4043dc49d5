"""Random and damaged Thrift: only ProtocolError escapes, runs agree with `read`, spans lie in the data."""

import struct
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcpgw.errors import Code, ProtocolError
from tcpgw.wire.codec import Entry, Kind, Message, Path, Piece, Run
from tcpgw.wire.thrift import Thrift
from tests.support.batches import Shared

CODEC = Thrift()
OWNER, BATCH = "a client", Shared("a batch")
# 1: {1: "abc", 2: 250 (i64), 3: [1, 2] (i32), 4: {"a": 1 (i16)}}, 2: true, 20: 0.5
BINARY_ARGUMENTS = bytes.fromhex(
    "0c0001 0b0001 00000003 616263 0a0002 00000000000000fa 0f0003 08 00000002 00000001 00000002"
    "0d0004 0b 06 00000001 00000001 61 0001 00 020002 01 040014 3fe0000000000000 00"
)
COMPACT_ARGUMENTS = bytes.fromhex(
    "1c 18 03 616263 16 f403 19 25 02 04 1b 01 84 01 61 02 00 11 07 28 000000000000e03f 00"
)
PATHS: list[Path] = [(1, 1), (1, 2), (1, 3, 1), (1, 4, "a"), (2,), (20,), (1, 9), (-1, 0)]


def framed(message: bytes) -> bytes:
    return struct.pack(">I", len(message)) + message


SEEDS = [
    framed(b"\x80\x01\x00" + type_ + b"\0\0\0\4ping\0\1\0\0" + BINARY_ARGUMENTS)
    for type_ in (b"\1", b"\2", b"\3", b"\4")
] + [
    framed(b"\x82" + type_ + b"\x80\x80\x04\x04ping" + COMPACT_ARGUMENTS)
    for type_ in (b"\x21", b"\x41", b"\x61", b"\x81")
]
# Types, sizes and signs: what makes a reader go elsewhere.
TELLING = bytes([*range(17), 0x1C, 0x1B, 0x19, 0xFC, 0xFF, 0x7F, 0x80, 0x82])


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Frames with a few bytes overwritten: gets further in than pure noise."""
    data = bytearray(b"".join(draw(st.lists(st.sampled_from(SEEDS), min_size=1, max_size=8))))
    for _ in range(draw(st.integers(0, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.sampled_from(TELLING) | st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))])


streams = damaged() | st.binary(max_size=200) | st.lists(st.sampled_from(TELLING), max_size=300).map(bytes)


def outcome(data: bytes) -> Message | None:
    """The one exception that may escape becomes a value; any other fails the test."""
    try:
        return CODEC.read(data, 0, len(data))
    except ProtocolError:
        return None


@settings(max_examples=300)
@given(data=streams)
def test_a_message_is_read_or_refused(data: bytes) -> None:
    """Whatever a frame holds is a message that can be passed on and answered, or a ProtocolError."""
    message = outcome(data)
    if message is None:
        return
    assert 4 < message.rest < len(data)
    body = len(data) - message.rest
    passed = CODEC.request(message.token, body, 70_000) + data[message.rest :]
    again = CODEC.read(passed, 0, len(passed))
    assert again[:2] == message[:2]
    if message.kind == Kind.ANSWER:
        assert message.number >= 0
        assert again.number == 70_000
    assert outcome(CODEC.error(message.token, Code.OVERLOADED, "why")) is not None


@settings(max_examples=300)
@given(data=streams, room=st.integers(0, 20))
def test_runs_take_only_what_read_takes(data: bytes, room: int) -> None:
    """Runs end at a frame's end, and every frame in them is one that `read` takes for the same."""
    parts: list[Piece] = []
    pending: dict[int, Entry] = {}
    end, number = CODEC.take_requests(data, 0, pending, parts.append, range(5, 5 + room), OWNER, BATCH)
    assert sum(map(len, parts)) == end
    kinds = [message.kind for message in messages(data[:end])]
    assert kinds == [Kind.REQUEST] * (number - 5)
    assert list(pending) == list(range(5, number))

    runs: list[Run] = []
    pending = {0x10000: (OWNER, b"\x80\x01\0\1\0\0\0\0\0\0\0\5", BATCH)}
    end, dropped = CODEC.take_answers(data, 0, pending, runs)
    kinds = [message.kind for message in messages(data[:end])]
    assert kinds == [Kind.ANSWER] * (dropped + len(runs))


@settings(max_examples=300)
@given(
    reads=st.dictionaries(st.integers(0, 9), streams | st.sampled_from(SEEDS)),
    most=st.sampled_from([0, 60, 100, 1000]),
    by_name=st.booleans(),
)
def test_reads_take_only_what_read_takes(reads: dict[int, bytes], most: int, by_name: bool) -> None:
    """Reads raise nothing, and each is taken whole, as the request that `read` finds there, or comes back."""
    parts: list[Piece] = []
    pending: dict[int, Entry] = {}
    batches = defaultdict[bytes, Shared | None](lambda: BATCH) if by_name else None
    others, number = CODEC.take_reads(reads, most, pending, parts.append, 5, BATCH, batches)
    assert list(pending) == list(range(5, number))
    assert sorted([*(owner for owner, *_ in pending.values()), *dict(others)]) == sorted(reads)
    assert [(owner, reads[owner]) for owner in dict(others)] == others
    sent = b"".join(parts)
    found = messages(sent)
    assert len(found) == len(pending)
    for (owner, token, _), there in zip(pending.values(), found, strict=True):
        [message] = messages(reads[owner])
        assert (message.kind, message.token) == (Kind.REQUEST, token)
        assert there[:2] == message[:2]
        assert len(reads[owner]) <= most
    assert len(sent) == sum(len(reads[owner]) for owner, *_ in pending.values())


def messages(data: bytes) -> list[Message]:
    found = []
    pos = 0
    while pos < len(data):
        end = pos + 4 + int.from_bytes(data[pos : pos + 4])
        found.append(CODEC.read(data, pos, end))
        pos = end
    assert pos == len(data)
    return found


@settings(max_examples=300)
@given(
    head=st.sampled_from([b"", b"g"]),
    data=st.one_of(damaged().map(lambda frames: frames[16:]), st.binary(max_size=100)),
    path=st.sampled_from(PATHS) | st.lists(st.integers(-1, 5) | st.just("a"), max_size=5).map(tuple),
    value=st.floats() | st.integers(),
)
def test_arguments_are_found_or_not(head: bytes, data: bytes, path: Path, value: float) -> None:
    """Whatever arguments hold, a span lies in them, and has a text or a number that can be replaced."""
    arguments = head + data or b"\0"
    span = CODEC.find(arguments, 0, path)
    if span is None:
        return
    assert 0 == span[0] < span[1] <= len(arguments)
    key, number = CODEC.key(arguments, span), CODEC.number(arguments, span)
    put = CODEC.put_number(arguments, span, value)
    if number is None and key is not None:
        assert put == arguments[: span[1]]
    assert CODEC.find(put + arguments[span[1] :], 0, path) == (0, len(put))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_seeds_are_whole(seed: bytes) -> None:
    """What is damaged above is right: every path but the last three leads to something."""
    rest = CODEC.read(seed, 0, len(seed)).rest
    found = [CODEC.find(seed, rest, path) is not None for path in PATHS]
    assert found == [True, True, True, True, False, True, False, False]
