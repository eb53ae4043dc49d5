"""The demo's rpc instance, with tcpgw.service as a custom image would have it."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import uvloop

from tcpgw.observe import logs
from tcpgw.service import Service

# Seconds: a small model's. An answer at once would leave hardly a request under way when an instance dies.
_THINKING = 0.1


def serve(name: str) -> None:
    """Serve on a port of the kernel's choice, printed first, until killed."""
    with logs.configured(level="error"):  # the screen is the demo's
        uvloop.run(_serve(name))


async def _serve(name: str) -> None:
    requests = 0

    async def predict(value: Any) -> dict[str, Any]:
        nonlocal requests
        requests += 1
        await asyncio.sleep(_THINKING)
        return {"instance": name, "input": value}

    async def stats() -> dict[str, Any]:
        return {"instance": name, "connections": _connections(), "requests": requests}

    async with Service({"predict": predict, "stats": stats}).serving("127.0.0.1:0") as address:
        print(address.rpartition(":")[2], flush=True)  # noqa: T201
        await asyncio.Event().wait()


def _connections() -> int:
    """Count the descriptors of this process that have a TCP peer: the kernel's word, not our own books'."""
    sockets = [int(entry.name) for entry in Path("/proc/self/fd").iterdir() if entry.is_socket()]
    return sum(map(_has_peer, sockets))


def _has_peer(number: int) -> bool:
    with socket.fromfd(number, socket.AF_INET, socket.SOCK_STREAM) as copy:
        try:
            return isinstance(copy.getpeername(), tuple)  # a Unix socket's peer has a name, if any
        except OSError:  # it listens
            return False
