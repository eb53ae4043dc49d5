"""`tcpgw run`: a supervisor, and around it signals, systemd, the control socket, an upgrade."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Coroutine, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import structlog

from tcpgw import __version__
from tcpgw.app.background import Background, first
from tcpgw.app.control import controlled
from tcpgw.app.supervisor import Supervisor
from tcpgw.config import schema
from tcpgw.errors import TcpgwError
from tcpgw.process import inherited
from tcpgw.process.handover import Handover, HandoverError, hand_over
from tcpgw.process.limits import calm_collector
from tcpgw.process.notify import Notifier, reloading
from tcpgw.process.signals import Ending, ending, handled

log = structlog.get_logger()

# Seconds beside the services' `wait` that a successor has until it accepts.
_START = 60.0


async def run(config: schema.Config, path: Path) -> None:
    """Run a gateway until it is asked to end, or has a successor. Raises TcpgwError where it cannot start."""
    calm_collector()
    manager = Notifier.of(os.environ)
    handover = Handover.take(os.environ)
    passed = inherited.assign(
        inherited.take(os.environ), {listener.name: str(listener.bind) for listener in config.listener}
    )
    with ending() as end:
        async with AsyncExitStack() as stack:
            supervisor = Supervisor(config, path, passed=passed, handed=handover.sockets)
            await stack.enter_async_context(supervisor)
            operation = Operation(supervisor, manager)
            stack.push_async_callback(operation.close)
            await stack.enter_async_context(
                controlled(path, operation.methods, replaces=bool(handover.sockets))
            )
            # A start may wait long for discovery, and whoever ends it meanwhile must not.
            await first(end.asked.wait(), supervisor.start())
            if end.asked.is_set():
                log.info("stopped", connections_cut=0)
                return
            _say_ready(supervisor, manager, sorted(passed))
            handover.accept(supervisor.sockets)
            await stack.enter_async_context(manager.watched())
            with handled(operation.signals):
                await first(end.asked.wait(), operation.succeeded.wait(), supervisor.failed())
            await _drain(supervisor, manager, end, operation.taken)


def _say_ready(supervisor: Supervisor, manager: Notifier, passed: list[str]) -> None:
    log.info(
        "ready",
        version=__version__,
        listeners=supervisor.addresses(),
        endpoints=supervisor.endpoints(),
        workers=supervisor.pids(),
        inherited=passed,
    )
    status = f"accepting on {len(supervisor.sockets)} listeners, {len(supervisor.pids())} workers"
    manager.tell(READY="1", STATUS=status)


async def _drain(supervisor: Supervisor, manager: Notifier, end: Ending, taken: Iterable[str]) -> None:
    gateway = supervisor.config.gateway
    if not end.asked.is_set():
        manager = Notifier()  # systemd's main process is the successor now
    manager.tell(STOPPING="1", STATUS=f"draining for up to {gateway.hard_stop:g} s")
    log.info("draining", seconds=gateway.drain, hard_stop=gateway.hard_stop)
    leaving = asyncio.create_task(supervisor.drain(taken))
    try:
        at_once = end.now if end.asked.is_set() else end.asked
        await first(at_once.wait(), asyncio.shield(leaving))
        if not leaving.done():
            supervisor.stop()
        cut = await leaving
    finally:
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
    log.info("stopped", connections_cut=cut)


class Operation:
    """What operators ask a running gateway for, by signals or commands. One change at a time.

    `succeeded` is set when a successor accepts, which has `taken` the sockets of these listeners.
    """

    def __init__(self, supervisor: Supervisor, manager: Notifier) -> None:
        self.succeeded = asyncio.Event()
        self.taken: list[str] = []
        self.methods = {"status": supervisor.status, "reload": self._reload, "upgrade": self._upgrade}
        self.signals = {
            signal.SIGHUP: lambda: self._start(self._reload(), "reload"),
            signal.SIGUSR2: lambda: self._start(self._upgrade(), "upgrade"),
        }
        self._supervisor = supervisor
        self._manager = manager
        self._changing = asyncio.Lock()
        self._background = Background()

    async def close(self) -> None:
        """Give up what was asked for by a signal and is not done. Idempotent."""
        await self._background.close()

    def _start(self, coroutine: Coroutine[Any, Any, object], name: str) -> None:
        async def asked() -> None:
            with contextlib.suppress(TcpgwError):  # the log says it
                await coroutine

        self._background.start(asked(), name)

    async def _reload(self) -> list[str]:
        """As `Supervisor.reload`."""
        async with self._changing:
            self._manager.tell(**reloading())
            try:
                return await self._supervisor.reload()
            finally:
                self._manager.tell(READY="1")

    async def _upgrade(self) -> dict[str, Any]:
        """Have what is installed now take over. Raises HandoverError, with all as it was."""
        async with self._changing:
            supervisor = self._supervisor
            command = [sys.executable, "-m", "tcpgw", "run", "--config", str(supervisor.path)]
            seconds = _START + max(service.wait for service in supervisor.config.service)
            log.info("upgrading", sockets=sorted(supervisor.sockets))
            try:
                pid, self.taken = await hand_over(
                    command, self._manager.environment(), supervisor.sockets, seconds=seconds
                )
            except HandoverError as exc:
                log.error("upgrade_failed", error=str(exc), hint="this version goes on as it was")
                raise
            self._manager.tell(MAINPID=str(pid))
            log.info("upgraded", successor=pid, listeners=self.taken)
            self.succeeded.set()
            return {"pid": pid, "listeners": self.taken}
