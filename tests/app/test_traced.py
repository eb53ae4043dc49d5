"""A worker's side of tracing."""

import time

from tcpgw.app.background import Background
from tcpgw.app.traced import Traced
from tcpgw.relay.tracing import Event, Tracer


class Bed:
    def __init__(self) -> None:
        self.used: list[Tracer | None] = []
        self.told: list[tuple[str, list[str]]] = []
        self.background = Background()
        self.traced = Traced(self.used.append, self._tell, self.background)

    def _tell(self, name: str, events: list[Event]) -> None:
        self.told.append((name, [event["event"] for event in events]))

    def follow(self) -> None:
        tracer = self.traced.tracer
        assert tracer is not None
        tracer.follow("l", 1, ("10.0.0.7", 1), time.monotonic())


async def test_it_is_in_use_while_there_is_a_trace() -> None:
    """From the first one's beginning to the last one's end; before and after nobody is looked at."""
    bed = Bed()
    assert bed.traced.tracer is None
    bed.traced.begin("a", "10.0.0.0/8", 60.0)
    bed.traced.begin("b", "10.0.0.7", 60.0)
    tracer = bed.traced.tracer
    assert tracer is not None
    bed.traced.end("a")
    assert bed.traced.tracer is tracer
    bed.traced.end("b")
    bed.traced.end("b")
    assert bed.traced.tracer is None
    assert bed.used[-1] is None
    await bed.background.close()


async def test_what_there_is_is_told_with_the_end() -> None:
    """And before a worker goes; nothing twice."""
    bed = Bed()
    bed.traced.begin("a", "10.0.0.0/8", 60.0)
    bed.follow()
    bed.traced.flush()
    bed.traced.flush()
    assert bed.told == [("a", ["accepted"])]
    bed.follow()
    bed.traced.end("a")
    assert bed.told[1:] == [("a", ["accepted"])]
    await bed.background.close()
