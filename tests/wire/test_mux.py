"""Many clients on one connection: whatever is asked, in whichever order answered, each gets its own."""

from collections.abc import Iterator, Sequence
from time import process_time
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcpgw.errors import ProtocolError
from tcpgw.wire.assembly import FrameAssembler, Verdict, too_large
from tcpgw.wire.codec import FIRST_NUMBER, LARGE, LAST_NUMBER, Kind, Piece
from tcpgw.wire.msgpack_rpc import MsgpackRpc
from tcpgw.wire.mux import Mux
from tcpgw.wire.thrift import Thrift
from tests.support.assembling import STEP, chunked
from tests.support.batches import Shared
from tests.support.msgpack_messages import (
    Written,
    answer,
    blob,
    frame,
    notification,
    notifications,
    number_in,
    request,
    requests,
    values,
)
from tests.support.muxing import FRAMED, MAX, Room, enter, failed, flushed, mux_of, received, tell

forms = pytest.mark.parametrize("framed", [True, False], ids=["framed", "bare"])


# ---- both ways lead to the same bytes and the same table ----


class General(MsgpackRpc):
    """A codec to which nothing is ordinary."""

    def take_requests(self, data: bytes, pos: int, *rest: Any) -> tuple[int, int]:  # noqa: ARG002
        numbers: range = rest[2]
        return pos, numbers.start

    def take_answers(self, data: bytes, pos: int, *rest: Any) -> tuple[int, int]:  # noqa: ARG002
        return pos, 0


class Client:
    """What a session does with a client's requests: runs as far as they go, else the general path."""

    full = False

    def __init__(self, mux: Mux, codec: MsgpackRpc, limits: Iterator[int]) -> None:
        self.batch = Shared("a batch")
        self.assembler = FrameAssembler(self, MAX)
        self._mux = mux
        self._codec = codec
        self._limits = limits

    def take(self, data: bytes, pos: int) -> int:
        return self._mux.pass_run(data, pos, next(self._limits, 9), "a client", self.batch)[0]

    def whole(self, data: bytes, pos: int, end: int, tail: Sequence[Piece]) -> None:
        message = self._codec.read(data, pos, end)
        pieces = [data[message.rest : end], *tail]
        body = sum(map(len, pieces))
        if message.kind == Kind.REQUEST:
            self._mux.enter(message.token, body, pieces, "a client", self.batch)
        else:
            self._mux.tell(message.token, body, pieces)

    def admit(self, data: bytes, pos: int, total: int) -> Verdict:  # noqa: ARG002
        return Verdict.KEEP

    def oversized(self, data: bytes, pos: int, size: int) -> bool:  # noqa: ARG002
        raise too_large(size, MAX)


def as_seen(messages: list[Written]) -> list[bytes]:
    """What an instance sees of a client's messages."""
    number, seen = FIRST_NUMBER, []
    for message in messages:
        if message.kind == Kind.REQUEST:
            seen.append(frame(message.as_request(number)))
            number += 1
        else:
            seen.append(frame(b"\x93\x02" + message.rest))
    return seen


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[Written], list[bytes], list[bytes]]:
    """A client's messages, the chunks they come in, and the chunks of what the instance sends then.

    It answers in any order and form, or not, or twice, also what nobody asked; it asks and tells itself.
    """
    asked = draw(st.lists(st.one_of(requests, requests, notifications), max_size=6))
    count = sum(message.kind == Kind.REQUEST for message in asked)
    numbers = draw(
        st.lists(
            st.sampled_from([*range(FIRST_NUMBER, FIRST_NUMBER + count + 1), 0, LAST_NUMBER]), max_size=7
        )
    )
    leads = st.sampled_from([0xCE] * 5 + [0xCF, 0xD2, 0xD3])
    said: list[Written] = [answer(number_in(draw(leads), number), draw(values())) for number in numbers]
    said += draw(st.lists(requests | notifications, max_size=2))
    order = draw(st.permutations(said))
    return (
        asked,
        draw(chunked(b"".join(message.framed for message in asked))),
        draw(chunked(b"".join(message.framed for message in order))),
    )


