"""MessagePack-RPC, in frames of a 32-bit big-endian length or as the original bare stream of objects.

`[0, id, method, params]` asks, `[1, id, error, result]` answers, `[2, method, params]` expects no answer
(github.com/msgpack-rpc/msgpack-rpc, spec.md). Renumbering replaces what stands before the method or the error
and nothing else, so parameters and results of any size pass undecoded. The client's id is kept as the bytes
that it was: whatever integer form, and however often the same one is in use, it comes back as it came.
"""

import struct
from collections.abc import Callable, Mapping, Sequence

import msgpack

from tcpgw.errors import Code, ProtocolError
from tcpgw.wire import msgpack_fields
from tcpgw.wire.codec import LARGE, PARTS, Batch, Entry, Glance, Kind, Message, Owner, Path, Piece, Run

MAX_NAME = 1024
"""Bytes of a method's name, where it is read. Real ones have a tenth of this, a head must fit in LARGE bytes,
and a gateway remembers names."""

_U32 = struct.Struct(">I").pack
_REQUEST_HEAD = struct.Struct(">IHB").unpack_from  # length, array of 4 and type, first byte of the id
_ANSWER_HEAD = struct.Struct(">IHBI").unpack_from  # the same, and the rest of an id of ours
_FRAMED_REQUEST = struct.Struct(">IHBI").pack
_FRAMED_HEAD = struct.Struct(">IH").pack
_BARE_REQUEST = struct.Struct(">HBI").pack

_ASK, _REPLY, _TELL = 0x9400, 0x9401, 0x9302  # an array's header and the message's type
_UINT32, _NIL = 0xCE, 0xC0
# Bytes of an integer by its first one; 0 for everything that is no integer.
_ID_WIDTH = [1] * 0x80 + [0] * 0x60 + [1] * 0x20
for _mark, _width in zip(range(0xCC, 0xD4), (2, 3, 5, 9, 2, 3, 5, 9), strict=True):
    _ID_WIDTH[_mark] = _width
# Bytes of a text's or byte string's header by its first byte: how long the length behind it is.
_LENGTH_WIDTH = {0xD9: 1, 0xDA: 2, 0xDB: 4, 0xC4: 1, 0xC5: 2, 0xC6: 4}
# The shortest of all whole frames of each kind: length, two bytes of head, id, and two values of a byte.
_LEAST_REQUEST, _LEAST_ANSWER = 9, 13
_ARRAYS = {b"\x93": (3, 1), b"\x94": (4, 1), b"\xdc": (None, 3), b"\xdd": (None, 5)}


