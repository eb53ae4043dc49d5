"""Deadlines of requests, kept by one sweep for all of a service's instead of a timer for each.

A request that waits is failed at its deadline, or when it has waited in a queue for long enough; one that is
under way at its deadline, and its answer goes nowhere if it still comes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tcpgw.errors import Code
from tcpgw.relay.outcomes import Kind

if TYPE_CHECKING:
    from tcpgw.relay.rpc.call import Batch, Call
    from tcpgw.relay.rpc.channel import Channel
    from tcpgw.relay.rpc.lane import Lane
    from tcpgw.relay.rpc.service import RpcService
    from tcpgw.relay.rpc.target import Target

# Share of a rule's time-out that an instance must have had for a request, or it is no failure of the
# instance's that it did not answer: clients may set deadlines that nobody can keep, and some wait in a queue.
_FAIR = 0.5


class Deadlines:
    """Of one service. `expired` counts requests whose deadline passed."""

    def __init__(self, service: RpcService) -> None:
        self.expired = 0
        self._service = service
        self._least_timeout = 3600.0

    def expect(self, timeout: float) -> None:
        """Tell of the least time that some requests may have from now on, 0 where clients say it."""
        # It only falls: requests with what was shorter before may still be under way.
        self._least_timeout = min(self._least_timeout, timeout)

    def sweep(self, targets: Iterable[Target], now: float) -> None:
        """Fail what is over there, and look after the connections. Call often."""
        for target in targets:
            for lane in target.lanes:  # before others make room for what is too late itself
                if lane.queue:
                    self._expire_waiting(lane, now)
            for channel in list(target.channels):
                self._expire(target, channel, now)
                channel.tend(now)

    def _expire(self, target: Target, channel: Channel, now: float) -> None:
        def is_over(batch: Batch) -> bool:
            return batch.deadline <= now

        # By when it was sent. Its time began when it came: at most queue_timeout before, if it was not sent
        # a second time.
        service = self._service
        waited = service.settings.queue_timeout
        least = 0.0 if service.sends_again else max(0.0, self._least_timeout - waited)
        over = channel.mux.expire(now - least, is_over)
        if not over:
            return
        channel.lane.give_up(channel)
        self.expired += len(over)
        # Once for each client: requests of one burst end together, and one client's to a slow method would be
        # failures in a row of an instance that serves all others. Not once for all: a black hole would have
        # several times as many clients before it is found.
        waited_for = {
            client for client, _, batch in over if batch.deadline - batch.came >= batch.rule.timeout * _FAIR
        }
        if waited_for:
            target.blame(Kind.TIMEOUT, len(waited_for))
        target.end(len(over), max(batch.rule.timeout for _, _, batch in over))
        text = f"no answer from {target.endpoint} in time"
        for entry in over:
            call: Call | None = entry[2].call
            if call is None:
                service.fail_ordinary(entry, Code.DEADLINE_EXCEEDED, text, target.endpoint)
            elif not call.done:
                call.attempts = [attempt for attempt in call.attempts if attempt[0] is not channel]
                service.fail(call, Code.DEADLINE_EXCEEDED, text, target.endpoint)

    def _expire_waiting(self, lane: Lane, now: float) -> None:
        service = self._service
        for call in lane.queue.expired(now):
            if call.done:
                continue
            if call.deadline <= now:
                self.expired += call.is_request
                service.fail(call, Code.DEADLINE_EXCEEDED, "it waited for an endpoint until its deadline")
            elif lane.alive:
                waited = f"no endpoint had room within {service.settings.queue_timeout:g} s"
                service.fail(call, Code.OVERLOADED, waited)
            else:
                service.fail(call, Code.NO_ENDPOINT, f"no endpoint could be connected to: {lane.failure}")
        lane.changed()
