"""What is known of endpoints, and what of it is news to who judges them."""

import asyncio
import contextlib
import errno
from collections.abc import Collection, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tcpgw.balancing.loads import Loads
from tcpgw.endpoints import Endpoint, Member
from tcpgw.errors import OverloadError
from tcpgw.relay.outcomes import Kind, Outcomes, blames, is_our_own
from tcpgw.relay.stream import Side
from tests.support.streams import listening, refusing, silent
from tests.support.upstreams import Service, service, text

A, B, C, D = (Endpoint(f"10.0.0.{number}", 80) for number in (1, 2, 3, 4))
ALL = [kind for kind in Kind if kind is not Kind.ERROR]


class Judge:
    """Outcomes with a clock of their own, and how often they were urgent."""

    def __init__(self, *, on: Collection[Kind] = ALL, failures: int = 5, **settings: Any) -> None:
        self.now = 0.0
        self.urgent = 0
        made: Any = SimpleNamespace(members=[*map(Member, (A, B, C))], loads=Loads(lambda: self.now))
        self.pool = made
        self.outcomes = Outcomes(self.pool, self._called, lambda: self.now)
        self.outcomes.change(on, failures=failures, **settings)

    def _called(self) -> None:
        self.urgent += 1


def test_what_is_well_is_no_news() -> None:
    """Successes alone are told of nobody, and come along with the next failure."""
    j = Judge()
    for endpoint in (A, B):
        j.outcomes[endpoint].successes += 1000
    assert j.outcomes.take() == {}
    j.outcomes.fail(A, Kind.RESET)
    j.outcomes[A].successes += 1
    assert j.outcomes.take() == {A: (1001, 1, 0, "reset")}
    assert j.outcomes.take() == {}


def test_successes_of_the_watched_are_news() -> None:
    """Whoever is watched is told of whenever there is something; an endpoint that nobody asked is not."""
    j = Judge()
    j.outcomes[A].successes += 2
    j.outcomes[B].successes += 2
    j.outcomes.watched = {A, C}
    assert j.outcomes.take() == {A: (2, 0, 0, "")}
    assert j.outcomes.take() == {}
    assert C not in j.outcomes


def test_successes_before_it_was_watched_are_no_news() -> None:
    """An endpoint in trial passes it by what it does from then on, and not by requests of long before."""
    j = Judge()
    j.outcomes.fail(A, Kind.TIMEOUT, 5)
    assert j.outcomes.take() == {A: (0, 5, 5, "timeout")}
    j.now = 15.0
    j.outcomes[A].successes += 8
    j.now = 31.0
    j.outcomes.watched = {A}
    assert j.outcomes.take() == {}
    j.outcomes[A].successes += 1
    j.outcomes.watched = {A, B}
    assert j.outcomes.take() == {A: (1, 0, 0, "")}


def test_successes_after_a_failure_are_news_to_who_watches_for_it() -> None:
    """Between a failure, or its being told, and the wish to watch nothing is lost: it would mend a streak."""
    j = Judge()
    j.now = 60.0
    j.outcomes.fail(A, Kind.RESET)
    j.outcomes.fail(B, Kind.RESET)
    assert j.outcomes.take().keys() == {A, B}
    j.outcomes[A].successes += 1
    j.now = 60.5
    j.outcomes.watched = {A}
    j.now = 90.0
    j.outcomes[B].successes += 1
    j.outcomes.fail(B, Kind.RESET)
    j.outcomes.watched = {A, B}
    assert j.outcomes.take() == {A: (1, 0, 0, ""), B: (1, 1, 1, "reset")}


def test_a_streak_ends_with_a_success() -> None:
    """It counts the failures since the last success, also those that were told before; the last is named."""
    j = Judge()
    j.outcomes.fail(A, Kind.CONNECT, 2)
    assert j.outcomes.take() == {A: (0, 2, 2, "connect")}
    j.outcomes.fail(A, Kind.TIMEOUT)
    assert j.outcomes.take() == {A: (0, 1, 3, "timeout")}
    j.outcomes[A].successes += 1
    j.outcomes.fail(A, Kind.TIMEOUT)
    assert j.outcomes.take() == {A: (1, 1, 1, "timeout")}


