from collections import Counter
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tcpgw.balancing.fair_queue import FairQueue

LIMIT = 8

owners = st.sampled_from("abcd")
priorities = st.sampled_from([0, 1, 2])
moments = st.one_of(st.integers(0, 20).map(float), st.just(inf))


def new_queue(limit: int = 100) -> FairQueue[str, str]:
    return FairQueue(limit)


def popped(queue: FairQueue[str, str], count: int) -> str:
    return "".join(queue.pop() or "-" for _ in range(count))


def test_owners_take_turns() -> None:
    """Who has much waiting and who has little take turns, each one's items in their order."""
    queue = new_queue()
    for item in ("A1", "A2", "A3", "B1", "C1", "C2"):
        assert queue.push(item[0], item) is None
    assert popped(queue, 6) == "A1B1C1A2C2A3"


def test_all_that_waits_can_be_looked_at() -> None:
    """Each item once, and it stays where it is."""
    queue = new_queue()
    for item, priority in (("A1", 1), ("B1", 0), ("A2", 1), ("C1", 2)):
        queue.push(item[0], item, priority)
    assert list(queue) == ["B1", "A1", "A2", "C1"]
    assert len(queue) == 4


def test_who_comes_back_joins_at_the_end() -> None:
    """An owner that empties its queue and pushes again does not get ahead of those that wait."""
    queue = new_queue()
    for item in ("A1", "B1", "B2"):
        queue.push(item[0], item)
    assert queue.pop() == "A1"
    queue.push("A", "A2")
    assert popped(queue, 3) == "B1A2B2"


def test_a_higher_priority_comes_first() -> None:
    """Nothing of a lower priority has a turn before everything of a higher one; 1 is the default."""
    queue = new_queue()
    queue.push("A", "low", 2)
    queue.push("A", "default")
    queue.push("B", "normal", 1)
    queue.push("A", "high", 0)
    assert [queue.pop() for _ in range(5)] == ["high", "default", "normal", "low", None]


def test_a_full_queue_gives_a_place_of_who_has_most() -> None:
    """At the limit, who has fewer waiting gets the place of the newest item of who has most."""
    queue = new_queue(5)
    for item in ("A1", "A2", "A3", "B1", "B2"):
        assert queue.push(item[0], item) is None
    assert queue.push("C", "C1") == "A3"
    assert queue.push("C", "C2") == "B2"
    assert len(queue) == 5
    assert popped(queue, 6) == "A1B1C1A2C2-"


def test_a_flood_pushes_out_nobody() -> None:
    """Who has as many waiting as anybody gets its own item back, of any priority, and nothing changes."""
    queue = new_queue(4)
    for item in ("A1", "A2", "B1", "B2"):
        queue.push(item[0], item)
    assert queue.push("A", "A3") == "A3"
    assert queue.push("B", "B0", 0) == "B0"
    assert popped(queue, 5) == "A1B1A2B2-"
    assert new_queue(0).push("A", "A1") == "A1"


def test_what_is_more_urgent_keeps_its_place() -> None:
    """A place is taken from the lowest priority of its owner, and never for a lower one: then the next's."""
    queue = new_queue(7)
    for item, priority in (("A1", 0), ("A2", 0), ("A3", 0), ("A4", 1), ("B1", 2), ("B2", 1), ("C1", 0)):
        queue.push(item[0], item, priority)
    assert queue.push("C", "C2", 2) == "B1"
    assert queue.push("C", "C3", 2) == "C3"
    assert queue.push("D", "D1", 1) == "A4"
    assert queue.push("E", "E1", 1) == "C2"
    assert queue.push("E", "E2", 1) == "E2"
    assert queue.push("E", "E0", 0) == "A3"
    assert queue.take_all() == ["A1", "C1", "E0", "A2", "B2", "D1", "E1"]


def test_of_equals_the_last_gives_its_place() -> None:
    """Of owners that have as many, the one whose turn comes last loses: who came first has its turn."""
    queue = new_queue(3)
    for item in ("A1", "B1", "C1"):
        queue.push(item[0], item)
    assert queue.pop() == "A1"
    assert queue.push("D", "D1") is None
    assert [queue.push(owner, owner + "1") for owner in "EF"] == ["D1", "E1"]
    assert popped(queue, 4) == "B1C1F1-"


def test_what_lost_its_place_is_forgotten() -> None:
    """The `until` of an item that was pushed out decides nothing for those that stay or come."""
    queue = new_queue(3)
    for item, until in (("A1", 3.0), ("A2", 5.0), ("A3", 9.0)):
        queue.push("A", item, 1, until)
    assert queue.push("B", "B1", 1, 1.0) == "A3"
    assert queue.expired(1.0) == ["B1"]
    queue.push("A", "A4", 1, 2.0)
    assert queue.expired(2.0) == ["A4"]
    queue.push("A", "A5", 1, 6.0)
    assert queue.expired(5.0) == ["A1", "A2"]
    assert popped(queue, 2) == "A5-"


