"""Clients that find out, from outside, which instance a new connection reaches, and when."""

import asyncio
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

from peers import Address
from processes import BenchmarkError

# Seconds that a connection may take until the instance's name is there; then it counts as failed.
PATIENCE = 5.0
# Longest name that an instance has.
NAME = 16


class Attempt(NamedTuple):
    """A connection that was tried: when (seconds after what is measured), for how long, and who answered.

    `name` is "" where it was refused or reset, or nobody answered.
    """

    at: float
    seconds: float
    name: str


# ---- one after the other ----


class Reached(NamedTuple):
    """When new connections reached only the wanted instance; how many were asked until then and failed."""

    at: float
    asked: int
    failed: int


def attempts(address: Address, since: float) -> Iterator[Attempt]:
    """Try connections without end, each from a port of its own, so that none of the workers is missed."""
    while True:
        began = time.monotonic()
        name = ask(address)
        yield Attempt(began - since, time.monotonic() - began, name)


def ask(address: Address) -> str:
    try:
        with socket.create_connection(address, PATIENCE) as connection:
            return connection.recv(NAME).decode()
    except OSError:
        return ""


def only(wanted: str, tried: Iterable[Attempt], *, in_a_row: int, quiet: float, patience: float) -> Reached:
    """Return when the first connection was begun after which all reached `wanted`.

    So many in a row have to, and for `quiet` seconds: old and new processes may accept from the same sockets,
    and those that are idle do so first, so that the old ones' turn comes seldom. Raises BenchmarkError where
    it has not come about after `patience` seconds.
    """
    streak = asked = failed = 0
    since = 0.0
    for attempt in tried:
        asked += 1
        failed += not attempt.name
        if attempt.name != wanted:
            streak = 0
        elif streak == 0:
            since = attempt.at
        streak += attempt.name == wanted
        if streak >= in_a_row and attempt.at - since >= quiet:
            return Reached(since, asked, failed)
        if attempt.at > patience:
            break
    raise BenchmarkError(f"{wanted} is not all that {asked} connections in {patience:.0f} s reached")


# ---- side by side ----


async def keep_trying(
    address: Address, act: Callable[[], None], *, every: float, before: float, after: float
) -> list[Attempt]:
    """Begin a connection every so many seconds, however long the others take, and `act` in their midst.

    They begin `before` seconds ahead of `act`, which must not block, and go on for `after`. Their times count
    from it.
    """
    loop = asyncio.get_running_loop()
    tasks = await _begin(address, every, before)
    act()
    acted = loop.time()
    tasks += await _begin(address, every, after)
    return [tried._replace(at=tried.at - acted) for tried in await asyncio.gather(*tasks)]


async def _begin(address: Address, every: float, seconds: float) -> list[asyncio.Task[Attempt]]:
    loop = asyncio.get_running_loop()
    began = loop.time()
    tasks = []
    for number in range(round(seconds / every)):
        tasks.append(asyncio.create_task(_attempt(address)))
        await asyncio.sleep(began + (number + 1) * every - loop.time())  # not at all, where it is late
    return tasks


async def _attempt(address: Address) -> Attempt:
    loop = asyncio.get_running_loop()
    began = loop.time()
    name = ""
    with suppress(OSError):  # which a time-out is too
        async with asyncio.timeout(PATIENCE):
            name = await _name(address)
    return Attempt(began, loop.time() - began, name)


async def _name(address: Address) -> str:
    reader, writer = await asyncio.open_connection(*address)
    try:
        return (await reader.read(NAME)).decode()
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
