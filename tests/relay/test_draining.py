"""What becomes of connections that are to end, by sessions that the test plays itself."""

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf

import pytest

from tcpgw.relay import draining
from tcpgw.relay.draining import Cause, Draining
from tcpgw.relay.reasons import Reason
from tcpgw.relay.session import Connection
from tests.support.streams import in_time, until


class Played:
    """A session that keeps what it is asked, and ends when the test says so."""

    received = sent = 0

    def __init__(self, bed: "Bed", connection: Connection) -> None:
        self.over = False
        self.reason: Reason | None = None
        self.asked: list[Reason] = []
        self.asked_at = 0.0
        self.looks = 0
        self.reset = False
        self._bed = bed
        self._connection = connection

    @property
    def service_name(self) -> str:
        raise NotImplementedError

    def drain(self, reason: Reason = Reason.DRAINED) -> None:
        self.asked.append(reason)
        self.asked_at = time.monotonic()

    def look(self, now: float) -> None:  # noqa: ARG002 - the interface's
        self.looks += 1

    def abort(self, reason: Reason, *, reset: bool) -> None:
        self.reset = reset
        self.end(reason)

    def end(self, reason: Reason) -> None:
        self.reason = reason
        self._bed.errors.append(self._bed.draining.ended(self._connection, reason))

    def tend(self, now: float) -> None:
        raise NotImplementedError

    def idle_seconds(self, now: float) -> float:
        raise NotImplementedError

    def facts(self) -> dict[str, object]:
        raise NotImplementedError

    def owed(self, now: float) -> tuple[int | None, float | None]:
        raise NotImplementedError


class Bed:
    def __init__(self) -> None:
        self.draining = Draining()
        self.errors: list[str] = []
        self._count = 0

    def add(self) -> tuple[Connection, Played]:
        self._count += 1
        with socket.socket() as unused:
            connection = Connection(self._count, unused, None, time.monotonic(), lambda *_: None)
        session = connection.session = Played(self, connection)
        return connection, session

    def counts(self, cause: Cause = Cause.SHUTDOWN) -> dict[str, int]:
        """The stages that were reached at all."""
        return {stage: count for stage, count in self.draining.status()[cause.value].items() if count}


@contextmanager
def bed() -> Iterator[Bed]:
    """At the end nothing is left, and so no timer runs."""
    made = Bed()
    yield made
    assert not made.draining
    assert made.draining._timer is None


async def test_a_connection_is_asked_looked_at_and_cut() -> None:
    """Asked at its time, looked at from then on, and reset at the other time, with a text that says so."""
    with bed() as b:
        connection, session = b.add()
        now = time.monotonic()
        b.draining.add(connection, Cause.MAX_AGE, at=now + 0.15, until=now + 0.5)
        assert connection in b.draining
        await asyncio.sleep(0.05)
        assert not session.asked
        await until(lambda: session.reason)
        assert time.monotonic() - now >= 0.5
        assert session.asked == [Reason.MAX_AGE]
        assert session.asked_at - now >= 0.15
        assert session.looks >= 1
        assert (session.reason, session.reset) == (Reason.MAX_AGE, True)
        assert b.errors[0].startswith("not ended within 0.")
        assert b.errors[0].endswith(" s of its drain")
        assert b.counts(Cause.MAX_AGE) == {"started": 1, "reset": 1}


async def test_the_moment_may_be_now() -> None:
    """It is asked before `add` returns."""
    with bed() as b:
        connection, session = b.add()
        b.draining.add(connection, Cause.SHUTDOWN, at=time.monotonic(), until=inf)
        assert session.asked == [Reason.DRAINED]
        session.end(Reason.DRAINED)
        assert b.errors == [""]


async def test_every_end_is_counted_once_by_its_cause() -> None:
    """By itself, by us at a quiet moment, by force, and not at all; nobody who was not to end is counted."""
    with bed() as b:
        now = time.monotonic()
        stranger = b.add()[1]
        for cause in (Cause.SHUTDOWN, Cause.REBALANCED):
            added = [b.add() for _ in range(4)]
            for connection, _ in added:
                b.draining.add(connection, cause, at=now, until=inf)
            added[0][1].end(Reason.CLIENT_FIN)
            added[1][1].end(cause.reason)
            added[2][1].end(Reason.SHUTDOWN)
            b.draining.spare(added[3][0])
            stranger.end(Reason.CLIENT_FIN)
            assert b.counts(cause) == {"started": 4, "finished": 1, "closed": 1, "reset": 1, "spared": 1}
        assert set(b.errors) == {""}


