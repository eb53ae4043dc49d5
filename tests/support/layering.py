"""Both neighbours of a layer: a transport that notes what it is told, and a protocol that does."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

Bytes = bytes | bytearray | memoryview


class Below(asyncio.Transport):
    """A lower transport. `fills` makes the next writes of anything fill it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.written: list[bytes] = []
        self.reading = True
        self.buffered = 0
        self.closing = False
        self.limits = (16384, 65536)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def write(self, data: Bytes) -> None:
        self.written.append(bytes(data))

    def writelines(self, list_of_data: Iterable[Bytes]) -> None:
        self.written.append(b"".join(list_of_data))

    def write_eof(self) -> None:
        self.calls.append("write_eof")

    def close(self) -> None:
        self.closing = True
        self.calls.append("close")

    def abort(self) -> None:
        self.closing = True
        self.calls.append("abort")

    def is_closing(self) -> bool:
        return self.closing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        high = 65536 if high is None else high
        self.limits = (high // 4 if low is None else low, high)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self.limits

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("10.0.0.1", 1)}.get(name, default)


class Above(asyncio.Protocol):
    """An upper protocol. `when` is called with each event's name, and may act on the transport."""

    def __init__(self, *, keep_open: bool = True) -> None:
        self.transport: asyncio.Transport
        self.data = bytearray()
        self.sizes: list[int] = []
        self.events: list[str] = []
        self.lost = asyncio.Event()
        self.error: Exception | None = None
        self.paused = False
        self.when: Callable[[str], object] = lambda _: None
        self._keep_open = keep_open

    def has(self, size: int) -> Callable[[], bool]:
        """Whether so much has come."""
        return lambda: len(self.data) >= size

    def heard(self, event: str) -> Callable[[], bool]:
        return lambda: event in self.events

    def _note(self, event: str) -> None:
        self.events.append(event)
        self.when(event)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._note("made")

    def data_received(self, data: bytes) -> None:
        assert type(data) is bytes
        self.data += data
        self.sizes.append(len(data))
        self.when("data")

    def eof_received(self) -> bool:
        self._note("eof")
        return self._keep_open

    def pause_writing(self) -> None:
        assert not self.paused
        self.paused = True
        self._note("pause")

    def resume_writing(self) -> None:
        assert self.paused
        self.paused = False
        self._note("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.error = exc
        self._note("lost")
        self.lost.set()
