"""Fields of requests: msgpack packs them, and says what was found and what a replaced one reads as."""

import math
import struct
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgw.wire.codec import Path
from tcpgw.wire.msgpack_fields import find, key, number, put_number

INTEGERS = st.integers(-(1 << 63), (1 << 64) - 1)
LEAVES = st.none() | st.booleans() | INTEGERS | st.floats() | st.text(max_size=40) | st.binary(max_size=40)
KEYS = st.text(max_size=5) | INTEGERS | st.sampled_from(["session", "deadline_ms"])
DOCUMENTS = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(KEYS, inner, max_size=20),
    max_leaves=40,
)


def request(params: Any, method: Any = "predict", **options: Any) -> tuple[bytes, int]:
    """The bytes of a request, and where its method begins."""
    start = 1 + 1 + 5
    data = b"\x94\x00\xce\x00\x01\x00\x00" + msgpack.packb(method) + msgpack.packb(params, **options)
    return data, start


def found(data: bytes, start: int, path: Path) -> Any:
    span = find(data, start, path)
    assert span is not None
    return msgpack.unpackb(data[slice(*span)], strict_map_key=False)


def paths(value: Any) -> list[tuple[Path, Any]]:
    """Every path of a document with what stands there."""
    inner: list[tuple[int | str, Any]] = []
    if isinstance(value, list):
        inner = list(enumerate(value))
    elif isinstance(value, dict):
        inner = list(value.items())
    return [((), value)] + [((step, *path), it) for step, part in inner for path, it in paths(part)]


def same(one: Any, other: Any) -> bool:
    return repr(one) == repr(other)  # NaN is itself here


@given(DOCUMENTS, st.text(max_size=40) | st.binary(max_size=40) | st.none(), st.binary(max_size=9))
def test_finds_what_is_there(params: Any, method: Any, after: bytes) -> None:
    """Every value of any parameters is found by its path, whatever follows the request."""
    data, start = request(params, method)
    for path, value in paths(params):
        assert same(found(data + after, start, path), value)


@given(DOCUMENTS)
def test_finds_nothing_that_is_not_there(params: Any) -> None:
    """A path that leads nowhere, or into what is no container, finds nothing."""
    data, start = request(params)
    for path, value in paths(params):
        assert find(data, start, (*path, "no such key")) is None
        if not isinstance(value, dict):
            assert find(data, start, (*path, -1)) is None
            assert find(data, start, (*path, len(value) if isinstance(value, list) else 0)) is None


@given(DOCUMENTS, st.data())
def test_finds_only_what_is_whole(params: Any, data: st.DataObject) -> None:
    """Of a request that is cut off, exactly what stands whole within the rest is found."""
    whole, start = request(params)
    size = data.draw(st.integers(0, len(whole)))
    for path, _ in paths(params):
        span = find(whole, start, path)
        assert span is not None
        assert find(whole[:size], start, path) == (span if span[1] <= size else None)


@pytest.mark.parametrize(
    ("params", "path"),
    [
        ([{"session": 7}], (0, "session")),
        ([{b"session": 7}], (0, "session")),
        ([{"a": [1] * 40, "é" * 40: 7}], (0, "é" * 40)),
        ([{1: 0, -5: 7}], (0, -5)),
        ([{70_000: 7, "70000": 0}], (0, 70_000)),
        ({"session": 7}, ("session",)),
        ([list(range(70_000)), 7], (1,)),
        ([[0.5] * 1024, {"x": b"\xc1" * 70_000, "y": 7}], (1, "y")),
        ([{True: 0, None: 0, 1.5: 0, "a": 7}], (0, "a")),
    ],
)
def test_finds_keys_in_every_form(params: Any, path: Path) -> None:
    """Text keys match str and bin, numbers match whole numbers of any size, and nothing else."""
    data, start = request(params)
    assert found(data, start, path) == 7


def test_takes_the_first_of_equal_keys() -> None:
    """A map that says a key twice has the first one's value."""
    data, start = request([])
    data = data[:-1] + b"\x91\x82\xa1k\x01\xc4\x01k\x02"
    assert found(data, start, (0, "k")) == 1


def test_finds_keys_that_encoders_made_long() -> None:
    """A key is the same in every width that its length or number can have."""
    forms = [b"\xa1k", b"\xd9\x01k", b"\xda\x00\x01k", b"\xdb\x00\x00\x00\x01k", b"\xc5\x00\x01k"]
    for form in forms:
        data = b"\xa1m\xde\x00\x01" + form + b"\x07"
        assert found(data, 0, ("k",)) == 7
    for form in (b"\x05", b"\xcc\x05", b"\xd0\x05", b"\xcf" + bytes(7) + b"\x05"):
        data = b"\xa1m\xdf\x00\x00\x00\x01" + form + b"\x07"
        assert found(data, 0, (5,)) == 7


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xa3",
        b"\xa1m",
        b"\xa1m\xc1",
        b"\xc1\x91\x01",
        b"\xa1m\xdc",
        b"\xa1m\xdd\xff\xff\xff\xff",
        b"\xa1m\xdf\xff\xff\xff\xff\xa1k",
        b"\xa1m\x81\xa1k",
        b"\xa1m" + b"\x91" * 70_000,
        b"\xa1m\xc7\x02\x01\x05\x05",
        b"\xa1m\xc6\x00\x00\x00\x01k",
    ],
)
@pytest.mark.parametrize("path", [(0,), ("k",), (0, 0, "k"), (1 << 40,), ("\ud800",)])
def test_finds_nothing_in_garbage(data: bytes, path: Path) -> None:
    """What is cut off, malformed or no container has no fields, and raises nothing."""
    assert find(data, 0, path) is None


