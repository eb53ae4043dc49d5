"""Messages that are not wanted: they pass by, and the ones around them come as if they had not been."""

import struct
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcpgw.errors import FrameTooLargeError, ProtocolError
from tcpgw.wire.assembly import FrameAssembler
from tcpgw.wire.codec import LARGE
from tcpgw.wire.msgpack_scan import MsgpackSplitter
from tests.support.assembling import (
    FORMS,
    HEAD,
    MAX,
    SIZE_OF,
    Collector,
    bare,
    bare_size,
    fills,
    forms,
    framed_size,
    frames_of,
    objects_of,
    short,
    streams,
)


def beyond(form: str, message: bytes, most: int) -> bool:
    return len(message) - (4 if form == "framed" else 0) > most


@forms
@settings(max_examples=150)
@given(data=st.data(), fills=fills, late=fills, most=st.sampled_from([30, LARGE - 1, 2 * LARGE, MAX]))
def test_any_split_skips_the_same_messages(
    form: str, data: st.DataObject, fills: list[bool], late: list[bool], most: int
) -> None:
    """Whatever the cuts, each message comes once or is skipped once, in order, and nothing is held of it."""
    make, write = FORMS[form]
    messages, chunks, rest = data.draw(streams(write))
    unwanted = data.draw(st.sets(st.sampled_from([message[:HEAD] for message in messages] or [b""])))
    kept: list[bytes] = []
    skipped = []
    for message in messages:
        large = len(message) >= LARGE and message[:HEAD] in unwanted
        if large or beyond(form, message, most):
            skipped.append((len(kept), message[:HEAD]))
        else:
            kept.append(message)
    sink = Collector(
        fills,
        ordinary=lambda message: short(message) and message[:HEAD] not in unwanted,
        most=most,
        unwanted=unwanted.__contains__,
        measure=SIZE_OF[form],
    )
    assembler = make(sink, most)
    sink.drive(assembler, chunks, late)
    assert sink.messages == kept
    assert sink.skipped[: len(skipped)] == skipped
    assert assembler.partial == (rest > 0)


@forms
def test_nothing_is_kept_of_a_message_that_is_skipped(form: str) -> None:
    """Its bytes are gone as they come, even while the sink is full; what follows it waits for `resume`."""
    make, write = FORMS[form]
    large, last = write(9 * LARGE, 1), write(10, 2)
    sink = Collector(most=MAX, unwanted=lambda _: True, measure=SIZE_OF[form])
    sink.assembler = assembler = make(sink, MAX)
    for at in range(0, len(large), LARGE):
        chunk = large[at : at + LARGE] + (last if at + LARGE >= len(large) else b"")
        sink.fed += len(chunk)
        assembler.feed(chunk)
        sink.check()
        sink.full = bool(sink.skipped)
    assert assembler.held == len(last)
    assert sink.messages == []
    sink.empty()
    assert sink.messages == [last]
    assert not assembler.partial


@pytest.mark.parametrize("size", [LARGE + 1, (1 << 32) - 1])
def test_the_length_alone_is_enough_to_be_refused(size: int) -> None:
    """A frame that announces too much is refused with the last byte of its length."""
    sink = Collector(most=LARGE)
    assembler = frames_of(sink, LARGE)
    length = struct.pack(">I", size)
    for at in range(3):
        assembler.feed(length[at : at + 1])
    with pytest.raises(FrameTooLargeError, match=f"{size} bytes; max_frame allows {LARGE}"):
        assembler.feed(length[3:])
    assert assembler.held == 4


def test_an_object_is_refused_as_soon_as_it_cannot_be_small_enough() -> None:
    """What has come of one that is not whole is a byte less than it has, at least."""
    sink = Collector(most=LARGE)
    assembler = objects_of(sink, LARGE)
    data = bare(3 * LARGE)
    assembler.feed(data[: LARGE - 1])
    with pytest.raises(FrameTooLargeError, match=f"{LARGE + 1} bytes; max_frame allows {LARGE}"):
        assembler.feed(data[LARGE - 1 : LARGE])
    assert assembler.held == LARGE


def test_an_object_that_was_admitted_may_turn_out_too_large() -> None:
    """It was admitted as one of the most that there may be, and what was kept of it goes when it has more."""
    sink = Collector(most=2 * LARGE, measure=bare_size)
    large, last = bare(5 * LARGE, 1), bare(9, 2)
    chunks = [large[at : at + LARGE] for at in range(0, len(large), LARGE)]
    sink.drive(objects_of(sink, 2 * LARGE), [*chunks, last])
    assert sink.admitted == [2 * LARGE]
    assert sink.messages == [last]
    assert sink.skipped == [(0, large[:HEAD])]


def test_what_no_splitter_can_follow_ends_a_skip() -> None:
    """Within a skipped object the reserved byte is an error as everywhere."""
    sink = Collector(unwanted=lambda _: True, measure=lambda _data, _pos: 1 << 30)
    assembler = objects_of(sink)
    sink.drive(assembler, [b"\xdd\x7f\xff\xff\xff" + b"\x00" * LARGE])
    assert assembler.partial
    with pytest.raises(ProtocolError, match="0xc1"):
        assembler.feed(b"\xc1")


def test_what_is_skipped_is_not_looked_at() -> None:
    """A frame that goes nowhere may hold what it likes."""
    bad, last = struct.pack(">I", 3 * LARGE) + b"\xc1" * 3 * LARGE, struct.pack(">I", 7) + bare(5)
    sink = Collector(most=LARGE, measure=framed_size)
    data = bad + last
    for step in (1000, len(data)):
        sink.drive(
            FrameAssembler(sink, LARGE, partial(MsgpackSplitter, LARGE)),
            [data[at : at + step] for at in range(0, len(data), step)],
        )
    assert sink.messages == [last, last]
