"""Traces: what an operator who looks at some clients' connections is told, by all workers.

A trace is begun, asked for events again and again, and ends when its time is over, when that is asked for, or
when nobody has asked for a while: whoever looked is gone then. So one that was forgotten costs nobody for
long, and a worker that has lost its supervisor ends it by itself.
"""

import asyncio
import contextlib
import secrets
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable
from itertools import islice
from typing import Any

import structlog
from pydantic import TypeAdapter, ValidationError

from tcpgw.app.background import Background
from tcpgw.app.control import RefusedError
from tcpgw.config.values import Network
from tcpgw.errors import TcpgwError
from tcpgw.process.worker import WorkerProcess
from tcpgw.relay.tracing import Event, dropped

log = structlog.get_logger()

MOST_TRACES = 4
"""At a time: each is one more look at the address of whoever connects."""
LONGEST = 600.0
"""Seconds of a trace. What is to be known for longer is the log's."""

# Seconds without a question after which whoever asked is taken to be gone.
_PATIENCE = 10.0
# Seconds that a question waits for events.
_POLL = 1.0
# Events of a trace that wait for a question, and that are an answer: some 3 MB, and 300 kB.
_MOST_EVENTS, _AT_ONCE = 10_000, 1000
# What is counted of that which is not told.
_LOST = ("connections", "requests", "events")
# Seconds that a worker has to begin or end a trace. One that takes longer does it then.
_WORKER = 1.0

_NETWORK: TypeAdapter[Any] = TypeAdapter(Network)

Attend = Callable[[WorkerProcess], Awaitable[None]]


def network_of(value: Any) -> str:
    """Return a network as workers are told it. Raises RefusedError where it is none that a file may have."""
    try:
        return str(_NETWORK.validate_python(value))
    except ValidationError as exc:
        raise RefusedError(str(exc.errors()[0]["ctx"]["error"])) from None


class _Trace:
    """One trace. `asking` are the questions that wait."""

    def __init__(self, network: str, now: float, seconds: float) -> None:
        self.network = network
        self.ends = now + seconds
        self.asked = now
        self.asking = 0
        self.ending = asyncio.Event()
        self.over = False  # nothing more comes
        self.news = asyncio.Event()
        self.told = 0
        self._events: deque[Event] = deque()
        self._lost: Counter[str] = Counter()  # as in the event `dropped`

    def __bool__(self) -> bool:
        """Whether there is something to be asked for."""
        return bool(self._events or self._lost)

    def add(self, event: Event) -> None:
        if len(self._events) < _MOST_EVENTS:
            self._events.append(event)
        elif event["event"] == "dropped":
            self._lost.update({what: event[what] for what in _LOST})
        else:
            self._lost["events"] += 1
        self.news.set()

    def take(self) -> list[Event]:
        taken = list(islice(self._events, _AT_ONCE))
        for _ in taken:
            self._events.popleft()
        if self._lost and not self._events:
            taken.append(dropped(time.time(), **{what: self._lost[what] for what in _LOST}))
            self._lost.clear()
        self.told += len(taken)
        return taken

    def until(self, patience: float) -> float:
        """When it ends, as far as can be said now."""
        return self.ends if self.asking else min(self.ends, self.asked + patience)


class Traces:
    """The supervisor's side. `workers` are all that there are; `first_of` is to attend to each new one.

    Used in one running event loop.
    """

    def __init__(
        self,
        workers: Callable[[], Iterable[WorkerProcess]],
        background: Background,
        *,
        patience: float = _PATIENCE,
    ) -> None:
        self._workers = workers
        self._background = background
        self._patience = patience
        self._traces: dict[str, _Trace] = {}

    # ---- what is asked for ----

    async def begin(self, network: Any, seconds: Any) -> str:
        """Trace the clients of a network for so long. Returns the trace's name, once all workers do.

        Raises RefusedError where it is none, or too long, or too many run.
        """
        network = network_of(network)
        if not isinstance(seconds, int | float) or not 0 < seconds <= LONGEST:
            raise RefusedError(f"a trace takes more than 0 and at most {LONGEST:g} s, not {seconds!r}")
        if len(self._traces) >= MOST_TRACES:
            running = ", ".join(one.network for one in self._traces.values())
            raise RefusedError(
                f"{len(self._traces)} traces run already, of {running}: end one with Ctrl-C, or wait for it"
            )
        name = secrets.token_hex(4)  # another gateway's must not be taken for it
        trace = self._traces[name] = _Trace(network, time.monotonic(), seconds)
        self._background.start(self._watch(name, trace), f"trace of {network}")
        log.info("trace_begun", trace=name, client=network, seconds=seconds)
        await self._tell("trace_begin", name, network, seconds)
        return name

    async def next(self, name: str) -> dict[str, Any]:
        """Return `events`, as soon as there are some, and whether that was all: it is `over`.

        Without any, it returns after a second. Raises RefusedError.
        """
        trace = self._traces.get(name)
        if trace is None:
            raise RefusedError(f"there is no trace {name}: it is over, or was another gateway process's")
        trace.asking += 1
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL):
                    while not trace and not trace.over:
                        trace.news.clear()
                        await trace.news.wait()
        finally:
            trace.asking -= 1
            trace.asked = time.monotonic()
        events = trace.take()
        over = trace.over and not trace
        if over:
            self._traces.pop(name, None)
        return {"events": events, "over": over}

    async def end(self, name: str) -> None:
        """End a trace; what there is can still be asked for. Idempotent."""
        if name in self._traces:
            self._traces[name].ending.set()

    # ---- workers ----

    def first_of(self, attend: Attend) -> Attend:
        """What tells a worker that is new what is traced, before it `attend`s to it and that one accepts."""

        async def both(worker: WorkerProcess) -> None:
            now = time.monotonic()
            for name, trace in self._traces.items():
                if not trace.ending.is_set():
                    worker.tell("trace_begin", name, trace.network, trace.ends - now)
            await attend(worker)

        return both

    def take(self, worker: WorkerProcess, name: str, events: list[Event]) -> None:
        """Take what a worker tells."""
        trace = self._traces.get(name)
        if trace is not None:
            for event in events:
                trace.add({"at": event.pop("at"), "worker": worker.slot, "pid": worker.pid, **event})

    def forget(self, worker: WorkerProcess) -> None:
        """A worker is gone, and with it whatever connection of its was not told to be closed."""
        event = {
            "at": round(time.time(), 6),
            "worker": worker.slot,
            "pid": worker.pid,
            "event": "worker_gone",
        }
        for trace in self._traces.values():
            if not trace.over:
                trace.add(dict(event))

    async def _tell(self, what: str, *params: object) -> None:
        async def one(worker: WorkerProcess) -> None:
            if worker.accepting.is_set():
                with contextlib.suppress(TcpgwError):
                    await worker.call(what, *params, timeout=_WORKER)
            else:
                worker.tell(what, *params)

        await asyncio.gather(*map(one, self._workers()))

    async def _watch(self, name: str, trace: _Trace) -> None:
        """See a trace to its end, and a while longer for the last question of who is still there."""
        while (left := trace.until(self._patience) - time.monotonic()) > 0 and not trace.ending.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, self._patience)):
                    await trace.ending.wait()
        trace.ending.set()  # who comes while the others are told is not to begin
        await self._tell("trace_end", name)
        trace.over = True
        trace.news.set()
        log.info("trace_ended", trace=name, client=trace.network, events=trace.told)
        if trace.asking or time.monotonic() - trace.asked < self._patience:
            await asyncio.sleep(self._patience)
        self._traces.pop(name, None)
