"""Reads of many clients that are one request each pass as if each had come alone, all others untouched."""

import struct
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgpack
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tcpgw.wire.codec import FIRST_NUMBER, LARGE, LAST_NUMBER, Codec, Entry, Kind, Piece
from tcpgw.wire.msgpack_rpc import MsgpackRpc
from tcpgw.wire.mux import Mux, Unsent
from tcpgw.wire.thrift import MAX_NAME, Thrift
from tests.support.batches import Shared
from tests.support.msgpack_messages import (
    TEXTS,
    answer,
    frame,
    notifications,
    request,
    requests,
    text,
    values,
)
from tests.support.muxing import MAX, Room

Reads = dict[str, bytes]


# ---- what clients write ----


def msgpack_request(id_: int, name: str, body: bytes = b"") -> bytes:
    return frame(msgpack.packb([0, id_, name, [body]]))


def binary(type_: int, name: bytes, id_: bytes, body: bytes) -> bytes:
    return frame(b"\x80\x01\0" + bytes((type_,)) + struct.pack(">I", len(name)) + name + id_ + body)


def thrift_request(id_: int, name: str, body: bytes = b"") -> bytes:
    return binary(1, name.encode(), struct.pack(">I", id_), b"\x0b\0\1" + frame(body) + b"\0")


def compact(name: bytes, body: bytes) -> bytes:
    return frame(b"\x82\x21\x07" + bytes((len(name),)) + name + body)


class Protocol(NamedTuple):
    """`ordinary` are whole requests, of which few need a closer look; `others` is everything else."""

    codec: Codec
    make: Callable[..., bytes]
    ordinary: st.SearchStrategy[bytes]
    others: st.SearchStrategy[bytes]


bodies = st.binary(min_size=1, max_size=40) | st.sampled_from([LARGE - 30, LARGE, 3 * LARGE]).map(bytes)
calls = st.builds(
    binary,
    st.just(1),
    st.binary(max_size=40) | st.sampled_from([MAX_NAME, MAX_NAME + 1]).map(bytes),
    st.binary(min_size=4, max_size=4),
    bodies,
)
PROTOCOLS = {
    "msgpack": Protocol(
        MsgpackRpc(framed=True),
        msgpack_request,
        requests.map(lambda message: message.framed),
        st.one_of(
            notifications.map(lambda message: message.framed),
            st.builds(lambda result: answer(b"\x05", result).framed, values()),
            st.sampled_from(["94 00", "c0 00 01", "94 00 05", "94 00 c0 a1 6d 90", "94 00 05 a5 6d 90"]).map(
                lambda body: frame(bytes.fromhex(body))
            ),
        ),
    ),
    "thrift": Protocol(
        Thrift(),
        thrift_request,
        calls,
        st.one_of(
            st.builds(binary, st.integers(0, 5), st.just(b"ping"), st.just(bytes(4)), bodies),
            st.builds(compact, st.binary(max_size=40), bodies),
            st.just(binary(1, b"ping" * 3, bytes(4), b"")),  # no arguments
            st.just(frame(b"\x80\x01\0\1" + b"\xff" * 17)),  # a name longer than its frame
        ),
    ),
}
both = pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)


@st.composite
def reads_of(draw: st.DrawFn, protocol: Protocol) -> Reads:
    """What a few clients sent: mostly a request each, else anything that a read may hold."""
    whole = protocol.ordinary
    read = st.one_of(
        whole,
        whole,
        protocol.others,
        st.builds(bytes.__add__, whole, whole),
        st.builds(lambda data, missing: data[:-missing], whole, st.integers(1, 20)),
        st.builds(bytes.__add__, whole, st.binary(min_size=1, max_size=5)),
        st.builds(lambda data, size: data[:size], whole, st.integers(1, 20)),
        st.binary(min_size=1, max_size=20),
        st.binary(max_size=60),
    )
    return {f"client {place}": data for place, data in enumerate(draw(st.lists(read, max_size=8)))}


