"""A connection to the target: what comes is checked and counted at once, what is due goes in one write."""

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol, cast

from tcpgw.bench.exchange import Exchange
from tcpgw.bench.tally import LOST, Tally

_JOINED = 64 << 10  # bytes up to which one write of joined pieces is cheaper than a list of them
_HIGH_WATER = 1 << 20  # bytes unsent, from which on the target is taken not to read


class Pace(Protocol):
    """Who decides when a connection sends. Told of each what decides it."""

    def joined(self, connection: "Connection") -> None:
        """The connection is open, or may be written to again."""

    def answered(self, connection: "Connection") -> None:
        """Something came on the connection."""

    def left(self, connection: "Connection") -> None:
        """The connection is gone, or has more unsent than it should."""


class Connection(asyncio.Protocol):
    """`gone` is set when it is closed, by whichever side; `useful` when it has answered a request."""

    def __init__(self, exchange: Exchange, tally: Tally, pace: Pace) -> None:
        self.exchange = exchange
        self.gone = asyncio.Event()
        self.useful = False
        self._tally = tally
        self._pace = pace
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_HIGH_WATER)
        self._pace.joined(self)

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        begins = exchange.feed(data)
        now = time.monotonic_ns()
        self._tally.received(begins, len(data), now)
        if begins:
            self.useful = True
        if exchange.refused:
            for begin, reason in exchange.refused:
                self._tally.failed([begin], reason, now)
            exchange.refused.clear()
        if exchange.broken:
            self._break(exchange.broken, now)
        else:
            self._pace.answered(self)

    def pause_writing(self) -> None:
        self._pace.left(self)

    def resume_writing(self) -> None:
        self._pace.joined(self)

    def connection_lost(self, _exc: Exception | None) -> None:
        self._pace.left(self)
        self.gone.set()

    def send(self, begins: Sequence[int], now: int, ready_since: int = 0) -> None:
        """Send a request for each begin. `ready_since`: when the first connection could have taken them."""
        pieces = self.exchange.requests(begins)
        size = sum(map(len, pieces))
        if size <= _JOINED:
            self._transport.write(b"".join(pieces))
        else:
            self._transport.writelines(pieces)
        self._tally.sent(begins, size, now, ready_since)

    def close(self) -> None:
        """Close without waiting for what is unsent. Idempotent."""
        self._pace.left(self)
        self._transport.abort()

    def _break(self, kind: str, now: int) -> None:
        """Nothing that comes can be told apart: the oldest request has failed so, and the others are lost."""
        first, *others = self.exchange.abandon() or [now]
        self._tally.failed([first], kind, now)
        self._tally.failed(others, LOST, now)
        self.close()
