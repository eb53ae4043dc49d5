"""What does each guard of a listener cost, and TLS beside peers that end it? README.md holds the method.

python benchmarks/access.py            five rounds, about five minutes on an otherwise idle machine
python benchmarks/access.py --quick    does everything still work?
"""

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import load
import script
from access_testbed import BULK, PEERS, AccessTestbed, Way
from load import GIB, Load
from peers import DIRECT
from processes import BenchmarkError, call, pinned
from report import Aim, Column, Record, Results, Sample, aligned, verdicts

WARM_UP_REQUESTS = 2000
# As in stream.py.
SETTLE = 0.1
# One suite for all: which one a peer likes best is no question here.
TLS = ("--tls", "--insecure", "--tls-ciphersuites", "TLS_AES_128_GCM_SHA256")
PING, PONG = "PING\r\n", "+PONG\r\n"
CONNECT_LOAD = Path(__file__).with_name("connect_load.py")

ENDS_TLS = ("direct-tls", "haproxy", "nginx", "envoy", "tls")


@dataclass(frozen=True)
class Workload:
    """A question asked of some of the ways. `preamble`: by connect_load.py, which can say a token first."""

    load: load.Workload
    ways: Sequence[str]
    preamble: bool = False

    @property
    def name(self) -> str:
        return self.load.name

    @property
    def bulk(self) -> bool:
        return self.load.unit == "GiB"


KEPT = load.Workload("kept", "50 clients, connections kept", "request", clients=50)
NEW = load.Workload("new", "50 clients, a new connection per request", "request", clients=50)
NEW_TLS = load.Workload(
    "new-tls", "50 clients, a new TLS connection per request", "request", clients=50, keep_alive=False
)
BIG = load.Workload(
    "bulk", "4 clients, connections kept, values of 1 MiB", "GiB", clients=4, command=("GET", "bulk")
)
WORKLOADS = (
    Workload(KEPT, (DIRECT, "open", "cidr", "per-source", "bytes/s", "to-tls", *ENDS_TLS)),
    Workload(
        NEW, (DIRECT, "open", "cidr", "per-source", "bytes/s", "api-key", "jwt", "to-tls"), preamble=True
    ),
    Workload(NEW_TLS, ("open", *ENDS_TLS)),
    Workload(BIG, (DIRECT, "open", "bytes/s", "to-tls", *ENDS_TLS)),
)
# A per cent is what these runs can tell; a network more or less must not show.
AIMS = (
    *(Aim(name, "open", 1.02, "cpu", most=True) for name in ("kept", "new")),
    *(
        Aim(name, "haproxy", 1.0, value, binding=False)
        for name in ("kept", "new-tls", "bulk")
        for value in ("rate", "cpu")
    ),
)


def main() -> int:
    """Exit with 0; 1 where a process failed or, with --verify, an aim was missed; 2 for bad usage."""
    args = arguments()

    def work(folder: Path) -> int:
        peers = [peer for peer in PEERS if peer.name in args.peers]
        bed = AccessTestbed.prepare(peers, folder, cores=args.cores, log_connections=not args.no_log)
        if args.show_config:
            print(bed.configurations())
            return 0
        return measure_and_report(bed, args)

    return script.run(work)


def arguments() -> argparse.Namespace:
    names = [workload.name for workload in WORKLOADS]
    parser = script.parser(__doc__ or "", PEERS, rounds=5, seconds=1.5, quick=0.2)
    parser.add_argument("--workloads", type=script.among(names), default=names, help=f"({','.join(names)})")
    return script.read(parser)


def measure_and_report(bed: AccessTestbed, args: argparse.Namespace) -> int:
    workloads = [workload for workload in WORKLOADS if workload.name in args.workloads]
    facts = bed.facts()
    with ExitStack() as ending:
        ways = bed.start(ending)
        samples = list(measure(bed, ways, workloads, args.rounds, args.seconds))
    results = Results(samples)
    records = summary(results, workloads)
    lines, met = held(results, {workload.name for workload in workloads})
    tables = [table(workload, records) for workload in workloads]
    script.publish(facts, tables, lines, records=records, samples=samples, file=args.json)
    return 1 if args.verify and not met else 0


