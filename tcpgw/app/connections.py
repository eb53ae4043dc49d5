"""Which connections there are: of one process, without holding up what it relays, and of all together."""

import asyncio
import heapq
import itertools
import time
from collections.abc import Iterable, Mapping
from typing import Any

import structlog

from tcpgw.app.control import RefusedError
from tcpgw.endpoints import Endpoint
from tcpgw.errors import TcpgwError
from tcpgw.process.worker import WorkerProcess
from tcpgw.relay.listener import Listener
from tcpgw.relay.rpc.service import RpcService
from tcpgw.relay.session import Connection, Session

log = structlog.get_logger()

MOST = 1_000
"""Connections that can be listed: what a worker sorts and packs of them takes its loop 2 ms at once."""

# What is looked at in one turn of the loop: connections about half a millisecond, requests as much.
_BATCH, _REQUESTS = 64, 2048
# Seconds that a worker has to list its own: 10,000 take 0.1 s of a loop that has nothing else to do.
_PATIENCE = 3.0

Row = dict[str, Any]


async def listed(
    listeners: Iterable[Listener],
    services: Iterable[RpcService],
    service: str | None,
    slowest: bool,
    count: int,
) -> dict[str, Any]:
    """Return the first `count` of this process's `connections`, and the `total` that there are.

    Those of `service` only, where one is named. In the order of `rank`. `services` tell since when requests
    wait. Between its slices connections come and go, so it is not of one moment.
    """
    since = await _since(services)
    now = time.monotonic()
    best: list[tuple[tuple[float, ...], int, Row]] = []
    total = 0
    places = itertools.count(0, -1)  # of equals the first stays
    for listener in listeners:
        for number, connection in enumerate(list(listener.connections.values()), 1):
            if number % _BATCH == 0:
                await asyncio.sleep(0)
                now = time.monotonic()
            if connection.id not in listener.connections:
                continue
            row = _row(listener, connection, since, now)
            if service not in (None, row["service"]):
                continue
            total += 1
            entry = rank(row, slowest), next(places), row
            if len(best) < count:
                heapq.heappush(best, entry)
            elif best:
                heapq.heappushpop(best, entry)
    return {"connections": [row for *_, row in sorted(best, reverse=True)], "total": total}


def rank(row: Row, slowest: bool) -> tuple[float, ...]:
    """Greater ones come first: who waits longest, and was longest connected to; else the oldest."""
    if slowest:
        return row["waiting"] or 0.0, row["connect_time"] or 0.0, row["age"]
    return (row["age"],)


async def gathered(
    workers: Iterable[WorkerProcess], services: Iterable[str], service: str | None, slowest: bool, count: int
) -> dict[str, Any]:
    """Return as `listed`, of all workers together; `unheard` are those that did not answer in time.

    Raises RefusedError where there is no such service.
    """
    if type(count) is not int or not 1 <= count <= MOST:
        raise RefusedError(f"count {count!r}: from 1 to {MOST}")
    if service is not None and service not in services:
        raise RefusedError(f"no service is called {service!r}: there are {', '.join(sorted(services))}")
    workers = [worker for worker in workers if worker.accepting.is_set()]
    answers = await asyncio.gather(*(_ask(worker, service, slowest, count) for worker in workers))
    rows = [
        {"worker": worker.slot, **row}
        for worker, answer in zip(workers, answers, strict=True)
        for row in answer["connections"]
    ]
    return {
        "connections": heapq.nlargest(count, rows, key=lambda row: rank(row, slowest)),
        "total": sum(answer["total"] for answer in answers),
        "unheard": [worker.slot for worker, one in zip(workers, answers, strict=True) if one is _NOTHING],
    }


_NOTHING: Mapping[str, Any] = {"connections": [], "total": 0}


async def _ask(worker: WorkerProcess, service: str | None, slowest: bool, count: int) -> Mapping[str, Any]:
    try:
        answer: dict[str, Any] = await worker.call("connections", service, slowest, count, timeout=_PATIENCE)
    except TcpgwError as exc:
        log.warning(
            "worker_not_heard", worker=worker.slot, error=str(exc), hint="its connections are missing"
        )
        return _NOTHING
    return answer


async def _since(services: Iterable[RpcService]) -> dict[Session, float]:
    """Since when the oldest request of each client waits that waits for one."""
    since: dict[Session, float] = {}
    for service in services:
        for number, (client, came) in enumerate(service.targets.unanswered(), 1):
            if number % _REQUESTS == 0:
                await asyncio.sleep(0)
            if came < since.get(client, came + 1.0):
                since[client] = came
    return since


def _row(listener: Listener, connection: Connection, since: Mapping[Session, float], now: float) -> Row:
    session = connection.session
    facts = {**connection.facts, **(session.facts() if session else {})}
    in_flight, waiting = session.owed(now) if session else (None, None)
    if session is not None and waiting is None:
        waiting = now - since[session] if in_flight and session in since else 0.0
    return {
        "conn": connection.id,
        "listener": listener.name,
        "client": str(Endpoint(*connection.address)) if connection.address else "unix",
        "service": facts.get("service"),
        "endpoint": facts.get("endpoint"),
        "age": round(now - connection.opened, 3),
        "bytes_in": session.received if session else 0,
        "bytes_out": session.sent if session else 0,
        "in_flight": in_flight,
        "waiting": None if waiting is None else round(waiting, 3),
        "connect_time": facts.get("connect_time"),
        "state": "setting up"
        if session is None
        else "draining"
        if connection in listener.draining
        else "open",
    }
