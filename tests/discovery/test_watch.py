import asyncio
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tcpgw.discovery.store import Store
from tcpgw.discovery.watch import Watcher, age_in_words
from tcpgw.endpoints import Endpoint, Member, Snapshot
from tcpgw.errors import ApiError, DiscoveryError

START = 1_700_000_000.0
REFRESH = 10.0
DOWN = DiscoveryError("the source is down")


def members(*last_octets: int, weight: int = 1) -> list[Member]:
    return [Member(Endpoint(f"10.0.0.{octet}", 80), weight) for octet in last_octets]


FOUR = members(1, 2, 3, 4)


class Script:
    """A source that gives prepared answers, `REFRESH` seconds apart by the clock that it drives."""

    def __init__(self, answers: Sequence[list[Member] | Exception]) -> None:
        self.now = START
        self.finished = asyncio.Event()
        self.closed = 0
        self._answers = list(answers)

    def wall(self) -> float:
        return self.now

    async def fetch(self) -> Sequence[Member]:
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def wait(self) -> None:
        if not self._answers:
            self.finished.set()
            await asyncio.get_running_loop().create_future()
        self.now += REFRESH

    async def close(self) -> None:
        self.closed += 1


@dataclass(frozen=True)
class Played:
    """What a watcher did with a script."""

    published: list[Snapshot]
    logs: list[MutableMapping[str, Any]]
    watcher: Watcher
    source: Script

    @property
    def versions(self) -> list[tuple[int, int]]:
        """Of each publication, its version and its number of endpoints."""
        return [(snapshot.version, len(snapshot.members)) for snapshot in self.published]

    @property
    def events(self) -> list[str]:
        return [line["event"] for line in self.logs]

    def line(self, event: str) -> MutableMapping[str, Any]:
        """The only line of that event."""
        (line,) = (line for line in self.logs if line["event"] == event)
        return line


async def play(
    *answers: list[Member] | Exception,
    store: Store | None = None,
    version: int = 0,
    in_force: Snapshot | None = None,
) -> Played:
    """Run a watcher until its source has given every answer, then cancel it."""
    source, published = Script(answers), []

    async def publish(snapshot: Snapshot) -> None:
        published.append(snapshot)

    with capture_logs() as logs:
        watcher = Watcher(
            "web", source, publish, store=store, wall=source.wall, version=version, in_force=in_force
        )
        running = asyncio.create_task(watcher.run())
        finished = asyncio.create_task(source.finished.wait())
        await asyncio.wait([running, finished], return_when=asyncio.FIRST_COMPLETED)
        for task in (running, finished):
            task.cancel()
        await asyncio.wait([running, finished])
        if not running.cancelled():
            await running
    return Played(published, logs, watcher, source)


def stored(tmp_path: Path, *, age: float = 7_500, version: int = 7) -> Store:
    """A store with FOUR in it, as old as is said."""
    store = Store(tmp_path)
    store.save(Snapshot.of("web", FOUR, taken_at=START - age, version=version))
    return store


async def test_first_answer_is_published() -> None:
    """The first answer is version 1, made at the time of the answer, and makes the watcher ready."""
    played = await play(FOUR)
    assert played.published == [Snapshot.of("web", FOUR, taken_at=START, version=1)]
    assert played.watcher.ready.is_set()
    assert played.watcher.last_error is None
    line = played.line("snapshot_published")
    assert (line["service"], line["version"], line["endpoints"]) == ("web", 1, 4)


async def test_only_changes_are_published() -> None:
    """Equal answers in another order are not published again; a change of endpoints or weights is, once."""
    played = await play(
        FOUR, FOUR[::-1], members(1, 2, 3, 5), members(1, 2, 3, 5), members(1, 2, 3, 5, weight=2)
    )
    assert played.versions == [(1, 4), (2, 4), (3, 4)]


async def test_says_what_changed() -> None:
    """The log names the endpoints that came, went and changed weight."""
    played = await play(members(1, 2, 3), [*members(2), *members(3, weight=5), *members(4)])
    line = played.logs[-1]
    assert line["added"] == ["10.0.0.4:80"]
    assert line["removed"] == ["10.0.0.1:80"]
    assert line["reweighted"] == ["10.0.0.3:80"]


