"""MessagePack-RPC: read in every form, renumbered without a change to anything else, in both framings."""

import struct
from itertools import pairwise
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcpgw.errors import Code, ProtocolError
from tcpgw.wire.codec import FIRST_NUMBER, LARGE, LAST_NUMBER, PARTS, Entry, Kind, Message, Piece, Run
from tcpgw.wire.msgpack_rpc import MAX_NAME, MsgpackRpc
from tests.support.batches import Given, Shared
from tests.support.msgpack_messages import (
    Written,
    answer,
    delivered,
    frame,
    headed,
    names,
    notification,
    notifications,
    number_in,
    request,
    requests,
    text,
    tokens,
    values,
)

FRAMED, BARE = MsgpackRpc(framed=True), MsgpackRpc(framed=False)
CODECS = {"framed": FRAMED, "bare": BARE}
codecs = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
OWNER, BATCH = "a client", Shared("a batch")
numbers = st.integers(FIRST_NUMBER, LAST_NUMBER)


def written(codec: MsgpackRpc, message: Written) -> bytes:
    return message.framed if codec.framed else message.bare


def unpacked(codec: MsgpackRpc, data: bytes) -> Any:
    """What msgpack reads of a frame, whose length must be right."""
    if codec.framed:
        assert struct.unpack(">I", data[:4]) == (len(data) - 4,)
        data = data[4:]
    return msgpack.unpackb(data, strict_map_key=False)


# ---- one message ----


@codecs
@settings(max_examples=30)
@given(st.binary(max_size=9), headed(4), tokens, names, values(), st.binary(max_size=9))
def test_reads_a_request_in_any_form(
    codec: MsgpackRpc, before: bytes, header: bytes, token: bytes, name: bytes, value: bytes, after: bytes
) -> None:
    """Header, id and method may be of any form: the id comes as encoded, the method as its bytes."""
    data = written(codec, Written(header, Kind.REQUEST, token, name + value))
    message = codec.read(before + data + after, len(before), len(before) + len(data))
    assert message.kind == Kind.REQUEST
    assert message.token == token
    assert message.number == -1
    assert name.endswith(message.method)
    assert len(message.method) == len(msgpack.unpackb(name, raw=True))
    assert (before + data)[message.rest :] == name + value


@codecs
@settings(max_examples=30)
@given(headed(4), tokens, values(), values())
def test_reads_an_answer_in_any_form(
    codec: MsgpackRpc, header: bytes, token: bytes, error: bytes, result: bytes
) -> None:
    """An answer's number is its id's value, in whatever form the instance encoded it."""
    data = written(codec, Written(header, Kind.ANSWER, token, error + result))
    number = msgpack.unpackb(token)
    assert codec.read(data, 0, len(data)) == Message(
        Kind.ANSWER, b"", token, number, len(data) - len(error + result)
    )


@codecs
@settings(max_examples=30)
@given(headed(3), names, values())
def test_reads_a_notification_in_any_form(
    codec: MsgpackRpc, header: bytes, name: bytes, value: bytes
) -> None:
    """A notification has a method and no id."""
    data = written(codec, Written(header, Kind.NOTIFY, b"", name + value))
    message = codec.read(data, 0, len(data))
    assert (message.kind, message.token, message.number) == (Kind.NOTIFY, b"", -1)
    assert data[message.rest :] == name + value


