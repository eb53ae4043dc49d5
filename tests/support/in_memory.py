"""A gateway whose connections are memory and whose timers wait for the test: step by step, in one thread.

Everything of the gateway's is real but its clients' and instances' sockets.
"""

import asyncio
import struct
from collections import defaultdict
from collections.abc import Callable
from typing import Any, cast

import msgpack

from tests.support.rpc_ends import frame

Address = tuple[str, int]
# Turns of the loop after which nothing is left to do but what waits for its time.
_TURNS = 12


class Wire(asyncio.Transport):
    """The gateway's end of a connection: `heard` is called with what it writes."""

    def __init__(
        self, loop: "StillLoop", protocol: asyncio.Protocol, heard: Callable[[bytes], object]
    ) -> None:
        super().__init__()
        self.protocol = protocol
        self.closing = False
        self.lost = False
        self.reading = True
        self.full = False  # the protocol was told to pause
        self._loop = loop
        self._heard = heard

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: Any) -> None:
        if not self.closing:
            self._heard(bytes(data))

    def write_eof(self) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self) -> None:
        self.lose(None)

    def abort(self) -> None:
        self.lose(None)

    def lose(self, exc: Exception | None) -> None:
        """The connection breaks. As with sockets, the protocol hears of it in a later turn. Idempotent."""
        if not self.closing:
            self.closing = True
            self._loop.call_soon(self._lost, exc)

    def _lost(self, exc: Exception | None) -> None:
        self.lost = True
        self.protocol.connection_lost(exc)


class Messages:
    """Takes messages in frames out of what is heard."""

    def __init__(self) -> None:
        self._data = bytearray()

    def take(self, data: bytes) -> list[list[Any]]:
        self._data += data
        found = []
        while len(self._data) >= 4:
            end = 4 + struct.unpack_from(">I", self._data)[0]
            if len(self._data) < end:
                break
            found.append(cast("list[Any]", msgpack.unpackb(self._data[4:end])))
            del self._data[:end]
        return found


class Side:
    """An instance. `links` are its connections, `asked` what it was asked on them and did not answer.

    `visits` are the first parameters of all that ever came to it. While it is `stalled`, each connection
    is full after one write.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self.alive = True
        self.stalled = False
        self.links: list[Wire] = []
        self.asked: list[tuple[Wire, int, str, list[Any]]] = []
        self.visits: list[str] = []

    def connect(self, loop: "StillLoop", protocol: asyncio.Protocol) -> Wire:
        messages = Messages()

        def heard(data: bytes) -> None:
            for message in messages.take(data):
                self._take(wire, message)
            if self.stalled and not wire.full:
                wire.full = True
                protocol.pause_writing()

        wire = Wire(loop, protocol, heard)
        self.links.append(wire)
        return wire

    def _take(self, wire: Wire, message: list[Any]) -> None:
        match message:
            case [0, number, method, params]:
                self.asked.append((wire, number, method, params))
                self.visits.append(params[0])
            case [2, _, params]:
                self.visits.append(params[0])

    def stall(self) -> None:
        self.stalled = True

    def go_on(self) -> None:
        self.stalled = False
        for wire in self.links:
            if wire.full and not wire.closing:
                wire.full = False
                wire.protocol.resume_writing()

    def forget(self) -> None:
        """Of connections that are gone."""
        self.links = [wire for wire in self.links if not wire.lost]
        self.asked = [one for one in self.asked if not one[0].closing]

    def answer(self, place: int, *, times: int = 1) -> None:
        """Answer one of what it was asked: with the parameters, as often as told."""
        wire, number, _, params = self.asked.pop(place)
        for _ in range(times):
            if not wire.closing:
                wire.protocol.data_received(frame(1, number, None, params))


class StillLoop(asyncio.SelectorEventLoop):
    """Its time stands but for `advance`. Connections go to `sides`, and accepted ones to who is waiting."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sides: dict[Address, Side] = {}
        self.wires: dict[asyncio.Protocol, Wire] = {}
        self.heard: dict[asyncio.Protocol, list[list[Any]]] = defaultdict(list)  # by clients
        super().__init__()

    def time(self) -> float:
        return self.now

    async def create_connection(  # type: ignore[override]
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        side = self.sides[host, port]
        await asyncio.sleep(0)
        if not side.alive:
            raise ConnectionRefusedError(111, "Connection refused")
        protocol = factory()
        wire = side.connect(self, protocol)
        protocol.connection_made(wire)
        return wire, protocol

    async def connect_accepted_socket(  # type: ignore[override]
        self, factory: Callable[[], asyncio.Protocol], _: object
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        protocol = factory()
        messages = Messages()
        wire = Wire(self, protocol, lambda data: self.heard[protocol].extend(messages.take(data)))
        self.wires[protocol] = wire
        protocol.connection_made(wire)
        return wire, protocol

    def do(self, act: Callable[[], object]) -> None:
        """Do something in one turn, and then all that comes of it at once."""

        async def turn() -> None:
            act()

        self.run_until_complete(turn())
        self.settle()

    def settle(self) -> None:
        """Run until nothing is left to do but what waits for its time."""
        self.run_until_complete(_turns())
        for side in self.sides.values():
            side.forget()

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.settle()


async def _turns() -> None:
    for _ in range(_TURNS):
        await asyncio.sleep(0)
