"""MessagePack-RPC clients and servers that nobody here wrote: aio-msgpack-rpc and msgpack-rpc-python, with
each other and with tcpgw's own, which alone speaks in frames.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.support.msgpack_ends import (
    AIO,
    LIBRARIES,
    OLD,
    OURS,
    Client,
    call,
    client_of,
    instance_of,
    old_instance,
)
from tests.support.processes import free_port
from tests.support.rpc import Bed, bed
from tests.support.streams import PATIENCE, refusing, until

MiB = 1 << 20
# msgpack-python is an old msgpack, under the same name for Python, and so cannot stand beside the other.
PACKAGES = ("msgpack-rpc-python==0.4.1", "msgpack-python==0.5.6", "tornado==4.5.3")


@pytest.fixture(scope="session")
def packages(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where msgpack-rpc-python is: installed once, and kept in pytest's cache."""
    if sys.version_info >= (3, 12):
        pytest.skip("tornado 4.5 needs what Python 3.12 has no more")
    cache = getattr(request.config, "cache", None)
    parent = Path(cache.mkdir("foreign")) if cache else tmp_path_factory.mktemp("foreign")
    folder = parent / "-".join(PACKAGES)
    if not folder.exists():
        _install(folder)
    return folder


def _install(folder: Path) -> None:
    with TemporaryDirectory(dir=folder.parent) as made:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--retries", "1", "--target", f"{made}/new"]
        done = subprocess.run([*pip, *PACKAGES], capture_output=True, text=True, check=False)
        if done.returncode:
            reason = f"pip could not install {PACKAGES[0]}: {done.stderr.strip()[-500:]}"
            if os.environ.get("TCPGW_REQUIRE_ALL"):
                pytest.fail(reason)
            pytest.skip(reason)
        with suppress(OSError):  # another run was first
            Path(made, "new").rename(folder)


# What the instances of each library speak, and how they say that a method failed.
CODECS = {OURS: "msgpack-rpc", AIO: "msgpack-rpc-stream", OLD: "msgpack-rpc-stream"}
FAILED = {OURS: {"code": "failed", "message": "no luck"}, AIO: "failed: no luck", OLD: "no luck"}


class Ends:
    """A gateway with an instance behind it. The clients that it connects are closed at its end."""

    def __init__(self, g: Bed, instance: str, packages: Path, stack: AsyncExitStack) -> None:
        self.g = g
        self.instance = instance
        self._packages = packages
        self._stack = stack

    async def connect(self, library: str, *, direct: bool = False) -> Client:
        address = self.instance if direct else self.g.listener.address
        return await self._stack.enter_async_context(client_of(library, address, self._packages))

    @property
    def channels(self) -> int:
        return sum(len(list(target.channels)) for target in self.g.service.targets.values())


@asynccontextmanager
async def gateway(instance: str, packages: Path, codec: str, **more: str) -> AsyncIterator[Ends]:
    listener = f'codec = "{codec}"\n{more.get("listener", "")}'
    async with (
        bed(endpoints=[instance], listener=listener, service=more.get("service", "")) as g,
        AsyncExitStack() as stack,
    ):
        yield Ends(g, instance, packages, stack)


@asynccontextmanager
async def between(library: str, packages: Path, folder: Path, **more: str) -> AsyncIterator[Ends]:
    """Run an instance of that library, and a gateway in front of it."""
    async with (
        instance_of(library, packages, folder) as instance,
        gateway(instance, packages, CODECS[library], **more) as ends,
    ):
        yield ends


async def holds(client: Client, count: int) -> None:
    """Return when an instance says that it has so many calls in `hold`."""
    async with asyncio.timeout(PATIENCE):
        while await call(client, "held") != count:
            pass


# ---- calls ----


PAIRS = [
    (client, instance) for client in LIBRARIES for instance in LIBRARIES if (client, instance) != (OURS, OURS)
]
VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    127,
    128,
    1 << 40,
    1.5,
    "",
    "text",
    300 * "ü",
    [],
    [1, [2]],
    {"a": {"b": []}},
]


