"""Boundaries of MessagePack values: msgpack's own Unpacker says where they are, however the stream is cut."""

import sys
from time import process_time

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgw.errors import FrameTooLargeError, ProtocolError
from tcpgw.wire.msgpack_scan import MAX_DEPTH, MsgpackSplitter, skip
from tests.support.splitting import cut, feed_all

MAX = 1 << 20


def oracle(stream: bytes) -> list[int]:
    unpacker = msgpack.Unpacker(max_buffer_size=0)
    unpacker.feed(stream)
    ends: list[int] = []
    try:
        while True:
            unpacker.skip()
            ends.append(unpacker.tell())
    except msgpack.OutOfData:
        return ends


def blob(lead: int, width: int, body: bytes) -> bytes:
    """A str, bin or ext that says its length in `width` bytes; an ext's type is the body's first byte."""
    counted = len(body) - (1 if 0xC7 <= lead <= 0xC9 else 0)
    return bytes((lead,)) + counted.to_bytes(width) + body


def container(lead: int, width: int, parts: list[bytes]) -> bytes:
    """An array or a map that says its count in `width` bytes; 0: in the lead byte."""
    is_map = lead in (0x80, 0xDE, 0xDF)
    if is_map and len(parts) % 2:
        parts = [*parts, b"\xc0"]
    count = len(parts) // (2 if is_map else 1)
    return (bytes((lead,)) + count.to_bytes(width) if width else bytes((lead | count,))) + b"".join(parts)


