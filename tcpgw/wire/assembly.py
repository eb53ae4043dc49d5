"""From the chunks that a connection reads to whole messages, for the multiplexed side of the rpc plane.

States: at a boundary → within a small message (its bytes are kept and joined with what comes next) → or
within a large one that its sink admitted (its pieces are kept in a list and never joined: store and forward)
→ or within one that its sink had skipped (its bytes are thrown away as they come, and the messages around it
pass). A message is not passed on before it is whole: on a shared connection, whoever stops within one would
stop everybody.

What keeps this from growing without bound: `max_frame` for each message, the sink's `admit` for all large
ones together, and a sink that is `full` and whose owner then stops reading.
"""

import struct
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Protocol

from tcpgw.errors import FrameTooLargeError, ProtocolError
from tcpgw.wire.codec import LARGE, Piece
from tcpgw.wire.frames import Splitter
from tcpgw.wire.msgpack_scan import MsgpackSplitter

_U32 = struct.Struct(">I").unpack_from
# Of a splitter behind which messages can be skipped: one that refuses a message does not find its end.
_NO_LIMIT = 1 << 62
# Bytes that are asked for first where nothing tells how long a message will be.
_STEP = 64 * 1024


class Verdict(Enum):
    """What becomes of a large message."""

    KEEP = "keep"  # it is collected, and given to `whole`
    WAIT = "wait"  # the sink is `full`; it is asked again after `resume`
    SKIP = "skip"  # its bytes are thrown away; the sink has dealt with it


class Sink(Protocol):
    """Who takes the messages. Where `full`, nothing more is given to it until its owner calls `resume`."""

    full: bool

    def take(self, data: bytes, pos: int) -> int:
        """Take ordinary whole messages from `pos` on, as many as it likes; returns where it stopped."""

    def whole(self, data: bytes, pos: int, end: int, tail: Sequence[Piece]) -> None:
        """Take one message: `data[pos:end]`, which is all or at least LARGE bytes of it, and then `tail`."""

    def admit(self, data: bytes, pos: int, total: int) -> Verdict:
        """Whether a large message of `total` bytes, its length included, may be kept until it is whole.

        `data[pos:]` is what has come of it, LARGE bytes at least. Asked once, and again after each WAIT.
        Where nothing tells how long it will be, `total` is what it may grow to, and when it has, this is
        asked again with more. Each that was admitted is given to `whole` or to `oversized`, or dropped with
        the connection.
        """

    def oversized(self, data: bytes, pos: int, size: int) -> bool:
        """Have a message of `size` bytes, which is beyond `max_frame` and counts as that does, skipped.

        `data[pos:]` is what has come of it, or LARGE bytes of that at least. Asked as soon as it is seen to
        be too large; where nothing tells its size and it is not whole, `size` is the least that it can be.
        False: ask again when more has come, which ends with LARGE bytes or all of it. Raises
        FrameTooLargeError (`too_large`) where the connection cannot go on.
        """


