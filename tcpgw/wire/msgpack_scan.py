"""Where MessagePack values end, without decoding them, in chunks of any size.

Source: github.com/msgpack/msgpack, spec.md. A value's lead byte says how long it is, how long the length is
that follows, or how many values follow. So a scan steps from lead byte to lead byte: `STEPS` and `LENGTHS`
are that, as tables.

A hostile client fills a read with values of one byte, and the event loop stands still until all are counted.
So the loops below have everything in place, at the price of their length, and long arrays of values of one
size (the numbers of a tensor, an image) are counted by `run`, which costs a few nanoseconds for each.
`msgpack.Unpacker` finds boundaries faster where values are small, but it copies and keeps whole frames.
"""

import struct
from collections.abc import Callable
from itertools import pairwise

from tcpgw.errors import FrameTooLargeError, ProtocolError

MAX_DEPTH = 512
"""Containers within containers. Decoders recurse or keep a stack: msgpack's own for Python ends at 1024, and
those that recurse in Python near 1000."""

SHORT, LONG = -32, -31
RESERVED = 0xC1


def _step(lead: int) -> int:
    if lead < 0x80 or lead >= 0xE0 or lead in (0xC0, 0xC2, 0xC3):  # small integers, nil, false, true
        return 1
    if lead < 0xA0:  # small maps and arrays: the empty ones are over at once
        return -(lead & 0x0F) * (2 if lead < 0x90 else 1) or 1
    if lead < 0xC0:  # small strings
        return 1 + (lead & 0x1F)
    if lead in (0xC4, 0xD9):
        return SHORT
    if 0xCA <= lead <= 0xD3:  # float 32 and 64, uint and int 8 to 64
        return 1 + (4, 8, 1, 2, 4, 8, 1, 2, 4, 8)[lead - 0xCA]
    if 0xD4 <= lead <= 0xD8:  # fixext: a type and 1 to 16 bytes
        return 2 + (1 << lead - 0xD4)
    return LONG


STEPS = tuple(map(_step, range(256)))
"""By lead byte: above 0 the size of the whole value, below how many values follow (negated), SHORT where a
length of one byte follows (str 8, bin 8: frequent, and too small for a limit), LONG for what else `LENGTHS`
has."""


_Read = Callable[[bytes, int], tuple[int, ...]]


def _lengths() -> dict[int, tuple[_Read, int, int]]:
    reads = tuple(struct.Struct(form).unpack_from for form in (">B", ">H", ">I"))
    leads = {0xC4: (0, 2, 1), 0xC5: (1, 3, 1), 0xC6: (2, 5, 1)}  # bin
    leads |= {0xC7: (0, 3, 1), 0xC8: (1, 4, 1), 0xC9: (2, 6, 1)}  # ext: the type stands after the length
    leads |= {0xD9: (0, 2, 1), 0xDA: (1, 3, 1), 0xDB: (2, 5, 1)}  # str
    leads |= {0xDC: (1, 3, -1), 0xDD: (2, 5, -1), 0xDE: (1, 3, -2), 0xDF: (2, 5, -2)}  # array, map
    lengths = {lead: (reads[width], head, unit) for lead, (width, head, unit) in leads.items()}
    return lengths | {RESERVED: (lambda _data, _at: (0,), 0, 1)}


LENGTHS = _lengths()
"""By lead byte: what reads the length that follows it, the size of the value's head, and what the length
counts: 1 for bytes, -1 and -2 for the values of an array and a map. A head of 0: the reserved byte 0xc1."""

_SAME = {size: bytes(lead for lead in range(256) if STEPS[lead] == size) for size in set(STEPS) if size > 0}
_MANY = 32  # values from which it pays to look for a run: more than a small map has
_FEW = 16  # a run that is shorter than this, with the one before it, was not worth its 0.5 µs
_WINDOW = 64  # lead bytes that are compared at first


def run(data: bytes, pos: int, count: int) -> tuple[int, int]:
    """Step over values of one size, then of another, as long as that pays, and never over the last.

    Returns the offset after them, which is beyond `data` where the last of them is cut off, and how many of
    the `count` values are still to come. What it copies is lead bytes, about as many as it steps over.
    """
    size, window, before = len(data), _WINDOW, _FEW
    while count > _MANY and pos < size and (step := STEPS[data[pos]]) > 0:
        leads = data[pos : pos + step * min(count - 1, window) : step]
        same = len(leads) - len(leads.lstrip(_SAME[step]))
        pos += same * step
        count -= same
        if same + before < _FEW:
            break
        before = same
        # After a mismatch the next look is short again, or changing sizes would make each look a long one.
        window = window * 2 if same == len(leads) else _WINDOW
    return pos, count


