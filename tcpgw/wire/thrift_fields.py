"""Values of Thrift's arguments, as far as it takes to find one: a key, or how long a request may take.

In strict binary and compact encoding (thrift/doc/specs: thrift-binary-protocol.md,
thrift-compact-protocol.md). `rest` tells which: see thrift.py.
"""

import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any, ClassVar

from tcpgw.errors import ProtocolError
from tcpgw.wire.codec import Path

HEAD = 3
"""Bytes of a field's head in binary: its type and its id."""

_U32 = struct.Struct(">I")
_VARINT = 10  # bytes: 64 bits
# What reading values raises where they make no sense or end too early.
_UNREADABLE = ProtocolError, IndexError, struct.error

_STOP, _BOOL, _I8, _DOUBLE, _I16, _I32, _I64 = 0, 2, 3, 4, 6, 8, 10
_STRING, _STRUCT, _MAP, _SET, _LIST, _UUID = 11, 12, 13, 14, 15, 16
_IN_HEAD = 1  # a field of type bool in compact: its head has the value
_BITS = {_I8: 8, _I16: 16, _I32: 32, _I64: 64}
# By compact's own numbers of types. -1: there is none.
_COMPACT_KINDS = (
    _STOP, _BOOL, _BOOL, _I8, _I16, _I32, _I64, _DOUBLE, _STRING, _LIST, _SET, _MAP, _STRUCT, _UUID, -1, -1,
)  # fmt: skip

_FIELD, _LIST_HEAD, _MAP_HEAD = struct.Struct(">Bh"), struct.Struct(">BI"), struct.Struct(">BBI")

# Apache Thrift's readers go as deep.
_DEPTH = 64
# Values that are passed over on the way to another: some milliseconds, in which nobody else is served. A
# list's elements of one size (any numbers in binary, doubles in compact) are passed over at once.
_VALUES = 4096


def find(data: bytes, rest: int, path: Path) -> tuple[int, int] | None:
    """Return a span that ends with the text or number at `path`, and begins where its type is said.

    Thrift's values do not say their type: in binary the head of a field does, and for all others whoever
    reads one comes from `rest`. A step is the id of a field of a struct, the index of an element of a list
    or set, or the key of a value of a map; of equal ones the first counts. None also for what is not all in
    `data`, or follows nonsense or too many other values: whether a request makes sense is the instance's to
    say.
    """
    kind, depth, of_field = _STRUCT, _DEPTH, False
    try:
        values = _values(data, rest, len(data) + 1)
        for step in path:
            of_field = kind == _STRUCT and isinstance(values, _BinaryValues)
            kind = values.enter(kind, step, depth)
            depth -= 1
        start = values.at - HEAD if of_field else rest
        values.skip(kind, depth)
    except _UNREADABLE:
        return None
    found = (kind in _BITS or kind in (_DOUBLE, _STRING)) and values.at <= len(data)
    return (start, values.at) if found else None


def end_of(data: bytes, start: int) -> int:
    """Return where the text or number ends whose field begins at `start`, in binary."""
    kind, at = data[start], start + HEAD
    if kind != _STRING:
        return at + _BinaryValues.sizes[kind]
    return at + 4 + _U32.unpack_from(data, at)[0] if at + 4 <= len(data) else len(data) + 1


def key(data: bytes, span: tuple[int, int]) -> bytes | None:
    """As `codec.Codec.key`. Whole numbers become decimal text: one key in each width and encoding."""
    start, stop = span[0] + HEAD + 4, span[1]
    if start <= stop <= len(data) and data[span[0]] == _STRING:
        (length,) = _U32.unpack_from(data, start - 4)
        if start + length == stop:
            return data[start:stop]
    kind, values = _found(data, span)
    if kind == _STRING:
        return values.text()
    return b"%d" % values.number(kind) if kind in _BITS else None


def number(data: bytes, span: tuple[int, int]) -> float | None:
    """As `codec.Codec.number`. Infinity and NaN are none: nobody can reckon with them."""
    form = _field_form(data, span)
    if form is not None:
        value = form.unpack_from(data, span[0] + HEAD)[0]
        return value if isfinite(value) else None
    kind, values = _found(data, span)
    if kind not in _BITS and kind != _DOUBLE:
        return None
    value = values.number(kind)
    return value if isfinite(value) else None


