"""A session: runs against one target, or rounds of two in turn, until they are done or a signal comes."""

import asyncio
from collections.abc import Sequence

from tcpgw.address import Address
from tcpgw.bench.bar import Bar
from tcpgw.bench.plan import Plan
from tcpgw.bench.processes import measure
from tcpgw.bench.report import Measured, order
from tcpgw.bench.tally import Counts
from tcpgw.process.signals import ending


async def perform(plan: Plan, targets: Sequence[Address], rounds: int, bar: Bar) -> list[Measured] | None:
    """Measure every target in every round. Returns None where SIGINT or SIGTERM came first.

    Leaves no process in any case. Raises BenchError.
    """
    with ending() as end:
        work = asyncio.create_task(_rounds(plan, targets, rounds, bar))
        asked = asyncio.create_task(end.asked.wait())
        try:
            await asyncio.wait({work, asked}, return_when=asyncio.FIRST_COMPLETED)
            return await work if work.done() else None
        finally:
            work.cancel()
            asked.cancel()
            await asyncio.gather(work, asked, return_exceptions=True)


async def _rounds(plan: Plan, targets: Sequence[Address], rounds: int, bar: Bar) -> list[Measured]:
    found: list[list[Counts]] = [[] for _ in targets]
    for number in range(rounds):
        for place in order(len(targets), number):
            bar.run(f"{targets[place]}" + (f", round {number + 1}" if rounds > 1 else ""))
            found[place].append(await measure(plan, targets[place], bar.show))
            bar.ran()
    return [Measured(target, tuple(counts)) for target, counts in zip(targets, found, strict=True)]
