"""The demo's rpc clients: each keeps one connection for good, and compares every answer with what it asked.

All number their requests from 0, as clients do, so that the same ids are under way many times at once: the
gateway is to keep them apart. Each request says who asks and carries random bytes, and both must come back.
"""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, NamedTuple, cast

from tcpgw.client import connect
from tcpgw.demo.instances import DemoError, Instance
from tcpgw.errors import ProtocolError, TcpgwError
from tcpgw.process.limits import needed_files, raise_open_files
from tcpgw.wire.codec import Kind
from tcpgw.wire.messages import MAX_FRAME, LengthFrames, RpcError, pack_frame, unpack

CLIENTS = 1000
EVERY = 1.0  # s between a client's requests, on average
_MAX_BYTES = 2048
_TIMEOUT = 10.0  # s for all of them to be answered: a slow machine's
_LOOK = 0.02  # s between looks at whether they are
_STATS = 0.5  # s between looks at what the instances see


class Failure(NamedTuple):
    """A request that was answered with an error."""

    code: str
    endpoint: str | None  # of the instance, where the error names it
    message: str

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class Client(asyncio.Protocol):
    """Asks, compares the answer, pauses, asks again; from its connection to its loss.

    `asked_at` is when (time.monotonic()) it asked what it waits for, or None; `served_at` when it asked what
    was last answered by an instance.
    """

    def __init__(self, load: "Load", number: int) -> None:
        self.asked_at: float | None = None
        self.served_at = 0.0
        self._load = load
        self._number = number
        self._frames = LengthFrames(MAX_FRAME)
        self._next = 0
        self._value: dict[str, Any] = {}
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._load.clients.add(self)
        self._loop.call_later(random.uniform(0, EVERY), self._ask)

    def data_received(self, data: bytes) -> None:
        self._frames.feed(data)
        try:
            while (body := self._frames.take()) is not None:
                self._take(unpack(body))
        except ProtocolError:
            self._load.wrong += 1
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.clients.discard(self)
        self._load.missing += self.asked_at is not None
        if not self._load.stopping:
            self._load.lost += 1
            self._load.errors.append(f"rpc client {self._number} lost its connection: {exc or 'closed'}")

    def close(self) -> None:
        """Idempotent."""
        self._transport.close()

    def _ask(self) -> None:
        if self._load.stopping or self._transport.is_closing():
            return
        self._value = {"client": self._number, "bytes": random.randbytes(random.randint(0, _MAX_BYTES))}
        self._transport.write(pack_frame((Kind.REQUEST, self._next, "predict", (self._value,)), MAX_FRAME))
        self._load.requests += 1
        self.asked_at = time.monotonic()

    def _take(self, message: Any) -> None:
        match message:
            case [Kind.ANSWER, self._next, error, result] if self.asked_at is not None:
                self._load.slowest = max(self._load.slowest, time.monotonic() - self.asked_at)
                self._load.judge(error, result, self._value)
                if error is None:
                    self.served_at = self.asked_at
                self.asked_at = None
                self._next += 1
                self._loop.call_later(random.uniform(0.5, 1.5) * EVERY, self._ask)
            case _:
                self._load.wrong += 1  # an answer to nothing that it waits for


class Load:
    """What all rpc clients do and see. `target` is the gateway's listener.

    `connections` says, for each instance, the most connections that it ever had at once.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self.clients: set[Client] = set()  # those with a connection
        self.lost = 0  # connections that ended, or were not made, though the client had not finished
        self.requests = 0
        self.missing = 0  # requests whose answer never came
        self.wrong = 0  # answers that are not what was asked, and those to nothing
        self.failures: list[Failure] = []
        self.slowest = 0.0  # s, from the request to its answer
        self.per_instance: Counter[str] = Counter()  # requests
        self.seen: dict[int, str] = {}  # where each client's last answer came from
        self.connections: dict[str, int] = {}
        self.errors: list[str] = []
        self.stopping = False
        self._target = target

    @contextlib.asynccontextmanager
    async def flowing(self, instances: Iterable[Instance]) -> AsyncIterator[None]:
        """Connect all; ask as long as the context lasts; at its end await what is under way, and close.

        Raises DemoError where this process may not open so many files.
        """
        if (files := raise_open_files()) < needed_files(CLIENTS):
            raise DemoError(f"{CLIENTS} clients need more open files than {files}: raise `ulimit -Hn`")
        watching = [asyncio.create_task(self._watch(instance)) for instance in instances]
        try:
            for number in range(CLIENTS):
                await self._open(number)
            yield
            self.stopping = True
            await self._until(lambda: all(client.asked_at is None for client in self.clients))
        finally:
            self.stopping = True
            for client in [*self.clients]:
                client.close()
            await self._until(lambda: not self.clients)
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)

    async def round(self) -> None:
        """Wait until an instance has answered every client something that it asked after this call."""
        began = time.monotonic()
        if not await self._until(lambda: all(client.served_at > began for client in self.clients)):
            raise DemoError("the rpc clients stand still")

    def judge(self, error: Any, result: Any, value: dict[str, Any]) -> None:
        """Count the answer to a request with `value`."""
        match result:
            case _ if error is not None:
                failure = RpcError.read(error)
                self.failures.append(Failure(failure.code, failure.endpoint, failure.message))
            case {"instance": str(instance), "input": answered} if answered == value:
                self.per_instance[instance] += 1
                self.seen[value["client"]] = instance
            case _:
                self.wrong += 1

    async def _open(self, number: int) -> None:
        client = Client(self, number)
        try:
            async with asyncio.timeout(_TIMEOUT):
                await asyncio.get_running_loop().create_connection(lambda: client, *self._target)
        except OSError as exc:
            self.lost += 1
            self.errors.append(f"rpc client {number} could not connect: {exc}")

    async def _watch(self, instance: Instance) -> None:
        """Let the instance itself say how many connections it has, over one that is not counted."""
        try:
            async with connect(str(instance.endpoint)) as client:
                while True:
                    stats = await client.call("stats", timeout=_TIMEOUT)
                    seen = stats["connections"] - 1
                    self.connections[instance.name] = max(seen, self.connections.get(instance.name, 0))
                    await asyncio.sleep(_STATS)
        except TcpgwError as exc:
            if not instance.killed:
                self.errors.append(f"{instance.name} does not say what it sees: {exc}")

    async def _until(self, done: Callable[[], bool]) -> bool:
        """Wait for it, but not for ever. Returns whether it came."""
        end = time.monotonic() + _TIMEOUT
        while not done():
            if time.monotonic() > end:
                return False
            await asyncio.sleep(_LOOK)
        return True
