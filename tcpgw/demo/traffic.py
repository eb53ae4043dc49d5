"""The demo's clients: each a key of its own, every byte compared, every break written down.

A client binds an address of the loopback network (127.77.0.1, 127.77.0.2, …), which makes it one key under
`source_ip`. In every round it asks both services over new connections; some hold one open besides.
"""

import asyncio
import contextlib
import json
import random
from asyncio import StreamReader, StreamWriter
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import NamedTuple, Self

from tcpgw.demo.instances import DemoError, Kind, prediction

KEYS = 100
HELD = 20  # of these, for each service
ROUND = 0.5  # s over which a round's connections are spread
_PAUSE = 0.1  # s between two exchanges of a held connection
_TIMEOUT = 10.0  # s for one exchange: three candidates of a second each, and a slow machine
_MAX_BYTES = 16384
# What a connection may break with; the last two are an answer that makes no sense.
_BREAKS = (OSError, EOFError, ValueError, LookupError, asyncio.LimitOverrunError)
# The request of ModelArts' documentation.
EXAMPLE = b'{"a":"a"}'


class Key(NamedTuple):
    """A client's address, at one of the services."""

    service: Kind
    source: str


class Move(NamedTuple):
    """A new connection of a key that went to another instance than the one before."""

    key: Key
    old: str
    new: str


class Broken(NamedTuple):
    """A connection that did not end as it should. `client` is its address and port, if it was opened."""

    key: Key
    client: str | None
    error: str


class Client:
    """One connection. `instance` is known after the first exchange.

    Methods raise one of _BREAKS where it breaks, a time-out among them (an OSError).
    """

    def __init__(self, reader: StreamReader, writer: StreamWriter) -> None:
        self.address = "{}:{}".format(*writer.get_extra_info("sockname"))
        self.instance = ""
        self.exchanged = 0  # bytes, both ways
        self.different = 0  # bytes
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, target: tuple[str, int], source: str) -> Self:
        async with asyncio.timeout(_TIMEOUT):
            return cls(*await asyncio.open_connection(*target, local_addr=(source, 0)))

    async def ask(self) -> None:
        """Send something and compare all of what comes back."""
        async with asyncio.timeout(_TIMEOUT):
            expected, answer = await self._exchange()
        self.exchanged += 2 * len(answer)
        self.different += _different(expected, answer)

    async def finish(self) -> None:
        """Half-close, as both services allow, and see that nothing more comes."""
        async with asyncio.timeout(_TIMEOUT):
            self._writer.write_eof()
            self.different += len(await self._reader.read())

    async def close(self) -> None:
        """Idempotent."""
        self._writer.close()
        with contextlib.suppress(OSError):
            async with asyncio.timeout(_TIMEOUT):
                await self._writer.wait_closed()

    async def _exchange(self) -> tuple[bytes, bytes]:
        raise NotImplementedError


class _PredictClient(Client):
    async def _exchange(self) -> tuple[bytes, bytes]:
        body = EXAMPLE
        if self.instance:  # further requests of this connection are larger
            body = json.dumps({"a": random.randbytes(random.randint(1, _MAX_BYTES // 2)).hex()}).encode()
        head = f"POST / HTTP/1.1\r\nHost: predict\r\nContent-Length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        answer = await self._reader.readexactly(int(head.partition("content-length:")[2].split()[0]))
        self.instance = json.loads(answer)["instance"]
        return prediction(self.instance, body), answer


class _EchoClient(Client):
    async def _exchange(self) -> tuple[bytes, bytes]:
        if not self.instance:
            self.instance = (await self._reader.readuntil()).decode().strip()
        data = random.randbytes(random.randint(1, _MAX_BYTES))
        self._writer.write(data)
        return data, await self._reader.readexactly(len(data))


_CLIENTS: Mapping[Kind, type[Client]] = {"predict": _PredictClient, "echo": _EchoClient}


class Traffic:
    """What all clients do and see. `targets` are the gateway's listeners."""

    def __init__(self, targets: Mapping[Kind, tuple[str, int]]) -> None:
        self.connections = 0
        self.open = 0
        self.per_instance: Counter[str] = Counter()  # connections
        self.bytes_exchanged = 0
        self.bytes_mismatched = 0
        self.broken: list[Broken] = []
        self.seen: dict[Key, str] = {}  # where each key's last new connection went
        self.moved: list[Move] = []  # how that changed, since somebody last looked
        self._targets = targets
        self._keys = [
            Key(service, f"127.77.0.{number}") for number in range(1, KEYS + 1) for service in targets
        ]
        self._stopping = False
        self._round_over = asyncio.Event()

    @contextlib.asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        """Send as long as the context lasts; at its end let everything finish, or drop it at an error."""
        task = asyncio.create_task(self._run(), name="traffic")
        try:
            yield
            self._stopping = True
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def round(self) -> None:
        """Wait for a whole round that begins after this call: every key was seen once more."""
        for _ in range(2):  # the end of the round under way, then of the next
            try:
                async with asyncio.timeout(2 * _TIMEOUT):
                    await self._round_over.wait()
            except TimeoutError:
                raise DemoError("the traffic stands still") from None

    def take_moved(self) -> list[Move]:
        """The moves since the last call."""
        moved, self.moved = self.moved, []
        return moved

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._rounds())
            for key in self._keys[: HELD * len(self._targets)]:
                tasks.create_task(self._hold(key))

    async def _rounds(self) -> None:
        while not self._stopping:
            async with asyncio.TaskGroup() as tasks:
                for place, key in enumerate(self._keys):
                    tasks.create_task(self._short(key, ROUND * place / len(self._keys)))
            self._round_over.set()
            self._round_over = asyncio.Event()

    async def _short(self, key: Key, delay: float) -> None:
        await asyncio.sleep(delay)
        if instance := await self._converse(key, hold=False):
            if self.seen.get(key, instance) != instance:
                self.moved.append(Move(key, self.seen[key], instance))
            self.seen[key] = instance

    async def _hold(self, key: Key) -> None:
        """Like a client with a connection of its own: reopened where it broke."""
        while not self._stopping:
            await self._converse(key, hold=True)
            await asyncio.sleep(_PAUSE)

    async def _converse(self, key: Key, *, hold: bool) -> str | None:
        """One connection's life. Returns the instance, or None where the connection broke."""
        client: Client | None = None
        self.connections += 1
        try:
            client = await _CLIENTS[key.service].open(self._targets[key.service], key.source)
            self.open += 1
            await client.ask()
            self.per_instance[client.instance] += 1
            while hold and not self._stopping:
                await asyncio.sleep(_PAUSE)
                await client.ask()
            await client.finish()
        except _BREAKS as exc:
            self.broken.append(
                Broken(key, client.address if client is not None else None, f"{type(exc).__name__}: {exc}")
            )
            return None
        finally:
            if client is not None:
                self.open -= 1
                self.bytes_exchanged += client.exchanged
                self.bytes_mismatched += client.different
                await client.close()
        return client.instance


def _different(expected: bytes, answer: bytes) -> int:
    if expected == answer:
        return 0
    pairs = zip(expected, answer, strict=False)
    return sum(one != other for one, other in pairs) + abs(len(expected) - len(answer))