class FrameAssembler:
    """Of frames with a 32-bit big-endian length in front, at most `max_frame` bytes each without it.

    With `inner` a frame's body must be one value for a new splitter of its, and nothing else: for receivers
    that see no lengths, and would take what is too much from the next message. That is looked at as it comes.
    `take` is never asked then, because it looks at less.
    """

    __slots__ = (
        "_data", "_inner", "_missing", "_most", "_ordinary", "_pieces", "_pos", "_sink", "_splitter",
    )  # fmt: skip

    def __init__(self, sink: Sink, max_frame: int, inner: Callable[[], Splitter] | None = None) -> None:
        self._sink = sink
        self.limit(max_frame, inner)
        self._data: bytes | None = None  # not passed on yet, from _pos on
        self._pos = 0
        self._pieces: list[bytes] = []  # of a large frame; none of one that is skipped
        self._missing = 0  # bytes that it lacks
        self._splitter: Splitter | None = None  # of the large frame's body

    def limit(self, max_frame: int, inner: Callable[[], Splitter] | None = None) -> None:
        """Judge the frames that begin from now on by another limit, and their bodies by another `inner`."""
        self._inner = inner
        self._most = 4 + max_frame
        # Of how much `take` is asked. It knows no limit: a frame beyond it must not be whole within that.
        self._ordinary = self._most if inner is None else -1

    @property
    def held(self) -> int:
        """Bytes that were read and not passed on or skipped. What the sink is being given is passed on."""
        return (len(self._data) - self._pos if self._data else 0) + sum(map(len, self._pieces))

    @property
    def partial(self) -> bool:
        """Whether a message has begun and was not passed on, be it one of which nothing is held."""
        return self._missing > 0 or (self._data is not None and self._pos < len(self._data))

    def feed(self, data: bytes) -> None:
        """Give what was read. Raises ProtocolError; `held` then tells where, and this is spent."""
        if self._data is not None:
            self._process(self._data[self._pos :] + data, 0)
        elif self._missing or self._sink.full:
            self._process(data, 0)
        else:
            # Where a frame beyond the limit may be whole already, each is measured instead.
            pos = self._sink.take(data, 0) if len(data) <= self._ordinary else 0
            if pos < len(data):
                self._rest(data, pos)

    def skip(self) -> None:
        """Throw away what has come, and what comes, of the large message that is being collected."""
        self._pieces = []

    def resume(self) -> None:
        """The sink is not full any more: give it what was kept. May fill it again."""
        if self._data is not None:
            self._process(self._data, self._pos)

    def _process(self, data: bytes, pos: int) -> None:
        """`pos` is 0 within a large frame."""
        if self._missing and not self._pieces:
            pos = min(self._missing, len(data))
            self._missing -= pos
        if self._sink.full:
            self._data, self._pos = (data, pos) if pos < len(data) else (None, 0)
            return
        self._data = None
        if self._pieces:
            pos = self._collect(data)
        elif 0 < len(data) - pos <= self._ordinary:
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
                    if not sink.oversized(data[: pos + total], pos, total - 4):
                        break
                    self._missing = max(pos + total - size, 0)
                    pos = min(pos + total, size)
                elif size - pos < total:
                    if size - pos < LARGE or not self._begin(data, pos, total):
                        break
                    pos = size
                else:
                    if self._inner is not None:
                        _check(self._inner(), data[pos + 4 : pos + total], last=True)
                    self._pos = pos + total
                    sink.whole(data, pos, pos + total, ())
                    pos += total
                if 0 < size - pos <= self._ordinary and not sink.full:
                    pos = sink.take(data, pos)
        finally:
            self._pos = pos
        if pos == size:
            self._data = None

    def _begin(self, data: bytes, pos: int, total: int) -> bool:
        """Begin to collect or to skip a large frame. False: the sink is full."""
        verdict = self._sink.admit(data, pos, total)
        if verdict is Verdict.WAIT:
            return False
        if verdict is Verdict.KEEP:
            if self._inner is not None:
                self._splitter = self._inner()
                _check(self._splitter, data[pos + 4 :], last=False)
            self._pieces = [data[pos:]]
        self._missing = total - (len(data) - pos)
        return True

    def _collect(self, data: bytes) -> int:
        """Take what a large frame lacks, or as much as there is of it. Returns where that ends."""
        missing, pieces = self._missing, self._pieces
        end = min(missing, len(data))
        self._data, self._pos = data, 0
        if self._splitter is not None:
            _check(self._splitter, data[:end], last=end == missing)
        self._pos = end
        self._missing -= end
        if self._missing:
            _join(pieces, data)
            return end
        self._pieces, self._splitter = [], None
        head, *tail = pieces
        try:
            self._sink.whole(head, 0, len(head), [*tail, _cut(data, end)])
        except ProtocolError:
            self._pieces, self._pos = pieces, 0
            raise
        return end