def put_number(data: bytes, span: tuple[int, int], value: float) -> bytes:
    """As `codec.Codec.put_number`. Beyond what its type can say, it is the nearest that it can."""
    start = span[0]
    form = _field_form(data, span)
    if form is not None and data[start] == _DOUBLE:
        return data[start : start + HEAD] + form.pack(value)
    kind, values = _found(data, span)
    if kind in _BITS:
        most = (1 << _BITS[kind] - 1) - 1
        value = round(max(-most - 1, min(most, value)))
    elif kind != _DOUBLE:
        return data[span[0] : span[1]]
    return data[span[0] : values.at] + values.written(kind, value)


def _field_form(data: bytes, span: tuple[int, int]) -> struct.Struct | None:
    """What reads the number of a field in binary that begins where the span does; None where none does.

    A shorter way to what `_found` says, for spans as most are.
    """
    start, stop = span
    form = _BinaryValues.forms.get(data[start]) if stop <= len(data) else None
    return form if form is not None and start + HEAD + form.size == stop else None


# ---- varints ----


def varint(value: int) -> bytes:
    """Write an unsigned number in groups of 7 bits, the lowest first."""
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def read_varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Return the number at `at`, and where the next byte is."""
    value = shift = 0
    for place in range(at, min(at + _VARINT, end)):
        byte = data[place]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place + 1
        shift += 7
    raise ProtocolError(f"Thrift frame: a varint that does not end within {_VARINT} bytes and the frame")


def zigzag(value: int) -> int:
    return value << 1 if value >= 0 else ~value << 1 | 1


# ---- values ----


class _Values(ABC):
    """A place, `at`, among the values of a message. Methods move it on.

    It may go beyond the end of `data`, where reading raises ProtocolError, IndexError or struct.error.
    Where a value ends at `stop` or beyond, `skip` ends and `last` is its type and place.
    """

    forms: ClassVar[Mapping[int, struct.Struct]]
    """Numbers of a fixed size. All others are zigzag varints."""
    sizes: ClassVar[Mapping[int, int]]
    """Bytes of all values of a fixed size."""

    def __init__(self, data: bytes, at: int, stop: int) -> None:
        self.data = data
        self.at = at
        self.stop = stop
        self.last = _STOP, at
        self._left = _VALUES

    @abstractmethod
    def field(self, previous: int) -> tuple[int, ...]:
        """Read a field's head: its type and id."""

    @abstractmethod
    def container(self, kind: int) -> tuple[list[int], int]:
        """Read the head of a list, set or map: the types of an element (a map's: key, value); how many."""

    @abstractmethod
    def length(self) -> int:
        """Read a text's length."""

    def text(self) -> bytes:
        length = self.length()
        self.at += length
        return self.data[self.at - length : self.at]

    def number(self, kind: int) -> float:
        if kind in self.forms:
            number: float = self._take(self.forms[kind])[0]
            return number
        return self._whole()

    def written(self, kind: int, value: float) -> bytes:
        """Return a number as this encoding writes it."""
        return self.forms[kind].pack(value) if kind in self.forms else varint(zigzag(int(value)))

    def enter(self, kind: int, step: int | str, depth: int) -> int:
        """Go to what `step` names within a value of `kind`. Returns its type, _STOP where there is none."""
        self._count(depth)
        if kind == _STRUCT:
            for inner, id_ in self._fields():
                if id_ == step:
                    return inner
                self.skip(inner, depth - 1)
        elif kind == _MAP:
            (key, inner), count = self.container(kind)
            for _ in range(count):
                if self._is_key(key, step, depth - 1):
                    return inner
                self.skip(inner, depth - 1)
        elif kind in (_LIST, _SET) and isinstance(step, int):
            (inner,), count = self.container(kind)
            if 0 <= step < count:
                self._skip_all([inner], step, depth - 1)
                return inner
        return _STOP

    def skip(self, kind: int, depth: int) -> bool:
        """Pass over a value. Returns whether `stop` was reached."""
        self._count(depth)
        start = self.at
        if kind in self.sizes:
            self.at += self.sizes[kind]
        elif kind in _BITS:
            self.number(kind)
        elif kind == _STRING:
            length = self.length()
            self.at += length
        elif kind == _STRUCT:
            return any(self.skip(inner, depth - 1) for inner, _ in self._fields())
        elif kind in (_LIST, _SET, _MAP):
            return self._skip_all(*self.container(kind), depth - 1)
        else:
            raise ProtocolError(f"Thrift values, byte {start}: there is no type {kind}")
        self.last = kind, start
        return self.at >= self.stop

    def _skip_all(self, kinds: list[int], count: int, depth: int) -> bool:
        if any(kind not in self.sizes for kind in kinds):
            return any(self.skip(kind, depth) for _ in range(count) for kind in kinds)
        self.at += count * sum(self.sizes[kind] for kind in kinds)
        if self.at < self.stop:
            return False
        self.at = self.stop
        self.last = kinds[-1], self.stop - self.sizes[kinds[-1]]  # nobody looks for the key of a map
        return True

    def _is_key(self, kind: int, step: int | str, depth: int) -> bool:
        start = self.at
        self.skip(kind, depth)
        end, self.at = self.at, start
        if kind == _STRING:
            found = isinstance(step, str) and self.text() == step.encode()
        else:
            found = kind in _BITS and self.number(kind) == step
        self.at = end
        return found

    def _fields(self) -> Iterator[tuple[int, ...]]:
        kind, id_ = self.field(0)
        while kind != _STOP:
            yield kind, id_
            kind, id_ = self.field(id_)

    def _count(self, depth: int) -> None:
        self._left -= 1
        if self._left < 0 or depth < 0:
            raise ProtocolError("Thrift values: too many, or too deep, to look for one among them")

    def _whole(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)

    def _varint(self) -> int:
        value, self.at = read_varint(self.data, self.at, len(self.data))
        return value

    def _take(self, form: struct.Struct) -> tuple[Any, ...]:
        self.at += form.size
        return form.unpack_from(self.data, self.at - form.size)


