"""One connection's requests and answers: begin times in, bytes out; bytes in, begin times out. No I/O.

A request is known by its begin: when it was due, or when it was sent, in nanoseconds of a clock that only
the caller reads. Begins never decrease from request to request of a connection.
"""

from collections import deque
from collections.abc import Sequence
from itertools import cycle
from struct import Struct
from typing import NamedTuple, Protocol

import msgpack

from tcpgw.bench.payload import PERIOD, Piece, Stream
from tcpgw.bench.plan import MAX_SIZE, Mode, Plan

WRONG_PAYLOAD = "wrong_payload"
BAD_ANSWER = "bad_answer"

_APART = 104_729  # bytes of the stream between the payloads of two connections, and
_STEP = 7_919  # of two requests: primes, so that the payloads begin anywhere
_LARGEST_ANSWER = MAX_SIZE + (1 << 20)


class Exchange(Protocol):
    """One connection."""

    refused: list[tuple[int, str]]
    """Begin and reason of each request whose answer was an error or not its own, for the caller to empty."""
    strays: int
    """Answers that nobody waited for: they came after the time-out, or were never asked for."""
    broken: str | None
    """WRONG_PAYLOAD or BAD_ANSWER once nothing that comes can be told apart: close the connection then."""

    @property
    def waiting(self) -> int:
        """How many requests have no answer yet."""

    def requests(self, begins: Sequence[int]) -> list[Piece]:
        """Make a request for each begin. Returns what to send."""

    def feed(self, data: bytes) -> list[int]:
        """Take what came. Returns the begins of the requests that it answered well, every byte checked."""

    def expire(self, before: int) -> list[int]:
        """Give up the requests that began before. Returns their begins."""

    def abandon(self) -> list[int]:
        """Give up all requests, as the connection is gone. Returns their begins."""


def make_exchange(plan: Plan, stream: Stream, connection: int) -> Exchange:
    """What connection number `connection` of a run says and expects."""
    if plan.mode is Mode.TCP:
        return Echo(stream, plan.sizes, connection * _APART)
    return Rpc(stream, plan.sizes, connection * _APART, method=plan.method, verified=plan.verified)


class Echo:
    """A connection whose other side sends back every byte: a request is answered with its last one."""

    def __init__(self, stream: Stream, sizes: Sequence[int], at: int) -> None:
        self.refused: list[tuple[int, str]] = []
        self.strays = 0
        self.broken: str | None = None
        self._stream = stream
        self._sizes = cycle(sizes)
        self._sent = self._received = at  # places in the stream
        self._pending: deque[tuple[int, int]] = deque()  # begin, and where the request ends in the stream

    @property
    def waiting(self) -> int:
        return len(self._pending)

    def requests(self, begins: Sequence[int]) -> list[Piece]:
        at = end = self._sent
        for begin in begins:
            end += next(self._sizes)
            self._pending.append((begin, end))
        self._sent = end
        return self._stream.cut(at, end - at)

    def feed(self, data: bytes) -> list[int]:
        if not self._stream.matches(data, self._received):
            self.broken = WRONG_PAYLOAD
            return []
        self._received = received = self._received + len(data)
        if received > self._sent:
            self.broken = BAD_ANSWER
            return []
        pending = self._pending
        answered = []
        while pending and pending[0][1] <= received:
            answered.append(pending.popleft()[0])
        return answered

    def expire(self, before: int) -> list[int]:
        # Their bytes may still come, and count as those of no request: ends are places, not lengths.
        expired = []
        while self._pending and self._pending[0][0] < before:
            expired.append(self._pending.popleft()[0])
        return expired

    def abandon(self) -> list[int]:
        begins = [begin for begin, _ in self._pending]
        self._pending.clear()
        return begins


# ---- msgpack-rpc ----

_REQUEST = Struct(">I3sI").pack  # length, `[0, id` up to the id's four bytes
_ANSWER = Struct(">I3sIB").unpack_from  # length, `[1, id`, and the first byte of the error
_ANSWER_HEAD = 12  # bytes of that
_LEAST_ANSWER = 9  # bytes of `[1, id, nil, nil]`, a frame without its length
_FIRST_ID, _AFTER_LAST_ID = 1 << 16, 1 << 32  # all 5 bytes long in their shortest form
_NIL = 0xC0
_ANSWER_TYPE = 1


class _Shape(NamedTuple):
    """What all requests of a size have in common."""

    size: int
    length: int  # of the frame, without the length itself
    middle: bytes  # between id and payload: method, array of one, the binary's header
    answer: bytes  # between error and payload: the binary's header


_Call = tuple[int, int, _Shape]
"""A request's begin, its payload's place in the stream, and its shape. No class: it is made for each."""