# Every form of a value, not only the shortest one, which encoders choose.
FIXED = dict.fromkeys([*range(0x80), *range(0xE0, 0x100), 0xC0, 0xC2, 0xC3], 0)
FIXED |= {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
FIXED |= {0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17} | {0xA0 + size: size for size in range(32)}
BLOBS = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
CONTAINERS = {0x80: 0, 0x90: 0, 0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}

fixed = st.sampled_from(sorted(FIXED)).flatmap(
    lambda lead: st.binary(min_size=FIXED[lead], max_size=FIXED[lead]).map(lambda body: bytes((lead,)) + body)
)
blobs = st.builds(
    lambda lead, body: blob(lead, BLOBS[lead], body),
    st.sampled_from(sorted(BLOBS)),
    st.binary(min_size=1, max_size=40),
)


def containers(inner: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.builds(
        lambda lead, parts: container(lead, CONTAINERS[lead], parts),
        st.sampled_from(sorted(CONTAINERS)),
        st.lists(inner, max_size=15),
    )


values = st.recursive(fixed | blobs, containers, max_leaves=30)


@st.composite
def tensors(draw: st.DrawFn) -> bytes:
    """A long array: a few runs, each of values of one size, and now and then another value between."""
    parts: list[bytes] = []
    for _ in range(draw(st.integers(1, 4))):
        size = draw(st.sampled_from(sorted(set(FIXED.values()))))
        leads = draw(st.lists(st.sampled_from([lead for lead in FIXED if FIXED[lead] == size]), min_size=1))
        parts += [bytes((lead,)) + b"\xc1" * size for lead in leads] * draw(st.integers(1, 40))
        parts += draw(st.lists(values, max_size=1))
    lead = draw(st.sampled_from([0xDC, 0xDD, 0xDE]))
    return container(lead, CONTAINERS[lead], parts)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Values one after the other, the last one whole or not."""
    stream = b"".join(draw(st.lists(values | tensors(), max_size=4)))
    last = draw(values | tensors())
    return stream + last[: draw(st.integers(0, len(last)))]


@given(cut(streams()))
def test_any_split_gives_the_same_ends(chunks: list[bytes]) -> None:
    """However a stream is cut, values end where msgpack says that they end."""
    assert feed_all(MsgpackSplitter(MAX), chunks) == oracle(b"".join(chunks))


@pytest.mark.parametrize("length", [0, 1, 3, 40])
def test_every_form_ends_where_msgpack_says(length: int) -> None:
    """Each lead byte's value is as long as msgpack takes it to be, alone and among others."""
    for lead in (lead for lead in range(256) if lead != 0xC1):
        width = BLOBS.get(lead) or CONTAINERS.get(lead) or 0
        data = bytes((lead,)) + (length.to_bytes(width) if width else b"") + bytes(100)
        end = oracle(data)[0]
        for chunks in ([data], [data[at : at + 1] for at in range(len(data))]):
            assert feed_all(MsgpackSplitter(MAX), chunks) == [end, *range(end + 1, len(data) + 1)], lead
        inside = b"\x93\xc0" + data
        assert feed_all(MsgpackSplitter(MAX), [inside])[0] == skip(inside, 0) == end + 3
        assert skip(data, 0) == skip(inside, 1, 2) - 2 == end


CLAIMS = {
    "str 32": b"\xdb\xff\xff\xff\xff",
    "bin 32": b"\xc6\xff\xff\xff\xff",
    "ext 32": b"\xc9\xff\xff\xff\xff\x01",
    "array 32": b"\xdd\xff\xff\xff\xff",
    "map 32": b"\xdf\xff\xff\xff\xff",
    "map 16": b"\xde\x01\xf4",  # 500 pairs: 1000 values
    "bin 16": b"\xc5\x03\xe4",  # 996 and the head
    "within": b"\x92\xa9session-1\xdc\x03\xdd",
    "billion laughs": b"\xdc\x00\xff" * 4 + b"\xdd\x00\x0f\x00\x00",
}


@pytest.mark.parametrize("name", CLAIMS)
@pytest.mark.parametrize("before", [b"", b"\xc0" * 2000, b"\x93\xc0\xc0\xc0"])
def test_a_claim_is_refused_when_it_is_made(name: str, before: bytes) -> None:
    """What claims to be longer than max_size is refused with its last head byte, and not a byte earlier."""
    data = before + CLAIMS[name]
    for chunks in ([data], [data[at : at + 1] for at in range(len(data))]):
        with pytest.raises(FrameTooLargeError, match=r"byte \d+ of the stream: 0x.* at most 998 .*max_frame"):
            feed_all(MsgpackSplitter(998), chunks)
        feed_all(MsgpackSplitter(998), [*chunks[:-1], chunks[-1][:-1]])


@pytest.mark.parametrize(
    "data",
    [
        b"\xc5\x03\xe5" + bytes(997),
        b"\xdc\x03\xe5" + bytes(997),
        b"\x92\xc4\xff" + bytes(255) + b"\xdc\x02\xe3" + bytes(739),
        (b"\x9f" + bytes(14)) * 66 + b"\xa9" + bytes(9),
    ],
)
@pytest.mark.parametrize("step", [1, 7, 400, 2000])
def test_the_limit_is_the_last_size_that_passes(data: bytes, step: int) -> None:
    """A value of max_size bytes passes, however it is cut; with one byte less allowed it is refused."""
    assert len(data) == 1000
    chunks = [data[at : at + step] for at in range(0, len(data), step)]
    assert feed_all(MsgpackSplitter(1000), [*chunks, *chunks]) == [1000, 2000]
    with pytest.raises(FrameTooLargeError, match=r"byte \d+ of the stream: .* at most 999 are allowed"):
        feed_all(MsgpackSplitter(999), [b"\xc0", *chunks])


def test_growth_without_claims_is_refused() -> None:
    """A frame of many small containers is refused when it has more than max_size bytes."""
    splitter = MsgpackSplitter(100)
    feed_all(splitter, [b"\x9f" * 10 for _ in range(10)])
    with pytest.raises(
        FrameTooLargeError, match="byte 0 of the stream: the frame is at least 101 bytes long"
    ):
        splitter.feed(b"\0")


DEEPER = [b"\x91", b"\x92\xc0", b"\x81\xc0", b"\xdc\x00\x01", b"\xdd\x00\x00\x00\x28" + b"\xc0" * 39]


@pytest.mark.parametrize("opening", [*DEEPER, b"\x92"])
@pytest.mark.parametrize("step", [1, 5, 1 << 18])
def test_depth_has_a_limit(opening: bytes, step: int) -> None:
    """MAX_DEPTH containers within each other pass, one more is refused where it begins."""
    tail = b"\xc0" * (MAX_DEPTH + 1) if opening == b"\x92" else b"\xc0"
    data = opening * MAX_DEPTH + tail
    chunks = [data[at : at + step] for at in range(0, len(data), step)]
    assert feed_all(MsgpackSplitter(MAX), chunks * 2) == [len(data), 2 * len(data)]
    data = b"\x90" + opening * (MAX_DEPTH + 1)
    at = 1 + len(opening) * MAX_DEPTH
    with pytest.raises(ProtocolError, match=f"byte {at} of the stream: more than {MAX_DEPTH} containers"):
        feed_all(MsgpackSplitter(MAX), [data[at : at + step] for at in range(0, len(data), step)])


def test_breadth_is_no_depth() -> None:
    """More than MAX_DEPTH containers one after the other pass, on every level."""
    data = b"\xdc\x10\x00" + b"\x92\x91\xc0\x91\xc0" * 0x1000
    assert feed_all(MsgpackSplitter(MAX), [data]) == [len(data)]


@pytest.mark.parametrize("before", [b"", b"\x00", b"\x92\xc0", b"\xdc\x01\x00" + bytes(255)])
def test_refuses_the_reserved_byte(before: bytes) -> None:
    """0xc1 is refused as the protocol error that it is, with its offset."""
    for chunks in ([before + b"\xc1"], [before, b"\xc1\xc1"]):
        with pytest.raises(ProtocolError, match=f"byte {len(before)} of the stream: 0xc1 .*another protocol"):
            feed_all(MsgpackSplitter(MAX), chunks)


def test_keeps_nothing_of_a_body() -> None:
    """After chunks of a large body no chunk is referred to any more."""
    splitter = MsgpackSplitter(MAX)
    chunks = [b"\x92\xc6\x00\x0f\x00\x00" + bytes(1000), bytes(70_000), bytes(50_000)]
    counts = [sys.getrefcount(chunk) for chunk in chunks]
    assert feed_all(splitter, chunks) == []
    assert [sys.getrefcount(chunk) for chunk in chunks] == counts


@given(streams(), st.data())
def test_skip_steps_over_what_the_oracle_does(stream: bytes, data: st.DataObject) -> None:
    """Whole values are stepped over, any number of them; of a cut one the end is beyond what is there."""
    ends = [0, *oracle(stream)]
    first, last = sorted(data.draw(st.tuples(*[st.integers(0, len(ends) - 1)] * 2)))
    assert skip(stream, ends[first], last - first) == ends[last]
    if ends[-1] < len(stream):
        assert skip(stream, ends[-1]) > len(stream)
    assert skip(stream, ends[first], len(ends) - first) > len(stream)


def test_skip_knows_no_depth_and_no_reserved_byte() -> None:
    """Nothing that a client can send makes it raise."""
    assert skip(b"\x91" * 100_000 + b"\xc0", 0) == 100_001
    assert skip(b"\x92\xc0\xc1\xc0", 0) > 4
    assert skip(b"\xdd\xff\xff\xff\xff" * 100, 0) > 500


HOSTILE = {
    "values that are frames": b"\x00",
    "arrays of one": b"\x91\xc0",
    "nested arrays": b"\x91" * 500 + b"\xc0",
    "nested pairs": b"\x92" * 500 + b"\xc0" * 501,
    "arrays of fifteen arrays": b"\x9f" + b"\x91\xc0" * 15,
    "empty strings": b"\xc4\x00",
    "arrays that say in 16 bits that they are short": b"\xdc\x00\x01\xc0",
    "long arrays of two sizes": b"\xdc\x00\x22" + b"\x00\xcc\x00" * 17,
    "runs that end when a look is long": b"\xdc\xff\xff"
    + bytes(40_000)
    + b"\xcc\x00\x00" * 12_768
    + b"\xc0" * 0,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_read_does_not_stop_the_loop(name: str) -> None:
    """256 KiB of what costs most take tens of milliseconds, and never seconds."""
    data = HOSTILE[name] * (256 * 1024 // len(HOSTILE[name]))
    splitter = MsgpackSplitter(1 << 24)
    start = process_time()
    splitter.feed(data)
    assert process_time() - start < 0.5
