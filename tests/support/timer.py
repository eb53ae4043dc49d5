"""The time of what tells after a while: it moves when a test says so."""

from collections.abc import Callable


class Time:
    """A clock, and at most one timer of its."""

    def __init__(self) -> None:
        self.now = 100.0
        self.due: tuple[float, Callable[[], None]] | None = None

    def clock(self) -> float:
        return self.now

    def later(self, seconds: float, what: Callable[[], None]) -> "Time":
        assert self.due is None
        self.due = self.now + seconds, what
        return self

    def cancel(self) -> None:
        self.due = None

    def advance(self, seconds: float) -> None:
        self.now += seconds
        if self.due and self.due[0] <= self.now:
            self.due[1]()
