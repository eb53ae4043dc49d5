"""A pool's promise: what is in force is whole, and nothing stops serving while the next is made ready."""

import asyncio
import itertools
import threading
from collections.abc import Iterator, Mapping
from functools import partial

import pytest

from tcpgw.balancing.loads import Loads
from tcpgw.balancing.standing import Share, usable
from tcpgw.endpoints import Endpoint, Member, Snapshot
from tcpgw.pool import Pool
from tests.support.streams import in_time, until


class InOrder:
    """A policy that takes as long to build as the test wants. Who has anything in flight has no room."""

    spills = True

    def __init__(self, weights: Mapping[Endpoint, float], loads: Loads) -> None:
        self.weights = weights
        self.order = sorted(weights)
        self.loads = loads

    def candidates(self, position: int) -> Iterator[Endpoint]:  # noqa: ARG002 - the interface's
        return iter(self.order)

    def home(self, position: int) -> Endpoint | None:
        return self.order[position % len(self.order)] if self.order else None

    def share(self, endpoint: Endpoint) -> float:
        return 1.0 if endpoint in self.order else 0.0

    def under(self, shares: Mapping[Endpoint, Share]) -> "InOrder":
        return InOrder(usable(self.weights, shares), self.loads) if shares else self

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
    """A new pool has no candidate, no home, no share, no member and no snapshot."""
    pool = make_pool(Workshop())
    assert list(pool.candidates(7)) == []
    assert pool.home(7) is None
    assert pool.share(endpoint(1)) == 0.0
    assert not pool.spills
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


async def test_homes_and_shares_are_the_policys_in_force() -> None:
    """What the pool says of a key and an endpoint is what the last published policy says."""
    pool = make_pool(Workshop())
    await pool.publish(snapshot(1, 2))
    assert pool.spills
    assert [pool.home(position) for position in (0, 1)] == [endpoint(1), endpoint(2)]
    assert (pool.share(endpoint(2)), pool.share(endpoint(3))) == (1.0, 0.0)
    await pool.publish(snapshot(3, version=2))
    assert pool.home(1) == endpoint(3)


async def test_the_epoch_changes_with_members_and_weights_only() -> None:
    """Another number means that something changed, the same one that nothing did."""
    pool = make_pool(Workshop())
    epochs = [pool.epoch]
    for published in (
        snapshot(1, 2),
        snapshot(2, 1, version=2),
        snapshot(1, 2, version=3, unused=(9,)),
        snapshot(1, 2, version=4, weight=3),
        snapshot(1, 2, version=5, weight=3),
        snapshot(version=6),
    ):
        await pool.publish(published)
        epochs.append(pool.epoch)
    same = [old == new for old, new in itertools.pairwise(epochs)]
    assert same == [False, True, False, False, True, False]
    assert len(set(epochs)) == 5


async def test_subscribers_hear_of_changes_that_are_in_force() -> None:
    """Each callback is called once for each change of members or weights, in order, and sees the new ones."""
    pool = make_pool(Workshop())
    heard: list[tuple[str, int, tuple[Member, ...], Endpoint | None]] = []

    def hear(name: str) -> None:
        heard.append((name, pool.epoch, pool.members, pool.home(0)))

    pool.subscribe(partial(hear, "a"))
    pool.subscribe(partial(hear, "b"))
    await pool.publish(one := snapshot(1, 2))
    await pool.publish(snapshot(1, 2, version=2))
    await pool.publish(three := snapshot(2, version=3))
    assert heard == [
        ("a", 1, one.members, endpoint(1)),
        ("b", 1, one.members, endpoint(1)),
        ("a", 2, three.members, endpoint(2)),
        ("b", 2, three.members, endpoint(2)),
    ]


async def test_who_unsubscribed_hears_nothing_more() -> None:
    """Ending a subscription holds at once, from within a callback too, and twice does no harm."""
    pool = make_pool(Workshop())
    heard: list[str] = []

    def first() -> None:
        heard.append("first")
        end_first()
        end_second()
        pool.subscribe(lambda: heard.append("new"))

    end_first = pool.subscribe(first)
    end_second = pool.subscribe(lambda: heard.append("second"))
    pool.subscribe(lambda: heard.append("third"))
    await pool.publish(snapshot(1))
    assert heard == ["first", "third"]
    await pool.publish(snapshot(2, version=2))
    assert heard == ["first", "third", "third", "new"]
    end_first()


