"""How many bytes of frames may be held at a time: one account for all clients and instances.

Held are: large requests, from their announcement until they are written; requests that wait, or are kept for
a second try; large answers while they come in; and answers that a client has not read, beyond its buffer.

- Large requests reserve their size before they are read: halves that wait for each other cannot be. Who finds
  no room waits, first come first served whatever the size, and is not read meanwhile.
- A quarter is kept for answers: an answer that finds no room is lost, while a request can wait.
- Nobody may keep others waiting by being slow. Above the limit, who is slow and has most unread is cut off,
  also for an answer that needs the room. Where
  somebody has waited for `_PATIENCE`, so is who had most unread for as long, and who announced a request and
  does not send it.
"""

from __future__ import annotations

from time import monotonic
from typing import Protocol

# Seconds that somebody waits before others are looked at.
_PATIENCE = 1.0
# Bytes/s with which a large request must come, and answers be read, where others need the room. A client that
# shares a link of 1 Gbit/s with a hundred others still does.
_LEAST_RATE = 1 << 20
# Of the limit, what requests leave free.
_FOR_ANSWERS = 4


class Client(Protocol):
    """Who holds memory."""

    def sends(self, seconds: float, rate: int) -> bool:
        """Whether the request for which it reserved so long ago comes at `rate` bytes/s, or would if read."""

    def reads(self, now: float, rate: int) -> bool:
        """Whether it reads its answers at `rate` bytes/s."""

    def granted(self) -> None:
        """The room that it waited for is its own now."""

    def cut(self, why: str) -> None:
        """It is over: it holds too much, and keeps others from theirs. Followed by `leave`."""


class Memory:
    """The account. `held` is the sum of all."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self.refused = 0
        self._for_requests = limit - limit // _FOR_ANSWERS
        self._waiting: dict[Client, tuple[int, float]] = {}
        self._incoming: dict[Client, tuple[int, float]] = {}
        self._unread: dict[Client, int] = {}
        self._passing = False  # between pass_on and grant

    def resize(self, limit: int) -> None:
        """Take another limit. What is held beyond a lower one stays, and nothing is added to it.

        Who waits with a request that can never fit is cut off: it would keep all behind it waiting for ever.
        """
        self.limit = limit
        self._for_requests = limit - limit // _FOR_ANSWERS
        for client, (size, _) in list(self._waiting.items()):
            if size > self._for_requests:
                client.cut(f"a request of {size} bytes does not fit into rpc_memory any more")
        if not self._passing:
            self.grant()

    def take(self, size: int) -> bool:
        """Reserve for an answer, if there is room or can be made. Followed by `give` of as much.

        Who reads slowly is cut off before others are refused, but not where that would be in vain.
        """
        slow = self._slow(monotonic()) if self.held + size > self.limit else {}
        if self.held + size - sum(slow.values()) > self.limit:
            self.refused += 1
            return False
        self.held += size  # first, or what becomes free would be granted to those who wait
        while self.held > self.limit and slow:
            self._cut_greatest(slow, "and rpc_memory is full")
        return True

    def keep(self, size: int) -> bool:
        """Reserve for a request that waits or may be sent again, if there is room. Followed by `give`."""
        if self.held + size > self._for_requests:
            self.refused += 1
            return False
        self.held += size
        return True

    def give(self, size: int) -> None:
        """Free what was reserved."""
        self.held -= size
        if not self._passing:
            self.grant()

    def pass_on(self, size: int) -> None:
        """Free what was reserved for an answer that its client is given now; then comes `grant`.

        In between that client owes what it does not read at once. What it gets back must not be somebody
        else's before, so nothing is granted.
        """
        self.held -= size
        self._passing = True

    def grant(self) -> None:
        """Give what is free to those who wait, in the order of their coming."""
        self._passing = False
        waiting = self._waiting
        while waiting:
            client = next(iter(waiting))
            size, _ = waiting[client]
            if self.held + size > self._for_requests:
                break
            del waiting[client]
            self._begin(client, size)
            client.granted()

    # ---- large requests ----

    def begin(self, client: Client, size: int) -> bool:
        """Reserve for the one large request that a client sends. False: it waits until it is `granted`.

        Followed by `whole` or `leave`.
        """
        if self._waiting or self.held + size > self._for_requests:
            self._waiting.setdefault(client, (size, monotonic()))
            return False
        self._begin(client, size)
        return True

    def _begin(self, client: Client, size: int) -> None:
        self.held += size
        self._incoming[client] = size, monotonic()

    def whole(self, client: Client) -> int:
        """The request has come. Returns what is reserved for it, for the caller to `give`."""
        self._waiting.pop(client, None)
        return self._incoming.pop(client, (0, 0.0))[0]

    def leave(self, client: Client) -> None:
        """It sends, waits and reads no more. Idempotent."""
        self.owe(client, 0)
        self.give(self.whole(client))

    # ---- slow readers ----

    @property
    def unread(self) -> int:
        """Bytes of answers that clients have not read."""
        return sum(self._unread.values())

    def owe(self, client: Client, size: int) -> None:
        """A client has now so many bytes unread. May cut off who has most."""
        before = self._unread.pop(client, 0)
        if size:
            self._unread[client] = size
        if size <= before:
            self.give(before - size)
            return
        self.held += size - before
        if self.held > self.limit:
            self._cut_greatest(self._slow(monotonic()) or dict(self._unread), "and rpc_memory is full")

    def _slow(self, now: float) -> dict[Client, int]:
        return {client: size for client, size in self._unread.items() if not client.reads(now, _LEAST_RATE)}

    def _cut_greatest(self, unread: dict[Client, int], why: str) -> None:
        client = max(unread, key=unread.__getitem__)
        size = unread.pop(client)
        self.owe(client, 0)
        client.cut(f"{size} bytes of its answers are unread, {why}")

    # ---- time ----

    def relieve(self, now: float) -> None:
        """Where somebody has waited for too long, end who is slow. Call often."""
        size, since = next(iter(self._waiting.values()), (0, now))
        if now - since < _PATIENCE:
            return
        slow = self._slow(now)
        if slow and self.held - sum(slow.values()) + size <= self._for_requests:
            self._cut_greatest(slow, "and others wait for memory")
            return
        for client, (size, begun) in list(self._incoming.items()):
            if now - begun >= _PATIENCE and not client.sends(now - begun, _LEAST_RATE):
                client.cut(f"a request of {size} bytes comes too slowly while others wait for memory")
                return
