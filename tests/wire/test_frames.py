"""Length-prefixed framings: against frames as their documents show them, and cut anywhere."""

import sys
from itertools import accumulate
from typing import Literal, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgw.errors import FrameTooLargeError, ProtocolError
from tcpgw.wire.frames import PRESETS, FrameSplitter, LengthField
from tests.support.splitting import cut, feed_all

Width = Literal[1, 2, 3, 4, 8, "varint"]
WIDTHS: tuple[Width, ...] = (1, 2, 3, 4, 8, "varint")
MAX = 1 << 20
FRAMES = {
    "u32be": bytes.fromhex("00000003 616263"),
    "u32le": bytes.fromhex("03000000 616263"),
    "u16be": bytes.fromhex("0003 616263"),
    "varint": bytes.fromhex("9601") + bytes(150),  # protobuf.dev, encoding: 150 is 9601
    # Call "ping", id 1, no arguments.
    "thrift-framed": bytes.fromhex("00000011 80010001 00000004 70696e67 00000001 00"),
    # ApiVersions v0, correlation id 1, client id "tcpgw".
    "kafka": bytes.fromhex("0000000f 0012 0000 00000001 0005 7463706777"),
    # The meta data's three bytes are part of the body's eight.
    "brpc": b"PRPC" + bytes.fromhex("00000008 00000003") + b"metabody",
    # A heartbeat: flags request, two-way, event, hessian2; its body is "N".
    "dubbo": bytes.fromhex("dabb e2 00 0000000000000001 00000001 4e"),
}


def varint(value: int) -> bytes:
    head = b""
    while value > 0x7F:
        head += bytes((value & 0x7F | 0x80,))
        value >>= 7
    return head + bytes((value,))


def frame(field: LengthField, body: bytes) -> bytes:
    """Write a frame from the definition: which length makes it as long as it is?"""
    start = field.magic.ljust(field.offset, b"\xff")
    if field.width != "varint":
        counted = len(body) + (len(start) + field.width if field.includes_header else 0) - field.adjust
        return start + counted.to_bytes(field.width, field.endian) + body
    for width in range(1, 4):
        counted = len(body) + (len(start) + width if field.includes_header else 0) - field.adjust
        if len(head := varint(counted)) == width:
            return start + head + body
    raise AssertionError(body)


@st.composite
def fields(draw: st.DrawFn) -> LengthField:
    offset = draw(st.integers(0, 5))
    return LengthField(
        offset=offset,
        width=draw(st.sampled_from(WIDTHS)),
        endian=draw(st.sampled_from(["big", "little"])),
        adjust=draw(st.integers(-3, 3)),
        includes_header=draw(st.booleans()),
        magic=draw(st.binary(max_size=offset)),
    )


@st.composite
def streams(draw: st.DrawFn) -> tuple[LengthField, list[bytes], list[bytes]]:
    """A field, frames, and chunks of them with an unfinished frame after the last."""
    field = draw(st.sampled_from(sorted(PRESETS)).map(PRESETS.__getitem__) | fields())
    # Shorter ones might need a negative length, longer ones a wider field.
    bodies = draw(st.lists(st.binary(min_size=4, max_size=200), max_size=6))
    frames = [frame(field, body) for body in bodies]
    rest = frame(field, b"unfinished")[: draw(st.integers(0, 10))]
    return field, frames, draw(cut(st.just(b"".join([*frames, rest]))))


@pytest.mark.parametrize("name", FRAMES)
def test_presets_measure_what_their_protocols_send(name: str) -> None:
    """A frame of each protocol has its own size, wherever it stands, once its header is there."""
    data, field = FRAMES[name], PRESETS[name]
    assert field.measure(data) == field.measure(b"before" + data, 6) == len(data)
    assert feed_all(FrameSplitter(field, MAX), [data * 3]) == [len(data) * count for count in (1, 2, 3)]


def test_every_preset_is_tested() -> None:
    """No preset is without a frame above."""
    assert FRAMES.keys() == PRESETS.keys()
    assert set(WIDTHS) == set(get_args(Width))


@given(streams())
def test_any_split_gives_the_same_ends(case: tuple[LengthField, list[bytes], list[bytes]]) -> None:
    """However a stream is cut, frames end where they were written to end."""
    field, frames, chunks = case
    assert feed_all(FrameSplitter(field, MAX), chunks) == list(accumulate(map(len, frames)))


@given(streams())
def test_a_size_is_known_with_the_header_and_not_before(
    case: tuple[LengthField, list[bytes], list[bytes]],
) -> None:
    """Measured with ever more of a frame, its size is None first and then right for good."""
    field, frames, _ = case
    for data in frames:
        sizes = [field.measure(data[:end]) for end in range(len(data) + 1)]
        known = next(end for end, size in enumerate(sizes) if size is not None)
        assert field.offset < known <= len(data)
        assert set(sizes[known:]) == {len(data)}


