"""Thrift clients and instances of two libraries, all used in the same way."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from thrift.Thrift import TApplicationException
from thriftpy2.thrift import TApplicationException as TApplicationException2

from tests.support.foreign import apache_echo, thriftpy2_echo
from tests.support.processes import Address, free_port, running

ROOT = Path(__file__).parents[2]

TOLD = (TApplicationException, TApplicationException2)
REFUSED = (apache_echo.Refused, thriftpy2_echo.IDL.Refused)
LIBRARIES = ("apache", "thriftpy2", "thriftpy2 async")
ENCODINGS = ("binary", "compact")


class Kind(NamedTuple):
    """Of an instance. `threaded`: each connection has a thread, which does one call after the other."""

    library: str
    encoding: str = "binary"
    threaded: bool = True

    @property
    def arguments(self) -> list[str]:
        if self.library == "thriftpy2":
            return ["tests.support.foreign.thriftpy2_echo", self.encoding]
        kind = "threaded" if self.threaded else "nonblocking"
        return ["tests.support.foreign.apache_echo", kind, self.encoding]


@contextmanager
def served(kind: Kind, folder: Path, port: int = 0) -> Iterator[Address]:
    """Run an instance in a process of its own."""
    port = port or free_port()
    python = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m"]
    with running([*python, *kind.arguments, str(port)], folder / f"{port}.log", ("127.0.0.1", port)):
        yield "127.0.0.1", port


class Instances:
    """Instances that several tests share; each is started when it is first asked for."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._running: dict[Kind, Address] = {}

    def __call__(self, kind: Kind) -> Address:
        if kind not in self._running:
            self._running[kind] = self._stack.enter_context(served(kind, self._folder))
        return self._running[kind]


class Client(NamedTuple):
    """Its calls raise what the library raises: one of TOLD, one of REFUSED, …"""

    call: Callable[..., Coroutine[Any, Any, Any]]
    close: Callable[[], object]


Connect = Callable[[str, str, str], Awaitable[Client]]


@contextmanager
def connecting() -> Iterator[Connect]:
    """Gives what connects clients by library, encoding and address, and closes them at the end."""
    with ExitStack() as stack:

        async def connect(library: str, encoding: str, address: str) -> Client:
            host, _, port = address.rpartition(":")
            client = await _connected(library, encoding, (host, int(port)))
            stack.callback(client.close)
            return client

        yield connect


async def _connected(library: str, encoding: str, address: Address) -> Client:
    if library == "thriftpy2 async":
        waiting = await thriftpy2_echo.async_client(address, encoding)
        return Client(lambda method, *params: getattr(waiting, method)(*params), waiting.close)
    made: Any = apache_echo.Client if library == "apache" else thriftpy2_echo.client
    blocking = await asyncio.to_thread(made, address, encoding)

    def call(method: str, *params: Any) -> Coroutine[Any, Any, Any]:
        if library == "apache":
            return asyncio.to_thread(blocking.call, method, *params)
        return asyncio.to_thread(getattr(blocking, method), *params)

    return Client(call, blocking.close)