REFUSED = {
    "": "an empty frame holds no message",
    "c0": "begins with 0xc0, not an array of 3 or 4",
    "92 00 01": "begins with 0x92, not an array of 3 or 4",
    "94 03 01 a1 6d 90": "an array of 4 with type 0x03",
    "94 02 a1 6d 90 c0": "an array of 4 with type 0x02",
    "93 00 01 a1 6d": "an array of 3 with type 0x00",
    "dc 0005 00 01 a1 6d 90": "an array of 5 with type 0x00",
    "dd ffffffff 00 01 a1 6d 90": "an array of 4294967295 with type 0x00",
    "94 00 c0 a1 6d 90": "id begins with 0xc0: it must be an integer",
    "94 00 cb 0000000000000000 a1 6d 90": "id begins with 0xcb",
    "94 00 a1 61 a1 6d 90": "id begins with 0xa1",
    "94 01 01": "id begins with 0x01",
    "94 00 ce 0001": "id begins with 0xce",
    "94 00 01 c0 90": "method begins with 0xc0: it must be a text",
    "94 00 01 91 a1 6d 90": "method begins with 0x91",
    "93 02 05 90": "method begins with 0x05",
    "94 00 01 a5 6d": "method has 5 bytes, more than its frame",
    "93 02 d9 ff 6d": "method has 255 bytes, more than its frame",
    "93 02 db ffffffff 6d": "method has 4294967295 bytes; at most 1024 are allowed",
    "93 02 da 0401 " + 0x401 * "6d": "method has 1025 bytes; at most 1024 are allowed",
}


@codecs
@pytest.mark.parametrize("data", REFUSED)
def test_refuses_what_is_no_message(codec: MsgpackRpc, data: str) -> None:
    """What the protocol forbids is refused with what was read, whatever stands behind the frame."""
    bare = bytes.fromhex(data)
    whole = frame(bare) if codec.framed else bare
    for after in (b"", b"\x00\x00\x00\x00", b"\x94\x00\x01\xa1m\x90", b"\xa0" * 20):
        with pytest.raises(ProtocolError, match=REFUSED[data]):
            codec.read(b"before" + whole + after, 6, 6 + len(whole))


@codecs
@pytest.mark.parametrize("message", [request(b"\xcf" + bytes(8)), answer(b"\xcd\x01\x00"), notification()])
def test_refuses_what_ends_within_its_head(codec: MsgpackRpc, message: Written) -> None:
    """A message cut anywhere in its head is refused, though another frame's bytes stand behind the cut."""
    data = message.bare
    head = len(data) - len(message.rest) + (0 if message.kind == Kind.ANSWER else 1)
    for end in range(head + 1):
        cut = frame(data[:end]) if codec.framed else data[:end]
        for after in (b"", cut, bytes(20), b"\x02" * 20, b"\xa0" * 20):
            with pytest.raises(ProtocolError):
                codec.read(cut + after, 0, len(cut))


def test_the_longest_method_passes_in_the_first_bytes_of_a_large_message() -> None:
    """A head of every longest form is within LARGE bytes, and so read alike in one piece and in many."""
    name = text(0xDB, b"m" * MAX_NAME)
    data = Written(b"\xdd\0\0\0\4", Kind.REQUEST, b"\xcf" + b"\xff" * 8, name + bytes(LARGE)).framed
    assert FRAMED.read(data[:LARGE], 0, LARGE) == FRAMED.read(data, 0, len(data))


@codecs
@settings(max_examples=30)
@given(st.one_of(requests, notifications), numbers)
def test_a_request_passes_under_another_number(codec: MsgpackRpc, message: Written, number: int) -> None:
    """All but header and id pass byte for byte; a notification passes without an id."""
    data = written(codec, message)
    read = codec.read(data, 0, len(data))
    rest = data[read.rest :]
    if message.kind == Kind.NOTIFY:
        passed, expected = codec.notification(read.token, len(rest)), b"\x93\x02" + message.rest
    else:
        passed, expected = codec.request(read.token, len(rest), number), message.as_request(number)
    assert passed + rest == (frame(expected) if codec.framed else expected)


@codecs
@settings(max_examples=30)
@given(tokens, tokens, values(), values())
def test_an_answer_comes_back_under_the_id_that_was_asked_with(
    codec: MsgpackRpc, token: bytes, its: bytes, error: bytes, result: bytes
) -> None:
    """Whatever form an instance gave the id, the client gets its own, byte for byte."""
    data = written(codec, answer(its, result, error))
    read = codec.read(data, 0, len(data))
    rest = data[read.rest :]
    expected = answer(its, result, error).as_answer(token)
    assert codec.answer(read, len(rest), token) + rest == (frame(expected) if codec.framed else expected)