def test_somebody_is_told_at_once() -> None:
    """When a streak reaches the limit: once for each streak, and not for failures between successes."""
    j = Judge(failures=3)
    for _ in range(5):
        j.outcomes.fail(A, Kind.RESET, 2)
        j.outcomes[A].successes += 1
    assert j.urgent == 0
    j.outcomes.fail(A, Kind.RESET, 2)
    j.outcomes.fail(A, Kind.RESET, 2)
    j.outcomes.fail(A, Kind.RESET)
    assert j.urgent == 1
    j.outcomes.fail(B, Kind.RESET, 3)
    assert j.urgent == 2


def test_it_may_be_taken_as_soon_as_it_is_urgent() -> None:
    """Whoever is told at once may ask within the call."""
    j = Judge(failures=1)
    taken = []
    outcomes = Outcomes(j.pool, lambda: taken.append(outcomes.take()))
    outcomes.change([Kind.CONNECT], failures=1)
    outcomes.fail(A, Kind.CONNECT)
    assert taken == [{A: (0, 1, 1, "connect")}]
    assert outcomes.take() == {}


def test_kinds_that_do_not_count() -> None:
    """They are counted by kind and are nothing else: no failure, no success, no part of a streak."""
    j = Judge(on=[Kind.CONNECT], failures=2)
    j.outcomes.fail(A, Kind.CONNECT)
    j.outcomes.fail(A, Kind.RESET, 5)
    j.outcomes.fail(B, Kind.RESET)
    assert j.outcomes.take() == {A: (0, 1, 1, "connect")}
    j.outcomes.fail(A, Kind.CONNECT)
    assert j.urgent == 1
    failures = j.outcomes[A].failures
    assert {kind: count for kind, count in failures.items() if count} == {Kind.CONNECT: 2, Kind.RESET: 5}


def test_without_settings_nothing_counts() -> None:
    """Health that is off has no news and tells nobody."""
    j = Judge()
    outcomes = Outcomes(j.pool)
    outcomes.fail(A, Kind.CONNECT, 100)
    assert outcomes.take() == {}
    assert outcomes[A].failures[Kind.CONNECT] == 100


def test_answers_are_judged_in_their_order() -> None:
    """An error breaks no streak and a result does, wherever they stand; it is asked only where they count."""
    j = Judge(on=[Kind.ERROR], failures=3)
    assert j.outcomes.judges_answers
    j.outcomes.judge(A, [True, True, False, True, True])
    assert j.urgent == 0
    assert j.outcomes.take() == {A: (1, 4, 2, "error")}
    j.outcomes.judge(A, [True, False])
    assert j.urgent == 1
    j.outcomes.change(ALL, failures=3)
    assert not j.outcomes.judges_answers


def test_successes_of_long_ago_do_not_hide_failures() -> None:
    """Of what came in more than the window, so much is told as the window has on average."""
    j = Judge(window=10.0)
    j.outcomes[A].successes += 36_000
    j.now = 3600.0
    j.outcomes.fail(A, Kind.RESET, 4)
    assert j.outcomes.take() == {A: (100, 4, 4, "reset")}
    j.now += 10.0
    j.outcomes[A].successes += 50
    j.outcomes.fail(A, Kind.RESET)
    assert j.outcomes.take() == {A: (50, 1, 1, "reset")}


def test_a_few_successes_of_long_ago_are_one_at_least() -> None:
    """Else failures between which it succeeded, minutes apart, would add up to failures in a row."""
    j = Judge(window=10.0)
    assert j.outcomes[A].successes == 0
    for _ in range(3):
        j.now += 3600.0
        j.outcomes[A].successes += 2
        j.outcomes.fail(A, Kind.RESET)
        assert j.outcomes.take() == {A: (1, 1, 1, "reset")}
    j.now += 3600.0
    j.outcomes.fail(A, Kind.RESET)
    assert j.outcomes.take() == {A: (0, 1, 2, "reset")}


