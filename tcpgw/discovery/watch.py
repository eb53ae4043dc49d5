"""Keeps one service's snapshot up to date: asks the source, judges the answer, publishes what changed."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import structlog

from tcpgw.discovery.source import Source
from tcpgw.discovery.store import Store
from tcpgw.discovery.suspect import Suspicion, judge
from tcpgw.endpoints import Endpoint, Member, Snapshot
from tcpgw.errors import DiscoveryError

# Seconds after which the same failure is logged again, and an unchanged snapshot is written to disk again, so
# that a later start says truly how old it is. Once a minute is no load and precise enough for both.
REPEAT = 60.0

# Endpoints that one log line names: enough to recognise a change, and the line stays a line.
NAMED = 10

log = structlog.get_logger()


@dataclass
class Asked:
    """How often a service's source was asked, how often in vain, and when (Unix time) it answered last."""

    calls: int = 0
    errors: int = 0
    answered_at: float | None = None


class Watcher:
    """One service's discovery. `run` it once, as a task of a TaskGroup that ends the gateway when it raises.

    The snapshot in force is the last that was accepted; at a start it is the stored one, which is published
    only if the first answer is no good (the source failed, or its answer is suspect: see suspect.py).
    Versions go on from the stored one and grow with each change of endpoints or weights.

    A watcher that follows another one is told that one's `version` and `asked`, to go on from, and
    `in_force`, its snapshot, where that is from the same source: answers are judged by it.

    `publish` is awaited before the next question, so calls never overlap; what it raises ends `run`.
    `ready` is set once something was published; `last_error` is the text of the last failure, None while the
    source answers.
    """

    def __init__(
        self,
        service: str,
        source: Source,
        publish: Callable[[Snapshot], Awaitable[None]],
        *,
        store: Store | None,
        wall: Callable[[], float] = time.time,
        version: int = 0,
        in_force: Snapshot | None = None,
        asked: Asked | None = None,
    ) -> None:
        self.asked = asked or Asked()
        self.ready = asyncio.Event()
        self.last_error: str | None = None
        self._service = service
        self._source = source
        self._publish = publish
        self._store = store
        self._wall = wall
        self._log = log.bind(service=service)
        self._in_force = in_force
        self._version = version
        self._held: Suspicion | None = None
        self._saved_at = 0.0
        self._complaint: str | None = None
        self._complained_at = 0.0

    async def run(self) -> None:
        """Ask for ever. Closes the source at its end, however that comes.

        Only a DiscoveryError is survived. Anything else that the source raises is a bug, and going on without
        discovery would hide it until every instance has moved away.
        """
        try:
            await self._load()
            while True:
                await self._round()
                await self._source.wait()
        finally:
            await self._source.close()

    @property
    def in_force(self) -> Snapshot | None:
        """The last that was accepted, or the stored one."""
        return self._in_force

    @property
    def version(self) -> int:
        """The last that was given to a snapshot, 0 before the first."""
        return max(self._in_force.version if self._in_force else 0, self._version)

    async def _load(self) -> None:
        if self._store is None or self._version:  # what a predecessor stored is known, or from elsewhere
            return
        self._in_force = await asyncio.to_thread(self._store.load, self._service)
        if self._in_force is not None:
            self._saved_at = self._in_force.taken_at

    async def _round(self) -> None:
        self.asked.calls += 1
        try:
            members = await self._source.fetch()
        except DiscoveryError as error:
            self._note_failure(error)
            await self._restore("the source failed")
            return
        self._note_answer()
        answer = self._compared(members)
        self._held = judge(self._in_force.members if self._in_force else (), answer.members, self._held)
        if self._held is None:
            await self._accept(answer)
        else:
            self._log.warning("snapshot_suspect", reason=str(self._held), **self._described())
            await self._restore("the first answer is suspect")

    def _compared(self, members: Sequence[Member]) -> Snapshot:
        """The answer as a snapshot: with the version in force if it says the same, else with the next."""
        in_force, version = self._in_force, self.version
        answer = Snapshot.of(self._service, members, taken_at=self._wall(), version=version)
        unchanged = in_force is not None and in_force.members == answer.members
        return answer if unchanged else replace(answer, version=version + 1)

    async def _accept(self, answer: Snapshot) -> None:
        # An unchanged answer replaces the one in force too, unpublished: it makes it as young as it is.
        before, self._in_force = self._in_force, answer
        changed = before is None or before.version != answer.version
        if changed or not self.ready.is_set():
            await self._publish(answer)
            self.ready.set()
            self._log.info(
                "snapshot_published",
                version=answer.version,
                endpoints=len(answer.members),
                **_difference(before.members if before else (), answer.members),
            )
        if self._store is not None and (changed or _is_due(self._saved_at, answer.taken_at)):
            self._saved_at = answer.taken_at
            await asyncio.to_thread(self._store.save, answer)

    async def _restore(self, reason: str) -> None:
        """Publish the stored snapshot, if there is one and nothing better was published yet."""
        if self._in_force is None or self.ready.is_set():
            return
        await self._publish(self._in_force)
        self.ready.set()
        self._log.warning(
            "snapshot_restored", endpoints=len(self._in_force.members), reason=reason, **self._described()
        )

    def _note_failure(self, error: DiscoveryError) -> None:
        now = self._wall()
        self.asked.errors += 1
        if error.repeated != self._complaint or _is_due(self._complained_at, now):
            self._complained_at = now
            self._log.error("discovery_failed", error=str(error), **self._described())
        self._complaint = error.repeated
        self.last_error = str(error)

    def _note_answer(self) -> None:
        self.asked.answered_at = self._wall()
        if self.last_error is not None:
            self._log.info("discovery_recovered", error=self.last_error)
            self.last_error = self._complaint = None

    def _described(self) -> dict[str, object]:
        """Which snapshot stays in force, for the log."""
        if self._in_force is None:
            return {"version": None}
        age = age_in_words(self._wall() - self._in_force.taken_at)
        return {"version": self._in_force.version, "age": f"{age} old"}


def age_in_words(seconds: float) -> str:
    """`42 s`, `5 min`, `2 h 5 min`, `3 d 4 h`. A negative age (the clock was set back) is `0 s`."""
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if seconds < 60:
        return f"{max(0, int(seconds))} s"
    if hours < 1:
        return f"{minutes} min"
    if days < 1:
        return f"{hours} h {minutes % 60} min"
    return f"{days} d {hours % 24} h"


def _is_due(last: float, now: float) -> bool:
    # A clock that was set back makes it due as well: waiting until it has caught up could be for ever.
    return not 0 <= now - last < REPEAT


def _difference(before: Iterable[Member], after: Iterable[Member]) -> dict[str, list[str]]:
    old, new = dict(before), dict(after)
    return {
        "added": _named(new.keys() - old.keys()),
        "removed": _named(old.keys() - new.keys()),
        "reweighted": _named(kept for kept in new.keys() & old.keys() if new[kept] != old[kept]),
    }


def _named(endpoints: Iterable[Endpoint]) -> list[str]:
    names = [str(endpoint) for endpoint in sorted(endpoints)]
    rest = len(names) - NAMED
    return names if rest <= 0 else [*names[:NAMED], f"and {rest} more"]
