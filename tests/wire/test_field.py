"""Fields that are looked for again and again: found just where a look at the whole request finds them."""

import struct
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcpgw.wire.codec import Codec, Path
from tcpgw.wire.field import Field
from tcpgw.wire.msgpack_rpc import MsgpackRpc
from tcpgw.wire.thrift import Thrift

MSGPACK, THRIFT = MsgpackRpc(framed=True), Thrift()
METHODS = [b"predict", b"embed"]

VALUES = st.one_of(
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.floats(),
    st.text(max_size=40),
    st.binary(max_size=40),
    st.none(),
    st.lists(st.integers(0, 300), max_size=3),
)
MAPS = st.dictionaries(st.sampled_from(["session", "deadline_ms", "user", "x" * 250]), VALUES, max_size=4)


def packed(method: bytes, params: Any) -> bytes:
    body: bytes = msgpack.packb(method.decode()) + msgpack.packb(params)
    return body


# Fields of a struct in binary, as their types are written.
_I32, _I64, _DOUBLE, _STRING, _LIST = 8, 10, 4, 11, 15


def written(kind: int, number: int) -> bytes:
    forms = {_I32: ">i", _I64: ">q", _DOUBLE: ">d"}
    if kind in forms:
        return struct.pack(forms[kind], number)
    if kind == _STRING:
        return struct.pack(">I", number % 50) + bytes(number % 50)
    return struct.pack(">BI2i", _I32, 2, number, number)


def struct_of(fields: list[tuple[int, int, int]]) -> bytes:
    """`fields` are types, ids and numbers that their values are made from."""
    heads = (struct.pack(">Bh", kind, id_) + written(kind, number) for kind, id_, number in fields)
    return b"".join(heads) + b"\0"


THRIFT_FIELDS = st.lists(
    st.tuples(
        st.sampled_from([_I32, _I64, _DOUBLE, _STRING, _LIST]), st.integers(1, 3), st.integers(0, 1000)
    ),
    max_size=4,
)
MSGPACK_REQUESTS = st.builds(
    packed, st.sampled_from(METHODS), st.lists(MAPS | VALUES, max_size=3) | MAPS
) | st.binary(max_size=60)
THRIFT_REQUESTS = st.builds(struct_of, THRIFT_FIELDS) | st.binary(max_size=60)


def same_everywhere(codec: Codec, path: Path, requests: list[tuple[bytes, bytes]]) -> None:
    field = Field(path)
    for method, data in requests:
        span = field.find(codec, method, data)
        assert span == codec.find(data, 0, path)
        number = codec.number(data, span) if span else None
        if span and number is not None:  # put back, it is there again
            put = data[: span[0]] + codec.put_number(data, span, number) + data[span[1] :]
            assert (again := field.find(codec, method, put)) is not None
            assert codec.number(put, again) == number


@settings(max_examples=300)
@given(
    st.sampled_from([(0, "session"), (0, "deadline_ms"), (1,), ("user",), (0, "x" * 250), (0, 1)]),
    st.lists(st.tuples(st.sampled_from(METHODS), MSGPACK_REQUESTS, st.integers(0, 70)), max_size=12),
)
def test_msgpack(path: Path, requests: list[tuple[bytes, bytes, int]]) -> None:
    """Whatever was found before, under the same name or another, whole or cut off."""
    same_everywhere(
        MSGPACK, path, [(method, data[: cut or None]) for method, data, cut in requests for _ in range(2)]
    )


@settings(max_examples=300)
@given(
    st.sampled_from([(1,), (2,), (3,), (1, 1), (2, 0)]),
    st.lists(st.tuples(st.sampled_from(METHODS), THRIFT_REQUESTS, st.integers(0, 70)), max_size=12),
)
def test_thrift(path: Path, requests: list[tuple[bytes, bytes, int]]) -> None:
    """Whatever was found before: other fields in front, other types, elements of lists, cut off."""
    same_everywhere(
        THRIFT, path, [(method, data[: cut or None]) for method, data, cut in requests for _ in range(2)]
    )


def test_what_is_remembered_gives_way() -> None:
    """Methods that clients made up do not keep a real one from being found quickly: nor do they harm it."""
    field = Field((0,))
    for number in range(1000):
        data = packed(b"made up %d" % number, ["x"])
        assert field.find(MSGPACK, b"made up %d" % number, data) == MSGPACK.find(data, 0, (0,))
    data = packed(b"predict", ["x"])
    for _ in range(2):
        assert field.find(MSGPACK, b"predict", data) == MSGPACK.find(data, 0, (0,))
    assert b"predict" in field._before


@pytest.mark.parametrize("before", [b"", b"x" * 300])
def test_clients_that_never_repeat_themselves_cost_no_memory(before: bytes) -> None:
    """Methods and what stands before a field are the clients' choice, and only so many are remembered."""
    field = Field((1,))
    tracemalloc.start()
    try:
        for number in range(5000):
            data = packed(b"m%d" % number, [before, number])
            assert MSGPACK.number(data, field.find(MSGPACK, b"m%d" % number, data) or (0, 0)) == number
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 100_000
