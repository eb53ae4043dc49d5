"""Sinks that say when they are full, and streams cut where it matters: around LARGE, and byte by byte."""

import struct
from collections.abc import Callable, Sequence
from itertools import pairwise

import msgpack
import pytest
from hypothesis import strategies as st

from tcpgw.errors import ProtocolError
from tcpgw.wire.assembly import FrameAssembler, ObjectAssembler, Verdict, too_large
from tcpgw.wire.codec import LARGE, Piece
from tcpgw.wire.msgpack_scan import skip

Assembler = FrameAssembler | ObjectAssembler

SIZES = st.integers(0, 60) | st.sampled_from(
    [LARGE - 5, LARGE - 4, LARGE, LARGE + 1, 2 * LARGE + 7, 5 * LARGE]
)

STEP = 64 * 1024  # what a message of unknown length is admitted for at first
HEAD = 16  # bytes by which a message is known: the first of its body are among them


def body(size: int, seed: int) -> bytes:
    """Bytes of which no two pieces look alike."""
    return b"".join((seed + at).to_bytes(4) for at in range(0, size, 4))[:size]


@st.composite
def chunked(draw: st.DrawFn, stream: bytes) -> list[bytes]:
    """A stream in chunks: equal ones, of a byte each where it is short, or cut at a few places."""
    size = len(stream)
    least = 1 if size < LARGE else 97
    if draw(st.booleans()):
        step = draw(st.sampled_from([least, 7 * least, LARGE - 1, LARGE, LARGE + 1, size + 1]))
        return [stream[at : at + step] for at in range(0, size, step)]
    places = sorted(draw(st.lists(st.integers(0, size), max_size=8)))
    return [stream[start:end] for start, end in pairwise([0, *places, size]) if start < end]


class Collector:
    """A sink that keeps all messages, and is full whenever `fills` says so; after it, never.

    `ordinary` says which whole frames it takes in runs. Asks to `refuse` a message raise ProtocolError.
    Where `measure` is given, which tells a message's size from its head, what is `unwanted` by its first
    bytes is skipped, and so is what is beyond `most`, as soon as LARGE bytes or all have come.
    """

    def __init__(
        self,
        fills: Sequence[bool] = (),
        *,
        refuse: int = -1,
        ordinary: Callable[[bytes], bool] = lambda _: False,
        most: int = 0,
        unwanted: Callable[[bytes], bool] = lambda _: False,
        measure: Callable[[bytes, int], int] | None = None,
    ) -> None:
        self.full = False
        self.messages: list[bytes] = []
        self.skipped: list[tuple[int, bytes]] = []  # behind how many messages, and the first bytes
        self.admitted: list[int] = []
        self.passed = 0  # bytes, with all of a message that is being skipped
        self.fed = 0
        self.assembler: Assembler | None = None
        self._fills = iter(fills)
        self._refuse = refuse
        self._ordinary = ordinary
        self._most = most
        self._unwanted = unwanted
        self._measure = measure

    # ---- the sink ----

    def take(self, data: bytes, pos: int) -> int:
        self._ready()
        while not self.full and len(data) - pos >= 4:
            end = pos + 4 + int.from_bytes(data[pos : pos + 4])
            if end > len(data) or not self._ordinary(data[pos:end]) or len(self.messages) == self._refuse:
                break
            self._keep(data[pos:end])
            pos = end
        return pos

    def whole(self, data: bytes, pos: int, end: int, tail: Sequence[Piece]) -> None:
        self._ready()
        assert end - pos >= LARGE or not tail
        if len(self.messages) == self._refuse:
            raise ProtocolError("refused")
        message = b"".join((data[pos:end], *tail))
        if len(message) >= LARGE and self._unwanted(message[:HEAD]):
            self._skip(message, 0)
        else:
            self._keep(message)
        self.check()

    def admit(self, data: bytes, pos: int, total: int) -> Verdict:
        self._ready()
        assert len(data) - pos >= LARGE
        self.full = next(self._fills, False)
        if self.full:
            return Verdict.WAIT
        if self._unwanted(data[pos : pos + HEAD]):
            self._skip(data, pos)
            return Verdict.SKIP
        self.admitted.append(total)
        return Verdict.KEEP

    def oversized(self, data: bytes, pos: int, size: int) -> bool:
        self._ready()
        if self._measure is None:
            raise too_large(size, self._most)
        assert size > self._most
        assert len(data) - pos <= self._measure(data, pos)
        if len(data) - pos < LARGE and len(data) - pos < self._measure(data, pos):
            return False
        self._skip(data, pos)
        self.full = next(self._fills, False)
        return True

    def _skip(self, data: bytes, pos: int) -> None:
        assert self._measure is not None
        self.skipped.append((len(self.messages), data[pos : pos + HEAD]))
        self.passed += self._measure(data, pos)

    def _ready(self) -> None:
        assert not self.full

    def _keep(self, message: bytes) -> None:
        self.messages.append(message)
        self.passed += len(message)
        self.full = next(self._fills, False)

    # ---- its owner ----

    def drive(self, assembler: Assembler, chunks: Sequence[bytes], late: Sequence[bool] = ()) -> None:
        """Feed all of it, and resume after each chunk unless `late` says that the next comes before that."""
        self.assembler = assembler
        lates = iter(late)
        for chunk in chunks:
            self.fed += len(chunk)
            assembler.feed(chunk)
            self.check()
            if not next(lates, False):
                self.empty()
        self.empty()

    def empty(self) -> None:
        assert self.assembler is not None
        while self.full:
            self.full = False
            self.assembler.resume()
            self.check()

    def check(self) -> None:
        """What was read and neither given to the sink nor skipped is held."""
        assert self.assembler is not None
        assert self.assembler.held == max(self.fed - self.passed, 0)
        assert self.assembler.partial == (self.fed != self.passed)