def measure(
    bed: AccessTestbed, ways: Mapping[str, Way], workloads: Sequence[Workload], rounds: int, seconds: float
) -> Iterator[Sample]:
    """Warm up, which also sizes the runs; then each round runs every way, in rotated order, per workload."""
    core = bed.cores.load
    print("warming up", file=sys.stderr)
    requests = {}
    for workload in workloads:
        for way in chosen(ways, workload):
            few = int(WARM_UP_REQUESTS * min(1.0, seconds)) // (10 if workload.bulk else 1)
            load = run_once(way, workload, requests=few, seconds=seconds, core=core)
            requests[workload, way.name] = max(few // 4, int(load.rate * seconds))
    for number in range(rounds):
        for workload in workloads:
            there = chosen(ways, workload)
            turn = number % len(there)
            for way in [*there[turn:], *there[:turn]]:
                before = way.cpu_seconds()
                count = requests[workload, way.name]
                load = in_units(workload, run_once(way, workload, requests=count, seconds=seconds, core=core))
                time.sleep(SETTLE)
                cpu = (way.cpu_seconds() - before) / load.amount if way.proxy else None
                print(f"round {number + 1}: {workload.name} {way.name} {load.rate:,.2f}/s", file=sys.stderr)
                yield Sample(number, workload.name, way.name, cpu=cpu, **load._asdict())


def chosen(ways: Mapping[str, Way], workload: Workload) -> list[Way]:
    return [ways[name] for name in workload.ways if name in ways]


def run_once(way: Way, workload: Workload, *, requests: int, seconds: float, core: int | None) -> Load:
    """Load a way. Raises BenchmarkError, with the proxy's last words, when that fails."""
    try:
        if workload.preamble:
            return connect(way, workload, requests, seconds, core)
        return load.run(
            workload.load,
            way.address,
            requests=requests,
            seconds=seconds,
            core=core,
            options=TLS if way.tls else (),
        )
    except BenchmarkError as error:
        last_words = f"\nits log ends with:\n{way.proxy.tail()}" if way.proxy else ""
        raise BenchmarkError(f"{workload.name} through {way.name}: {error}{last_words}") from error


def connect(way: Way, workload: Workload, requests: int, seconds: float, core: int | None) -> Load:
    said = f"TCPGW AUTH {way.token}\n{PING}" if way.token else PING
    command = [sys.executable, str(CONNECT_LOAD), way.address.host, str(way.address.port)]
    command += [str(workload.load.clients), str(requests), said, PONG]
    return Load(float(requests), float(call(pinned(command, core), timeout=seconds * 10 + 20)))


def in_units(workload: Workload, load: Load) -> Load:
    """In GiB, where the requests are for values."""
    if not workload.bulk:
        return load
    return load._replace(amount=load.amount * BULK / GIB, rate=load.rate * BULK / GIB)


# ---- what is reported ----


def summary(results: Results, workloads: Sequence[Workload]) -> list[Record]:
    """One flat record for each workload and way that was measured."""
    return [
        {
            "workload": workload.name,
            "way": way,
            "rate": rate,
            "cpu": results.median(workload.name, way, "cpu"),
            "cpu_to_open": results.ratio(workload.name, way, "open", "cpu"),
            "rate_to_haproxy": results.ratio(workload.name, way, "haproxy"),
            "cpu_to_haproxy": results.ratio(workload.name, way, "haproxy", "cpu"),
            "busy": results.median(workload.name, way, "busy"),
            "p99": results.median(workload.name, way, "p99"),
        }
        for workload in workloads
        for way in workload.ways
        if (rate := results.median(workload.name, way, "rate")) is not None
    ]


def table(workload: Workload, records: Sequence[Record]) -> str:
    """Plain aligned text, to be pasted into README.md as it is."""
    columns = [
        Column("GiB/s", "rate", 2) if workload.bulk else Column("request/s", "rate", 0),
        Column("x haproxy", "rate_to_haproxy"),
        Column("CPU ms/GiB", "cpu", 0, 1e3) if workload.bulk else Column("CPU µs/request", "cpu", 1, 1e6),
        Column("x open", "cpu_to_open"),
        Column("x haproxy", "cpu_to_haproxy"),
        Column("core", "busy", 0, 100, "%"),
        Column("p99 ms", "p99"),
    ]
    mine = [record for record in records if record["workload"] == workload.name]
    return f"{workload.load.title} ({workload.name})\n{aligned(['way'], columns, mine)}"


def held(results: Results, names: set[str]) -> tuple[list[str], bool]:
    """Hold the list of networks against none, and TLS against HAProxy's; also whether what binds is met."""
    asked = [aim for aim in AIMS if aim.workload in names]
    lines, met = [], True
    for way in ("cidr", "tls"):
        of_way = [aim for aim in asked if aim.binding == (way == "cidr")]
        told, all_met = verdicts(results, of_way, way)
        lines += [f"{way}, {line}" for line in told]
        met = met and all_met
    return lines, met


if __name__ == "__main__":
    sys.exit(main())
