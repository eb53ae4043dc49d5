"""Random and damaged MessagePack-RPC in any pieces: only ProtocolError escapes, no request is forgotten."""

import contextlib
from collections import defaultdict
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcpgw.errors import ProtocolError
from tcpgw.wire.assembly import FrameAssembler, ObjectAssembler
from tcpgw.wire.codec import FIRST_NUMBER, LARGE, Entry, Kind, Piece, Run
from tcpgw.wire.msgpack_rpc import MAX_NAME, MsgpackRpc
from tcpgw.wire.msgpack_scan import MsgpackSplitter
from tcpgw.wire.mux import Mux
from tests.support.assembling import Assembler, Collector, chunked
from tests.support.batches import Shared
from tests.support.msgpack_messages import (
    Written,
    answer,
    blob,
    notification,
    number_in,
    request,
)
from tests.support.muxing import Room

FRAMED, BARE = MsgpackRpc(framed=True), MsgpackRpc(framed=False)
OWNER, BATCH = "a client", Shared("a batch")
MAX = 4 * LARGE
ASKED = 4  # requests in flight, from FIRST_NUMBER on
SEEDS: list[Written] = [
    request(b"\x05"),
    request(b"\xcf" + b"\xff" * 8, b"\x91\x81\xa1k\xc0", b"\xd9\x07predict"),
    request(b"\xd0\x80", blob(LARGE)),
    notification(),
    notification(blob(2 * LARGE)),
    *(answer(number_in(0xCE, FIRST_NUMBER + place), blob(place * LARGE)) for place in range(ASKED)),
    answer(number_in(0xCF, FIRST_NUMBER), b"\xc0", b"\x82\xa4code\xa6denied\xa7message\xa0"),
    Written(b"\xdd\0\0\0\4", Kind.ANSWER, b"\x05", b"\xc0\xc0"),
]


