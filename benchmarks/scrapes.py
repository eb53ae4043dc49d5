"""Who looks at a gateway while it is measured: a scraper of /metrics, and pages that listen to /events."""

import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection, HTTPException

from peers import Address
from processes import BenchmarkError

# Seconds after which an answer does not come any more: five times what the gateway gives itself.
PATIENCE = 25.0
# Seconds between two looks whether it is over.
LOOK = 0.1


@contextmanager
def scraping(address: Address, every: float, core: int | None) -> Iterator[list[float]]:
    """Ask for /metrics every so many seconds, from a thread on a core; what is yielded is how long each took.

    One after the other, on one connection that is kept, as Prometheus does. One that is late is not made up
    for. Raises BenchmarkError where an answer is none.
    """
    took: list[float] = []
    over = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        task = pool.submit(_scrape, address, every, core, over, took)
        try:
            yield took
        finally:
            over.set()
        task.result()


def _scrape(
    address: Address, every: float, core: int | None, over: threading.Event, took: list[float]
) -> None:
    _pin(core)
    connection = HTTPConnection(*address, timeout=PATIENCE)
    due = time.monotonic()
    try:
        while not over.wait(max(0.0, due - time.monotonic())):
            began = time.monotonic()
            metrics(connection)
            now = time.monotonic()
            took.append(now - began)
            due = max(due + every, now)
    finally:
        connection.close()


def metrics(connection: HTTPConnection) -> bytes:
    """Return an answer's body. Raises BenchmarkError where it is not that of a gateway."""
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, HTTPException) as error:
        raise BenchmarkError(f"/metrics was not answered: {error!r}") from error
    if answer.status != 200 or b"\ntcpgw_build_info{" not in body:
        raise BenchmarkError(f"/metrics was answered with {answer.status}: {body[:200]!r}")
    return body


@contextmanager
def watching(address: Address, pages: int, core: int | None) -> Iterator[list[float]]:
    """Have so many pages listen to /events, and read what comes; what is yielded is when each view came.

    Raises BenchmarkError where one is not let in, or is sent away.
    """
    came: list[float] = []
    over = threading.Event()
    with ExitStack() as ending:
        opened = [ending.enter_context(_page(address)) for _ in range(pages)]
        pool = ending.enter_context(ThreadPoolExecutor(1))
        task = pool.submit(_watch, opened, core, over, came)
        try:
            yield came
        finally:
            over.set()
        task.result()


def _page(address: Address) -> socket.socket:
    page = socket.create_connection(address, PATIENCE)
    page.sendall(f"GET /events HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
    head = page.recv(1 << 16)
    if not head.startswith(b"HTTP/1.1 200 "):
        page.close()
        raise BenchmarkError(f"/events was answered with {head[:200]!r}")
    return page


def _watch(pages: list[socket.socket], core: int | None, over: threading.Event, came: list[float]) -> None:
    _pin(core)
    while not over.is_set():
        ready, _, _ = select.select(pages, [], [], LOOK)
        for page in ready:
            data = page.recv(1 << 20)
            if not data:
                raise BenchmarkError("a page that listened to /events was sent away")
            came += [time.monotonic()] * data.count(b"event: view")


def _pin(core: int | None) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})  # of this thread alone
