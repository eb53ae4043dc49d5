import asyncio
import contextlib
import errno
import socket
import time
from collections.abc import Iterator

import pytest

from tcpgw.endpoints import Endpoint
from tcpgw.errors import ConnectError, OverloadError
from tcpgw.relay.stream import Side
from tcpgw.relay.upstream import NoEndpointError
from tests.support.streams import Peer, listening, refusing, silent
from tests.support.upstreams import service, text


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

            waited = await asyncio.gather(*(fail(number * 0.03) for number in range(3)))
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


async def test_our_own_failures_are_not_tried_elsewhere(alive: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the gateway has too little of, it has too little of for the next endpoint as well."""
    async with service([alive, alive.replace("127.0.0.1", "127.0.0.2")]) as s:

        async def fail(*_: object) -> Side:
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr(s.upstream, "_dial", fail)
        with pytest.raises(OverloadError, match="Too many open files"):
            await s.connect()
        assert s.policy.asked == 1


async def test_retries_are_bounded_by_their_budget(alive: str) -> None:
    """Of many clients whose first endpoint does not answer, three may try another; the rest is told why."""
    with silent() as nobody, silent() as another:
        async with service([nobody, another, alive], seconds=0.2, tries=2) as s:
            tasks = [asyncio.create_task(s.connect()) for _ in range(10)]
            told = [str(one) for one in await asyncio.gather(*tasks, return_exceptions=True)]
            refused = [one for one in told if "retry budget is spent" in one]
            assert len(refused) == s.upstream.circuit.status()["retries_refused"] == 7
            assert all(one.count("no answer") == 2 for one in told if one not in refused)


async def test_the_budget_grows_with_the_load(dead: list[str], alive: str) -> None:
    """It is a share of the connections that there are."""
    async with service([dead[0], alive], retry_budget=0.5) as s:
        there = [(await s.connect()).endpoint for _ in range(20)]
        retries = s.upstream.circuit.retries
        begun = sum(retries.begin(s.pool.loads.total) for _ in range(20))
        assert begun == 10
        with pytest.raises(ConnectError, match="refused; the retry budget is spent") as caught:
            await s.connect()
        assert caught.value.tries == 1
        assert s.pool.loads.total == 20
        for _ in range(begun):
            retries.end()
        for endpoint in there:
            s.upstream.release(endpoint)
