"""Sinks that say when they are full, and streams cut where it matters: around LARGE, and byte by byte."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from hypothesis import strategies as st

from tcpgw.errors import ProtocolError
from tcpgw.wire.assembly import FrameAssembler, ObjectAssembler
from tcpgw.wire.codec import LARGE, Piece

Assembler = FrameAssembler | ObjectAssembler

SIZES = st.integers(0, 60) | st.sampled_from(
    [LARGE - 5, LARGE - 4, LARGE, LARGE + 1, 2 * LARGE + 7, 5 * LARGE]
)


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
    """

    def __init__(
        self,
        fills: Sequence[bool] = (),
        *,
        refuse: int = -1,
        ordinary: Callable[[bytes], bool] = lambda _: False,
    ) -> None:
        self.full = False
        self.messages: list[bytes] = []
        self.admitted: list[int] = []
        self.passed = 0
        self.fed = 0
        self.assembler: Assembler | None = None
        self._fills = iter(fills)
        self._refuse = refuse
        self._ordinary = ordinary

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
        self._keep(b"".join((data[pos:end], *tail)))
        self.check()

    def admit(self, size: int) -> bool:
        self._ready()
        self.full = next(self._fills, False)
        if not self.full:
            self.admitted.append(size)
        return not self.full

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
        """What was read and not given to the sink is held."""
        assert self.assembler is not None
        assert self.assembler.held == self.fed - self.passed
