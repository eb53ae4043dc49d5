"""Keeps a worker accepting in each slot: replaced when it dies or hangs, or when that is asked for.

A slot is empty (a worker is being brought up) or has one worker that accepts. Workers that were replaced are
leaving, until their connections have ended. What a worker is told when is `attend`'s to say.
"""

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from tcpgw.errors import TcpgwError
from tcpgw.process.worker import Command, Handlers, WorkerProcess

log = structlog.get_logger()

# Seconds without a word from a worker, which says one each second, after which it is taken to hang.
HANG = 10.0
# Seconds between looks at that.
_LOOK = 1.0
# A worker that lived for less has died quickly. The first time it is replaced at once, then with pauses that
# double from the first to the longest (seconds).
_QUICK = 10.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
# Seconds from a process's last word to its end, mostly.
_EXIT = 0.1
# Seconds from SIGKILL until all that a worker had said was taken.
_DEATH = 10.0
# Quick deaths in a row after which operators are called.
_ALARMING = 3


class Workers:
    """Owns the worker processes. Made and used in one running event loop; to be ended with `close`.

    `attend` runs for as long as its worker: it makes it accept, sets `accepting`, and keeps it up to date.
    Where it raises, the worker is killed, and so replaced. `on_end` is told of each that is gone, `spare` of
    one that came up and is not wanted any more: it is to be told to leave. `failing` is told of a slot whose
    workers die again and again: who came to it is to be served by others.
    """

    def __init__(
        self,
        command: Command,
        handlers: Handlers,
        attend: Callable[[WorkerProcess], Awaitable[None]],
        on_end: Callable[[WorkerProcess], None],
        spare: Callable[[WorkerProcess], None],
        failing: Callable[[int], None],
    ) -> None:
        self.all: set[WorkerProcess] = set()
        self.deaths = 0  # of workers that nobody had told to leave
        self._command = command
        self._handlers = handlers
        self._attend = attend
        self._on_end = on_end
        self._spare = spare
        self._failing = failing
        self._slots: dict[int, WorkerProcess | None] = {}
        self._filling: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)  # one comes up at a time
        self._quick: dict[int, int] = {}  # quick deaths in a row
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._closing = False
        self._start(self._watch())

    # ---- what is asked for ----

    @property
    def slots(self) -> list[int]:
        return sorted(self._slots)

    @property
    def current(self) -> list[WorkerProcess]:
        """The workers that accept, by slot."""
        return [worker for _, worker in sorted(self._slots.items()) if worker]

    async def resize(self, count: int) -> list[WorkerProcess]:
        """Have slots 1 to `count`. Returns, when each has a worker that accepts, those now without a slot."""
        for slot in range(1, count + 1):
            if slot not in self._slots:
                self._slots[slot] = None
                self._start(self._fill(slot))
        while not all(self._slots.get(slot) for slot in range(1, count + 1)):
            await self._change()
        return [worker for slot in self.slots if slot > count and (worker := self._slots.pop(slot))]

    async def replace(self, slot: int) -> WorkerProcess | None:
        """Put a fresh worker in a slot. Returns, when it accepts, the one that was there, or None.

        Raises WorkerError where it dies before; then the old one stays.
        """
        async with self._filling[slot]:
            successor = await self._bring_up(slot)
            if successor is None:
                raise WorkerError(
                    f"a new worker {slot} does not come up, so the old one stays: see the log above"
                )
            if slot not in self._slots:
                self._spare(successor)
                raise WorkerError(f"there is no slot {slot} any more")
            old, self._slots[slot] = self._slots[slot], successor
            return old

    def dismiss(self, worker: WorkerProcess, seconds: float) -> None:
        """Note that a worker was told to leave. It is killed after so many seconds."""
        worker.leaving = True
        self._start(self._see_out(worker, seconds))

    async def gone(self) -> None:
        """Return when no worker is left. None is replaced any more."""
        self._closing = True
        while self.all:
            await self._change()

    async def close(self) -> None:
        """Kill what is left. Idempotent."""
        self._closing = True
        for worker in self.all:
            worker.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DEATH):
                await self.gone()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- bringing up ----

    async def _fill(self, slot: int) -> None:
        """Bring up a worker for an empty slot, however often it takes."""
        async with self._filling[slot]:
            while not self._closing and slot in self._slots and self._slots[slot] is None:
                worker = await self._bring_up(slot)
                if worker is None:
                    continue
                if slot in self._slots:
                    self._slots[slot] = worker
                else:
                    self._spare(worker)
        self._changed.set()

    async def _bring_up(self, slot: int) -> WorkerProcess | None:
        """Start a worker and return it when it accepts, or None where it died before."""
        quick = self._quick.get(slot, 0)
        if quick > 1:
            await asyncio.sleep(min(_FIRST_PAUSE * 2.0 ** (quick - 2), _LONGEST_PAUSE))
        if self._closing:
            return None
        try:
            worker = WorkerProcess.start(slot, self._command, self._handlers)
        except OSError as exc:
            self._quick[slot] = quick + 1
            log.error("worker_not_started", worker=slot, error=str(exc), times=quick + 1)
            return None
        self.all.add(worker)
        self._start(self._live(worker))
        while not worker.accepting.is_set() and not worker.ended.is_set():
            await self._change()
        if worker.ended.is_set():
            return None
        took = round(time.monotonic() - worker.started, 3)
        log.info("worker_ready", worker=slot, pid=worker.pid, seconds=took)
        return worker

    # ---- one worker ----

    async def _live(self, worker: WorkerProcess) -> None:
        """See a worker through from its start to its end."""
        attending = asyncio.create_task(self._attended(worker))
        try:
            await worker.ended.wait()
        finally:
            attending.cancel()
            await asyncio.gather(attending, return_exceptions=True)
            await worker.close()
        self.all.discard(worker)
        self._on_end(worker)
        self._tell_of(worker)
        if self._slots.get(worker.slot) is worker:
            self._slots[worker.slot] = None
            self._start(self._fill(worker.slot))
        self._changed.set()

    async def _attended(self, worker: WorkerProcess) -> None:
        accepting = asyncio.create_task(worker.accepting.wait())
        accepting.add_done_callback(lambda _: self._changed.set())
        try:
            await self._attend(worker)
        except TcpgwError as exc:
            await asyncio.sleep(_EXIT)  # it may be about to say by its end what was wrong
            if worker.runs and not worker.leaving:
                log.error("worker_killed", worker=worker.slot, pid=worker.pid, error=str(exc))
                worker.kill()
        except Exception:  # a bug here must not leave a worker that nobody tells anything
            log.exception("worker_killed", worker=worker.slot, pid=worker.pid)
            worker.kill()
        finally:
            accepting.cancel()

    def _tell_of(self, worker: WorkerProcess) -> None:
        lived = round(time.monotonic() - worker.started, 3)
        facts = {"worker": worker.slot, "pid": worker.pid, "code": worker.code, "lived": lived}
        if worker.leaving or self._closing:
            tell = log.info if worker.code == 0 else log.error
            tell("worker_ended", **facts)
            return
        self.deaths += 1
        quick = self._quick[worker.slot] = self._quick.get(worker.slot, 0) + 1 if lived < _QUICK else 1
        log.error("worker_died", **facts, connections_lost=worker.connections)
        if quick >= _ALARMING:
            hint = (
                "it is tried again; see what it logged, free memory, and whether tcpgw was changed below it"
            )
            log.critical("worker_keeps_dying", worker=worker.slot, times=quick, hint=hint)
            self._failing(worker.slot)

    async def _see_out(self, worker: WorkerProcess, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await worker.ended.wait()
        except TimeoutError:
            log.error("worker_killed", worker=worker.slot, pid=worker.pid, error="it did not leave in time")
            worker.kill()

    # ---- time ----

    async def _watch(self) -> None:
        """Kill whoever hangs. Where this loop itself was stopped, nobody could be heard."""
        looked = time.monotonic()
        while True:
            await asyncio.sleep(_LOOK)
            now = time.monotonic()
            stopped = now - looked - _LOOK
            looked = now
            for worker in list(self.all):
                if stopped > _LOOK:
                    worker.heard += stopped
                elif now - worker.heard > HANG:
                    log.error(
                        "worker_hung", worker=worker.slot, pid=worker.pid, silent=round(now - worker.heard)
                    )
                    worker.kill()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):  # a bug, and no reason to stop the others
            context = {"message": "a task of the supervisor failed", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)


class WorkerError(TcpgwError):
    """A worker does not come up."""
