"""Requests and answers of one connection, without a socket."""

import itertools
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgw.bench.exchange import BAD_ANSWER, WRONG_PAYLOAD, Echo, Exchange, Rpc, make_exchange
from tcpgw.bench.payload import Stream
from tcpgw.bench.plan import MAX_SIZE, Mode, Plan
from tests.bench.instances import framed

STREAM = Stream()


def echo(*sizes: int) -> Echo:
    return Echo(STREAM, sizes or (64,), 5)


def rpc(*sizes: int, method: str = "echo", verified: bool = True) -> Rpc:
    return Rpc(STREAM, sizes or (64,), 5, method=method, verified=verified)


def sent(exchange: Exchange, *begins: int) -> bytes:
    return b"".join(exchange.requests(begins))


def messages(data: bytes) -> Iterator[list[Any]]:
    while data:
        length = int.from_bytes(data[:4], "big")
        yield msgpack.unpackb(data[4 : 4 + length])
        data = data[4 + length :]


def answers(data: bytes) -> list[bytes]:
    """What an echo service answers to these requests."""
    return [framed([1, number, None, params[0]]) for _, number, _, params in messages(data)]


def fed(exchange: Exchange, data: bytes, cuts: list[int]) -> list[int]:
    """Feed it in pieces; the begins that were answered, in their order."""
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    found = []
    for start, end in itertools.pairwise(places):
        if start < end:
            found += exchange.feed(data[start:end])
    return found


CUTS = st.lists(st.integers(0, 1 << 20), max_size=8)


# ---- tcp ----


@given(sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=3), count=st.integers(1, 20), cuts=CUTS)
def test_echoed_requests_are_answered_in_order(sizes: list[int], count: int, cuts: list[int]) -> None:
    """In whatever pieces the bytes come back, each request is answered once, when its last byte is there."""
    exchange = echo(*sizes)
    data = sent(exchange, *range(count))
    assert len(data) == sum(sizes[number % len(sizes)] for number in range(count))
    assert exchange.waiting == count
    assert exchange.feed(data[: sizes[0] - 1]) == []
    assert fed(exchange, data[sizes[0] - 1 :], cuts) == list(range(count))
    assert (exchange.waiting, exchange.broken, exchange.refused) == (0, None, [])


@given(place=st.integers(0, 639), bit=st.integers(0, 7))
def test_a_wrong_byte_breaks_an_echo(place: int, bit: int) -> None:
    """Whatever byte of whatever request is wrong, the connection is of no use any more."""
    exchange = echo()
    data = bytearray(sent(exchange, *range(10)))
    data[place] ^= 1 << bit
    assert exchange.feed(bytes(data)) == []
    assert exchange.broken == WRONG_PAYLOAD
    assert exchange.abandon() == list(range(10))
    assert exchange.waiting == 0


def test_bytes_that_were_never_sent_break_an_echo() -> None:
    """An instance that says more than it was told is no echo, even if it guesses the bytes."""
    exchange = echo()
    data = sent(exchange, 1)
    exchange.feed(data + STREAM.cut(5 + 64, 1)[0])
    assert exchange.broken == BAD_ANSWER


def test_an_echo_after_the_time_out_answers_nothing_and_breaks_nothing() -> None:
    """Late bytes are those of no request; the next request's are its own."""
    exchange = echo()
    late, data = sent(exchange, 10, 20), sent(exchange, 30)
    assert exchange.expire(20) == [10]
    assert exchange.expire(21) == [20]
    assert exchange.waiting == 1
    assert exchange.feed(late) == []
    assert exchange.feed(data) == [30]
    assert exchange.broken is None


# ---- rpc ----


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65535, 65536, 1 << 20])
def test_requests_are_messagepack_rpc(size: int) -> None:
    """A request is [0, id, method, [payload]] in its shortest form; no two in flight share id or payload."""
    exchange = rpc(size, method="predict")
    data = sent(exchange, 1, 2)
    first, second = messages(data)
    assert framed(first) + framed(second) == data
    assert (first[0], first[2]) == (0, "predict")
    assert first[1] != second[1]
    assert all(len(message[3][0]) == size for message in (first, second))
    assert first[3] != second[3] or size < 4


@given(
    sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=3),
    order=st.permutations(range(12)),
    cuts=CUTS,
)
def test_answers_are_matched_in_any_order_and_split(
    sizes: list[int], order: list[int], cuts: list[int]
) -> None:
    """However answers overtake each other and are cut, each answers its own request, once."""
    exchange = rpc(*sizes)
    replies = answers(sent(exchange, *range(12)))
    data = b"".join(replies[place] for place in order)
    assert fed(exchange, data, cuts) == order
    assert (exchange.waiting, exchange.broken, exchange.refused, exchange.strays) == (0, None, [], 0)


