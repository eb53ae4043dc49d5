"""One connection to an instance that many clients share: who asked what, and which answer is whose.

A request is *pending* from its entering (`enter`, `pass_run`) until exactly one of: its answer came
(`receive`), its answer began to come and was not kept (`failed`), its deadline passed (`expire`), it was
withdrawn (`withdraw`), or the connection was lost (`lose`). From then on its number is unknown, and an answer
that still comes under it is dropped and counted. A number is used again after two thousand million others.

A large answer is collected only while the account has room for it. What is not kept is skipped, and the
answers before and behind it pass: they are other clients'.

Invariants: a request is pending in one Mux under one number; pending requests stand in the order of their
entering; `parts` holds, in order, the bytes that the connection was not given yet, and so all of the requests
numbered from `_unsent` on; `_reserved` is what the account holds for the answer that is being collected.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from tcpgw.errors import Code, ProtocolError
from tcpgw.wire.assembly import FrameAssembler, ObjectAssembler, Verdict, too_large
from tcpgw.wire.codec import (
    FIRST_NUMBER,
    LARGE,
    LAST_NUMBER,
    Batch,
    Codec,
    Entry,
    Kind,
    Message,
    Owner,
    Piece,
    Run,
)
from tcpgw.wire.frames import PRESETS, FrameSplitter
from tcpgw.wire.msgpack_scan import MsgpackSplitter

# Numbers start again when so few are left: more than are ever entered between two flushes.
_RESERVE = 1 << 24
# What was let in needs no second look at its size.
_NO_LIMIT = 1 << 62


# Bytes above which what looks like a length is none: text, such as an HTTP answer, reads as 512 MiB or more.
_MOST_SKIPPED = 1 << 28


class Account(Protocol):
    """How many bytes of large answers may be held at a time, for all connections together."""

    def take(self, size: int) -> bool:
        """Reserve, if there is room. Each success is followed by `give` of as much."""

    def give(self, size: int) -> None:
        """Free what was reserved."""


class Unsent(NamedTuple):
    """A request that never left, as in `Entry`, and its frame as the instance would have got it."""

    owner: Any
    token: bytes
    batch: Any
    frame: bytes


class Large(NamedTuple):
    """An answer that came in pieces, all of them views, and what is reserved for it in the account."""

    owner: Any
    parts: list[Piece]
    batch: Any
    reserved: int


class Failed(NamedTuple):
    """A request whose answer was not kept, as in `Entry`, and why."""

    owner: Any
    token: bytes
    batch: Any
    code: Code
    why: str


class Mux:
    """`codec` is what the instance speaks. Answers are made by `answers`, the framed form of the same.

    After `receive`, which may have raised, its holder takes and clears `large`, giving back what is reserved
    there, and `failed`. `broken` says how the instance broke the protocol, if it did: nothing more is read of
    it.
    """

    __slots__ = (
        "_account", "_answers", "_assembler", "_codec", "_collected", "_framed", "_max", "_reserved",
        "_runs", "_unsent", "broken", "dropped", "failed", "full", "large", "next", "parts", "pending",
        "refused", "told",
    )  # fmt: skip

    def __init__(
        self, codec: Codec, answers: Codec, max_frame: int, account: Account, *, framed: bool = True
    ) -> None:
        self.full = False  # an instance is always read: it must not wait for one slow client
        self.pending: dict[int, Entry] = {}
        self.parts: list[Piece] = []
        self.large: list[Large] = []
        self.failed: list[Failed] = []
        self.next = self._unsent = FIRST_NUMBER
        self.dropped = 0  # answers to nobody: late, withdrawn or never asked for
        self.refused = 0  # requests by the instance, which has nobody to ask here
        self.told = 0  # notifications by the instance, likewise
        self.broken: ProtocolError | None = None
        self._codec = codec
        self._answers = answers
        self._framed = framed
        self._max = max_frame
        self._account = account
        self._collected = 0  # the number of the answer that is being collected
        self._reserved = 0
        self._runs: list[Run] = []
        self._assembler = FrameAssembler(self, max_frame) if framed else ObjectAssembler(self, max_frame)

    # ---- to the instance ----

    def pass_run(
        self, data: bytes, pos: int, limit: int, owner: object, batch: Batch, name: bytes = b""
    ) -> tuple[int, int]:
        """Enter the ordinary requests from `pos` on, at most `limit`: where they end, and how many.

        With a `name`, as `Codec.name_at` tells it, up to the first of another.
        """
        first = self.next
        pos, self.next = self._codec.take_requests(
            data, pos, self.pending, self.parts.append, range(first, first + limit), owner, batch, name
        )
        return pos, self.next - first

    def pass_reads(
        self,
        reads: Mapping[Owner, bytes],
        most: int,
        batch: Batch | None,
        batches: Mapping[bytes, Batch | None] | None = None,
    ) -> list[tuple[Owner, bytes]]:
        """Enter the reads that are one ordinary request each; returns the others. See `Codec.take_reads`."""
        others, self.next = self._codec.take_reads(
            reads, most, self.pending, self.parts.append, self.next, batch, batches
        )
        return others

    def enter(self, token: bytes, body: int, pieces: Iterable[Piece], owner: object, batch: Batch) -> int:
        """Enter one request, whose `pieces` are the `body` bytes from its `rest` on. Returns its number."""
        number = self.next
        self.next = number + 1
        self.pending[number] = (owner, token, batch)
        self.parts.append(self._codec.request(token, body, number))
        self.parts.extend(pieces)
        return number

    def tell(self, token: bytes, body: int, pieces: Iterable[Piece]) -> None:
        """Pass a notification on."""
        self.parts.append(self._codec.notification(token, body))
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

        Where answers came whole in front of what breaks the protocol, or failed, they are returned, because
        they are pending no more; the next call raises. An owner that looks at `broken` need not wait for it.
        """
        if self.broken is not None:
            raise self.broken
        try:
            self._assembler.feed(data)
        except ProtocolError as error:
            self.broken = error
            if not self._runs and not self.large and not self.failed:
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
        else:
            self._unasked(message)

    def _unasked(self, message: Message) -> None:
        if message.kind == Kind.REQUEST:
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
            self._release()
            return
        owner, token, batch = entry
        body = end - message.rest + sum(map(len, tail))
        prefix = self._answers.answer(message, body, token)  # may raise: so it is still pending
        del self.pending[message.number]
        if tail:
            head = memoryview(data)[message.rest : end]
            parts: list[Piece] = [prefix, head, *(memoryview(piece) for piece in tail)]
            self.large.append(Large(owner, parts, batch, self._reserved))
            self._reserved = 0
        else:
            self._runs.append((owner, [prefix, b"", data[message.rest : end]], batch))

    def admit(self, data: bytes, pos: int, total: int) -> Verdict:
        """As `Sink.admit`: what somebody waits for, if the account has room. Never waits itself."""
        message = self._codec.read(data, pos, len(data))
        if message.number in self.pending and self._account.take(total - self._reserved):
            self._reserved, self._collected = total, message.number
            return Verdict.KEEP
        self._release()
        # Not OVERLOADED: that says that nothing was sent, and the instance has done its work.
        why = f"there is no room in rpc_memory for {total} bytes of its answer"
        self._fail(message, Code.UPSTREAM_LOST, why)
        return Verdict.SKIP

    def oversized(self, data: bytes, pos: int, size: int) -> bool:
        """As `Sink.oversized`: skips what can be a message, for the sake of the others on this connection."""
        if size > max(self._max, _MOST_SKIPPED):
            raise too_large(size, self._max)
        total = 4 + size if self._framed else size
        if len(data) - pos < min(total, LARGE):
            return False
        self._release()
        message = self._codec.read(data, pos, len(data))
        least = "" if self._framed else " or more"
        why = f"its answer has {size} bytes{least}, and max_frame allows less"
        self._fail(message, Code.FRAME_TOO_LARGE, why)
        return True

    def _fail(self, message: Message, code: Code, why: str) -> None:
        """Deal with a message that is not kept."""
        if message.kind != Kind.ANSWER:
            self._unasked(message)
        elif entry := self.pending.pop(message.number, None):
            self.failed.append(Failed(*entry, code, why))
        else:
            self.dropped += 1

    def _release(self) -> None:
        """Nobody wants the answer that was being collected, if one was."""
        reserved, self._reserved = self._reserved, 0
        if reserved:
            self._account.give(reserved)

    # ---- other ends ----

    def withdraw(self, number: int) -> bool:
        """Forget a request: its answer is not wanted any more. Returns whether it was pending."""
        self._forget(number)
        return self.pending.pop(number, None) is not None

    def expire(self, before: float, is_over: Callable[[Any], bool]) -> list[Entry]:
        """Take out the requests that came `before` that time and whose batch says that they are over."""
        over = []
        for number, (_, _, batch) in self.pending.items():
            if batch.came > before:
                break  # in the order of their coming, so all others came later, but for a turn of the loop
            if is_over(batch):
                over.append(number)
        for number in over:
            self._forget(number)
        return [self.pending.pop(number) for number in over]

    def _forget(self, number: int) -> None:
        """Skip the rest of an answer that nobody waits for any more, if it has begun to come."""
        if self._reserved and number == self._collected:
            self.dropped += 1
            self._release()
            self._assembler.skip()

    def lose(self) -> tuple[list[Entry], list[Unsent]]:
        """The connection is gone: empty the table. Returns what was sent, and what never was.

        A request that nobody could make out counts as sent: it cannot be sent again. What is in `large` and
        `failed` stays there. Never raises.
        """
        self._release()
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
