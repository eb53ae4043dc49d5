"""Instances that are sick as they are told, and clients that keep account of what they meet."""

import asyncio
import contextlib
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Literal

from tests.support.streams import Line

Mood = Literal["well", "silent", "resets", "slams"]

# Seconds after which a client gives an instance up that says nothing.
GIVES_UP = 1.0


class Instance:
    """An instance in this event loop, at one port for good.

    `mood`: "well" answers with its endpoint and a line's end whatever comes, "silent" accepts and never
    answers, "resets" does so when it is asked, and "slams" before. Between `down` and `up` connections are
    refused. `accepted` counts connections, whatever became of them.
    """

    def __init__(self) -> None:
        self.mood: Mood = "well"
        self.accepted = 0
        self.endpoint = ""
        self._sock: socket.socket | None = None
        self._port = 0
        self._clients: set[socket.socket] = set()
        self._bind()

    def up(self) -> None:
        """Accept."""
        assert self._sock is not None
        self._sock.listen(512)
        asyncio.get_running_loop().add_reader(self._sock, self._accept, self._sock)

    def down(self) -> None:
        """Die as a process does, but for the port, which nobody else gets."""
        self.close()
        self._bind()

    def close(self) -> None:
        """Idempotent."""
        for client in list(self._clients):
            self._end(client)
        if self._sock is not None:
            asyncio.get_running_loop().remove_reader(self._sock)
            self._sock.close()
            self._sock = None

    def _bind(self) -> None:
        self._sock = socket.socket()
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._sock.setblocking(False)
        self._sock.bind(("127.0.0.1", self._port))
        self._port = self._sock.getsockname()[1]
        self.endpoint = f"127.0.0.1:{self._port}"

    # Callbacks of the loop: the gateway's end looks for tasks that are left.

    def _accept(self, listening: socket.socket) -> None:
        client, _ = listening.accept()
        client.setblocking(False)
        self.accepted += 1
        self._clients.add(client)
        asyncio.get_running_loop().add_reader(client, self._read, client)
        if self.mood == "slams":
            self._end(client)

    def _read(self, client: socket.socket) -> None:
        try:
            data = client.recv(1000)
            if data and self.mood == "well":
                client.sendall(f"{self.endpoint}\n".encode())
        except OSError:
            data = b""
        if not data or self.mood == "resets":
            self._end(client, reset=bool(data))

    def _end(self, client: socket.socket, *, reset: bool = True) -> None:
        asyncio.get_running_loop().remove_reader(client)
        self._clients.discard(client)
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()


@contextlib.asynccontextmanager
async def instances(count: int) -> AsyncIterator[list[Instance]]:
    """So many that are well."""
    made = [Instance() for _ in range(count)]
    try:
        for one in made:
            one.up()
        yield made
    finally:
        for one in made:
            one.close()


class Clients:
    """Clients of a stream listener, each with one question for one connection.

    `served` counts answers by endpoint, `failures` says what others met: a client sees no more of it.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._address = host, int(port)
        self.served: Counter[str] = Counter()
        self.failures: list[str] = []

    async def ask(self, source: str = "127.0.0.1") -> str:
        """Return who answered, "" for nobody."""
        writer = None
        try:
            async with asyncio.timeout(GIVES_UP):
                reader, writer = await asyncio.open_connection(*self._address, local_addr=(source, 0))
                writer.write(b"?")
                name = (await reader.readline()).decode().strip()
        except (OSError, TimeoutError) as exc:
            self.failures.append(type(exc).__name__)
            return ""
        finally:
            if writer is not None:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
        if name:
            self.served[name] += 1
        else:
            self.failures.append("FIN")
        return name

    async def ask_often(self, count: int) -> Counter[str]:
        """One after another; return who answered how many of these."""
        return Counter([await self.ask() for _ in range(count)])

    @contextlib.asynccontextmanager
    async def steady(self, count: int, pause: float = 0.01) -> AsyncIterator[None]:
        """Have so many ask again and again for as long as the context lasts."""
        stopping = asyncio.Event()

        async def ask_on() -> None:
            while not stopping.is_set():
                await self.ask()
                await asyncio.sleep(pause)

        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(ask_on())
            try:
                yield
            finally:
                stopping.set()


def states(logs: Sequence[Line], endpoint: str) -> list[str]:
    """The states that one endpoint was said to come to, in their order."""
    return [
        line["after"] for line in logs if line["event"] == "endpoint_state" and line["endpoint"] == endpoint
    ]


def of(logs: Sequence[Line], event: str) -> list[Line]:
    return [line for line in logs if line["event"] == event]
