"""Framed Thrift: a 32-bit big-endian length, then one message, in strict binary or compact encoding.

    binary   80 01 00 type | name: 32-bit length, text | id: 4 bytes | arguments, a struct
    compact  82 type<<5|1 | id: varint | name: varint length, text | arguments, a struct

(thrift/doc/specs: thrift-rpc.md, thrift-binary-protocol.md, thrift-compact-protocol.md.) The first byte tells
them apart, so a client may use either; its messages pass in the one that they came in. Renumbering replaces
the id and nothing else: arguments and results of any size pass undecoded, and a binary message keeps its
length.

A token is a message's head, from behind the frame's length up to the arguments: the client's id as it came,
and the name and encoding that an error needs. `rest` is where the arguments begin; in compact it is the byte
before, the last one of the name. That is how `find` sees which encoding it is in: no name ends with a byte up
to 16, and no type of a field is above.
"""

import struct
from collections.abc import Callable, Mapping, Sequence

from tcpgw.errors import Code, ProtocolError
from tcpgw.wire import thrift_fields
from tcpgw.wire.codec import LARGE, PARTS, Batch, Entry, Glance, Kind, Message, Owner, Path, Piece, Run
from tcpgw.wire.thrift_fields import read_varint, varint, zigzag

MAX_NAME = 1024
"""Bytes of a method's name. A token holds it for as long as its request is in flight, so how long it may be
is not the client's choice. Real ones, service and method, have a tenth of this."""

_U32 = struct.Struct(">I")
_pack, _unpack, _put = _U32.pack, _U32.unpack_from, _U32.pack_into
_head = struct.Struct(">III").unpack_from  # of a binary frame: length, version and type, length of the name

_BINARY, _COMPACT = 0x80, 0x82  # the first byte
_CALL, _REPLY, _EXCEPTION = 0x80010001, 0x80010002, 0x80010003
_FAILED = 3  # the type of a TApplicationException
_KINDS = {1: Kind.REQUEST, 2: Kind.ANSWER, 3: Kind.ANSWER, 4: Kind.NOTIFY}
_LEAST = 17  # bytes of a binary frame with an empty name and an empty struct

# Many small requests cost less as one patched copy than as three pieces for each: 385 instead of 485 ns, in
# chunks of 16. For few the making of the copy costs more, and where there is much to copy the copying does.
_MANY = 4
_FEW, _MUCH = 256, 4 * LARGE  # bytes

# Types of a TApplicationException.
_INTERNAL_ERROR, _PROTOCOL_ERROR = 6, 7


