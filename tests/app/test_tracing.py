"""The supervisor's side of tracing, with workers that only say what they were told."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest

from tcpgw.app import tracing
from tcpgw.app.background import Background
from tcpgw.app.control import RefusedError
from tcpgw.app.tracing import LONGEST, MOST_TRACES, Traces
from tcpgw.errors import ConnectError
from tcpgw.process.worker import WorkerProcess
from tests.support.streams import until


class Played:
    """A worker."""

    def __init__(self, slot: int, *, accepts: bool = True, dies: bool = False) -> None:
        self.slot, self.pid = slot, 100 + slot
        self.accepting = asyncio.Event()
        self.answers = asyncio.Event()
        self.answers.set()
        self.asked: list[str] = []
        self.heard: list[tuple[Any, ...]] = []
        self._dies = dies
        if accepts:
            self.accepting.set()

    async def call(self, *said: Any, timeout: float) -> None:  # noqa: ASYNC109 - the interface's
        assert timeout > 0
        self.asked.append(said[0])
        await self.answers.wait()
        if self._dies:
            raise ConnectError("it is gone")
        self.heard.append(said)

    def tell(self, *said: Any) -> None:
        self.heard.append(said)

    @property
    def names(self) -> list[str]:
        return [said[0] for said in self.heard]


class Bed:
    def __init__(self, *workers: Played, patience: float = 10.0) -> None:
        self.workers = workers
        self.background = Background()
        self.traces = Traces(lambda: cast("Any", self.workers), self.background, patience=patience)

    def take(self, name: str, *events: str, worker: int = 0, **more: Any) -> None:
        told = [{"at": 1.5, "event": event, **more} for event in events]
        self.traces.take(cast("WorkerProcess", self.workers[worker]), name, told)

    async def next(self, name: str) -> tuple[list[str], bool]:
        answer = await self.traces.next(name)
        return [event["event"] for event in answer["events"]], answer["over"]


MakeBed = Callable[..., Bed]


@pytest.fixture
async def make() -> AsyncIterator[MakeBed]:
    beds: list[Bed] = []

    def made(*workers: Played, **options: float) -> Bed:
        beds.append(Bed(*workers, **options))
        return beds[-1]

    yield made
    for bed in beds:
        await bed.background.close()


async def test_all_workers_are_told(make: MakeBed) -> None:
    """Of its beginning and its end, also who does not accept yet; one that is gone keeps nobody."""
    one, two = Played(1), Played(2, accepts=False)
    bed = make(one, two, Played(3, dies=True))
    name = await bed.traces.begin("10.0.0.7", 60)
    assert one.heard == two.heard == [("trace_begin", name, "10.0.0.7/32", 60)]
    await bed.traces.end(name)
    assert await bed.next(name) == ([], True)
    assert one.heard[1:] == two.heard[1:] == [("trace_end", name)]


async def test_a_new_worker_is_told_before_it_accepts(make: MakeBed) -> None:
    """With the time that is left; of a trace that is over nothing."""
    bed = make()
    over = await bed.traces.begin("10.0.0.0/8", 60)
    await bed.traces.end(over)
    await bed.next(over)
    name = await bed.traces.begin("fd00::/8", 60)
    new = Played(1, accepts=False)

    async def attend(worker: WorkerProcess) -> None:
        cast("Played", worker).heard.append(("attended",))

    await bed.traces.first_of(attend)(cast("WorkerProcess", new))
    begin, attended = new.heard
    assert begin[:3] == ("trace_begin", name, "fd00::/8")
    assert 50 < begin[3] <= 60
    assert attended == ("attended",)


@pytest.mark.parametrize("seconds", [60, 0.01])
async def test_a_worker_that_comes_at_its_end_is_not_told(make: MakeBed, seconds: float) -> None:
    """Nobody would tell it that the trace is over, whether that was asked for or its time is up."""
    slow = Played(1)
    bed = make(slow)
    name = await bed.traces.begin("10.0.0.0/8", seconds)
    slow.answers.clear()
    if seconds == 60:
        await bed.traces.end(name)
    await until(lambda: slow.asked[-1] == "trace_end")
    new = Played(2, accepts=False)
    await bed.traces.first_of(nothing)(cast("WorkerProcess", new))
    slow.answers.set()
    assert await bed.next(name) == ([], True)
    assert new.heard == []


async def nothing(_: WorkerProcess) -> None:
    pass


async def test_events_come_in_order_with_whose_they_are(make: MakeBed) -> None:
    """Of several workers, and who asks waits for the first."""
    bed = make(Played(1), Played(2))
    name = await bed.traces.begin("10.0.0.0/8", 60)
    asked = asyncio.create_task(bed.traces.next(name))
    await asyncio.sleep(0)
    bed.take(name, "accepted", worker=1, conn=7)
    answer = await asked
    event = {"at": 1.5, "worker": 2, "pid": 102, "event": "accepted", "conn": 7}
    assert answer == {"events": [event], "over": False}
    bed.take(name, "a", "b")
    bed.take("another", "c")
    assert await bed.next(name) == (["a", "b"], False)


async def test_the_end_of_a_worker_is_told(make: MakeBed) -> None:
    """Its connections have ended with it, and nobody says that of each."""
    bed = make(Played(1))
    name = await bed.traces.begin("10.0.0.0/8", 60)
    bed.traces.forget(cast("WorkerProcess", bed.workers[0]))
    (event,) = (await bed.traces.next(name))["events"]
    assert (event["event"], event["worker"], event["pid"]) == ("worker_gone", 1, 101)


async def test_events_that_nobody_asks_for_are_counted(
    make: MakeBed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what a worker says that it did not tell; an answer has so many at most."""
    monkeypatch.setattr(tracing, "_MOST_EVENTS", 5)
    monkeypatch.setattr(tracing, "_AT_ONCE", 3)
    bed = make(Played(1))
    name = await bed.traces.begin("10.0.0.0/8", 60)
    bed.take(name, *"abcdefg")
    bed.take(name, "dropped", connections=4, requests=3, events=2)
    await bed.traces.end(name)
    assert await bed.next(name) == (["a", "b", "c"], False)
    answer = await bed.traces.next(name)
    assert [event["event"] for event in answer["events"]] == ["d", "e", "dropped"]
    lost = answer["events"][-1]
    assert (lost["connections"], lost["requests"], lost["events"]) == (4, 3, 4)