async def test_a_cancelled_publish_tells_nobody() -> None:
    """Nobody hears of a snapshot that was not put in force, and the epoch stays."""
    workshop = Workshop()
    pool = make_pool(workshop)
    heard: list[int] = []
    pool.subscribe(lambda: heard.append(pool.epoch))
    workshop.allowed.clear()
    publishing = asyncio.create_task(pool.publish(snapshot(1)))
    await until(workshop.at_work.is_set)
    publishing.cancel()
    await in_time(asyncio.wait([publishing]))
    workshop.allowed.set()
    await until(lambda: workshop.built == 1)
    assert heard == []
    assert pool.epoch == 0


async def test_a_callback_that_raises_leaves_the_snapshot_in_force() -> None:
    """The error is the publisher's to see; what was published serves."""
    pool = make_pool(Workshop())

    def broken() -> None:
        raise ZeroDivisionError

    pool.subscribe(broken)
    with pytest.raises(ZeroDivisionError):
        await pool.publish(snapshot(1))
    assert list(pool.candidates(0)) == [endpoint(1)]


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


# ---- another policy ----


async def test_another_policy_is_in_force_for_the_snapshot_there_is() -> None:
    """Candidates are the new policy's, of the same snapshot, and of those that come."""
    old, new = Workshop(), Workshop()
    pool = make_pool(old)
    await pool.publish(first := snapshot(1, 2))
    await pool.rebuild(new)
    assert (old.built, new.built) == (1, 1)
    assert pool.snapshot is first
    assert list(pool.candidates(0)) == [endpoint(1), endpoint(2)]
    await pool.publish(snapshot(3, version=2))
    assert (old.built, new.built) == (1, 2)


async def test_another_policy_is_another_epoch() -> None:
    """Subscribers hear of it, with the new one in force."""
    pool = make_pool(Workshop())
    await pool.publish(snapshot(1, 2))
    heard: list[int] = []
    pool.subscribe(lambda: heard.append(pool.epoch))
    await pool.rebuild(Workshop())
    assert heard == [2]


async def test_before_the_first_snapshot_another_policy_waits_for_it() -> None:
    """Nothing is built without endpoints, and then by the new one."""
    old, new = Workshop(), Workshop()
    pool = make_pool(old)
    await pool.rebuild(new)
    assert new.built == 0
    await pool.publish(snapshot(1))
    assert (old.built, new.built) == (0, 1)


async def test_a_cancelled_rebuild_changes_nothing() -> None:
    """The old policy stays, and makes what comes next."""
    old, new = Workshop(), Workshop()
    pool = make_pool(old)
    await pool.publish(snapshot(1))
    new.allowed.clear()
    rebuilding = asyncio.create_task(pool.rebuild(new))
    await until(new.at_work.is_set)
    rebuilding.cancel()
    await in_time(asyncio.wait([rebuilding]))
    new.allowed.set()
    await pool.publish(snapshot(2, version=2))
    assert old.built == 2
    assert pool.epoch == 2


async def test_publishing_and_rebuilding_go_one_after_the_other() -> None:
    """A snapshot that comes while a policy is built is in force at the end, by the new policy."""
    old, new = Workshop(), Workshop()
    pool = make_pool(old)
    await pool.publish(snapshot(1))
    new.allowed.clear()
    rebuilding = asyncio.create_task(pool.rebuild(new))
    await until(new.at_work.is_set)
    publishing = asyncio.create_task(pool.publish(second := snapshot(2, version=2)))
    await asyncio.sleep(0)
    new.allowed.set()
    await in_time(asyncio.gather(rebuilding, publishing))
    assert pool.snapshot is second
    assert list(pool.candidates(0)) == [endpoint(2)]
    assert (old.built, new.built) == (1, 2)


# ---- shares ----

OUT = Share(0.0)


def order(pool: Pool) -> list[int]:
    """The last octets of all candidates."""
    return [int(found.host.rpartition(".")[2]) for found in pool.candidates(0)]


async def test_shares_are_in_force_at_once() -> None:
    """No table is built; who has no share has its whole weight again with the next that are told."""
    workshop = Workshop()
    pool = make_pool(workshop)
    await pool.publish(snapshot(1, 2, 3))
    pool.weigh({endpoint(1): OUT, endpoint(2): Share(0.5)})
    assert order(pool) == [2, 3]
    assert pool.home(0) == endpoint(2)
    assert pool.shares == {endpoint(1): OUT, endpoint(2): Share(0.5)}
    pool.weigh({endpoint(3): OUT})
    assert order(pool) == [1, 2]
    assert pool.share(endpoint(3)) == 0.0
    pool.weigh({})
    assert order(pool) == [1, 2, 3]
    assert workshop.built == 1