def test_only_those_that_left_are_forgotten() -> None:
    """And only when there are more than the service has, so that the first ones cost nothing."""
    j = Judge()
    for endpoint in (A, B):
        j.outcomes.fail(endpoint, Kind.RESET)
    j.pool.members = [Member(A), Member(C)]
    j.pool.loads.begin(B)
    j.outcomes[C].connected += 1
    assert j.outcomes.keys() == {A, B, C}
    j.pool.members = [Member(A)]
    j.pool.loads.end(B)
    j.outcomes[D].connected += 1
    assert j.outcomes.keys() == {A, D}
    assert j.outcomes.take() == {A: (0, 1, 1, "reset")}


def test_whose_fault_a_connect_is() -> None:
    """Without a descriptor nothing can be connected to; without a port for one endpoint, another can be."""
    assert is_our_own(OSError(errno.EMFILE, ""))
    assert not is_our_own(OSError(errno.EADDRNOTAVAIL, ""))
    found = [
        blames(OSError(number, "")) for number in (errno.EMFILE, errno.EADDRNOTAVAIL, errno.ECONNREFUSED)
    ]
    assert found == [False, False, True]
    assert blames(TimeoutError())


# ---- of connecting ----


@pytest.fixture
def alive() -> Iterator[str]:
    with listening() as sock:
        yield text(sock)


@pytest.fixture
def dead() -> Iterator[list[str]]:
    """Addresses that refuse."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(refusing()) for _ in range(4)]


def connects(s: Service) -> list[tuple[int, int]]:
    """Connected and failed of each endpoint that is known, in the order of candidates."""
    known = s.upstream.outcomes
    return [(known[e].connected, known[e].failed) for e in s.policy.order if e in known]


async def test_outcomes_are_counted(alive: str, dead: list[str]) -> None:
    """Each try counts for the endpoint that it was made at, and one that was not asked is not known."""
    async with service([*dead[:2], alive, dead[3]]) as s:
        for _ in range(3):
            s.upstream.release((await s.connect()).endpoint)
        assert connects(s) == [(0, 3), (0, 3), (3, 0)]


async def test_our_own_failures_are_no_outcomes(alive: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An instance is not blamed for what the gateway has too little of, nor for a client that gave up."""
    with silent() as nobody:
        async with service([nobody, alive]) as s:
            task = asyncio.create_task(s.connect())
            await asyncio.sleep(0.02)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

            async def fail(*_: object) -> Side:
                raise OSError(errno.EMFILE, "Too many open files")

            monkeypatch.setattr(s.upstream, "_dial", fail)
            with pytest.raises(OverloadError):
                await s.connect()
            assert connects(s) == []


async def test_outcomes_of_endpoints_that_left(alive: str, dead: list[str]) -> None:
    """They are forgotten when there is something new to remember, unless they have connections."""
    with listening() as sock, listening() as third:
        async with service([dead[0], alive, text(sock)]) as s:
            first = await s.connect()
            known = s.upstream.outcomes
            await s.publish(text(sock))
            second = await s.connect()
            assert known.keys() == {Endpoint.parse(alive), Endpoint.parse(text(sock))}
            s.upstream.release(first.endpoint)
            s.upstream.release(second.endpoint)
            await s.publish(text(third))
            s.upstream.release((await s.connect()).endpoint)
            assert known.keys() == {Endpoint.parse(text(third))}


async def test_failures_to_connect_are_failures(alive: str) -> None:
    """One that refuses and one that is silent; an endpoint that is connected to has no success by that."""
    with silent() as nobody, refusing() as dead:
        async with service([nobody, dead, alive], seconds=0.05) as s:
            s.upstream.outcomes.change(ALL, failures=5)
            s.upstream.release((await s.connect()).endpoint)
            first, second, _ = s.policy.order
            assert s.upstream.outcomes.take() == {first: (0, 1, 1, "connect"), second: (0, 1, 1, "connect")}
            assert s.upstream.outcomes[first].failures[Kind.CONNECT] == 1
