"""A worker process: it accepts and relays, and does what its supervisor says.

It holds no secret of the cloud's and asks nobody for endpoints. Without its supervisor it goes on with the
last snapshots that it was given, for `gateway.unsupervised`, and then drains.
"""

import asyncio
import itertools
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
from tcpgw.config import schema, transfer
from tcpgw.endpoints import Endpoint, Member, Snapshot
from tcpgw.observe import logs
from tcpgw.process.channel import Channel, Handler
from tcpgw.process.limits import calm_collector, drop_capabilities, keep_heap, raise_open_files
from tcpgw.process.signals import ending, ignored
from tcpgw.relay.draining import Cause
from tcpgw.relay.reasons import Reason

log = structlog.get_logger()

# Seconds between two words to the supervisor; it kills who says none for ten.
_BEAT = 1.0
# Endpoints that a report may name each second: it is made on the loop that relays, 1,000 in about 1 ms.
_ENDPOINTS_PER_BEAT = 1000
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
        handlers: dict[str, Handler] = {
            "configure": self._configure,
            "publish": self._publish,
            "accept": self._accept,
            "drain": self._drain,
            "stop": self.done.set,
            "report": self._report,
        }
        self._channel = Channel(sock, handlers, with_fds=["configure"])

    async def run(self) -> None:
        """Serve until told to end, or until draining has."""
        async with self._stack:
            self._stack.push_async_callback(self._background.close)
            self._background.start(self._beat(), "heartbeat")
            said = asyncio.create_task(self._channel.run())
            with ending() as end:
                try:
                    await first(
                        self.done.wait(),
                        self._alone(),
                        self._asked_to_leave(end.asked),
                        self._background.failed(),
                    )
                finally:
                    await self._say_farewell()
                    said.cancel()
                    await asyncio.gather(said, return_exceptions=True)

    # ---- what the supervisor asks for ----

    async def _configure(
        self, fds: list[int], plain: dict[str, Any], names: list[list[Any]], outlived: list[str]
    ) -> None:
        """Take a configuration, and sockets: `names` has `[listener, how many]` in the order of `fds`.

        `outlived` is as of `Relays`.
        """
        config = transfer.restored(plain)
        numbers = iter(fds)
        sockets = {
            name: [socket.socket(fileno=fd) for fd in itertools.islice(numbers, count)]
            for name, count in names
        }
        if self._relays is None:
            relays = Relays(config, sockets, self._background, outlived=outlived)
            self._relays = await self._stack.enter_async_context(relays)
        else:
            await self._relays.apply(config, sockets)
        self._config = config

    async def _publish(self, service: str, version: int, taken_at: float, members: list[list[Any]]) -> None:
        assert self._relays is not None  # noqa: S101 - configured first
        found = tuple(Member(Endpoint(host, port), weight) for host, port, weight in members)
        await self._relays.publish(Snapshot(service, version, found, taken_at))

    async def _accept(self) -> None:
        assert self._relays is not None  # noqa: S101
        await self._relays.start()

    def _drain(self, spread: float, hard: float, outlived: Sequence[str] = ()) -> None:
        """Leave: see `Relays.drain`. The answer comes at once, the end when it has come."""
        if not self._draining and self._relays is not None:
            self._draining = True
            self._background.start(self._leave(self._relays, spread, hard, outlived), "draining")

    async def _leave(self, relays: Relays, spread: float, hard: float, outlived: Sequence[str]) -> None:
        await relays.drain(spread, hard, outlived=outlived)
        self.done.set()

    def _report(self) -> dict[str, Any]:
        return self._relays.status() if self._relays else {}

    # ---- what it does by itself ----

    async def _beat(self) -> None:
        reported = 0.0
        while True:
            now = time.monotonic()
            endpoints = sum(len(pool.members) for pool in self._relays.pools.values()) if self._relays else 0
            if now - reported >= _BEAT * endpoints / _ENDPOINTS_PER_BEAT:
                reported = now
                self._channel.tell("report", self._report())
            else:
                self._channel.tell("beat")
            await asyncio.sleep(_BEAT)

    async def _alone(self) -> None:
        """Once the supervisor is gone: go on for a while, then drain."""
        await self._channel.closed.wait()
        if self._config is None or self._draining:
            await self.done.wait()
            return
        gateway = self._config.gateway
        log.error(
            "supervisor_lost",
            connections=self._connections(),
            hint=f"the last snapshots stay in force; clients are taken for {gateway.unsupervised:g} s more",
        )
        await asyncio.sleep(gateway.unsupervised)
        self._drain(gateway.drain, gateway.hard_stop)
        await self.done.wait()

    async def _asked_to_leave(self, asked: asyncio.Event) -> None:
        """Somebody wants this one worker to end: not without a successor, where there is a supervisor."""
        await asked.wait()
        if self._channel.closed.is_set() and self._config is not None:
            gateway = self._config.gateway
            self._drain(gateway.drain, gateway.hard_stop)
        else:
            self._channel.tell("leave")
        await self.done.wait()

    def _connections(self) -> int:
        listeners = self._relays.listeners.values() if self._relays else ()
        return sum(len(listener.connections) for listener in listeners)

    async def _say_farewell(self) -> None:
        """End what is left, and tell what it all came to."""
        if self._relays is not None:
            await self._relays.close()
        report = self._report()
        self._channel.tell("report", {**report, "cut": sum(map(_cut, report.get("listeners", {}).values()))})
        try:
            async with asyncio.timeout(_FLUSH):
                await self._channel.flushed()
        except TimeoutError:
            log.warning("last_report_lost")


def _cut(listener: Mapping[str, Any]) -> int:
    """How many connections of a listener its stop did not let finish."""
    reset: int = listener["drains"].get(Cause.SHUTDOWN, {}).get("reset", 0)
    ended: int = listener["ended"].get(Reason.SHUTDOWN, 0)
    return reset + ended


def main() -> None:
    """Run as the worker of a slot: `SLOT DESCRIPTOR LOG_FORMAT LOG_LEVEL`."""
    slot, descriptor, form, level = sys.argv[1:5]
    sock = socket.socket(fileno=int(descriptor))
    os.set_inheritable(sock.fileno(), False)
    drop_capabilities()  # before the log's thread, which would keep its own
    with logs.configured(form, level, worker=int(slot)):  # type: ignore[arg-type]
        try:
            uvloop.run(_serve(sock))
        except Exception:  # a bug: told where operators look, as one line like any other
            log.exception("crashed", version=__version__)
            raise SystemExit(1) from None


async def _serve(sock: socket.socket) -> None:
    raise_open_files()
    calm_collector()
    keep_heap()
    with ignored(signal.SIGHUP, signal.SIGUSR2):
        await Worker(sock).run()


if __name__ == "__main__":
    main()
