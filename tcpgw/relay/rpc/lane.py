"""Connections to one endpoint that share a queue: its ordinary ones, or the one for bulk.

Frames above the service's `bulk` have a lane of their own, because on a shared connection whoever stands
behind 16 MiB waits for 16 MiB: beside 1 MiB frames a small request took 47 ms, and 7 ms with lanes.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from typing import TYPE_CHECKING

import structlog

from tcpgw.balancing.fair_queue import FairQueue
from tcpgw.relay.dial import dial
from tcpgw.relay.outcomes import Kind, blames
from tcpgw.relay.rpc.call import Batch
from tcpgw.relay.rpc.channel import Channel

if TYPE_CHECKING:
    from tcpgw.relay.rpc.call import Call
    from tcpgw.relay.rpc.service import RpcService
    from tcpgw.relay.rpc.session import RpcSession
    from tcpgw.relay.rpc.target import Target

log = structlog.get_logger()

# Seconds between tries to connect: doubling from the first to the second, ±20 %.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
# Seconds after which a connection counts as good: one that is lost sooner is tried again with a pause.
_GOOD = 1.0
# Seconds that an instance has to read what it was sent last, before its connection is cut.
_FLUSH = 1.0


class Lane:
    """Owns the tasks that keep its connections open. Call `changed` when its room may have changed.

    `open`: its room is all that keeps a request from being sent now. Where it is not (nothing connected, an
    instance that does not read, others waiting), requests go through `send` and the queue.
    """

    def __init__(
        self, target: Target, service: RpcService, connections: int, *, exclusive: bool, bulk: bool = False
    ) -> None:
        self.service = service
        self.bulk = bulk
        self.channels: list[Channel] = []  # connected
        self.queue: FairQueue[RpcSession, Call] = FairQueue(service.settings.queue)
        self.open = False
        self.only: Channel | None = None  # where there is just one and it is open
        self.settled = asyncio.Event()  # set when a first try to connect has ended
        self.failed = False  # the last try to connect did
        self.failure = ""
        self.endpoint = target.endpoint
        self._target = target
        self._exclusive = exclusive
        self._most = connections
        self._closing = False
        self._broken = False  # the log says so
        self._tasks: list[asyncio.Task[None]] = []
        self._grow()

    def _grow(self) -> None:
        """Open what will be needed: all connections, or of exclusive ones one more than were."""
        loop = asyncio.get_running_loop()
        wanted = min(self._most, len(self._tasks) + 1) if self._exclusive else self._most
        while len(self._tasks) < wanted:
            self._tasks.append(loop.create_task(self._keep(), name=f"channel to {self.endpoint}"))

    # ---- connections ----

    async def _keep(self) -> None:
        """Keep one connection open: replaced when it is lost, tried again with longer pauses."""
        loop = asyncio.get_running_loop()
        pause = 0.0
        while True:
            channel = Channel(self, self.service.protocol.mux(self.service.memory), loop)
            began = time.monotonic()
            try:
                async with asyncio.timeout(self.service.connect_timeout):
                    await dial(loop, lambda c=channel: c, self.endpoint, self.service.terms.tls)  # type: ignore[misc]
            except OSError as exc:
                self.service.outcomes[self.endpoint].failed += 1
                if blames(exc):
                    self._target.unreachable()
                self._failed(exc)
            else:
                self.service.outcomes[self.endpoint].connected += 1
                self.service.outcomes.connecting.add(time.monotonic() - began)
                await self._serve(channel)
            good = channel.given_up or time.monotonic() - began >= _GOOD
            if good and channel.lost.is_set():
                pause = 0.0
                continue
            pause = min(max(2 * pause, _FIRST_PAUSE), _LONGEST_PAUSE)
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))

    async def _serve(self, channel: Channel) -> None:
        try:
            if channel.open:
                self.channels.append(channel)
                self.failed, self.failure = False, ""
                self._target.reached()
                self.settled.set()
                if self._broken:
                    self._broken = False
                    log.info("channel_restored", service=self.service.name, endpoint=str(self.endpoint))
                self.changed()
            await channel.lost.wait()
        finally:
            if channel.open and channel.mux.pending:
                channel.abort("the endpoint is not used any more")
            elif channel.open:
                channel.close()

    def _failed(self, exc: OSError) -> None:
        timeout = self.service.connect_timeout
        why = f"no answer within {timeout:g} s" if isinstance(exc, TimeoutError) else exc.strerror or str(exc)
        if why != self.failure and not self.bulk:  # once: not with every try, and the other lane says it too
            log.warning("channel_failed", service=self.service.name, endpoint=str(self.endpoint), error=why)
            self._broken = True
        self.failed, self.failure = True, why
        self.settled.set()
        self.changed()
        if not self.channels:
            self.service.reroute(self.take_all())

    def lost(self, channel: Channel) -> None:
        """A connection is gone, and what was under way on it."""
        if channel in self.channels:
            self.channels.remove(channel)
        if not self._closing and not channel.given_up:
            pending = len(channel.mux.pending)
            # What was idle and is connected again is of no interest, and what is not has `channel_failed`:
            # each worker would say it of each of its connections to an instance that restarts.
            matters = bool(pending) or channel.fault is not Kind.RESET
            self._broken = self._broken or matters
            (log.info if matters else log.debug)(
                "channel_lost", service=self.service.name, endpoint=str(self.endpoint), pending=pending,
                why=channel.why,
            )  # fmt: skip
        self.changed()
        self.service.recovery.lost(self._target, channel)
        if not self.channels:
            self.service.reroute(self.take_all())

    async def close(self) -> None:
        """End every connection. Idempotent; nothing is left open."""
        self._closing = True
        self.settled.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        channels = list(self.channels)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH):
                await asyncio.gather(*(channel.lost.wait() for channel in channels))
        for channel in channels:
            if not channel.lost.is_set():
                channel.abort("the instance does not read")
                await channel.lost.wait()

    # ---- requests ----

    @property
    def alive(self) -> bool:
        return bool(self.channels)

    def channel(self) -> Channel | None:
        """The connection for the next request, or None where it must wait."""
        free = [
            channel
            for channel in self.channels
            if channel.open and not channel.paused and not (self._exclusive and channel.mux.pending)
        ]
        return min(free, key=lambda channel: len(channel.mux.pending), default=None)

    def send(self, call: Call) -> bool:
        """Send a request now, if there is room."""
        if call.is_request and self._target.room <= 0:
            return False
        channel = self.only or self.channel()
        if channel is None:
            return False
        self._send(call, channel)
        return True

    def _send(self, call: Call, channel: Channel) -> None:
        pieces, body = self.service.outgoing(call)
        if not channel.scheduled:
            channel.schedule(time.monotonic())
        if call.is_request:
            batch = Batch(channel.came, call.rule, call)
            number = channel.mux.enter(call.message.token, body, pieces, call.client, batch)
            call.attempts.append((channel, number))
            self._target.begin(1)
        else:
            channel.mux.tell(call.message.token, body, pieces)
        call.tried.append(self.endpoint)
        if call.trace is not None:
            call.trace.add("sent", endpoint=self.endpoint, tries=len(call.tried))
        call.until = 0.0
        channel.put(call.body, self.service.sent(call))

    def wait(self, call: Call) -> Call | None:
        """Keep a request until there is room. Returns the one that has no place: the greatest flood's."""
        refused = self.queue.push(call.client, call, call.rule.priority, call.until)
        if refused is call:
            return call
        self.open = False
        self.service.crowded.add(self)
        call.client.waits_in(self)
        if self._exclusive:
            self._grow()
        return refused

    def give_up(self, channel: Channel) -> None:
        """A request is not awaited any more: replace its connection where that is exclusive.

        The instance still works on it, and who came next would wait behind that.
        """
        if self._exclusive:
            channel.given_up = True
            channel.abort("its request is not awaited any more")

    def finished(self, count: int, seconds: float) -> None:
        """Requests are not under way any more, one of them after so long: others may go."""
        self._target.end(count, seconds)

    def answered(self, count: int, seconds: float, errors: list[bool] | None) -> None:
        """As `finished`, of requests that were answered; `errors` says which answers are, if that counts."""
        if errors is None:
            self._target.outcome.successes += count
        else:
            self.service.outcomes.judge(self.endpoint, errors)
        self._target.end(count, seconds)

    def changed(self) -> None:
        """Look again at what is open, and send what waits as far as there is room."""
        queue = self.queue
        while queue and (channel := self.channel()) is not None and self._target.room > 0:
            call = queue.pop()
            if call is None:
                break
            if call.client.gone:
                self.service.forget(call)
            elif not call.done:
                self._send(call, channel)
        self.open = not queue and not self._exclusive and self.channel() is not None
        self.only = self.channels[0] if len(self.channels) == 1 and self.open else None
        if not queue:
            crowded = self.service.crowded
            crowded.discard(self)
            while crowded and (channel := self.channel()) is not None and self._target.room > 0:
                if (call := self.service.spare(self, self._target)) is None:
                    break
                self._send(call, channel)

    def take_all(self) -> list[Call]:
        """Take what waits, for another place."""
        self.service.crowded.discard(self)
        return self.queue.take_all()
