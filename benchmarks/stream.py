"""What does the stream plane cost beside its peers? README.md holds the method and the figures.

python benchmarks/stream.py            five rounds, about six minutes on an otherwise idle machine
python benchmarks/stream.py --quick    does everything still work?
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from load import WORKLOADS, Load, Workload, run
from peers import PEERS
from processes import BenchmarkError, find
from report import Results, Sample, summary, table, verdicts
from testbed import Cores, Running, Target, Testbed

# Enough to open every connection and to learn the rate; what is cold at first (caches, lazy imports, tables
# that grow) belongs to no round.
WARM_UP_REQUESTS = 4000
# After the load ends, until a proxy has closed and logged its last connections: CPU time that the run caused.
SETTLE = 0.1


def main() -> int:
    """Exit with 0; 1 where a process failed or, with --verify, an aim was missed; 2 for bad usage."""
    args = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # both ways of being ended clean up alike
    try:
        with tempfile.TemporaryDirectory(prefix="tcpgw-stream-") as folder:
            peers = [peer for peer in PEERS if peer.name in args.peers]
            bed = Testbed.prepare(peers, Path(folder), cores=args.cores, log_connections=not args.no_log)
            if args.show_config:
                print(bed.configurations())
                return 0
            return measure_and_report(bed, args)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def arguments() -> argparse.Namespace:
    peers = [peer.name for peer in PEERS]
    workloads = [workload.name for workload in WORKLOADS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="each round runs every path once per workload (5)")
    add("--seconds", type=float, default=2.5, help="length of one run; iperf3 takes whole seconds (2.5)")
    add("--quick", action="store_true", help="one round of half-second runs: a smoke test, not figures")
    add("--peers", type=among(peers), default=peers, help=f"proxies beside direct ({','.join(peers)})")
    add("--workloads", type=among(workloads), default=workloads, help=f"({','.join(workloads)})")
    add("--cores", type=cores, default="0,1", metavar="LOAD,PROXY", help="cores to pin to, or none (0,1)")
    add("--no-log", action="store_true", help="turn every proxy's access log off")
    add("--show-config", action="store_true", help="print every proxy's configuration and stop")
    add("--json", type=Path, metavar="FILE", help="write samples and summary to a file as well")
    add("--verify", action="store_true", help="exit with 1 where tcpgw misses an aim")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.seconds = 1, 0.5
    if args.rounds < 1 or args.seconds <= 0:
        parser.error("--rounds and --seconds must be positive")
    return args


def among(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Make a reader of comma-separated names, which raises ArgumentTypeError for an unknown one."""

    def read(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := [name for name in chosen if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose among {', '.join(known)}")
        return chosen

    return read


def cores(text: str) -> Cores:
    """Read `0,1` or `none`. Raises ArgumentTypeError where this process may not use such a core."""
    if text == "none":
        return Cores(None, None)
    usable = sorted(os.sched_getaffinity(0))
    load, _, proxy = text.partition(",")
    if not {load, proxy} <= set(map(str, usable)):
        raise argparse.ArgumentTypeError(f"{text!r}: give LOAD,PROXY, each one of {usable}, or none")
    return Cores(int(load), int(proxy))


def measure_and_report(bed: Testbed, args: argparse.Namespace) -> int:
    workloads = [workload for workload in WORKLOADS if workload.name in args.workloads]
    left_out = list(bed.left_out)
    if find("iperf3") is None:
        workloads = [workload for workload in workloads if not workload.bulk]
        left_out.append("bulk: iperf3 not found (Debian package iperf3)")
    facts = bed.environment()
    facts["left out"] = "; ".join(left_out) or "nothing"
    with ExitStack() as ending:
        running = bed.start(ending, bulk=any(workload.bulk for workload in workloads))
        samples = list(measure(bed, running, workloads, args.rounds, args.seconds))
    if not args.no_log and any(not workload.keep_alive for workload in workloads):
        facts["access log"] = logged(bed.logged(), workloads, samples)
    results = Results(samples)
    records = summary(results, workloads, [target.name for target in running.targets])
    aims, met = verdicts(results)
    print("\n".join(f"{name}: {value}" for name, value in facts.items()))
    print(*(f"\n{table(workload, records)}" for workload in workloads), sep="\n")
    print("\naims", *aims, sep="\n  ")
    if args.json:
        raw = [sample._asdict() for sample in samples]
        args.json.write_text(
            json.dumps({"facts": facts, "summary": records, "samples": raw}, indent=1) + "\n"
        )
    return 1 if args.verify and not met else 0


def measure(
    bed: Testbed, running: Running, workloads: Sequence[Workload], rounds: int, seconds: float
) -> Iterator[Sample]:
    """Warm up, which also sizes the runs; then each round runs every path, in rotated order, per workload."""
    requests = {}
    print("warming up", file=sys.stderr)
    for workload in workloads:
        core = bed.place(workload, running.redis)
        for target in running.targets:
            load = run_once(target, workload, requests=WARM_UP_REQUESTS, seconds=min(1, seconds), core=core)
            # Equal time for each path is a better sample of it than equal work.
            requests[workload, target] = max(WARM_UP_REQUESTS, int(load.rate * seconds))
    for number in range(rounds):
        turn = number % len(running.targets)
        for workload in workloads:
            core = bed.place(workload, running.redis)
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
