"""What happens once per host: configuration, listening sockets, discovery, workers, and who asks about them.

Everything that workers are to know is state here (the configuration with its sockets, and a snapshot for each
service), and each worker is brought up to it by a task of its own, `_attend`: whether it is new, was busy or
missed a change makes no difference, and a worker that hangs keeps no other waiting.
"""

import asyncio
import os
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from socket import socket
from types import TracebackType
from typing import Any, Self

import structlog

from tcpgw import __version__
from tcpgw.app.background import Background
from tcpgw.app.discovery import Discovery
from tcpgw.app.sockets import grow, open_sockets
from tcpgw.config import load, schema, transfer
from tcpgw.config.diff import diff
from tcpgw.config.share import share
from tcpgw.endpoints import Snapshot
from tcpgw.errors import TcpgwError
from tcpgw.observe.totals import counted, summed
from tcpgw.process.handover import Sockets
from tcpgw.process.limits import cpus, fitting, needed_files, raise_open_files
from tcpgw.process.supervisor import Workers
from tcpgw.process.worker import Handlers, WorkerProcess
from tcpgw.relay.sockets import BindError

log = structlog.get_logger()

# Seconds that a worker has to do what it is told, beside the time that its instances take to be connected to.
_PATIENCE = 10.0
# Seconds after gateway.hard_stop in which a worker must have gone.
_GRACE = 5.0