def test_who_is_gone_takes_its_items_along() -> None:
    """All items of an owner are returned, by priority and in order, and everyone else's stay."""
    queue = new_queue()
    for item, priority in (("A3", 2), ("A1", 1), ("B1", 1), ("A2", 1), ("A0", 0)):
        queue.push(item[0], item, priority)
    assert queue.drop("A") == ["A0", "A1", "A2", "A3"]
    assert queue.drop("A") == queue.drop("nobody") == []
    assert len(queue) == 1
    assert popped(queue, 2) == "B1-"


def test_what_has_expired_is_taken_out() -> None:
    """Exactly the items whose `until` is now or before leave, of all owners and priorities."""
    queue = new_queue()
    for item, until in (("A1", 1.0), ("A2", 2.0), ("B2", 2.0), ("B3", 3.0), ("C", inf)):
        queue.push(item[0], item, int(until) % 3 if until < inf else 1, until)
    assert queue.expired(0.9) == []
    assert sorted(queue.expired(2.0)) == ["A1", "A2", "B2"]
    assert queue.expired(2.0) == []
    assert len(queue) == 2
    assert popped(queue, 3) == "B3C-"


def test_until_need_not_be_in_order() -> None:
    """An item behind one that may wait longer expires in its own time, and the rest keep their order."""
    queue = new_queue()
    for item, until in (("A1", 9.0), ("A2", 1.0), ("A3", 5.0), ("A4", 9.0)):
        queue.push("A", item, 1, until)
    assert queue.expired(1.0) == ["A2"]
    assert queue.expired(5.0) == ["A3"]
    queue.push("A", "A5", 1, 2.0)
    assert queue.expired(6.0) == ["A5"]
    assert popped(queue, 3) == "A1A4-"


def test_a_sweep_with_nothing_to_find_looks_at_nothing() -> None:
    """Before the soonest `until`, and again after a sweep, no item is looked at however many wait."""

    class Moment(float):
        looks = 0

        def __le__(self, other: float) -> bool:
            Moment.looks += 1
            return float(self) <= other

    queue = new_queue()
    for n in range(50):
        queue.push("AB"[n % 2], str(n), 1, Moment(10 + n))
    for _ in range(10):
        assert queue.expired(9.0) == []
    assert Moment.looks == 0
    assert len(queue.expired(11.0)) == 2
    assert Moment.looks == 4  # of each owner what left, and the one behind it
    assert queue.expired(11.5) == []
    assert Moment.looks == 4


def test_everything_is_taken_in_the_order_of_turns() -> None:
    """`take_all` empties the queue and returns what popping would have."""
    one, two = new_queue(), new_queue()
    for queue in (one, two):
        for item, priority in (("A1", 1), ("A2", 1), ("B1", 1), ("C1", 0)):
            queue.push(item[0], item, priority)
    assert "".join(one.take_all()) == popped(two, 4) == "C1A1B1A2"
    assert len(one) == 0
    assert one.take_all() == []


def test_only_three_priorities() -> None:
    """A priority that does not exist raises and leaves the queue as it was."""
    queue = new_queue()
    with pytest.raises(IndexError):
        queue.push("A", "A1", 3)
    assert len(queue) == 0
    assert queue.pop() is None


@settings(max_examples=80)
@given(st.lists(st.one_of(st.tuples(owners, st.integers(1, 3)), st.none()), max_size=80))
def test_nobody_waits_longer_than_one_round(history: list[tuple[str, int] | None]) -> None:
    """While an owner waits for its turn, whatever others push, each of them has one turn at most."""
    queue: FairQueue[str, str] = FairQueue(1000)
    waiting: Counter[str] = Counter()
    turns_since: dict[str, Counter[str]] = {owner: Counter() for owner in "abcd"}
    for event in history:
        if event is not None:
            owner, count = event
            if not waiting[owner]:
                turns_since[owner].clear()
            waiting[owner] += count
            for _ in range(count):
                queue.push(owner, owner)
            continue
        served = queue.pop()
        if served is None:
            assert not waiting.total()
            continue
        waiting[served] -= 1
        turns_since[served].clear()
        for owner in waiting:
            if waiting[owner] and owner != served:
                turns_since[owner][served] += 1
                assert turns_since[owner][served] <= 1


