"""What becomes of requests whose connection broke: what never left goes out again, the rest where it is safe.

A request that was never sent has cost nobody anything, so only its deadline says how often it is tried. One
that was sent may have been worked on, and goes elsewhere only where its rule says that it may: `Call.pieces`
are kept for that. Both within the retry budget, and never to an endpoint that had it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tcpgw.balancing.budgets import RetryBudget
from tcpgw.errors import Code
from tcpgw.relay.outcomes import Kind
from tcpgw.relay.rpc.call import Call
from tcpgw.wire.codec import Entry, Piece
from tcpgw.wire.mux import Unsent

if TYPE_CHECKING:
    from tcpgw.endpoints import Endpoint
    from tcpgw.relay.rpc.channel import Channel
    from tcpgw.relay.rpc.service import RpcService
    from tcpgw.relay.rpc.target import Target


class Recovery:
    """Of one service. Each request that it is given is submitted again, or failed, or nobody's any more.

    `tries` is how often a request may be sent that reaches instances. `retried` counts what was submitted
    again; who ends a request that is `retrying` gives that back to `retries`.
    """

    def __init__(self, service: RpcService, budget: float, tries: int) -> None:
        self.retries = RetryBudget(budget)
        self.retried = 0
        self._service = service
        self._tries = tries
        self._active = 0  # requests under way when the last connection broke

    def lost(self, target: Target, channel: Channel) -> None:
        """A connection broke: retry what may be, and tell the others."""
        service = self._service
        self._active = service.pool.loads.total  # those that are lost now among them
        sent, unsent = channel.mux.lose()
        text = f"the connection to {target.endpoint} broke: {channel.why}"
        count = len(sent) + len(unsent)
        service.targets.broke(target, count)
        fault = channel.fault
        if fault is not None and (sent or fault is not Kind.RESET):
            # Once, however many were under way: five failures in a row are to mean that it was tried five
            # times. By requests, one connection that breaks under load would tell as much as a dead instance.
            target.blame(fault)
        if count:
            target.end(count, service.connect_timeout)
        for entry in sent:
            self._lost_sent(entry, target.endpoint, channel, text)
        for request in unsent:
            call = self._recover(request, target.endpoint, channel)
            self._retry(call, text, target.endpoint, sent=False)

    def _lost_sent(self, entry: Entry, endpoint: Endpoint, channel: Channel, text: str) -> None:
        call: Call | None = entry[2].call
        if call is None:
            self._service.fail_ordinary(entry, Code.UPSTREAM_LOST, text, endpoint)
        elif call.done:
            return
        else:
            call.attempts = [attempt for attempt in call.attempts if attempt[0] is not channel]
            if not call.attempts:  # else a hedge is still under way
                self._retry(call, text, endpoint, sent=True)

    def _recover(self, request: Unsent, endpoint: Endpoint, channel: Channel) -> Call:
        """Make a request that was never sent from its frame what it was before."""
        client, rule, started = request.owner, request.batch.rule, request.batch.came
        call: Call | None = request.batch.call
        frame = request.frame
        message = self._service.protocol.instance.read(frame, 0, len(frame))
        pieces: list[Piece] = [frame[message.rest :]]
        if call is None:
            rule.inflight += 1
            call = Call(
                client,
                message._replace(token=request.token),
                pieces,
                len(pieces[0]),
                rule,
                client.placed(message.method, pieces[0], rule),
                started,
                request.batch.deadline,
            )
            call.field = request.batch.field
        else:
            call.attempts = [attempt for attempt in call.attempts if attempt[0] is not channel]
            call.tried.remove(endpoint)
            if call.pieces is None:  # as it went out: with the deadline that was put in then
                longer, call.pieces, call.body = len(pieces[0]) - call.body, pieces, len(pieces[0])
                if call.field is not None:
                    start, end = call.field
                    call.field = start, end + longer
        if not call.held and self._service.memory.keep(call.body):
            call.held = call.body
        return call

    def _retry(self, call: Call, text: str, endpoint: Endpoint, *, sent: bool) -> None:
        """Send again where that is safe, allowed and of use; else the client is told."""
        if call.done or call.attempts:
            return
        service = self._service
        if call.client.gone:
            service.forget(call)
        elif call.pieces is None or (sent and call.retries >= self._tries - 1):
            service.fail(call, Code.UPSTREAM_LOST, text, endpoint)
        elif not call.retrying and not self.retries.begin(self._active):
            service.fail(call, Code.UPSTREAM_LOST, f"{text}; the retry budget is spent", endpoint)
        else:
            call.retrying = True
            call.cause = text
            call.retries += sent
            if call.trace is not None:
                call.trace.add("retrying", error=text)
            self.retried += 1
            service.submit(call)
