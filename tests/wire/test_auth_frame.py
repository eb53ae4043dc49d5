"""The first frame of an rpc client, which says who it is."""

import struct
from typing import Any

import msgpack
import pytest
from thrift.protocol.TBinaryProtocol import TBinaryProtocol
from thrift.protocol.TCompactProtocol import TCompactProtocol
from thrift.Thrift import TApplicationException, TMessageType, TType
from thrift.transport.TTransport import TMemoryBuffer

from tcpgw.errors import Code, ProtocolError
from tcpgw.wire.auth_frame import MAX_SIZE, AuthFrame
from tcpgw.wire.msgpack_rpc import MsgpackRpc
from tcpgw.wire.thrift import Thrift

MSGPACK = AuthFrame(MsgpackRpc(framed=True), MsgpackRpc(framed=False), first=0)
THRIFT = AuthFrame(Thrift(), None, first=1)
ENCODINGS = {"binary": TBinaryProtocol, "compact": TCompactProtocol}


def bare(*params: Any, method: str = "tcpgw.auth", number: int = 7) -> bytes:
    packed: bytes = msgpack.packb([0, number, method, list(params)])
    return packed


def framed(*params: Any, **how: Any) -> bytes:
    body = bare(*params, **how)
    return struct.pack(">I", len(body)) + body


def thrift(encoding: str, *texts: str, method: str = "tcpgw.auth") -> bytes:
    buffer = TMemoryBuffer()
    protocol = ENCODINGS[encoding](buffer)
    protocol.writeMessageBegin(method, TMessageType.CALL, 7)
    protocol.writeStructBegin("args")
    for number, text in enumerate(texts, 1):
        protocol.writeFieldBegin("", TType.STRING, number)
        protocol.writeString(text)
        protocol.writeFieldEnd()
    protocol.writeFieldStop()
    protocol.writeStructEnd()
    protocol.writeMessageEnd()
    body: bytes = buffer.getvalue()
    return struct.pack(">I", len(body)) + body


FORMS = {"framed": (MSGPACK, framed), "bare": (MSGPACK, bare)} | {
    name: (THRIFT, lambda *texts, _name=name, **how: thrift(_name, *texts, **how)) for name in ENCODINGS
}
each_form = pytest.mark.parametrize(("frame", "make"), FORMS.values(), ids=FORMS)


@each_form
def test_a_token_and_a_hash_key(frame: AuthFrame, make: Any) -> None:
    """Both are found, and what follows is left alone; without a hash key there is none."""
    data = make("a.b.c", "key")
    found = frame.parse(data + b"\x94more")
    assert found is not None
    assert (found.token, found.hash_key, found.size) == (b"a.b.c", b"key", len(data))
    alone = frame.parse(make("a.b.c"))
    assert alone is not None
    assert alone.hash_key == b""


@each_form
def test_in_pieces(frame: AuthFrame, make: Any) -> None:
    """However the bytes come, nothing is found before all are there."""
    data = make("token")
    assert all(frame.parse(data[:size]) is None for size in range(1, len(data)))


@pytest.mark.parametrize("what", [bare("x" * 100_000)[:900], b"\x94\xc1", b"\xdc"])
def test_what_follows_without_lengths(what: bytes) -> None:
    """It may be large, cut off or nonsense: that is for whoever reads it."""
    found = MSGPACK.parse(bare("a.b.c") + what)
    assert found is not None
    assert found.size == len(bare("a.b.c"))


@each_form
def test_another_request(frame: AuthFrame, make: Any) -> None:
    """Only tcpgw.auth comes first, and not without a token."""
    with pytest.raises(ProtocolError, match="calls b'predict'"):
        frame.parse(make("token", method="predict"))
    with pytest.raises(ProtocolError, match="without a token"):
        frame.parse(make())


@pytest.mark.parametrize("make", [bare, framed], ids=["bare", "framed"])
def test_too_much(make: Any) -> None:
    """A first frame is refused at the length that it claims, before that has come."""
    with pytest.raises(ProtocolError):
        MSGPACK.parse(make("x" * MAX_SIZE)[: MAX_SIZE // 2] if make is framed else make("x" * MAX_SIZE))


def test_what_is_no_text() -> None:
    """A token of another type is none."""
    for value in (None, [1], {"token": "x"}, 1.5):
        with pytest.raises(ProtocolError, match="without a token"):
            MSGPACK.parse(framed(value))


@pytest.mark.parametrize("make", [bare, framed], ids=["bare", "framed"])
def test_a_msgpack_client_is_welcomed(make: Any) -> None:
    """The answer has the request's id and no error, in the client's form."""
    found = MSGPACK.parse(make("t"))
    assert found is not None
    body = found.welcome if make is bare else found.welcome[4:]
    assert msgpack.unpackb(body) == [1, 7, None, None]
    if make is framed:
        assert struct.unpack(">I", found.welcome[:4]) == (len(body),)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_thrift_client_is_welcomed(encoding: str) -> None:
    """Apache Thrift reads a reply of void."""
    found = THRIFT.parse(thrift(encoding, "t"))
    assert found is not None
    protocol = ENCODINGS[encoding](TMemoryBuffer(found.welcome[4:]))
    assert protocol.readMessageBegin() == ("tcpgw.auth", TMessageType.REPLY, 7)
    protocol.readStructBegin()
    assert protocol.readFieldBegin()[1] == TType.STOP


@pytest.mark.parametrize("make", [bare, framed], ids=["bare", "framed"])
def test_a_msgpack_client_is_denied(make: Any) -> None:
    """It reads an error under its request's id, which says nothing of what was wrong."""
    answer = MSGPACK.denial(make("bad"), Code.UNAUTHENTICATED)
    body = answer if make is bare else answer[4:]
    error = {"code": "unauthenticated", "message": "access denied"}
    assert msgpack.unpackb(body) == [1, 7, error, None]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_thrift_client_is_denied(encoding: str) -> None:
    """Apache Thrift reads an exception of the application's."""
    answer = THRIFT.denial(thrift(encoding, "bad"), Code.UNAUTHENTICATED)
    protocol = ENCODINGS[encoding](TMemoryBuffer(answer[4:]))
    assert protocol.readMessageBegin() == ("tcpgw.auth", TMessageType.EXCEPTION, 7)
    error = TApplicationException()
    error.read(protocol)
    assert error.message == "unauthenticated: access denied"


@pytest.mark.parametrize("data", [b"", b"\0", b"\xff" * 4, framed("x")[:9], b"\0\0\0\1\x00more"])
def test_who_sent_no_request_is_denied_too(data: bytes) -> None:
    """Where there is no request to answer, the error answers nobody's."""
    answer = MSGPACK.denial(data, Code.DENIED)
    assert msgpack.unpackb(answer[4:])[:2] == [1, None]
