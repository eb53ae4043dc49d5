"""The workloads of rpc.py: what rpc_load.c is asked, and how its answer is read."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

from peers import Address
from processes import BenchmarkError, call, pinned, require

SOURCES = Path(__file__).resolve().parent
CODECS = {"msgpack": "msgpack-rpc", "thrift": "thrift-framed"}  # by the name of their protocol here
# Bytes in flight above which a run would measure the memory, not the proxies: of the whole matrix only
# 64 KiB at 500 connections and depth 16 is, with 500 MiB.
MOST_IN_FLIGHT = 64 << 20
# Seconds in which rpc_load may open its connections, prolong its window and wait for the last answers; its
# own limits are lower.
PATIENCE = 90


@dataclass(frozen=True)
class Workload:
    """A question asked of every path: `connections` that each keep `depth` requests in flight."""

    protocol: str
    payload: int
    connections: int
    depth: int

    @property
    def shape(self) -> str:
        return f"{self.payload}x{self.connections}x{self.depth}"

    @property
    def name(self) -> str:
        return f"{self.protocol}-{self.shape}"

    @property
    def lone(self) -> bool:
        """Whether only one request is ever on its way."""
        return self.connections == self.depth == 1

    @property
    def in_flight(self) -> int:
        """Bytes of payload on their way at a time."""
        return self.payload * self.connections * self.depth


MATRIX = [Workload(*values) for values in product(CODECS, (64, 1024, 65536), (1, 50, 500), (1, 16))]
WORKLOADS = [workload for workload in MATRIX if workload.in_flight <= MOST_IN_FLIGHT]
LEFT_OUT = [workload for workload in MATRIX if workload not in WORKLOADS]


class Load(NamedTuple):
    """What one run achieved. `rate` is requests per second, latencies in ms, CPU in seconds per request."""

    amount: float
    rate: float
    p50: float
    p99: float
    cpu: float | None
    instance_cpu: float
    load_cpu: float


def build(name: str, folder: Path) -> Path:
    """Compile one of the C programs beside this script. Raises BenchmarkError with the compiler's words."""
    compiler = require("cc", "Debian package gcc (with libc6-dev)")
    program = folder / name
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror"]
    call([compiler, *flags, "-o", str(program), str(SOURCES / f"{name}.c")], timeout=60)
    return program


def run(
    program: Path,
    workload: Workload,
    address: Address,
    *,
    warm_up: float,
    seconds: float,
    core: int | None,
    proxy: Sequence[int],
    instance: Sequence[int],
    deadline: int | None = None,
) -> Load:
    """Load one path and check every answer. `proxy` and `instance` are the pids whose CPU time counts.

    `deadline`: the milliseconds that each request says it has left. Raises BenchmarkError where an answer was
    wrong or missing, or the instance was told no shorter deadline.
    """
    said = () if deadline is None else ("--deadline", deadline)
    what = (workload.protocol, *address, workload.connections, workload.depth, workload.payload)
    command = [str(program), *map(str, (*said, *what, warm_up, seconds, *proxy, *instance))]
    return read(call(pinned(command, core), timeout=warm_up + seconds + PATIENCE), len(proxy))


def read(text: str, proxies: int) -> Load:
    """Read what rpc_load printed; of the CPU times the first `proxies` are the proxy's."""
    try:
        answer = json.loads(text)
        amount, cpu = answer["answers"], answer["cpu"]
        return Load(
            amount=float(amount),
            rate=amount / answer["seconds"],
            p50=answer["p50_us"] / 1e3,
            p99=answer["p99_us"] / 1e3,
            cpu=sum(cpu[:proxies]) / amount if proxies else None,
            instance_cpu=sum(cpu[proxies:]) / amount,
            load_cpu=answer["load_cpu"] / amount,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(f"rpc_load's answer is not what it prints: {error!r}\n{text}") from error
    except ZeroDivisionError as error:
        raise BenchmarkError(f"nothing was answered while it was measured:\n{text}") from error
