"""Framed Thrift: Apache Thrift and thriftpy2 write what is renumbered, and read what came of it."""

import io
import math
import struct
from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest
import thriftpy2
from hypothesis import given, settings
from hypothesis import strategies as st
from thrift.protocol.TBinaryProtocol import TBinaryProtocol
from thrift.protocol.TCompactProtocol import TCompactProtocol
from thrift.protocol.TProtocol import TProtocolBase
from thrift.Thrift import TApplicationException, TMessageType, TType
from thrift.transport.TTransport import TMemoryBuffer
from thriftpy2.protocol import TCyBinaryProtocol
from thriftpy2.protocol.binary import TBinaryProtocol as Binary2
from thriftpy2.protocol.compact import TCompactProtocol as Compact2
from thriftpy2.thrift import TApplicationException as TApplicationException2
from thriftpy2.thrift import TClient, TProcessor
from thriftpy2.transport import TCyMemoryBuffer
from thriftpy2.transport.memory import TMemoryBuffer as TMemoryBuffer2

from tcpgw.errors import Code, ProtocolError
from tcpgw.wire.codec import (
    FIRST_NUMBER,
    LARGE,
    LAST_NUMBER,
    PARTS,
    Entry,
    Kind,
    Message,
    Path,
    Piece,
    Run,
)
from tcpgw.wire.thrift import MAX_NAME, Thrift
from tests.support.batches import Given, Shared
from tests.support.msgpack_messages import delivered
from tests.support.splitting import cut

CODEC = Thrift()
ENCODINGS = {"binary": TBinaryProtocol, "compact": TCompactProtocol}
IDS = [0, 1, 5, 127, 128, 300, 65_536, 8_528_133, LAST_NUMBER, -1, -300, -(1 << 31)]
CALL, REPLY, EXCEPTION, ONEWAY = (
    TMessageType.CALL,
    TMessageType.REPLY,
    TMessageType.EXCEPTION,
    TMessageType.ONEWAY,
)
OWNER, BATCH = "a client", Shared("a batch")

encodings = pytest.mark.parametrize("encoding", ENCODINGS)


# ---- what Apache Thrift writes ----


def framed(message: bytes) -> bytes:
    return struct.pack(">I", len(message)) + message


def apache(encoding: str, name: str, type_: int, id_: int, body: bytes = b"\0") -> bytes:
    """The frame that Apache Thrift writes."""
    transport = TMemoryBuffer()
    ENCODINGS[encoding](transport).writeMessageBegin(name, type_, id_)
    transport.write(body)
    return framed(transport.getvalue())


class Value(NamedTuple):
    """`inner` has the type of a list's or set's elements, or a map's two; a struct's fields are by id."""

    type: int
    value: Any
    inner: tuple[int, ...] = ()


WRITERS = {
    TType.BOOL: "writeBool",
    TType.BYTE: "writeByte",
    TType.I16: "writeI16",
    TType.I32: "writeI32",
    TType.I64: "writeI64",
    TType.DOUBLE: "writeDouble",
    TType.STRING: "writeBinary",
}


def write(to: TProtocolBase, value: Value) -> None:
    """Write one value as the code that Thrift generates would."""
    if value.type == TType.STRUCT:
        to.writeStructBegin("")
        for id_, inner in value.value.items():
            to.writeFieldBegin("", inner.type, id_)
            write(to, inner)
            to.writeFieldEnd()
        to.writeFieldStop()
        to.writeStructEnd()
    elif value.type == TType.MAP:
        to.writeMapBegin(*value.inner, len(value.value))
        for pair in value.value:
            for inner in pair:
                write(to, inner)
        to.writeMapEnd()
    elif value.type in (TType.LIST, TType.SET):
        to.writeListBegin(*value.inner, len(value.value))
        for inner in value.value:
            write(to, inner)
        to.writeListEnd()
    else:
        getattr(to, WRITERS[value.type])(value.value)


def request(encoding: str, arguments: Value, name: str = "predict", id_: int = 7) -> bytes:
    transport = TMemoryBuffer()
    protocol = ENCODINGS[encoding](transport)
    protocol.writeMessageBegin(name, CALL, id_)
    write(protocol, arguments)
    protocol.writeMessageEnd()
    return framed(transport.getvalue())


def text(value: str | bytes) -> Value:
    return Value(TType.STRING, value.encode() if isinstance(value, str) else value)


def fields(**values: Value) -> Value:
    """A struct; `_3=` is its field 3."""
    return Value(TType.STRUCT, {int(id_[1:]): value for id_, value in values.items()})


# ---- what a gateway does with a message, one by one ----


def read(frame: bytes) -> Message:
    return CODEC.read(frame, 0, len(frame))


def to_instance(frame: bytes, number: int) -> bytes:
    message = read(frame)
    return CODEC.request(message.token, len(frame) - message.rest, number) + frame[message.rest :]


def to_client(frame: bytes, token: bytes) -> bytes:
    message = read(frame)
    return CODEC.answer(message, len(frame) - message.rest, token) + frame[message.rest :]


# ---- heads, as Apache Thrift writes them ----


@encodings
@pytest.mark.parametrize("id_", IDS)
@pytest.mark.parametrize("number", [FIRST_NUMBER, 2_097_151, 2_097_152, LAST_NUMBER])
def test_a_request_passes_under_the_gateways_number(encoding: str, id_: int, number: int) -> None:
    """The instance gets what Apache Thrift writes under the number, whatever the client's id."""
    frame = apache(encoding, "predict", CALL, id_, b"any bytes")
    message = read(frame)
    assert (message.kind, message.method, message.number) == (Kind.REQUEST, b"predict", -1)
    assert to_instance(frame, number) == apache(encoding, "predict", CALL, number, b"any bytes")


