"""What does the rpc plane cost beside its peers? README.md holds the method and the figures.

python benchmarks/rpc.py            three rounds, about sixteen minutes on an otherwise idle machine
python benchmarks/rpc.py --quick    does everything still work?
python benchmarks/rpc.py --only msgpack --peers haproxy,tcpgw --workloads 64x50x1,64x50x16
python benchmarks/rpc.py --only thrift --peers haproxy,tcpgw,tcpgw+rules,tcpgw+deadline
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import rpc_load
import script
from peers import DIRECT, RPC_PEERS
from processes import BenchmarkError
from report import Aim, Column, Record, Results, Sample, Value, aligned, summary, verdicts
from rpc_load import CODECS, WORKLOADS, Load, Workload
from rpc_testbed import DEADLINES, GATEWAYS, PATHS, RpcTestbed, Running, Target

# Seconds at full load before each measured window. What is cold only once (caches, tables that grow, Envoy's
# connections to the instance) is warm after a run of this length, before the first round.
WARM_UP = 0.2
# Seconds of each run that are neither: processes, connections, and Envoy's thousands of them.
AROUND = 0.25

# A path whose requests have deadlines answers a question of its own, and takes time of its own.
USUAL = [peer.name for peer in RPC_PEERS if peer.name not in DEADLINES]
HELD = [name for name in GATEWAYS if name not in DEADLINES]  # to the aims

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
    """Exit with 0; 1 where a run failed, time ran out or, with --verify, an aim was missed; 2: bad usage."""
    args = arguments()

    def work(folder: Path) -> int:
        peers = [peer for peer in RPC_PEERS if peer.name in args.peers]
        bed = RpcTestbed.prepare(peers, folder, cores=args.cores, log_connections=not args.no_log)
        if args.show_config:
            print(bed.configurations())
            return 0
        return measure_and_report(bed, args)

    return script.run(work)


def arguments() -> argparse.Namespace:
    shapes = list(dict.fromkeys(workload.shape for workload in WORKLOADS))
    parser = script.parser(__doc__ or "", RPC_PEERS, rounds=3, seconds=1.0, quick=0.1)
    parser.set_defaults(peers=USUAL)
    parser.epilog = (
        f"Without options this takes about {expected(WORKLOADS, USUAL, 3, 1.0) / 60:.0f} minutes, "
        f"with --quick {expected(WORKLOADS, USUAL, 1, 0.1) / 60:.0f}. "
        f"{' and '.join(DEADLINES)} runs only where --peers names it."
    )
    add = parser.add_argument
    add("--only", choices=CODECS, help="one protocol instead of both")
    add(
        "--workloads",
        type=script.among(shapes),
        default=shapes,
        metavar="PAYLOADxCONNECTIONSxDEPTH,…",
        help=f"({','.join(shapes)})",
    )
    add("--minutes", type=float, default=60.0, help="then stop, and report what was measured until then (60)")
    args = script.read(parser)
    check(parser, args)
    return args


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with 2 and the option's name for what would fail, or measure nothing, only minutes later."""
    if not (math.isfinite(args.seconds) and math.isfinite(args.minutes) and args.minutes > 0):
        parser.error("--seconds and --minutes must be positive numbers")
    measured = {name for protocol in protocols(args.only) for name in PATHS[protocol]}
    idle = [name for name in args.peers if name not in measured]
    if idle and args.peers is not USUAL:
        parser.error(
            f"--peers {','.join(idle)}: not measured with --only {args.only}, see PATHS in rpc_testbed.py"
        )
    if args.json and not args.json.absolute().parent.is_dir():
        parser.error(f"--json {args.json}: there is no such folder")


def protocols(only: str | None) -> list[str]:
    return [only] if only else list(CODECS)


def measure_and_report(bed: RpcTestbed, args: argparse.Namespace) -> int:
    workloads = [
        workload
        for workload in WORKLOADS
        if workload.protocol in protocols(args.only) and workload.shape in args.workloads
    ]
    facts = bed.facts()
    names = [proxy.peer.name for proxy in bed.proxies]
    seconds = expected(workloads, names, args.rounds, args.seconds)
    print(
        f"about {seconds / 60:.1f} minutes, at most {args.minutes:g}; left out: {facts['left out']}",
        file=sys.stderr,
    )
    until = time.monotonic() + args.minutes * 60
    with ExitStack() as ending:
        running = bed.start(ending)
        samples = list(measure(bed, running, workloads, args.rounds, args.seconds, until))
    wanted = args.rounds * runs(workloads, names)
    results = Results(samples)
    records = summary(results, workloads, [target.name for target in running.targets])
    chosen = {workload.name for workload in workloads}
    aims, met = held(results, [aim for aim in AIMS if aim.workload in chosen], names)
    facts["verified"] = f"{sum(sample.amount for sample in samples):,.0f} answers measured, every one checked"
    if len(samples) < wanted:
        facts["stopped"] = f"after {args.minutes:g} minutes, with {len(samples)} of {wanted} runs"
    tables = [
        text
        for protocol in dict.fromkeys(each.protocol for each in workloads)
        for text in (table(protocol, records), extras(protocol, results, names))
        if text
    ]
    script.publish(facts, tables, aims, records=records, samples=samples, file=args.json)
    return 1 if len(samples) < wanted or (args.verify and not met) else 0


