"""What does the stream plane cost beside its peers? README.md holds the method and the figures.

python benchmarks/stream.py            five rounds, about six minutes on an otherwise idle machine
python benchmarks/stream.py --quick    does everything still work?
"""

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import script
from load import WORKLOADS, Load, Workload, run
from peers import PEERS
from processes import BenchmarkError, find
from report import AIMS, Aim, Results, Sample, summary, table, verdicts
from stream_testbed import Running, StreamTestbed, Target

# Enough to open every connection and to learn the rate; what is cold at first (caches, lazy imports, tables
# that grow) belongs to no round.
WARM_UP_REQUESTS = 4000
# After the load ends, until a proxy has closed and logged its last connections: CPU time that the run caused.
SETTLE = 0.1


def main() -> int:
    """Exit with 0; 1 where a process failed or, with --verify, an aim was missed; 2 for bad usage."""
    return compare(arguments(__doc__ or "", WORKLOADS), WORKLOADS, AIMS, workers=1)


def arguments(doc: str, workloads: Sequence[Workload], *, cores: str = "0,1") -> argparse.Namespace:
    names = [workload.name for workload in workloads]
    # iperf3 runs for whole seconds.
    parser = script.parser(doc, PEERS, rounds=5, seconds=2.5, quick=0.5, cores=cores)
    parser.add_argument("--workloads", type=script.among(names), default=names, help=f"({','.join(names)})")
    return script.read(parser)


def compare(
    args: argparse.Namespace, workloads: Sequence[Workload], aims: Sequence[Aim], *, workers: int
) -> int:
    """Measure what was chosen of `workloads`, each proxy with so many workers. Returns the exit code."""

    def work(folder: Path) -> int:
        peers = [peer for peer in PEERS if peer.name in args.peers]
        bed = StreamTestbed.prepare(
            peers, folder, cores=args.cores, log_connections=not args.no_log, workers=workers
        )
        if args.show_config:
            print(bed.configurations())
            return 0
        return measure_and_report(bed, args, [w for w in workloads if w.name in args.workloads], aims)

    return script.run(work)


def measure_and_report(
    bed: StreamTestbed, args: argparse.Namespace, workloads: Sequence[Workload], aims: Sequence[Aim]
) -> int:
    if find("iperf3") is None:
        workloads = [workload for workload in workloads if not workload.bulk]
    facts = bed.facts()
    with ExitStack() as ending:
        running = bed.start(ending, bulk=any(workload.bulk for workload in workloads))
        samples = list(measure(bed, running, workloads, args.rounds, args.seconds))
    if not args.no_log and any(not workload.keep_alive for workload in workloads):
        facts["access log"] = logged(bed.logged(), workloads, samples)
    results = Results(samples)
    records = summary(results, workloads, [target.name for target in running.targets])
    lines, met = verdicts(results, aims)
    tables = [table(workload, records) for workload in workloads]
    script.publish(facts, tables, lines, records=records, samples=samples, file=args.json)
    return 1 if args.verify and not met else 0


def measure(
    bed: StreamTestbed, running: Running, workloads: Sequence[Workload], rounds: int, seconds: float
) -> Iterator[Sample]:
    """Warm up, which also sizes the runs; then each round runs every path, in rotated order, per workload."""
    requests = {}
    print("warming up", file=sys.stderr)
    for workload in workloads:
        core = bed.place(running.redis, lone=workload.lone)
        for target in running.targets:
            load = run_once(target, workload, requests=WARM_UP_REQUESTS, seconds=min(1, seconds), core=core)
            # Equal time for each path is a better sample of it than equal work.
            requests[workload, target] = max(WARM_UP_REQUESTS, int(load.rate * seconds))
    for number in range(rounds):
        turn = number % len(running.targets)
        for workload in workloads:
            core = bed.place(running.redis, lone=workload.lone)
            for target in [*running.targets[turn:], *running.targets[:turn]]:
                before = target.cpu_seconds()
                load = run_once(
                    target, workload, requests=requests[workload, target], seconds=seconds, core=core
                )
                time.sleep(SETTLE)
                cpu = (target.cpu_seconds() - before) / load.amount if target.proxy else None
                print(
                    f"round {number + 1}: {workload.name} {target.name} {load.rate:,.2f}/s", file=sys.stderr
                )
                yield Sample(number, workload.name, target.name, cpu=cpu, **load._asdict())


def run_once(target: Target, workload: Workload, *, requests: int, seconds: float, core: int | None) -> Load:
    """Load a path. Raises BenchmarkError, with the proxy's last words, when that fails."""
    try:
        return run(workload, target.address(workload), requests=requests, seconds=seconds, core=core)
    except BenchmarkError as error:
        last_words = f"\nits log ends with:\n{target.proxy.tail()}" if target.proxy else ""
        raise BenchmarkError(f"{workload.name} through {target.name}: {error}{last_words}") from error


def logged(lines: Mapping[str, int], workloads: Sequence[Workload], samples: Sequence[Sample]) -> str:
    """Compare log lines with connections: a proxy that drops lines would win by it."""
    connecting = [workload.name for workload in workloads if not workload.keep_alive]
    opened = {
        path: WARM_UP_REQUESTS * len(connecting)
        + sum(int(s.amount) for s in samples if s.path == path and s.workload in connecting)
        for path in lines
    }
    return ", ".join(
        f"{path} {lines[path]:,} lines for over {opened[path]:,} connections"
        + ("" if lines[path] > opened[path] else " (LINES MISSING: unfair)")
        for path in lines
    )


if __name__ == "__main__":
    sys.exit(main())
