"""Neovim, with pynvim for clients: an instance that calls its clients while it is at work on their calls."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tcpgw.app.gateway import Gateway
from tcpgw.config.load import loads
from tests.conftest import Need
from tests.support.processes import PATIENCE, Address, free_port, relaying, running

CLIENT = Path(__file__).parents[1] / "support" / "foreign" / "pynvim_client.py"
NAMES = ("a", "b", "c")


@pytest.fixture
def nvim(need: Need, tmp_path: Path) -> Iterator[Address]:
    host, port = "127.0.0.1", free_port()
    command = [need("nvim"), "--headless", "-u", "NONE", "-i", "NONE", "--listen", f"{host}:{port}"]
    with running(command, tmp_path / "nvim.log", (host, port)):
        yield host, port


def _edit(address: str, name: str) -> dict[str, Any]:
    command: list[str | Path] = [sys.executable, CLIENT, *address.rsplit(":", 1), name]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr.decode()
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


@asynccontextmanager
async def editing(nvim: Address, codec: str) -> AsyncIterator[Callable[[str], Awaitable[dict[str, Any]]]]:
    """Run a gateway; gives what runs a client of a name, and says what it saw."""
    config = relaying([nvim], listener=f'mode = "rpc"\ncodec = "{codec}"')
    async with Gateway(loads(config, Path())) as g:
        address = g.listeners["l"].address
        yield lambda name: asyncio.to_thread(_edit, address, name)


async def test_an_instance_that_calls_its_clients(nvim: Address) -> None:
    """Under `msgpack` each client has a connection of its own, by which the instance asks and tells it."""
    async with editing(nvim, "msgpack") as edit:
        seen = await asyncio.gather(*(edit(name) for name in NAMES))
    for name, one in zip(NAMES, seen, strict=True):
        assert one["sum"] == 42
        assert one["told"] == [["news", [name]]]
        assert one["asked"] == [["confirm", [name]]]
        assert one["answer"] == f"{name} says yes"
        assert "Not an editor command: nonesuch" in one["error"]
    assert len({one["channel"] for one in seen}) == len(NAMES)


async def test_an_instance_that_may_not(nvim: Address) -> None:
    """Under `msgpack-rpc-stream` clients share a connection: their calls pass, the instance's are refused."""
    async with editing(nvim, "msgpack-rpc-stream") as edit:
        # One after the other: Neovim ends a channel on which its own requests are answered out of order.
        seen = [await edit(name) for name in NAMES]
    for one in seen:
        assert one["sum"] == 42
        assert not one["told"]
        assert not one["asked"]
        assert "Error invoking 'confirm'" in one["error"]
    assert len({one["channel"] for one in seen}) == 1
