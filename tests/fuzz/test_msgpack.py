"""Random and damaged MessagePack: only ProtocolError escapes the splitter, and nothing the field reader."""

from typing import Any

import msgpack
from hypothesis import given, settings
from hypothesis import strategies as st

from tcpgw.errors import ProtocolError
from tcpgw.wire.codec import Path
from tcpgw.wire.msgpack_fields import find, key, number, put_number
from tcpgw.wire.msgpack_scan import MsgpackSplitter, skip
from tests.support.splitting import cut, feed_all

MAX = 5000
MESSAGES: list[Any] = [
    [0, 70_000, "predict", [{"session": "abc", "deadline_ms": 250}, [0.5] * 40, {7: b"x" * 300}]],
    [1, 1, None, {"label": "cat", "p": 0.93, "ids": list(range(100, 180)), 1: -1}],
    [2, "log", ["text" * 20, -7, 1 << 40, msgpack.ExtType(3, b"12345"), [[[[]]]], True]],
]
PATHS: list[Path] = [(), (0,), (0, "session"), (0, "deadline_ms"), (1, 39), (2, 7), ("p",), (-1, "")]
# Leads that say how much follows, and lengths that make it much or little.
TELLING = bytes([*range(0x80, 0xA3), *range(0xC1, 0xCA), *range(0xD4, 0xE0), 0, 0, 0, 1, 2, 0xFF])


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Messages with a few bytes overwritten: gets further in than pure noise."""
    data = bytearray(
        b"".join(map(msgpack.packb, draw(st.lists(st.sampled_from(MESSAGES), min_size=1, max_size=3))))
    )
    for _ in range(draw(st.integers(0, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.sampled_from(TELLING) | st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))])


streams = damaged() | st.binary(max_size=200) | st.lists(st.sampled_from(TELLING), max_size=300).map(bytes)


def outcome(chunks: list[bytes], max_size: int) -> list[int] | None:
    """The one exception that may escape becomes None; any other fails the test."""
    try:
        return feed_all(MsgpackSplitter(max_size), chunks)
    except ProtocolError:
        return None


@settings(max_examples=400)
@given(cut(streams), st.sampled_from([MAX, 100]))
def test_any_bytes_give_ends_or_a_refusal(chunks: list[bytes], max_size: int) -> None:
    """Whatever arrives is split alike however it is cut, or refused however it is cut."""
    assert outcome(chunks, max_size) == outcome([b"".join(chunks)], max_size)


@settings(max_examples=400)
@given(streams, st.integers(0, 20), st.sampled_from(PATHS))
def test_any_bytes_have_fields_or_none(data: bytes, start: int, path: Path) -> None:
    """A field is found whole or not at all, and is read and replaced as what it is, whatever it is."""
    assert skip(data, start) > min(start, len(data))
    span = find(data, start, path)
    if span is None:
        return
    assert start <= span[0] < span[1] <= len(data)
    text, value = key(data, span), number(data, span)
    assert text is None or len(text) <= max(span[1] - span[0], 20)
    if value is not None:
        data = put_number(data, span, value)
        assert number(data, (0, len(data))) == value
