"""Workers that count what sources have together, without a process: a model of their messages."""

import functools
from collections import Counter, deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tcpgw.access.guard import OPEN, Guard
from tcpgw.access.limits import Limit, Limiter, Quota
from tcpgw.access.limits import Usage as Admitted
from tcpgw.app.usage import Shares, Usage
from tcpgw.config import schema
from tcpgw.config.load import loads

LIMIT = 5
SOURCES = "source l"


@functools.cache
def config(*, limited: bool = True, subjects: bool = False) -> schema.Config:
    limits = f"per_source = {{ connections = {LIMIT} }}" if limited else ""
    subject = f"per_subject = {{ connections = {LIMIT} }}" if subjects else ""
    text = f"""
        [[service]]
        name = "s"
        discovery = {{ type = "static", endpoints = ["10.0.0.1:80"] }}
        [[listener]]
        name = "l"
        bind = "127.0.0.1:9000"
        route = "s"
        access = {{ api_keys = "keys" }}
        limits = {{ {", ".join(filter(None, (limits, subject)))} }}
    """
    return loads(text, Path())


def guards(sources: Limiter | None, subjects: Limiter | None = None) -> dict[str, Guard]:
    return {"l": replace(OPEN, sources=sources, subjects=subjects)}


def limiter() -> Limiter:
    return Limiter(Quota(connections=LIMIT), most=100)


class Worker:
    """A worker's limiter, what it holds, and the messages that are on their way to and from it."""

    def __init__(self, workers: int) -> None:
        self.limiter = limiter()
        self.held: list[tuple[str, Admitted]] = []
        self.heard = False
        self.leaving = False
        self.shares = Shares(self.hear)
        self.out: deque[Any] = deque()
        self.incoming: deque[Any] = deque()
        self.follow(workers)

    def hear(self) -> None:
        self.heard = True

    def follow(self, workers: int, *, limited: bool = True) -> None:
        found = guards(self.limiter if limited else None)
        self.shares.follow(config(limited=limited), found, workers, leaving=self.leaving)

    def speak(self) -> None:
        if self.heard:
            self.heard = False
            self.out.append(self.shares.news())

    def admit(self, name: str) -> bool:
        found = self.limiter.admit(name, 0.0)
        if isinstance(found, Limit):
            return False
        self.held.append((name, found))
        return True

    @property
    def connections(self) -> Counter[str]:
        return Counter(name for name, _ in self.held)


class World:
    """Workers and their supervisor, whose messages arrive in order, but when is not said."""

    def __init__(self, workers: int) -> None:
        self.usage = Usage()
        self.count = workers
        self.workers = [Worker(workers) for _ in range(workers)]

    def step(self, worker: Worker) -> None:
        """Let what one worker has to say, and the next thing said to it, arrive."""
        worker.speak()
        if worker.out:
            self.tell(self.usage.note(worker, worker.out.popleft()))
        if worker.incoming:
            worker.shares.take(worker.incoming.popleft())

    def tell(self, news: dict[Any, Any]) -> None:
        for worker, elsewhere in news.items():
            worker.incoming.append(elsewhere)

    def settle(self) -> None:
        while any(one.heard or one.out or one.incoming for one in self.workers):
            for worker in self.workers:
                self.step(worker)

    def kill(self, worker: Worker) -> None:
        self.workers.remove(worker)
        self.tell(self.usage.forget(worker))

    def total(self, name: str) -> int:
        return sum(worker.connections[name] for worker in self.workers)


@pytest.mark.parametrize("order", [(0, 0, 1, 1, 1, 1, 1), (1, 0, 1, 0, 1, 0, 0), (0,) * 7])
def test_workers_count_together(order: tuple[int, ...]) -> None:
    """However a source's connections are spread, with what each tells there are no more than it may have."""
    world = World(2)
    for place in order:
        world.workers[place].admit("a")
        world.settle()
    assert world.total("a") == LIMIT
    assert not any(worker.admit("a") for worker in world.workers)
    assert all(worker.admit("b") for worker in world.workers)


def test_light_sources_cost_no_message() -> None:
    """Nobody is told of who has less than a share, whatever comes and goes."""
    world = World(2)
    world.settle()
    worker = world.workers[0]
    for number in range(100):
        worker.admit(f"light {number}")
        worker.admit(f"light {number}")
    assert not worker.heard
    worker.admit("light 0")
    assert worker.heard
    assert worker.shares.news() == {SOURCES: (False, {"light 0": 3})}


def test_what_a_dead_worker_had_is_free() -> None:
    """The others may let as many in as it had."""
    world = World(3)
    first, second, third = world.workers
    for worker in (first, first, first, second):
        assert worker.admit("a")
    world.settle()
    world.kill(first)
    world.settle()
    admitted = []
    for _ in range(6):
        admitted.append(third.admit("a"))
        world.settle()
    assert admitted == [True] * 4 + [False] * 2
    world.usage.forget(first)
    world.kill(second)
    world.settle()
    assert third.admit("a")


