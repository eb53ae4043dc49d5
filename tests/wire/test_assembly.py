"""From chunks to whole messages: any split gives the same ones, however often the sink is full."""

import struct
import sys
from collections.abc import Sequence
from itertools import accumulate
from time import process_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcpgw.errors import FrameTooLargeError, ProtocolError
from tcpgw.wire.assembly import FrameAssembler, ObjectAssembler
from tcpgw.wire.codec import LARGE, Piece
from tcpgw.wire.msgpack_scan import MAX_DEPTH, MsgpackSplitter
from tests.support.assembling import (
    FORMS,
    MAX,
    SIZES,
    STEP,
    Collector,
    bare,
    chunked,
    fills,
    forms,
    framed,
    frames_of,
    objects_of,
    short,
    streams,
)


@forms
@settings(max_examples=100)
@given(data=st.data(), fills=fills, late=fills)
def test_any_split_gives_the_same_messages(
    form: str, data: st.DataObject, fills: list[bool], late: list[bool]
) -> None:
    """Whatever the cuts and whenever the sink is full, each message comes once, in order; a rest is held."""
    make, write = FORMS[form]
    messages, chunks, rest = data.draw(streams(write))
    sink = Collector(fills, ordinary=short)
    assembler = make(sink, MAX)
    sink.drive(assembler, chunks, late)
    assert sink.messages == messages
    assert assembler.held == rest


@forms
@settings(max_examples=60)
@given(data=st.data(), fills=fills)
def test_what_the_sink_refuses_is_where_held_begins(
    form: str, data: st.DataObject, fills: list[bool]
) -> None:
    """When the sink raises, all messages in front were given to it, and `held` is what came from it on."""
    make, write = FORMS[form]
    messages, chunks, rest = data.draw(streams(write))
    refused = data.draw(st.integers(0, max(len(messages) - 1, 0)))
    sink = Collector(fills, refuse=refused, ordinary=short)
    if refused >= len(messages):
        sink.drive(make(sink, MAX), chunks)
        return
    with pytest.raises(ProtocolError, match="refused"):
        sink.drive(make(sink, MAX), chunks)
    sink.check()
    assert sink.messages == messages[:refused]
    assert rest >= 0


@given(data=st.data(), most=st.integers(0, 200), excess=st.integers(1, 1 << 16), fills=fills)
def test_a_frame_beyond_the_limit_is_refused_however_it_comes(
    data: st.DataObject, most: int, excess: int, fills: list[bool]
) -> None:
    """No split lets a longer frame through, what stands in front of it passes, and `held` begins with it."""
    messages = [framed(size) for size in data.draw(st.lists(st.integers(0, most), max_size=4))]
    stream = b"".join([*messages, framed(most + excess)])
    sink = Collector(fills, ordinary=lambda _: True, most=most)
    with pytest.raises(FrameTooLargeError, match=f"{most + excess} bytes; max_frame allows {most}"):
        sink.drive(frames_of(sink, most), data.draw(chunked(stream)))
    assert sink.messages == messages
    sink.check()


@forms
def test_a_message_of_exactly_the_limit_passes(form: str) -> None:
    """`max_frame` is the most that passes, in one piece and in many."""
    make, write = FORMS[form]
    data = write(3 * LARGE, 0)
    limit = len(data) - (4 if form == "framed" else 0)
    for step in (1000, len(data)):
        sink = Collector()
        sink.drive(make(sink, limit), [data[at : at + step] for at in range(0, len(data), step)])
        assert sink.messages == [data]
        with pytest.raises(FrameTooLargeError):
            sink.drive(make(sink, limit - 1), [data[at : at + step] for at in range(0, len(data), step)])


def test_a_bad_object_is_refused_with_all_that_came_with_it() -> None:
    """Behind the last whole chunk, `held` tells where, as the splitter tells nothing of objects in front."""
    sink = Collector()
    assembler = objects_of(sink)
    sink.drive(assembler, [bare(5), bare(6) + b"\x92"])
    with pytest.raises(ProtocolError, match="0xc1"):
        sink.drive(assembler, [b"\x01\x05\xc1"])
    assert sink.messages == [bare(5), bare(6)]
    sink.check()


@forms
@pytest.mark.parametrize("refusals", [1, 3])
def test_a_large_message_waits_until_it_is_admitted(form: str, refusals: int) -> None:
    """Refused by `admit`, a message goes on as soon as it is admitted, and is not asked for again."""
    make, write = FORMS[form]
    first, large, last = write(10, 1), write(5 * LARGE, 2), write(11, 3)
    stream = first + large + last
    for step in (500, LARGE, 2 * LARGE):
        sink = Collector([False] + [True] * refusals)
        assembler = make(sink, MAX)
        sink.drive(assembler, [stream[at : at + step] for at in range(0, len(stream), step)])
        assert sink.messages == [first, large, last]
        assert sink.admitted == [len(large) if form == "framed" else STEP]