@encodings
@pytest.mark.parametrize("id_", IDS)
@pytest.mark.parametrize("type_", [REPLY, EXCEPTION])
def test_an_answer_passes_under_the_clients_id(encoding: str, id_: int, type_: int) -> None:
    """The client gets the instance's name, type and body under its own id."""
    token = read(apache(encoding, "service:predict", CALL, id_)).token
    answer = apache(encoding, "predict", type_, 70_000, b"any bytes")
    message = read(answer)
    assert (message.kind, message.method, message.number) == (Kind.ANSWER, b"predict", 70_000)
    assert to_client(answer, token) == apache(encoding, "predict", type_, id_, b"any bytes")


@encodings
def test_a_oneway_passes_under_zero(encoding: str) -> None:
    """A notification keeps its method and body, and its id is none that an answer could be taken for."""
    frame = apache(encoding, "log", ONEWAY, 70_000, b"any bytes")
    message = read(frame)
    passed = CODEC.notification(message.token, len(frame) - message.rest) + frame[message.rest :]
    assert (message.kind, message.method, message.number) == (Kind.NOTIFY, b"log", -1)
    assert passed == apache(encoding, "log", ONEWAY, 0, b"any bytes")


@encodings
@pytest.mark.parametrize("name", ["", "é" * 100, "n" * MAX_NAME])
def test_names_of_any_length_up_to_the_limit_pass(encoding: str, name: str) -> None:
    """Empty, not ASCII, and as long as may be: a name is bytes to the gateway."""
    frame = apache(encoding, name, CALL, -1)
    assert read(frame).method == name.encode()
    assert to_instance(frame, 70_000) == apache(encoding, name, CALL, 70_000)


@pytest.mark.parametrize("id_", [b"\x80\x00", b"\x81\x80\x80\x80\x00", b"\xff" * 9 + b"\x01"])
def test_an_oddly_written_id_comes_back_as_it_was(id_: bytes) -> None:
    """A varint longer than it need be, as some encoders write, is restored byte for byte."""
    frame = framed(b"\x82\x21" + id_ + b"\x04ping\0")
    answer = apache("compact", "ping", REPLY, 70_000)
    assert to_instance(frame, 70_000) == apache("compact", "ping", CALL, 70_000)
    assert to_client(answer, read(frame).token) == framed(b"\x82\x41" + id_ + b"\x04ping\0")


def test_the_head_of_a_large_frame_is_enough() -> None:
    """A request is read and renumbered from its first LARGE bytes, in a chunk that begins before it."""
    frame = apache("compact", "predict", CALL, 300, bytes(100_000))
    message = CODEC.read(b"before" + frame[:LARGE], 6, 6 + LARGE)
    prefix = CODEC.request(message.token, len(frame) + 6 - message.rest, 70_000)
    assert prefix + frame[message.rest - 6 :] == apache("compact", "predict", CALL, 70_000, bytes(100_000))


REFUSED = {
    "": "byte 4: .* got the frame's end",
    "00000004 70696e67 01 00000001 00": "old binary is refused: have it written strict",
    "7b": r"byte 4: .*old binary",
    "83": r"byte 4: expected strict binary \(0x80\) or compact \(0x82\), got 0x83",
    "80010001 00000000 00000001": "12 bytes|16 bytes",
    "80020001 00000000 00000001 00": "version word 0x800100.., got 0x80020001",
    "80010101 00000000 00000001 00": "got 0x80010101",
    "80010000 00000000 00000001 00": "message type 0",
    "80010005 00000000 00000001 00": "message type 5",
    "80010001 00000001 00000001 00": "no arguments behind a name of 1 bytes",
    "80010001 00000401 00000001 00": "a name of 1025 bytes, more than 1024",
    "80010001 ffffffff 00000001 00": "a name of 4294967295 bytes",
    "82": "byte 5: expected compact's version 1, got the frame's end",
    "82 22 01 00 00": "byte 5: .* got 0x22",
    "82 01 01 00 00": "message type 0",
    "82 a1 01 00 00": "message type 5",
    "82 21": "a varint that does not end",
    "82 21 80": "a varint that does not end",
    "82 21 ffffffffffffffffffff 01 00 00": "a varint that does not end",
    "82 21 01 80": "a varint that does not end",
    "82 21 01 00": "no arguments behind a name of 0 bytes",
    "82 21 01 ffffffff0f 00": "a name of 4294967295 bytes",
}


@pytest.mark.parametrize(("message", "why"), REFUSED.items())
def test_what_is_no_strict_message_is_refused(message: str, why: str) -> None:
    """Whatever breaks the protocol is a ProtocolError that says what and where, even with more behind it."""
    frame = framed(bytes.fromhex(message))
    with pytest.raises(ProtocolError, match=why):
        CODEC.read(frame + bytes(2000), 0, len(frame))


# ---- errors ----


ERRORS = [
    (Code.NO_ENDPOINT, None, TApplicationException.INTERNAL_ERROR, "no_endpoint: why"),
    (Code.BAD_FRAME, None, TApplicationException.PROTOCOL_ERROR, "bad_frame: why"),
    (
        Code.UPSTREAM_LOST,
        "10.0.0.1:80",
        TApplicationException.INTERNAL_ERROR,
        "upstream_lost: why (endpoint 10.0.0.1:80)",
    ),
]


