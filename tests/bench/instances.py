"""Instances for the load generator's tests: real listeners on the test's own loop, with faults on request."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import msgpack

from tcpgw.address import Address


class Echo(asyncio.Protocol):
    """Sends back every byte."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Stall:
    """One standstill of all connections of an instance: from 0.1 s after the first byte on, for 0.3 s."""

    def __init__(self) -> None:
        self.on = False
        self._loop = asyncio.get_running_loop()
        self._begun = False
        self._held: list[tuple[asyncio.Transport, bytes]] = []

    def pass_on(self, transport: asyncio.Transport, data: bytes) -> None:
        if not self._begun:
            self._begun = True
            self._loop.call_later(0.1, self._begin)
        if self.on:
            transport.pause_reading()
            self._held.append((transport, data))
        else:
            transport.write(data)

    def _begin(self) -> None:
        self.on = True
        self._loop.call_later(0.3, self._end)

    def _end(self) -> None:
        self.on = False
        for transport, data in self._held:
            transport.write(data)
            transport.resume_reading()


class Stalling(Echo):
    """An echo that stands still once."""

    def __init__(self, stall: Stall) -> None:
        self.stall = stall

    def data_received(self, data: bytes) -> None:
        self.stall.pass_on(self.transport, data)


class Silent(Echo):
    """Takes everything and answers nothing."""

    def data_received(self, data: bytes) -> None:
        """Say nothing."""


class Wrong(Echo):
    """Changes a byte of everything."""

    def data_received(self, data: bytes) -> None:
        self.transport.write(bytes((data[0] ^ 1,)) + data[1:])


class Breaking(Echo):
    """Ends each connection after its tenth read."""

    reads = 0

    def data_received(self, data: bytes) -> None:
        self.reads += 1
        if self.reads == 10:
            self.transport.abort()
        else:
            self.transport.write(data)


class Rpc(Echo):
    """A msgpack-rpc service: `echo`, `length`, `refuse` (the gateway's form of error), `silence`."""

    def __init__(self) -> None:
        self.held = b""

    def data_received(self, data: bytes) -> None:
        data = self.held + data
        pos = 0
        while len(data) - pos >= 4 and (end := pos + 4 + int.from_bytes(data[pos : pos + 4], "big")) <= len(
            data
        ):
            kind, number, method, (payload,) = msgpack.unpackb(data[pos + 4 : end])
            assert kind == 0
            for frame in self.answer(number, method, payload):
                self.transport.write(framed(frame))
            pos = end
        self.held = data[pos:]

    def answer(self, number: int, method: str, payload: bytes) -> list[Any]:
        match method:
            case "echo":
                return [[1, number, None, payload]]
            case "length":
                return [[1, number, None, len(payload)]]
            case "refuse":
                return [[1, number, {"code": "overloaded", "message": "full"}, None]]
            case _:
                return []


def framed(message: Any) -> bytes:
    """A message in the project's own framing."""
    body: bytes = msgpack.packb(message)
    return len(body).to_bytes(4, "big") + body


@contextlib.asynccontextmanager
async def serving(make: Callable[[], asyncio.Protocol], *, port: int = 0) -> AsyncIterator[Address]:
    """Serve on loopback as long as the context lasts; every connection ends with it."""
    made: list[Any] = []

    def keep() -> asyncio.Protocol:
        made.append(make())
        return cast(asyncio.Protocol, made[-1])

    server = await asyncio.get_running_loop().create_server(keep, "127.0.0.1", port)
    try:
        yield Address("127.0.0.1", server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for protocol in made:
            protocol.transport.abort()
        await server.wait_closed()
