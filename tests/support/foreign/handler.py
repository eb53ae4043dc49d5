"""What the Thrift instances do, whichever library serves it (echo.thrift)."""

import threading
from collections.abc import Callable

# Seconds that a call waits for the others: longer than a test takes.
_PATIENCE = 60.0


class Echo:
    """`refused` is the library's exception of that name."""

    def __init__(self, refused: Callable[..., Exception]) -> None:
        self._refused = refused
        self._lock = threading.Lock()
        self._notes = 0
        self._held = 0
        self._released = threading.Event()
        self._meetings: dict[int, threading.Barrier] = {}

    def echo(self, text: str) -> str:
        return text

    def refuse(self, why: str) -> str:
        raise self._refused(why=why)

    def note(self, text: str) -> None:  # noqa: ARG002 - it counts, whatever it says
        with self._lock:
            self._notes += 1

    def notes(self) -> int:
        return self._notes

    def thread(self) -> int:
        """Where each connection has a thread of its own, that tells them apart."""
        return threading.get_ident()

    def meet(self, count: int) -> int:
        """Return when so many calls are here at the same time."""
        with self._lock:
            meeting = self._meetings.setdefault(count, threading.Barrier(count))
        meeting.wait(_PATIENCE)
        return count

    def hold(self, number: int) -> int:
        """Return after the next `release`."""
        with self._lock:
            self._held += 1
            released = self._released
        released.wait(_PATIENCE)
        return number

    def held(self) -> int:
        return self._held

    def release(self) -> None:
        with self._lock:
            released, self._released = self._released, threading.Event()
            self._held = 0
        released.set()

    def fail(self) -> int:
        """Fail with what echo.thrift says nothing of."""
        raise ZeroDivisionError
