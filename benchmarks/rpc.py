"""What does the rpc plane cost beside its peers? README.md holds the method and the figures.

python benchmarks/rpc.py            three rounds, about twelve minutes on an otherwise idle machine
python benchmarks/rpc.py --quick    does everything still work?
python benchmarks/rpc.py --only msgpack --peers haproxy,tcpgw --workloads 64x50x1,64x50x16
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import rpc_load
import script
from peers import PEERS
from processes import BenchmarkError
from report import Aim, Column, Record, Results, Sample, aligned, summary, verdicts
from rpc_load import CODECS, WORKLOADS, Load, Workload
from rpc_testbed import PATHS, RpcTestbed, Running, Target

# Seconds at full load before each measured window. What is cold only once (caches, tables that grow, Envoy's
# connections to the instance) is warm after a run of this length, before the first round.
WARM_UP = 0.2

COLUMNS = (
    Column("request/s", "rate", 0),
    Column("min", "rate_min", 0),
    Column("max", "rate_max", 0),
    Column("x haproxy", "rate_to_haproxy"),
    Column("CPU µs", "cpu", 2, 1e6),
    Column("x haproxy", "cpu_to_haproxy"),
    Column("instance µs", "instance_cpu", 2, 1e6),
    Column("p50 µs", "p50", 0, 1e3),
    Column("p99 µs", "p99", 0, 1e3),
    Column("core", "busy", 0, 100, "%"),
    Column("instance", "instance_busy", 0, 100, "%"),
    Column("load", "load_busy", 0, 100, "%"),
)

MANY = [workload for workload in WORKLOADS if workload.connections > 1]
AIMS = (
    *(Aim(w.name, "haproxy", 1.25, binding=w.payload <= 1024) for w in MANY if w.depth == 1),
    *(Aim(w.name, "haproxy", 0.45, binding=w.shape == "64x50x16") for w in WORKLOADS if w.depth > 1),
    *(Aim(w.name, "haproxy", 1.15, "p50", most=True) for w in WORKLOADS if w.lone),
    *(Aim(w.name, "envoy", 0.5, "cpu", most=True) for w in WORKLOADS if w.protocol == "thrift"),
)


def main() -> int:
    """Exit with 0; 1 where a run failed or, with --verify, an aim was missed; 2 for bad usage."""
    args = arguments()

    def work(folder: Path) -> int:
        peers = [peer for peer in PEERS if peer.name in args.peers]
        bed = RpcTestbed.prepare(peers, folder, cores=args.cores, log_connections=not args.no_log)
        if args.show_config:
            print(bed.configurations())
            return 0
        return measure_and_report(bed, args)

    return script.run(work)


def arguments() -> argparse.Namespace:
    shapes = list(dict.fromkeys(workload.shape for workload in WORKLOADS))
    parser = script.parser(__doc__ or "", PEERS, rounds=3, seconds=1.0, quick=0.1)
    add = parser.add_argument
    add("--only", choices=CODECS, help="one protocol instead of both")
    add(
        "--workloads",
        type=script.among(shapes),
        default=shapes,
        metavar="PAYLOADxCONNECTIONSxDEPTH,…",
        help=f"({','.join(shapes)})",
    )
    return script.read(parser)


def measure_and_report(bed: RpcTestbed, args: argparse.Namespace) -> int:
    workloads = [
        workload
        for workload in WORKLOADS
        if workload.protocol in (args.only or CODECS) and workload.shape in args.workloads
    ]
    facts = bed.facts()
    with ExitStack() as ending:
        running = bed.start(ending)
        samples = list(measure(bed, running, workloads, args.rounds, args.seconds))
    results = Results(samples)
    records = summary(results, workloads, [target.name for target in running.targets])
    chosen = {workload.name for workload in workloads}
    aims, met = verdicts(results, [aim for aim in AIMS if aim.workload in chosen])
    facts["verified"] = f"{sum(sample.amount for sample in samples):,.0f} answers measured, every one checked"
    tables = [table(protocol, records) for protocol in dict.fromkeys(each.protocol for each in workloads)]
    script.publish(facts, tables, aims, records=records, samples=samples, file=args.json)
    return 1 if args.verify and not met else 0


def measure(
    bed: RpcTestbed, running: Running, workloads: Sequence[Workload], rounds: int, seconds: float
) -> Iterator[Sample]:
    """Warm up; then each round runs every path of each workload, in rotated order."""
    print("warming up", file=sys.stderr)
    for workload in workloads:
        for target in paths(running, workload):
            run_once(bed, running, target, workload, seconds=WARM_UP)
    for number in range(rounds):
        for workload in workloads:
            targets = paths(running, workload)
            turn = number % len(targets)
            for target in [*targets[turn:], *targets[:turn]]:
                load = run_once(bed, running, target, workload, seconds=seconds)
                print(
                    f"round {number + 1}: {workload.name} {target.name} {load.rate:,.0f}/s", file=sys.stderr
                )
                yield Sample(number, workload.name, target.name, **load._asdict())


def paths(running: Running, workload: Workload) -> list[Target]:
    return [target for target in running.targets if target.name in PATHS[workload.protocol]]


def run_once(
    bed: RpcTestbed, running: Running, target: Target, workload: Workload, *, seconds: float
) -> Load:
    """Load a path. Raises BenchmarkError, with the proxy's and the instance's last words, when that fails."""
    try:
        return rpc_load.run(
            bed.load_program,
            workload,
            target.addresses[workload.protocol],
            warm_up=WARM_UP,
            seconds=seconds,
            core=bed.place(running.instance, lone=workload.lone),
            proxy=target.pids(),
            instance=running.instance.pids(),
        )
    except BenchmarkError as error:
        raise BenchmarkError(
            f"{workload.name} through {target.name}: {error}{target.last_words()}{running.instance.tail()}"
        ) from error


def table(protocol: str, records: Sequence[Record]) -> str:
    """Plain aligned text, to be pasted into README.md as it is."""
    shapes = {workload.name: workload.shape for workload in WORKLOADS if workload.protocol == protocol}
    mine = [
        {**record, "workload": shape}
        for record in records
        if (shape := shapes.get(str(record["workload"]))) is not None
    ]
    return f"{CODECS[protocol]}\n{aligned(['workload', 'path'], COLUMNS, mine)}"


if __name__ == "__main__":
    sys.exit(main())