REFUSED = [
    # field, bytes, error, what it says
    (PRESETS["u32be"], b"GET / HTTP/1.1", FrameTooLargeError, r"b'GET .* 1195725860 .*max_frame"),
    (PRESETS["kafka"], b"\xff\xff\xff\xff", FrameTooLargeError, "4294967299 bytes long"),
    (PRESETS["u32le"], b"\0\0\x10\0", FrameTooLargeError, f"{MAX + 4} bytes long; at most {MAX}"),
    (PRESETS["varint"], b"\xff\xff\x7f", FrameTooLargeError, "2097154 bytes long"),
    (PRESETS["varint"], b"\xff" * 9 + b"\x7f", FrameTooLargeError, "bytes long"),
    (PRESETS["varint"], b"\xff" * 10, ProtocolError, "more than 10 bytes"),
    (PRESETS["varint"], b"\x80" * 10 + b"\0", ProtocolError, "more than 10 bytes"),
    (PRESETS["brpc"], b"PRPX", ProtocolError, r"start with b'PRPC', got b'.*; does the client speak"),
    (PRESETS["brpc"], b"HULU\0\0\0\1" + bytes(9), ProtocolError, "start with b'PRPC'"),
    (PRESETS["dubbo"], b"\xda\xba", ProtocolError, "start with"),
    (LengthField(includes_header=True), b"\0\0\0\3", ProtocolError, "length 3 .* less than its header's 4"),
    (LengthField(adjust=-5), b"\0\0\0\4", ProtocolError, "length 4 makes it 3 bytes long"),
    (LengthField(width="varint", includes_header=True), b"\0", ProtocolError, "length 0"),
    (LengthField(width="varint", adjust=-2), b"\x81\0", ProtocolError, "length 1 makes it 1 "),
    (LengthField(offset=2, width="varint", magic=b"ab"), b"ax\1", ProtocolError, "start with b'ab'"),
]


@pytest.mark.parametrize(("field", "data", "error", "text"), REFUSED)
@pytest.mark.parametrize("before", [0, 1, 2])
def test_refuses_what_no_further_byte_can_mend(
    field: LengthField, data: bytes, error: type[ProtocolError], text: str, before: int
) -> None:
    """A bad header is refused with its offset in the stream, in one piece and byte by byte, early or late."""
    good = frame(field, b"good") * before
    for chunks in ([good + data], [good, data], [good, *(bytes((byte,)) for byte in data)]):
        splitter = FrameSplitter(field, MAX)
        with pytest.raises(
            ProtocolError, match=rf"^the frame at byte {len(good)} of the stream.*{text}"
        ) as info:
            feed_all(splitter, chunks)
        assert type(info.value) is error


@pytest.mark.parametrize("name", ["u32be", "varint", "brpc"])
@pytest.mark.parametrize("step", [1, 1000])
def test_the_limit_is_the_last_size_that_passes(name: str, step: int) -> None:
    """A frame of max_size bytes, header included, passes; one more byte is refused."""
    data = frame(PRESETS[name], bytes(90))
    chunks = [data[at : at + step] for at in range(0, len(data), step)]
    assert feed_all(FrameSplitter(PRESETS[name], len(data)), chunks) == [len(data)]
    with pytest.raises(FrameTooLargeError, match=f"{len(data)} bytes long; at most {len(data) - 1} are"):
        feed_all(FrameSplitter(PRESETS[name], len(data) - 1), chunks)


def test_accepts_padded_varints() -> None:
    """A length may be written with more bytes than it needs, as protobuf's own parsers allow."""
    data = b"\x83\x80\x80\x80\x80\x80\x80\x80\x80\0abc" + b"\x80\0" + b"\0" + b"\x81\0x"
    assert feed_all(FrameSplitter(PRESETS["varint"], MAX), [data]) == [13, 15, 16, 19]


def test_keeps_nothing_of_a_body() -> None:
    """After chunks of a large body, and after whole frames, no chunk is referred to any more."""
    splitter = FrameSplitter(PRESETS["u32be"], MAX)
    chunks = [b"\0\x0f\0\0" + bytes(1000), bytes(70_000), frame(PRESETS["u32be"], b"x") * 100]
    counts = [sys.getrefcount(chunk) for chunk in chunks]
    for chunk in chunks:
        splitter.feed(chunk)
    del chunk
    assert [sys.getrefcount(chunk) for chunk in chunks] == counts
    assert splitter.partial == sum(map(len, chunks))
