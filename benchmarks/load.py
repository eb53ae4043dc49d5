"""The workloads of stream.py: what redis-benchmark and iperf3 are asked, and how their answers are read."""

import csv
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from peers import Address
from processes import BenchmarkError, call, pinned

GIB = 2**30
# iperf3 serves one test at a time and is free again a moment after its client's end; or it is still starting.
BUSY_RETRIES = 50


class Load(NamedTuple):
    """What one run achieved. `amount` counts the workload's unit, `rate` is per second, latencies in ms."""

    amount: float
    rate: float
    p50: float | None = None
    p99: float | None = None


@dataclass(frozen=True)
class Workload:
    """A question asked of every path. `unit` is what is counted, and what CPU time is divided by.

    `command` is redis-benchmark's, by default the GET of a key that is not there.
    """

    name: str
    title: str
    unit: str
    clients: int = 0
    keep_alive: bool = True
    command: Sequence[str] = ("-t", "get")

    @property
    def bulk(self) -> bool:
        return self.clients == 0

    @property
    def lone(self) -> bool:
        return self.clients == 1


WORKLOADS = (
    Workload("keepalive-50", "50 clients, connections kept", "request", clients=50),
    Workload("keepalive-1", "1 client, connection kept", "request", clients=1),
    Workload(
        "connect-50", "50 clients, a new connection per request", "request", clients=50, keep_alive=False
    ),
    Workload("bulk", "iperf3, one stream from client to instance", "GiB"),
)


def run(
    workload: Workload,
    address: Address,
    *,
    requests: int,
    seconds: float,
    core: int | None,
    options: Sequence[str] = (),
) -> Load:
    """Load one path: `requests` of them, or for bulk `seconds`. Raises BenchmarkError when the tool fails.

    `options` are more of redis-benchmark's.
    """
    if workload.bulk:
        return run_iperf3(address, seconds=math.ceil(seconds), core=core)
    where = ["-h", address.host, "-p", str(address.port), *options]
    size = ["-c", str(workload.clients), "-k", str(int(workload.keep_alive)), "-n", str(requests)]
    command = ["redis-benchmark", *where, *size, "--csv", *workload.command]
    # It retries a refused connection for ever, so its own end is no sign of life: the limit is generous
    # for a path ten times slower than expected.
    return read_redis_benchmark(call(pinned(command, core), timeout=seconds * 10 + 20), requests)


def run_iperf3(address: Address, *, seconds: int, core: int | None) -> Load:
    command = ["iperf3", "-J", "-c", address.host, "-p", str(address.port), "-t", str(seconds)]
    for _ in range(BUSY_RETRIES):
        answer = call(pinned(command, core), timeout=seconds + 30)
        if not any(word in answer for word in ("server is busy", "Connection refused")):
            break
        time.sleep(0.1)
    return read_iperf3(answer)


def read_redis_benchmark(text: str, requests: int) -> Load:
    """Read the one row of `redis-benchmark --csv`. Raises BenchmarkError where it is not there."""
    lines = text.splitlines()
    head = next((number for number, line in enumerate(lines) if line.startswith('"test"')), len(lines))
    rows = list(csv.DictReader(lines[head:]))
    try:
        (row,) = rows
        rate, p50, p99 = (float(row[name]) for name in ("rps", "p50_latency_ms", "p99_latency_ms"))
    except (ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(
            f"redis-benchmark's answer is not one CSV row with rps and latencies:\n{text}"
        ) from error
    return Load(float(requests), rate, p50, p99)


def read_iperf3(text: str) -> Load:
    """Read what the receiver got from `iperf3 -J`. Raises BenchmarkError with iperf3's own words."""
    try:
        answer = json.loads(text)
        received = answer["end"]["sum_received"]
        return Load(received["bytes"] / GIB, received["bits_per_second"] / 8 / GIB)
    except ValueError as error:
        raise BenchmarkError(f"iperf3's answer is not JSON:\n{text}") from error
    except KeyError as error:
        raise BenchmarkError(f"iperf3 failed: {answer.get('error', f'no {error} in its answer')}") from error
