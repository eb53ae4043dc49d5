import asyncio
import contextlib
import errno
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Self

import pytest

from tcpgw.balancing.loads import Loads
from tcpgw.balancing.policy import Keyless
from tcpgw.balancing.standing import Share
from tcpgw.endpoints import Endpoint, Member, Snapshot
from tcpgw.errors import ConnectError, OverloadError
from tcpgw.pool import Pool
from tcpgw.relay.reasons import Reason
from tcpgw.relay.stream import Relay, Side
from tcpgw.relay.upstream import Connected, NoEndpointError, Upstream
from tests.support.streams import Peer, in_time, listening, open_sockets, refusing, silent

CLIENT = ("127.0.0.1", 40000)


class InOrder(Keyless):
    """The policy of a service whose endpoints are asked in the order of their weights, greatest first."""

    def __init__(self, weights: Mapping[Endpoint, float]) -> None:
        self.order = sorted(weights, key=weights.__getitem__, reverse=True)
        self.asked = 0

    def candidates(self, position: int) -> Iterator[Endpoint]:  # noqa: ARG002 - the interface's
        for endpoint in self.order:
            self.asked += 1
            yield endpoint

    def under(self, shares: Mapping[Endpoint, Share]) -> Self:
        self.order = [endpoint for endpoint in self.order if endpoint not in shares]
        return self

    def explain(self, position: int) -> str:  # noqa: ARG002 - the interface's
        return "in order"


class Service:
    """An upstream whose candidates are `addresses`, in that order."""

    def __init__(self, pool: Pool, policies: list[InOrder], upstream: Upstream) -> None:
        self.pool = pool
        self.upstream = upstream
        self.policy = policies[0]
        self._connected: list[Connected] = []

    @classmethod
    async def of(
        cls, addresses: Sequence[str], *, seconds: float = 5.0, tries: int = 3, weights: Sequence[int] = ()
    ) -> "Service":
        policies: list[InOrder] = []

        def make_policy(weights: Mapping[Endpoint, float], _: Loads) -> InOrder:
            policies.append(InOrder(weights))
            return policies[-1]

        pool = Pool("s", make_policy, Loads(time.monotonic))
        weights = weights or range(len(addresses), 0, -1)
        members = [Member(Endpoint.parse(a), w) for a, w in zip(addresses, weights, strict=True)]
        await pool.publish(Snapshot.of("s", members, taken_at=0.0))
        return cls(pool, policies, Upstream(pool, lambda _: 0, timeout=seconds, tries=tries))

    async def publish(self, *addresses: str) -> None:
        members = [Member(Endpoint.parse(address)) for address in addresses]
        await self.pool.publish(Snapshot.of("s", members, taken_at=0.0, version=2))

    async def connect(self) -> Connected:
        connected = await in_time(self.upstream.connect(CLIENT, self._new_side))
        self._connected.append(connected)
        return connected

    async def close(self) -> None:
        for connected in self._connected:
            connected.side.relay.abort(Reason.SHUTDOWN, reset=True)
        await asyncio.sleep(0)

    def _new_side(self) -> Side:
        return Relay(lambda *_: None, now=0.0).instance


@asynccontextmanager
async def service(addresses: Sequence[str], **settings: object) -> AsyncIterator[Service]:
    """A service for a test; at the end nothing may be counted as loaded, and no socket of it be open."""
    before = open_sockets()
    made = await Service.of(addresses, **settings)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        await made.close()
    assert made.pool.loads.total == 0
    await asyncio.sleep(0)
    assert open_sockets() <= before


def text(sock: socket.socket) -> str:
    return "{}:{}".format(*sock.getsockname())


@pytest.fixture
def alive() -> Iterator[str]:
    with listening() as sock:
        yield text(sock)


@pytest.fixture
def dead() -> Iterator[list[str]]:
    """Five addresses that refuse."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(refusing()) for _ in range(5)]


async def test_the_first_candidate_is_taken_when_it_answers(alive: str, dead: list[str]) -> None:
    """No other is asked, and the load is counted until it is released."""
    async with service([alive, *dead]) as s:
        connected = await s.connect()
        assert connected.endpoint == Endpoint.parse(alive)
        assert connected.tries == 1
        assert 0 < connected.seconds < 5
        assert s.policy.asked == 1
        assert s.pool.loads.inflight(connected.endpoint) == 1
        s.upstream.release(connected.endpoint)


async def test_a_refusal_leads_to_the_next_candidate(alive: str, dead: list[str]) -> None:
    """Each candidate is asked once, in order, and only the one that answered is loaded."""
    async with service([*dead[:2], alive]) as s:
        connected = await s.connect()
        assert connected.endpoint == Endpoint.parse(alive)
        assert connected.tries == 3
        assert [s.pool.loads.inflight(e) for e in s.policy.order] == [0, 0, 1]
        s.upstream.release(connected.endpoint)


async def test_an_ipv6_endpoint() -> None:
    """Endpoints are of either family."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as sock:
        address = f"[::1]:{sock.getsockname()[1]}"
        async with service([address]) as s:
            connected = await s.connect()
            assert str(connected.endpoint) == address
            s.upstream.release(connected.endpoint)


