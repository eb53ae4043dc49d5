"""Where frames end: length-prefixed framings, and the interface that every framing is split by.

A splitter looks at headers alone. Bodies are stepped over, so that a frame of 16 MiB costs what one of 16
bytes does, and what a splitter remembers between chunks is a few numbers and at most one cut-off header.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from tcpgw.errors import FrameTooLargeError, ProtocolError

MAX_VARINT = 10
"""Bytes of the longest varint: protobuf's integers have 64 bits, seven to a byte."""


class Splitter(Protocol):
    """Finds the ends of frames in a stream of bytes, whatever chunks it comes in.

    Keeps and copies no body, and looks at no byte twice. `partial` is how many bytes of a frame that has
    begun and not ended have been fed: 0 at a boundary, where a connection may be drained.
    """

    partial: int

    def feed(self, data: bytes) -> list[int]:
        """Return the exclusive ends, within `data`, of the frames that end there.

        Raises FrameTooLargeError or another ProtocolError with the byte's offset in the stream, as soon as
        no further bytes can mend it. Frames that ended earlier in the same chunk are lost with it, and the
        splitter is spent.
        """


@dataclass(frozen=True, slots=True)
class LengthField:
    """Where a frame's header says how long the frame is.

    `offset` and `width` are in bytes from the frame's first; "varint" is protobuf's. The header ends with the
    length field, the whole frame is the header and as many bytes as the field says, or only as many as it
    says where the length `includes_header`; `adjust` is added to either. Each frame starts with `magic`,
    which must be shorter than the header.
    """

    offset: int = 0
    width: Literal[1, 2, 3, 4, 8, "varint"] = 4
    endian: Literal["big", "little"] = "big"
    adjust: int = 0
    includes_header: bool = False
    magic: bytes = b""

    def measure(self, data: bytes, pos: int = 0) -> int | None:
        """Return the size of the whole frame that starts at `pos`, or None while its header is cut off.

        Raises ProtocolError for another magic, a size that is less than the header's, and a varint that
        does not end: what is refused is refused however little of it has come.
        """
        start = data[pos : pos + len(self.magic)]
        if not self.magic.startswith(start):
            expected = f"expected each to start with {self.magic!r}, got {start!r}"
            raise ProtocolError(f"{expected}; does the client speak another protocol?")
        at = pos + self.offset
        read = _varint(data, at) if self.width == "varint" else _fixed(data, at, self.width, self.endian)
        if read is None:
            return None
        length, end = read
        header = end - pos
        size = length + self.adjust + (0 if self.includes_header else header)
        if size < header:
            raise ProtocolError(
                f"its length {length} makes it {size} bytes long, less than its header's {header}"
            )
        return size


def _fixed(data: bytes, at: int, width: int, endian: Literal["big", "little"]) -> tuple[int, int] | None:
    end = at + width
    return (int.from_bytes(data[at:end], endian), end) if end <= len(data) else None


