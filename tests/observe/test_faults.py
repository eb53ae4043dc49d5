"""Which faults are told of, by a clock and a timer that the test moves."""

from typing import Any

from tcpgw.observe.faults import SAY_EVERY, Faults
from tests.support.timer import Time

FIRST, OTHER = RuntimeError("first"), RuntimeError("other")


class Told:
    def __init__(self) -> None:
        self.time = Time()
        self.lines: list[dict[str, Any]] = []
        self.faults = Faults("odd", self.say, clock=self.time.clock, later=self.time.later)

    def say(self, event: str, **fields: object) -> None:
        assert event == "odd"
        self.lines.append(fields)


def test_a_flood_is_some_lines() -> None:
    """The first one with its traceback; of the others how many there were, though none comes after them."""
    told = Told()
    told.faults.add(FIRST, conn=1)
    told.time.advance(1)
    for number in range(1000):
        told.faults.add(OTHER, conn=number)
    assert told.lines == [{"conn": 1, "exc_info": FIRST}]
    told.time.advance(SAY_EVERY - 1)
    assert told.lines[1:] == [{"more": 1000}]
    told.faults.add(OTHER, conn=2)
    assert told.lines[2:] == [{"conn": 2, "exc_info": OTHER}]


def test_one_now_and_then_is_told_each_time() -> None:
    """Nothing is counted, and nothing is left to be told."""
    told = Told()
    for _ in range(3):
        told.faults.add(FIRST)
        told.time.advance(SAY_EVERY)
    assert told.lines == 3 * [{"exc_info": FIRST}]
    told.faults.tell()
    assert len(told.lines) == 3


def test_a_late_timer_changes_nothing() -> None:
    """What was counted is told before the next fault, and once."""
    told = Told()
    told.faults.add(FIRST)
    told.faults.add(OTHER)
    told.time.now += SAY_EVERY
    told.faults.add(OTHER)
    told.time.advance(SAY_EVERY)
    assert told.lines == [{"exc_info": FIRST}, {"more": 1}, {"exc_info": OTHER}]


def test_the_end_tells_the_rest() -> None:
    """At once, and no timer is left behind."""
    told = Told()
    told.faults.add(FIRST)
    told.faults.add(OTHER)
    told.faults.tell()
    told.faults.tell()
    assert told.lines[1:] == [{"more": 1}]
    assert told.time.due is None