async def test_who_is_usable() -> None:
    """An endpoint with a weight, unless it gets nothing of it."""
    pool = make_pool(Workshop())
    assert not pool.usable(endpoint(1))
    await pool.publish(snapshot(1, 2, 3, unused=(4,)))
    pool.weigh({endpoint(1): OUT, endpoint(2): Share(0.01)})
    assert [pool.usable(endpoint(octet)) for octet in (1, 2, 3, 4, 5)] == [False, True, True, False, False]


async def test_tables_know_of_no_share() -> None:
    """They say where keys belong while all is well, and are the same ones until others are built."""
    pool = make_pool(Workshop())
    assert pool.tables is None
    await pool.publish(snapshot(1, 2))
    tables = pool.tables
    assert tables
    pool.weigh({endpoint(1): OUT})
    assert pool.home(0) == endpoint(2)
    assert tables.home(0) == endpoint(1)
    await pool.publish(snapshot(1, 2, version=2))
    assert pool.tables is tables
    await pool.rebuild(Workshop())
    assert pool.tables is not tables


async def test_the_epoch_changes_with_shares_that_change_something() -> None:
    """Subscribers hear of them, with the new ones in force, and of nothing that says what is already so."""
    pool = make_pool(Workshop())
    heard: list[tuple[int, list[int]]] = []
    pool.subscribe(lambda: heard.append((pool.epoch, order(pool))))
    pool.weigh({endpoint(1): OUT})  # before there is a snapshot
    pool.weigh({})
    await pool.publish(snapshot(1, 2))
    pool.weigh({endpoint(2): OUT, endpoint(9): OUT})
    pool.weigh({endpoint(2): Share(-1.0)})
    pool.weigh({endpoint(2): OUT, endpoint(1): Share(1.0)})
    pool.weigh({endpoint(2): Share(0.5)})
    pool.weigh({endpoint(2): Share(0.5, by_key=False)})
    pool.weigh({endpoint(9): OUT})
    pool.weigh({})
    assert heard == [(1, [1, 2]), (2, [1]), (3, [1, 2]), (4, [1, 2]), (5, [1, 2])]


async def test_shares_outlive_snapshots_and_policies() -> None:
    """They hold for who stays, whatever is published and rebuilt, and for who comes next."""
    pool = make_pool(Workshop())
    pool.weigh({endpoint(1): OUT, endpoint(3): OUT})
    await pool.publish(snapshot(1, 2))
    assert order(pool) == [2]
    await pool.publish(snapshot(1, 2, 3, 4, version=2))
    assert order(pool) == [2, 4]
    await pool.rebuild(Workshop())
    assert order(pool) == [2, 4]
    await pool.publish(snapshot(2, 3, version=3, unused=(1,)))
    assert order(pool) == [2]
    assert pool.shares == {endpoint(3): OUT}


async def test_shares_that_are_told_while_tables_are_built() -> None:
    """They are in force for the old ones at once, and for the new ones from their beginning."""
    workshop = Workshop()
    pool = make_pool(workshop)
    await pool.publish(snapshot(1, 2))
    workshop.at_work.clear()
    workshop.allowed.clear()
    publishing = asyncio.create_task(pool.publish(snapshot(1, 2, 3, version=2)))
    await until(workshop.at_work.is_set)
    pool.weigh({endpoint(1): OUT})
    assert (order(pool), pool.epoch) == ([2], 2)
    workshop.allowed.set()
    await in_time(publishing)
    assert (order(pool), pool.epoch) == ([2, 3], 3)


async def test_what_hangs_at_who_gets_nothing_lifts_no_cap() -> None:
    """It stops counting in the total at once, and counts again when its endpoint is back."""
    pool = make_pool(Workshop())
    await pool.publish(snapshot(1, 2))
    pool.loads.begin(endpoint(1), 5)
    pool.loads.begin(endpoint(2))
    pool.weigh({endpoint(1): OUT})
    assert pool.loads.total == 1
    await pool.publish(snapshot(1, 2, version=2))
    assert pool.loads.total == 1
    pool.weigh({endpoint(1): Share(0.1)})
    assert pool.loads.total == 6