async def test_a_silent_candidate_costs_one_timeout(alive: str) -> None:
    """One that does not answer is given up after the connect timeout, and the next is asked."""
    with silent() as nobody:
        async with service([nobody, alive], seconds=0.1) as s:
            began = time.monotonic()
            connected = await s.connect()
            assert 0.09 < time.monotonic() - began < 1
            assert connected.endpoint == Endpoint.parse(alive)
            assert connected.tries == 2
            assert connected.seconds < 0.09
            s.upstream.release(connected.endpoint)


async def test_each_try_has_the_whole_timeout() -> None:
    """Connects that begin at different times, and second tries, all wait as long as configured."""
    with silent() as first, silent() as second:
        async with service([first, second], seconds=0.1) as s:

            async def fail(after: float) -> float:
                await asyncio.sleep(after)
                began = time.monotonic()
                with pytest.raises(ConnectError):
                    await s.connect()
                return time.monotonic() - began

            waited = await asyncio.gather(*(fail(number * 0.03) for number in range(4)))
            assert all(0.18 < seconds < 0.5 for seconds in waited), waited


async def test_no_more_candidates_are_asked_than_configured(alive: str, dead: list[str]) -> None:
    """After the last try the error names each endpoint asked, and why it failed, in order."""
    async with service([*dead, alive], tries=3) as s:
        with pytest.raises(ConnectError) as caught:
            await s.connect()
        assert str(caught.value) == "; ".join(f"{address}: Connection refused" for address in dead[:3])
        assert s.policy.asked == 3
        assert caught.value.retry_safe


async def test_candidates_are_not_repeated_when_they_run_out(dead: list[str]) -> None:
    """Fewer endpoints than tries: each is asked once."""
    async with service(dead[:2], tries=5) as s:
        with pytest.raises(ConnectError):
            await s.connect()
        assert s.policy.asked == 2


async def test_silence_is_told_from_refusal(dead: list[str]) -> None:
    """The error says of each endpoint what it did."""
    with silent() as nobody:
        async with service([nobody, dead[0]], seconds=0.05) as s:
            with pytest.raises(ConnectError) as caught:
                await s.connect()
            expected = f"{nobody}: no answer within 0.05 s; {dead[0]}: Connection refused"
            assert str(caught.value) == expected


async def test_no_candidate_at_all_is_an_error_of_its_own(alive: str) -> None:
    """A service whose endpoints all have weight 0 takes no connection, and the error names it."""
    async with service([alive], weights=[0]) as s:
        with pytest.raises(NoEndpointError, match="service s has no endpoint"):
            await s.connect()


async def test_a_failure_looks_slow(alive: str, dead: list[str]) -> None:
    """A refusal counts as the whole timeout, so that a dead endpoint is not the quickest of all."""
    async with service([dead[0], alive], seconds=5.0) as s:
        connected = await s.connect()
        assert s.pool.loads.latency(Endpoint.parse(dead[0])) == pytest.approx(5.0, rel=0.01)
        assert s.pool.loads.latency(connected.endpoint) < 1
        s.upstream.release(connected.endpoint)


async def test_a_cancelled_connect_leaves_nothing() -> None:
    """Cancelled while it waits for an answer: no load, no socket; the next candidate is not asked."""
    with silent() as nobody:
        async with service([nobody, nobody.replace("127.0.0.1", "127.0.0.2")]) as s:
            task = asyncio.create_task(s.connect())
            await asyncio.sleep(0.02)
            assert s.pool.loads.total == 1
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert s.policy.asked == 1
            assert s.pool.loads.total == 0


async def test_a_connect_cancelled_at_any_turn_leaves_nothing(alive: str) -> None:
    """Cancelled in whichever turn of the loop: either it is connected and loaded, or nothing is left."""
    finished = 0
    for turns in range(12):
        async with service([alive]) as s:
            task = asyncio.create_task(s.connect())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                s.upstream.release((await task).endpoint)
                finished += 1
    assert 0 < finished < 12


async def test_an_instance_that_resets_at_once(alive: str) -> None:
    """Whether the reset comes before the connect has returned or after: a connection is made and counted."""
    loop = asyncio.get_running_loop()
    with listening() as sock:

        def accept_and_reset() -> None:
            Peer(sock.accept()[0]).reset()

        loop.add_reader(sock, accept_and_reset)
        async with service([text(sock), alive]) as s:
            for _ in range(50):
                connected = await s.connect()
                assert s.pool.loads.total == 1
                s.upstream.release(connected.endpoint)
        loop.remove_reader(sock)


def outcomes(s: Service) -> list[tuple[int, int]]:
    """Connected and failed of each endpoint that is known, in the order of candidates."""
    known = s.upstream.outcomes
    return [(known[e].connected, known[e].failed) for e in s.policy.order if e in known]


async def test_outcomes_are_counted(alive: str, dead: list[str]) -> None:
    """Each try counts for the endpoint that it was made at, and one that was not asked is not known."""
    async with service([*dead[:2], alive, dead[3]]) as s:
        for _ in range(3):
            s.upstream.release((await s.connect()).endpoint)
        assert outcomes(s) == [(0, 3), (0, 3), (3, 0)]


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
            assert outcomes(s) == []


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


async def test_upstreams_may_count_together(alive: str) -> None:
    """A service has one account for all of its listeners."""
    async with service([alive]) as s:
        other = Upstream(s.pool, lambda _: 0, timeout=1.0, tries=1, outcomes=s.upstream.outcomes)
        assert other.outcomes is s.upstream.outcomes