def spot(value: Any, **options: Any) -> tuple[bytes, tuple[int, int]]:
    """A request with the value amid its parameters, and the value's span."""
    data, start = request([None, value, "after"], **options)
    span = find(data, start, (1,))
    assert span is not None
    return data, span


@given(st.text(max_size=300) | st.binary(max_size=300))
def test_a_text_is_its_own_key(value: str | bytes) -> None:
    """Text hashes as its UTF-8, and a byte string as itself, so that either form has the same key."""
    assert key(*spot(value)) == (value.encode() if isinstance(value, str) else value)


@given(INTEGERS)
def test_a_whole_number_is_the_key_that_its_digits_are(value: int) -> None:
    """A number has the same key in every encoding, and as text."""
    data, span = spot(value)
    assert key(data, span) == str(value).encode() == key(*spot(str(value)))
    assert number(data, span) == float(value)
    if -(1 << 63) <= value < 1 << 63:
        assert key(b"\xd3" + struct.pack(">q", value), (0, 9)) == key(data, span)


@pytest.mark.parametrize("value", [None, True, False, [], [1], {}, {"a": 1}, msgpack.ExtType(5, b"12")])
def test_other_types_are_neither_key_nor_number(value: Any) -> None:
    """Nil, booleans, containers and extensions are not taken for what they are not."""
    assert key(*spot(value)) is None
    assert number(*spot(value)) is None


def test_texts_are_no_numbers_and_floats_no_keys() -> None:
    """A number in text is not read as one, and a float, which has no one form, is no key."""
    for text in ("5", b"5", "x" * 300):
        assert number(*spot(text)) is None
    assert key(*spot(5.0)) is None
    assert key(*spot(5.0, use_single_float=True)) is None


@given(st.floats(), st.booleans())
def test_numbers_are_finite(value: float, single: bool) -> None:
    """Floats of both sizes are read as msgpack reads them; infinities and NaN are no number."""
    value = min(max(value, -3e38), 3e38) if single and math.isfinite(value) else value
    data, span = spot(value, use_single_float=single)
    expected = msgpack.unpackb(data[slice(*span)])
    assert number(data, span) == (expected if math.isfinite(value) else None)


@given(INTEGERS, st.integers(-(1 << 65), 1 << 65) | st.floats(allow_nan=False, allow_infinity=False))
def test_a_whole_number_stays_one(old: int, new: float) -> None:
    """It reads as the nearest whole number, in 64 bits at most, and keeps its size where that fits."""
    data, span = spot(old)
    put = put_number(data, span, new)
    assert msgpack.unpackb(put) == min(max(round(new), -(1 << 63)), (1 << 64) - 1)
    assert len(put) in (span[1] - span[0], 9)


@given(st.integers(0, (1 << 64) - 1), st.floats(0, 1))
def test_a_reduced_number_has_the_same_size(old: int, share: float) -> None:
    """What a deadline has left never needs more room than the deadline did."""
    data, span = spot(old)
    new = int(old * share)
    if new <= old:
        assert len(put_number(data, span, new)) == span[1] - span[0]
        assert put_number(data, span, new)[0] == data[span[0]] or old < 0x80


@given(st.floats(-1e38, 1e38), st.floats(allow_nan=False, allow_infinity=False), st.booleans())
def test_a_float_stays_one(old: float, new: float, single: bool) -> None:
    """It reads as the value, as exactly as its size allows, in 64 bits where it is too large for 32."""
    data, span = spot(old, use_single_float=single)
    put = put_number(data, span, new)
    assert len(put) in (span[1] - span[0], 9)
    expected = struct.unpack(">f", struct.pack(">f", new))[0] if len(put) == 5 else new
    assert msgpack.unpackb(put) == expected
    assert (len(put) == 5) == (single and abs(new) < 3.4e38)


def test_a_replaced_number_leaves_the_rest_as_it_was() -> None:
    """What stands around the span is the caller's, and the whole is a request again."""
    data, span = spot(5000)
    patched = data[: span[0]] + put_number(data, span, 70_000.4) + data[span[1] :]
    assert msgpack.unpackb(patched) == [0, 65536, "predict", [None, 70_000, "after"]]