class MsgpackRpc:
    """The codec. `framed`: with a length in front of each message."""

    lead = 0

    def __init__(self, *, framed: bool) -> None:
        self.framed = framed
        self._prefix = 4 if framed else 0

    # ---- one message ----

    def read(self, data: bytes, pos: int, end: int) -> Message:
        """As `Codec.read`. Takes any form of the array's header, as some encoders choose the longer ones."""
        start = pos + self._prefix
        try:
            count, at = _array(data, start, end)
            type_ = data[at]
            at += 1
            if (count, type_) == (3, Kind.NOTIFY):
                return Message(Kind.NOTIFY, _text(data, at, end), b"", -1, at)
            if count != 4 or type_ not in (Kind.REQUEST, Kind.ANSWER):
                raise ProtocolError(f"no MessagePack-RPC message: an array of {count} with type {type_:#04x}")
            rest = at + _ID_WIDTH[data[at]]
            if rest == at or rest >= end:
                raise ProtocolError(f"the message's id begins with {data[at]:#04x}: it must be an integer")
            token = data[at:rest]
            if type_ == Kind.REQUEST:
                return Message(Kind.REQUEST, _text(data, rest, end), token, -1, rest)
            return Message(Kind.ANSWER, b"", token, _integer(token), rest)
        except IndexError:
            raise ProtocolError("the message ends within its head") from None

    def request(self, token: bytes, body: int, number: int) -> bytes:  # noqa: ARG002 - the interface's
        if self.framed:
            return _FRAMED_REQUEST(body + 7, _ASK, _UINT32, number)
        return _BARE_REQUEST(_ASK, _UINT32, number)

    def notification(self, token: bytes, body: int) -> bytes:  # noqa: ARG002
        return _FRAMED_HEAD(body + 2, _TELL) if self.framed else b"\x93\x02"

    def answer(self, message: Message, body: int, token: bytes) -> bytes:  # noqa: ARG002
        return (_FRAMED_HEAD(body + 2 + len(token), _REPLY) if self.framed else b"\x94\x01") + token

    def unknown(self, start: bytes) -> bytes:  # noqa: ARG002 - the interface's
        return b"\xc0"  # nil stands for its id

    def error(self, token: bytes, code: Code, text: str, endpoint: str | None = None) -> bytes:
        """`[1, id, {"code", "message", "endpoint"?}, nil]`."""
        told = {"code": code.value, "message": text} | ({"endpoint": endpoint} if endpoint else {})
        frame: bytes = b"\x94\x01" + token + msgpack.packb(told) + b"\xc0"
        return _U32(len(frame)) + frame if self.framed else frame

    def done(self, token: bytes) -> bytes:
        """`[1, id, nil, nil]`."""
        frame = b"\x94\x01" + token + b"\xc0\xc0"
        return _U32(len(frame)) + frame if self.framed else frame

    # ---- runs of ordinary messages, in frames ----

    def take_requests(
        self,
        data: bytes,
        pos: int,
        pending: dict[int, Entry],
        add: Callable[[Piece], object],
        numbers: range,
        owner: object,
        batch: Batch,
        name: bytes = b"",
    ) -> tuple[int, int]:
        size = len(data)
        large = max(LARGE, size // 2)
        widths = _ID_WIDTH
        for number in numbers:
            if size - pos < _LEAST_REQUEST:
                return pos, number
            length, head, mark = _REQUEST_HEAD(data, pos)
            end = pos + 4 + length
            width = widths[mark]
            body = pos + 6 + width
            if end > size or head != _ASK or not width or body >= end:
                return pos, number
            if name and not data.startswith(name, body):
                return pos, number
            pending[number] = (owner, data[pos + 6 : body], batch)
            add(_FRAMED_REQUEST(length + 5 - width, _ASK, _UINT32, number))
            add(data[body:end] if end - body < large else memoryview(data)[body:end])
            pos = end
        return pos, numbers.stop

    def take_reads(
        self,
        reads: Mapping[Owner, bytes],
        most: int,
        pending: dict[int, Entry],
        add: Callable[[Piece], object],
        number: int,
        batch: Batch | None,
        batches: Mapping[bytes, Batch | None] | None,
    ) -> tuple[list[tuple[Owner, bytes]], int]:
        others: list[tuple[Owner, bytes]] = []
        widths = _ID_WIDTH
        for read in reads.items():
            owner, data = read
            size = len(data)
            if _LEAST_REQUEST <= size <= most:
                length, head, mark = _REQUEST_HEAD(data)
                width = widths[mark]
                body = 6 + width
                if length + 4 == size and head == _ASK and width and body < size:
                    if batches is not None:  # of longer names than 31 bytes `name_at` knows more
                        name = data[body]
                        short = name & 0xE0 == 0xA0
                        batch = batches[data[body : body + 1 + (name & 0x1F)]] if short else None
                    if batch is not None:
                        pending[number] = (owner, data[6:body], batch)
                        add(_FRAMED_REQUEST(length + 5 - width, _ASK, _UINT32, number))
                        add(data[body:])
                        number += 1
                        continue
            others.append(read)
        return others, number

    def glance(self, data: bytes, pos: int) -> Glance | None:
        if len(data) - pos < _LEAST_REQUEST:
            return None
        length, head, mark = _REQUEST_HEAD(data, pos)
        width = _ID_WIDTH[mark]
        rest = pos + 6 + width
        end = pos + 4 + length
        if end > len(data) or head != _ASK or not width:
            return None
        name = _name(data, rest)
        return (data[pos + 6 : rest], name, rest, end) if name and rest + len(name) < end else None

    def name_at(self, data: bytes, pos: int) -> bytes:
        """As `Codec.name_at`, of the two forms that names of up to 255 bytes have in practice."""
        if len(data) - pos < _LEAST_REQUEST:
            return b""
        _, head, first = _REQUEST_HEAD(data, pos)
        return _name(data, pos + 6 + _ID_WIDTH[first]) if head == _ASK else b""

    def method(self, name: bytes) -> bytes:
        return name[2 if name[0] == 0xD9 else 1 :]

    def take_answers(
        self, data: bytes, pos: int, pending: dict[int, Entry], runs: list[Run]
    ) -> tuple[int, int]:
        size = len(data)
        large = max(LARGE, size // 2)
        dropped = 0
        pop = pending.pop
        owner = batch = None
        while size - pos >= _LEAST_ANSWER:
            length, head, mark, number = _ANSWER_HEAD(data, pos)
            end = pos + 4 + length
            if end > size or head != _REPLY or mark != _UINT32 or length < 9:
                break
            entry = pop(number, None)
            if entry is None:
                dropped += 1
                pos = end
                continue
            who, token, asked = entry
            if who is not owner or asked is not batch:
                owner, batch = who, asked
                parts: list[Piece] = []
                add = parts.append
                runs.append((owner, parts, batch))
            add(_FRAMED_HEAD(length - 5 + len(token), _REPLY))
            add(token)
            add(data[pos + 11 : end] if end - pos < large else memoryview(data)[pos + 11 : end])
            pos = end
        return pos, dropped

    def errors(self, parts: Sequence[Piece]) -> list[bool]:
        return [body[0] != _NIL for body in parts[PARTS - 1 :: PARTS]]

    def failures(self, parts: Sequence[Piece]) -> int:
        if len(parts) == PARTS:  # mostly, and this is asked of every answer
            return parts[-1][0] != _NIL
        return sum(self.errors(parts))

    # ---- parameters ----

    def find(self, data: bytes, rest: int, path: Path) -> tuple[int, int] | None:
        return msgpack_fields.find(data, rest, path)

    def end(self, data: bytes, start: int) -> int:
        return msgpack_fields.end_of(data, start)

    def key(self, data: bytes, span: tuple[int, int]) -> bytes | None:
        return msgpack_fields.key(data, span)

    def number(self, data: bytes, span: tuple[int, int]) -> float | None:
        return msgpack_fields.number(data, span)

    def put_number(self, data: bytes, span: tuple[int, int], value: float) -> bytes:
        return msgpack_fields.put_number(data, span, value)


def _array(data: bytes, pos: int, end: int) -> tuple[int, int]:
    """Read an array's header: how many values, and where the first one is."""
    if pos >= end:
        raise ProtocolError("an empty frame holds no message")
    mark = data[pos : pos + 1]
    if mark not in _ARRAYS:
        found = f"{data[pos]:#04x}"
        raise ProtocolError(f"no MessagePack-RPC message: it begins with {found}, not an array of 3 or 4")
    count, width = _ARRAYS[mark]
    if count is None:
        count = int.from_bytes(data[pos + 1 : pos + width], "big")
    return count, pos + width


def _name(data: bytes, start: int) -> bytes:
    """As `name_at`, of the name that begins at `start`."""
    if start + 1 >= len(data):
        return b""
    mark = data[start]
    if mark & 0xE0 == 0xA0:
        return data[start : start + 1 + (mark & 0x1F)]
    return data[start : start + 2 + data[start + 1]] if mark == 0xD9 else b""


def _text(data: bytes, pos: int, end: int) -> bytes:
    """Read a method's name; old encoders write it as a byte string."""
    mark = data[pos]
    if mark & 0xE0 == 0xA0:
        start, length = pos + 1, mark & 0x1F
    elif mark in _LENGTH_WIDTH:
        start = pos + 1 + _LENGTH_WIDTH[mark]
        length = int.from_bytes(data[pos + 1 : start], "big")
    else:
        raise ProtocolError(f"the message's method begins with {mark:#04x}: it must be a text")
    if length > MAX_NAME:
        raise ProtocolError(f"the message's method has {length} bytes; at most {MAX_NAME} are allowed")
    if start + length > end:
        raise ProtocolError(f"the message's method has {length} bytes, more than its frame")
    return data[start : start + length]


def _integer(token: bytes) -> int:
    if len(token) == 1:
        return token[0] if token[0] < 0x80 else token[0] - 0x100
    return int.from_bytes(token[1:], "big", signed=token[0] >= 0xD0)