@forms
def test_each_large_message_is_admitted(form: str) -> None:
    """One that was admitted is no leave for the next one."""
    make, write = FORMS[form]
    large = write(5 * LARGE, 2)
    sink = Collector()
    pieces = [large[at : at + LARGE] for at in range(0, len(large), LARGE)]
    sink.drive(make(sink, MAX), [*pieces, write(3, 1), *pieces])
    assert sink.messages == [large, write(3, 1), large]
    assert sink.admitted == ([len(large)] * 2 if form == "framed" else [STEP] * 2)


def test_what_tells_no_length_is_admitted_in_steps() -> None:
    """Where nothing can wait, it is asked for as it grows; with a limit from the start for all of that."""
    write = FORMS["bare"][1]
    large = write(12 * LARGE, 2)
    pieces = [large[at : at + LARGE] for at in range(0, len(large), LARGE)]
    sink = Collector()
    sink.drive(ObjectAssembler(sink, MAX), pieces)
    assert (sink.messages, sink.admitted) == ([large], [STEP, MAX])
    sink = Collector()
    sink.drive(ObjectAssembler(sink, MAX, MsgpackSplitter(MAX)), pieces)
    assert (sink.messages, sink.admitted) == ([large], [MAX])


@forms
def test_what_comes_while_the_sink_is_full_waits(form: str) -> None:
    """A sink that is full at a boundary, or within a large message, is given nothing more until `resume`."""
    make, write = FORMS[form]
    small, large = write(10, 1), write(3 * LARGE, 2)
    sink = Collector([True, False, False], ordinary=short)
    assembler = make(sink, MAX)
    sink.drive(assembler, [small, small], late=[True])  # asserts that nothing comes while it is full
    assert sink.messages == [small, small]

    for chunk in (large[: 2 * LARGE], large[2 * LARGE : -9], large[-9:] + small):
        sink.fed += len(chunk)
        assembler.feed(chunk)
        sink.full = True  # it can turn so at any time, its client being slow
        sink.check()
    assert len(sink.messages) == 2
    sink.empty()
    assert sink.messages == [small, small, large, small]


@forms
@settings(max_examples=30)
@given(step=st.sampled_from([1, 13, 4000, LARGE, 3 * LARGE]))
def test_little_is_kept_of_a_large_message_before_it_is_admitted(form: str, step: int) -> None:
    """Not admitted, a message is held to LARGE bytes and the two chunks around that."""
    make, write = FORMS[form]
    stream = write(10 * LARGE, 0)
    sink = Collector([True] * 1000)
    assembler = make(sink, MAX)
    sink.assembler = assembler
    for at in range(0, len(stream), step):
        sink.fed += len(stream[at : at + step])
        assembler.feed(stream[at : at + step])
        if sink.full:
            break
    assert sink.full
    assert LARGE <= assembler.held <= LARGE + 2 * step


@forms
def test_a_large_message_that_drips_takes_the_memory_of_its_bytes(form: str) -> None:
    """A message that comes byte by byte is not kept as so many objects."""

    class Last(Collector):
        pieces: tuple[int, int] = (0, 0)

        def whole(self, data: bytes, pos: int, end: int, tail: Sequence[Piece]) -> None:
            self.pieces = len(tail), sum(map(sys.getsizeof, tail))
            super().whole(data, pos, end, tail)

    make, write = FORMS[form]
    stream = write(5 * LARGE, 0)
    sink = Last()
    sink.drive(make(sink, MAX), [stream[at : at + 1] for at in range(len(stream))])
    assert sink.messages == [stream]
    assert sink.pieces[0] <= 6
    assert sink.pieces[1] < 6 * LARGE


@forms
def test_a_sink_that_is_full_with_each_message_costs_no_more_than_time(form: str) -> None:
    """A read of the shortest messages, given one at a time, takes a few microseconds for each."""
    make, _ = FORMS[form]
    data = (b"\0\0\0\1\0" if form == "framed" else b"\x90") * 60_000
    start = process_time()
    sink = Collector([True] * 60_000)
    sink.drive(make(sink, MAX), [data])
    assert process_time() - start < 1.0
    assert len(sink.messages) == 60_000


@forms
def test_nesting_is_nobody_s_business_but_the_splitter_s(form: str) -> None:
    """A frame's nesting is not looked at; a bare object's is, level by level, and refused beyond a limit."""
    make, _ = FORMS[form]
    deep = b"\x91" * (4 * MAX_DEPTH) + b"\xc0"
    laughs = b"\xdd\xff\xff\xff\xff" * 200 + b"\xc0"  # claims more values than there are atoms
    for bomb in (deep, laughs):
        sink = Collector()
        start = process_time()
        if form == "framed":
            message = struct.pack(">I", len(bomb)) + bomb
            sink.drive(make(sink, MAX), [message[:100], message[100:]])
            assert sink.messages == [message]
        else:
            assembler = ObjectAssembler(sink, MAX, MsgpackSplitter(MAX))
            with pytest.raises(ProtocolError, match=r"containers deep|bytes long"):
                sink.drive(assembler, [bomb[:100], bomb[100:]])
        assert process_time() - start < 0.5


