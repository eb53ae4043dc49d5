"""One connection to an instance that many clients share: who asked what, and which answer is whose.

A request is *pending* from its entering (`enter`, `pass_run`) until exactly one of: its answer came
(`receive`), its deadline passed (`expire`), it was withdrawn (`withdraw`), or the connection was lost
(`lose`). From then on its number is unknown, and an answer that still comes under it is dropped and counted.
A number is used again after two thousand million others.

Invariants: a request is pending in one Mux under one number; pending requests stand in the order of their
entering; `parts` holds, in order, the bytes that the connection was not given yet, and so all of the requests
numbered from `_unsent` on.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from tcpgw.errors import Code, ProtocolError
from tcpgw.wire.assembly import FrameAssembler, ObjectAssembler
from tcpgw.wire.codec import FIRST_NUMBER, LAST_NUMBER, Batch, Codec, Entry, Kind, Message, Piece, Run
from tcpgw.wire.frames import PRESETS, FrameSplitter
from tcpgw.wire.msgpack_scan import MsgpackSplitter

# Numbers start again when so few are left: more than are ever entered between two flushes.
_RESERVE = 1 << 24
# What was let in needs no second look at its size.
_NO_LIMIT = 1 << 62


class Unsent(NamedTuple):
    """A request that never left: its batch, its token, and its frame as the instance would have got it."""

    batch: Batch
    token: bytes
    frame: bytes


class Mux:
    """`codec` is what the instance speaks. Answers are made by `answers`, the framed form of the same.

    After `receive`, `large` has the answers that came in pieces, all of them views: the owner takes them and
    clears it. `broken` says how the instance broke the protocol, if it did: nothing more is read of it.
    """

    __slots__ = (
        "_answers", "_assembler", "_codec", "_framed", "_runs", "_unsent",
        "broken", "dropped", "full", "large", "next", "parts", "pending", "refused", "told",
    )  # fmt: skip

    def __init__(self, codec: Codec, answers: Codec, max_frame: int, *, framed: bool = True) -> None:
        self.full = False  # an instance is always read: it must not wait for one slow client
        self.pending: dict[int, Entry] = {}
        self.parts: list[Piece] = []
        self.large: list[Run] = []
        self.next = self._unsent = FIRST_NUMBER
        self.dropped = 0  # answers to nobody: late, withdrawn or never asked for
        self.refused = 0  # requests by the instance, which has nobody to ask here
        self.told = 0  # notifications by the instance, likewise
        self.broken: ProtocolError | None = None
        self._codec = codec
        self._answers = answers
        self._framed = framed
        self._runs: list[Run] = []
        self._assembler = (
            FrameAssembler(self, max_frame)
            if framed
            else ObjectAssembler(self, max_frame, MsgpackSplitter(max_frame))
        )

    # ---- to the instance ----

    def pass_run(self, data: bytes, pos: int, limit: int, batch: Batch) -> tuple[int, int]:
        """Enter the ordinary requests from `pos` on, at most `limit`: where they end, and how many."""
        first = self.next
        pos, self.next = self._codec.take_requests(
            data, pos, self.pending, self.parts.append, range(first, first + limit), batch
        )
        return pos, self.next - first

    def enter(self, message: Message, body: int, pieces: Iterable[Piece], batch: Batch) -> int:
        """Enter one request, whose `pieces` are the `body` bytes from its `rest` on. Returns its number."""
        number = self.next
        self.next = number + 1
        self.pending[number] = (batch, message.token)
        self.parts.append(self._codec.request(message, body, number))
        self.parts.extend(pieces)
        return number

    def tell(self, message: Message, body: int, pieces: Iterable[Piece]) -> None:
        """Pass a notification on."""
        self.parts.append(self._codec.notification(message, body))
        self.parts.extend(pieces)

    def flush(self) -> list[Piece]:
        """What the connection is to be given now. From here on it counts as sent."""
        parts, self.parts = self.parts, []
        if self.next > LAST_NUMBER - _RESERVE:
            self.next = FIRST_NUMBER
        self._unsent = self.next
        return parts

    # ---- from the instance ----

    def receive(self, data: bytes) -> list[Run]:
        """Take what the instance sent; returns the answers to give. Raises ProtocolError: then `lose`.

        Where answers came whole in front of what breaks the protocol, they are returned, because they are
        pending no more; the next call raises. An owner that looks at `broken` need not wait for it.
        """
        if self.broken is not None:
            raise self.broken
        try:
            self._assembler.feed(data)
        except ProtocolError as error:
            self.broken = error
            if not self._runs and not self.large:
                raise
        runs = self._runs
        if runs:
            self._runs = []
        return runs

    def take(self, data: bytes, pos: int) -> int:
        """As `Sink.take`."""
        pos, dropped = self._codec.take_answers(data, pos, self.pending, self._runs)
        if dropped:
            self.dropped += dropped
        return pos

    def whole(self, data: bytes, pos: int, end: int, tail: Sequence[Piece]) -> None:
        """As `Sink.whole`."""
        message = self._codec.read(data, pos, end)
        if message.kind == Kind.ANSWER:
            self._answer(message, data, end, tail)
        elif message.kind == Kind.REQUEST:
            # An instance that must call its clients needs a connection for each: codec "opaque".
            self.refused += 1
            self.parts.append(
                self._codec.error(message.token, Code.DENIED, "the gateway takes no requests from instances")
            )
        else:
            self.told += 1

    def _answer(self, message: Message, data: bytes, end: int, tail: Sequence[Piece]) -> None:
        entry = self.pending.get(message.number)
        if entry is None:
            self.dropped += 1
            return
        batch, token = entry
        body = end - message.rest + sum(map(len, tail))
        prefix = self._answers.answer(message, body, token)  # may raise: so it is still pending
        del self.pending[message.number]
        if tail:
            head = memoryview(data)[message.rest : end]
            self.large.append((batch, [prefix, head, *(memoryview(piece) for piece in tail)]))
        else:
            self._runs.append((batch, [prefix, b"", data[message.rest : end]]))

    def admit(self, size: int) -> bool:  # noqa: ARG002
        """As `Sink.admit`: one at a time for each connection, of at most max_frame bytes."""
        return True

    # ---- other ends ----

    def withdraw(self, number: int) -> bool:
        """Forget a request: its answer is not wanted any more. Returns whether it was pending."""
        return self.pending.pop(number, None) is not None

    def expire(self, before: float, is_over: Callable[[Batch], bool]) -> list[Entry]:
        """Take out the requests that came `before` that time and are over."""
        over = []
        for number, (batch, _) in self.pending.items():
            if batch[1] > before:
                break  # in the order of their coming, so all others came later
            if is_over(batch):
                over.append(number)
        return [self.pending.pop(number) for number in over]

    def lose(self) -> tuple[list[Entry], list[Unsent]]:
        """The connection is gone: empty the table. Returns what was sent, and what never was.

        A request that nobody could make out counts as sent: it cannot be sent again. Never raises.
        """
        unsent = list(self._cut_unsent())
        sent = list(self.pending.values())
        self.pending.clear()
        return sent, unsent

    def _cut_unsent(self) -> Iterator[Unsent]:
        # Requests were numbered in the order in which they stand in `parts`, one after the other.
        data = b"".join(self.parts)
        self.parts = []
        number = self._unsent
        for pos, end in pairwise((0, *self._ends(data))):
            try:
                is_request = self._codec.read(data, pos, end).kind == Kind.REQUEST
            except ProtocolError:  # one that passed in a run, which looks at less: it stays among the sent
                number += 1
                continue
            if is_request:
                if entry := self.pending.pop(number, None):
                    yield Unsent(*entry, data[pos:end])
                number += 1

    def _ends(self, data: bytes) -> list[int]:
        if self._framed:
            return FrameSplitter(PRESETS["u32be"], _NO_LIMIT).feed(data)
        try:
            return MsgpackSplitter(_NO_LIMIT).feed(data)
        except ProtocolError:
            return []
