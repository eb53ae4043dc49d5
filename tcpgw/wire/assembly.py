"""From the chunks that a connection reads to whole messages, for the multiplexed side of the rpc plane.

States: at a boundary → within a small message (its bytes are kept and joined with what comes next) → or
within a large one (its pieces are kept in a list and never joined: store and forward). A message is not
passed on before it is whole: on a shared connection, whoever stops within one would stop everybody.

What keeps this from growing without bound: `max_frame` for each message, the sink's `admit` for all large
ones together, and a sink that is `full` and whose owner then stops reading.
"""

import struct
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from tcpgw.errors import FrameTooLargeError, ProtocolError
from tcpgw.wire.codec import LARGE, Piece
from tcpgw.wire.frames import Splitter

_U32 = struct.Struct(">I").unpack_from


class Sink(Protocol):
    """Who takes the messages. Where `full`, nothing more is given to it until its owner calls `resume`."""

    full: bool

    def take(self, data: bytes, pos: int) -> int:
        """Take ordinary whole messages from `pos` on, as many as it likes; returns where it stopped."""

    def whole(self, data: bytes, pos: int, end: int, tail: Sequence[Piece]) -> None:
        """Take one message: `data[pos:end]`, which is all or at least LARGE bytes of it, and then `tail`."""

    def admit(self, size: int) -> bool:
        """Whether a large message of `size` bytes may be kept until it is whole; `full` turns True if not.

        Each that was admitted is given to `whole` or dropped with the connection.
        """


class FrameAssembler:
    """Of frames with a 32-bit big-endian length in front, at most `max_frame` bytes each without it."""

    __slots__ = ("_data", "_missing", "_most", "_pieces", "_pos", "_sink")

    def __init__(self, sink: Sink, max_frame: int) -> None:
        self._sink = sink
        self._most = 4 + max_frame
        self._data: bytes | None = None  # not passed on yet, from _pos on
        self._pos = 0
        self._pieces: list[bytes] = []  # of a large frame
        self._missing = 0  # bytes that it lacks

    @property
    def held(self) -> int:
        """Bytes that were read and not passed on. What the sink is being given is passed on."""
        return (len(self._data) - self._pos if self._data else 0) + sum(map(len, self._pieces))

    def feed(self, data: bytes) -> None:
        """Give what was read. Raises ProtocolError; `held` then tells where, and this is spent."""
        if self._data is not None:
            self._process(self._data[self._pos :] + data, 0)
        elif self._missing or self._sink.full:
            self._process(data, 0)
        else:
            # `take` knows no limit. Where a frame beyond it may be whole already, each is measured instead.
            pos = self._sink.take(data, 0) if len(data) <= self._most else 0
            if pos < len(data):
                self._rest(data, pos)

    def resume(self) -> None:
        """The sink is not full any more: give it what was kept. May fill it again."""
        if self._data is not None:
            self._process(self._data, self._pos)

    def _process(self, data: bytes, pos: int) -> None:
        if self._sink.full:
            self._data, self._pos = data, pos
            return
        self._data = None
        if self._missing:
            pos = self._collect(data)
        elif len(data) - pos <= self._most:
            pos = self._sink.take(data, pos)
        self._rest(data, pos)

    def _rest(self, data: bytes, pos: int) -> None:
        """What the sink did not take as ordinary: a message of another kind, or one that is not whole yet."""
        sink, size, most = self._sink, len(data), self._most
        self._data = data
        try:
            while not sink.full and size - pos >= 4:
                total = 4 + _U32(data, pos)[0]
                if total > most:
                    raise FrameTooLargeError(f"a frame of {total - 4} bytes; max_frame allows {most - 4}")
                if size - pos >= total:
                    self._pos = pos + total
                    sink.whole(data, pos, pos + total, ())
                    pos += total
                    if 0 < size - pos <= most and not sink.full:
                        pos = sink.take(data, pos)
                elif size - pos < LARGE or not sink.admit(total):
                    break
                else:
                    self._pieces = [data[pos:]]
                    self._missing = total - (size - pos)
                    pos = size
        finally:
            self._pos = pos
        if pos == size:
            self._data = None

    def _collect(self, data: bytes) -> int:
        """Take what a large frame lacks, or as much as there is of it. Returns where that ends."""
        missing, pieces = self._missing, self._pieces
        if len(data) < missing:
            _join(pieces, data)
            self._missing -= len(data)
            return len(data)
        self._data, self._pos = data, missing
        self._pieces, self._missing = [], 0
        head, *tail = pieces
        try:
            self._sink.whole(head, 0, len(head), [*tail, _cut(data, missing)])
        except ProtocolError:
            self._pieces, self._pos = pieces, 0
            raise
        return missing


class ObjectAssembler:
    """Of messages that only a splitter can tell apart."""

    __slots__ = ("_admitted", "_chunks", "_max", "_pieces", "_place", "_pos", "_sink", "_splitter")

    def __init__(self, sink: Sink, max_frame: int, splitter: Splitter) -> None:
        self._sink = sink
        self._splitter = splitter
        self._max = max_frame
        # Not passed on yet, with the ends of the messages in each; the first from _pos and its end _place on.
        self._chunks: deque[tuple[bytes, list[int]]] = deque()
        self._pos = 0
        self._place = 0
        self._pieces: list[bytes] = []  # of a message that is not whole yet
        self._admitted = False

    @property
    def held(self) -> int:
        """As `FrameAssembler.held`."""
        return sum(len(data) for data, _ in self._chunks) - self._pos + sum(map(len, self._pieces))

    def feed(self, data: bytes) -> None:
        """As `FrameAssembler.feed`."""
        ends: list[int] = []
        self._chunks.append((data, ends))
        ends += self._splitter.feed(data)
        self.resume()

    def resume(self) -> None:
        """As `FrameAssembler.resume`."""
        while self._chunks and not self._sink.full:
            data, ends = self._chunks[0]
            if self._place < len(ends):
                self._pass_on(data, ends[self._place])
            elif self._pos == len(data) or self._keep(data):
                self._chunks.popleft()
                self._pos = self._place = 0

    def _pass_on(self, data: bytes, end: int) -> None:
        pos, self._pos = self._pos, end
        self._place += 1
        pieces, self._pieces, self._admitted = self._pieces, [], False
        try:
            if pieces:
                _join(pieces, data[pos:end])
                head, *tail = pieces
                self._sink.whole(head, 0, len(head), tail)
            else:
                self._sink.whole(data, pos, end, ())
        except ProtocolError:
            self._pieces = pieces or [data[pos:end]]
            raise

    def _keep(self, data: bytes) -> bool:
        """The beginning of a message. How long it will be nobody knows, so the most is asked for."""
        if self._pieces and len(self._pieces[0]) >= LARGE and not self._admitted:
            self._admitted = self._sink.admit(self._max)
            if not self._admitted:
                return False
        _join(self._pieces, data[self._pos :])
        return True


def _join(pieces: list[bytes], piece: bytes) -> None:
    """Add a piece, in a way that leaves none but the last below LARGE.

    In the first one the message's head is read, and the many of a message that drips in byte by byte would
    take forty times its memory.
    """
    if pieces and len(pieces[-1]) < LARGE:
        pieces[-1] += piece
    else:
        pieces.append(piece)


def _cut(data: bytes, end: int) -> Piece:
    return data[:end] if end < LARGE else memoryview(data)[:end]