@st.composite
def damaged(draw: st.DrawFn, *, framed: bool) -> bytes:
    """Messages with a few bytes overwritten, inserted or cut out: gets further in than pure noise."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    messages = draw(st.lists(st.sampled_from(SEEDS), min_size=1, max_size=5))
    data = bytearray(b"".join(one.framed if framed else one.bare for one in messages))
    # Heads are short and bodies are long: mostly it is the heads that are hit.
    heads = [0]
    for one in messages:
        heads.append(heads[-1] + len(one.framed if framed else one.bare))
    for _ in range(draw(st.integers(0, 3))):
        at = min(draw(st.sampled_from(heads)) + draw(st.integers(0, 20)), len(data))
        data[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    return bytes(data)


framings = pytest.mark.parametrize("framed", [True, False], ids=["framed", "bare"])


@framings
@settings(max_examples=100)
@given(data=st.data())
def test_read(framed: bool, data: st.DataObject) -> None:
    """A head that is read lies within its frame, and nothing else than ProtocolError escapes."""
    stream = data.draw(damaged(framed=framed))
    pos = data.draw(st.integers(0, min(len(stream), 30)))
    end = data.draw(st.integers(pos, len(stream)))
    with contextlib.suppress(ProtocolError):
        message = (FRAMED if framed else BARE).read(stream, pos, end)
        assert pos < message.rest < end
        assert len(message.token) <= 9
        assert len(message.method) <= MAX_NAME


@settings(max_examples=100)
@given(damaged(framed=True), st.integers(0, 12), st.integers(0, 9))
def test_runs(stream: bytes, pos: int, limit: int) -> None:
    """Runs raise nothing, end within what is there, and take no more than they may."""
    pending: dict[int, Entry] = {}
    parts: list[Piece] = []
    pos = min(pos, len(stream))
    numbers = range(FIRST_NUMBER, FIRST_NUMBER + limit)
    end, number = FRAMED.take_requests(stream, pos, pending, parts.append, numbers, OWNER, BATCH)
    assert pos <= end <= len(stream)
    assert list(pending) == list(numbers[: number - FIRST_NUMBER])
    runs: list[Run] = []
    count = len(pending)
    end, dropped = FRAMED.take_answers(stream, pos, pending, runs)
    assert pos <= end <= len(stream)
    assert sum(len(parts) for _, parts, _ in runs) == 3 * (count - len(pending))
    assert dropped >= 0


@settings(max_examples=100)
@given(
    st.lists(damaged(framed=True) | st.binary(max_size=20), max_size=6),
    st.sampled_from([0, 12, LARGE - 1]),
    st.booleans(),
)
def test_reads(streams: list[bytes], most: int, by_name: bool) -> None:
    """Reads raise nothing, and each is taken whole, as no other message than a request, or comes back."""
    pending: dict[int, Entry] = {}
    parts: list[Piece] = []
    reads = dict(enumerate(streams))
    batches = defaultdict[bytes, Shared | None](lambda: BATCH) if by_name else None
    others, number = FRAMED.take_reads(reads, most, pending, parts.append, FIRST_NUMBER, BATCH, batches)
    assert list(pending) == list(range(FIRST_NUMBER, number))
    taken = [owner for owner, *_ in pending.values()]
    assert sorted([*taken, *dict(others)]) == list(reads)
    assert [(owner, reads[owner]) for owner in dict(others)] == others
    for owner, token, _ in pending.values():
        data = reads[owner]
        assert len(data) <= most
        with contextlib.suppress(ProtocolError):
            assert FRAMED.read(data, 0, len(data))[::2] == (Kind.REQUEST, token, 6 + len(token))
    tokens = sum(len(token) for _, token, _ in pending.values())
    assert sum(map(len, parts)) == sum(len(reads[owner]) for owner in taken) + 5 * len(taken) - tokens


def frames_of(sink: Collector) -> Assembler:
    return FrameAssembler(sink, MAX)


def objects_of(sink: Collector) -> Assembler:
    return ObjectAssembler(sink, MAX, MsgpackSplitter(MAX))


@pytest.mark.parametrize("make", [frames_of, objects_of], ids=["framed", "bare"])
@settings(max_examples=80)
@given(data=st.data(), fills=st.lists(st.booleans(), max_size=9))
def test_assemblers(make: Callable[[Collector], Assembler], data: st.DataObject, fills: list[bool]) -> None:
    """Whatever comes, in any pieces, is given on, held or refused, and every byte is one of these."""
    stream = data.draw(damaged(framed=make is frames_of))
    sink = Collector(fills, ordinary=lambda message: len(message) % 2 == 0)
    assembler = make(sink)
    with contextlib.suppress(ProtocolError):
        sink.drive(assembler, data.draw(chunked(stream)))
        assert sink.fed == len(stream)
    sink.check()
    assert b"".join(sink.messages) == stream[: sink.passed]


@framings
@settings(max_examples=100)
@given(data=st.data(), flushed=st.booleans())
def test_mux(framed: bool, data: st.DataObject, flushed: bool) -> None:
    """Whatever an instance sends, each request ends once: answered, or lost with the connection."""
    room = Room()
    mux = Mux(FRAMED if framed else BARE, FRAMED, MAX, room, framed=framed)
    read = FRAMED.read(SEEDS[0].framed, 0, len(SEEDS[0].framed))
    for _ in range(ASKED):
        mux.enter(read.token, len(SEEDS[0].rest), [SEEDS[0].rest], OWNER, BATCH)
    if flushed:
        mux.flush()
    stream = data.draw(damaged(framed=framed))
    answered = 0
    with contextlib.suppress(ProtocolError):
        for chunk in data.draw(chunked(stream)):
            answered += sum(len(parts) // 3 for _, parts, _ in mux.receive(chunk)) + len(mux.large)
            for one in mux.large:
                room.give(one.reserved)
            answered += len(mux.failed)
            mux.large, mux.failed = [], []
    assert not mux.large
    assert not mux.failed
    assert answered == ASKED - len(mux.pending)
    sent, unsent = mux.lose()
    assert answered + len(sent) + len(unsent) == ASKED
    assert not (unsent if flushed else sent)
    assert mux.pending == {}
    assert room.held == 0
