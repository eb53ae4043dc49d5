"""What a correlating codec offers: which message is which, and how it passes under another number.

A correlating protocol marks each request with an id and its answer with the same one. So requests of many
clients can share a connection to an instance: each goes under a number of the gateway's own, and its answer
comes back under the id that its client gave, byte for byte. Bodies are neither decoded nor copied.

A codec is stateless. *Frame* means all bytes of a message, a length in front included where the framing has
one. Most messages are ordinary: a whole request, or a whole answer. `take_requests` and `take_answers` pass
runs of these in one call with everything inline, because a call for each would cost a third of a pipelined
request; whatever they stop at is read by `read`. Both ways lead to the same bytes.
"""

from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, Protocol, TypeVar

from tcpgw.errors import Code

FIRST_NUMBER = 1 << 16
"""The gateway's own numbers start here: MessagePack's shortest form of all up to LAST_NUMBER is 5 bytes, so
that every instance echoes the same form."""
LAST_NUMBER = (1 << 31) - 1
"""Thrift's ids are signed."""
LARGE = 8192
"""Bytes from which a body is passed on as a view instead of a copy, if it is half of what was read or more. A
copy is cheaper below: the view is an object more, and keeps all that was read with it."""
PARTS = 3
"""Parts that `take_answers` makes of each answer."""

Path = tuple[int | str, ...]
"""Where a value stands within a request's parameters: `(0, "session")` for `params[0].session`."""

Piece = bytes | memoryview


class Batch(Protocol):
    """What requests that came together share: whatever else their owner wants to know of each."""

    came: float  # seconds, to the accuracy of a turn of the loop


Entry = tuple[Any, bytes, Any]
"""A request in flight: its owner, the token that its answer needs, and its Batch."""
Run = tuple[Any, list[Piece], Any]
"""Answers that follow each other and have one owner and one Batch: PARTS parts for each."""


Owner = TypeVar("Owner")
Glance = tuple[bytes, bytes, int, int]
"""Of an ordinary request: its token, its name as it is encoded, its `rest`, and its end."""


class Kind(IntEnum):
    REQUEST = 0
    ANSWER = 1
    NOTIFY = 2


class Message(NamedTuple):
    """The head of a message, as far as a gateway needs it.

    `token` is what the codec needs of this message later: of a request, all that `answer` and `error` must
    know to answer it (its id as the client encoded it, and in Thrift its name and encoding); of an answer,
    its own head. `number` is an answer's id, which was the gateway's number, and -1 for all others. `rest` is
    the offset of the first byte after the id, from where on the frame passes unchanged.
    """

    kind: Kind
    method: bytes
    token: bytes
    number: int
    rest: int


class Codec(Protocol):
    """One protocol in one framing. `read` and `answer` raise ProtocolError for what the protocol forbids."""

    lead: int
    """Bytes with which a span begins that say what its value is, and not its value."""

    def read(self, data: bytes, pos: int, end: int) -> Message:
        """Read the head of the frame whose first bytes are `data[pos:end]`.

        Those are all of it or, of a large one, at least its first LARGE bytes.
        """

    def request(self, token: bytes, body: int, number: int) -> bytes:
        """What stands before the `body` bytes from `rest` on when the request goes to an instance."""

    def notification(self, token: bytes, body: int) -> bytes:
        """As `request`, of a message that nobody answers."""

    def answer(self, message: Message, body: int, token: bytes) -> bytes:
        """What stands before the `body` bytes from `rest` on when the answer goes to the client."""

    def unknown(self, start: bytes) -> bytes:
        """Return a token for a request that could not be read, of a client whose first bytes were `start`."""

    def error(self, token: bytes, code: Code, text: str, endpoint: str | None = None) -> bytes:
        """Make a whole frame that answers the request of `token` with an error."""

    def done(self, token: bytes) -> bytes:
        """Make a whole frame that answers the request of `token`: done, and there is nothing to say."""

    def take_requests(
        self,
        data: bytes,
        pos: int,
        pending: dict[int, Entry],
        add: Callable[[Piece], object],
        numbers: range,
        owner: object,
        batch: Batch,
        name: bytes = b"",
    ) -> tuple[int, int]:
        """Pass on the ordinary requests from `pos` on, at most one for each of `numbers`, in order.

        Enters each in `pending`, for `owner` and `batch`, and gives its parts to `add`. Returns the offset
        after the last one, and the number after the last one used. Stops before what is incomplete or no
        request, and where a `name` is given before what has another.
        """

    def take_reads(
        self,
        reads: Mapping[Owner, bytes],
        most: int,
        pending: dict[int, Entry],
        add: Callable[[Piece], object],
        number: int,
        batch: Batch | None,
        batches: Mapping[bytes, Batch | None] | None,
    ) -> tuple[list[tuple[Owner, bytes]], int]:
        """As `take_requests`, of many owners' reads that are one ordinary request each.

        Of at most `most` bytes, which is below LARGE. Numbers them from `number` on; returns the reads that
        are anything else, and the next number. Their batch is the one that `batches` has for their name, or
        `batch` where there are none; one that has None is no ordinary request.
        """

    def glance(self, data: bytes, pos: int) -> Glance | None:
        """Look at the ordinary request at `pos`; None where there is none, whole and with a name to see."""

    def name_at(self, data: bytes, pos: int) -> bytes:
        """Return the name of the request at `pos` as it is encoded, or b"" where that cannot be seen.

        It holds its own length, so bytes that begin with it are the same name. Need not be whole or valid:
        `take_requests` looks at that.
        """

    def method(self, name: bytes) -> bytes:
        """Return the method that `name_at` found."""

    def take_answers(
        self, data: bytes, pos: int, pending: dict[int, Entry], runs: list[Run]
    ) -> tuple[int, int]:
        """Give back the ordinary answers from `pos` on: append to `runs`, and take them out of `pending`.

        Returns the offset after the last one, and how many were to nobody (late or never asked) and so
        dropped. Stops before what is incomplete or no answer.
        """

    def errors(self, parts: Sequence[Piece]) -> list[bool]:
        """Say of each answer of a Run, in their order, whether it is an error by the protocol itself."""

    def failures(self, parts: Sequence[Piece]) -> int:
        """How many of them are."""

    def find(self, data: bytes, rest: int, path: Path) -> tuple[int, int] | None:
        """Return the span in `data` of a value of a request's parameters, or None where there is none.

        Never raises: the instance may make more of what makes no sense here.
        """

    def end(self, data: bytes, start: int) -> int:
        """Return where a span that begins at `start` ends, beyond `data` where that is not all there.

        The `lead` bytes from `start` on are those of a span that `find` found.
        """

    def key(self, data: bytes, span: tuple[int, int]) -> bytes | None:
        """Return a found text, byte string or whole number as bytes to hash, or None of another type."""

    def number(self, data: bytes, span: tuple[int, int]) -> float | None:
        """Return a found number, or None of another type."""

    def put_number(self, data: bytes, span: tuple[int, int], value: float) -> bytes:
        """Return what stands in the span's place to say `value` (rounded where the found one was whole)."""
