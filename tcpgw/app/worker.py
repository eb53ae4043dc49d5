"""A worker process: it accepts and relays, and does what its supervisor says.

It holds no secret of the cloud's and asks nobody for endpoints. Without its supervisor it goes on with the
last snapshots that it was given, for `gateway.unsupervised`, and then drains.
"""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import structlog
import uvloop

from tcpgw import __version__
from tcpgw.app.background import Background, first
from tcpgw.app.relays import Relays
from tcpgw.app.reports import plain
from tcpgw.app.traced import Traced
from tcpgw.app.usage import Shares
from tcpgw.balancing.standing import Share
from tcpgw.config import schema, transfer
from tcpgw.endpoints import Endpoint, Snapshot
from tcpgw.observe import logs
from tcpgw.process.channel import Channel, Handler
from tcpgw.process.limits import calm_collector, drop_capabilities, keep_heap, raise_open_files
from tcpgw.process.signals import handled, ignored
from tcpgw.relay.draining import Cause
from tcpgw.relay.reasons import Reason
from tcpgw.relay.tracing import Tracer

log = structlog.get_logger()

# Seconds between two words to the supervisor; it kills who says none for ten.
_BEAT = 1.0
# Endpoints that a report may name each second, or connections whose bytes it adds up: it is made on the loop
# that relays, 1,000 of the ones and 10,000 of the others in some 3 ms.
_ENDPOINTS_PER_BEAT, _CONNECTIONS_PER_BEAT = 1000, 10_000
# Seconds between two reports, however much there is in one: rates of the last 10 s are made of them.
_SELDOM = 5.0
# Seconds between two words of how many connections clients have here: the first goes out at once, and those
# of a flood together.
_SHARE = 0.005
# Seconds that the supervisor has to take what this worker says last.
_FLUSH = 1.0


