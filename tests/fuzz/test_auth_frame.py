"""Random and damaged first frames: only ProtocolError escapes."""

import struct

import msgpack
from hypothesis import given
from hypothesis import strategies as st

from tcpgw.errors import Code, ProtocolError
from tcpgw.wire.auth_frame import AuthFrame
from tcpgw.wire.greeting import Greeting, Line, Presented
from tcpgw.wire.msgpack_rpc import MsgpackRpc
from tcpgw.wire.thrift import Thrift

GREETINGS: list[Greeting] = [
    AuthFrame(MsgpackRpc(framed=True), MsgpackRpc(framed=False), first=0),
    AuthFrame(Thrift(), None, first=1),
    Line(),
]
BODY = msgpack.packb([0, 1, "tcpgw.auth", ["a-token", "a-key"]])
THRIFT = bytes.fromhex("80010001 0000000a") + b"tcpgw.auth" + bytes.fromhex("00000001 0b0001 00000001 78 00")
SEEDS = [BODY, struct.pack(">I", len(BODY)) + BODY, struct.pack(">I", len(THRIFT)) + THRIFT]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A first frame with a few bytes overwritten and something after it."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 3))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data) + draw(st.binary(max_size=30))


@given(data=st.one_of(damaged(), st.binary(min_size=1, max_size=200)))
def test_only_the_documented_errors(data: bytes) -> None:
    """Whatever a stranger sends is a credential, a refusal, or a wait for more; and can be denied."""
    for greeting in GREETINGS:
        found: Presented | None = None
        for size in range(1, len(data) + 1):
            try:
                found = found or greeting.parse(data[:size])
            except ProtocolError:
                break
        assert found is None or found.size <= len(data)
        assert greeting.denial(data, Code.UNAUTHENTICATED)
