"""A pool's promise: what is in force is whole, and nothing stops serving while the next is made ready."""

import asyncio
import threading
from collections.abc import Iterator, Mapping

from tcpgw.balancing.loads import Loads
from tcpgw.endpoints import Endpoint, Member, Snapshot
from tcpgw.pool import Pool
from tests.support.streams import in_time, until


class InOrder:
    """A policy that takes as long to build as the test wants."""

    def __init__(self, weights: Mapping[Endpoint, float], loads: Loads) -> None:
        self.order = sorted(weights)
        self.loads = loads

    def candidates(self, position: int) -> Iterator[Endpoint]:  # noqa: ARG002 - the interface's
        return iter(self.order)

    def explain(self, position: int) -> str:
        return f"in order, whatever {position} is"


class Workshop:
    """Makes policies, off the loop's thread, and not before it is allowed to."""

    def __init__(self) -> None:
        self.built = 0
        self.at_work = threading.Event()
        self.allowed = threading.Event()
        self.allowed.set()

    def __call__(self, weights: Mapping[Endpoint, float], loads: Loads) -> InOrder:
        assert threading.current_thread() is not threading.main_thread()
        self.at_work.set()
        assert self.allowed.wait(10)
        self.built += 1
        return InOrder(weights, loads)


def endpoint(last_octet: int) -> Endpoint:
    return Endpoint(f"10.0.0.{last_octet}", 80)


def snapshot(*last_octets: int, version: int = 1, weight: int = 1, unused: tuple[int, ...] = ()) -> Snapshot:
    members = [Member(endpoint(octet), weight) for octet in last_octets]
    idle = [Member(endpoint(octet), 0) for octet in unused]
    return Snapshot.of("s", [*members, *idle], taken_at=0.0, version=version)


def make_pool(workshop: Workshop) -> Pool:
    return Pool("s", workshop, Loads(lambda: 0.0))


def test_before_the_first_snapshot_there_is_nobody() -> None:
    """A new pool has no candidate, no member and no snapshot."""
    pool = make_pool(Workshop())
    assert list(pool.candidates(7)) == []
    assert pool.members == ()
    assert pool.snapshot is None


async def test_what_is_published_is_in_force() -> None:
    """Candidates and members are those of the snapshot that was published last."""
    pool = make_pool(Workshop())
    await pool.publish(snapshot(1, 2))
    await pool.publish(new := snapshot(2, 3, version=2, unused=(4,)))
    assert list(pool.candidates(7)) == [endpoint(2), endpoint(3)]
    assert pool.snapshot is new
    assert pool.members == new.members


async def test_the_last_one_serves_until_the_next_is_ready() -> None:
    """While tables are built the loop runs, and candidates are those of before: never none, never mixed."""
    workshop = Workshop()
    pool = make_pool(workshop)
    await pool.publish(old := snapshot(1, 2))
    workshop.at_work.clear()
    workshop.allowed.clear()
    publishing = asyncio.create_task(pool.publish(new := snapshot(3, 4, version=2)))
    await until(workshop.at_work.is_set)
    begun = pool.candidates(7)
    assert next(begun) == endpoint(1)
    assert pool.snapshot is old

    workshop.allowed.set()
    await in_time(publishing)
    assert pool.snapshot is new
    assert list(pool.candidates(7)) == [endpoint(3), endpoint(4)]
    assert list(begun) == [endpoint(2)]  # whoever is trying its candidates goes on with its order


async def test_a_cancelled_publish_changes_nothing() -> None:
    """The old snapshot stays in force for good, and the next one can be published."""
    workshop = Workshop()
    pool = make_pool(workshop)
    await pool.publish(old := snapshot(1, 2))
    pool.loads.begin(endpoint(1))
    workshop.at_work.clear()
    workshop.allowed.clear()
    publishing = asyncio.create_task(pool.publish(snapshot(3, version=2)))
    await until(workshop.at_work.is_set)
    publishing.cancel()
    await in_time(asyncio.wait([publishing]))
    assert publishing.cancelled()
    workshop.allowed.set()
    await until(lambda: workshop.built == 2)
    await asyncio.sleep(0)
    assert pool.snapshot is old
    assert list(pool.candidates(7)) == [endpoint(1), endpoint(2)]
    assert pool.loads.total == 1

    await pool.publish(snapshot(3, version=2))
    assert list(pool.candidates(7)) == [endpoint(3)]


async def test_equal_weights_keep_the_table() -> None:
    """A newer snapshot of the same endpoints is in force at once; other weights are built anew."""
    workshop = Workshop()
    pool = make_pool(workshop)
    await pool.publish(snapshot(1, 2))
    await pool.publish(younger := snapshot(2, 1, version=2))
    await pool.publish(known := snapshot(1, 2, version=3, unused=(9,)))
    assert workshop.built == 1
    assert younger.version < known.version
    assert pool.snapshot is known
    assert pool.members == known.members
    await pool.publish(snapshot(1, 2, version=4, weight=3))
    assert workshop.built == 2


async def test_an_empty_snapshot_is_in_force_too() -> None:
    """What was confirmed empty has no candidate."""
    pool = make_pool(Workshop())
    await pool.publish(snapshot(1))
    await pool.publish(snapshot(version=2))
    assert list(pool.candidates(7)) == []
    assert pool.snapshot is not None


async def test_loads_outlive_snapshots() -> None:
    """Connections of kept endpoints go on counting; of those that left, none counts in the total."""
    pool = make_pool(Workshop())
    await pool.publish(snapshot(1, 2))
    for octet in (1, 1, 2):
        pool.loads.begin(endpoint(octet))
    await pool.publish(snapshot(1, 3, version=2))
    assert pool.loads.inflight(endpoint(1)) == 2
    assert pool.loads.total == 2
    pool.loads.end(endpoint(2))  # of a connection that outlived its endpoint's place in the list
    assert pool.loads.total == 2
    assert pool.loads.inflight(endpoint(2)) == 0


async def test_what_drains_lifts_no_cap() -> None:
    """An endpoint whose weight becomes 0 stops counting at once, and so when it leaves the list."""
    workshop = Workshop()
    pool = make_pool(workshop)
    await pool.publish(snapshot(1, 2))
    pool.loads.begin(endpoint(2))
    assert pool.loads.total == 1
    await pool.publish(snapshot(1, version=2, unused=(2,)))
    assert pool.loads.total == 0
    await pool.publish(snapshot(1, version=3))
    assert workshop.built == 2
    assert pool.loads.total == 0