def test_a_new_worker_is_told_all() -> None:
    """One that comes up counts with what the others have, and they with what it has."""
    world = World(2)
    for _ in range(4):
        world.workers[0].admit("a")
    world.settle()
    world.workers.append(Worker(2))
    world.settle()
    assert [world.workers[2].admit("a") for _ in range(2)] == [True, False]
    world.settle()
    assert not any(worker.admit("a") for worker in world.workers)


def test_a_worker_that_leaves_tells_of_all() -> None:
    """It is one more than share the limit, so what it still has is known however little that is."""
    world = World(2)
    old = world.workers[0]
    for _ in range(2):
        old.admit("a")
    old.leaving = True
    old.follow(2)
    world.workers.append(Worker(2))
    world.settle()
    for _ in range(3):
        for worker in world.workers[1:]:
            worker.admit("a")
            world.settle()
    assert world.total("a") == LIMIT


def test_limits_that_come_and_go() -> None:
    """A limit that is taken out and put back counts anew, at all workers, and messages for it harm nobody."""
    world = World(2)
    first, second = world.workers
    for _ in range(4):
        first.admit("a")
    world.settle()
    first.follow(2, limited=False)
    first.limiter = limiter()
    world.settle()
    first.follow(2)
    assert second.admit("a")
    world.settle()
    assert [second.admit("a") for _ in range(5)] == [True] * 4 + [False]
    world.settle()
    assert not first.admit("a")
    first.shares.take({"source of another": {"a": 100}})


def test_another_number_of_workers() -> None:
    """With one there is nobody to tell; with two they share what there is already."""
    world = World(1)
    (only,) = world.workers
    for _ in range(LIMIT):
        only.admit("a")
    world.settle()
    assert only.shares.news() == {}
    only.follow(2)
    world.workers.append(Worker(2))
    world.settle()
    assert not world.workers[1].admit("a")


def test_subjects_are_others_than_sources() -> None:
    """The same name is two where it is that of an address and of a subject."""
    sources, subjects = limiter(), limiter()
    shares = Shares(lambda: None)
    shares.follow(config(subjects=True), guards(sources, subjects), 2)
    shares.news()
    for _ in range(3):
        subjects.admit("a", 0.0)
    assert shares.news() == {"subject l": (False, {"a": 3})}
    shares.take({"subject l": {"a": LIMIT}})
    assert isinstance(sources.admit("a", 0.0), Admitted)
    assert subjects.admit("a", 0.0) is Limit.CONNECTIONS


class UsageMachine(RuleBasedStateMachine):
    """Any history, with messages that arrive late: nothing is counted wrong for good."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(3)

    @rule(place=st.integers(0, 9), name=st.sampled_from("ab"))
    def admit(self, place: int, name: str) -> None:
        worker = self.world.workers[place % len(self.world.workers)]
        before = worker.connections[name]
        if not worker.leaving and worker.admit(name):
            assert before < LIMIT

    @rule(place=st.integers(0, 9), which=st.integers(0, 9))
    def leave(self, place: int, which: int) -> None:
        worker = self.world.workers[place % len(self.world.workers)]
        if worker.held:
            _, usage = worker.held.pop(which % len(worker.held))
            usage.leave(0.0)

    @rule(place=st.integers(0, 9))
    def step(self, place: int) -> None:
        self.world.step(self.world.workers[place % len(self.world.workers)])

    @precondition(lambda self: len(self.world.workers) > 2)
    @rule(place=st.integers(0, 9))
    def kill(self, place: int) -> None:
        self.world.kill(self.world.workers[place % len(self.world.workers)])

    @precondition(lambda self: sum(not one.leaving for one in self.world.workers) < 4)
    @rule()
    def come(self) -> None:
        self.world.workers.append(Worker(self.world.count))

    @rule(count=st.integers(1, 4))
    def follow(self, count: int) -> None:
        self.world.count = count
        for worker in self.world.workers:
            worker.follow(count)

    @invariant()
    def nobody_alone_goes_beyond(self) -> None:
        for worker in self.world.workers:
            assert all(count <= LIMIT for count in worker.connections.values())

    def teardown(self) -> None:
        """Once all have heard all, there is room for exactly what is missing to the limit."""
        self.world.settle()
        workers = self.world.workers
        for worker in workers:
            worker.follow(len(workers))
        self.world.settle()
        for name in "ab":
            before = self.world.total(name)
            for _ in range(LIMIT + 1):
                for worker in workers:
                    worker.admit(name)
                    self.world.settle()
            assert self.world.total(name) == max(before, LIMIT)


TestUsageMachine = UsageMachine.TestCase
TestUsageMachine.settings = settings(max_examples=60, stateful_step_count=40)


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(2, 4))
def test_nobody_has_more_however_they_come(order: list[int], count: int) -> None:
    """With every word heard before the next comes, the limit is exact with any number of workers."""
    world = World(count)
    for place in order:
        world.workers[place % count].admit("a")
        world.settle()
        assert world.total("a") <= LIMIT
