"""How many bytes of frames may be held at a time: one account for all clients."""

from collections.abc import Callable


class Memory:
    """Large requests reserve their size before they are read: halves that wait for each other cannot be."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self.refused = 0
        self._waiting: dict[Callable[[], object], None] = {}

    def take(self, size: int) -> bool:
        """Reserve, unless that would be too much. Each success is followed by `give` of as much."""
        if self.held + size > self.limit:
            self.refused += 1
            return False
        self.held += size
        return True

    def give(self, size: int) -> None:
        """Free what was reserved, and call those who wait, in the order of their coming; they ask again."""
        if not size:
            return
        self.held -= size
        for wake in [*self._waiting]:
            if wake in self._waiting:  # an earlier one may have had it leave
                self.leave(wake)
                wake()

    def wait(self, wake: Callable[[], object]) -> None:
        """Have `wake` called once when something is freed. Idempotent."""
        self._waiting[wake] = None

    def leave(self, wake: Callable[[], object]) -> None:
        """Not wait any more. Idempotent."""
        self._waiting.pop(wake, None)
