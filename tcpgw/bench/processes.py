"""The parent's side: starts the processes of a run, begins them together, and ends them in any case."""

import asyncio
import contextlib
import json
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

from tcpgw.address import Address
from tcpgw.bench.plan import BenchError, Plan, Share
from tcpgw.bench.tally import Counts, of_processes
from tcpgw.bench.tasks import together

OnProgress = Callable[[int, int], None]
"""Called with the answers and the failures of the run so far."""

# Seconds. A start is an interpreter's on a busy machine; an end is a few messages.
_START, _END = 15.0, 5.0
_LEAD = 50_000_000  # ns between the word to begin and the beginning: every process has read it by then
_LINE = 1 << 20  # bytes: the histogram is the longest, some 20 KiB at most
_SHOWN = 5  # lines of a worker's stderr


async def measure(plan: Plan, target: Address, on_progress: OnProgress) -> Counts:
    """Put one run's load on the target, and tell of its progress from the beginning (0, 0) on.

    Ends at the latest when the plan's warm-up, duration and time-out have passed, with some seconds for the
    processes themselves. Leaves no process, also when cancelled. Raises BenchError where the target cannot
    be connected to, or a process failed.
    """
    async with _started(plan, target) as workers:
        async with _limit(_START + plan.timeout, "the generator's processes did not start"):
            await together(worker.ready() for worker in workers)
        begin = time.monotonic_ns() + _LEAD
        for worker in workers:
            worker.begin(begin)

        def progress() -> None:
            on_progress(sum(worker.answers for worker in workers), sum(worker.failures for worker in workers))

        progress()
        async with _limit(
            plan.warm_up + plan.duration + plan.timeout + _END, "the generator's processes did not end"
        ):
            return of_processes(await together(worker.counts(progress) for worker in workers))


@contextlib.asynccontextmanager
async def _limit(seconds: float, complaint: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise BenchError(f"{complaint} within {seconds:g} s: is this machine overloaded?") from None


@contextlib.asynccontextmanager
async def _started(plan: Plan, target: Address) -> AsyncIterator["list[_Worker]"]:
    workers: list[_Worker] = []
    try:
        for number in range(plan.processes):
            # Cancelled half-way, it would leave a process that nobody knows.
            starting = asyncio.create_task(_Worker.start(Share(plan, target, number)))
            try:
                await asyncio.shield(starting)
            finally:
                workers.append(await starting)
        yield workers
    finally:
        await asyncio.gather(*(worker.end() for worker in workers))


class _Worker:
    """One process and what it said last."""

    def __init__(self, process: Process, share: Share) -> None:
        self.answers = self.failures = 0
        self._process = process
        self._write(share.to_json())

    @classmethod
    async def start(cls, share: Share) -> Self:
        """Start a process. Raises BenchError."""
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tcpgw.bench.worker",
                stdin=PIPE, stdout=PIPE, stderr=PIPE, limit=_LINE,
                start_new_session=True,  # a terminal's Ctrl-C is for the command, which then ends them
            )  # fmt: skip
        except OSError as exc:
            raise BenchError(f"cannot start another process: {exc.strerror}") from None
        return cls(process, share)

    async def ready(self) -> None:
        """Wait until its connections are open. Raises BenchError."""
        await self._read()

    def begin(self, begin: int) -> None:
        self._write(json.dumps({"begin": begin}))

    async def counts(self, on_progress: Callable[[], None]) -> Counts:
        """Wait for the end. Raises BenchError."""
        while "counts" not in (message := await self._read()):
            self.answers, self.failures = message["answers"], message["failures"]
            on_progress()
        return Counts.from_dict(message["counts"])

    async def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        # Reads what is left as well, or the pipes' transports would stay open.
        await self._process.communicate()

    async def _read(self) -> dict[str, Any]:
        stdout = self._process.stdout
        line = await stdout.readline() if stdout else b""
        if not line:
            stderr = await self._process.stderr.read() if self._process.stderr else b""
            last = stderr.decode(errors="replace").splitlines()[-_SHOWN:]
            raise BenchError("\n".join(("a process of the generator ended by itself:", *last)))
        message: dict[str, Any] = json.loads(line)
        if "failed" in message:
            raise BenchError(message["failed"])
        return message

    def _write(self, line: str) -> None:
        if self._process.stdin:
            # uvloop's word for a process that has died already: what reads from it next tells that better.
            with contextlib.suppress(RuntimeError):
                self._process.stdin.write(f"{line}\n".encode())
