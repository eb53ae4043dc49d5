"""The lines of the log about requests: those that failed, those that were slow, and a sample of all.

What a run of answers has in common is one line, with its `count`. Nothing here is called for a run in which
there is nothing to tell.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from logging import INFO, WARNING
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

from tcpgw.relay.line_limit import LineLimit
from tcpgw.relay.lines import shown
from tcpgw.wire.codec import PARTS, Piece, Run

if TYPE_CHECKING:
    from tcpgw.config.log import RequestLog
    from tcpgw.endpoints import Endpoint
    from tcpgw.errors import Code
    from tcpgw.relay.rpc.routing import Rule
    from tcpgw.relay.rpc.session import RpcSession

log = structlog.get_logger()

# Bytes of a method's name that is not the rule's: whoever sends it chooses it.
_LONGEST = 128


class Asked(NamedTuple):
    """Who asked what of whom. `method`: as the client called it, where somebody remembers that."""

    client: RpcSession
    rule: Rule
    service: str
    endpoint: Endpoint | None
    method: bytes = b""


class RequestLines:
    """Which requests of a process have lines, and those lines. Its services share it.

    `least`: seconds that the slowest of some answers took, from which on it is to be asked which of them have
    a line. None has without any errors among them while it is inf.
    """

    __slots__ = (
        "_errors", "_failures", "_gap", "_least", "_limit", "_log", "_noted", "_sample", "_slow", "least",
    )  # fmt: skip

    def __init__(self, settings: RequestLog) -> None:
        self._log = log.bind()
        self._limit = LineLimit("gateway.log.requests.per_second", settings.per_second, self._log.warning)
        self._noted: dict[int, tuple[list[Piece], int]] = {}  # by id of the parts
        self.change(settings)

    def change(self, settings: RequestLog) -> None:
        """Go by other settings from now on."""
        # What is not written would be made all the same, and counted as left out.
        informs, warns = self._log.is_enabled_for(INFO), self._log.is_enabled_for(WARNING)
        self._errors = settings.errors and informs  # of instances
        self._failures = settings.errors and warns  # of the gateway
        self._slow = settings.slow if settings.slow != "off" and warns else inf
        self._sample = settings.sample if informs else 0.0
        self._gap = self._new_gap()  # requests before the next one of the sample
        self.least = self._least = 0.0 if self._sample else self._slow
        self._limit.change(settings.per_second)

    def close(self) -> None:
        """Tell what was not told yet. Idempotent."""
        self._limit.tell()

    def note_errors(self, parts: list[Piece], errors: int) -> None:
        """Remember until `answered_runs` how many answers of a run are errors: once delivered it is spent.

        Has that be called: `least` is 0 until then.
        """
        if self._errors or self._least < inf:
            self._noted[id(parts)] = parts, errors
            self.least = 0.0

    def answered_runs(self, runs: Iterable[Run], now: float, service: str, endpoint: Endpoint) -> None:
        """Tell of runs that were delivered, where they had no Calls."""
        noted, self._noted, self.least = self._noted, {}, self._least
        for client, parts, batch in runs:
            if batch.call is not None:
                continue
            count, seconds = len(parts) // PARTS, now - batch.came
            _, failed = noted.get(id(parts), (parts, 0))
            if not failed and seconds < self._slow and count <= self._gap:
                self._gap -= count
                continue
            asked = Asked(client, batch.rule, service, endpoint)
            if failed:
                self.answered(asked, seconds, failed, error=True)
            if count > failed:
                self.answered(asked, seconds, count - failed)

    def answered(self, asked: Asked, seconds: float, count: int = 1, *, error: bool = False) -> None:
        """Tell of so many requests that an instance answered, if they are to have a line."""
        drawn = self._draw(count)
        slow = seconds >= self._slow
        whole = slow or (error and self._errors)
        if not (whole or drawn) or not self._limit.take(matters=whole):
            return
        line = _line(asked, seconds, "error" if error else "ok", count if whole else drawn)
        if slow:
            self._log.warning("request", **line, slow=True)
        elif whole:
            self._log.info("request", **line)
        else:
            self._log.info("request", **line, sample=self._sample)

    def failed(self, asked: Asked, began: float, code: Code, text: str) -> None:
        """Tell of one that was answered in an instance's stead."""
        if self._failures and self._limit.take(matters=True):
            line = _line(asked, monotonic() - began, code.value, 1)
            self._log.warning("request", **line, error=text)

    # ---- the sample ----

    def _draw(self, count: int) -> int:
        """How many of so many requests are in the sample."""
        drawn, left = 0, float(count)
        while left > self._gap:
            left -= self._gap + 1
            drawn += 1
            self._gap = self._new_gap()
        self._gap -= left
        return drawn

    def _new_gap(self) -> float:
        """By chance, how many come before the next: to pass these over costs less than a draw for each."""
        if self._sample in (0, 1):
            return 0 if self._sample else inf
        gap = math.log(1.0 - random.random()) / math.log1p(-self._sample)
        return gap if gap == inf else int(gap)  # a share may be as small as numbers get


def _line(asked: Asked, seconds: float, outcome: str, count: int) -> dict[str, Any]:
    client, rule, service, endpoint, method = asked
    connection = client.client
    line: dict[str, Any] = {
        "conn": connection.id,
        "client": shown(connection.address),
        "listener": rule.listener,
        "service": service,
        "endpoint": None if endpoint is None else str(endpoint),
        "method": rule.name or "*",
    }
    if method and method != rule.name.encode():
        line["called"] = method if len(method) <= _LONGEST else method[:_LONGEST] + b"..."
    if connection.grant is not None:
        line["subject"] = connection.grant.subject
    line["seconds"] = round(seconds, 6)
    line["outcome"] = outcome
    if count > 1:
        line["count"] = count
    return line
