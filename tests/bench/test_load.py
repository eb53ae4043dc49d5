"""One process's load on real listeners: closed and open loop, and everything that goes wrong meanwhile."""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tcpgw.address import Address
from tcpgw.bench.load import Load
from tcpgw.bench.plan import BenchError, Mode, Plan, Share
from tcpgw.bench.tally import Counts
from tests.bench.instances import Breaking, Echo, Rpc, Silent, Stall, Stalling, Wrong, serving


async def loaded(target: Address, **settings: Any) -> Counts:
    """Put a short load on the target. It must end in time."""
    plan = Plan(**{"warm_up": 0.05, "duration": 0.2, "connections": 2, "timeout": 2.0} | settings)
    load = Load(Share(plan, target, 0))
    try:
        await load.open()
        async with asyncio.timeout(plan.warm_up + plan.duration + plan.timeout + 5):
            return await load.run(time.monotonic_ns())
    finally:
        load.close()


LOOPS = [{"depth": 1}, {"depth": 7}, {"rate": 500.0}]


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("mode", Mode)
async def test_every_request_is_answered_and_checked(mode: Mode, loop: dict[str, Any]) -> None:
    """In both protocols and loops, with sizes from a byte to 300 KiB, nothing fails and nothing is left."""
    async with serving(Echo if mode is Mode.TCP else Rpc) as target:
        counts = await loaded(target, mode=mode, sizes=(1, 64, 300 << 10), **loop)
    assert counts.answered > 20
    assert (counts.errors, counts.strays, counts.connections_lost) == ({}, 0, 0)
    assert counts.histogram.get_total_count() == counts.answered
    assert counts.bytes_received > 50_000 * counts.answers
    assert 0 < counts.percentile(50) <= counts.worst  # type: ignore[operator]
    assert 0 < counts.cpu_seconds <= 1
    assert counts.seconds == pytest.approx(0.2)


async def test_the_open_loop_sends_what_is_due() -> None:
    """At 1,000 requests a second for 200 ms, there are 200 requests, whatever the answers do."""
    async with serving(Echo) as target:
        assert (await loaded(target, rate=1000.0)).answered == 200
    async with serving(Silent) as target:
        counts = await loaded(target, rate=1000.0, timeout=0.1)
    assert counts.answered == 0
    assert counts.failed >= 200  # and some of the warm-up's, which failed within the window


async def test_two_processes_send_what_one_would() -> None:
    """Each process sends its own share of a fixed rate."""
    plan = Plan(rate=999.0, warm_up=0, duration=0.2, processes=2, connections=2)
    async with serving(Echo) as target:
        loads = [Load(Share(plan, target, process)) for process in range(2)]
        try:
            begin = time.monotonic_ns()
            await asyncio.gather(*(load.open() for load in loads))
            counts = await asyncio.gather(*(load.run(begin) for load in loads))
        finally:
            for load in loads:
                load.close()
    assert [count.answered for count in counts] == [100, 100]


async def test_a_stall_is_in_the_open_loops_percentiles() -> None:
    """An instance that stops for 300 ms at 1,000 requests a second: p99 says so (no coordinated omission).

    In a closed loop, the same stall meets a request for each connection and vanishes in the percentiles.
    """
    settings = {"warm_up": 0, "duration": 0.7}
    async with serving(partial(Stalling, Stall())) as target:
        stalled = await loaded(target, **settings, rate=1000.0)
    async with serving(partial(Stalling, Stall())) as target:
        omitted = await loaded(target, **settings)
    assert stalled.answered == 700
    percentiles = {percent: stalled.percentile(percent) or 0 for percent in (80, 90, 99)}
    assert min(percentiles.values()) >= 100_000, percentiles
    assert omitted.worst is not None
    assert omitted.worst >= 200_000
    percentiles = {percent: omitted.percentile(percent) or 0 for percent in (80, 90, 99)}
    assert max(percentiles.values()) < 100_000, percentiles