class _BinaryValues(_Values):
    forms: ClassVar = {
        _I8: struct.Struct(">b"),
        _I16: struct.Struct(">h"),
        _I32: struct.Struct(">i"),
        _I64: struct.Struct(">q"),
        _DOUBLE: struct.Struct(">d"),
    }
    sizes: ClassVar = {_BOOL: 1, _I8: 1, _I16: 2, _I32: 4, _I64: 8, _DOUBLE: 8, _UUID: 16}

    def field(self, previous: int) -> tuple[int, ...]:  # noqa: ARG002 - compact's ids are relative
        if self.data[self.at] == _STOP:
            self.at += 1
            return _STOP, 0
        return self._take(_FIELD)

    def container(self, kind: int) -> tuple[list[int], int]:
        *kinds, count = self._take(_MAP_HEAD if kind == _MAP else _LIST_HEAD)
        return kinds, count

    def length(self) -> int:
        (length,) = self._take(_U32)
        return int(length)


class _CompactValues(_Values):
    forms: ClassVar = {_I8: struct.Struct("b"), _DOUBLE: struct.Struct("<d")}
    sizes: ClassVar = {_IN_HEAD: 0, _BOOL: 1, _I8: 1, _DOUBLE: 8, _UUID: 16}

    def field(self, previous: int) -> tuple[int, ...]:
        head = self._byte()
        kind = _COMPACT_KINDS[head & 0x0F]
        if kind == _STOP:
            return _STOP, 0
        id_ = previous + (head >> 4) if head >> 4 else self._whole()
        return (_IN_HEAD if kind == _BOOL else kind), id_

    def container(self, kind: int) -> tuple[list[int], int]:
        if kind == _MAP:
            count = self._varint()
            kinds = self._byte() if count else 0
            return [_COMPACT_KINDS[kinds >> 4], _COMPACT_KINDS[kinds & 0x0F]], count
        head = self._byte()
        return [_COMPACT_KINDS[head & 0x0F]], head >> 4 if head >> 4 < 15 else self._varint()

    def length(self) -> int:
        return self._varint()

    def _byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]


def _values(data: bytes, rest: int, stop: int) -> _Values:
    """Begin at the arguments."""
    return _CompactValues(data, rest + 1, stop) if data[rest] > _UUID else _BinaryValues(data, rest, stop)


def _found(data: bytes, span: tuple[int, int]) -> tuple[int, _Values]:
    """Go back to what `find` found. Returns its type; _STOP where `data` is not what it was then."""
    start, stop = span
    if stop > len(data):
        return _STOP, _BinaryValues(data, start, stop)
    values = _values(data, start, stop)
    try:
        there = values.skip(_STRUCT, _DEPTH) and values.at == stop
    except _UNREADABLE:
        there = False
    kind, values.at = values.last
    return (kind if there else _STOP), values