def test_a_large_answer_in_many_pieces() -> None:
    """An answer that comes a byte at a time, and one of 4 MiB in small pieces, are checked whole."""
    exchange = rpc(40, 4 << 20)
    small, large = answers(sent(exchange, 1, 2))
    found = [begin for byte in small for begin in exchange.feed(bytes((byte,)))]
    for start in range(0, len(large), 60_000):
        found += exchange.feed(large[start : start + 60_000])
    assert found == [1, 2]


@given(place=st.integers(0, 63), bit=st.integers(0, 7))
def test_a_wrong_payload_is_refused_alone(place: int, bit: int) -> None:
    """One wrong bit fails its request, and no other of the same connection."""
    exchange = rpc()
    one, two, three = answers(sent(exchange, 1, 2, 3))
    wrong = bytearray(two)
    wrong[len(two) - 64 + place] ^= 1 << bit
    assert exchange.feed(one + bytes(wrong) + three) == [1, 3]
    assert exchange.refused == [(2, WRONG_PAYLOAD)]
    assert exchange.broken is None


def test_anothers_payload_is_wrong() -> None:
    """Answers whose results were exchanged are both wrong, as is one of another length."""
    exchange = rpc()
    first, second, third = messages(sent(exchange, 1, 2, 3))
    exchange.feed(framed([1, first[1], None, second[3][0]]))
    exchange.feed(framed([1, second[1], None, first[3][0]]))
    exchange.feed(framed([1, third[1], None, third[3][0][:-1]]))
    assert exchange.refused == [(begin, WRONG_PAYLOAD) for begin in (1, 2, 3)]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ({"code": "overloaded", "message": "full"}, "overloaded"),
        ({"code": 7}, "error"),
        ({1: 2}, "error"),
        ("it broke", "error"),
        ([1, "no"], "error"),
        (False, "error"),
    ],
)
def test_an_error_answer_is_told_by_its_code(error: object, reason: str) -> None:
    """The gateway's errors are counted by their code, anybody else's as `error`."""
    exchange = rpc()
    (message,) = messages(sent(exchange, 4))
    assert exchange.feed(framed([1, message[1], error, None])) == []
    assert exchange.refused == [(4, reason)]
    assert exchange.waiting == 0


def test_an_answer_in_a_longer_form_is_as_good() -> None:
    """A service may write the id in 8 bytes and the length of the result in 4."""
    exchange = rpc()
    ((_, number, _, (payload,)),) = messages(sent(exchange, 4))
    body = b"\x94\x01\xcf" + number.to_bytes(8, "big") + b"\xc0\xc6" + (64).to_bytes(4, "big") + payload
    assert exchange.feed(len(body).to_bytes(4, "big") + body) == [4]


def test_any_result_of_another_method_is_well() -> None:
    """Where the method is not echo, the id and the absence of an error are what counts."""
    exchange = rpc(method="length", verified=False)
    (first, second) = messages(sent(exchange, 1, 2))
    assert exchange.feed(framed([1, first[1], None, 64]) + framed([1, second[1], None, None])) == [1, 2]


def test_a_late_answer_is_a_stray() -> None:
    """An answer after the time-out, or a second one, is counted and harms nobody."""
    exchange = rpc()
    one, two = answers(sent(exchange, 1, 2))
    assert exchange.expire(2) == [1]
    assert exchange.feed(one + two + two) == [2]
    assert (exchange.strays, exchange.broken) == (2, None)


@pytest.mark.parametrize(
    "garbage",
    [
        framed([2, "notify", []]),
        framed({"not": "an array"}) + bytes(8),
        (2).to_bytes(4, "big") + b"\x91\xc0",
        (MAX_SIZE * 2).to_bytes(4, "big"),
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        (12).to_bytes(4, "big") + b"\xc1" * 12,
        framed([1, [1, 2], None, None]) + bytes(8),
        framed([1, {}, None, "0123456789"]),
    ],
)
def test_what_is_no_answer_breaks_the_connection(garbage: bytes) -> None:
    """Bytes that are no answer are noticed, and what was answered before them counts."""
    exchange = rpc()
    one, _ = answers(sent(exchange, 1, 2))
    assert exchange.feed(one + garbage) == [1]
    assert exchange.broken == BAD_ANSWER
    assert exchange.abandon() == [2]


def test_each_connection_has_payloads_of_its_own() -> None:
    """An answer that reaches another connection under the right id is still a wrong one."""
    plan = Plan(mode=Mode.RPC)
    one, other = (make_exchange(plan, STREAM, number) for number in range(2))
    (reply,) = answers(sent(one, 1))
    sent(other, 1)
    assert other.feed(reply) == []
    assert other.refused == [(1, WRONG_PAYLOAD)]
    assert isinstance(make_exchange(Plan(mode=Mode.TCP), STREAM, 0), Echo)
