"""What is known of requests under way: of ordinary ones what they share, of a few a Call for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tcpgw.wire.codec import Kind, Message, Piece

if TYPE_CHECKING:
    from tcpgw.endpoints import Endpoint
    from tcpgw.relay.rpc.channel import Channel
    from tcpgw.relay.rpc.routing import Rule
    from tcpgw.relay.rpc.session import RpcSession
    from tcpgw.relay.tracing import RequestTrace


class Batch:
    """What requests that were read in one turn and have one rule share; else what one has for itself.

    `field` is as of a Call, of requests without one.
    """

    __slots__ = ("call", "came", "deadline", "field", "rule")

    def __init__(self, came: float, rule: Rule, call: Call | None = None) -> None:
        self.came = came  # time.monotonic(), to the accuracy of a turn
        self.rule = rule
        self.call = call
        self.deadline = came + rule.timeout if call is None else call.deadline
        self.field: tuple[int, int] | None = None


class Call:
    """A request that somebody must remember: one that waits, may be sent again, or has a rule of its own.

    From its reading until `done`: answered, failed, or of a client that is gone.

    `attempts` are where it is under way; more than one while it is hedged. `pieces` are given up with the
    sending unless the rule says that it may be sent again.
    """

    __slots__ = (
        "attempts", "body", "cause", "client", "deadline", "done", "field", "held", "is_request", "keep",
        "message", "pieces", "position", "retries", "retrying", "rule", "started", "trace", "tried",
        "until",
    )  # fmt: skip

    def __init__(
        self,
        client: RpcSession,
        message: Message,
        pieces: list[Piece],
        body: int,
        rule: Rule,
        position: int,
        started: float,
        deadline: float,
    ) -> None:
        self.client = client
        self.message = message
        self.is_request = message.kind is Kind.REQUEST  # else a notification, which nobody answers
        self.pieces: list[Piece] | None = pieces
        self.body = body  # bytes of the pieces
        self.rule = rule
        self.position = position
        self.started = started  # time.monotonic(), as all times here
        self.deadline = deadline
        self.field: tuple[int, int] | None = None  # where in the first piece it says how long it may take
        self.held = 0  # bytes reserved for it
        self.attempts: list[tuple[Channel, int]] = []
        self.tried: list[Endpoint] = []
        self.trace: RequestTrace | None = None  # where its steps are told, while somebody looks
        self.cause = ""  # what it failed of before, for who is told that it cannot be sent again
        self.until = 0.0  # when it has waited long enough, if it waits
        self.retries = 0
        self.retrying = False  # counted in the retry budget
        self.keep = False  # its pieces, after the sending: it may be sent again
        self.done = False