async def test_it_ends_when_its_time_is_over(make: MakeBed) -> None:
    """What there is can still be asked for, and then there is no such trace."""
    bed = make(Played(1))
    name = await bed.traces.begin("10.0.0.0/8", 0.01)
    bed.take(name, "a")
    assert await bed.next(name) == (["a"], False)
    assert await bed.next(name) == ([], True)
    assert bed.workers[0].names == ["trace_begin", "trace_end"]
    with pytest.raises(RefusedError, match="it is over, or was another gateway process's"):
        await bed.traces.next(name)


async def test_it_ends_when_nobody_asks_any_more(make: MakeBed) -> None:
    """Whoever looked is gone; it is forgotten at once."""
    bed = make(Played(1), patience=0.01)
    name = await bed.traces.begin("10.0.0.0/8", 60)
    await until(lambda: bed.workers[0].names == ["trace_begin", "trace_end"])
    for _ in range(10):
        await asyncio.sleep(0)
    with pytest.raises(RefusedError):
        await bed.traces.next(name)


async def test_an_end_is_idempotent(make: MakeBed) -> None:
    """Of what is no trace, too: whoever ends one may be late."""
    bed = make()
    await bed.traces.end("none")
    name = await bed.traces.begin("10.0.0.0/8", 60)
    await bed.traces.end(name)
    await bed.traces.end(name)
    assert await bed.next(name) == ([], True)


@pytest.mark.parametrize(
    ("network", "seconds", "why"),
    [
        ("10.0.0.7/8", 60, "write 10.0.0.0/8, or 10.0.0.7 for it alone"),
        ("example.com", 60, "is not a network: write 10.0.0.0/8"),
        (7, 60, "10.0.0.0/8"),
        ("10.0.0.7", 0, "more than 0 and at most 600 s"),
        ("10.0.0.7", LONGEST + 1, "more than 0 and at most 600 s"),
        ("10.0.0.7", float("nan"), "more than 0 and at most 600 s"),
        ("10.0.0.7", "60", "more than 0 and at most 600 s"),
    ],
)
async def test_what_cannot_be_traced_is_refused(
    make: MakeBed, network: object, seconds: object, why: str
) -> None:
    """With what to write instead, and no worker is told."""
    bed = make(Played(1))
    with pytest.raises(RefusedError, match=why):
        await bed.traces.begin(network, seconds)
    assert not bed.workers[0].heard


async def test_there_are_only_so_many(make: MakeBed) -> None:
    """Whoever wants one more is told whose there are, and has it when one has ended."""
    bed = make(Played(1))
    names = [await bed.traces.begin(f"10.0.0.{number}", 60) for number in range(MOST_TRACES)]
    with pytest.raises(RefusedError, match=r"4 traces run already, of 10.0.0.0/32, .*: end one with Ctrl-C"):
        await bed.traces.begin("10.0.0.9", 60)
    await bed.traces.end(names[0])
    assert await bed.next(names[0]) == ([], True)
    assert await bed.traces.begin("10.0.0.9", 60)