def _varint(data: bytes, at: int) -> tuple[int, int] | None:
    value = 0
    for index, byte in enumerate(data[at : at + MAX_VARINT]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, at + index + 1
    if len(data) - at >= MAX_VARINT:
        raise ProtocolError(f"its length is a varint of more than {MAX_VARINT} bytes")
    return None


PRESETS: Mapping[str, LengthField] = {
    "u32be": LengthField(),
    "u32le": LengthField(endian="little"),
    "u16be": LengthField(width=2),
    "varint": LengthField(width="varint"),
    # Thrift's and Kafka's lengths are signed. A negative one, read as it is here, is above every limit.
    "thrift-framed": LengthField(),
    "kafka": LengthField(),
    # baidu_std: magic, size of the body, size of the meta data (the body's first part).
    "brpc": LengthField(offset=4, adjust=4, magic=b"PRPC"),
    # Magic, flags, status, request id, size of the body.
    "dubbo": LengthField(offset=12, magic=b"\xda\xbb"),
}

_STRUCTS = {1: "B", 2: "H", 4: "I", 8: "Q"}
_Read = Callable[[bytes, int], tuple[int, ...]]


def _reader(width: int, endian: Literal["big", "little"]) -> _Read:
    """Make what reads a length from where it stands, without a slice wherever struct knows the width."""
    if width in _STRUCTS:
        return struct.Struct((">" if endian == "big" else "<") + _STRUCTS[width]).unpack_from
    return lambda data, at: (int.from_bytes(data[at : at + width], endian),)


class FrameSplitter:
    """The splitter of a length-prefixed framing. `max_size` is in bytes and counts headers too."""

    __slots__ = ("_field", "_head", "_header", "_left", "_max", "_read", "_seen", "partial")

    def __init__(self, field: LengthField, max_size: int) -> None:
        self.partial = 0
        self._field = field
        self._max = max_size
        self._header = field.offset + (MAX_VARINT if field.width == "varint" else field.width)  # the longest
        self._read = None if field.width == "varint" else _reader(field.width, field.endian)
        self._seen = 0  # bytes of the stream before this chunk
        # What the frame at hand lacks: bytes of its body, or, where `_head` is what came of its header, more.
        self._left = 0
        self._head = b""

    def feed(self, data: bytes) -> list[int]:
        size = len(data)
        pos = self._complete(data) if self._head else self._left
        ends = [pos] if pos else []
        if not self._head:
            read = self._read
            pos = self._walk(data, pos, ends, read) if read else self._walk_varints(data, pos, ends)
            self._left = max(pos - size, 0)
            if pos > size:
                ends.pop()
            elif pos < size:
                self._measure(data, pos, self._seen + pos)
                self._head = data[pos:]
        self.partial = size - (ends[-1] if ends else -self.partial)
        self._seen += size
        return ends

    def _complete(self, data: bytes) -> int:
        """Return the end of the frame whose header was cut off, 0 where it still is."""
        known = len(self._head)
        self._head += data[: self._header - known]
        total = self._measure(self._head, 0, self._seen - known)
        if total is None:
            return 0
        self._head = b""
        return total - known

    def _measure(self, data: bytes, pos: int, at: int) -> int | None:
        """Measure the frame that starts at `pos`, which is `at` in the stream, and refuse what may not be."""
        try:
            total = self._field.measure(data, pos)
        except ProtocolError as error:
            raise ProtocolError(f"the frame at byte {at} of the stream: {error}") from None
        if total is not None and total > self._max:
            raise FrameTooLargeError(
                f"the frame at byte {at} of the stream starts with {data[pos : pos + 8]!r}, which makes it"
                f" {total} bytes long; at most {self._max} are allowed. Raise max_frame where that is a frame"
                " of this protocol"
            )
        return total

    def _walk(self, data: bytes, pos: int, ends: list[int], read: _Read) -> int:
        """Append the ends of all frames from `pos` on whose headers are whole; return the last."""
        field, most, add = self._field, self._max, ends.append
        offset, magic, header = field.offset, field.magic, self._header
        extra = field.adjust + (0 if field.includes_header else header)
        last = len(data) - header
        while pos <= last:
            total = read(data, pos + offset)[0] + extra
            if not header <= total <= most or (magic and not data.startswith(magic, pos)):
                self._measure(data, pos, self._seen + pos)  # says why, and raises
            pos += total
            add(pos)
        return pos

    def _walk_varints(self, data: bytes, pos: int, ends: list[int]) -> int:
        """As `_walk`. All in place: a quarter of a million empty frames fit one read."""
        field, size, most, add = self._field, len(data), self._max, ends.append
        offset, magic, adjust, whole = field.offset, field.magic, field.adjust, field.includes_header
        extra = adjust + (0 if whole else offset + 1)
        # Lengths below this are one byte, and need no look at magic and limits.
        quick = 0x80 if offset < extra <= most - 0x80 and not magic else 0
        while (at := pos + offset) < size:
            total = byte = data[at]
            if byte < quick:
                pos += total + extra
                add(pos)
                continue
            shift = 0
            while byte > 0x7F and shift < 7 * MAX_VARINT:
                at += 1
                if at == size:
                    return pos
                byte = data[at]
                shift += 7
                total += byte - 1 << shift  # less the bit that said that this byte follows
            header = at + 1 - pos
            total += adjust + (0 if whole else header)
            wrong = magic and not data.startswith(magic, pos)
            if wrong or not header <= total <= most or shift >= 7 * MAX_VARINT:
                self._measure(data, pos, self._seen + pos)  # says why, and raises
            pos += total
            add(pos)
        return pos