@pytest.mark.parametrize("mode", Mode)
async def test_an_instance_that_never_answers_costs_the_time_out_each(mode: Mode) -> None:
    """Requests fail as timeouts, count as latencies of the time-out, and the next ones go out instead."""
    async with serving(Silent) as target:
        began = time.monotonic()
        counts = await loaded(target, mode=mode, depth=3, timeout=0.1)
        took = time.monotonic() - began
    assert counts.answered == 0
    assert set(counts.errors) == {"timeout"}
    assert counts.errors["timeout"] >= 6
    assert counts.percentile(50) == pytest.approx(100_000, rel=0.001)
    assert took >= 0.25


async def test_an_instance_that_does_not_read_ends_the_load_all_the_same() -> None:
    """Beyond what the connections take, requests wait unsent and are given up: bounded in memory and time."""

    class Deaf(Echo):
        def data_received(self, _data: bytes) -> None:
            self.transport.pause_reading()

    async with serving(Deaf) as target:
        counts = await loaded(target, rate=200.0, sizes=(4 << 20,), timeout=0.2)
    assert counts.answered == 0
    assert counts.errors["unsent"] > 10
    assert counts.errors["timeout"] >= 2


@pytest.mark.parametrize("loop", LOOPS, ids=str)
async def test_lost_connections_are_counted_and_opened_again(loop: dict[str, Any]) -> None:
    """An instance that ends connections again and again is loaded on; what was in flight has failed."""
    async with serving(Breaking) as target:
        counts = await loaded(target, duration=0.3, **loop)
    assert counts.answered > 20
    assert counts.connections_lost > 2
    assert set(counts.errors) == {"connection_lost"}
    assert counts.connects_failed == 0


async def test_an_instance_that_goes_and_comes_back_is_found_again() -> None:
    """While nothing listens, tries to connect fail and are counted; then the load goes on."""

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async with serving(Echo) as target:
        load = Load(Share(Plan(warm_up=0, duration=600, connections=2), target, 0))
        await load.open()
        running = asyncio.create_task(load.run(time.monotonic_ns()))
        await until(lambda: load.tally.answers > 0)
    counts = load.tally._counts
    await until(lambda: counts.connects_failed >= 2)
    answers = load.tally.answers
    async with serving(Echo, port=target.port):
        await until(lambda: load.tally.answers > answers)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        load.close()
    assert counts.connections_lost == 2


@pytest.mark.parametrize(
    ("instance", "settings", "kind"),
    [
        (Wrong, {}, "wrong_payload"),
        (Echo, {"mode": Mode.RPC}, "bad_answer"),
        (Rpc, {"mode": Mode.RPC, "method": "refuse"}, "overloaded"),
        (Rpc, {"mode": Mode.RPC, "method": "silence", "timeout": 0.1}, "timeout"),
    ],
)
async def test_failures_have_their_kind(
    instance: Callable[[], asyncio.Protocol], settings: dict[str, Any], kind: str
) -> None:
    """Whatever an instance does instead of answering, requests fail by that name and the load goes on."""
    async with serving(instance) as target:
        counts = await loaded(target, **settings)
    assert counts.answered == 0
    assert set(counts.errors) == {kind}
    assert counts.errors[kind] >= 2


async def test_another_method_needs_no_echo() -> None:
    """The result of a method that is not echo may be anything."""
    async with serving(Rpc) as target:
        counts = await loaded(target, mode=Mode.RPC, method="length")
    assert counts.answered > 20
    assert counts.errors == {}


async def test_a_unix_socket_is_a_target(tmp_path: Path) -> None:
    """Listeners may be Unix sockets, so targets may."""
    path = str(tmp_path / "x.sock")
    server = await asyncio.get_running_loop().create_unix_server(Echo, path)
    try:
        assert (await loaded(Address(path=path))).answered > 20
    finally:
        server.close()
    with pytest.raises(BenchError, match=r"cannot connect to unix:.*x\.sock: "):
        await loaded(Address(path=str(tmp_path / "y" / "x.sock")))


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        (Address("127.0.0.1", 1), "cannot connect to 127.0.0.1:1: connection refused: nothing listens there"),
        (Address("x" * 64, 1), "cannot connect to x+:1: "),
        (Address("999.0.0.1", 1), "cannot connect to 999.0.0.1:1: "),
    ],
)
async def test_a_target_that_cannot_be_reached_is_an_error_at_once(target: Address, sentence: str) -> None:
    """No load begins on what does not accept, and the sentence names it."""
    with pytest.raises(BenchError, match=sentence):
        await loaded(target)
