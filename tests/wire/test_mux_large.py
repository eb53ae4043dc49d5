"""Answers that are large or too large: room is kept for one, the other passes by, and nobody else notices."""

from collections.abc import Sequence

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcpgw.errors import Code, ProtocolError
from tcpgw.wire.codec import LARGE, Kind
from tcpgw.wire.mux import Mux
from tests.support.assembling import STEP, body, chunked
from tests.support.batches import Shared
from tests.support.msgpack_messages import Written, answer, frame, notification, number_in, request
from tests.support.muxing import MAX, Room, enter, failed, flushed, mux_of, received

forms = pytest.mark.parametrize("framed", [True, False], ids=["framed", "bare"])

# Room for one answer of the largest and one behind it, which may come in the same read.
ENOUGH = 8 * LARGE + 64


def message(data: Written, *, framed: bool) -> bytes:
    return data.framed if framed else data.bare


def value(size: int) -> bytes:
    """A byte string of which no two pieces look alike."""
    packed: bytes = msgpack.packb(body(size, 0))
    return packed


def asked(mux: Mux, count: int) -> list[int]:
    """Requests of as many clients, each under an id and in a batch of its own, and sent."""
    numbers = [enter(mux, request(bytes((at,))), str(at), Shared(str(at))) for at in range(count)]
    flushed(mux)
    return numbers


def in_steps(data: bytes, step: int = LARGE) -> Sequence[bytes]:
    return [data[at : at + step] for at in range(0, len(data), step)]


@forms
@settings(max_examples=60)
@given(
    data=st.data(),
    sizes=st.lists(st.sampled_from([5, LARGE, 3 * LARGE, 6 * LARGE]), min_size=1, max_size=5),
    limit=st.sampled_from([0, 2 * LARGE, ENOUGH]),
)
def test_the_neighbours_of_what_is_not_kept_arrive_unchanged(
    framed: bool, data: st.DataObject, sizes: list[int], limit: int
) -> None:
    """In any split each request has one outcome: its answer, or why it does not get it."""
    room = Room(limit)
    mux = mux_of(framed=framed, max_frame=4 * LARGE, room=room)
    replies = [
        answer(number_in(0xCE, number), value(size))
        for number, size in zip(asked(mux, len(sizes)), sizes, strict=True)
    ]
    said = b"".join(message(reply, framed=framed) for reply in replies)
    got = [piece for chunk in data.draw(chunked(said)) for piece in received(mux, chunk)]
    unkept = failed(mux)
    assert all(one.batch == Shared(one.owner) for one in unkept)
    lost = {one.owner: (one.token, one.code) for one in unkept}
    assert len(got) + len(lost) == len(sizes)
    for place, (size, reply) in enumerate(zip(sizes, replies, strict=True)):
        name, token = str(place), bytes((place,))
        if name in lost:
            assert lost[name][0] == token
            if lost[name][1] == Code.UPSTREAM_LOST:  # whatever it might have become without lengths
                assert limit < ENOUGH
                assert LARGE <= size < (4 * LARGE if framed else 1 << 30)
            else:
                assert lost[name][1] == Code.FRAME_TOO_LARGE
                assert size > 4 * LARGE
        else:
            assert size <= 4 * LARGE
            assert (name, frame(reply.as_answer(token)), Shared(name)) in got
    assert mux.pending == {}
    assert room.held == 0
    assert mux.dropped == 0


@forms
def test_an_answer_beyond_the_limit_fails_its_request_and_no_other(framed: bool) -> None:
    """Its client is told how large it is and what is allowed, before it has all come."""
    mux = mux_of(framed=framed, max_frame=2 * LARGE)
    large, small = asked(mux, 2)
    data = message(answer(number_in(0xCE, large), value(9 * LARGE)), framed=framed)
    steps = in_steps(data)
    for step in steps[:3]:
        assert received(mux, step) == []
    # Where it is not announced, it is seen when so much has come.
    size = f"{len(data) - 4} bytes" if framed else f"{2 * LARGE + 1} bytes or more"
    text = f"its answer has {size}, and max_frame allows less"
    assert failed(mux) == [("0", b"\x00", Shared("0"), Code.FRAME_TOO_LARGE, text)]
    reply = answer(number_in(0xCE, small), b"\xa2ok")
    for step in steps[3:-1]:
        assert received(mux, step) == []
    after = received(mux, steps[-1] + message(reply, framed=framed))
    assert after == [("1", frame(reply.as_answer(b"\x01")), Shared("1"))]
    assert failed(mux) == []


@forms
def test_an_answer_for_which_there_is_no_room_fails_its_request_and_no_other(framed: bool) -> None:
    """It is not collected; the next one is, when there is room again."""
    room = Room(LARGE)
    mux = mux_of(framed=framed, room=room)
    first, second = asked(mux, 2)
    replies = [answer(number_in(0xCE, number), value(3 * LARGE)) for number in (first, second)]
    for step in in_steps(message(replies[0], framed=framed)):
        assert received(mux, step) == []
    [(owner, token, of, code, text)] = failed(mux)
    assert (owner, token, of, code) == ("0", b"\x00", Shared("0"), Code.UPSTREAM_LOST)
    size = len(replies[0].framed) if framed else STEP
    assert text == f"there is no room in rpc_memory for {size} bytes of its answer"
    assert room.asked == [len(replies[0].framed) if framed else STEP]
    room.limit = MAX
    got = [piece for step in in_steps(message(replies[1], framed=framed)) for piece in received(mux, step)]
    assert got == [("1", frame(replies[1].as_answer(b"\x01")), Shared("1"))]
    assert room.held == 0
    assert mux.dropped == 0


