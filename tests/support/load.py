"""A steady load through a gateway while something happens to it: bytes are checked, mishaps counted."""

import asyncio
import contextlib
import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Self

import uvloop

from tests.support.processes import PATIENCE, Address, wait_until

# Bytes of the longest message.
_LONGEST = 20_000


@dataclass
class Mishaps:
    """What clients met. `broken`: an exchange was not finished; `refused`: there was no connection."""

    refused: int = 0
    broken: int = 0
    corrupted: int = 0
    errors: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.refused or self.broken or self.corrupted)


class Load:
    """Long-lived connections that exchange now and then, and short ones one after the other.

    `long` and `short` are what they met. A long one that is closed between exchanges, as by a drain, is
    counted in `closed` and made anew.
    """

    def __init__(self, address: Address, *, long: int = 0, short: int = 0) -> None:
        self.long, self.short = Mishaps(), Mishaps()
        self.exchanges = 0  # done by long ones
        self.finished = 0  # short ones
        self.closed = 0
        self.connected = 0  # long ones, at this moment
        self._address = address
        self._counts = (long, short)
        self._stopping = False

    def done(self) -> tuple[int, int]:
        return self.exchanges, self.finished

    def goes_on(self) -> None:
        """Return when every kind of client has done more since: the load is served."""
        long, short = self._counts
        exchanges, finished = self.done()
        wait_until(lambda: self.exchanges >= exchanges + 2 * long and self.finished >= finished + 4 * short)

    async def run(self) -> None:
        long, short = self._counts
        async with asyncio.TaskGroup() as group:
            for number in range(long):
                group.create_task(self._keep(random.Random(number)))
            for number in range(short):
                group.create_task(self._renew(random.Random(1000 + number)))

    def stop(self) -> None:
        """Have every client finish what it is at."""
        self._stopping = True

    async def _keep(self, rng: random.Random) -> None:
        while not self._stopping:
            with self._noting(self.long):
                reader, writer = await self._connect()
                self.connected += 1
                try:
                    while self._goes_on(reader):
                        await self._exchange(reader, writer, rng, self.long)
                        self.exchanges += 1
                        await asyncio.sleep(rng.uniform(0.005, 0.03))
                    self.closed += reader.at_eof()
                finally:
                    self.connected -= 1
                    writer.close()

    def _goes_on(self, reader: asyncio.StreamReader) -> bool:
        return not (self._stopping or reader.at_eof())

    async def _renew(self, rng: random.Random) -> None:
        while not self._stopping:
            with self._noting(self.short):
                reader, writer = await self._connect()
                try:
                    await self._exchange(reader, writer, rng, self.short)
                    writer.write_eof()
                    if await reader.read():
                        self.short.corrupted += 1
                    self.finished += 1
                finally:
                    writer.close()
            await asyncio.sleep(rng.uniform(0.0, 0.01))

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with asyncio.timeout(PATIENCE):
            return await asyncio.open_connection(*self._address)

    async def _exchange(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        rng: random.Random,
        mishaps: Mishaps,
    ) -> None:
        data = os.urandom(rng.randint(1, _LONGEST))
        async with asyncio.timeout(PATIENCE):
            writer.write(data)
            echoed = await reader.readexactly(len(data))
        mishaps.corrupted += echoed != data

    @contextlib.contextmanager
    def _noting(self, mishaps: Mishaps) -> Iterator[None]:
        try:
            yield
        except ConnectionRefusedError:
            mishaps.refused += 1
            mishaps.errors.append("refused")
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as exc:
            mishaps.broken += 1
            mishaps.errors.append(repr(exc))


class Background:
    """A loop in a thread of its own, with echoing instances, and loads that come and go."""

    def __init__(self, instances: int = 1) -> None:
        self.instances: list[Address] = []
        self.served: dict[Address, int] = {}  # connections
        self._ready = threading.Event()
        self._loop = uvloop.new_event_loop()
        self._end = asyncio.Event()
        self._count = instances
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()))

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(PATIENCE)
        self._loop.close()

    async def _serve(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(self._count):
                server = await asyncio.start_server(self._echo, "127.0.0.1", 0, backlog=1000)
                await stack.enter_async_context(server)
                self.instances.append(server.sockets[0].getsockname())
            self._ready.set()
            await self._end.wait()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

    async def _echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = writer.get_extra_info("sockname")
        self.served[address] = self.served.get(address, 0) + 1
        with contextlib.suppress(OSError, asyncio.CancelledError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    @contextlib.contextmanager
    def load(self, address: Address, *, long: int = 0, short: int = 0) -> Iterator[Load]:
        """Load for as long as the context lasts; at its end every client has finished."""
        load = Load(address, long=long, short=short)
        running = asyncio.run_coroutine_threadsafe(load.run(), self._loop)
        try:
            wait_until(lambda: load.connected == long or running.done())
            yield load
        finally:
            self._loop.call_soon_threadsafe(load.stop)
            running.result(2 * PATIENCE)

    def spread(self, action: Callable[[], object]) -> dict[Address, int]:
        """How many connections each instance gets while something is done."""
        before = dict(self.served)
        action()
        return {address: self.served.get(address, 0) - before.get(address, 0) for address in self.instances}
