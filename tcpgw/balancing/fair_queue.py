"""Who of many that wait is next.

Fair queueing as Nagle proposed it (RFC 970, 1985): a queue for each source, and the sources take turns. A
turn is one request. Counting bytes instead, as deficit round robin does (Shreedhar and Varghese 1995), would
be right for a link; but what is shared here is an instance, which is held by a request's work and not by its
length, and nobody knows that work beforehand. Large frames have a connection of their own.

Between two turns of an owner that has something waiting, every other owner of its priority has at most one:
who comes new, or comes back, joins at the end. So an owner waits one round at most, however much another one
has waiting. Priorities are strict: while anything of a higher one waits, nothing of a lower one has a turn.
What starves is ended by its `until`.

A full queue takes from whoever has most waiting and gives to who has less, as McKenney's buffer stealing
does (Stochastic Fairness Queueing, 1990): a flood pushes out itself, and who came first keeps nobody out. The
newest is taken, because it would wait longest.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Hashable, Iterator
from heapq import nsmallest
from math import inf
from typing import Generic, TypeVar

O = TypeVar("O", bound=Hashable)  # noqa: E741  # an owner
T = TypeVar("T")

PRIORITIES = 3


class _Lane(Generic[T]):
    """What waits of one owner at one priority. `ordered`: each `until` is at or after the one before it.

    `latest` is of what was ever pushed: where that has left by now, `ordered` is only said too seldom.
    """

    __slots__ = ("items", "latest", "ordered")

    def __init__(self) -> None:
        self.items: deque[tuple[float, T]] = deque()
        self.latest = -inf
        self.ordered = True

    def push(self, item: T, until: float) -> None:
        self.items.append((until, item))
        if until < self.latest:
            self.ordered = False
        else:
            self.latest = until

    def expired(self, now: float) -> list[T]:
        items = self.items
        gone = []
        while items and items[0][0] <= now:
            gone.append(items.popleft()[1])
        if not self.ordered:
            gone += [item for until, item in items if until <= now]
            self.items = deque(entry for entry in items if entry[0] > now)
        return gone

    def soonest(self) -> float:
        return self.items[0][0] if self.ordered else min(until for until, _ in self.items)


class _Counts(Generic[O]):
    """How many items each owner has waiting, and how many who has most: `greatest`."""

    def __init__(self) -> None:
        self.of: dict[O, int] = {}
        self.greatest = 0
        self._owners = Counter[int]()  # by how many they have

    def add(self, owner: O) -> None:
        count = self.of.get(owner, 0)
        self.of[owner] = count + 1
        self._owners[count] -= 1
        self._owners[count + 1] += 1
        self.greatest = max(self.greatest, count + 1)

    def take(self, owner: O, count: int = 1) -> None:
        if not count:
            return
        before = self.of.pop(owner)
        if before > count:
            self.of[owner] = before - count
        self._owners[before] -= 1
        self._owners[before - count] += 1
        # Down by as many as were once added: O(1) on the whole.
        while self.greatest and not self._owners[self.greatest]:
            del self._owners[self.greatest]
            self.greatest -= 1


class FairQueue(Generic[O, T]):
    """Waiting items of many owners: by priority, and within one by turns among owners, each one's in order.

    `limit` is for all items together. One owner alone may fill it, but keeps no other out: once it is full,
    who has fewer waiting gets the place of the newest item of who has most, unless that is more urgent. An
    item is returned exactly once, by `push`, `pop`, `drop`, `shed`, `expired` or `take_all`.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        # By priority: the owners that have something waiting, in the order of their turns.
        self._turns = [OrderedDict[O, _Lane[T]]() for _ in range(PRIORITIES)]
        self._counts = _Counts[O]()
        self._soonest = inf  # nothing expires before

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[T]:
        """Yield all that waits: by priority, and within one each owner's together, in their order."""
        return (item for turns in self._turns for lane in turns.values() for _, item in lane.items)

    def push(self, owner: O, item: T, priority: int = 1, until: float = inf) -> T | None:
        """Add an item, and return the one that finds no place: None while fewer than `limit` wait.

        Else it is of the owner with most waiting, of all priorities together, among those that have more
        than this one and something of no higher priority than `item`: the newest of its lowest priority. Of
        equal owners it is the one whose turn for that comes last. Where there is no such owner it is `item`
        itself, and nothing has changed.

        `priority` is 0, 1 or 2; 0 comes first. `until` is in monotonic seconds, as `now` of `expired`. Takes
        O(1); where the queue is full O(owners), and mostly just those behind the one that gives.
        """
        turns = self._turns[priority]
        removed = None
        if self._size >= self._limit:
            removed = self._take_newest(owner, priority)
            if removed is None:
                return item
        lane = turns.get(owner)
        if lane is None:
            lane = turns[owner] = _Lane()
        lane.push(item, until)
        self._soonest = min(self._soonest, until)
        self._size += 1
        self._counts.add(owner)
        return removed

    def _take_newest(self, owner: O, priority: int) -> T | None:
        """Take the item that makes room for one of this owner and priority, if any may."""
        counts = self._counts.of
        most, found = counts.get(owner, 0), None
        if most >= self._counts.greatest:
            return None
        # From the end: of equals the last gives, of the lowest priority. Nobody has more than the greatest.
        for turns in reversed(self._turns[priority:]):
            for other in reversed(turns):
                if counts[other] > most:
                    most, found = counts[other], (turns, other)
                    if most == self._counts.greatest:
                        return self._give(*found)
        return self._give(*found) if found is not None else None

    def _give(self, turns: OrderedDict[O, _Lane[T]], owner: O) -> T:
        lane = turns[owner]
        item = lane.items.pop()[1]
        if not lane.items:
            del turns[owner]
        self._size -= 1
        self._counts.take(owner)
        return item

    def pop(self) -> T | None:
        """Take the item whose turn it is, in O(1); its owner then goes to the end. None where nothing waits.

        It may have expired since the last `expired`.
        """
        for turns in self._turns:
            if turns:
                owner, lane = next(iter(turns.items()))
                item = lane.items.popleft()[1]
                if lane.items:
                    turns.move_to_end(owner)
                else:
                    del turns[owner]
                self._size -= 1
                self._counts.take(owner)
                return item
        return None

    def drop(self, owner: O) -> list[T]:
        """Take all of an owner that is gone, in the order in which they would have come."""
        lanes = [lane for turns in self._turns if (lane := turns.pop(owner, None))]
        gone = [item for lane in lanes for _, item in lane.items]
        self._size -= len(gone)
        self._counts.take(owner, len(gone))
        return gone

    def untils(self, priority: int) -> Iterator[float]:
        """The `until` of all that waits at a priority."""
        return (until for lane in self._turns[priority].values() for until, _ in lane.items)

    def shed(self, priority: int, count: int) -> list[T]:
        """Take `count` items of a priority, the soonest `until` first. Takes O(waiting at that priority)."""
        turns = self._turns[priority]
        waiting = (
            (until, place, owner)
            for owner, lane in turns.items()
            for place, (until, _) in enumerate(lane.items)
        )
        chosen: dict[O, set[int]] = {}
        gone: list[T] = []
        for _, place, owner in nsmallest(count, waiting, key=lambda one: one[:2]):
            chosen.setdefault(owner, set()).add(place)
            gone.append(turns[owner].items[place][1])
        for owner, places in chosen.items():
            lane = turns[owner]
            lane.items = deque(item for place, item in enumerate(lane.items) if place not in places)
            self._counts.take(owner, len(places))
            if not lane.items:
                del turns[owner]
        self._size -= len(gone)
        return gone

    def expired(self, now: float) -> list[T]:
        """Take the items whose `until` is `now` or before.

        O(1) while nothing can have expired. Else O(owners + taken), and of an owner that did not push in the
        order of `until` all that it has waiting.
        """
        if now < self._soonest:
            return []
        gone: list[T] = []
        self._soonest = inf
        for turns in self._turns:
            for owner, lane in list(turns.items()):
                over = lane.expired(now)
                self._counts.take(owner, len(over))
                gone += over
                if lane.items:
                    self._soonest = min(self._soonest, lane.soonest())
                else:
                    del turns[owner]
        self._size -= len(gone)
        return gone

    def take_all(self) -> list[T]:
        """Take everything, in the order of turns."""
        return list(iter(self.pop, None))