@codecs
@pytest.mark.parametrize("code", Code)
def test_an_error_is_an_answer(codec: MsgpackRpc, code: Code) -> None:
    """An error in an instance's stead has code, message and, where there is one, the endpoint."""
    for token, id_ in ((b"\xd3" + bytes(7) + b"\x05", 5), (codec.unknown(b""), None)):
        assert token is not None
        assert unpacked(codec, codec.error(token, code, "ünder way")) == [
            1, id_, {"code": code.value, "message": "ünder way"}, None
        ]  # fmt: skip
        assert unpacked(codec, codec.error(token, code, "", "10.0.0.1:80")) == [
            1, id_, {"code": code.value, "message": "", "endpoint": "10.0.0.1:80"}, None
        ]  # fmt: skip


@codecs
def test_fields_of_a_request_are_found_from_its_rest_on(codec: MsgpackRpc) -> None:
    """A request's key and deadline are found behind what `read` read, and the deadline can be replaced."""
    params = [{"session": "s-1"}, {"deadline_ms": 250}]
    data = written(codec, request(b"\xcd\x01\x00", msgpack.packb(params)))
    rest = codec.read(data, 0, len(data)).rest
    session = codec.find(data, rest, (0, "session"))
    assert session is not None
    assert codec.key(data, session) == b"s-1"
    deadline = codec.find(data, rest, (1, "deadline_ms"))
    assert deadline is not None
    assert codec.number(data, deadline) == 250
    start, end = deadline
    assert codec.put_number(data, deadline, 120.4) == b"\xcc\x78"
    assert data[start:end] == msgpack.packb(250)
    assert codec.find(data, rest, (2,)) is None


# ---- runs of ordinary messages ----


def take_requests(data: bytes, pos: int, numbers: range) -> tuple[int, int, dict[int, Entry], list[Piece]]:
    pending: dict[int, Entry] = {}
    parts: list[Piece] = []
    pos, number = FRAMED.take_requests(data, pos, pending, parts.append, numbers, OWNER, BATCH)
    return pos, number, pending, parts


@settings(max_examples=60)
@given(st.lists(st.one_of(requests, notifications), max_size=6), st.integers(0, 8), st.integers(0, 40))
def test_a_run_of_requests_is_what_the_general_path_makes_of_it(
    messages: list[Written], limit: int, cut: int
) -> None:
    """Up to the first message that is no ordinary whole request, bytes and table are the same."""
    stream = b"".join(message.framed for message in messages)
    stream = stream[: len(stream) - cut] if cut < len(stream) else stream
    end, number, pending, parts = take_requests(b"xy" + stream, 2, range(70_000, 70_000 + limit))
    taken = messages[: number - 70_000]
    assert end == 2 + sum(len(message.framed) for message in taken)
    assert pending == {70_000 + place: (OWNER, message.token, BATCH) for place, message in enumerate(taken)}
    assert list(pending) == sorted(pending)
    assert b"".join(parts) == b"".join(
        frame(message.as_request(70_000 + place)) for place, message in enumerate(taken)
    )
    if len(taken) < min(limit, len(messages)):
        stopped = messages[len(taken)]
        ordinary = stopped.kind == Kind.REQUEST and stopped.header == b"\x94"
        assert not ordinary or end + len(stopped.framed) > 2 + len(stream)


def test_large_bodies_pass_as_views_of_what_was_read() -> None:
    """From LARGE bytes on a body is not copied; below it is, so that it does not keep all that was read."""
    for size in (LARGE - 1, LARGE):
        body = b"\xa1m" + bytes(size - 2)
        data = frame(b"\x94\x00\x05" + body) + request(b"\x01").framed
        *_, parts = take_requests(data, 0, range(70_000, 70_002))
        assert (type(parts[1]) is memoryview) == (size == LARGE)
        runs: list[Run] = []
        reply = answer(b"\xce\x00\x01\x11\x70", bytes(size - 12)).framed
        assert FRAMED.take_answers(reply, 0, {70_000: (OWNER, b"\x05", BATCH)}, runs) == (len(reply), 0)
        assert (type(runs[0][1][-1]) is memoryview) == (len(reply) >= LARGE)


