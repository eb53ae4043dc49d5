"""The timer of microseconds."""

import asyncio
import time

from tcpgw.bench.ticker import ticking

SPACING = 1_000_000


async def test_it_ticks_from_the_first_time_on_and_never_too_often() -> None:
    """No call comes before `first`, and no more come than spacings have passed; the end is the end."""
    calls: list[int] = []
    enough = asyncio.Event()

    def tick() -> None:
        calls.append(time.monotonic_ns())
        if len(calls) == 20:
            enough.set()

    first = time.monotonic_ns() + 5 * SPACING
    with ticking(tick, first=first, spacing=SPACING):
        async with asyncio.timeout(20):
            await enough.wait()
    assert all(first + number * SPACING <= call for number, call in enumerate(calls))
    count = len(calls)
    await asyncio.sleep(0.01)
    assert len(calls) == count


async def test_a_busy_loop_gets_one_call_for_all_that_it_missed() -> None:
    """A loop that comes late is not flooded."""
    calls = 0

    def tick() -> None:
        nonlocal calls
        calls += 1

    with ticking(tick, first=time.monotonic_ns(), spacing=3600 * 10**9):
        await asyncio.sleep(0.01)
    assert calls == 1
    calls = 0
    with ticking(tick, first=time.monotonic_ns() - 10 * SPACING, spacing=10**9):
        time.sleep(0.005)  # noqa: ASYNC251 - what is tested
        await asyncio.sleep(0)
        await asyncio.sleep(0.005)
    assert calls == 1
