"""What happens once per host: configuration, sockets, discovery, health, workers, and who asks about them."""

import asyncio
import os
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import structlog

from tcpgw import __version__
from tcpgw.app.access import check
from tcpgw.app.admin import SOCKET, Administration
from tcpgw.app.background import Background
from tcpgw.app.briefing import Briefing
from tcpgw.app.connections import gathered
from tcpgw.app.discovery import Discovery
from tcpgw.app.health import Health
from tcpgw.app.limits import fitted
from tcpgw.app.material import Contents, Materials
from tcpgw.app.monitor.alerting import Alerting
from tcpgw.app.monitor.certificates import Expiries, expiries
from tcpgw.app.monitor.figures import Totals
from tcpgw.app.monitor.monitor import Monitor
from tcpgw.app.monitor.picture import Picture, WorkerPicture
from tcpgw.app.monitor.status import Status, made
from tcpgw.app.overrides import Overrides
from tcpgw.app.sockets import grow, listen_on, open_sockets, unserved
from tcpgw.app.tracing import Traces
from tcpgw.app.workers import Crew
from tcpgw.config import load, schema
from tcpgw.config.diff import diff
from tcpgw.config.share import share
from tcpgw.endpoints import Snapshot
from tcpgw.errors import TcpgwError
from tcpgw.process.handover import Sockets
from tcpgw.process.limits import cpus, raise_open_files
from tcpgw.process.worker import Handlers, WorkerProcess
from tcpgw.relay.sockets import BindError

log = structlog.get_logger()