NO_REQUESTS = [
    "",
    "94 00",
    "c0 00 01",
    "94 00 05",
    "94 00 ce 00010000",
    "94 00 c0 a1 6d 90",
    "94 01 05 c0 c0",
]


@pytest.mark.parametrize("body", NO_REQUESTS)
def test_no_run_begins_with_what_is_no_request(body: str) -> None:
    """A frame that holds no ordinary request is left to `read`, though the next one seems to complete it."""
    data = frame(bytes.fromhex(body))
    for after in (b"", b"\x94\x00\x05\xa1m\x90" * 3, bytes(20), request(b"\x05").framed):
        assert take_requests(data + after, 0, range(70_000, 70_009)) == (0, 70_000, {}, [])


@st.composite
def answers(draw: st.DrawFn) -> tuple[dict[int, Entry], list[tuple[int, Written]]]:
    """A table, and answers under its numbers and others, in any order, some of them twice, in any form."""
    # Alike, and so told apart only by which one it is.
    batches = [Shared("a batch") for _ in range(2)]
    asked = draw(st.lists(tokens, max_size=8))
    pending: dict[int, Entry] = {
        FIRST_NUMBER + place: (draw(st.sampled_from("ab")), token, draw(st.sampled_from(batches)))
        for place, token in enumerate(asked)
    }
    unknown = st.lists(st.sampled_from([0, FIRST_NUMBER, FIRST_NUMBER + 8, LAST_NUMBER]), max_size=2)
    called = draw(st.permutations([*pending, *draw(unknown)]))
    leads = st.sampled_from([0xCE] * 9 + [0xCF, 0xD2, 0xD3])
    return pending, [
        (number, answer(number_in(draw(leads), number), draw(values()), draw(values()))) for number in called
    ]


@settings(max_examples=60)
@given(answers(), st.integers(0, 30))
def test_a_run_of_answers_is_what_the_general_path_makes_of_it(
    case: tuple[dict[int, Entry], list[tuple[int, Written]]], cut: int
) -> None:
    """Each answer that is asked for comes back once under its client's id, and all others are counted."""
    pending, called = case
    table = dict(pending)
    stream = b"".join(message.framed for _, message in called)
    stream = stream[: len(stream) - cut] if cut < len(stream) else stream
    runs: list[Run] = []
    end, dropped = FRAMED.take_answers(b"xy" + stream, 2, table, runs)

    expected: list[Given] = []
    at, unknown, left = 2, 0, dict(pending)
    for number, message in called:
        if at + len(message.framed) > 2 + len(stream) or message.token[0] != 0xCE:
            break
        at += len(message.framed)
        entry = left.pop(number, None)
        if entry is None:
            unknown += 1
        else:
            owner, token, batch = entry
            expected.append((owner, frame(message.as_answer(token)), batch))
    assert (end, dropped, table) == (at, unknown, left)
    given = delivered(runs, [])
    assert given == expected
    assert [id(batch) for *_, batch in given] == [id(batch) for *_, batch in expected]
    assert all(len(parts) % PARTS == 0 for _, parts, _ in runs)
    # Neighbours of one owner and batch are one run, and so one write; no others are.
    assert all(one[0] != other[0] or one[2] is not other[2] for one, other in pairwise(runs))


NO_ANSWERS = ["", "94 01", "94 01 ce 00010000", "94 01 ce 00010000 c0", "94 01 05 c0 c0", "94 00 05 a1 6d 90"]


@pytest.mark.parametrize("body", NO_ANSWERS)
def test_no_run_begins_with_what_is_no_answer(body: str) -> None:
    """A frame that holds no ordinary answer is left to `read`, though the next one seems to complete it."""
    pending: dict[int, Entry] = {FIRST_NUMBER: (OWNER, b"\x05", BATCH)}
    for after in (b"", b"\x94\x01\xce\x00\x01\x00\x00\xc0\xc0" * 3, bytes(20)):
        runs: list[Run] = []
        assert FRAMED.take_answers(frame(bytes.fromhex(body)) + after, 0, pending, runs) == (0, 0)
        assert runs == []
    assert pending
