"""How many lines are let through, by a clock and a timer that the test moves."""

import pytest

from tcpgw.relay.line_limit import LineLimit
from tests.support.timer import Time


class Limited:
    def __init__(self, per_second: int) -> None:
        self.time = Time()
        self.said: list[dict[str, object]] = []
        self.limit = LineLimit("key", per_second, self.say, clock=self.time.clock, later=self.time.later)

    def say(self, event: str, **fields: object) -> None:
        assert event == "log_lines_suppressed"
        self.said.append(fields)

    def take(self, count: int, *, matters: bool = True) -> int:
        return sum(self.limit.take(matters=matters) for _ in range(count))


def test_so_many_a_second() -> None:
    """As many at once as in a second; after a pause no more than that."""
    limited = Limited(100)
    assert limited.take(150) == 100
    limited.time.advance(0.25)
    assert limited.take(50) == 25
    limited.time.advance(3600)
    assert limited.take(150) == 100


def test_a_quarter_is_kept_for_what_matters() -> None:
    """Whatever the rest has used up, and however long it goes on."""
    limited = Limited(100)
    assert limited.take(500, matters=False) == 75
    assert limited.take(500) == 25
    for _ in range(4):
        limited.time.advance(0.125)
        assert limited.take(100, matters=False) == 0
        assert limited.take(12) == 12


@pytest.mark.parametrize("per_second", [2, 3, 4])
def test_of_few_one_is_kept(per_second: int) -> None:
    """What matters has its line, whatever the rest has used up."""
    limited = Limited(per_second)
    assert limited.take(10, matters=False) == per_second - 1
    assert limited.take(10) == 1


def test_one_a_second_is_let_through() -> None:
    """The least that can be asked for has nothing to keep."""
    limited = Limited(1)
    assert limited.take(5, matters=False) == 1
    limited.time.advance(1)
    assert limited.take(5, matters=False) == 1


def test_what_is_left_out_is_told() -> None:
    """Once for ten seconds of it, with the key to change; nothing while nothing is left out."""
    limited = Limited(10)
    limited.take(10)
    assert limited.time.due is None
    limited.take(5)
    limited.time.advance(9)
    limited.take(100)
    assert limited.said == []
    limited.time.advance(1)
    assert limited.said == [{"count": 95, "setting": "key"}]
    limited.time.advance(100)
    assert len(limited.said) == 1
    limited.take(20)
    limited.limit.tell()
    limited.limit.tell()
    assert limited.said[1:] == [{"count": 10, "setting": "key"}]
    assert limited.time.due is None


def test_another_limit() -> None:
    """It holds at once."""
    limited = Limited(1000)
    limited.limit.change(10)
    assert limited.take(100) == 10
    limited.limit.change(1000)
    limited.time.advance(1)
    assert limited.take(2000) == 1000