class Supervisor:
    """`async with` opens the sockets and starts discovery; `start` has workers accept on them.

    `path` is the configuration's file, which `reload` reads again. `given` sockets are systemd's and those of
    a predecessor; what no listener takes is closed, unless it is `outlived`. Raises BindError and
    CredentialError on entry, with nothing left open. Leaving the context kills the workers: `drain` before.
    """

    def __init__(
        self,
        config: schema.Config,
        path: Path,
        given: Mapping[str, Sockets],
    ) -> None:
        self.config = config
        self.path = path
        self.state = "starting"
        self.started = time.time()
        self.sockets: dict[str, Sockets] = {}
        self.lent = {name: one for name, one in given.items() if one.outlived}
        self.admin = Administration(given.get(SOCKET))
        self._given = {name: one for name, one in given.items() if name != SOCKET}
        self._files = raise_open_files()
        self._count = config.gateway.workers or cpus()
        self._totals = Totals()
        self._reloads = {"ok": 0, "refused": 0}
        self._reloaded = self.started
        self._certificates: Expiries = {}
        self._background = Background()
        self._stack = AsyncExitStack()
        self._crew = Crew(config.gateway, self._brief)
        self._briefing = Briefing(self._crew.slots)
        self._contents: Contents = {}
        self._materials = Materials(self._take, self._background)
        self._health = Health(self._briefing.weigh, self._background)
        self.overrides = Overrides(self._publish, self._health.status, self._background)
        self._discovery = Discovery(config, self.overrides.publish, self._background)
        self.alerting = Alerting(config, self._background)
        self.monitor = Monitor(config, self.picture, self._crew.ask, self.alerting)
        self.traces = Traces(lambda: self._crew.all, self._background)

    async def __aenter__(self) -> Self:
        try:
            self._stack.callback(self._close_sockets)
            self.sockets = open_sockets(self.config.listener, self._count, self._given)
            taken = list(self.sockets.values())
            _close_ours(one for one in self._given.values() if one not in taken)
            self._stack.push_async_callback(self.admin.close)
            self.admin.sockets = self.admin.opened(self.config.gateway)
            self._stack.push_async_callback(self._background.close)
            self._stack.push_async_callback(self._materials.close)
            self._stack.push_async_callback(self.alerting.close)
            contents = await self._read(self.config)
            self._stack.callback(self._health.close)
            self._health.follow(self.config, contents)
            self._stack.callback(self.overrides.close)
            await self.overrides.load(self.config)
            await self._stack.enter_async_context(self._discovery)
            handlers: Handlers = {
                "leave": self._replace_soon,
                "outcomes": self._happened,
                "renew": self._renew,
                "traced": self.traces.take,
            }
            self._crew.begin(handlers, self.traces.first_of(self._briefing.attend), self._forget)
            self._stack.push_async_callback(self._crew.close)
            self._set_config(self.config, contents)
            self._background.start(self.monitor.run(), "monitor")
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def failed(self) -> None:
        """As `Background.failed`."""
        await self._background.failed()

    # ---- life ----

    async def start(self) -> None:
        """Return when every service has a snapshot or has waited for it, and every worker accepts.

        Raises BindError where another process listens on one of the addresses.
        """
        await self._discovery.first_snapshots()
        listen_on(self.sockets.values())
        await self._crew.start(self._count)
        self.state = "ready"

    def addresses(self) -> dict[str, str]:
        """Where clients connect, by listener."""
        return {name: one.address for name, one in self.sockets.items()}

    def endpoints(self) -> dict[str, int]:
        snapshots = self._briefing.snapshots
        return {
            service.name: len(snapshots[service.name].members) if service.name in snapshots else 0
            for service in self.config.service
        }

    def pids(self) -> list[int]:
        return [worker.pid for worker in self._crew.current]

    async def drain(self, taken: Collection[str] = ()) -> int:
        """Have the workers leave, and return, when they have, how many connections were cut.

        `taken` are the listeners on whose sockets another supervisor accepts.
        """
        self.state = "draining"
        if taken:  # the calls that the cloud allows are the successor's now
            self.overrides.close()
            await self._discovery.close()
            await self.monitor.retire()
        outlived = {*taken, *(name for name, one in self.sockets.items() if one.outlived)}
        # First, so that the workers' are the last: they take who still waits, and then clients are refused.
        self._close_sockets()
        before = self._totals.cut
        await self._crew.drain(outlived)
        return self._totals.cut - before

    def stop(self) -> None:
        """End all connections now; `drain` returns then."""
        self._crew.stop()

    # ---- changes ----

    async def reload(self) -> list[str]:
        """Read the configuration's file again and apply what changed; return what that is, line by line.

        Raises ConfigError, BindError or CredentialError with the configuration in force as it was. Not to be
        called while it runs.
        """
        began = time.monotonic()
        try:
            lines = await self._reload(await asyncio.to_thread(load.load, self.path))
        except TcpgwError as exc:
            self._reloads["refused"] += 1
            hint = "the configuration in force stays as it is"
            log.error("reload_refused", path=str(self.path), error=str(exc), hint=hint)
            raise
        self._reloads["ok"] += 1
        self._reloaded = time.time()
        log.info("reloaded", path=str(self.path), changes=lines, seconds=round(time.monotonic() - began, 4))
        return lines

    async def _reload(self, config: schema.Config) -> list[str]:
        changes = diff(self.config, config)
        count = config.gateway.workers or cpus()
        added = [one for one in config.listener if one.name in changes.listeners.added]
        ended = {name: self.sockets[name] for name in changes.listeners.removed}
        async with AsyncExitStack() as undo:
            # What may fail comes first, so that a refused file has changed nothing.
            opened = open_sockets(added, count, ended | self.lent)
            new = [one for one in opened.values() if one not in ended.values()]
            undo.callback(_close_ours, new)
            listen_on(new)
            admin = self.admin.opened(config.gateway)
            if admin is not None and admin is not self.admin.sockets:
                undo.callback(admin.close)
            contents = await self._read(config)
            self._discovery.begin(config)
            undo.push_async_callback(self._abandon, changes.services.added)
            await self._discovery.first_snapshots()
            undo.pop_all()
        for name, one in ended.items():
            del self.sockets[name]
            if one not in opened.values():
                _close_ours([one])
        self.sockets |= opened
        before, self._count = self._count, count
        if count > before:
            self._grow_sockets(config, count)
        self._set_config(config, contents)
        if changes.admin or admin is not self.admin.sockets:  # an address may have become free
            await self.admin.serve(config.gateway, admin)
        await self._discovery.finish()
        self._briefing.forget(changes.services.removed)
        await self._briefing.followed(lambda: self._crew.all)
        await self._crew.resize(self._count)
        if changes.restart:
            self._background.start(self._crew.replace_all(), "replacing the workers")
        return [*changes.lines, *unserved(ended, opened), *map(_restart, changes.restart)]

    async def _abandon(self, services: Iterable[str]) -> None:
        """Forget services that do not come after all."""
        await self._discovery.abandon()
        self._briefing.forget(services)

    def _grow_sockets(self, config: schema.Config, count: int) -> None:
        for listener in config.listener:
            try:
                grow(self.sockets[listener.name], listener, count)
            except BindError as exc:  # then two workers share one
                log.error("socket_shared", listener=listener.name, error=str(exc))

    def _set_config(self, config: schema.Config, contents: Contents) -> None:
        self.config, self._contents = config, contents
        self._certificates = expiries(config, contents)
        self._materials.follow(config, contents)
        self._health.follow(config, contents)
        self._crew.follow(config.gateway, self.sockets)
        self.overrides.follow(config)
        self.monitor.follow(config)
        self._brief()

    def _brief(self) -> None:
        ours = fitted(share(self.config, self._count), self._files)
        self._briefing.configure(ours, self._contents, self.sockets, self._count)

    def _publish(self, snapshot: Snapshot) -> None:
        self._health.publish(snapshot)
        self._briefing.publish(snapshot)

    # ---- what the configuration names ----

    async def _read(self, config: schema.Config) -> Contents:
        """Read it, and see that it can be used. Raises ConfigError."""
        contents = await self._materials.read(config)
        await asyncio.to_thread(check, config, contents)
        return contents

    async def _take(self, contents: Contents) -> None:
        """Other files stand where the configuration names them. Raises ConfigError, with nothing changed."""
        config = self.config
        await asyncio.to_thread(check, config, contents)
        if config is not self.config:  # a reload was faster, and its files are by other key paths
            return
        self._contents = contents
        self._certificates = expiries(config, contents)
        self._health.follow(self.config, contents)
        self._brief()

    def _renew(self, worker: WorkerProcess) -> None:
        """A client of that worker named a key that is in no set of keys."""
        self._background.start(self._renewed(worker), "newer sets of keys")

    async def _renewed(self, worker: WorkerProcess) -> None:
        await self._materials.refresh()
        await self._briefing.followed(lambda: [one for one in self._crew.all if one is worker])
        worker.tell("renewed")

    # ---- workers ----

    def _replace_soon(self, worker: WorkerProcess) -> None:
        """A worker was asked to leave by somebody else."""
        log.info("worker_asked_to_leave", worker=worker.slot, pid=worker.pid)
        if not worker.leaving and self.state != "draining":
            self._background.start(self._crew.replace(worker.slot), f"replacing worker {worker.slot}")

    def _forget(self, worker: WorkerProcess) -> None:
        self._briefing.dismiss(worker)
        self.traces.forget(worker)
        self._totals.gone(worker, self._briefing.snapshots)

    def _happened(self, worker: WorkerProcess, outcomes: dict[str, Any]) -> None:  # noqa: ARG002
        self._health.happened(outcomes)

    def _close_sockets(self) -> None:
        _close_all(self.sockets.values())

    # ---- questions ----

    async def status(self) -> Status:
        """What is going on, all workers together: as `status.made`."""
        await self._crew.ask()
        return made(self.picture())

    def picture(self, lag: float = 0.0) -> Picture:
        """What is known now; `lag` as in it."""
        workers = sorted(self._crew.all, key=lambda worker: worker.started)
        return Picture(
            at=time.time(),
            version=__version__,
            pid=os.getpid(),
            state="degraded" if self._is_degraded else self.state,
            since=self.started,
            path=load.shown(self.path),
            lag=lag,
            config=self.config,
            workers=[WorkerPicture.of(worker) for worker in workers],
            deaths=self._crew.deaths,
            totals=self._totals.of(workers),
            addresses=self.addresses(),
            snapshots=self._briefing.snapshots,
            health=self._health.status(),
            discovery=self._discovery.services(),
            clouds=self._discovery.clouds(),
            certificates=self._certificates,
            reloads=self._reloads,
            reloaded_at=self._reloaded,
            overrides=self.overrides.told(),
            alerts=self.alerting.alerts(),
            silences=self.alerting.silences(),
            receivers=self.alerting.receivers(),
        )

    async def connections(
        self, service: str | None = None, slowest: bool = False, count: int = 20
    ) -> dict[str, Any]:
        """As `connections.gathered`."""
        names = [one.name for one in self.config.service]
        return await gathered(self._crew.all, names, service, slowest, count)

    def readiness(self) -> str:
        """Why clients are not served, or nothing where they are."""
        if self.state != "ready":
            return f"the gateway is {self.state}"
        return "" if self._crew.accepts else "no worker accepts"

    @property
    def _is_degraded(self) -> bool:
        """Whether a worker is missing that should accept."""
        return self.state == "ready" and len(self._crew.current) < self._count


def _restart(path: str) -> str:
    """What a reload answers of a change that takes new processes."""
    workers = "workers are replaced now, and the connections of the old ones drain"
    return f"{path}: for new processes: {workers}; the supervisor's own lines change with `tcpgw upgrade`"


def _close_all(sockets: Iterable[Sockets]) -> None:
    for one in sockets:
        one.close()


def _close_ours(sockets: Iterable[Sockets]) -> None:
    """Close what somebody else does not keep open: that could not be opened again."""
    _close_all(one for one in sockets if not one.outlived)
