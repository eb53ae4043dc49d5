"""A worker's side of tracing: its Tracer is in use while there is a trace, and what it has is told."""

import asyncio
import time
from collections.abc import Callable
from ipaddress import ip_network

from tcpgw.app.background import Background
from tcpgw.relay.tracing import Event, Tracer

# Seconds between two words of it to the supervisor: whoever looks sees no delay, and a word has many events.
_EVERY = 0.1


class Traced:
    """`use` is given the Tracer while there is a trace, and None when there is none; `tell` gets its events.

    Used in one running event loop.
    """

    def __init__(
        self,
        use: Callable[[Tracer | None], None],
        tell: Callable[[str, list[Event]], None],
        background: Background,
    ) -> None:
        self._tracer = Tracer(time.monotonic, time.time)
        self._use = use
        self._tell = tell
        self._background = background
        self._telling: asyncio.Task[None] | None = None

    @property
    def tracer(self) -> Tracer | None:
        """What is in use."""
        return self._tracer if self._tracer.active else None

    def begin(self, name: str, network: str, seconds: float) -> None:
        """As `Tracer.begin`."""
        self._tracer.begin(name, ip_network(network), seconds)
        self._use(self._tracer)
        if self._telling is None or self._telling.done():
            self._telling = self._background.start(self._tell_on(), "tracing")

    def end(self, name: str) -> None:
        """End a trace, with all that there is told. Idempotent."""
        if events := self._tracer.end(name):
            self._tell(name, events)
        self._use(self.tracer)

    def flush(self) -> None:
        """Tell what there is."""
        for name, events in self._tracer.take().items():
            self._tell(name, events)

    async def _tell_on(self) -> None:
        while self._tracer.active:
            await asyncio.sleep(_EVERY)
            self.flush()
        self._use(None)
