"""How long a Maglev table takes to build, and how long the event loop waits meanwhile.

    python benchmarks/maglev_build.py [--rounds 5] [--size 65537]

First table: single-thread build time, nothing else running in this process. Second: the build runs in a
thread (`asyncio.to_thread`) beside a uvloop event loop that does nothing but look at the clock; the longest
time between two looks is its stall. "idle" looks once a millisecond and sleeps between, as a gateway with
little traffic does; "busy" looks in every turn of the loop, as one without a free moment does. Each line is
one way to let the loop have the interpreter; "no build" is what the machine itself does to the loop.
"""

import argparse
import asyncio
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version

import uvloop

from tcpgw.balancing.maglev import Maglev
from tcpgw.endpoints import Endpoint

Weights = dict[Endpoint, float]

BREATHS: dict[str, Callable[[], None] | None] = {
    "no build": None,
    "nothing": lambda: None,
    "sleep(0)": lambda: time.sleep(0),
    "sleep(1e-6)": lambda: time.sleep(1e-6),
    "sleep(5e-5)": lambda: time.sleep(5e-5),
}


def make_weights(count: int, kind: str) -> Weights:
    rng = random.Random(count)  # the same weights in every run, not secrets
    endpoints = [Endpoint.of(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", 8000) for n in range(count)]
    return {endpoint: 1 if kind == "equal" else rng.randint(1, 100) for endpoint in endpoints}


def build_times(weights: Weights, size: int, rounds: int) -> list[float]:
    """Milliseconds of each round."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        Maglev(weights, size)
        times.append(1e3 * (time.perf_counter() - start))
    return times


class Heartbeat:
    """Looks at the clock from the event loop, every `pause` seconds (0: in every turn of the loop)."""

    def __init__(self, pause: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._pause = pause
        self._last = 0.0
        self._running = False
        self.worst = 0.0

    @contextmanager
    def beating(self) -> Iterator[None]:
        self._running, self._last = True, time.perf_counter()
        self._beat()
        try:
            yield
        finally:
            self._running = False

    def _beat(self) -> None:
        now = time.perf_counter()
        self.worst = max(self.worst, now - self._last - self._pause)
        self._last = now
        if self._running:
            self._loop.call_later(self._pause, self._beat) if self._pause else self._loop.call_soon(
                self._beat
            )


async def stall(pause: float, work: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds: the worst stall while `work` ran in a thread, and how long it ran."""
    heartbeat = Heartbeat(pause)
    with heartbeat.beating():
        await asyncio.sleep(
            0.02
        )  # the first beats, and the thread pool's first thread, are not what we measure
        await asyncio.to_thread(int)
        heartbeat.worst = 0.0
        start = time.perf_counter()
        await asyncio.to_thread(work)
        took = time.perf_counter() - start
        await asyncio.sleep(0.002)
    return 1e3 * heartbeat.worst, 1e3 * took


def print_build_times(size: int, rounds: int) -> None:
    print(f"\n{'endpoints':>9}  {'weights':8} {'median ms':>9} {'min':>6} {'max':>6}")
    for count in (10, 100, 1000):
        for kind in ("equal", "random"):
            times = build_times(make_weights(count, kind), size, rounds)
            print(
                f"{count:9}  {kind:8} {statistics.median(times):9.1f} {min(times):6.1f} {max(times):6.1f}",
                flush=True,
            )


def print_stalls(size: int, rounds: int) -> None:
    weights = make_weights(1000, "random")
    print("\n1000 endpoints, random weights, built in a thread beside a uvloop loop")
    print(f"{'loop':5} {'breathe':12} {'worst stall ms (each round)':40} {'build ms':>8}")
    for loop_kind, pause in (("idle", 0.001), ("busy", 0.0)):
        for name, breathe in BREATHS.items():
            work = partial(Maglev, weights, size, breathe) if breathe else partial(time.sleep, 0.1)
            results = [uvloop.run(stall(pause, work)) for _ in range(rounds)]
            worst = " ".join(f"{result[0]:.1f}" for result in results)
            took = statistics.median(result[1] for result in results)
            print(f"{loop_kind:5} {name:12} {worst:40} {took:8.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each measurement (default 5)")
    parser.add_argument("--size", type=int, default=65537, help="table entries, prime (default 65537)")
    arguments = parser.parse_args()
    print(f"Python {platform.python_version()}, uvloop {version('uvloop')}, {platform.platform()}")
    print_build_times(arguments.size, arguments.rounds)
    print_stalls(arguments.size, arguments.rounds)


if __name__ == "__main__":
    main()