class Supervisor:
    """`async with` opens the sockets and starts discovery; `start` has workers accept on them.

    `path` is the configuration's file, which `reload` reads again. `passed` sockets are systemd's, `handed`
    ones a predecessor's. Raises BindError and CredentialError on entry, with nothing left open. Leaving the
    context kills the workers: `drain` before.
    """

    def __init__(
        self,
        config: schema.Config,
        path: Path,
        *,
        passed: Mapping[str, socket] | None = None,
        handed: Mapping[str, Sockets] | None = None,
    ) -> None:
        self.config = config
        self.path = path
        self.state = "starting"
        self.started = time.time()
        self.sockets: dict[str, Sockets] = {}
        self._passed = passed or {}
        self._handed = handed
        self._files = raise_open_files()
        self._count = config.gateway.workers or cpus()
        self._snapshots: dict[str, Snapshot] = {}
        self._generation = 0
        self._plain: dict[str, Any] = {}
        self._news = asyncio.Event()  # for workers to be told
        self._progress = asyncio.Event()  # in their being told
        self._told: dict[WorkerProcess, int] = {}
        self._past: dict[str, Any] = {}
        self._reloading = asyncio.Lock()
        self._background = Background()
        self._stack = AsyncExitStack()
        self._discovery = Discovery(config, self._publish, self._background)
        self._workers: Workers

    async def __aenter__(self) -> Self:
        try:
            self.sockets = open_sockets(
                self.config.listener, self._count, passed=self._passed, handed=self._handed
            )
            self._stack.callback(self._close_sockets)
            self._stack.push_async_callback(self._background.close)
            await self._stack.enter_async_context(self._discovery)
            handlers: Handlers = {"beat": _nothing, "report": _reported, "leave": self._replace_soon}
            self._workers = Workers(self._command, handlers, self._attend, self._forget)
            self._stack.push_async_callback(self._workers.close)
            self._set_config(self.config)
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
        """Return when every service has a snapshot or has waited for it, and every worker accepts."""
        await self._discovery.first_snapshots()
        await self._workers.resize(self._count)
        self.state = "ready"

    def addresses(self) -> dict[str, str]:
        """Where clients connect, by listener."""
        return {name: one.address for name, one in self.sockets.items()}

    def endpoints(self) -> dict[str, int]:
        return {
            service.name: len(self._snapshots[service.name].members) if service.name in self._snapshots else 0
            for service in self.config.service
        }

    def pids(self) -> list[int]:
        return [worker.pid for worker in self._workers.current]

    async def drain(self, taken: Iterable[str] = ()) -> int:
        """Have the workers leave, and return, when they have, how many connections were cut.

        `taken` are the listeners on whose sockets another supervisor accepts.
        """
        self.state = "draining"
        outlived = {*taken, *(name for name, one in self.sockets.items() if one.outlived)}
        # First, so that the workers' are the last: they take who still waits, and then clients are refused.
        self._close_sockets()
        for worker in list(self._workers.all):
            self._dismiss(worker, outlived)
        await self._workers.gone()
        return int(self._past.get("cut", 0))

    def stop(self) -> None:
        """End all connections now; `drain` returns then."""
        for worker in self._workers.all:
            worker.tell("stop")

    # ---- changes ----

    async def reload(self) -> list[str]:
        """Read the configuration's file again and apply what changed; return what that is, line by line.

        Raises ConfigError, BindError or CredentialError with the configuration in force as it was.
        """
        async with self._reloading:
            began = time.monotonic()
            try:
                lines = await self._reload(await asyncio.to_thread(load.load, self.path))
            except TcpgwError as exc:
                hint = "the configuration in force stays as it is"
                log.error("reload_refused", path=str(self.path), error=str(exc), hint=hint)
                raise
            seconds = round(time.monotonic() - began, 4)
            log.info("reloaded", path=str(self.path), changes=lines, seconds=seconds)
            return lines

    async def _reload(self, config: schema.Config) -> list[str]:
        changes = diff(self.config, config)
        count = config.gateway.workers or cpus()
        removed = {self.sockets[name].bind: name for name in changes.listeners.removed}
        added = [one for one in config.listener if one.name in changes.listeners.added]
        renamed = {
            one.name: removed[str(one.bind)]
            for one in added
            if not one.bind.is_any and str(one.bind) in removed
        }
        async with AsyncExitStack() as undo:
            # What may fail comes first, so that a refused file has changed nothing.
            opened = open_sockets((one for one in added if one.name not in renamed), count)
            undo.callback(_close_all, opened.values())
            self._discovery.begin(config)
            undo.push_async_callback(self._discovery.abandon)
            await self._discovery.first_snapshots()
            undo.pop_all()
        opened |= {new: self.sockets.pop(old) for new, old in renamed.items()}
        kept = {*renamed.values()}
        _close_all(self.sockets.pop(name) for name in changes.listeners.removed if name not in kept)
        self.sockets |= opened
        before, self._count = self._count, count
        if count > before:
            self._grow_sockets(config, count)
        self._set_config(config)
        await self._discovery.finish()
        await self._followed()
        for worker in await self._workers.resize(count):
            self._dismiss(worker, self.sockets)
        if changes.restart:
            self._background.start(self._replace_all(), "replacing the workers")
        return list(changes.lines)

    def _grow_sockets(self, config: schema.Config, count: int) -> None:
        for listener in config.listener:
            try:
                grow(self.sockets[listener.name], listener, count)
            except BindError as exc:  # then two workers share one
                log.error("socket_shared", listener=listener.name, error=str(exc))

    def _set_config(self, config: schema.Config) -> None:
        self.config = config
        self._plain = transfer.plain(_fitted(share(config, self._count), self._files))
        self._generation += 1
        self._news.set()

    async def _followed(self) -> None:
        """Return when every worker that accepts has the configuration in force."""
        while any(
            worker.accepting.is_set() and not worker.leaving and self._told.get(worker, 0) < self._generation
            for worker in self._workers.all
        ):
            self._progress.clear()
            await self._progress.wait()

    async def _publish(self, snapshot: Snapshot) -> None:
        self._snapshots[snapshot.service] = snapshot
        self._news.set()

    # ---- workers ----

    def _command(self, slot: int, descriptor: int) -> list[str]:
        settings = self.config.gateway.log
        arguments = (slot, descriptor, settings.format, settings.level)
        return [sys.executable, "-m", "tcpgw.app.worker", *map(str, arguments)]

    async def _attend(self, worker: WorkerProcess) -> None:
        """Bring a worker up to what is in force, for as long as it lives."""
        told: dict[str, Snapshot] = {}
        given: set[socket] = set()
        while not worker.leaving:
            generation = self._generation
            if self._told.get(worker) != generation:
                await self._configure(worker, given)
                self._told[worker] = generation
            for service, snapshot in list(self._snapshots.items()):
                if told.get(service) is not snapshot:
                    await worker.call("publish", *_plain_snapshot(snapshot), timeout=_PATIENCE)
                    told[service] = snapshot
            if not worker.accepting.is_set():
                longest = max(service.connect.timeout for service in self.config.service)
                await worker.call("accept", timeout=_PATIENCE + 2 * longest * len(self.config.service))
                worker.accepting.set()
            self._progress.set()
            if generation == self._generation and all(
                told.get(service) is snapshot for service, snapshot in self._snapshots.items()
            ):
                self._news.clear()
                await self._news.wait()

    async def _configure(self, worker: WorkerProcess, given: set[socket]) -> None:
        names: list[list[Any]] = []
        fds: list[int] = []
        for name, sockets in self.sockets.items():
            new = [sock for sock in sockets.of_worker(worker.slot, self._count) if sock not in given]
            given.update(new)
            if new:
                names.append([name, len(new)])
                fds += [sock.fileno() for sock in new]
        outlived = [name for name, one in self.sockets.items() if one.outlived]
        await worker.call("configure", self._plain, names, outlived, fds=fds, timeout=_PATIENCE)

    def _dismiss(self, worker: WorkerProcess, outlived: Iterable[str]) -> None:
        """Have a worker leave. Who waits in a queue that is `outlived` is served by somebody else."""
        gateway = self.config.gateway
        worker.tell("drain", gateway.drain, gateway.hard_stop, sorted(outlived))
        self._workers.dismiss(worker, gateway.hard_stop + _GRACE)

    async def _replace(self, slot: int) -> None:
        try:
            old = await self._workers.replace(slot)
        except TcpgwError as exc:
            log.error("worker_not_replaced", worker=slot, error=str(exc))
            return
        if old is not None:
            self._dismiss(old, self.sockets)

    async def _replace_all(self) -> None:
        """One after another, so that there is always somebody who knows the instances."""
        for slot in self._workers.slots:
            await self._replace(slot)

    def _replace_soon(self, worker: WorkerProcess) -> None:
        """A worker was asked to leave by somebody else."""
        if not worker.leaving and self.state != "draining":
            self._background.start(self._replace(worker.slot), f"replacing worker {worker.slot}")

    def _forget(self, worker: WorkerProcess) -> None:
        self._told.pop(worker, None)
        self._past = summed([self._past, counted(worker.report)])
        self._progress.set()

    def _close_sockets(self) -> None:
        _close_all(self.sockets.values())

    # ---- questions ----

    async def status(self) -> dict[str, Any]:
        """What is going on, all workers together; see README for the keys."""
        workers = [worker for worker in self._workers.all if worker.accepting.is_set()]
        await asyncio.gather(*(self._ask(worker) for worker in workers))
        total = summed([self._past, *(worker.report for worker in self._workers.all)])
        return {
            "version": __version__,
            "pid": os.getpid(),
            "state": self.state,
            "since": self.started,
            "workers": [
                _described(worker) for worker in sorted(self._workers.all, key=lambda one: one.started)
            ],
            "worker_deaths": self._workers.deaths,
            "listeners": self._listeners(total.get("listeners", {})),
            "services": self._services(total.get("services", {})),
        }

    async def _ask(self, worker: WorkerProcess) -> None:
        try:
            worker.report = await worker.call("report", timeout=1.0)
        except TcpgwError:
            log.warning("worker_not_heard", worker=worker.slot, hint="its figures are up to some seconds old")

    def _listeners(self, totals: Mapping[str, Any]) -> dict[str, Any]:
        addresses = self.addresses()
        return {name: {"address": addresses.get(name), **figures} for name, figures in totals.items()}

    def _services(self, totals: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for service in self.config.service:
            snapshot = self._snapshots.get(service.name)
            figures = totals.get(service.name, {})
            counts = figures.get("endpoints", {})
            members = snapshot.members if snapshot else ()
            found[service.name] = {
                **figures,
                "version": snapshot.version if snapshot else None,
                "taken_at": snapshot.taken_at if snapshot else None,
                "endpoints": {
                    str(endpoint): {**counts.get(str(endpoint), {}), "weight": weight}
                    for endpoint, weight in members
                },
            }
        return found


def _fitted(config: schema.Config, files: int) -> schema.Config:
    """Lower a worker's `max_connections` to what its open files are enough for.

    So clients beyond it wait in the kernel's queue, where otherwise they would be accepted with the last
    descriptor and turned away for want of one to connect with.
    """
    total = sum(listener.max_connections for listener in config.listener)
    part = fitting(total, files)
    if part == 1:
        return config
    fitted = tuple(
        listener.model_copy(update={"max_connections": max(1, int(listener.max_connections * part))})
        for listener in config.listener
    )
    log.warning(
        "max_connections_lowered",
        open_files=files,
        needed=needed_files(total),
        max_connections={listener.name: listener.max_connections for listener in fitted},
        hint="of each worker: raise LimitNOFILE= or ulimit -n, or lower max_connections",
    )
    return config.model_copy(update={"listener": fitted})


def _close_all(sockets: Iterable[Sockets]) -> None:
    for one in sockets:
        one.close()


def _plain_snapshot(snapshot: Snapshot) -> tuple[object, ...]:
    members = [[endpoint.host, endpoint.port, weight] for endpoint, weight in snapshot.members]
    return snapshot.service, snapshot.version, snapshot.taken_at, members


def _described(worker: WorkerProcess) -> dict[str, Any]:
    state = "leaving" if worker.leaving else "accepting" if worker.accepting.is_set() else "starting"
    return {
        "worker": worker.slot,
        "pid": worker.pid,
        "state": state,
        "connections": worker.connections,
        "age": round(time.monotonic() - worker.started, 3),
    }


def _nothing(_: WorkerProcess) -> None:
    """It was heard: that is all."""


def _reported(worker: WorkerProcess, report: dict[str, Any]) -> None:
    worker.report = report