class ObjectAssembler:
    """Of messages that only a splitter can tell apart.

    A `splitter` with a limit refuses a message as soon as that claims more, and nothing can be skipped then.
    Where none is given, one without a limit is made, and a message is too large when so much has come.

    How long a message will be nobody knows. With a limit the sink is asked to admit as much as that, once:
    so it may have it wait. Without one, where nothing may wait, it is asked for twice as much each time.
    """

    __slots__ = (
        "_chunks", "_least", "_max", "_pieces", "_place", "_pos", "_room", "_sink", "_size", "_splitter",
        "_verdict",
    )  # fmt: skip

    def __init__(self, sink: Sink, max_frame: int, splitter: Splitter | None = None) -> None:
        self._sink = sink
        self._splitter = splitter or MsgpackSplitter(_NO_LIMIT)
        self._max = max_frame
        self._least = max_frame if splitter else _STEP
        self._room = 0  # bytes that a message may grow to, as admitted
        # Not passed on yet, with the ends of the messages in each; the first from _pos and its end _place on.
        self._chunks: deque[tuple[bytes, list[int]]] = deque()
        self._pos = 0
        self._place = 0
        self._pieces: list[bytes] = []  # of a message that is not whole yet
        self._size = 0  # of all of them
        self._verdict: Verdict | None = None  # on that message, if it is large. WAIT: to be asked for

    def limit(self, max_frame: int) -> None:
        """Judge by another limit, the message that is coming too; of those whose splitter has a limit."""
        self._max = self._least = max_frame
        if isinstance(self._splitter, MsgpackSplitter):
            self._splitter.limit(max_frame)

    @property
    def held(self) -> int:
        """As `FrameAssembler.held`."""
        return sum(len(data) for data, _ in self._chunks) - self._pos + self._size

    @property
    def partial(self) -> bool:
        """As `FrameAssembler.partial`."""
        return self._verdict is Verdict.SKIP or self.held > 0

    def feed(self, data: bytes) -> None:
        """As `FrameAssembler.feed`."""
        ends: list[int] = []
        self._chunks.append((data, ends))
        ends += self._splitter.feed(data)
        self.resume()

    def resume(self) -> None:
        """As `FrameAssembler.resume`."""
        sink, chunks = self._sink, self._chunks
        while not sink.full or self._verdict is Verdict.SKIP:
            if self._verdict is not None and self._verdict is Verdict.WAIT:
                self._ask()
            elif not chunks:
                break
            else:
                data, ends = chunks[0]
                if self._place < len(ends):
                    self._pass_on(data, ends[self._place])
                    continue
                if self._pos < len(data):
                    self._keep(data)
                chunks.popleft()
                self._pos = self._place = 0

    def _pass_on(self, data: bytes, end: int) -> None:
        pos, self._pos = self._pos, end
        self._place += 1
        if self._pieces:
            self._complete(data[pos:end])
        elif self._verdict is not None:
            self._verdict = None  # it was skipped
        else:
            try:
                if end - pos > self._max:
                    self._sink.oversized(data[:end], pos, end - pos)
                else:
                    self._sink.whole(data, pos, end, ())
            except ProtocolError:
                self._pos = pos
                raise

    def _complete(self, data: bytes) -> None:
        """As `_pass_on`, of a message whose last piece is `data`."""
        pieces, self._pieces = self._pieces, []
        size, self._size = self._size + len(data), 0
        self._verdict = None
        _join(pieces, data)
        head, *tail = pieces
        try:
            if size > self._max:
                self._sink.oversized(head, 0, size)
            else:
                self._sink.whole(head, 0, len(head), tail)
        except ProtocolError:
            self._pieces, self._size = pieces, size
            raise

    def _keep(self, data: bytes) -> None:
        """Keep the beginning of a message, or what comes next of it, unless it is skipped."""
        if self._verdict is Verdict.SKIP:
            return
        pos, self._pos = self._pos, len(data)
        pieces = self._pieces
        _join(pieces, data[pos:])
        self._size += len(data) - pos
        # It lacks a byte at least.
        if self._size >= self._max:
            if self._sink.oversized(pieces[0], 0, self._size + 1):
                self.skip()
        elif self._verdict is None:
            self._verdict = Verdict.WAIT if len(pieces[0]) >= LARGE else None
        elif self._size > self._room:
            self._verdict = Verdict.WAIT

    def _ask(self) -> None:
        self._room = min(self._max, max(self._least, 2 * self._size))
        self._verdict = self._sink.admit(self._pieces[0], 0, self._room)
        if self._verdict is Verdict.SKIP:
            self.skip()

    def skip(self) -> None:
        """As `FrameAssembler.skip`."""
        self._verdict = Verdict.SKIP
        self._pieces = []
        self._size = 0


def too_large(size: int, max_frame: int) -> FrameTooLargeError:
    """What a sink raises that cannot have a message skipped. `size` is what `oversized` was told."""
    return FrameTooLargeError(f"a frame of {size} bytes; max_frame allows {max_frame}")


def _check(splitter: Splitter, body: bytes, *, last: bool) -> None:
    """Raise ProtocolError where a frame with `body` next, and at its `last`, is not one value."""
    try:
        ends = splitter.feed(body)
    except ProtocolError:  # in the words of a stream
        ends = [-1]
    if ends != ([len(body)] if last else []):
        raise ProtocolError("the frame does not hold one MessagePack value, and nothing else")


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