MOST = LARGE - 1  # as much as is ever allowed: of what is larger no copy is to be made
limits = st.sampled_from([MOST] * 3 + [4096, 60, 17, 9, 0])


# ---- as if each had come alone ----


class Taken(NamedTuple):
    """What is on its way, what waits for its answer, what is left, and the next number."""

    sent: bytes
    pending: dict[int, Entry]
    others: list[tuple[str, bytes]]
    number: int


def take(
    codec: Codec,
    reads: Reads,
    most: int,
    batch: Shared | None,
    batches: Mapping[bytes, Shared | None] | None = None,
) -> Taken:
    parts: list[Piece] = []
    pending: dict[int, Entry] = {}
    others, number = codec.take_reads(reads, most, pending, parts.append, 70_000, batch, batches)
    return Taken(b"".join(parts), pending, others, number)


def alone(codec: Codec, reads: Reads, most: int, batch_of: Callable[[bytes], Shared | None]) -> Taken:
    """The same by `take_requests`, of each read that this takes whole; `batch_of` tells a read's batch."""
    parts: list[Piece] = []
    pending: dict[int, Entry] = {}
    others = []
    number = 70_000
    for owner, data in reads.items():
        its: list[Piece] = []
        entries: dict[int, Entry] = {}
        numbers = range(number, number + 1)
        end, after = codec.take_requests(data, 0, entries, its.append, numbers, owner, Shared("any"))
        batch = batch_of(data) if after > number and end == len(data) <= most else None
        if batch is None:
            others.append((owner, data))
            continue
        [(owner_, token, _)] = entries.values()
        pending[number] = (owner_, token, batch)
        parts += its
        number = after
    return Taken(b"".join(parts), pending, others, number)


def check(taken: Taken, expected: Taken, reads: Reads) -> None:
    """They are the same: batches and other reads not only alike, and everything in order."""
    assert taken == expected
    assert list(taken.pending) == list(range(70_000, taken.number))
    assert [id(one[2]) for one in taken.pending.values()] == [id(one[2]) for one in expected.pending.values()]
    assert all(data is reads[owner] for owner, data in taken.others)
    entered = [one[0] for one in taken.pending.values()]
    left = [owner for owner, _ in taken.others]
    assert sorted(entered + left) == sorted(reads)
    assert entered == [owner for owner in reads if owner in entered]
    assert left == [owner for owner in reads if owner in left]


@both
@settings(max_examples=150)
@given(data=st.data(), most=limits)
def test_each_read_passes_as_it_would_alone(protocol: Protocol, data: st.DataObject, most: int) -> None:
    """Bytes, table and numbers are those of each whole request alone; all other reads come back in order."""
    reads = data.draw(reads_of(protocol))
    before = dict(reads)
    batch = Shared("a turn")
    taken = take(protocol.codec, reads, most, batch)
    assert reads == before
    check(taken, alone(protocol.codec, reads, most, lambda _: batch), reads)
    assert all(len(data) <= most for owner, data in reads.items() if owner not in dict(taken.others))


@both
@settings(max_examples=60)
@given(data=st.data())
def test_what_is_taken_is_what_the_general_path_makes_of_it(protocol: Protocol, data: st.DataObject) -> None:
    """Of what is taken `read` says the same: a request with that token, and `request` makes that frame."""
    codec = protocol.codec
    reads = data.draw(st.dictionaries(st.text(), protocol.ordinary, min_size=1, max_size=6))
    sent, pending, others, _ = take(codec, reads, MOST, Shared("a turn"))
    whole = {
        owner: codec.read(read, 0, len(read)) for owner, read in reads.items() if owner not in dict(others)
    }
    assert all(message.kind == Kind.REQUEST for message in whole.values())
    assert [(owner, token) for owner, token, _ in pending.values()] == [
        (owner, message.token) for owner, message in whole.items()
    ]
    assert sent == b"".join(
        codec.request(message.token, len(reads[owner]) - message.rest, number) + reads[owner][message.rest :]
        for number, (owner, message) in enumerate(whole.items(), 70_000)
    )


