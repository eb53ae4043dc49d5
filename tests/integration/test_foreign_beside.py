"""One gateway for everything at once: Redis in tcp mode, and beside it opaque framings and rpc.

Kafka's, brpc's and Dubbo's frames are as those protocols lay them out; who speaks them here are a few lines,
not Kafka, brpc and Dubbo.
"""

import asyncio
import struct
import subprocess
from asyncio import IncompleteReadError, StreamReader, StreamWriter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Protocol

import pytest

from tcpgw.client import connect
from tcpgw.service import Service
from tests.conftest import Need
from tests.support.processes import PATIENCE, Address, GatewayProcess, free_port, gateway, running

CLIENTS, FRAMES = 3, 100  # of each opaque protocol


class Framing(Protocol):
    """`head` is how many bytes stand before a frame's body."""

    head: int

    def size(self, head: bytes) -> int:
        """How many bytes the body has."""

    def request(self, number: int, text: bytes) -> bytes: ...

    def answer(self, head: bytes, body: bytes) -> bytes:
        """What the server says to a request: the same, under the same number."""


class Kafka:
    """Size; api key, api version, correlation id, client id; answered with size, correlation id."""

    head = 4

    def size(self, head: bytes) -> int:
        return int.from_bytes(head)

    def request(self, number: int, text: bytes) -> bytes:
        return struct.pack(">ihhih2s", 12 + len(text), 18, 3, number, 2, b"me") + text

    def answer(self, head: bytes, body: bytes) -> bytes:
        return struct.pack(">i", self.size(head) - 8) + body[4:8] + body[12:]


class Brpc:
    """Magic, size of all that follows, size of the meta data, which have the number."""

    head = 12

    def size(self, head: bytes) -> int:
        return int.from_bytes(head[4:8])

    def request(self, number: int, text: bytes) -> bytes:
        meta = b"\x20" + bytes([number & 0x7F])  # correlation_id = 4
        return struct.pack(">4sII", b"PRPC", len(meta) + len(text), len(meta)) + meta + text

    def answer(self, head: bytes, body: bytes) -> bytes:
        return head + body


class Dubbo:
    """Magic, flags, status, number, size."""

    head = 16

    def size(self, head: bytes) -> int:
        return int.from_bytes(head[12:])

    def request(self, number: int, text: bytes) -> bytes:
        return struct.pack(">HBBQI", 0xDABB, 0xC2, 0, number, len(text)) + text

    def answer(self, head: bytes, body: bytes) -> bytes:
        return head[:2] + b"\x02\x14" + head[4:] + body


FRAMINGS: dict[str, Framing] = {"kafka": Kafka(), "brpc": Brpc(), "dubbo": Dubbo()}


@asynccontextmanager
async def serving(framing: Framing) -> AsyncIterator[Address]:
    async def connected(reader: StreamReader, writer: StreamWriter) -> None:
        try:
            while True:
                head = await reader.readexactly(framing.head)
                writer.write(framing.answer(head, await reader.readexactly(framing.size(head))))
                await writer.drain()
        except (IncompleteReadError, OSError):
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        host, port = server.sockets[0].getsockname()
        yield host, port
    finally:
        server.close()


async def talk(framing: Framing, address: Address) -> None:
    """Ask without waiting for answers, and find them all, in order and unchanged."""
    reader, writer = await asyncio.open_connection(*address)
    asked = [framing.request(number, (b"%d " % number) * 37) for number in range(FRAMES)]
    writer.write(b"".join(asked))
    for frame in asked:
        expected = framing.answer(frame[: framing.head], frame[framing.head :])
        assert await reader.readexactly(len(expected)) == expected
    writer.close()
    await writer.wait_closed()


async def call(address: Address) -> None:
    async with connect("{}:{}".format(*address)) as client:
        results = await asyncio.gather(
            *(client.call("echo", [number, "x" * number]) for number in range(500))
        )
        assert results == [[number, "x" * number] for number in range(500)]


# ---- Redis ----


@pytest.fixture
def redis(need: Need, tmp_path: Path) -> Iterator[Address]:
    host, port = "127.0.0.1", free_port()
    command = [need("redis-server"), "--port", str(port), "--bind", host]
    command += ["--save", "", "--appendonly", "no", "--dir", str(tmp_path)]
    with running(command, tmp_path / "redis.log", (host, port)):
        yield host, port


async def run(*command: str, stdin: bytes = b"") -> bytes:
    """What a command prints that must succeed."""
    done = await asyncio.to_thread(
        subprocess.run, command, input=stdin, capture_output=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


async def use_redis(need: Need, through: Address, direct: Address) -> None:
    cli, at = need("redis-cli"), ("-h", through[0], "-p", str(through[1]))
    value = bytes(range(1, 256)).replace(b"\n", b"") * 2000
    assert await run(cli, *at, "-x", "SET", "large", stdin=value) == b"OK\n"
    assert await run(cli, "-p", str(direct[1]), "GET", "large") == value + b"\n"
    assert await run(cli, *at, "GET", "large") == value + b"\n"
    pipelined = ("-n", "4000", "-c", "10", "-P", "20", "-t", "set,get", "-q")
    printed = await run(need("redis-benchmark"), *at, *pipelined)
    assert b"error" not in printed.lower()
    assert (await run(cli, *at, "INCRBY", "sum", "42")) == b"42\n"


# ---- all at once ----


def configuration(instances: dict[str, tuple[str, Address]]) -> str:
    """A service and a listener of that name for each: what its listener says, and where it is."""
    return "".join(
        f"""
[[service]]
name = "{name}"
discovery = {{ type = "static", endpoints = ["{host}:{port}"] }}
[[listener]]
name = "{name}"
bind = "127.0.0.1:0"
route = "{name}"
{listener}
"""
        for name, (listener, (host, port)) in instances.items()
    )


def counted(g: GatewayProcess, listener: str) -> list[tuple[int, int]]:
    lines = [line for line in g.events("connection_closed") if line["listener"] == listener]
    return [(line["requests"], line["answers"]) for line in lines]


async def test_everything_at_once(need: Need, redis: Address, tmp_path: Path) -> None:
    """Redis is what it is without a gateway; opaque frames and calls pass beside it in the same process."""
    async with AsyncExitStack() as stack:
        echo = await stack.enter_async_context(Service({"echo": lambda value: value}).serving("127.0.0.1:0"))
        host, _, port = echo.rpartition(":")
        instances = {"redis": ("", redis), "rpc": ('mode = "rpc"', (host, int(port)))}
        for name, framing in FRAMINGS.items():
            where = await stack.enter_async_context(serving(framing))
            instances[name] = (f'mode = "rpc"\ncodec = "{name}"', where)
        with gateway(tmp_path, configuration(instances)) as g:
            await asyncio.gather(
                use_redis(need, g.address("redis"), redis),
                *(call(g.address("rpc")) for _ in range(CLIENTS)),
                *(
                    talk(framing, g.address(name))
                    for name, framing in FRAMINGS.items()
                    for _ in range(CLIENTS)
                ),
            )
        # It has ended, so every connection has its line.
        for name in FRAMINGS:
            assert counted(g, name) == CLIENTS * [(FRAMES, FRAMES)]
        lines = g.events("connection_closed")
    assert {line["reason"] for line in lines} <= {"client_fin", "client_reset"}
    assert sum(line["requests"] for line in lines if line["listener"] == "rpc") == CLIENTS * 500
