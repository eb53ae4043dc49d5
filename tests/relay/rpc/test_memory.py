"""One account of bytes for all clients: never overdrawn, and whoever waits is told."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tcpgw.relay.rpc.memory import Memory


def test_takes_what_fits_and_counts_what_does_not() -> None:
    """All of the limit may be held, and no byte more."""
    memory = Memory(100)
    assert memory.take(60)
    assert not memory.take(41)
    assert memory.take(40)
    assert not memory.take(1)
    assert memory.take(0)
    assert (memory.held, memory.refused) == (100, 2)


def test_wakes_all_who_wait_in_the_order_of_their_coming() -> None:
    """Each is called once, with the memory free already; who waits twice has one place."""
    memory = Memory(100)
    memory.take(100)
    woken: list[tuple[str, int]] = []
    wakes = {name: (lambda name=name: woken.append((name, memory.held))) for name in "abc"}
    for name in "abca":
        memory.wait(wakes[name])
    memory.give(30)
    memory.give(30)
    assert woken == [("a", 70), ("b", 70), ("c", 70)]


def test_nothing_freed_wakes_nobody() -> None:
    """Giving back nothing is no news."""
    memory = Memory(100)
    woken: list[bool] = []
    memory.wait(lambda: woken.append(True))
    memory.give(0)
    assert not woken


def test_who_leaves_is_not_called() -> None:
    """Also not where an earlier one, being called, has it leave. Leaving twice is no error."""
    memory = Memory(100)
    memory.take(100)
    woken: list[str] = []

    def first() -> None:
        woken.append("first")
        memory.leave(second)

    def second() -> None:
        woken.append("second")

    def third() -> None:
        woken.append("third")

    for wake in (first, second, third):
        memory.wait(wake)
    memory.leave(third)
    memory.leave(third)
    memory.give(1)
    assert woken == ["first"]


def test_who_finds_too_little_waits_again_behind_nobody_new() -> None:
    """Called, one that still does not fit waits on, in front of those who come later."""
    memory = Memory(100)
    memory.take(100)
    got: list[str] = []

    def ask(name: str, size: int) -> None:
        def wake() -> None:
            got.append(f"{name}?")
            ask_again()

        def ask_again() -> None:
            if memory.take(size):
                got.append(name)
            else:
                memory.wait(wake)

        ask_again()

    ask("large", 80)
    ask("small", 30)
    memory.give(50)
    assert got == ["large?", "small?", "small"]
    ask("late", 60)
    memory.give(60)
    assert got[3:] == ["large?", "large", "late?"]
    memory.give(80)
    assert got[6:] == ["late?", "late"]


class Account(RuleBasedStateMachine):
    """Clients that take, wait, leave and give back, beside a sum of what they have."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = Memory(50)
        self.taken: list[int] = []
        self.refused = 0

    @rule(size=st.integers(0, 60))
    def take(self, size: int) -> None:
        fits = sum(self.taken) + size <= 50
        assert self.memory.take(size) == fits
        if fits:
            self.taken.append(size)
        else:
            self.refused += 1

    @rule(size=st.integers(1, 60))
    def wait(self, size: int) -> None:
        def wake() -> None:
            if self.memory.take(size):
                self.taken.append(size)
            else:
                self.refused += 1

        self.memory.wait(wake)

    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        if self.taken:
            self.memory.give(self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1))))

    @invariant()
    def holds_what_was_taken(self) -> None:
        assert self.memory.held == sum(self.taken) <= 50
        assert self.memory.refused == self.refused


TestAccount = Account.TestCase
TestAccount.settings = settings(max_examples=30, stateful_step_count=30)