async def test_long_lists_are_shortened() -> None:
    """A log line names ten endpoints and counts the rest."""
    played = await play(members(*range(1, 31)))
    added = played.line("snapshot_published")["added"]
    assert len(added) == 11
    assert added[-1] == "and 20 more"


async def test_empty_first_answer_is_published() -> None:
    """Where nothing was ever in force an empty answer is the truth, and the watcher is ready."""
    played = await play([])
    assert played.versions == [(1, 0)]
    assert played.watcher.ready.is_set()


@pytest.mark.parametrize("bad", [[], members(1)])
async def test_suspect_answer_is_held_until_confirmed(bad: list[Member]) -> None:
    """A loss of more than half takes effect at the third answer that names it, not before."""
    held = await play(FOUR, bad, bad)
    assert held.versions == [(1, 4)]
    suspected = [line for line in held.logs if line["event"] == "snapshot_suspect"]
    assert len(suspected) == 2
    assert all(f"{len(bad)} endpoints where 4 are in force" in line["reason"] for line in suspected)
    confirmed = await play(FOUR, bad, bad, bad)
    assert confirmed.versions == [(1, 4), (2, len(bad))]
    assert confirmed.events.count("snapshot_suspect") == 2


async def test_suspect_log_says_what_stays() -> None:
    """The warning names the version in force, its age, the loss and what would confirm it."""
    line = (await play(FOUR, [])).line("snapshot_suspect")
    assert line["log_level"] == "warning"
    assert (line["version"], line["age"]) == (1, "10 s old")
    assert "2 further answers" in line["reason"]


async def test_failure_neither_confirms_nor_resets() -> None:
    """Failed fetches between suspect answers leave the count where it was."""
    assert (await play(FOUR, [], DOWN, [], DOWN)).versions == [(1, 4)]
    assert (await play(FOUR, [], DOWN, [], DOWN, [])).versions == [(1, 4), (2, 0)]


async def test_good_answer_clears_a_suspicion() -> None:
    """After a good answer the next loss needs three answers of its own."""
    played = await play(FOUR, [], [], FOUR, [], [])
    assert played.versions == [(1, 4)]
    assert played.events.count("snapshot_suspect") == 4


async def test_failure_keeps_what_is_in_force() -> None:
    """A source that fails and comes back with the same list causes no publication, and both are logged."""
    played = await play(FOUR, DOWN, FOUR)
    assert played.versions == [(1, 4)]
    assert played.events == ["snapshot_published", "discovery_failed", "discovery_recovered"]
    assert played.line("discovery_failed")["error"] == "the source is down"
    assert played.line("discovery_failed")["version"] == 1
    assert played.line("discovery_failed")["age"] == "10 s old"
    assert played.watcher.last_error is None


async def test_failure_is_logged_once_a_minute() -> None:
    """The same failure is repeated in the log after a minute, a new one at once."""
    played = await play(*[DOWN] * 7, ApiError("HTTP 429", status=429), DOWN)
    errors = [line["error"] for line in played.logs]
    assert errors == ["the source is down", "the source is down", "HTTP 429", "the source is down"]
    assert played.watcher.last_error == "the source is down"


async def test_without_any_snapshot_nothing_is_published() -> None:
    """A first start with the source down is not ready, says so, and takes the first answer that comes."""
    down = await play(DOWN)
    assert (down.published, down.watcher.ready.is_set()) == ([], False)
    assert down.line("discovery_failed")["version"] is None
    assert (await play(DOWN, FOUR)).versions == [(1, 4)]


async def test_start_with_the_source_down_uses_the_stored_snapshot(tmp_path: Path) -> None:
    """The stored snapshot is published once, under its own version, and the log says how old it is."""
    played = await play(DOWN, DOWN, store=stored(tmp_path))
    assert played.versions == [(7, 4)]
    assert played.watcher.ready.is_set()
    line = played.line("snapshot_restored")
    assert (line["version"], line["endpoints"], line["age"]) == (7, 4, "2 h 5 min old")
    assert line["reason"] == "the source failed"
    assert played.line("discovery_failed")["age"] == "2 h 5 min old"


async def test_start_with_a_suspect_answer_uses_the_stored_snapshot(tmp_path: Path) -> None:
    """An empty first answer is held against the stored snapshot, which serves until two more confirm."""
    assert (await play([], [], store=stored(tmp_path / "a"))).versions == [(7, 4)]
    played = await play([], [], [], store=stored(tmp_path / "b"))
    assert played.versions == [(7, 4), (8, 0)]
    assert played.line("snapshot_restored")["reason"] == "the first answer is suspect"


