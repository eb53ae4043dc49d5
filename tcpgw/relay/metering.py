"""Bytes per second: who has used up more than is theirs is neither read nor written to for that long.

Nothing is cut up or kept back: what was read is passed on and charged, and the debt is waited for. So the one
read or write that goes over costs a pause instead of a copy, and the rate is right from then on.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

from tcpgw.relay.layers import Layer

_Stop = Callable[[bool], None]


class Bucket(Protocol):
    """Fills with time, and may be shared by many connections."""

    def take(self, n: int, now: float) -> float:
        """Charge `n` bytes, or 0 to ask. Returns for how many seconds it is in debt then, 0.0: it is not."""


class Metered(Layer):
    """Charges what is read from the lower transport to one bucket, and what is written to it to another.

    While a bucket is in debt, by whomever, the lower transport is not read, or the upper protocol has been
    told to pause writing; what it writes all the same goes out. None: not limited.
    """

    __slots__ = ("_clock", "_loop", "_reading", "_timers", "_writing")

    def __init__(
        self,
        upper: asyncio.BaseProtocol,
        loop: asyncio.AbstractEventLoop,
        reading: Bucket | None,
        writing: Bucket | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(upper)
        self._loop = loop
        self._reading = reading
        self._writing = writing
        self._clock = clock
        self._timers: dict[_Stop, asyncio.TimerHandle] = {}

    # ---- reading ----

    def data_received(self, data: bytes) -> None:
        if self._reading is not None:
            self._charge(self._reading, len(data), self.hold)
        self.upper.data_received(data)

    # ---- writing ----

    def write(self, data: bytes | bytearray | memoryview) -> None:
        super().write(data)
        if self._writing is not None and not self._closing:
            self._charge(self._writing, len(data), self.choke)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        parts = list(list_of_data)
        super().writelines(parts)
        if self._writing is not None and not self._closing:
            self._charge(self._writing, sum(map(len, parts)), self.choke)

    # ---- debts ----

    def _charge(self, bucket: Bucket, size: int, stop: _Stop) -> None:
        debt = bucket.take(size, self._clock())
        if debt > 0.0 and stop not in self._timers and not self._closing:
            self._timers[stop] = self._loop.call_later(debt, partial(self._ask, bucket, stop))
            stop(True)

    def _ask(self, bucket: Bucket, stop: _Stop) -> None:
        """Go on, unless more was charged meanwhile: here, or to others who share the bucket."""
        del self._timers[stop]
        self._charge(bucket, 0, stop)
        if stop not in self._timers:
            stop(False)

    def connection_lost(self, exc: Exception | None) -> None:
        try:
            super().connection_lost(exc)
        finally:
            for timer in self._timers.values():
                timer.cancel()
            self._timers.clear()