@encodings
@pytest.mark.parametrize("id_", IDS)
@pytest.mark.parametrize(("code", "endpoint", "type_", "said"), ERRORS)
def test_apache_thrift_reads_the_gateways_errors(
    encoding: str, id_: int, code: Code, endpoint: str | None, type_: int, said: str
) -> None:
    """An error is a TApplicationException under the request's name and id, in its encoding."""
    token = read(apache(encoding, "predict", CALL, id_)).token
    frame = CODEC.error(token, code, "why", endpoint)
    transport = TMemoryBuffer(frame[4:])
    protocol = ENCODINGS[encoding](transport)
    head = protocol.readMessageBegin()
    error = TApplicationException()
    error.read(protocol)
    protocol.readMessageEnd()
    assert head == ("predict", EXCEPTION, id_)
    assert (error.type, error.message) == (type_, said)
    assert len(frame) == 4 + int.from_bytes(frame[:4])
    assert not transport.read(1)


def test_a_request_that_could_not_be_read_is_answered_too() -> None:
    """The unknown request's error has no name and id 0; clients of old binary read it."""
    for start in (b"", b"\0\0\0\x13\0\0\0\x07"):
        frame = CODEC.error(CODEC.unknown(start), Code.BAD_FRAME, "lone \ud800 surrogate")
        check_unknown(TBinaryProtocol(TMemoryBuffer(frame[4:]), strictRead=False))


@encodings
def test_a_request_that_could_not_be_read_is_answered_in_its_client_s_encoding(encoding: str) -> None:
    """As far as its first bytes say which that is."""
    start = apache(encoding, "predict", CALL, 1)[:8]
    frame = CODEC.error(CODEC.unknown(start), Code.BAD_FRAME, "lone \ud800 surrogate")
    check_unknown(ENCODINGS[encoding](TMemoryBuffer(frame[4:])))


def check_unknown(protocol: Any) -> None:
    assert protocol.readMessageBegin() == ("", EXCEPTION, 0)
    error = TApplicationException()
    error.read(protocol)
    assert error.message == "bad_frame: lone ? surrogate"


# ---- thriftpy2 at both ends ----

IDL = """
exception Refused { 1: string why }
struct Input { 1: string session, 2: i64 deadline_ms, 3: list<double> numbers, 4: map<string, i32> more }
service Probe {
    string echo(1: string text),
    i32 total(1: Input input) throws (1: Refused refused),
    oneway void log(1: string text),
    void nothing(),
}
"""
probe: Any = thriftpy2.load_fp(io.StringIO(IDL), "tcpgw_probe_thrift")
other: Any = thriftpy2.load_fp(io.StringIO("service Other { void nothing() }"), "tcpgw_other_thrift")
thriftpy2_ends = pytest.mark.parametrize(
    "ends",
    [(Binary2, TMemoryBuffer2), (Compact2, TMemoryBuffer2), (TCyBinaryProtocol, TCyMemoryBuffer)],
    ids=["binary", "compact", "binary in C"],
)


class Instance:
    """The service's methods."""

    def echo(self, text: str) -> str:
        return text

    def total(self, input: Any) -> int:  # noqa: A002 - the field's name
        if input.deadline_ms < 0:
            raise probe.Refused(why=input.session)
        return int(sum(input.numbers) + sum(input.more.values()))

    def nothing(self) -> None: ...


def exchange(ends: tuple[Any, Any], method: str, id_: int = 0, **arguments: Any) -> Any:
    """What thriftpy2's client makes of the answer that thriftpy2's server gave, both through the gateway."""
    protocol, transport = ends
    asked, answered = transport(), transport()
    client = TClient(probe.Probe, protocol(asked))
    client._seqid = id_
    client._send(method, **arguments)
    frame = framed(asked.getvalue())
    passed = transport(to_instance(frame, 70_000)[4:])
    TProcessor(probe.Probe, Instance()).process(protocol(passed), protocol(answered))
    answer = framed(answered.getvalue())
    assert read(answer).number == 70_000
    back = to_client(answer, read(frame).token)[4:]
    assert protocol(transport(back)).read_message_begin()[2] == id_
    return TClient(probe.Probe, protocol(transport(back)))._recv(method)


@thriftpy2_ends
@pytest.mark.parametrize("size", [0, 11, 200_000])
def test_thriftpy2_calls_through_the_gateway(ends: tuple[Any, Any], size: int) -> None:
    """A text of any size comes back whole."""
    assert exchange(ends, "echo", 300, text="x" * size) == "x" * size


@thriftpy2_ends
def test_thriftpy2_gets_results_and_exceptions(ends: tuple[Any, Any]) -> None:
    """Structs, void and the method's own exceptions pass."""
    rest = {"session": "abc", "numbers": [1.0, 2.0], "more": {"a": 39}}
    assert exchange(ends, "total", input=probe.Input(deadline_ms=5, **rest)) == 42
    assert exchange(ends, "nothing") is None
    with pytest.raises(probe.Refused, match="abc"):
        exchange(ends, "total", input=probe.Input(deadline_ms=-1, **rest))


def test_thriftpy2_takes_negative_ids() -> None:
    """A negative id comes back (in compact thriftpy2 itself cannot write one)."""
    assert exchange((Binary2, TMemoryBuffer2), "echo", -5, text="hello") == "hello"


