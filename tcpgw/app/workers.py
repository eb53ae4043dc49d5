"""The supervisor's workers: how they are started, asked and told to leave, and who accepts for whom.

`process.supervisor.Workers` keeps one in each slot. Here is what that does not know: what a worker executes,
that one which leaves drains first, that another accepts for a slot whose workers die again and again, and
what workers are to know of each other.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import structlog

from tcpgw.app.usage import Elsewhere, Told, Usage
from tcpgw.config import schema
from tcpgw.errors import TcpgwError
from tcpgw.process.execution import interpreter
from tcpgw.process.supervisor import Workers
from tcpgw.process.worker import Handlers, WorkerProcess

log = structlog.get_logger()

# What a worker executes. rich is for tracebacks on a terminal, which nobody asks for here; structlog would
# take 40 of the 250 ms of a start to import it. Nor is there garbage to look for in what is imported.
_WORKER = (
    "import gc, sys; gc.disable(); sys.modules['rich'] = None; from tcpgw.app.worker import main; main()"
)
# Seconds that a change waits for additional workers; then they go on coming up without it.
_COMING_UP = 30.0
# Seconds after gateway.cut_after in which a worker must have gone.
_GRACE = 5.0
# Seconds that a worker which is asked for its figures has; then its last ones count.
_PATIENCE = 1.0


class Crew:
    """The workers, from `begin` on; to be ended with `close`. Used in one running event loop.

    `stood_in` is called when one is to accept on more slots' sockets than before: see `slots`.
    """

    def __init__(self, gateway: schema.Gateway, stood_in: Callable[[], None]) -> None:
        self._gateway = gateway
        self._listeners: Iterable[str] = ()
        self._stood_in = stood_in
        self._stood_in_for: dict[int, set[int]] = {}  # by the slot that does
        self._usage = Usage()
        self._on_end: Callable[[WorkerProcess], None] = _nothing
        self._workers: Workers

    def begin(
        self,
        handlers: Handlers,
        attend: Callable[[WorkerProcess], Awaitable[None]],
        on_end: Callable[[WorkerProcess], None],
    ) -> None:
        """Have workers from now on, though none yet. `attend` and `on_end` are as of `Workers`.

        `handlers` say what becomes of what workers tell that is not taken here.
        """
        self._on_end = on_end
        handlers = {"beat": _nothing, "report": _reported, "usage": self._used, **handlers}
        self._workers = Workers(self._command, handlers, attend, self._ended, self._send_away, self._stand_in)

    def follow(self, gateway: schema.Gateway, listeners: Iterable[str]) -> None:
        """Go by these settings; clients of these listeners are served by the others when a worker leaves."""
        self._gateway, self._listeners = gateway, listeners

    async def close(self) -> None:
        """Kill all that there are."""
        await self._workers.close()

    # ---- who there is ----

    @property
    def all(self) -> set[WorkerProcess]:
        return self._workers.all

    @property
    def current(self) -> list[WorkerProcess]:
        """The workers that accept, by slot."""
        return self._workers.current

    @property
    def deaths(self) -> int:
        """Of workers that nobody had told to leave."""
        return self._workers.deaths

    @property
    def accepts(self) -> bool:
        """Whether clients are served by any."""
        return any(worker.accepting.is_set() and not worker.leaving for worker in self._workers.all)

    def slots(self, worker: WorkerProcess) -> tuple[int, ...]:
        """On which slots' sockets it is to accept."""
        return worker.slot, *self._stood_in_for.get(worker.slot, ())

    def _stand_in(self, slot: int) -> None:
        """Have another worker accept on the sockets of a slot too: its clients would wait for nobody.

        For good, which harms nobody when the slot has a worker again: then both accept.
        """
        helpers = [worker.slot for worker in self._workers.current if worker.slot != slot]
        if helpers and not any(slot in slots for slots in self._stood_in_for.values()):
            helper = helpers[slot % len(helpers)]
            self._stood_in_for.setdefault(helper, set()).add(slot)
            log.warning("worker_stands_in", worker=helper, of=slot)
            self._stood_in()

    # ---- coming and going ----

    async def start(self, count: int) -> None:
        """Return when each of so many slots has a worker that accepts."""
        await self._workers.resize(count)

    async def resize(self, count: int) -> None:
        """As `start`, with a limit to the waiting; have those leave that are too many now."""
        try:
            async with asyncio.timeout(_COMING_UP):
                left = await self._workers.resize(count)
        except TimeoutError:
            log.error("workers_missing", wanted=count, hint="they are tried again: see the log above")
            return
        for worker in left:
            self._send_away(worker)

    async def replace(self, slot: int) -> None:
        """Put a fresh worker in a slot, and have the old one leave; where none comes up that one stays."""
        try:
            old = await self._workers.replace(slot)
        except TcpgwError as exc:
            log.error("worker_not_replaced", worker=slot, error=str(exc))
            return
        if old is not None:
            self._send_away(old)

    async def replace_all(self) -> None:
        """One after another, so that there is always somebody who knows the instances."""
        for slot in self._workers.slots:
            await self.replace(slot)

    async def drain(self, outlived: Iterable[str]) -> None:
        """Have all leave, and return when they have. `outlived`: whose queues somebody else serves."""
        for worker in list(self._workers.all):
            self._dismiss(worker, outlived)
        await self._workers.gone()

    def stop(self) -> None:
        """End all their connections now; `drain` returns then."""
        for worker in self._workers.all:
            worker.interrupt()

    def _command(self, slot: int, descriptor: int) -> list[str]:
        settings = self._gateway.log
        arguments = (slot, descriptor, settings.format, settings.level)
        return [*interpreter(), "-c", _WORKER, *map(str, arguments)]

    def _send_away(self, worker: WorkerProcess) -> None:
        self._dismiss(worker, self._listeners)

    def _dismiss(self, worker: WorkerProcess, outlived: Iterable[str]) -> None:
        """Have a worker leave. Who waits in a queue that is `outlived` is served by somebody else."""
        gateway = self._gateway
        worker.tell("drain", gateway.drain, gateway.cut_after, sorted(outlived))
        self._workers.dismiss(worker, gateway.cut_after + _GRACE)

    def _ended(self, worker: WorkerProcess) -> None:
        _tell_usage(self._usage.forget(worker))
        self._on_end(worker)

    # ---- what they tell ----

    async def ask(self) -> None:
        """Have every worker that accepts tell what it counted, as far as it does at once."""
        await asyncio.gather(*(_ask(worker) for worker in self._workers.all if worker.accepting.is_set()))

    def _used(self, worker: WorkerProcess, told: Told) -> None:
        _tell_usage(self._usage.note(worker, told))


def _tell_usage(news: Mapping[WorkerProcess, Elsewhere]) -> None:
    """Have workers know how much their neighbours' clients use of what is limited."""
    for worker, elsewhere in news.items():
        worker.tell("elsewhere", elsewhere)


async def _ask(worker: WorkerProcess) -> None:
    try:
        await worker.call("report", timeout=_PATIENCE)  # answered when `_reported` has it
    except TcpgwError:
        log.warning("worker_not_heard", worker=worker.slot, hint="its figures are up to some seconds old")


def _nothing(_: WorkerProcess) -> None:
    """It was heard: that is all."""


def _reported(worker: WorkerProcess, report: dict[str, Any]) -> None:
    worker.report = report