class Rpc:
    """A connection to a msgpack-rpc service: `method` with one binary parameter, answers matched by id.

    Where `verified`, the result must be the parameter, as of a method `echo`; otherwise anything but an
    error is well.
    """

    def __init__(self, stream: Stream, sizes: Sequence[int], at: int, *, method: str, verified: bool) -> None:
        self.refused: list[tuple[int, str]] = []
        self.strays = 0
        self.broken: str | None = None
        self._stream = stream
        self._shapes = cycle([_shape(method, size) for size in sizes])
        self._at = at
        self._verified = verified
        self._id = _FIRST_ID
        self._pending: dict[int, _Call] = {}
        self._chunks: list[bytes] = []  # of an answer that is not whole
        self._held = self._needed = 0  # bytes of it that are there, and that must be before it is looked at

    @property
    def waiting(self) -> int:
        return len(self._pending)

    def requests(self, begins: Sequence[int]) -> list[Piece]:
        pieces: list[Piece] = []
        for begin in begins:
            shape = next(self._shapes)
            number = self._id
            self._id = number + 1 if number + 1 < _AFTER_LAST_ID else _FIRST_ID
            at = (self._at + number * _STEP) % PERIOD
            self._pending[number] = (begin, at, shape)
            pieces.append(_REQUEST(shape.length, b"\x94\x00\xce", number) + shape.middle)
            pieces.extend(self._stream.cut(at, shape.size))
        return pieces

    def feed(self, data: bytes) -> list[int]:
        if self._chunks:
            self._chunks.append(data)
            self._held += len(data)
            if self._held < self._needed:
                return []
            data = b"".join(self._chunks)
            self._chunks = []
        answered: list[int] = []
        end = len(data)
        pos = 0
        while end - pos >= _ANSWER_HEAD:
            length, head, number, error = _ANSWER(data, pos)
            stop = pos + 4 + length
            if stop > end or length < _LEAST_ANSWER:
                break
            if head == b"\x94\x01\xce" and error == _NIL:
                call = self._pending.pop(number, None)
                if call is None:
                    self.strays += 1
                elif not self._verified or self._is_payload(call, data, pos + _ANSWER_HEAD, stop):
                    answered.append(call[0])
                else:
                    self.refused.append((call[0], WRONG_PAYLOAD))
            else:
                self._take(data[pos + 4 : stop], answered)
            pos = stop
        if pos < end and not self.broken:
            self._keep(data[pos:] if pos else data)
        return answered

    def expire(self, before: int) -> list[int]:
        expired = []
        for number, call in self._pending.items():  # in the order of their begins
            if call[0] >= before:
                break
            expired.append(number)
        return [self._pending.pop(number)[0] for number in expired]

    def abandon(self) -> list[int]:
        begins = [begin for begin, _, _ in self._pending.values()]
        self._pending.clear()
        return begins

    def _is_payload(self, call: _Call, data: bytes, at: int, stop: int) -> bool:
        _, place, shape = call
        start = at + len(shape.answer)
        return (
            stop - start == shape.size
            and data.startswith(shape.answer, at)
            and self._stream.matches(data[start:stop], place)
        )

    def _keep(self, data: bytes) -> None:
        """Hold what is there of an answer, and find out how long it will be."""
        self._needed = 4
        if len(data) >= 4:
            length = int.from_bytes(data[:4], "big")
            if not _LEAST_ANSWER <= length <= _LARGEST_ANSWER:
                self.broken = BAD_ANSWER
            self._needed = 4 + length
        self._chunks = [data]
        self._held = len(data)

    def _take(self, frame: bytes, answered: list[int]) -> None:
        """Take an answer that is an error, or written in another form than the usual one."""
        try:
            kind, number, error, result = msgpack.unpackb(frame, strict_map_key=False)
            call = self._pending.pop(number, None)
        except (ValueError, TypeError, msgpack.UnpackException):
            kind = call = None
        if kind != _ANSWER_TYPE:
            self.broken = BAD_ANSWER
            return
        if call is None:
            self.strays += 1
            return
        begin, place, shape = call
        if error is not None:
            self.refused.append((begin, _reason(error)))
        elif self._verified and not (
            isinstance(result, bytes) and len(result) == shape.size and self._stream.matches(result, place)
        ):
            self.refused.append((begin, WRONG_PAYLOAD))
        else:
            answered.append(begin)


def _shape(method: str, size: int) -> _Shape:
    header = _bin_header(size)
    middle: bytes = msgpack.packb(method) + b"\x91" + header
    return _Shape(size, 7 + len(middle) + size, middle, header)


def _bin_header(size: int) -> bytes:
    """What MessagePack writes before a byte string."""
    if size < 1 << 8:
        return bytes((0xC4, size))
    if size < 1 << 16:
        return b"\xc5" + size.to_bytes(2, "big")
    return b"\xc6" + size.to_bytes(4, "big")


def _reason(error: object) -> str:
    """The gateway's code of an error, or "error" where it is somebody else's."""
    code = error.get("code") if isinstance(error, dict) else None
    return code[:64] if isinstance(code, str) else "error"