# ---- both assemblers, and what they are for ----

MAX = 16 * LARGE
Make = Callable[[Collector, int], Assembler]


def frames_of(sink: Collector, most: int = MAX) -> Assembler:
    return FrameAssembler(sink, most)


def objects_of(sink: Collector, most: int = MAX) -> Assembler:
    return ObjectAssembler(sink, most)


def framed(size: int, seed: int = 0) -> bytes:
    return struct.pack(">I", size) + body(size, seed)


def bare(size: int, seed: int = 0) -> bytes:
    packed: bytes = msgpack.packb(body(size, seed))
    return packed


def framed_size(data: bytes, pos: int) -> int:
    return 4 + int.from_bytes(data[pos : pos + 4])


def bare_size(data: bytes, pos: int) -> int:
    return skip(data, pos) - pos


SIZE_OF = {"framed": framed_size, "bare": bare_size}
FORMS: dict[str, tuple[Make, Callable[[int, int], bytes]]] = {
    "framed": (frames_of, framed),
    "bare": (objects_of, bare),
}
forms = pytest.mark.parametrize("form", FORMS)


def short(message: bytes) -> bool:
    """What a codec would call ordinary, here: an even size, in one piece."""
    return len(message) % 2 == 0


@st.composite
def streams(draw: st.DrawFn, write: Callable[[int, int], bytes]) -> tuple[list[bytes], list[bytes], int]:
    """Messages, the chunks in which they come, and how many bytes of one more come behind the last."""
    sizes = draw(st.lists(SIZES, max_size=6))
    messages = [write(size, 1000 * place) for place, size in enumerate(sizes)]
    rest = write(3 * LARGE, 7)[: draw(st.sampled_from([0, 0, 1, 4, LARGE + 9]))]
    return messages, draw(chunked(b"".join([*messages, rest]))), len(rest)


fills = st.lists(st.booleans(), max_size=20)
