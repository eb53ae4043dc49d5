"""What a gateway's process costs and survives: memory under stalled readers, and no more descriptors."""

import asyncio
import contextlib
import resource
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import pytest

from tcpgw.process.limits import needed_files
from tests.support.processes import Address, GatewayProcess, gateway, relaying
from tests.support.streams import SMALL, MiB, Peer, dial, listening, until

STALLED = 20
# What they may add to the gateway: their transports' buffers in one direction (64 KiB of high-water mark and
# one read over it, 256 KiB), their objects, and what the allocator keeps for all of them.
ALLOWED = STALLED * 400 * 1024 + 8 * MiB
# More than the kernel holds for a connection: the greatest receive and send buffers of both its halves.
SENT_EACH = 2 * sum(
    int(Path(f"/proc/sys/net/ipv4/{name}").read_text().split()[2]) for name in ("tcp_rmem", "tcp_wmem")
)
OUT_OF_FILES = 64


@contextlib.asynccontextmanager
async def echo(sock: socket.socket) -> AsyncIterator[None]:
    """An instance that returns what it gets, to as many as come."""

    async def serve(peer: Peer) -> None:
        try:
            with contextlib.suppress(ConnectionResetError, BrokenPipeError, TimeoutError):
                while data := await peer.read_some():
                    await peer.send(data)
        finally:
            peer.close()

    async def accept() -> None:
        while True:
            accepted, _ = await asyncio.get_running_loop().sock_accept(sock)
            ends.add(asyncio.create_task(serve(Peer(accepted))))

    ends: set[asyncio.Task[None]] = {asyncio.create_task(accept())}
    try:
        yield
    finally:
        for task in ends:
            task.cancel()
        await asyncio.gather(*ends, return_exceptions=True)


async def is_served(address: Address) -> bool:
    """Whether a new client's bytes come back."""
    client = dial(address)
    try:
        await client.send(b"ping")
        return await client.read_some() == b"ping"
    except ConnectionResetError:
        return False
    finally:
        client.close()


@pytest.mark.parametrize("sender", ["client", "instance"])
async def test_stalled_readers_hold_memory_flat(
    tmp_path: Path, sender: Literal["client", "instance"]
) -> None:
    """Twenty endless senders to readers that stall cost the gateway a buffer each; other clients go on."""
    with listening(receive_buffer=SMALL) as instance, contextlib.ExitStack() as stack:
        g = stack.enter_context(gateway(tmp_path, relaying([instance.getsockname()])))
        pairs = []
        for _ in range(STALLED):
            client = dial(g.address(), receive_buffer=SMALL)
            stack.callback(client.close)
            accepted, _ = await asyncio.get_running_loop().sock_accept(instance)
            pairs.append((client, Peer(accepted)))
            stack.callback(accepted.close)
        before = g.rss()
        senders = [client if sender == "client" else far for client, far in pairs]
        sent = await asyncio.gather(*(send_until_stalled(peer, SENT_EACH) for peer in senders))
        assert max(sent) < SENT_EACH, "nobody was stopped"
        stalled = g.rss()
        assert stalled - before < ALLOWED

        async with echo(instance):
            for _ in range(20):
                began = time.monotonic()
                assert await is_served(g.address())
                assert time.monotonic() - began < 1.0
        sent = await asyncio.gather(*(send_until_stalled(peer, SENT_EACH) for peer in senders))
        assert max(sent) < SENT_EACH
        assert g.rss() - before < ALLOWED
        cpu = g.cpu_seconds()
        await asyncio.sleep(0.3)
        assert g.cpu_seconds() - cpu < 0.1


async def send_until_stalled(peer: Peer, limit: int) -> int:
    """Send zeros until nothing was taken for a quarter of a second, or `limit` is reached."""
    sent, last, block = 0, time.monotonic(), bytes(256 * 1024)
    while sent < limit and time.monotonic() - last < 0.25:
        try:
            sent += peer.sock.send(block)
            last = time.monotonic()
            await asyncio.sleep(0)
        except BlockingIOError:
            await asyncio.sleep(0.005)
    return sent


async def test_out_of_descriptors(tmp_path: Path) -> None:
    """Without descriptors the gateway neither dies nor spins, says so once, and serves again with them."""
    with listening(backlog=256) as instance, contextlib.ExitStack() as stack:
        g = stack.enter_context(gateway(tmp_path, relaying([instance.getsockname()])))
        resource.prlimit(g.worker, resource.RLIMIT_NOFILE, (OUT_OF_FILES, OUT_OF_FILES))
        async with echo(instance):
            served = [await a_served_client(g, stack)]
            crowd = [dial(g.address()) for _ in range(2 * OUT_OF_FILES)]
            for client in crowd:
                stack.callback(client.close)
            await until(lambda: g.events("accept_failed"))

            cpu = g.cpu_seconds()
            await asyncio.sleep(1.0)
            assert g.cpu_seconds() - cpu < 0.3
            assert g.process.poll() is None
            assert not g.events("worker_died")
            assert g.open_files() <= OUT_OF_FILES
            await served[0].send(b"still")
            assert await served[0].read(5) == b"still"

            for client in crowd:
                client.reset()
            for _ in range(100):
                if await is_served(g.address()):
                    break
                await asyncio.sleep(0.1)
            else:
                pytest.fail("not served again after the crowd had left")
            await until(lambda: g.events("accept_recovered"))
    (event,) = g.events("accept_failed")
    assert event["listener"] == "l"
    assert event["error"] == "Too many open files"
    assert "ulimit -n" in event["hint"]
    # Whoever got the last descriptor was turned away for it, and no instance was blamed.
    reasons = {line["reason"] for line in g.events("connection_closed")}
    assert "overload" in reasons
    assert "connect_failed" not in reasons


async def test_few_descriptors_from_the_start(tmp_path: Path) -> None:
    """max_connections is lowered to what the descriptors allow: a crowd waits, and all are served."""
    few = 20
    with (
        listening(backlog=256) as instance,
        gateway(tmp_path, relaying([instance.getsockname()]), files=needed_files(few)) as g,
    ):
        assert g.events("max_connections_lowered")[0]["max_connections"] == {"l": few}
        async with echo(instance):
            crowd = [dial(g.address()) for _ in range(3 * few)]
            for client in crowd:
                await client.send(b"hello")
                assert await client.read(5) == b"hello"
                client.close()
        assert {line["reason"] for line in g.lines(len(crowd))} == {"client_fin"}
        assert not g.events("accept_failed")


async def a_served_client(g: GatewayProcess, stack: contextlib.ExitStack) -> Peer:
    client = dial(g.address())
    stack.callback(client.close)
    await client.send(b"hello")
    assert await client.read(5) == b"hello"
    return client