@pytest.mark.parametrize(("client", "instance"), PAIRS)
async def test_calls(client: str, instance: str, packages: Path, tmp_path: Path) -> None:
    """All values, many calls at once, methods that fail, notifications, and a MiB both ways."""
    async with between(instance, packages, tmp_path) as ends:
        one = await ends.connect(client)
        answers = await one.calls(*(("echo", [value]) for value in VALUES))
        assert answers == [(None, value) for value in VALUES]
        answers = await one.calls(*(("echo", [f"{number} " + number * "x"]) for number in range(200)))
        assert [result.split()[0] for _, result in answers] == [str(number) for number in range(200)]
        assert await one.calls(("fail", ["no luck"]), ("echo", [1])) == [(FAILED[instance], None), (None, 1)]
        await one.notify(*(("note", [number]) for number in range(20)))
        assert await call(one, "notes") == list(range(20))
        large = [chr(ord("a") + number) * MiB for number in range(3)]
        assert [result for _, result in await one.calls(*(("echo", [text]) for text in large))] == large
    line = await ends.g.line()
    assert (line["requests"], line["notifications"]) == (len(VALUES) + 200 + 2 + 1 + 3, 20)
    assert "errors" not in line


@pytest.mark.parametrize("instance", LIBRARIES)
async def test_clients_of_all_libraries_at_once(instance: str, packages: Path, tmp_path: Path) -> None:
    """They share a connection, use the same ids, and are answered out of order: each gets its own answers."""
    async with between(instance, packages, tmp_path, service="rpc = { bulk = 0 }") as ends:
        clients = [await ends.connect(library) for library in LIBRARIES for _ in range(2)]
        held = [
            asyncio.create_task(client.calls(*(("hold", [f"{at} {number}"]) for number in range(5))))
            for at, client in enumerate(clients)
        ]
        other = await ends.connect(OURS)
        await holds(other, 5 * len(clients))
        assert ends.channels == 1
        assert await call(other, "release") == 5 * len(clients)
        for at, answers in enumerate(held):
            assert await answers == [(None, f"{at} {number}") for number in range(5)]


async def test_exclusive_connections(packages: Path, tmp_path: Path) -> None:
    """An instance has as many calls at a time as it may have exclusive connections; the others wait."""
    service = 'rpc = { exclusive = true, connections = 2, queue_timeout = "20s" }'
    async with between(OLD, packages, tmp_path, service=service) as ends:
        direct = await ends.connect(OLD, direct=True)
        clients = [await ends.connect(library) for library in LIBRARIES]
        held = [asyncio.create_task(call(client, "hold", at)) for at, client in enumerate(clients)]
        for count in (2, 1):
            await holds(direct, count)
            assert await call(direct, "release") == count
        assert [await answer for answer in held] == [0, 1, 2]


# ---- what the gateway says ----


@pytest.mark.parametrize("codec", ["msgpack-rpc", "msgpack-rpc-stream"])
@pytest.mark.parametrize("library", LIBRARIES)
async def test_what_the_gateway_says(library: str, codec: str, packages: Path) -> None:
    """Its errors reach all clients as they are documented, in front of either kind of instance."""
    with refusing() as nobody:
        async with gateway(nobody, packages, codec, listener='methods = { "admin.*" = "deny" }') as ends:
            client = await ends.connect(library)
            denied, nowhere, again = await client.calls(("admin.stop", []), ("echo", [1]), ("admin.x", [2]))
    assert denied == again == ({"code": "denied", "message": "this method is not allowed here"}, None)
    assert (nowhere.error["code"], nowhere.result) == ("no_endpoint", None)
    line = await ends.g.line()
    assert line["errors"] == {"denied": 2, "no_endpoint": 1}


async def test_an_instance_is_killed(packages: Path, tmp_path: Path) -> None:
    """Who waits for it is told so, of which endpoint; when it is back, the same connections are served."""
    port = free_port()
    async with AsyncExitStack() as stack:
        with old_instance(packages, tmp_path, port) as instance:
            between = gateway(instance, packages, "msgpack-rpc-stream", service="rpc = { bulk = 0 }")
            ends = await stack.enter_async_context(between)
            clients = [await ends.connect(library) for library in LIBRARIES]
            held = [asyncio.create_task(call(client, "hold", at)) for at, client in enumerate(clients)]
            await until(lambda: ends.g.pool.loads.total == len(clients))
        for answer in held:
            error = await answer
            assert (error["code"], error["endpoint"]) == ("upstream_lost", instance)
        with old_instance(packages, tmp_path, port):
            await until(lambda: ends.channels)
            for client in clients:
                assert await call(client, "echo", "back") == "back"
            await stack.aclose()