@forms
def test_a_request_that_ends_while_its_answer_comes_in_leaves_nothing(framed: bool) -> None:
    """The answer is dropped when it is whole, and counted, and its room is given back."""
    room = Room()
    mux = mux_of(framed=framed, room=room)
    for end in ("withdraw", "expire"):
        [number] = asked(mux, 1)
        steps = in_steps(message(answer(number_in(0xCE, number), value(3 * LARGE)), framed=framed))
        for step in steps[:-1]:
            assert received(mux, step) == []
        assert room.held > 0
        if end == "withdraw":
            assert mux.withdraw(number)
        else:
            assert len(mux.expire(1.0, lambda _: True)) == 1
        assert received(mux, steps[-1]) == []
        assert failed(mux) == []
        assert room.held == 0
    assert mux.dropped == 2


@forms
def test_a_connection_lost_within_a_large_answer_gives_its_room_back(framed: bool) -> None:
    """Its request is among the lost, as any other."""
    room = Room()
    mux = mux_of(framed=framed, room=room)
    [number] = asked(mux, 1)
    assert received(mux, message(answer(number_in(0xCE, number), value(3 * LARGE)), framed=framed)[:-1]) == []
    assert room.held > 0
    sent, unsent = mux.lose()
    assert (sent, unsent) == ([("0", b"\x00", Shared("0"))], [])
    assert room.held == 0
    mux.lose()
    assert room.held == 0


@forms
@pytest.mark.parametrize("size", [3 * LARGE, 2 * MAX])
def test_large_messages_that_nobody_waits_for_are_not_collected(framed: bool, size: int) -> None:
    """Each is counted once, a request is refused under its id, and no room is asked for."""
    room = Room()
    mux = mux_of(framed=framed, room=room)
    large = value(size)
    unasked = [answer(number_in(0xCE, 77), large), request(b"\x4d", large), notification(large)]
    for step in in_steps(b"".join(message(one, framed=framed) for one in unasked)):
        assert received(mux, step) == []
    assert (mux.dropped, mux.refused, mux.told) == (1, 1, 1)
    assert failed(mux) == []
    assert room.asked == []
    reply = flushed(mux)
    kind, id_, error, _ = msgpack.unpackb(reply[4:] if framed else reply)
    assert (kind, id_, error["code"]) == (Kind.ANSWER, 0x4D, "denied")


def test_a_length_alone_fails_nobody() -> None:
    """Whose answer it is stands behind it: until that is there, the instance may still be right."""
    mux = mux_of(framed=True, max_frame=LARGE)
    [number] = asked(mux, 1)
    data = answer(number_in(0xCE, number), value(3 * LARGE)).framed
    for at in range(LARGE - 1):
        assert received(mux, data[at : at + 1]) == []
        assert mux.failed == []
    assert received(mux, data[LARGE - 1 : LARGE]) == []
    assert len(failed(mux)) == 1


@forms
def test_what_failed_in_front_of_garbage_is_told(framed: bool) -> None:
    """The error comes with the next call: until then, an owner that looks at `failed` finds it."""
    room = Room(0)
    mux = mux_of(framed=framed, room=room)
    [number] = asked(mux, 1)
    data = message(answer(number_in(0xCE, number), value(3 * LARGE)), framed=framed)
    mux.receive(data[:-1])
    assert len(failed(mux)) == 1
    [number] = asked(mux, 1)
    data = data[-1:] + message(answer(number_in(0xCE, number), value(2 * MAX)), framed=framed)
    assert mux.receive(data + (b"\0\0\0\0" if framed else b"\x90")) == []
    assert len(failed(mux)) == 1
    assert mux.broken is not None
    with pytest.raises(ProtocolError):
        mux.receive(b"")
    assert mux.lose() == ([], [])


@forms
@pytest.mark.parametrize("end", ["withdrawn", "expired"])
def test_the_rest_of_an_answer_that_nobody_waits_for_is_skipped(framed: bool, end: str) -> None:
    """What had come of it is free at once, and the next answer arrives."""
    room = Room()
    mux = mux_of(framed=framed, room=room)
    first, second = asked(mux, 2)
    data = message(answer(number_in(0xCE, first), value(6 * LARGE)), framed=framed)
    assert received(mux, data[: 3 * LARGE]) == []
    assert room.held > 0
    if end == "withdrawn":
        assert mux.withdraw(first)
    else:
        assert len(mux.expire(1.0, lambda of: of == Shared("0"))) == 1
    assert room.held == 0
    last = message(answer(number_in(0xCE, second), value(10)), framed=framed)
    assert len(received(mux, data[3 * LARGE :] + last)) == 1
    assert (mux.dropped, mux.pending, room.held) == (1, {}, 0)