class Worker:
    """What the supervisor may ask for. `done` is set when nothing is left to do."""

    def __init__(self, sock: socket.socket) -> None:
        self.done = asyncio.Event()
        self._background = Background()
        self._stack = AsyncExitStack()
        self._relays: Relays | None = None
        self._config: schema.Config | None = None
        self._draining = False
        self._lent: dict[str, list[socket.socket]] = {}  # for the next configuration
        self._workers = 1  # that there are, this one included
        self._used = asyncio.Event()  # there is something to tell of that
        self._shares = Shares(self._used.set)
        self._renewed: asyncio.Future[None] | None = None
        self._reporting = asyncio.Lock()  # one after the other: it is the last that counts
        self._farewell: dict[str, int] = {}  # what reports say besides once all has ended
        self._traced = Traced(
            self._trace, lambda name, events: self._channel.tell("traced", name, events), self._background
        )
        handlers: dict[str, Handler] = {
            "lend": self._lend,
            "configure": self._configure,
            "publish": self._publish,
            "weigh": self._weigh,
            "elsewhere": self._take_elsewhere,
            "renewed": self._end_renewal,
            "accept": self._accept,
            "drain": self._drain,
            "report": self._tell_report,
            "connections": self._connections_listed,
            "trace_begin": self._traced.begin,
            "trace_end": self._traced.end,
        }
        self._channel = Channel(sock, handlers, with_fds=["lend"])

    async def run(self) -> None:
        """Serve until told to end, or until draining has."""
        asked = asyncio.Event()
        # Signals and not messages: what is to end at once is not to wait for what is being done.
        signals = {signal.SIGTERM: asked.set, signal.SIGINT: self.done.set}
        with handled(signals), ignored(signal.SIGHUP, signal.SIGUSR2):
            async with self._stack:
                self._stack.push_async_callback(self._background.close)
                beating = self._background.start(self._beat(), "heartbeat")
                self._background.start(self._share_usage(), "usage of limits")
                said = asyncio.create_task(self._channel.run())
                leaving = self._asked_to_leave(asked)
                try:
                    await first(self.done.wait(), self._alone(), leaving, self._background.failed())
                finally:
                    await self._say_farewell(beating)
                    said.cancel()
                    await asyncio.gather(said, return_exceptions=True)

    # ---- what the supervisor asks for ----

    def _lend(self, fds: list[int], names: list[str]) -> None:
        """Take sockets of these listeners, one each, for the configuration that follows."""
        for fd, name in zip(fds, names, strict=True):
            self._lent.setdefault(name, []).append(socket.socket(fileno=fd))

    async def _configure(
        self, data: dict[str, Any], outlived: list[str], contents: dict[str, bytes], workers: int
    ) -> None:
        """Take a configuration, and what was read for it. `outlived` is as of `Relays`."""
        config = transfer.restored(data)
        sockets, self._lent = self._lent, {}
        if self._relays is None:
            relays = Relays(
                config, sockets, self._background, contents,
                tell=lambda news: self._channel.tell("outcomes", plain(news)),
                renew=self._renew,
                checked=True,
                outlived=outlived,
            )  # fmt: skip
            self._relays = await self._stack.enter_async_context(relays)
            self._trace(self._traced.tracer)
        else:
            self._relays.outlived = outlived
            await self._relays.apply(config, sockets, contents)
        self._config, self._workers = config, workers
        self._follow_usage()

    async def _publish(self, *plain: Any) -> None:
        assert self._relays is not None  # noqa: S101 - configured first
        await self._relays.pools.publish(Snapshot.restored(*plain))

    def _weigh(
        self, service: str, shares: list[tuple[str, int, float, bool]], watched: list[tuple[str, int]]
    ) -> None:
        assert self._relays is not None  # noqa: S101
        found = {Endpoint(host, port): Share(value, by_key) for host, port, value, by_key in shares}
        self._relays.pools.weigh(service, found, [Endpoint(host, port) for host, port in watched])

    def _take_elsewhere(self, told: dict[str, dict[str, int]]) -> None:
        self._shares.take(told)

    def _follow_usage(self) -> None:
        if self._relays is not None and self._config is not None:
            guards = self._relays.guards.by_listener
            self._shares.follow(self._config, guards, self._workers, leaving=self._draining)

    async def _renew(self) -> None:
        """Return when the supervisor has asked for newer sets of keys, and this worker has them."""
        if self._renewed is None:
            self._renewed = asyncio.get_running_loop().create_future()
            self._channel.tell("renew")
        await asyncio.shield(self._renewed)

    def _end_renewal(self) -> None:
        renewed, self._renewed = self._renewed, None
        if renewed is not None:
            renewed.set_result(None)

    async def _accept(self) -> None:
        assert self._relays is not None  # noqa: S101
        await self._relays.start()

    def _drain(self, spread: float, hard: float, outlived: Sequence[str] = ()) -> None:
        """Leave: see `Relays.drain`. The answer comes at once, the end when it has come."""
        if self._relays is None:  # it was to leave before it began
            self.done.set()
        elif not self._draining:
            self._draining = True
            self._follow_usage()
            self._background.start(self._leave(self._relays, spread, hard, outlived), "draining")

    async def _leave(self, relays: Relays, spread: float, hard: float, outlived: Sequence[str]) -> None:
        await relays.drain(spread, hard, outlived=outlived)
        self.done.set()

    def _trace(self, tracer: Tracer | None) -> None:
        if self._relays is not None:
            self._relays.trace(tracer)

    async def _tell_report(self) -> None:
        """Not as an answer, which whoever asked may take later than what is told after it."""
        async with self._reporting:
            report = await self._relays.status_in_turns() if self._relays else {}
            self._channel.tell("report", report | self._farewell)

    async def _connections_listed(self, service: str | None, slowest: bool, count: int) -> dict[str, Any]:
        if self._relays is None:
            return {"connections": [], "total": 0}
        return await self._relays.connections(service, slowest, count)

    # ---- what it does by itself ----

    async def _beat(self) -> None:
        reported = 0.0
        while True:
            now = time.monotonic()
            pools = self._relays.pools.by_name.values() if self._relays else ()
            endpoints = sum(len(pool.members) for pool in pools)
            size = endpoints / _ENDPOINTS_PER_BEAT + self._connections() / _CONNECTIONS_PER_BEAT
            if now - reported >= min(_SELDOM, _BEAT * size):
                reported = now
                await self._tell_report()
            else:
                self._channel.tell("beat")
            await asyncio.sleep(_BEAT)

    async def _share_usage(self) -> None:
        while True:
            await self._used.wait()
            self._used.clear()
            news = self._shares.news()
            if news:
                self._channel.tell("usage", news)
            await asyncio.sleep(_SHARE)

    async def _alone(self) -> None:
        """Once the supervisor is gone: go on for a while, then drain."""
        await self._channel.closed.wait()
        self._end_renewal()
        if self._config is None:  # nobody can have connected
            return
        if self._draining:
            await self.done.wait()
            return
        gateway = self._config.gateway
        log.error(
            "supervisor_lost",
            connections=self._connections(),
            hint=f"the last snapshots stay in force; clients are taken for {gateway.unsupervised:g} s more",
        )
        await asyncio.sleep(gateway.unsupervised)
        log.warning("draining", seconds=gateway.drain, hard_stop=gateway.cut_after, hint="no supervisor came")
        self._drain(gateway.drain, gateway.cut_after)
        await self.done.wait()

    async def _asked_to_leave(self, asked: asyncio.Event) -> None:
        """Somebody wants this one worker to end: not without a successor, where there is a supervisor."""
        await asked.wait()
        if self._channel.closed.is_set():
            if self._config is None:
                return
            gateway = self._config.gateway
            self._drain(gateway.drain, gateway.cut_after)
        else:
            self._channel.tell("leave")
        await self.done.wait()

    def _connections(self) -> int:
        listeners = self._relays.listeners.values() if self._relays else ()
        return sum(len(listener.connections) for listener in listeners)

    async def _say_farewell(self, beating: asyncio.Task[None]) -> None:
        """End what is left, and tell what it all came to."""
        listeners = self._relays.status()["listeners"] if self._relays else {}
        cut = sum(map(_cut, listeners.values()))
        if self._channel.closed.is_set():  # nobody else will say it
            log.info("stopped", connections_cut=cut)
        if self._relays is not None:
            await self._relays.close()
        self._traced.flush()
        await self._background.stop(beating)
        self._farewell = {"cut": cut}
        await self._tell_report()
        try:
            async with asyncio.timeout(_FLUSH):
                await self._channel.flushed()
        except TimeoutError:
            log.warning("last_report_lost")