@both
def test_ordinary_requests_are_all_taken(protocol: Protocol) -> None:
    """Of requests that are each whole, alone and small enough none comes back, whatever ids they have."""
    ids = [0, 5, 127, 128, 255, 256, 65_535, 65_536, LAST_NUMBER]
    reads = {f"client {id_}": protocol.make(id_, "predict", b"x" * 40) for id_ in ids}
    most = max(map(len, reads.values()))
    batch = Shared("a turn")
    taken = take(protocol.codec, reads, most, batch)
    check(taken, alone(protocol.codec, reads, most, lambda _: batch), reads)
    assert taken.others == []
    assert taken.sent == b"".join(
        protocol.make(70_000 + place, "predict", b"x" * 40) for place in range(len(ids))
    )
    # One that is a byte larger than is allowed is not.
    large = protocol.make(LAST_NUMBER, "predict", b"x" * 41)
    assert len(large) == most + 1
    both_sizes = take(protocol.codec, reads | {"large": large}, most, batch)
    assert both_sizes == taken._replace(others=[("large", large)])


SHORTEST = {"msgpack": request(b"\x05", b"\xc0", b"\xa0").framed, "thrift": binary(1, b"", bytes(4), b"\0")}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_shortest_request_is_one(name: str) -> None:
    """Without a name and arguments it is taken; a byte less, or one more of another message, is not."""
    codec, read = PROTOCOLS[name].codec, SHORTEST[name]
    reads = {"less": frame(read[4:-1]), "whole": read, "cut": read[:-1], "more": read + b"\0"}
    for batches in (None, Batches()):
        taken = take(codec, reads, MOST, Shared("a turn"), batches)
        assert [owner for owner, *_ in taken.pending.values()] == ["whole"]
        assert [owner for owner, _ in taken.others] == ["less", "cut", "more"]


@pytest.mark.parametrize("body", ["94 00 ce 00010000", "94 00 cf 00010000", "94 00 d3 00"])
def test_a_frame_that_ends_with_its_id_is_no_request(body: str) -> None:
    """Or within it: in MessagePack nothing is looked up for it, and it comes back."""
    reads = {"a": frame(bytes.fromhex(body))}
    batches = Batches()
    for asked in (None, batches):
        taken = take(PROTOCOLS["msgpack"].codec, reads, MOST, Shared("a turn"), asked)
        assert taken == Taken(b"", {}, list(reads.items()), 70_000)
    assert batches.asked == []


@both
def test_what_was_pending_stays_so(protocol: Protocol) -> None:
    """Nothing is entered but what is taken, behind what was there."""
    pending: dict[int, Entry] = {9: ("before", b"\x01", Shared("before"))}
    parts: list[Piece] = [b"before"]
    batch = Shared("a turn")
    nothing = {"a": b"", "b": b"\0", "c": bytes(20)}
    args = pending, parts.append, 70_000, batch, None
    assert protocol.codec.take_reads({}, MOST, *args) == ([], 70_000)
    assert protocol.codec.take_reads(nothing, MOST, *args) == (list(nothing.items()), 70_000)
    assert (list(pending), parts) == ([9], [b"before"])
    assert protocol.codec.take_reads({"d": protocol.make(7, "predict")}, MOST, *args) == ([], 70_001)
    assert list(pending) == [9, 70_000]
    assert b"".join(parts) == b"before" + protocol.make(70_000, "predict")


# ---- a batch for each name ----


class Batches(dict[bytes, Shared | None]):
    """A batch for each name, None for those of which `special` says so, and what it was asked for."""

    def __init__(self, special: Callable[[bytes], bool] = lambda _: False) -> None:
        super().__init__()
        self.asked: list[bytes] = []
        self._special = special
        self._made: dict[bytes, Shared | None] = {}

    def __getitem__(self, name: bytes) -> Shared | None:
        self.asked.append(name)
        return self.of(name)

    def of(self, name: bytes) -> Shared | None:
        """As what is got, but not counted as asked for."""
        if name not in self._made:
            self._made[name] = None if self._special(name) else Shared("one of many")
        return self._made[name]


