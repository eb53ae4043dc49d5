"""Hundreds of flows at once, with half-closes and resets at random, compared byte for byte at both ends."""

import asyncio
import contextlib
import errno
import random
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tests.support.processes import gateway, relaying
from tests.support.streams import Peer, dial, listening

MiB = 1 << 20
FLOWS = 200
LARGEST = 8 * MiB
SEED = 20240601
# What every stream is a part of: it is compared, and not only summed up, so a fault is found where it is.
RANDOM = memoryview(random.Random(SEED).randbytes(LARGEST + MiB))
NUMBER = struct.Struct("!I")
ACKNOWLEDGED = b"!"
# Many at once share two cores: a time-out for all of them and not for each read.
PATIENCE = 60.0

Ending = Literal[
    "both at once",  # both send at the same time, and FIN when they are through
    "client first",  # the instance sends only after the client's FIN
    "instance first",
    "client resets",  # … after it has read some of what it was to get
    "instance resets",
]
_ENDINGS: tuple[Ending, ...] = (
    "both at once", "both at once", "client first", "instance first", "client resets", "instance resets",
)  # fmt: skip


@dataclass
class Flow:
    """What is to pass, decided before it starts, and what did."""

    number: int
    ending: Ending
    up: memoryview
    down: memoryview
    reset_after: int
    client: str = ""
    received: dict[str, int] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)


def plan() -> list[Flow]:
    """Sizes are spread over all magnitudes, the least and the greatest included."""
    rng = random.Random(SEED)

    def part(size: int) -> memoryview:
        start = rng.randrange(len(RANDOM) - size)
        return RANDOM[start : start + size]

    def size() -> int:
        return rng.choice((0, 1, LARGEST)) if rng.random() < 0.1 else int(LARGEST ** rng.random() ** 0.5)

    flows = []
    for number in range(FLOWS):
        up, down = part(size()), part(size())
        ending = rng.choice(_ENDINGS)
        read = len(down if ending == "client resets" else up)
        flows.append(Flow(number, ending, up, down, reset_after=rng.randrange(read + 1)))
    return flows


class BrokenError(Exception):
    """The connection was reset under this end."""


async def send(peer: Peer, data: memoryview, *, fin: bool = True) -> None:
    try:
        await asyncio.get_running_loop().sock_sendall(peer.sock, data)
        if fin:
            peer.fin()
    except (ConnectionResetError, BrokenPipeError) as exc:
        raise BrokenError from exc
    except OSError as exc:
        if exc.errno != errno.ENOTCONN:  # FIN after RST
            raise
        raise BrokenError from exc


async def receive(flow: Flow, name: str, peer: Peer, expected: memoryview, limit: int | None = None) -> None:
    """Compare what comes with what should, up to FIN, or up to `limit` bytes."""
    position = flow.received[name] = 0
    while limit is None or position < limit:
        try:
            chunk = await asyncio.get_running_loop().sock_recv(peer.sock, MiB)
        except ConnectionResetError as exc:
            raise BrokenError from exc
        if not chunk:
            assert position == len(expected), f"{flow}: FIN at {position} of {len(expected)}"
            return
        assert chunk == expected[position : position + len(chunk)], f"{flow}: differs after {position}"
        position += len(chunk)
        flow.received[name] = position


async def play(flow: Flow, name: Literal["client", "instance"], peer: Peer) -> None:
    """One end of a flow; `ours` is what this end sends, `theirs` what it must get."""
    ours, theirs = (flow.up, flow.down) if name == "client" else (flow.down, flow.up)
    try:
        if flow.ending == f"{name} resets":
            sending = asyncio.create_task(send(peer, ours, fin=False))
            await receive(flow, name, peer, theirs, flow.reset_after)
            sending.cancel()
            await asyncio.wait([sending])
            peer.reset()
        elif flow.ending.endswith("first") and not flow.ending.startswith(name):
            await receive(flow, name, peer, theirs)
            await send(peer, ours)
        else:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(receive(flow, name, peer, theirs))
                tasks.create_task(send(peer, ours))
    except* BrokenError:
        flow.broken.add(name)
    finally:
        peer.close()


@contextlib.asynccontextmanager
async def instance(flows: list[Flow], sock: socket.socket) -> AsyncIterator[None]:
    """Accept flows and play their instance's end. A flow begins with its number, which is acknowledged."""
    loop = asyncio.get_running_loop()

    async def serve(accepted: socket.socket) -> None:
        peer = Peer(accepted)
        (number,) = NUMBER.unpack(await peer.read(NUMBER.size))
        await peer.send(ACKNOWLEDGED)
        await play(flows[number], "instance", peer)

    async def accept() -> None:
        while True:
            accepted, _ = await loop.sock_accept(sock)
            ends.create_task(serve(accepted))

    async with asyncio.TaskGroup() as ends:
        accepting = loop.create_task(accept())
        try:
            yield
        finally:
            accepting.cancel()


async def test_flows_come_through_byte_for_byte(tmp_path: Path) -> None:
    """Every byte arrives, in order and once; every FIN and every reset is told from the other."""
    flows = plan()
    assert len(Counter(flow.ending for flow in flows)) == 5
    assert max(len(flow.up) for flow in flows) == max(len(flow.down) for flow in flows) == LARGEST

    async def client(flow: Flow) -> None:
        # From many sources, so that all instances get some.
        peer = dial(g.address(), source=f"127.0.1.{1 + flow.number}")
        flow.client = peer.address
        await peer.send(NUMBER.pack(flow.number))
        assert await peer.read(1) == ACKNOWLEDGED
        await play(flow, "client", peer)

    async with contextlib.AsyncExitStack() as stack:
        sockets = [stack.enter_context(listening(backlog=FLOWS)) for _ in range(3)]
        g = stack.enter_context(gateway(tmp_path, relaying([sock.getsockname() for sock in sockets])))
        await stack.enter_async_context(asyncio.timeout(PATIENCE))
        for sock in sockets:
            await stack.enter_async_context(instance(flows, sock))
        async with asyncio.TaskGroup() as tasks:
            for flow in flows:
                tasks.create_task(client(flow))
        lines = {line["client"]: line for line in await asyncio.to_thread(g.lines, FLOWS)}
    assert len({line["endpoint"] for line in lines.values()}) == 3
    for flow in flows:
        check(flow, lines[flow.client])


def check(flow: Flow, line: dict[str, object]) -> None:
    """What both ends saw, and what the log says of it."""
    if not flow.ending.endswith("resets"):
        assert not flow.broken, flow
        assert flow.received == {"client": len(flow.down), "instance": len(flow.up)}, flow
        assert (line["bytes_in"], line["bytes_out"]) == (4 + len(flow.up), 1 + len(flow.down)), flow
        expected = {"client first": {"client_fin"}, "instance first": {"instance_fin"}}
        assert line["reason"] in expected.get(flow.ending, {"client_fin", "instance_fin"}), (flow, line)
        return
    culprit, _, _ = flow.ending.partition(" ")
    victim = {"client": "instance", "instance": "client"}[culprit]
    assert flow.broken == {victim}, flow
    assert line["reason"] == f"{culprit}_reset", (flow, line)