@given(sizes=st.lists(st.integers(0, 60), min_size=1, max_size=6), places=st.data())
def test_the_sink_stops_wherever_it_likes(sizes: list[int], places: st.DataObject) -> None:
    """What `take` leaves, of whatever kind, is given to `whole`, and what follows that to `take` again."""
    messages = [framed(size, place) for place, size in enumerate(sizes)]
    taken = places.draw(st.sets(st.sampled_from(messages)))
    asked: list[int] = []

    class Choosy(Collector):
        def take(self, data: bytes, pos: int) -> int:
            asked.append(pos)
            return super().take(data, pos)

    sink = Choosy(ordinary=taken.__contains__)
    sink.drive(frames_of(sink), [b"".join(messages)])
    assert sink.messages == messages
    starts = [0, *accumulate(map(len, messages))]
    assert set(asked) <= set(starts)


# ---- frames that must hold one value ----


class Scanner(MsgpackSplitter):
    """Counts what it is fed."""

    made = 0
    scanned = 0

    def __init__(self) -> None:
        super().__init__(MAX)
        Scanner.made += 1

    def feed(self, data: bytes) -> list[int]:
        Scanner.scanned += len(data)
        return super().feed(data)


class Wary(Collector):
    def take(self, data: bytes, pos: int) -> int:  # noqa: ARG002
        raise AssertionError("it looks at less")


def in_frame(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


@settings(max_examples=80)
@given(data=st.data(), fills=fills, late=fills)
def test_frames_of_one_value_pass_in_any_split(
    data: st.DataObject, fills: list[bool], late: list[bool]
) -> None:
    """Each byte of a body is looked at once, in a splitter of the frame's own, and `take` takes nothing."""
    sizes = data.draw(st.lists(SIZES, max_size=5))
    messages = [in_frame(bare(size, 1000 * place)) for place, size in enumerate(sizes)]
    sink = Wary(fills)
    Scanner.made = Scanner.scanned = 0
    sink.drive(FrameAssembler(sink, MAX, Scanner), data.draw(chunked(b"".join(messages))), late)
    assert sink.messages == messages
    assert Scanner.made == len(messages)
    assert Scanner.scanned == sum(len(message) - 4 for message in messages)


NO_VALUE = {
    "empty": b"",
    "two": bare(9) * 2,
    "cut off": bare(9)[:-1],
    "a byte too many": bare(3 * LARGE) + b"\xc0",
    "a byte too few": bare(3 * LARGE)[:-1],
    "two large": bare(2 * LARGE) * 2,
    "reserved": b"\xc1",
    "reserved, late": b"\xdc\xff\xff" + b"\x00" * 2 * LARGE + b"\xc1",
    "too deep": b"\x91" * 2 * LARGE + b"\xc0",
    "claims": b"\xdd\xff\xff\xff\xff" + b"\x00" * 2 * LARGE,
}


@pytest.mark.parametrize("case", NO_VALUE)
@settings(max_examples=20)
@given(data=st.data(), fills=fills)
def test_a_frame_of_anything_else_is_refused_in_any_split(
    case: str, data: st.DataObject, fills: list[bool]
) -> None:
    """It never reaches the sink, what stands in front of it does, and `held` begins with it."""
    first, bad = in_frame(bare(5)), in_frame(NO_VALUE[case])
    sink = Wary(fills)
    with pytest.raises(ProtocolError, match="does not hold one MessagePack value, and nothing else"):
        sink.drive(FrameAssembler(sink, MAX, Scanner), data.draw(chunked(first + bad + first)))
    assert sink.messages == [first]
    sink.check()


def test_a_large_frame_is_refused_where_it_goes_wrong() -> None:
    """Not only when it is whole: nobody collects what will be refused."""
    sink = Wary()
    assembler = FrameAssembler(sink, MAX, Scanner)
    Scanner.scanned = 0
    bad = in_frame(b"\xdc\xff\xff" + b"\x00" * 8 * LARGE)
    for at in range(0, 4 * LARGE, LARGE):
        assembler.feed(bad[at : at + LARGE])
        assert Scanner.scanned == at + LARGE - 4
    with pytest.raises(ProtocolError, match="one MessagePack value"):
        assembler.feed(b"\xc1")


# ---- another limit ----


@forms
@pytest.mark.parametrize("cut", [1, 5, 40])
def test_another_limit_holds_for_what_comes(form: str, cut: int) -> None:
    """A message beyond the old limit passes under a higher one, and under a lower one it is refused again."""
    _, write = FORMS[form]
    message, sink = write(100, 0), Collector()
    made: FrameAssembler | ObjectAssembler
    made = FrameAssembler(sink, 50) if form == "framed" else ObjectAssembler(sink, 50, MsgpackSplitter(50))
    sink.drive(made, [write(1, 0)])
    made.limit(200)
    sink.drive(made, [message[:cut], message[cut:]])
    assert sink.messages == [write(1, 0), message]
    made.limit(50)
    with pytest.raises(FrameTooLargeError):
        sink.drive(made, [message])