def test_shedding_takes_the_oldest_of_a_priority() -> None:
    """Whosever they are, and of one owner in order; the others keep their turns."""
    queue = new_queue()
    for item, until in (("A1", 1.0), ("A2", 2.0), ("A3", 3.0), ("B1", 2.5), ("C1", 9.0)):
        queue.push(item[0], item, 1, until)
    queue.push("B", "B2", 2, 0.5)
    assert queue.shed(1, 3) == ["A1", "A2", "B1"]
    assert queue.shed(0, 3) == []
    assert queue.shed(2, 3) == ["B2"]
    assert len(queue) == 2
    assert popped(queue, 3) == "A3C1-"


class FairQueueMachine(RuleBasedStateMachine):
    """Any history against lists that are searched from end to end."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[str, int] = FairQueue(LIMIT)
        self.waiting: list[tuple[int, str, int, float]] = []  # priority, owner, item, until; as pushed
        self.turns: list[list[str]] = [[], [], []]  # owners that wait, by priority
        self.pushed = 0
        self.left: list[int] = []

    @rule(owner=owners, priority=priorities, until=moments)
    def push(self, owner: str, priority: int, until: float) -> None:
        self.pushed += 1
        full = len(self.waiting) == LIMIT
        counts = Counter(entry[1] for entry in self.waiting)
        greatest = max(counts.values(), default=0)
        loser = self.loser(owner, priority) if full else None
        refused = full and loser is None
        found = self.queue.push(owner, self.pushed, priority, until)
        assert found == (self.pushed if refused else loser)
        if full and counts[owner] == greatest:
            assert refused
        if full and priority == 0:  # nothing is more urgent
            assert refused is (counts[owner] == greatest)
        if refused:
            self.left.append(self.pushed)
            return
        if loser is not None:
            self.leave(loser)
        self.waiting.append((priority, owner, self.pushed, until))
        if owner not in self.turns[priority]:
            self.turns[priority].append(owner)

    @rule(owner=owners, priority=priorities, until=moments, count=st.integers(2, LIMIT))
    def flood(self, owner: str, priority: int, until: float, count: int) -> None:
        for _ in range(count):
            self.push(owner, priority, until)

    @rule()
    def pop(self) -> None:
        assert self.queue.pop() == self.next_turn()

    @rule(owner=owners)
    def drop(self, owner: str) -> None:
        theirs = sorted((entry[0], entry[2]) for entry in self.waiting if entry[1] == owner)
        assert self.queue.drop(owner) == [self.leave(item) for _, item in theirs]

    @rule(now=st.integers(0, 22))
    def expire(self, now: int) -> None:
        over = [item for _, _, item, until in self.waiting if until <= now]
        assert sorted(self.queue.expired(now)) == [self.leave(item) for item in over]

    @rule(priority=priorities, count=st.integers(0, 4))
    def shed(self, priority: int, count: int) -> None:
        theirs = [entry for entry in self.waiting if entry[0] == priority]
        untils = {item: until for _, _, item, until in theirs}
        assert sorted(self.queue.untils(priority)) == sorted(untils.values())
        gone = self.queue.shed(priority, count)
        assert [untils[item] for item in gone] == sorted(untils.values())[:count]
        for item in gone:
            self.leave(item)

    @precondition(lambda self: len(self.waiting) > 6)
    @rule()
    def take_all(self) -> None:
        expected = [self.next_turn() for _ in range(len(self.waiting))]
        assert self.queue.take_all() == expected

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        assert len(self.queue) == len(self.waiting) <= LIMIT
        inside = [item for _, _, item, _ in self.waiting]
        assert sorted(self.left + inside) == list(range(1, self.pushed + 1))

    def next_turn(self) -> int | None:
        for priority, turns in enumerate(self.turns):
            if turns:
                owner = turns.pop(0)
                turns.append(owner)
                item = min(entry[2] for entry in self.waiting if entry[:2] == (priority, owner))
                return self.leave(item)
        return None

    def loser(self, owner: str, priority: int) -> int | None:
        """The item that is to make room, as one great comparison of all."""
        counts = Counter(entry[1] for entry in self.waiting)
        items = [
            (counts[theirs], level, self.turns[level].index(theirs), item)
            for level, theirs, item, _ in self.waiting
            if counts[theirs] > counts[owner] and level >= priority
        ]
        return max(items)[-1] if items else None

    def leave(self, item: int) -> int:
        priority, owner = next(entry[:2] for entry in self.waiting if entry[2] == item)
        self.waiting = [entry for entry in self.waiting if entry[2] != item]
        if not any(entry[:2] == (priority, owner) for entry in self.waiting):
            self.turns[priority].remove(owner)
        self.left.append(item)
        return item


TestFairQueue = FairQueueMachine.TestCase
TestFairQueue.settings = settings(max_examples=60, stateful_step_count=40)
