"""Who is due when."""

from random import Random

from tcpgw.endpoints import Endpoint
from tcpgw.health.schedule import Schedule, Terms, Turn

TERMS = Terms(interval=10.0, fast_interval=1.0, jitter=0.1)


def endpoints(number: int, start: int = 1) -> list[Endpoint]:
    return [Endpoint.of("10.0.0.1", port) for port in range(start, start + number)]


def schedule(terms: Terms = TERMS) -> Schedule:
    return Schedule(terms, Random(1))


def taken(of: Schedule, now: float) -> list[Turn]:
    """All that are due."""
    turns = []
    while (turn := of.take(now)) is not None:
        turns.append(turn)
    return turns


def test_nobody() -> None:
    """Where nobody is followed nobody is due."""
    assert schedule().take(1e9) is None
    assert schedule().next_due() is None


def test_new_ones_are_due_at_once() -> None:
    """A few new endpoints are checked at once, and so is each that joins them; each has one turn."""
    s = schedule()
    assert s.follow([*endpoints(2), *endpoints(2)], 100.0) == []
    assert [turn.endpoint for turn in taken(s, 100.0)] == endpoints(2)
    assert s.follow(endpoints(3), 101.0) == []
    assert s.next_due() == 101.0
    assert [turn.endpoint for turn in taken(s, 101.0)] == endpoints(1, 3)


def test_many_new_ones_are_spread() -> None:
    """Of a large snapshot each tenth of an interval has its share of the first checks."""
    s = schedule()
    s.follow(endpoints(1000), 100.0)
    shares = [len(taken(s, 100.0 + tenth)) for tenth in range(1, 11)]
    assert sum(shares) == 1000
    assert min(shares) > 70


def test_longest_due_first() -> None:
    """Turns are taken in the order in which they fell due, and not before."""
    s = schedule()
    s.follow(endpoints(1000), 0.0)
    first = taken(s, 5.0)
    assert first == sorted(first)
    assert first[-1].due <= 5.0 < (s.next_due() or 0.0)


def test_again() -> None:
    """The next turn is an interval after the last one began, the shorter one in transition, give or take."""
    s = schedule()
    s.follow(endpoints(1), 0.0)
    slow, fast = [], []
    for _ in range(500):
        turn = s.take(1e9)
        assert turn is not None
        assert s.take(1e9) is None  # one at a time
        fast.append(s.again(turn, 50.0, fast=True))
        turn = s.take(1e9)
        assert turn is not None
        slow.append(s.again(turn, 50.0, fast=False))
        assert s.next_due() == slow[-1]
    assert 59.0 <= min(slow) < 59.1
    assert 60.9 < max(slow) <= 61.0
    assert 50.9 <= min(fast) < 50.91
    assert 51.09 < max(fast) <= 51.1


def test_without_jitter() -> None:
    """No jitter: exactly an interval."""
    s = schedule(Terms(interval=2.0, jitter=0.0))
    s.follow(endpoints(1), 0.0)
    (turn,) = taken(s, 0.0)
    assert s.again(turn, 3.0, fast=False) == 5.0


def test_dropped() -> None:
    """A dropped endpoint is named once, and is never due any more; who stays keeps its turn."""
    s = schedule()
    s.follow(endpoints(3), 0.0)
    assert s.follow(endpoints(1, 3), 1.0) == endpoints(2)
    assert s.follow(endpoints(1, 3), 2.0) == []
    assert [turn.endpoint for turn in taken(s, 1e9)] == endpoints(1, 3)


def test_dropped_and_back() -> None:
    """Who comes back is due at once, by one turn, whatever turn it waited for or had before."""
    s = schedule()
    s.follow(endpoints(1), 0.0)
    (first,) = taken(s, 0.0)
    assert s.holds(first)
    s.again(first, 0.0, fast=False)
    assert not s.holds(first)
    s.follow([], 1.0)
    s.follow(endpoints(1), 2.0)
    (second,) = taken(s, 1e9)
    assert second.due == 2.0
    s.follow([], 3.0)
    assert not s.holds(second)
    s.follow(endpoints(1), 3.0)
    assert not s.holds(second)
