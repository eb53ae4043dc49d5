"""MessagePack-RPC clients and instances of several libraries, all used in the same way."""

import asyncio
import contextlib
import json
import subprocess
import sys
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import aio_msgpack_rpc
from aio_msgpack_rpc.error import RPCResponseError

from tcpgw.client import RpcError, connect
from tcpgw.service import Service
from tests.support.processes import PATIENCE, free_port, running

OURS, AIO, OLD = LIBRARIES = ("tcpgw", "aio-msgpack-rpc", "msgpack-rpc-python")
FOREIGN = Path(__file__).parent / "foreign"

Asked = tuple[str, Sequence[Any]]
"""A method and its parameters."""


class Answer(NamedTuple):
    """Both as they came, whatever the library makes of them."""

    error: Any
    result: Any


class Client(Protocol):
    async def calls(self, *asked: Asked) -> list[Answer]:
        """Make calls at the same time; the answers are in the order of the calls."""

    async def notify(self, *told: Asked) -> None: ...


async def call(client: Client, method: str, *params: Any) -> Any:
    """Return the result, or the error."""
    (answer,) = await client.calls((method, params))
    return answer.result if answer.error is None else answer.error


# ---- clients ----


class _Here:
    """tcpgw's own, in frames, or aio-msgpack-rpc's; both are used in the same way."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def calls(self, *asked: Asked) -> list[Answer]:
        return await asyncio.gather(*(self._call(method, params) for method, params in asked))

    async def _call(self, method: str, params: Sequence[Any]) -> Answer:
        try:
            return Answer(None, await self._client.call(method, *params))
        except RPCResponseError as exc:
            return Answer(exc.args[0], None)
        except RpcError as exc:
            return Answer(exc.written() if exc.data is None else exc.data, None)

    async def notify(self, *told: Asked) -> None:
        for method, params in told:
            await self._client.notify(method, *params)


class _Old:
    """msgpack-rpc-python's, in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    async def calls(self, *asked: Asked) -> list[Answer]:
        return [Answer(*answer) for answer in await self._exchange(asked)]

    async def notify(self, *told: Asked) -> None:
        await self._exchange({"notify": told})

    async def _exchange(self, what: Any) -> Any:
        return json.loads(await asyncio.to_thread(self._write_and_read, json.dumps(what)))

    def _write_and_read(self, line: str) -> str:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()


@asynccontextmanager
async def client_of(library: str, address: str, packages: Path) -> AsyncIterator[Client]:
    """Connect a client. `packages` is where the old library is."""
    if library == OURS:
        async with connect(address) as ours:
            yield _Here(ours)
    elif library == AIO:
        async with _aio_client(address) as aio:
            yield _Here(aio)
    else:
        with _old_client(address, packages) as old:
            yield old


@asynccontextmanager
async def _aio_client(address: str) -> AsyncIterator[Any]:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    client = aio_msgpack_rpc.Client(reader, writer, response_timeout=PATIENCE)
    try:
        yield client
    finally:
        client.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@contextmanager
def _old_client(address: str, packages: Path) -> Iterator[_Old]:
    command = [*_python(packages), FOREIGN / "msgpackrpc_client.py", *address.rsplit(":", 1)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield _Old(process)  # it ends with its input, which the context closes


def _python(packages: Path) -> list[str | Path]:
    return ["env", f"PYTHONPATH={packages}", sys.executable]


# ---- instances ----


class Handler:
    """As in foreign/msgpackrpc_server.py."""

    METHODS = ("echo", "fail", "note", "notes", "hold", "held", "release")

    def __init__(self) -> None:
        self._held: list[tuple[asyncio.Future[None], Any]] = []
        self._notes: list[Any] = []

    async def echo(self, value: Any) -> Any:
        return value

    async def fail(self, why: str) -> None:
        raise RpcError("failed", why)

    async def note(self, value: Any) -> None:
        self._notes.append(value)

    async def notes(self) -> list[Any]:
        return self._notes

    async def hold(self, value: Any) -> Any:
        released = asyncio.get_running_loop().create_future()
        self._held.append((released, value))
        await released
        return value

    async def held(self) -> int:
        return len(self._held)

    async def release(self) -> int:
        held, self._held = self._held, []
        for released, _ in reversed(held):
            released.set_result(None)
        return len(held)


@asynccontextmanager
async def instance_of(library: str, packages: Path, folder: Path) -> AsyncIterator[str]:
    """Run an instance, and give its address. `packages` is where the old library is."""
    if library == OURS:
        handler = Handler()
        methods = {name: getattr(handler, name) for name in Handler.METHODS}
        async with Service(methods).serving("127.0.0.1:0") as address:
            yield address
    elif library == AIO:
        async with _aio_instance() as address:
            yield address
    else:
        with old_instance(packages, folder) as address:
            yield address


@asynccontextmanager
async def _aio_instance() -> AsyncIterator[str]:
    serve = aio_msgpack_rpc.Server(Handler())

    async def connected(reader: StreamReader, writer: StreamWriter) -> None:
        try:
            await serve(reader, writer)
        finally:
            writer.close()  # which the library leaves to its caller

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield "{}:{}".format(*server.sockets[0].getsockname())
    finally:
        server.close()


@contextmanager
def old_instance(packages: Path, folder: Path, port: int = 0) -> Iterator[str]:
    """Run an instance of msgpack-rpc-python in a process of its own."""
    port = port or free_port()
    command = [*_python(packages), FOREIGN / "msgpackrpc_server.py", str(port)]
    with running(command, folder / "instance.log", ("127.0.0.1", port)):
        yield f"127.0.0.1:{port}"
