"""What a client sends while somebody traces it: as many of its requests as there is room for are told of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tcpgw.relay.rpc.intake import Intake
from tcpgw.wire.codec import Piece

if TYPE_CHECKING:
    from tcpgw.relay.rpc.call import Call
    from tcpgw.relay.rpc.plane import RpcPlane
    from tcpgw.relay.rpc.session import RpcSession
    from tcpgw.relay.tracing import Trace
    from tcpgw.wire.codec import Message


class TracedIntake(Intake):
    """An Intake that gives each request that is told of a Call, which knows the trace.

    The others pass as ever, but never by turns, which nobody could count one client's in. Once nobody looks
    any more, all do as ever: the connection may be there for days.
    """

    __slots__ = ("_granted", "_trace")

    def __init__(self, plane: RpcPlane, session: RpcSession, trace: Trace) -> None:
        self._trace: Trace | None = trace
        self._granted = False  # there is room for the next request
        super().__init__(plane, session)

    def changed(self) -> None:
        super().changed()
        if self._trace is not None:
            self.turn = None

    def take(self, data: bytes, pos: int) -> int:
        """As `Intake.take`, of what is not told of."""
        trace = self._trace
        if trace is None:
            return super().take(data, pos)
        if trace.over:
            self._trace = None
            self.turn = None if self.bare else self._plane.each
            self._epoch = -1  # so that its target is looked for, and the turn with that
            return super().take(data, pos)
        if self._may_tell(trace):
            return pos
        before = self._session.requests
        pos = super().take(data, pos)
        trace.missed_requests(self._session.requests - before)
        self.turn = None
        return pos

    def _may_tell(self, trace: Trace) -> bool:
        # Once for each: what is not whole yet is asked about again.
        self._granted = self._granted or trace.may_tell_request()
        return self._granted

    def _call(self, message: Message, data: bytes, end: int, tail: Sequence[Piece]) -> Call:
        call = super()._call(message, data, end, tail)
        trace, session = self._trace, self._session
        if trace is not None and self._may_tell(trace):
            self._granted = False
            call.trace = trace.of_request(session.requests + session.notifications + 1)
        elif trace is not None:
            trace.missed_requests(1)
        return call

    def _dispatch(self, call: Call, data: bytes) -> None:
        if call.trace is not None:
            session, routing, message = self._session, self._plane.routing, call.message
            codec = self._plane.codec(bare=self.bare)
            head = self._head(call, data)
            where = routing.find(codec, message.method, head, call.rule, session.home, session.client)
            told = routing.request_told(*where, session.client)
            method = message.method.decode(errors="replace")
            call.trace.add(
                "request", method=method, bytes=call.body, notification=not call.is_request, **told
            )
        super()._dispatch(call, data)