@settings(max_examples=80)
@given(
    conversations(),
    st.lists(st.integers(0, 3), max_size=5),
    st.sampled_from([MAX, 2 * LARGE, LARGE - 60, 40]),
)
def test_runs_and_the_general_path_are_one(
    case: tuple[list[Written], list[bytes], list[bytes]], limits: list[int], max_frame: int
) -> None:
    """For any stream, split and limits, both give the same bytes, table, answers, failures and counts."""
    asked, chunks, said = case
    outcomes = []
    whole = [b"".join(said)] if said else []
    for codec, heard in ((FRAMED, said), (General(framed=True), said), (FRAMED, whole)):
        room = Room()
        mux = Mux(codec, FRAMED, max_frame, room)
        client = Client(mux, codec, iter(limits))
        for chunk in chunks:
            client.assembler.feed(chunk)
        assert client.assembler.held == 0
        table = {number: token for number, (_, token, _) in mux.pending.items()}
        # Whose it is, both ways, and what it was asked in: as it was given.
        assert all(who == "a client" and of is client.batch for who, _, of in mux.pending.values())
        sent = flushed(mux)
        got = [piece for chunk in heard for piece in received(mux, chunk)]
        back = [data for _, data, _ in got]
        unkept = failed(mux)
        lost = sorted((token, code, text) for _, token, _, code, text in unkept)
        ends = [(who, of) for who, _, of in got] + [(one.owner, one.batch) for one in unkept]
        assert all(who == "a client" and of is client.batch for who, of in ends)
        counts = (mux.dropped, mux.refused, mux.told)
        outcomes.append((table, sent, sorted(back), lost, list(mux.pending), flushed(mux), counts))
        assert room.held == 0
    assert outcomes[0] == outcomes[1] == outcomes[2]
    table, sent, *_ = outcomes[0]
    assert sent == b"".join(as_seen(asked))
    ids = [message.token for message in asked if message.kind == Kind.REQUEST]
    assert table == {FIRST_NUMBER + place: id_ for place, id_ in enumerate(ids)}


# ---- numbers ----


def test_numbers_begin_again_before_they_run_out() -> None:
    """Behind the last number comes the first one, between two flushes, and answers to both find their way."""
    mux = mux_of(framed=True)
    mux.next = LAST_NUMBER - 1
    last = enter(mux, request(b"\x01"), "one", Shared("one"))
    assert last == LAST_NUMBER - 1
    flushed(mux)
    first = enter(mux, request(b"\x02"), "two", Shared("two"))
    assert first == FIRST_NUMBER
    assert msgpack.unpackb(flushed(mux)[4:])[1] == first
    for number, token, name in ((first, b"\x02", "two"), (last, b"\x01", "one")):
        reply = answer(number_in(0xCE, number), b"\xa2ok")
        assert received(mux, reply.framed) == [(name, frame(reply.as_answer(token)), Shared(name))]
    assert mux.pending == {}


@forms
def test_alike_ids_of_many_clients_come_back_to_each(framed: bool) -> None:
    """A hundred requests under one id, answered backwards, are a hundred answers to their own clients."""
    mux = mux_of(framed=framed)
    names = map(str, range(100))
    entered = {enter(mux, request(b"\x07", blob(int(name))), name, Shared(name)): name for name in names}
    flushed(mux)
    for number, name in reversed(entered.items()):
        reply = answer(number_in(0xCE, number), blob(int(name)))
        data = reply.framed if framed else reply.bare
        assert received(mux, data) == [(name, frame(reply.as_answer(b"\x07")), Shared(name))]
        assert received(mux, data) == []
    assert mux.dropped == 100


# ---- from the instance ----


@forms
def test_a_request_of_the_instance_is_refused_under_its_id(framed: bool) -> None:
    """It gets the documented error, with the next flush, and no client hears of it or of a notification."""
    mux = mux_of(framed=framed)
    for message in (request(b"\xcd\x01\x00"), notification()):
        assert received(mux, message.framed if framed else message.bare) == []
    reply = flushed(mux)
    type_, id_, error, result = msgpack.unpackb(reply[4:] if framed else reply)
    assert (type_, id_, error["code"], result) == (1, 0x100, "denied", None)
    assert (mux.refused, mux.told) == (1, 1)


