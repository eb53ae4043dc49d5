"""One process's load, from the first connection to the last answer.

A request costs no task and no timer: connections are protocol classes, a pace says when they send, and one
sweep finds what ran into the time-out.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from tcpgw.bench.connection import Connection
from tcpgw.bench.exchange import make_exchange
from tcpgw.bench.pace import make_pace
from tcpgw.bench.payload import Stream
from tcpgw.bench.plan import BenchError, Share
from tcpgw.bench.schedule import backoff
from tcpgw.bench.tally import LOST, TIMEOUT, UNSENT, Counts, Tally
from tcpgw.bench.tasks import together

_SECOND = 1_000_000_000
_SWEEP = 0.02  # s between looks at what ran into the time-out
_CONNECTING = 50  # at once: a listener's queue may be as short as 128


class Load:
    """A process's connections and what is sent on them: `open`, then `run`, once each, then `close`."""

    def __init__(self, share: Share) -> None:
        self.tally = Tally()
        self._share = share
        self._plan = share.plan
        self._timeout = round(share.plan.timeout * _SECOND)
        self._pace = make_pace(share)
        self._stream = Stream()
        self._connections: dict[int, Connection] = {}
        self._strays = 0
        self._settled = asyncio.Event()

    async def open(self) -> None:
        """Open every connection. Raises BenchError where one cannot be; the others are then still open."""
        gate = asyncio.Semaphore(_CONNECTING)

        async def one(number: int) -> None:
            async with gate:
                await self._connect(number)

        first, *others = self._plan.connections_of(self._share.process)
        await one(first)  # alone, so that a target that is not there is asked once
        await together(map(one, others))

    async def run(self, begin: int) -> Counts:
        """Send from `begin` on (nanoseconds of time.monotonic_ns), and return what the plan's window counted.

        Ends when everything is answered or given up: at the latest `timeout` after the last request.
        """
        window = begin + round(self._plan.warm_up * _SECOND)
        end = window + round(self._plan.duration * _SECOND)
        self.tally.open(window, end)
        async with self._kept():
            with self._pace.running(begin):
                await _until(window)
                cpu = time.process_time()
                await _until(end)
                cpu = time.process_time() - cpu
                self._pace.stop()
                self._settled.clear()
                await self._settled.wait()
        self._strays += sum(connection.exchange.strays for connection in self._connections.values())
        return self.tally.finish(cpu_seconds=cpu, strays=self._strays)

    def close(self) -> None:
        """Close every connection at once. Idempotent."""
        for connection in self._connections.values():
            connection.close()

    @contextlib.asynccontextmanager
    async def _kept(self) -> AsyncIterator[None]:
        """Reopen connections and give up requests, for as long as the context lasts."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._keep(number)) for number in self._connections]
            tasks.append(group.create_task(self._sweep()))
            yield
            for task in tasks:
                task.cancel()

    async def _keep(self, number: int) -> None:
        """Open a connection again whenever it is lost, ever later while that is no use."""
        failures = 0
        while True:
            connection = self._connections[number]
            await connection.gone.wait()
            self.tally.lost()
            self.tally.failed(connection.exchange.abandon(), LOST, time.monotonic_ns())
            self._strays += connection.exchange.strays
            connection.exchange.strays = 0
            failures = 0 if connection.useful else failures + 1
            failures = await self._reopen(number, failures)

    async def _reopen(self, number: int, failures: int) -> int:
        while True:
            await asyncio.sleep(backoff(failures))
            try:
                await self._connect(number)
            except BenchError:
                self.tally.connect_failed()
                failures += 1
            else:
                return failures

    async def _connect(self, number: int) -> None:
        """Open connection `number`. Raises BenchError."""
        target = self._share.target

        def make() -> Connection:
            return Connection(make_exchange(self._plan, self._stream, number), self.tally, self._pace)

        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._plan.timeout):
                if target.path:
                    _, connection = await loop.create_unix_connection(make, target.path)
                else:
                    _, connection = await loop.create_connection(make, target.host, target.port)
        except TimeoutError:
            raise BenchError(
                f"cannot connect to {target}: no answer within {self._plan.timeout:g} s (--timeout)"
            ) from None
        except (OSError, UnicodeError) as exc:  # UnicodeError: a name that the DNS cannot have
            raise BenchError(f"cannot connect to {target}: {_say(exc)}") from None
        self._connections[number] = connection

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP)
            now = time.monotonic_ns()
            before = now - self._timeout
            for connection in self._connections.values():
                if expired := connection.exchange.expire(before):
                    self.tally.failed(expired, TIMEOUT, now, self._timeout)
                    self._pace.answered(connection)
            if unsent := self._pace.expire(before):
                self.tally.failed(unsent, UNSENT, now, self._timeout)
            waiting = any(connection.exchange.waiting for connection in self._connections.values())
            if self._pace.exhausted and not waiting:
                self._settled.set()


def _say(exc: OSError | UnicodeError) -> str:
    if isinstance(exc, ConnectionRefusedError):
        return "connection refused: nothing listens there"
    return getattr(exc, "strerror", None) or str(exc)


async def _until(when: int) -> None:
    await asyncio.sleep(max(0, when - time.monotonic_ns()) / _SECOND)
