"""Which answers are errors, by the parts in which they pass: in runs, one by one, and in pieces."""

import struct
from typing import Any

import msgpack
import pytest
from thrift.Thrift import TMessageType

from tcpgw.wire.codec import FIRST_NUMBER, LARGE, Codec
from tcpgw.wire.msgpack_rpc import MsgpackRpc
from tcpgw.wire.mux import Mux
from tcpgw.wire.thrift import Thrift
from tests.support.batches import Shared
from tests.support.muxing import Room
from tests.support.rpc_thrift import Said, thrift_frame

BATCH = Shared("a batch")
PATTERN = [False, True, True, False, True]
THRIFT = {"binary": b"\x80\x01\0\x01\0\0\0\x01m\0\0\0\x07", "compact": b"\x82\x21\x07\x01m"}


def _msgpack(number: int, error: bool, size: int) -> bytes:
    content = [1, number, {"code": 1}, None] if error else [1, number, None, bytes(size)]
    body: bytes = msgpack.packb(content)
    return struct.pack(">I", len(body)) + body


def _thrift(encoding: str) -> Any:
    def make(number: int, error: bool, size: int) -> bytes:
        type_ = TMessageType.EXCEPTION if error else TMessageType.REPLY
        return thrift_frame(Said(encoding, type_, "m", number, "x" * size))

    return make


class General(MsgpackRpc):
    """A codec to which no answer is ordinary."""

    def take_answers(self, data: bytes, pos: int, *rest: Any) -> tuple[int, int]:  # noqa: ARG002
        return pos, 0


FORMS = {
    "msgpack": (MsgpackRpc(framed=True), b"\x07", _msgpack),
    "msgpack one by one": (General(framed=True), b"\x07", _msgpack),
    "thrift binary": (Thrift(), THRIFT["binary"], _thrift("binary")),
    "thrift compact": (Thrift(), THRIFT["compact"], _thrift("compact")),
}
forms = pytest.mark.parametrize(("codec", "token", "make"), FORMS.values(), ids=FORMS.keys())


@forms
@pytest.mark.parametrize("owners", [1, 3])
def test_errors_are_told_from_results(codec: Codec, token: bytes, make: Any, owners: int) -> None:
    """Of each answer in its order, whoever it is for."""
    mux = Mux(codec, codec, 1 << 20, Room())
    for place in range(len(PATTERN)):
        mux.enter(token, 0, (), f"client {place % owners}", BATCH)
    data = b"".join(make(FIRST_NUMBER + place, error, 10) for place, error in enumerate(PATTERN))
    runs = mux.receive(data)
    assert [error for _, parts, _ in runs for error in codec.errors(parts)] == PATTERN
    assert not mux.pending


@forms
def test_large_results_are_none(codec: Codec, token: bytes, make: Any) -> None:
    """What follows its head in pieces is told by that head."""
    mux = Mux(codec, codec, 1 << 20, Room())
    mux.enter(token, 0, (), "client", BATCH)
    data = make(FIRST_NUMBER, False, 10 * LARGE)
    for start in range(0, len(data), LARGE + 1):
        assert mux.receive(data[start : start + LARGE + 1]) == []
    (large,) = mux.large
    assert codec.errors([large.parts[0], b"", large.parts[1]]) == [False]