@forms
def test_a_large_answer_is_stored_in_views_and_given_whole(framed: bool) -> None:
    """What came in pieces is not joined, not given before its last byte, and accounted for until then."""
    room = Room()
    mux = mux_of(framed=framed, room=room)
    for step in (LARGE, 3 * LARGE):
        number = enter(mux, request(b"\x05"), "one", Shared("batch"))
        reply = answer(number_in(0xCE, number), blob(3 * LARGE))
        data = reply.framed if framed else reply.bare
        chunks = [data[at : at + step] for at in range(0, len(data), step)]
        for chunk in chunks[:-1]:
            assert mux.receive(chunk) == []
            assert mux.large == []
        assert mux.receive(chunks[-1]) == []
        [(owner, parts, of, held)], mux.large = mux.large, []
        assert room.held == held == (len(data) if framed else STEP)
        room.give(held)
        assert (owner, of) == ("one", Shared("batch"))
        assert b"".join(parts) == frame(reply.as_answer(b"\x05"))
        assert all(type(part) is memoryview for part in parts[1:])


BROKEN = {
    "no message": (b"\0\0\0\1\xc0", b"\xc0"),
    "empty": (b"\0\0\0\0", b"\x90"),
    "large": (b"\0\0\x80\0" + b"\xc0" * LARGE, b"\xdc\x80\0" + b"\xc0" * LARGE),
    "too large": (b"\x7f\xff\xff\xff" + b"\xc0" * LARGE, b"\xdd\x7f\xff\xff\xff" + b"\xc0" * 2 * MAX),
    "no value": (b"\0\0\0\1\xc1", b"\xc1"),
}


@forms
@pytest.mark.parametrize("case", BROKEN)
def test_what_came_whole_in_front_of_garbage_is_an_answer(framed: bool, case: str) -> None:
    """Answers that stand whole before what breaks the protocol are given, and nothing is read behind it."""
    garbage = BROKEN[case][not framed]
    # A splitter says nothing of objects in front of what it refuses: they are pending still, and lost.
    told = framed or case != "no value"
    for size in (10, 3 * LARGE):
        room = Room()
        mux = mux_of(framed=framed, room=room)
        numbers = [enter(mux, request(b"\x05"), "one", Shared("batch")) for _ in range(2)]
        flushed(mux)
        reply = answer(number_in(0xCE, numbers[0]), blob(size))
        data = reply.framed if framed else reply.bare
        assert received(mux, data[:-5]) == []
        if told:
            expected = [("one", frame(reply.as_answer(b"\x05")), Shared("batch"))]
            assert received(mux, data[-5:] + garbage) == expected
            assert mux.broken is not None
        for _ in range(2):
            with pytest.raises(ProtocolError):
                mux.receive(data[-5:] + garbage)
        sent, unsent = mux.lose()
        assert len(sent) == (1 if told else 2)
        assert unsent == []
        assert room.held == 0


@pytest.mark.parametrize("size", [1, 2 * LARGE])
def test_a_refused_answer_leaves_its_request_to_be_lost(size: int) -> None:
    """An answer that cannot be given back in the client's encoding does not end its request."""
    room = Room()
    mux = Mux(Thrift(), Thrift(), MAX, room)
    binary = frame(b"\x80\x01\x00\x01" + b"\0\0\0\1m" + b"\0\0\0\x05" + b"\0")
    mux.pass_run(binary, 0, 1, "one", Shared("batch"))
    flushed(mux)
    compact = frame(b"\x82\x41" + b"\x80\x80\x04" + b"\x01m" + b"\0" * size)
    assert mux.receive(compact[:-1]) == []
    assert room.held == (len(compact) if size > LARGE else 0)
    with pytest.raises(ProtocolError, match="encoding"):
        mux.receive(compact[-1:])
    sent, unsent = mux.lose()
    assert [(owner, of) for owner, _, of in sent] == [("one", Shared("batch"))]
    assert unsent == []
    assert mux.large == []
    assert room.held == 0


