"""Tiny instances, clients with addresses of their own, and what a gateway between them is told."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from structlog.testing import capture_logs
from structlog.typing import EventDict

from tcpgw.app.gateway import Gateway
from tcpgw.config.load import loads
from tcpgw.demo.cloud import Cloud
from tcpgw.endpoints import Endpoint
from tests.support.streams import in_time, until

Logs = Sequence[EventDict]


class Instance:
    """An instance in this event loop: it names its endpoint in a line, then echoes until its client ends."""

    def __init__(self, server: asyncio.Server, clients: set[asyncio.Transport]) -> None:
        self._server = server
        self._clients = clients
        self.endpoint = "{}:{}".format(*server.sockets[0].getsockname())

    @classmethod
    async def start(cls, host: str = "127.0.0.1", port: int = 0) -> "Instance":
        clients: set[asyncio.Transport] = set()
        server = await asyncio.get_running_loop().create_server(lambda: _Echo(clients), host, port)
        return cls(server, clients)

    def kill(self) -> None:
        """Die as a process does: new clients are refused, those there are cut off. Idempotent."""
        self._server.close()
        for client in list(self._clients):
            client.abort()


class _Echo(asyncio.Protocol):
    def __init__(self, clients: set[asyncio.Transport]) -> None:
        self._clients = clients

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._clients.add(transport)
        transport.write("{}:{}\n".format(*transport.get_extra_info("sockname")).encode())

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the interface's
        self._clients.discard(self._transport)


@asynccontextmanager
async def running(count: int) -> AsyncIterator[list[Instance]]:
    """Run so many instances; what the list holds at the end is killed, so a test may add its own."""
    instances = [await Instance.start() for _ in range(count)]
    try:
        yield instances
    finally:
        for instance in instances:
            instance.kill()


def endpoints(instances: Sequence[Instance]) -> list[Endpoint | str]:
    return [instance.endpoint for instance in instances]


def members(gateway: Gateway, service: str = "s") -> set[Endpoint | str]:
    """What is in force."""
    return {str(member.endpoint) for member in gateway.pools[service].members}


@asynccontextmanager
async def serving(
    config: str, folder: Path = Path("/nonexistent"), *, starts: bool = True
) -> AsyncIterator[tuple[Gateway, Logs]]:
    """Run a gateway; `starts` where every service must have a snapshot when it accepts."""
    with capture_logs() as logs:
        async with Gateway(loads(config, folder)) as gateway:
            assert bool(events(logs, "no_first_snapshot")) != starts
            yield gateway, logs


def clients(count: int) -> list[str]:
    """So many source addresses, the same ones in each run: all of 127/8 is this machine's."""
    return [f"127.1.{number // 250}.{number % 250 + 1}" for number in range(count)]


async def ask(gateway: Gateway, source: str, listener: str = "l") -> str:
    """Connect as a client with that address, and return the endpoint that served it.

    Raises EOFError where the gateway turned the client away, OSError where it refused or reset it, and
    AssertionError where a byte is lost.
    """
    host, _, port = gateway.listeners[listener].address.rpartition(":")
    reader, writer = await in_time(asyncio.open_connection(host, int(port), local_addr=(source, 0)))
    try:
        writer.write(b"question")
        writer.write_eof()
        name, _, echo = (await in_time(reader.read(-1))).partition(b"\n")
        if not name:
            raise EOFError(f"{source} was turned away")
        assert echo == b"question"
        return name.decode()
    finally:
        writer.close()
        await in_time(writer.wait_closed())


async def ask_all(gateway: Gateway, sources: Iterable[str], listener: str = "l") -> dict[str, str]:
    """The endpoint of each client, one after another."""
    return {source: await ask(gateway, source, listener) for source in sources}


def moved(before: dict[str, str], after: dict[str, str]) -> set[str]:
    """The clients that have another endpoint than before."""
    return {source for source, endpoint in before.items() if after[source] != endpoint}


def events(logs: Logs, name: str) -> list[EventDict]:
    """The lines of one event."""
    return [line for line in logs if line["event"] == name]


async def until_logged(logs: Logs, name: str, count: int = 1) -> EventDict:
    """The event's line number `count`, as soon as it is there."""
    await until(lambda: len(events(logs, name)) >= count)
    return events(logs, name)[count - 1]


def password(cloud: Cloud) -> str:
    """The cloud's user, by password."""
    return (
        f'{{ type = "password", iam = "{cloud.url}", domain = "{cloud.domain}", user = "{cloud.user}", '
        f'password = "{cloud.password}" }}'
    )


def access_key(cloud: Cloud) -> str:
    """The cloud's user, by access key: no token, so no call but those for endpoints."""
    return f'{{ type = "aksk", access_key = "{cloud.access_key}", secret_key = "{cloud.secret_key}" }}'


def account(cloud: Cloud, url: str = "", *, auth: str = "", calls: int = 2000, timeout: str = "300ms") -> str:
    """The table [cloud.modelarts]. `url` where the cloud does not run yet."""
    return f"""
        [cloud.modelarts]
        endpoint = "{url or cloud.url}"
        project_id = "{cloud.project_id}"
        auth = {auth or password(cloud)}
        calls_per_minute = {calls}
        timeout = "{timeout}"
    """


def modelarts(name: str = "s", *, refresh: str = "50ms", policy: str = "ring", more: str = "") -> str:
    """A service of that name and id. Bounded load is off: under load keys move, and the tests count."""
    discovery = f'type = "modelarts", service_id = "{name}", refresh = "{refresh}"'
    return f"""
        [[service]]
        name = "{name}"
        discovery = {{ {discovery}, networks = ["127.0.0.0/8"] }}
        balance = {{ policy = "{policy}", bounded_load = 0 }}
        {more}
    """


def listener(route: str = '"s"', name: str = "l", bind: str = "127.0.0.1:0") -> str:
    return f"""
        [[listener]]
        name = "{name}"
        bind = "{bind}"
        route = {route}
    """