def is_seen(codec: Codec, name: bytes) -> bool:
    """Whether a name has the form that is looked up at once: in MessagePack only that of up to 31 bytes."""
    return isinstance(codec, Thrift) or name[:1] in {bytes((mark,)) for mark in range(0xA0, 0xC0)}


@both
@settings(max_examples=150)
@given(
    data=st.data(), most=limits, special=st.integers(1, 4), batch=st.sampled_from([None, Shared("unused")])
)
def test_each_request_has_the_batch_of_its_name(
    protocol: Protocol, data: st.DataObject, most: int, special: int, batch: Shared | None
) -> None:
    """One whose name has none, or is no short text, comes back; `batches` is asked for no others' names."""
    codec = protocol.codec
    reads = data.draw(reads_of(protocol))
    batches = Batches(lambda name: sum(name) % special == 1)
    wanted: list[bytes] = []

    def batch_of(read: bytes) -> Shared | None:
        name = codec.name_at(read, 0)
        if not is_seen(codec, name):
            return None
        wanted.append(name)
        return batches.of(name)

    taken = take(codec, reads, most, batch, batches)
    check(taken, alone(codec, reads, most, batch_of), reads)
    assert batches.asked == wanted


@both
def test_names_with_and_without_a_batch(protocol: Protocol) -> None:
    """In one turn: two of one name share its batch, one of another has that one's, and one is left."""
    make, codec = protocol.make, protocol.codec
    predict, train = Shared("alike"), Shared("alike")
    names = {name: codec.name_at(make(1, name), 0) for name in ("predict", "train", "slow")}
    batches = {names["predict"]: predict, names["train"]: train, names["slow"]: None}
    reads = {"a": make(1, "predict"), "b": make(2, "slow"), "c": make(1, "train"), "d": make(3, "predict")}
    sent, pending, others, number = take(codec, reads, MOST, Shared("unused"), batches)
    assert [owner for owner, *_ in pending.values()] == ["a", "c", "d"]
    assert [id(batch) for *_, batch in pending.values()] == [id(predict), id(train), id(predict)]
    assert others == [("b", reads["b"])]
    assert number == 70_003
    assert sent == make(70_000, "predict") + make(70_001, "train") + make(70_002, "predict")


@both
def test_without_a_batch_nothing_is_ordinary(protocol: Protocol) -> None:
    """All come back where there is none for any."""
    reads = {"a": protocol.make(1, "predict"), "b": protocol.make(2, "train")}
    assert take(protocol.codec, reads, MOST, None) == Taken(b"", {}, list(reads.items()), 70_000)


@pytest.mark.parametrize("lead", TEXTS, ids=hex)
@pytest.mark.parametrize("size", [0, 7, 31, 32, 255])
def test_longer_forms_of_a_name_are_not_looked_up(lead: int, size: int) -> None:
    """In MessagePack a request with a name in any other form than the shortest comes back, unasked for."""
    codec = PROTOCOLS["msgpack"].codec
    reads = {
        "long": request(b"\x05", method=text(lead, b"m" * size)).framed,
        "short": msgpack_request(5, "m"),
    }
    batches = Batches()
    taken = take(codec, reads, MOST, Shared("unused"), batches)
    assert batches.asked == [b"\xa1m"]
    assert taken.others == [("long", reads["long"])]
    assert [owner for owner, *_ in taken.pending.values()] == ["short"]
    assert take(codec, reads, MOST, Shared("a turn")).others == []


@pytest.mark.parametrize("size", [*range(33)])
def test_names_of_any_short_length_are_looked_up_whole(size: int) -> None:
    """In MessagePack up to 31 bytes, an empty one included; in Thrift of any length that is taken."""
    for protocol in PROTOCOLS.values():
        read = protocol.make(5, "m" * size)
        batches = Batches()
        taken = take(protocol.codec, {"a": read}, MOST, None, batches)
        if protocol.make is msgpack_request and size > 31:
            assert (batches.asked, list(taken.pending)) == ([], [])
            continue
        [name] = batches.asked
        assert name == protocol.codec.name_at(read, 0)
        assert protocol.codec.method(name) == b"m" * size
        assert list(taken.pending) == [70_000]