@forms
def test_nesting_costs_time_in_proportion_at_most(framed: bool) -> None:
    """An instance's bombs of levels and of claims pass undecoded in frames, and are refused bare."""
    for bomb in (b"\x91" * 100_000 + b"\xc0", b"\xdd\xff\xff\xff\xff" * 20_000):
        mux = mux_of(framed=framed)
        number = enter(mux, request(b"\x05"), "one", Shared("batch"))
        reply = answer(number_in(0xCE, number), bomb)
        start = process_time()
        if framed:
            assert received(mux, reply.framed) == [("one", frame(reply.as_answer(b"\x05")), Shared("batch"))]
        else:
            with pytest.raises(ProtocolError):
                mux.receive(reply.bare)
        assert process_time() - start < 0.5


# ---- other ends ----


@forms
def test_only_what_was_not_flushed_was_never_sent(framed: bool) -> None:
    """Notifications, refusals and withdrawn requests between them do not misnumber the unsent."""
    mux = mux_of(framed=framed)
    for count in range(3):
        enter(mux, request(b"\x01"), "sent", Shared("batch", count))
    flushed(mux)
    asked = request(b"\x09")
    received(mux, asked.framed if framed else asked.bare)  # the instance's own: its refusal is in the way
    withdrawn = enter(mux, request(b"\x02"), "withdrawn", Shared("batch"))
    tell(mux, notification())
    number = enter(mux, request(b"\x03", blob(20)), "unsent", Shared("another"))
    assert mux.withdraw(withdrawn)
    assert mux.withdraw(FIRST_NUMBER)
    expected = request(b"\x03", blob(20)).as_request(number)
    expected = frame(expected) if framed else expected
    sent, unsent = mux.lose()
    assert sent == [("sent", b"\x01", Shared("batch", count)) for count in (1, 2)]
    assert unsent == [("unsent", b"\x03", Shared("another"), expected)]
    assert mux.lose() == ([], [])


@forms
def test_what_cannot_be_read_again_counts_as_sent(framed: bool) -> None:
    """Requests that passed unread, and make no sense, neither stop nor misnumber those around them."""
    mux = mux_of(framed=framed)
    if framed:
        nonsense = frame(b"\x94\x00\x01\xc0\x90") + frame(b"\x94\x00\x02\xa5m")
        assert mux.pass_run(nonsense, 0, 9, "bad", Shared("batch")) == (len(nonsense), 2)
    number = enter(mux, request(b"\x03"), "good", Shared("batch"))
    if not framed:
        enter(mux, request(b"\x01", b"\xc1"), "bad", Shared("batch"))
    sent, unsent = mux.lose()
    assert mux.pending == {}
    expected = request(b"\x03").as_request(number)
    if framed:
        assert sent == [("bad", b"\x01", Shared("batch")), ("bad", b"\x02", Shared("batch"))]
        assert unsent == [("good", b"\x03", Shared("batch"), frame(expected))]
    else:  # a stream without lengths ends for whoever reads it where it makes no sense
        assert sent == [("good", b"\x03", Shared("batch")), ("bad", b"\x01", Shared("batch"))]
        assert unsent == []


def test_only_what_came_in_time_is_asked_whether_it_is_over() -> None:
    """A sweep looks at no request that came later than `before`: with thousands in flight it stays short."""
    mux = mux_of(framed=True)
    for came in range(1000):
        enter(mux, request(b"\x05"), "one", Shared("batch", float(came)))
    asked: list[Shared] = []

    def is_over(of: Shared) -> bool:
        asked.append(of)
        return of.came != 1.0

    over = mux.expire(2.0, is_over)
    assert [of.came for of in asked] == [0.0, 1.0, 2.0]
    assert over == [("one", b"\x05", Shared("batch", came)) for came in (0.0, 2.0)]
    assert len(mux.pending) == 998