@thriftpy2_ends
def test_thriftpy2_reads_the_gateways_errors(ends: tuple[Any, Any]) -> None:
    """Its client raises what the gateway says in the instance's stead."""
    protocol, transport = ends
    asked = transport()
    TClient(probe.Probe, protocol(asked))._send("echo", text="hello")
    error = CODEC.error(read(framed(asked.getvalue())).token, Code.OVERLOADED, "queue full", "10.0.0.1:80")
    with pytest.raises(TApplicationException2) as caught:
        TClient(probe.Probe, protocol(transport(error[4:])))._recv("echo")
    assert caught.value.type == TApplicationException2.INTERNAL_ERROR
    assert caught.value.message == "overloaded: queue full (endpoint 10.0.0.1:80)"


@thriftpy2_ends
def test_an_answer_to_a_oneway_is_nobodys(ends: tuple[Any, Any]) -> None:
    """thriftpy2 answers a oneway of a method that it does not know, under a number that is no request's."""
    protocol, transport = ends
    asked, answered = transport(), transport()
    client = TClient(probe.Probe, protocol(asked))
    client._seqid = 70_000
    client._send("log", text="hello")
    frame = framed(asked.getvalue())
    message = read(frame)
    passed = CODEC.notification(message.token, len(frame) - message.rest) + frame[message.rest :]
    TProcessor(other.Other, Instance()).process(protocol(transport(passed[4:])), protocol(answered))
    assert message.kind == Kind.NOTIFY
    assert read(framed(answered.getvalue())).number < FIRST_NUMBER


# ---- runs ----


def run_requests(data: bytes, numbers: range, pos: int = 0) -> tuple[int, int, list[Piece], dict[int, Entry]]:
    parts: list[Piece] = []
    pending: dict[int, Entry] = {}
    pos, number = CODEC.take_requests(data, pos, pending, parts.append, numbers, OWNER, BATCH)
    return pos, number, parts, pending


@pytest.mark.parametrize("count", [1, 3, 16, 400])
@pytest.mark.parametrize("size", [1, 64, 1000, LARGE])
def test_a_run_of_requests_passes_at_once(count: int, size: int) -> None:
    """Few or many, small or large: each passes as it would alone, in order, and is pending with its token."""
    frames = [apache("binary", "predict", CALL, 9 - place, bytes(size)) for place in range(count)]
    data = b"before" + b"".join(frames)
    pos, number, parts, pending = run_requests(data, range(70_000, 80_000), 6)
    assert (pos, number) == (len(data), 70_000 + count)
    assert b"".join(parts) == b"".join(map(to_instance, frames, range(70_000, 80_000)))
    assert pending == {
        70_000 + place: (OWNER, read(frame).token, BATCH) for place, frame in enumerate(frames)
    }


@pytest.mark.parametrize("numbers", [range(5, 5), range(5, 6), range(5, 17)])
def test_a_run_takes_no_more_requests_than_numbers(numbers: range) -> None:
    """The rest waits, and no number is used that was not offered."""
    frame = apache("binary", "predict", CALL, 1, bytes(40))
    pos, number, parts, pending = run_requests(frame * 20, numbers)
    assert (pos, number) == (len(numbers) * len(frame), numbers.stop)
    assert sum(map(len, parts)) == pos
    assert list(pending) == list(numbers)


STOPS = {
    "nothing": b"",
    "a length alone": apache("binary", "predict", CALL, 1)[:4],
    "a frame but its last byte": apache("binary", "predict", CALL, 1)[:-1],
    "a frame that says it is negative": b"\xff" * 4 + apache("binary", "predict", CALL, 1)[4:],
    "a frame shorter than its name": b"\0\0\0\x10" + apache("binary", "predict", CALL, 1)[4:],
    "many frames shorter than their names": (b"\0\0\0\x10" + apache("binary", "predict", CALL, 1)[4:]) * 20,
    "no arguments": apache("binary", "predict" * 3, CALL, 1, b""),
    "a name too long": apache("binary", "n" * (MAX_NAME + 1), CALL, 1),
    "compact": apache("compact", "predict", CALL, 1, bytes(40)),
    "a oneway": apache("binary", "predict", ONEWAY, 1),
    "an answer": apache("binary", "predict", REPLY, 1),
    "many oneways": apache("binary", "predict", ONEWAY, 1) * 20,
    "zeros": bytes(50),
}


@pytest.mark.parametrize("count", [0, 1, 16])
@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
def test_a_run_stops_before_what_is_no_ordinary_request(count: int, stop: bytes) -> None:
    """What is incomplete, another message or nonsense is left for `read`, and nothing of it is passed on."""
    frame = apache("binary", "predict", CALL, 1, bytes(40))
    pos, number, parts, pending = run_requests(frame * count + stop, range(5, 500))
    assert (pos, number) == (count * len(frame), 5 + count)
    assert b"".join(parts) == b"".join(to_instance(frame, 5 + place) for place in range(count))
    assert b"" not in parts
    assert len(pending) == count


