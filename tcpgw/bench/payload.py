"""What requests carry: bytes by which every answer can be checked, whole or in pieces."""

import random

Piece = bytes | memoryview

PERIOD = (1 << 20) - 3
"""Bytes after which the stream begins anew: a prime, so that no power of two makes requests equal."""
_SPAN = 256 << 10  # what can be compared or cut at once: uvloop reads at most so much
_COPIED = 8192  # a copy of so little is cheaper than a view of it


class Stream:
    """An endless stream of random bytes, the same in every process; a payload is any part of it.

    The whole stream is kept once, with a bit of its beginning behind its end. So a check is one comparison,
    and a payload that belongs to another request or another connection differs (of 4 bytes and more all
    but surely).
    """

    def __init__(self) -> None:
        period = random.Random(0).randbytes(PERIOD)
        self._bytes = period + period[:_SPAN]
        self._view = memoryview(self._bytes)

    def cut(self, at: int, size: int) -> list[Piece]:
        """The `size` bytes from `at` on."""
        at %= PERIOD
        if size <= _COPIED:
            return [self._bytes[at : at + size]]
        pieces: list[Piece] = []
        while size > 0:
            part = self._view[at : at + min(size, _SPAN)]
            pieces.append(part)
            size -= len(part)
            at = (at + len(part)) % PERIOD
        return pieces

    def matches(self, data: Piece, at: int) -> bool:
        """Whether `data` is what stands in the stream from `at` on."""
        if len(data) <= _SPAN:
            return self._bytes.startswith(data, at % PERIOD)
        parts = range(0, len(data), _SPAN)
        return all(self._bytes.startswith(data[part : part + _SPAN], (at + part) % PERIOD) for part in parts)
