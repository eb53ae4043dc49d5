"""A field of a MessagePack-RPC request: found by its path, read, and replaced, without decoding the rest.

A gateway needs one or two values of a request, the key to balance by and the deadline, none of the tensors
beside them. What is not there, cut off or malformed is not found, and never an error: whether a request makes
sense is the instance's to say.
"""

import math
import struct

from tcpgw.wire.codec import Path
from tcpgw.wire.msgpack_scan import LENGTHS, RESERVED, STEPS, skip

Span = tuple[int, int]

_ARRAY, _MAP = -1, -2
_TEXTS = {*range(0xA0, 0xC0), 0xC4, 0xC5, 0xC6, 0xD9, 0xDA, 0xDB}
_FLOATS = {0xCA: struct.Struct(">Bf"), 0xCB: struct.Struct(">Bd")}  # with the byte that says so
_FLOAT_32 = 3.4e38  # a little less than its largest, which rounding may exceed
_UINT_64, _INT_64 = 0xCF, 0xD3
_INTEGERS = {
    0xCC: (struct.Struct(">BB"), range(1 << 8)),
    0xCD: (struct.Struct(">BH"), range(1 << 16)),
    0xCE: (struct.Struct(">BI"), range(1 << 32)),
    _UINT_64: (struct.Struct(">BQ"), range(1 << 64)),
    0xD0: (struct.Struct(">Bb"), range(-1 << 7, 1 << 7)),
    0xD1: (struct.Struct(">Bh"), range(-1 << 15, 1 << 15)),
    0xD2: (struct.Struct(">Bi"), range(-1 << 31, 1 << 31)),
    _INT_64: (struct.Struct(">Bq"), range(-1 << 63, 1 << 63)),
}


def find(data: bytes, start: int, path: Path) -> Span | None:
    """Return the span of the value at `path` in the parameters of a request, or None where there is none.

    `start` is the offset of the method, which the parameters follow. A number indexes an array, or is a map's
    key; a text is a map's key, as str or as bin in UTF-8. Of equal keys the first counts. Only what stands
    whole within `data` is found. Takes time in proportion to the bytes in front of the value, and its own.
    """
    pos = skip(data, start)
    for segment in path:
        entered = _enter(data, pos, segment)
        if entered is None:
            return None
        pos = entered
    end = skip(data, pos)
    return (pos, end) if end <= len(data) else None


def end_of(data: bytes, start: int) -> int:
    """Return where the value at `start` ends, beyond `data` where it is not all there."""
    step = STEPS[data[start]] if start < len(data) else 0
    return start + step if step > 0 else skip(data, start)


def key(data: bytes, span: Span) -> bytes | None:
    """Return a found text or byte string, or a whole number's decimal digits, to hash; None of another type.

    Digits, so that clients that encode the same number in another size, or as text, have the same key.
    """
    text = _text(data, span)
    if text is not None:
        return text
    whole = _integer(data, span)
    return None if whole is None else b"%d" % whole


def number(data: bytes, span: Span) -> float | None:
    """Return a found number; None of another type, and for infinities and NaN."""
    form = _FLOATS.get(data[span[0]])
    if form is None:
        whole = _integer(data, span)
        return None if whole is None else float(whole)
    value: float = form.unpack_from(data, span[0])[1]
    return value if math.isfinite(value) else None


def put_number(data: bytes, span: Span, value: float) -> bytes:
    """Return what says `value`, which must be finite, in the place of a found number.

    It has the found one's type and size wherever it fits, and a 64-bit form where not. A whole number stays
    one: the nearest to `value`.
    """
    lead = data[span[0]]
    if lead in _FLOATS:
        lead = lead if abs(value) < _FLOAT_32 else 0xCB
        return _FLOATS[lead].pack(lead, value)
    whole = max(min(round(value), (1 << 64) - 1), -1 << 63)
    if lead not in _INTEGERS and -32 <= whole < 128:
        return bytes((whole & 0xFF,))
    if lead not in _INTEGERS or whole not in _INTEGERS[lead][1]:
        lead = _UINT_64 if whole >= 0 else _INT_64
    return _INTEGERS[lead][0].pack(lead, whole)


def _enter(data: bytes, pos: int, segment: int | str) -> int | None:
    """Return where the value begins that `segment` names in the container at `pos`, or None."""
    opened = _open(data, pos)
    if opened is None:
        return None
    unit, pos, count = opened
    if unit == _MAP:
        return _look_up(data, pos, count, segment)
    return skip(data, pos, segment) if isinstance(segment, int) and 0 <= segment < count else None


def _open(data: bytes, pos: int) -> tuple[int, int, int] | None:
    """Return whether an array or a map is at `pos`, where its first value begins, and its length, or None."""
    if pos >= len(data):
        return None
    lead = data[pos]
    if 0x80 <= lead < 0xA0:
        return _MAP if lead < 0x90 else _ARRAY, pos + 1, lead & 0x0F
    read, head, unit = LENGTHS.get(lead, LENGTHS[RESERVED])
    if unit > 0 or pos + head > len(data):
        return None
    return unit, pos + head, read(data, pos + 1)[0]


def _look_up(data: bytes, pos: int, count: int, segment: int | str) -> int | None:
    wanted = segment.encode(errors="surrogatepass") if isinstance(segment, str) else segment
    read = _text if isinstance(segment, str) else _integer
    for _ in range(count):
        end = skip(data, pos)
        if end >= len(data):  # cut off: no key without a value
            return None
        if read(data, (pos, end)) == wanted:
            return end
        pos = skip(data, end)
    return None


def _text(data: bytes, span: Span) -> bytes | None:
    start, end = span
    lead = data[start]
    if lead not in _TEXTS:
        return None
    return data[start + (LENGTHS[lead][1] if lead in LENGTHS else 1) : end]


def _integer(data: bytes, span: Span) -> int | None:
    lead = data[span[0]]
    if lead < 0x80:
        return lead
    if lead >= 0xE0:
        return lead - 256
    if lead not in _INTEGERS:
        return None
    value: int = _INTEGERS[lead][0].unpack_from(data, span[0])[1]
    return value