async def test_versions_go_on_from_the_stored_one(tmp_path: Path) -> None:
    """A changed first answer gets the next version, an equal one keeps the version and is published alone."""
    assert (await play(members(1, 2, 3, 5), store=stored(tmp_path / "a"))).versions == [(8, 4)]
    same = await play(FOUR, FOUR, store=stored(tmp_path / "b"))
    assert same.published == [Snapshot.of("web", FOUR, taken_at=START, version=7)]
    assert same.line("snapshot_published")["added"] == []


async def test_changes_are_stored(tmp_path: Path) -> None:
    """What was published last is what a later start finds."""
    store = Store(tmp_path)
    played = await play(FOUR, members(1, 2), store=store)
    assert store.load("web") == played.published[-1]


async def test_suspect_and_failed_answers_are_not_stored(tmp_path: Path) -> None:
    """The file keeps the last good snapshot for as long as it is in force."""
    store = Store(tmp_path)
    played = await play(FOUR, [], DOWN, [], store=store)
    assert store.load("web") == played.published[0]


async def test_stored_snapshot_is_as_young_as_its_last_confirmation(tmp_path: Path) -> None:
    """An unchanged snapshot is written again once a minute, so that a later start says its age truly."""
    store = Store(tmp_path)
    await play(*[FOUR] * 9, store=store)
    assert store.load("web") == Snapshot.of("web", FOUR, taken_at=START + 6 * REFRESH, version=1)


async def test_failed_save_disturbs_nothing(tmp_path: Path) -> None:
    """With a state directory that cannot be written, discovery goes on and the log says it."""
    (tmp_path / "state").write_text("a file where the directory should be")
    played = await play(FOUR, members(1, 2), store=Store(tmp_path / "state"))
    assert played.versions == [(1, 4), (2, 2)]
    assert played.events.count("snapshot_not_saved") == 2


async def test_cancellation_ends_run_and_closes_the_source() -> None:
    """A cancelled watcher closes its source once."""
    assert (await play(FOUR)).source.closed == 1


async def test_a_bug_in_a_source_is_loud() -> None:
    """An exception that is no DiscoveryError comes out of run, after the source was closed."""
    source = Script([FOUR, ZeroDivisionError("a bug")])

    async def publish(_snapshot: Snapshot) -> None:
        pass

    with pytest.raises(ZeroDivisionError):
        await Watcher("web", source, publish, store=None, wall=source.wall).run()
    assert source.closed == 1


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-5, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3_599, "59 min"),
        (7_500, "2 h 5 min"),
        (86_399, "23 h 59 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_age_in_words(seconds: float, words: str) -> None:
    """Ages read as people say them."""
    assert age_in_words(seconds) == words


# ---- after another watcher ----


async def test_versions_go_on_from_the_watcher_before() -> None:
    """From another source the first answer is taken whatever it says, with the next version."""
    played = await play(members(9), members(9, weight=2), version=7)
    assert played.versions == [(8, 1), (9, 1)]
    assert played.watcher.version == 9


async def test_from_the_same_source_the_snapshot_before_counts() -> None:
    """What shrank suspiciously is held back, and while it is the snapshot of before stays published."""
    before = Snapshot.of("web", FOUR, taken_at=START - 5, version=7)
    played = await play(members(1), FOUR, members(1, 2), version=7, in_force=before)
    assert played.versions == [(7, 4), (8, 2)]
    assert "snapshot_suspect" in played.events


async def test_the_same_answer_as_before_is_the_same_version() -> None:
    """It is published once, since nobody knows whether the one before was."""
    before = Snapshot.of("web", FOUR, taken_at=START - 5, version=7)
    played = await play(FOUR, FOUR, version=7, in_force=before)
    assert played.versions == [(7, 4)]


async def test_what_was_stored_does_not_count_after_another_watcher(tmp_path: Path) -> None:
    """That one knew it; a new source that is silent leaves what is published as it is."""
    played = await play(DiscoveryError("no answer"), store=stored(tmp_path), version=7)
    assert played.versions == []
    assert played.watcher.version == 7