def runs(workloads: Sequence[Workload], names: Sequence[str]) -> int:
    """How often a round loads a path."""
    return sum(name in (DIRECT, *names) for workload in workloads for name in PATHS[workload.protocol])


def expected(workloads: Sequence[Workload], names: Sequence[str], rounds: int, seconds: float) -> float:
    """Seconds that all of it takes about, on a machine that has nothing else to do."""
    once = WARM_UP + AROUND
    return runs(workloads, names) * (once + WARM_UP + rounds * (once + seconds))


def measure(
    bed: RpcTestbed,
    running: Running,
    workloads: Sequence[Workload],
    rounds: int,
    seconds: float,
    until: float,
) -> Iterator[Sample]:
    """Warm up; then each round runs every path of each workload, in rotated order.

    Starts no run after `until`, in the monotonic clock's seconds.
    """
    print("warming up", file=sys.stderr)
    for workload in workloads:
        for target in paths(running, workload):
            if time.monotonic() > until:
                return
            run_once(bed, running, target, workload, seconds=WARM_UP)
    for number in range(rounds):
        for workload in workloads:
            targets = paths(running, workload)
            turn = number % len(targets)
            for target in [*targets[turn:], *targets[:turn]]:
                if time.monotonic() > until:
                    return
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
            deadline=DEADLINES.get(target.name),
        )
    except BenchmarkError as error:
        raise BenchmarkError(
            f"{workload.name} through {target.name}: {error}{target.last_words()}{running.instance.tail()}"
        ) from error


def held(results: Results, aims: Sequence[Aim], names: Sequence[str]) -> tuple[list[str], bool]:
    """Hold the gateways that ran against the aims; also returns whether all are met.

    The first has a line for each. A further one has its count and what it misses, of what was measured.
    """
    first, *further = [name for name in HELD if name in names] or HELD[:1]
    lines, met = verdicts(results, aims, first)
    if first != HELD[0]:
        lines = [f"{first}, {line}" for line in lines]
    for name in further:
        binding = [aim for aim in aims if aim.binding]
        missed = [aim for aim in binding if not verdicts(results, [aim], name)[1]]
        lines.append(f"{name}: {len(binding) - len(missed)} of {len(binding)} met")
        known = [
            aim for aim in missed if results.ratio(aim.workload, name, aim.reference, aim.value) is not None
        ]
        lines += [f"{name}, {line}" for line in verdicts(results, known, name)[0]]
        met = met and not missed
    return lines, met


def table(protocol: str, records: Sequence[Record]) -> str:
    """Plain aligned text, to be pasted into README.md as it is."""
    shapes = {workload.name: workload.shape for workload in WORKLOADS if workload.protocol == protocol}
    mine = [
        {**record, "workload": shape}
        for record in records
        if (shape := shapes.get(str(record["workload"]))) is not None
    ]
    return f"{CODECS[protocol]}\n{aligned(['workload', 'path'], COLUMNS, mine)}"


def extras(protocol: str, results: Results, names: Sequence[str]) -> str:
    """What the gateway's variants cost beside it as it comes, a row for each workload; "" where none ran."""
    base, *variants = GATEWAYS
    values: tuple[Value, ...] = ("rate", "cpu", "p50")
    columns = [
        Column(f"{name.removeprefix(base)} {header}", f"{name} {value}")
        for name in variants
        if name in names and base in names
        for header, value in zip(("request/s", "CPU", "p50"), values, strict=True)
    ]
    rows: list[Record] = [
        {"workload": workload.shape}
        | {
            f"{name} {value}": results.ratio(workload.name, name, base, value)
            for name in variants
            for value in values
        }
        for workload in WORKLOADS
        if workload.protocol == protocol and results.values(workload.name, base, "rate")
    ]
    return f"{CODECS[protocol]}, x {base}\n{aligned(['workload'], columns, rows)}" if columns else ""


if __name__ == "__main__":
    sys.exit(main())