def skip(data: bytes, pos: int, count: int = 1) -> int:
    """Return the offset after the `count` values from `pos` on, beyond `data` where not all are there.

    For data at hand: how many values are to come says it all, so any depth passes. The reserved byte 0xc1 is
    taken as the end of what is there. Never raises; takes time in proportion to what it steps over.
    """
    size = len(data)
    while count and pos < size:
        step = STEPS[data[pos]]
        if step <= LONG:
            read, head, unit = LENGTHS[data[pos]]
            if not head or pos + head > size:
                break
            step = read(data, pos + 1)[0] * unit
            if step < 0:
                pos += head - 1
            else:
                step += head
        if step > 0:
            pos += step
            count -= 1
            continue
        pos += 1
        count -= 1 + step
        if count > _MANY:
            pos, count = run(data, pos, count)
    return max(pos, size + 1) if count else pos


class MsgpackSplitter:
    """The splitter of a stream of MessagePack objects, one after the other: each is a frame.

    `max_size` is in bytes, and counts what a frame claims as soon as it claims it: the bytes of a string,
    and a byte for each element of an array.
    """

    __slots__ = ("_head", "_left", "_levels", "_max", "_outer", "_seen", "_skip", "partial")

    def __init__(self, max_size: int) -> None:
        self.partial = 0
        self._max = max_size
        self._seen = 0  # bytes of the stream before this chunk
        # The innermost container that lacks values: how many (0 between frames, and while the last value of a
        # frame is cut off), and how many levels may still be opened in it. Then the same of those around it.
        self._left = 0
        self._levels = MAX_DEPTH
        self._outer: list[tuple[int, int]] = []
        # The value at hand: bytes that its body lacks, or what has come of a head that is cut off.
        self._skip = 0
        self._head = b""

    def limit(self, max_size: int) -> None:
        """Take another `max_size`, for what is coming too."""
        self._max = max_size

    def feed(self, data: bytes) -> list[int]:
        if not self._head:
            return self._scan(data, 0)
        known = len(self._head)
        rest = LENGTHS[self._head[0]][1] - known
        self._head += data[:rest]
        if len(data) < rest:
            self.partial += len(data)
            self._seen += len(data)
            return []
        # The head is scanned again as a chunk by itself, which a value without a body ends.
        head, self._head = self._head, b""
        self.partial -= known
        self._seen -= known
        return [rest for _ in self._scan(head, 0)] + self._scan(data, rest)

    def _scan(self, data: bytes, begin: int) -> list[int]:  # noqa: PLR0915 - the loop, see above
        """As `feed`, of the bytes from `begin` on."""
        size, first, base = len(data), begin - self.partial, self._seen - begin
        room = self._max + first - size  # what may be claimed wherever in this chunk
        left, levels, outer = self._left, self._levels, self._outer
        steps, push, pop = STEPS, outer.append, outer.pop
        pos = begin + self._skip
        ends = [pos] if self._skip and not left else []
        if left > _MANY:
            pos, left = run(data, pos, left)
        while pos < size:
            step = steps[data[pos]]
            if step < 0:
                head = 1
                if step <= LONG:
                    read, head, unit = LENGTHS[data[pos]]
                    if pos + head > size:
                        self._head = data[pos:]
                        break
                    if step == SHORT:
                        step = head + data[pos + 1]
                    else:
                        step = read(data, pos + 1)[0] * unit
                        if step > room or step < -room or not head:
                            begun = ends[-1] if ends else first
                            self._check_claim(data[pos], base + pos, pos + head - begun, abs(step))
                        if step >= 0:
                            step += head
                        elif step < -_MANY and levels:
                            after, count = run(data, pos + head, -step)
                            head, step = after - pos, -count
                if step < 0:
                    if not levels:
                        raise ProtocolError(f"{_place(base + pos)}: more than {MAX_DEPTH} containers deep")
                    if left > 1:
                        push((left - 1, levels))
                    left = -step
                    levels -= 1
                    pos += head
                    continue
            pos += step
            if left > 1:
                left -= 1
            elif outer:
                left, levels = pop()
            else:
                ends.append(pos)
                left = 0
                levels = MAX_DEPTH
        self._left, self._levels, self._skip = left, levels, max(pos - size, 0)
        if not left and pos > size:
            ends.pop()
        if room < 0:
            self._check_sizes([first, *ends, size], base)
        self.partial = size - (ends[-1] if ends else first)
        self._seen = base + size
        return ends

    def _check_claim(self, lead: int, at: int, seen: int, claim: int) -> None:
        """Refuse the reserved byte, and a value that, `seen` bytes into its frame, claims too much more."""
        if lead == RESERVED:
            raise ProtocolError(f"{_place(at)}: 0xc1 is no value; does the client speak another protocol?")
        if seen + claim > self._max:
            raise self._too_large(at, f"0x{lead:02x} makes the frame at least {seen + claim} bytes long")

    def _check_sizes(self, bounds: list[int], base: int) -> None:
        for start, end in pairwise(bounds):
            if end - start > self._max:
                raise self._too_large(base + start, f"the frame is at least {end - start} bytes long")

    def _too_large(self, at: int, what: str) -> FrameTooLargeError:
        advice = "raise max_frame where that is a frame of this protocol"
        return FrameTooLargeError(f"{_place(at)}: {what}; at most {self._max} are allowed ({advice})")


def _place(at: int) -> str:
    return f"MessagePack, byte {at} of the stream"