# ---- a Mux ----


def mux_of(protocol: Protocol) -> Mux:
    return Mux(protocol.codec, protocol.codec, MAX, Room())


@both
def test_what_never_left_comes_back_when_the_connection_is_lost(protocol: Protocol) -> None:
    """An unsent request is told with its owner, token, batch and frame; what was flushed counts as sent."""
    make, codec = protocol.make, protocol.codec
    mux = mux_of(protocol)
    turn, next_turn, rule = Shared("a turn"), Shared("the next"), Shared("a rule")
    first = {"a": make(1, "predict"), "b": make(1, "predict", b"x" * 20), "c": b"\0\0"}
    assert mux.pass_reads(first, MOST, turn) == [("c", b"\0\0")]
    assert b"".join(mux.flush()) == make(FIRST_NUMBER, "predict") + make(
        FIRST_NUMBER + 1, "predict", b"x" * 20
    )
    # Runs and reads, with and without batches, are numbered one after the other.
    second = {"a": make(2, "predict"), "c": make(1, "train"), "d": make(300, "predict")}
    batches = {
        codec.name_at(make(1, name), 0): batch for name, batch in {"predict": rule, "train": None}.items()
    }
    assert mux.pass_reads(second, MOST, None, batches) == [("c", second["c"])]
    assert mux.pass_run(second["c"], 0, 9, "c", next_turn) == (len(second["c"]), 1)
    assert mux.pass_reads({"b": make(70_000, "predict", b"y")}, MOST, next_turn) == []
    assert mux.next == FIRST_NUMBER + 6
    assert mux.withdraw(FIRST_NUMBER + 3)
    tokens = {
        id_: codec.read(make(id_, name), 0, 99).token for id_, name in ((2, "predict"), (70_000, "predict"))
    }
    token, train = (codec.read(make(1, name), 0, 99).token for name in ("predict", "train"))
    sent, unsent = mux.lose()
    assert sent == [("a", token, turn), ("b", token, turn)]
    assert unsent == [
        Unsent("a", tokens[2], rule, make(FIRST_NUMBER + 2, "predict")),
        Unsent("c", train, next_turn, make(FIRST_NUMBER + 4, "train")),
        Unsent("b", tokens[70_000], next_turn, make(FIRST_NUMBER + 5, "predict", b"y")),
    ]
    assert [id(one.batch) for one in unsent] == [id(rule), id(next_turn), id(next_turn)]
    assert (mux.pending, mux.parts) == ({}, [])
    assert mux.lose() == ([], [])


@both
@settings(max_examples=60)
@given(data=st.data(), most=limits)
def test_all_that_passed_by_a_mux_is_accounted_for(
    protocol: Protocol, data: st.DataObject, most: int
) -> None:
    """Whatever was read, each request is among the others, the sent or the unsent, and once only."""
    mux = mux_of(protocol)
    batch = Shared("a turn")
    reads = data.draw(reads_of(protocol))
    assume(reads)
    others = mux.pass_reads(reads, most, batch)
    expected = take(protocol.codec, reads, most, batch)
    assert others == expected.others
    assert mux.next == FIRST_NUMBER + len(expected.pending)
    assert list(mux.pending.values()) == list(expected.pending.values())
    sent, unsent = mux.lose()
    # Sent are those of which nobody can make anything, though they look like requests at first.
    assert sorted([owner for owner, _ in others] + [one[0] for one in [*sent, *unsent]]) == sorted(reads)
    assert all(one.batch is batch for one in unsent)
    for owner, token, _, frame_ in unsent:
        message = protocol.codec.read(reads[owner], 0, len(reads[owner]))
        again = protocol.codec.read(frame_, 0, len(frame_))
        assert (message.kind, message.token) == (Kind.REQUEST, token)
        assert (again.kind, again.method) == (Kind.REQUEST, message.method)
        assert frame_[again.rest :] == reads[owner][message.rest :]