def test_large_bodies_are_not_copied() -> None:
    """A body from LARGE bytes on passes as a view, both ways, unless that would keep much more of a read."""
    small, large = (apache("binary", "predict", CALL, 1, bytes(size)) for size in (LARGE // 2, LARGE))
    *_, parts, _ = run_requests((small + large) * 4, range(5, 500))
    assert {type(part) for part in parts} == {bytes}
    *_, parts, _ = run_requests(small + large, range(5, 500))
    assert {type(part) for part in parts if len(part) == LARGE} == {memoryview}
    assert {type(part) for part in parts if len(part) < LARGE} == {bytes}
    runs, *_ = run_answers(
        apache("binary", "predict", REPLY, 5, bytes(LARGE)), {5: (OWNER, read(small).token, BATCH)}
    )
    assert type(runs[0][1][-1]) is memoryview


def run_answers(data: bytes, pending: dict[int, Entry]) -> tuple[list[Run], int, int]:
    runs: list[Run] = []
    pos, dropped = CODEC.take_answers(data, 0, pending, runs)
    return runs, pos, dropped


def test_answers_go_back_in_runs_for_each_batch() -> None:
    """Neighbours of one owner and one batch form a run, and no others do; those to nobody are counted."""
    # A call has a batch of its own for each attempt: alike here, and yet not the same.
    turn, first, again = Shared("a turn"), Shared("a call"), Shared("a call")
    mine, yours = ("me", turn), ("you", turn)
    asked = [mine, mine, yours, mine, ("me", first), ("me", again), None, None, mine, yours]
    tokens = [read(apache("binary", "predict", CALL, -place)).token for place in range(len(asked))]
    pending: dict[int, Entry] = {
        5 + place: (one[0], token, one[1])
        for place, (one, token) in enumerate(zip(asked, tokens, strict=True))
        if one is not None
    }
    frames = [
        apache("binary", "predict", EXCEPTION if place == 3 else REPLY, 5 + place, bytes(place + 1))
        for place in range(len(asked))
    ]
    runs, pos, dropped = run_answers(b"".join(frames), pending)
    assert (pos, dropped, pending) == (sum(map(len, frames)), 2, {})
    assert [owner for owner, *_ in runs] == ["me", "you", "me", "me", "me", "me", "you"]
    assert [id(batch) for *_, batch in runs] == [
        id(of) for of in (turn, turn, turn, first, again, turn, turn)
    ]
    assert [len(parts) for _, parts, _ in runs] == [2 * PARTS, *[PARTS] * 6]
    kept = [place for place, one in enumerate(asked) if one is not None]
    assert b"".join(b"".join(parts) for _, parts, _ in runs) == b"".join(
        to_client(frames[place], tokens[place]) for place in kept
    )


ANSWER_STOPS = STOPS | {
    "an answer": apache("binary", "predict", CALL, 5),
    "compact": apache("compact", "predict", REPLY, 5, bytes(40)),
    "no result": apache("binary", "predict" * 3, REPLY, 5, b""),
    "a name too long": apache("binary", "n" * (MAX_NAME + 1), REPLY, 5),
}


@pytest.mark.parametrize("stop", ANSWER_STOPS.values(), ids=ANSWER_STOPS)
def test_a_run_stops_before_what_is_no_ordinary_answer(stop: bytes) -> None:
    """What is incomplete, another message or nonsense is left for `read`, and its request stays pending."""
    token = read(apache("binary", "predict", CALL, 1)).token
    frame = apache("binary", "predict", REPLY, 4)
    pending: dict[int, Entry] = dict.fromkeys((4, 5), (OWNER, token, BATCH))
    runs, pos, dropped = run_answers(frame + stop, pending)
    assert (pos, dropped, list(pending)) == (len(frame), 0, [5])
    assert [b"".join(parts) for _, parts, _ in runs] == [to_client(frame, token)]


@pytest.mark.parametrize(("asked", "answered"), [("binary", "compact"), ("compact", "binary")])
def test_an_answer_in_another_encoding_is_refused(asked: str, answered: str) -> None:
    """An instance that does not answer in the request's encoding breaks the protocol."""
    token = read(apache(asked, "predict", CALL, 1)).token
    frame = apache(answered, "predict", REPLY, 5, bytes(40))
    pending: dict[int, Entry] = {5: (OWNER, token, BATCH)}
    assert run_answers(frame, pending) == ([], 0, 0)
    assert pending == {5: (OWNER, token, BATCH)}
    with pytest.raises(ProtocolError, match="byte 4: expected an answer in the request's encoding"):
        to_client(frame, token)


# ---- any messages, in any chunks ----

IDENTIFIERS = st.text("abcXYZ_.:é", max_size=20)
ANY_ID = st.integers(-(1 << 31), LAST_NUMBER) | st.sampled_from(IDS)
BODIES = st.binary(min_size=1, max_size=60)
calls = st.builds(
    apache, st.sampled_from(["binary", "binary", "compact"]), IDENTIFIERS, st.just(CALL), ANY_ID, BODIES
)
oneways = st.builds(
    apache, st.sampled_from(["binary", "compact"]), IDENTIFIERS, st.just(ONEWAY), ANY_ID, BODIES
)


@given(frame=calls, number=st.integers(FIRST_NUMBER, LAST_NUMBER))
def test_renumbering_loses_nothing(frame: bytes, number: int) -> None:
    """A request under another number, and that under its own id again, is the request."""
    there = to_instance(frame, number)
    message, passed = read(frame), read(there)
    assert passed[:2] == message[:2]
    # The same head as an answer: a compact type is in the upper three bits of its byte.
    answer = bytearray(there)
    answer[5 if there[4] == 0x82 else 7] = 0x41 if there[4] == 0x82 else REPLY
    assert read(bytes(answer)).number == number
    back = bytearray(to_client(bytes(answer), message.token))
    back[5 if there[4] == 0x82 else 7] = 0x21 if there[4] == 0x82 else CALL
    assert back == frame


def whole(data: bytes, pos: int) -> int | None:
    """Where the frame at `pos` ends, if it is all there."""
    if len(data) - pos < 4:
        return None
    end = pos + 4 + int.from_bytes(data[pos : pos + 4])
    return end if end <= len(data) else None


def pass_requests(chunks: list[bytes], room: int) -> tuple[bytes, dict[int, Entry]]:
    """As a connection does: runs of at most `room`, and one by one what they stop at; room 0: all of it."""
    parts: list[Piece] = []
    pending: dict[int, Entry] = {}
    number, rest = FIRST_NUMBER, b""
    for chunk in chunks:
        data, pos = rest + chunk, 0
        while True:
            before = pos
            numbers = range(number, number + room)
            pos, number = CODEC.take_requests(data, pos, pending, parts.append, numbers, OWNER, BATCH)
            end = whole(data, pos)
            if end is None:
                break
            if pos > before:
                continue
            message = CODEC.read(data, pos, end)
            if message.kind == Kind.REQUEST:
                parts.append(CODEC.request(message.token, end - message.rest, number))
                pending[number] = OWNER, message.token, BATCH
                number += 1
            else:
                parts.append(CODEC.notification(message.token, end - message.rest))
            parts.append(data[message.rest : end])
            pos = end
        rest = data[pos:]
    assert rest == b""
    return b"".join(parts), pending


@settings(max_examples=60)
@given(
    chunks=cut(st.lists(calls | calls | oneways, max_size=30).map(b"".join)),
    room=st.sampled_from([1, 3, 8, 500]),
)
def test_runs_of_requests_equal_requests_one_by_one(chunks: list[bytes], room: int) -> None:
    """However the stream is cut, runs give the instance the same bytes and leave the same pending."""
    assert pass_requests(chunks, room) == pass_requests([b"".join(chunks)], 0)


def pass_answers(
    chunks: list[bytes], pending: dict[int, Entry], *, runs: bool
) -> tuple[list[Given], int, dict[int, Entry]]:
    """As a connection does. Returns what each client gets, in order, and how many answers were to nobody."""
    taken: list[Run] = []
    rest, dropped = b"", 0
    for chunk in chunks:
        data, pos = rest + chunk, 0
        while True:
            if runs:
                pos, more = CODEC.take_answers(data, pos, pending, taken)
                dropped += more
            end = whole(data, pos)
            if end is None:
                break
            message = CODEC.read(data, pos, end)
            entry = pending.pop(message.number, None)
            if entry is None:
                dropped += 1
            else:
                owner, token, batch = entry
                prefix = CODEC.answer(message, end - message.rest, token)
                taken.append((owner, [prefix, b"", data[message.rest : end]], batch))
            pos = end
        rest = data[pos:]
    assert rest == b""
    return delivered(taken, []), dropped, pending


@st.composite
def answered(draw: st.DrawFn) -> tuple[list[bytes], dict[int, Entry]]:
    """Answers in chunks, out of order, to requests of a few clients and batches, and some to nobody."""
    batches = [Shared("one"), Shared("two"), Shared("two", 1.0)]
    requests = draw(st.lists(calls, max_size=20))
    pending: dict[int, Entry] = {}
    frames = []
    for number, frame in enumerate(requests, FIRST_NUMBER):
        encoding = "compact" if frame[4] == 0x82 else "binary"
        if draw(st.integers(0, 5)):
            pending[number] = draw(st.sampled_from("ab")), read(frame).token, draw(st.sampled_from(batches))
        type_ = draw(st.sampled_from([REPLY, REPLY, EXCEPTION]))
        frames.append(apache(encoding, draw(IDENTIFIERS), type_, number, draw(BODIES)))
    stream = b"".join(draw(st.permutations(frames)))
    return draw(cut(st.just(stream))), pending


@settings(max_examples=60)
@given(answers=answered())
def test_runs_of_answers_equal_answers_one_by_one(answers: tuple[list[bytes], dict[int, Entry]]) -> None:
    """However the stream is cut, each client gets the same bytes, and the same answers are dropped."""
    chunks, pending = answers
    one_by_one = pass_answers([b"".join(chunks)], dict(pending), runs=False)
    assert pass_answers(chunks, dict(pending), runs=True) == one_by_one


# ---- arguments ----

NUMBERS = {TType.BYTE: 8, TType.I16: 16, TType.I32: 32, TType.I64: 64}
SCALARS: dict[int, st.SearchStrategy[Any]] = {
    TType.BOOL: st.booleans(),
    TType.DOUBLE: st.floats(),
    TType.STRING: st.binary(max_size=12),
} | {type_: st.integers(-(1 << bits - 1), (1 << bits - 1) - 1) for type_, bits in NUMBERS.items()}


def values(type_: int, depth: int = 2) -> st.SearchStrategy[Value]:
    if type_ in SCALARS:
        return SCALARS[type_].map(lambda value: Value(type_, value))
    inner = st.sampled_from(
        [*SCALARS, TType.LIST, TType.SET, TType.MAP, TType.STRUCT] if depth else [*SCALARS]
    )
    if type_ == TType.STRUCT:
        # Close together, far apart and negative: compact writes their distance where it is 1 to 15.
        ids = st.integers(1, 30) | st.integers(-40, 0) | st.integers(-(1 << 15), (1 << 15) - 1)
        some = st.dictionaries(ids, inner.flatmap(lambda of: values(of, depth - 1)), max_size=4)
        return some.map(lambda value: Value(type_, value))
    if type_ == TType.MAP:
        return st.tuples(st.sampled_from([*SCALARS]), inner).flatmap(lambda of: maps(*of, depth - 1))
    return inner.flatmap(lambda of: lists(type_, of, depth - 1))


def lists(type_: int, of: int, depth: int) -> st.SearchStrategy[Value]:
    return st.lists(values(of, depth), max_size=16).map(lambda value: Value(type_, value, (of,)))


def maps(key: int, of: int, depth: int) -> st.SearchStrategy[Value]:
    pairs = st.lists(
        st.tuples(values(key), values(of, depth)), max_size=4, unique_by=lambda pair: pair[0].value
    )
    return pairs.map(lambda value: Value(TType.MAP, value, (key, of)))


def leaves(value: Value, path: Path = ()) -> Iterable[tuple[Path, Value]]:
    """Every text and number that a path leads to."""
    steps: Iterable[tuple[Any, Value]] = ()
    if value.type == TType.STRUCT:
        steps = value.value.items()
    elif value.type in (TType.LIST, TType.SET):
        steps = enumerate(value.value)
    elif value.type == TType.MAP and value.inner[0] in NUMBERS:
        steps = [(key.value, inner) for key, inner in value.value]
    elif value.type == TType.MAP and value.inner[0] == TType.STRING:
        steps = [(key.value.decode(), inner) for key, inner in value.value if key.value.isascii()]
    elif value.type not in (TType.BOOL, TType.MAP):
        yield path, value
    for step, inner in steps:
        yield from leaves(inner, (*path, step))


def replaced(value: Value, path: Path, new: Any) -> Value:
    """The same with another number at `path`."""
    if not path:
        return value._replace(value=new)
    step, *rest = path
    if value.type == TType.STRUCT:
        inner = value.value | {step: replaced(value.value[step], tuple(rest), new)}
    elif value.type == TType.MAP:
        names = [step, step.encode() if isinstance(step, str) else step]
        inner = [
            (key, replaced(of, tuple(rest), new) if key.value in names else of) for key, of in value.value
        ]
    else:
        inner = [
            replaced(of, tuple(rest), new) if place == step else of for place, of in enumerate(value.value)
        ]
    return value._replace(value=inner)


@encodings
@settings(max_examples=60)
@given(arguments=values(TType.STRUCT), name=st.sampled_from(["predict", "é", "a"]), data=st.data())
def test_every_text_and_number_is_found(
    encoding: str, arguments: Value, name: str, data: st.DataObject
) -> None:
    """At its path, with its key and number; one written in its place is what Apache Thrift would write."""
    frame = request(encoding, arguments, name)
    rest = read(frame).rest
    found = list(leaves(arguments))
    for path, leaf in found:
        span = CODEC.find(frame, rest, path)
        assert span is not None
        whole_number = leaf.type in NUMBERS
        is_number = whole_number or (leaf.type == TType.DOUBLE and math.isfinite(leaf.value))
        key = leaf.value if leaf.type == TType.STRING else b"%d" % leaf.value if whole_number else None
        assert CODEC.key(frame, span) == key
        assert CODEC.number(frame, span) == (leaf.value if is_number else None)
    numbers = [(path, leaf) for path, leaf in found if leaf.type != TType.STRING]
    for path, leaf in data.draw(st.lists(st.sampled_from(numbers), max_size=2)) if numbers else ():
        new: float = data.draw(
            st.floats(allow_nan=False) if leaf.type == TType.DOUBLE else SCALARS[leaf.type]
        )
        span = CODEC.find(frame, rest, path)
        assert span is not None
        put = frame[: span[0]] + CODEC.put_number(frame, span, new) + frame[span[1] :]
        assert put[4:] == request(encoding, replaced(arguments, path, new), name)[4:]


INPUT = fields(
    _1=fields(
        _1=text("abc"),
        _2=Value(TType.I64, 250),
        _3=Value(TType.LIST, [Value(TType.I32, place) for place in range(40)], (TType.I32,)),
        _4=Value(
            TType.MAP,
            [(text("a"), Value(TType.I16, 1)), (text("b"), Value(TType.I16, -2))],
            (TType.STRING, TType.I16),
        ),
        _5=Value(TType.MAP, [(Value(TType.I32, 7), text("seven"))], (TType.I32, TType.STRING)),
        _6=Value(TType.BOOL, value=True),
        _40=Value(TType.DOUBLE, 0.5),
        _41=Value(TType.BYTE, -3),
        _42=Value(TType.MAP, [], (TType.STRING, TType.STRING)),
        _43=Value(TType.MAP, [(Value(TType.DOUBLE, 1.0), text("one"))], (TType.DOUBLE, TType.STRING)),
    ),
    _2=text("after"),
)
FOUND: dict[Path, tuple[bytes | None, float | None]] = {
    (1, 1): (b"abc", None),
    (1, 2): (b"250", 250),
    (1, 3, 0): (b"0", 0),
    (1, 3, 39): (b"39", 39),
    (1, 4, "b"): (b"-2", -2),
    (1, 5, 7): (b"seven", None),
    (1, 40): (None, 0.5),
    (1, 41): (b"-3", -3),
    (2,): (b"after", None),
}
NOT_FOUND: list[Path] = [
    (), (1,), (3,), ("1",), (1, 0), (1, 1, 0), (1, 3), (1, 3, 40), (1, 3, -1), (1, 3, "0"), (1, 4, "c"),
    (1, 4, 0), (1, 5, 8), (1, 5, "7"), (1, 6), (1, 40, 1), (1, 42, "a"), (1, 43, 1), (1, 43, "1"), (2, 0),
    (1,) * 100,
]  # fmt: skip


@encodings
def test_paths_lead_through_structs_lists_and_maps(encoding: str) -> None:
    """By a field's id, an index, or a key that is a text or a whole number."""
    frame = request(encoding, INPUT)
    rest = read(frame).rest
    for path, (key, number) in FOUND.items():
        span = CODEC.find(frame, rest, path)
        assert span is not None, path
        assert (CODEC.key(frame, span), CODEC.number(frame, span)) == (key, number)


@encodings
@pytest.mark.parametrize("path", NOT_FOUND, ids=str)
def test_what_is_not_there_or_no_text_or_number_is_not_found(encoding: str, path: Path) -> None:
    """Absent fields, elements and keys, keys of other types, truth values and whole containers."""
    frame = request(encoding, INPUT)
    assert CODEC.find(frame, read(frame).rest, path) is None


@encodings
@pytest.mark.parametrize("path", FOUND, ids=str)
def test_a_value_that_is_cut_off_is_not_found(encoding: str, path: Path) -> None:
    """Of a large request's beginning, what stands whole in it is found and nothing else."""
    frame = request(encoding, INPUT)
    rest = read(frame).rest
    span = CODEC.find(frame, rest, path)
    assert span is not None
    assert CODEC.find(frame[: span[1]], rest, path) == span
    for end in range(rest + 1, span[1]):
        assert CODEC.find(frame[:end], rest, path) is None


@encodings
@pytest.mark.parametrize(
    ("type_", "value", "put"),
    [
        (TType.BYTE, 1000.0, 127),
        (TType.I16, -1e9, -(1 << 15)),
        (TType.I32, float("inf"), (1 << 31) - 1),
        (TType.I64, 1e30, (1 << 63) - 1),
        (TType.I64, float("-inf"), -(1 << 63)),
        (TType.I64, float("nan"), (1 << 63) - 1),
        (TType.I32, 2.6, 3),
        (TType.DOUBLE, 2.6, 2.6),
    ],
)
def test_a_number_put_in_place_keeps_its_type(encoding: str, type_: int, value: float, put: float) -> None:
    """It is rounded where the found one was whole, and no larger than its type can say."""
    frame = request(encoding, fields(_1=text("x"), _2=Value(type_, 1)))
    rest = read(frame).rest
    span = CODEC.find(frame, rest, (2,))
    assert span is not None
    after = frame[rest : span[0]] + CODEC.put_number(frame, span, value) + frame[span[1] :]
    assert after == request(encoding, fields(_1=text("x"), _2=Value(type_, put)))[rest:]


@encodings
def test_a_span_holds_without_the_head(encoding: str) -> None:
    """The bytes from `rest` on are enough to find a number in, and to put another into later."""
    frame = request(encoding, INPUT)
    rest = read(frame).rest
    span = CODEC.find(frame, rest, (1, 2))
    assert span is not None
    moved = span[0] - rest, span[1] - rest
    assert CODEC.find(frame[rest:], 0, (1, 2)) == moved
    assert CODEC.number(frame[rest:], moved) == 250
    assert CODEC.put_number(frame[rest:], moved, 300) == CODEC.put_number(frame, span, 300)


@encodings
def test_a_span_of_other_bytes_says_nothing(encoding: str) -> None:
    """Where the bytes are no more what they were, there is neither key nor number, and nothing changes."""
    frame = request(encoding, INPUT)
    rest = read(frame).rest
    span = CODEC.find(frame, rest, (1, 41))
    assert span is not None
    for data, place in (
        (frame[: span[1] - 1], span),
        (frame, (rest, span[1] - 1)),
        (frame, (rest, len(frame) + 1)),
        (frame[: rest + 1] + b"\xff" * 200, span),
    ):
        assert (CODEC.key(data, place), CODEC.number(data, place)) == (None, None)
        assert CODEC.put_number(data, place, 1) == data[slice(*place)]


@encodings
def test_looking_takes_bounded_work(encoding: str) -> None:
    """What stands behind thousands of texts is not looked for; thousands of doubles are no work."""
    texts = Value(TType.LIST, [text("x")] * 5000, (TType.STRING,))
    doubles = Value(TType.LIST, [Value(TType.DOUBLE, 0.5)] * 5000, (TType.DOUBLE,))
    wanted = {"_2": text("abc")}
    behind_texts = request(encoding, fields(_1=texts, **wanted))
    behind_doubles = request(encoding, fields(_1=doubles, **wanted))
    assert CODEC.find(behind_texts, read(behind_texts).rest, (2,)) is None
    assert CODEC.find(behind_doubles, read(behind_doubles).rest, (2,)) is not None
    # A list that says it has 4 Gi structs, and goes on with empty ones.
    head = b"\x0f\0\1\x0c\xff\xff\xff\xff" if encoding == "binary" else b"\x19\xfc\xff\xff\xff\xff\x0f"
    endless = apache(encoding, "predict", CALL, 1, head + bytes(100_000))
    assert CODEC.find(endless, read(endless).rest, (2,)) is None
    assert CODEC.find(b"", 0, (2,)) is None


@encodings
def test_looking_goes_as_deep_as_apache_thrift(encoding: str) -> None:
    """Deeper nesting is left alone, as the instances' own readers refuse it."""

    def nested(levels: int) -> bytes:
        inner = text("x")
        for _ in range(levels):
            inner = fields(_1=inner)
        return request(encoding, fields(_1=inner, _2=text("abc")))

    for levels, there in ((62, True), (64, False), (2000, False)):
        frame = nested(levels) if levels < 100 else deep(encoding, levels)
        assert (CODEC.find(frame, read(frame).rest, (2,)) is not None) is there


def deep(encoding: str, levels: int) -> bytes:
    """Structs within structs, and no end of them."""
    return apache(encoding, "predict", CALL, 1, (b"\x0c\0\1" if encoding == "binary" else b"\x1c") * levels)