class Thrift:
    """The codec."""

    lead = thrift_fields.HEAD

    # ---- one message ----

    def read(self, data: bytes, pos: int, end: int) -> Message:
        mark = data[pos + 4] if end - pos > 4 else None
        if mark == _BINARY:
            return _read_binary(data, pos, end)
        if mark == _COMPACT:
            return _read_compact(data, pos, end)
        if mark is not None and mark < _BINARY:
            raise _error(4, "strict binary or compact (old binary is refused: have it written strict)", mark)
        raise _error(4, "strict binary (0x80) or compact (0x82)", mark)

    def request(self, token: bytes, body: int, number: int) -> bytes:
        if token[0] == _BINARY:
            return _pack(len(token) + body) + token[:-4] + _pack(number)
        return _compact_prefix(token, body, varint(number))

    def notification(self, token: bytes, body: int) -> bytes:
        # Under 0, not the client's id: some instances answer even these when they fail (thriftpy2, of a
        # method that it does not know), and under a number of ours another client would get that answer.
        return self.request(token, body, 0)

    def answer(self, message: Message, body: int, token: bytes) -> bytes:
        """As `Codec.answer`. Raises ProtocolError for an answer in another encoding than the request."""
        head = message.token
        if head[0] != token[0]:
            raise _error(4, f"an answer in the request's encoding ({token[0]:#04x})", head[0])
        if head[0] == _BINARY:
            return _pack(len(head) + body) + head[:-4] + token[-4:]
        return _compact_prefix(head, body, token[2 : _id_end(token)])

    def unknown(self, start: bytes) -> bytes:
        """As `Codec.unknown`. In binary where `start` is not compact: readers of old binary take it too."""
        return b"\x82\x21\0\0" if start[4:5] == b"\x82" else _pack(_CALL) + bytes(8)

    def error(self, token: bytes, code: Code, text: str, endpoint: str | None = None) -> bytes:
        """Make a TApplicationException."""
        told = f"{code}: {text} (endpoint {endpoint})" if endpoint else f"{code}: {text}"
        words = told.encode(errors="replace")
        type_ = _PROTOCOL_ERROR if code is Code.BAD_FRAME else _INTERNAL_ERROR
        # Field 1, a string; field 2, an i32; the struct's end.
        if token[0] == _BINARY:
            fields = b"\x0b\0\1" + _pack(len(words)) + words + b"\x08\0\2" + _pack(type_) + b"\0"
            frame = _pack(_EXCEPTION) + token[4:] + fields
        else:
            fields = b"\x18" + varint(len(words)) + words + b"\x15" + varint(zigzag(type_)) + b"\0"
            frame = b"\x82\x61" + token[2:] + fields
        return _pack(len(frame)) + frame

    def done(self, token: bytes) -> bytes:
        """Make the reply of a method that returns void."""
        frame = _pack(_REPLY) + token[4:] + b"\0" if token[0] == _BINARY else b"\x82\x41" + token[2:] + b"\0"
        return _pack(len(frame)) + frame

    # ---- runs of ordinary messages, in binary; compact ones go one by one ----

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
        last = size - _LEAST
        if _FEW < size - pos < _MUCH and len(numbers) >= _MANY:
            length, version, _ = _head(data, pos)
            if version == _CALL and _MANY * length < size - pos:
                return _patch_requests(data, pos, pending, add, numbers, owner, batch, name)
        for number in numbers:
            if pos > last:
                return pos, number
            length, version, width = _head(data, pos)
            rest = pos + 16 + width
            end = pos + 4 + length
            if version != _CALL or width > MAX_NAME or not rest < end <= size:
                return pos, number
            if name and not data.startswith(name, pos + 8):
                return pos, number
            pending[number] = owner, data[pos + 4 : rest], batch
            add(data[pos : rest - 4])
            add(_pack(number))
            add(data[rest:end] if length < large else memoryview(data)[rest:end])
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
        for read in reads.items():
            owner, data = read
            size = len(data)
            if _LEAST <= size <= most:
                length, version, width = _head(data)
                rest = 16 + width
                if length + 4 == size and version == _CALL and width <= MAX_NAME and rest < size:
                    if batches is not None:
                        batch = batches[data[8 : 12 + width]]
                    if batch is not None:
                        pending[number] = owner, data[4:rest], batch
                        add(data[: rest - 4])
                        add(_pack(number))
                        add(data[rest:])
                        number += 1
                        continue
            others.append(read)
        return others, number

    def glance(self, data: bytes, pos: int) -> Glance | None:
        if len(data) - pos < _LEAST:
            return None
        length, version, width = _head(data, pos)
        rest = pos + 16 + width
        end = pos + 4 + length
        if version != _CALL or width > MAX_NAME or not rest < end <= len(data):
            return None
        return data[pos + 4 : rest], data[pos + 8 : pos + 12 + width], rest, end

    def name_at(self, data: bytes, pos: int) -> bytes:
        if len(data) - pos < _LEAST:
            return b""
        _, version, width = _head(data, pos)
        return data[pos + 8 : pos + 12 + width] if version == _CALL and width <= MAX_NAME else b""

    def method(self, name: bytes) -> bytes:
        return name[4:]

    def take_answers(
        self, data: bytes, pos: int, pending: dict[int, Entry], runs: list[Run]
    ) -> tuple[int, int]:
        size = len(data)
        large = max(LARGE, size // 2)
        pop = pending.pop
        dropped = 0
        owner = batch = None  # whose answers the last run takes
        last = size - _LEAST
        while pos <= last:
            length, version, name = _head(data, pos)
            mark = pos + 12 + name
            end = pos + 4 + length
            if version != _REPLY and version != _EXCEPTION:  # noqa: PLR1714 - `in` costs 25 ns more
                break
            if name > MAX_NAME or not mark + 4 < end <= size:
                break
            (number,) = _unpack(data, mark)
            entry = pop(number, None)
            if entry is None:
                dropped += 1
                pos = end
                continue
            who, token, asked = entry
            if who is not owner or asked is not batch:
                if token[0] != _BINARY:  # `answer` will say what is wrong
                    pending[number] = entry
                    break
                owner, batch = who, asked
                parts: list[Piece] = []
                add = parts.append
                runs.append((owner, parts, batch))
            add(data[pos:mark])
            add(token[-4:])
            add(data[mark + 4 : end] if length < large else memoryview(data)[mark + 4 : end])
            pos = end
        return pos, dropped

    def errors(self, parts: Sequence[Piece]) -> list[bool]:
        """As `Codec.errors`. An exception that the method declares is a result like others: it is a reply."""
        return [_is_exception(head) for head in parts[::PARTS]]

    def failures(self, parts: Sequence[Piece]) -> int:
        return sum(self.errors(parts))

    # ---- arguments ----

    def find(self, data: bytes, rest: int, path: Path) -> tuple[int, int] | None:
        return thrift_fields.find(data, rest, path)

    def end(self, data: bytes, start: int) -> int:
        return thrift_fields.end_of(data, start)

    def key(self, data: bytes, span: tuple[int, int]) -> bytes | None:
        return thrift_fields.key(data, span)

    def number(self, data: bytes, span: tuple[int, int]) -> float | None:
        return thrift_fields.number(data, span)

    def put_number(self, data: bytes, span: tuple[int, int], value: float) -> bytes:
        return thrift_fields.put_number(data, span, value)


# ---- heads ----


def _is_exception(prefix: Piece) -> bool:
    """Whether an answer is a TApplicationException, by what stands in front of it."""
    return prefix[7] == _FAILED if prefix[4] == _BINARY else prefix[5] >> 5 == _FAILED


def _read_binary(data: bytes, pos: int, end: int) -> Message:
    if end - pos < _LEAST:
        raise ProtocolError(f"Thrift frame: {end - pos} bytes, and a binary message has {_LEAST} or more")
    _, version, name = _head(data, pos)
    if version >> 8 != 0x800100:
        raise ProtocolError(f"Thrift frame, byte 4: expected version word 0x800100.., got {version:#010x}")
    kind = _kind(version & 0xFF)
    rest = pos + 16 + name
    _check_name(name, rest, end)
    number = _unpack(data, rest - 4)[0] if kind is Kind.ANSWER else -1
    return Message(kind, data[pos + 12 : rest - 4], data[pos + 4 : rest], number, rest)


def _read_compact(data: bytes, pos: int, end: int) -> Message:
    mark = data[pos + 5] if end - pos > 5 else None
    if mark is None or mark & 0x1F != 1:
        raise _error(5, "compact's version 1", mark)
    kind = _kind(mark >> 5)
    # Unsigned, and not zigzag like every other number in compact. Negative ids are written as 32 bits.
    id_, at = read_varint(data, pos + 6, end)
    name, at = read_varint(data, at, end)
    start = at + name
    _check_name(name, start, end)
    return Message(kind, data[at:start], data[pos + 4 : start], id_ if kind is Kind.ANSWER else -1, start - 1)


def _kind(type_: int) -> Kind:
    if type_ not in _KINDS:
        raise ProtocolError(
            f"Thrift frame: message type {type_}, which is no call, reply, exception or oneway"
        )
    return _KINDS[type_]


def _check_name(size: int, start: int, end: int) -> None:
    if size > MAX_NAME:
        raise ProtocolError(f"Thrift frame: a name of {size} bytes, more than {MAX_NAME}")
    if start >= end:
        raise ProtocolError(f"Thrift frame: no arguments behind a name of {size} bytes")


def _error(offset: int, expected: str, got: int | None) -> ProtocolError:
    found = "the frame's end" if got is None else f"{got:#04x}"
    return ProtocolError(f"Thrift frame, byte {offset}: expected {expected}, got {found}")


def _compact_prefix(head: bytes, body: int, id_: bytes) -> bytes:
    """What stands before the name's last byte."""
    start = head[:2] + id_ + head[_id_end(head) : -1]
    return _pack(len(start) + body) + start


def _id_end(head: bytes) -> int:
    return read_varint(head, 2, len(head))[1]


# ---- many small requests ----


def _patch_requests(
    data: bytes,
    pos: int,
    pending: dict[int, Entry],
    add: Callable[[Piece], object],
    numbers: range,
    owner: object,
    batch: Batch,
    name: bytes,
) -> tuple[int, int]:
    """As `Codec.take_requests`, with one part for all."""
    first, pos = pos, 0
    data = data[first:]
    size = len(data)
    last = size - _LEAST
    patched = bytearray(data)
    for number in numbers:
        if pos > last:
            break
        length, version, width = _head(data, pos)
        rest = pos + 16 + width
        end = pos + 4 + length
        if version != _CALL or width > MAX_NAME or not rest < end <= size:
            break
        if name and not data.startswith(name, pos + 8):
            break
        pending[number] = owner, data[pos + 4 : rest], batch
        _put(patched, rest - 4, number)
        pos = end
    else:
        number = numbers.stop
    if pos == size:
        add(bytes(patched))
    elif pos:
        add(memoryview(patched)[:pos])
    return first + pos, number