async def test_the_end_of_one_that_waits_for_its_moment() -> None:
    """It has finished by itself, and is asked nothing any more."""
    with bed() as b:
        (first, session), (second, other) = b.add(), b.add()
        at = time.monotonic() + 0.1
        for connection in (first, second):
            b.draining.add(connection, Cause.SHUTDOWN, at=at, until=inf)
        session.end(Reason.CLIENT_FIN)
        await until(lambda: other.asked)
        assert not session.asked
        other.end(Reason.DRAINED)
        assert b.counts() == {"started": 2, "finished": 1, "closed": 1}


async def test_asked_for_twice() -> None:
    """The first cause stays and it counts once; the earlier times hold."""
    with bed() as b:
        connection, session = b.add()
        now = time.monotonic()
        b.draining.add(connection, Cause.SHUTDOWN, at=now + 3600, until=inf)
        b.draining.add(connection, Cause.LISTENER_REMOVED, at=now, until=now + 0.15)
        b.draining.add(connection, Cause.LISTENER_REMOVED, at=now + 1, until=now + 3600)
        assert session.asked == [Reason.DRAINED]
        await until(lambda: session.reason)
        assert session.reset
        assert b.draining.status().keys() == {"shutdown"}
        assert b.counts() == {"started": 1, "reset": 1}


async def test_for_what_alone_a_connection_is_to_end() -> None:
    """What is to end for two causes must end though one of them is gone."""
    with bed() as b:
        connection, session = b.add()
        assert b.draining.only_cause(connection) is None
        b.draining.add(connection, Cause.ENDPOINT_REMOVED, at=time.monotonic())
        b.draining.add(connection, Cause.ENDPOINT_REMOVED, at=time.monotonic())
        assert b.draining.only_cause(connection) is Cause.ENDPOINT_REMOVED
        b.draining.add(connection, Cause.MAX_AGE, at=time.monotonic())
        assert b.draining.only_cause(connection) is None
        session.end(Reason.DRAINED)


async def test_who_has_said_its_last_is_not_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    """FIN was sent, and only the close is late: it ends with its time, but nothing was cut."""
    monkeypatch.setattr(draining, "CUT_AFTER", 0.15)
    with bed() as b:
        connection, session = b.add()
        b.draining.add(connection, Cause.SHUTDOWN, at=time.monotonic())
        session.over = True
        await until(lambda: session.reason)
        assert not session.reset
        assert b.errors == [""]
        assert b.counts() == {"started": 1, "closed": 1}


async def test_a_bug_in_one_does_not_keep_the_others() -> None:
    """It is reported, and the others are asked, looked at and cut."""
    bugs: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: bugs.append(context["message"]))
    with bed() as b:
        added = [b.add() for _ in range(3)]
        added[0][1].drain = added[1][1].look = None  # type: ignore[method-assign,assignment]
        until_ = time.monotonic() + 0.25
        for connection, _ in added:
            b.draining.add(connection, Cause.SHUTDOWN, at=time.monotonic(), until=until_)
        await until(lambda: all(session.reason for _, session in added))
        assert added[2][1].looks
    assert {"connection 1 was not drained", "connection 2 was not drained"} == set(bugs)


async def test_many_are_looked_at_little_by_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is looked at about as often, and between batches others have their turn."""
    monkeypatch.setattr(draining, "_BATCH", 10)
    with bed() as b:
        sessions = []
        for _ in range(95):
            connection, session = b.add()
            b.draining.add(connection, Cause.SHUTDOWN, at=time.monotonic(), until=inf)
            sessions.append(session)
        most = 0
        looks = [0]

        async def watch() -> None:
            nonlocal most
            while min(session.looks for session in sessions) < 3:
                await asyncio.sleep(0)
                looks.append(sum(session.looks for session in sessions))
                most = max(most, looks[-1] - looks[-2])

        await in_time(watch())
        assert most <= 10
        assert max(session.looks for session in sessions) <= 4
        for session in sessions:
            session.end(Reason.DRAINED)


def test_causes_have_reasons() -> None:
    """Of those that the gateway ends itself."""
    assert [cause.reason.value for cause in Cause] == [
        "drained", "drained", "drained", "max_age", "rebalanced", "access_ended"
    ]  # fmt: skip