def _cut(listener: Mapping[str, Any]) -> int:
    """How many connections of a listener its stop did not let finish, those that are left among them."""
    reset: int = listener["drains"].get(Cause.SHUTDOWN, {}).get("reset", 0)
    ended: int = listener["ended"].get(Reason.SHUTDOWN, 0)
    left: int = listener["active"]
    return reset + ended + left


def main() -> None:
    """Run as the worker of a slot: `SLOT DESCRIPTOR LOG_FORMAT LOG_LEVEL`."""
    for number in (signal.SIGHUP, signal.SIGUSR2):  # of the supervisor's; until a loop can take them
        signal.signal(number, signal.SIG_IGN)
    slot, descriptor, form, level = sys.argv[1:5]
    sock = socket.socket(fileno=int(descriptor))
    os.set_inheritable(sock.fileno(), False)
    dropped = drop_capabilities()  # before the log's thread, which would keep its own
    with logs.configured(form, level, worker=int(slot)):  # type: ignore[arg-type]
        if not dropped:
            hint = "a filter forbids capset: allow it (SystemCallFilter=capset), or grant the supervisor less"
            log.error("capabilities_kept", hint=hint)
        try:
            uvloop.run(_serve(sock))
        except KeyboardInterrupt:  # a demand to end that came after the end
            pass
        except Exception:  # a bug: told where operators look, as one line like any other
            log.exception("crashed", version=__version__)
            raise SystemExit(1) from None
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # also while the last lines are written


async def _serve(sock: socket.socket) -> None:
    raise_open_files()
    calm_collector(first=False)
    keep_heap()
    await Worker(sock).run()
