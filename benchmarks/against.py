"""What has a change cost? Another checkout of tcpgw beside this one, in the same rounds. README.md says more.

git worktree add /tmp/before COMMIT
python benchmarks/against.py /tmp/before    twenty rounds, about five minutes on an idle machine
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import quantiles

import load
import rpc
import rpc_load
import script
import stream
from peers import DIRECT, TCPGW, Peer, tcpgw_version
from report import Column, Record, Results, Sample, aligned
from rpc_testbed import RpcTestbed
from stream_testbed import StreamTestbed

BEFORE, AFTER = "before", TCPGW.name
STREAM = [workload for workload in load.WORKLOADS if workload.name in {"keepalive-50", "connect-50"}]
RPC = [
    workload for workload in rpc_load.WORKLOADS if workload.name in {"msgpack-64x50x1", "msgpack-64x50x16"}
]
WORKLOADS = [*(workload.name for workload in STREAM), *(workload.name for workload in RPC)]

COLUMNS = (
    Column("before: CPU µs/request", "before", 2, 1e6),
    Column("now", "after", 2, 1e6),
    Column("CPU x before", "cpu", 3),
    Column("middle half from", "low", 3),
    Column("to", "high", 3),
    Column("request/s x before", "rate", 3),
)


def before(checkout: Path) -> Peer:
    """The gateway of another checkout, given what this one's is given."""
    return replace(
        TCPGW,
        name=BEFORE,
        file=f"{BEFORE}.toml",
        version=partial(tcpgw_version, checkout=checkout),
        needs=checkout / "tcpgw" / "__main__.py",
        cwd=checkout,
    )


def main() -> int:
    """Exit with 0; 1 where a process failed; 2 for bad usage."""
    args = arguments()

    def work(folder: Path) -> int:
        stream_folder, rpc_folder = folder / "stream", folder / "rpc"
        stream_folder.mkdir()
        rpc_folder.mkdir()
        peers = [before(args.checkout), TCPGW]
        # Without lines for connections: an older one may not know how this one is told of them.
        streams = StreamTestbed.prepare(peers, stream_folder, cores=args.cores, log_connections=False)
        rpcs = RpcTestbed.prepare(peers, rpc_folder, cores=args.cores, log_connections=False)
        if args.show_config:
            print(streams.configurations(), rpcs.configurations(), sep="\n")
            return 0
        facts = streams.facts()
        samples = [*measure_stream(streams, args), *measure_rpc(rpcs, args)]
        records = summary(Results(samples), args.workloads)
        title = f"medians of {args.rounds} rounds, ratios within a round"
        script.publish(
            facts,
            [f"{title}\n{aligned(['workload'], COLUMNS, records)}"],
            ["none: what a change may cost is its own to say"],
            records=records,
            samples=samples,
            file=args.json,
        )
        return 0

    return script.run(work)


def arguments() -> argparse.Namespace:
    parser = script.parser(__doc__ or "", [TCPGW], rounds=20, seconds=1.5, quick=0.2)
    parser.add_argument("checkout", type=checkout, help="the folder of the other checkout")
    parser.add_argument(
        "--workloads", type=script.among(WORKLOADS), default=WORKLOADS, help=f"({','.join(WORKLOADS)})"
    )
    return script.read(parser)


def checkout(text: str) -> Path:
    """Raises ArgumentTypeError where there is no tcpgw in it."""
    path = Path(text).resolve()
    if not (path / "tcpgw" / "__main__.py").is_file():
        raise argparse.ArgumentTypeError(f"{path} is no checkout of tcpgw: git worktree add makes one")
    return path


def measure_stream(bed: StreamTestbed, args: argparse.Namespace) -> Iterator[Sample]:
    workloads = [workload for workload in STREAM if workload.name in args.workloads]
    if not workloads:
        return
    with ExitStack() as ending:
        running = bed.start(ending, bulk=False)
        both = [target for target in running.targets if target.name != DIRECT]
        yield from stream.measure(bed, running._replace(targets=both), workloads, args.rounds, args.seconds)


def measure_rpc(bed: RpcTestbed, args: argparse.Namespace) -> Iterator[Sample]:
    """As `rpc.measure`, of two paths that are none of its own."""
    workloads = [workload for workload in RPC if workload.name in args.workloads]
    if not workloads:
        return
    with ExitStack() as ending:
        running = bed.start(ending)
        both = [target for target in running.targets if target.name != DIRECT]
        for workload in workloads:
            for target in both:
                rpc.run_once(bed, running, target, workload, seconds=rpc.WARM_UP)
        for number in range(args.rounds):
            for workload in workloads:
                for target in both[:: 1 if number % 2 == 0 else -1]:
                    found = rpc.run_once(bed, running, target, workload, seconds=args.seconds)
                    print(
                        f"round {number + 1}: {workload.name} {target.name} {found.rate:,.0f}/s",
                        file=sys.stderr,
                    )
                    yield Sample(number, workload.name, target.name, **found._asdict())


def summary(results: Results, workloads: Sequence[str]) -> list[Record]:
    """One flat record for each workload; `low` to `high` is the middle half of the rounds' ratios."""
    return [
        {
            "workload": name,
            "before": results.median(name, BEFORE, "cpu"),
            "after": results.median(name, AFTER, "cpu"),
            "cpu": results.ratio(name, AFTER, BEFORE, "cpu"),
            "rate": results.ratio(name, AFTER, BEFORE),
            **middle_half(results, name),
        }
        for name in workloads
    ]


def middle_half(results: Results, name: str) -> Record:
    base, mine = (results.values(name, path, "cpu") for path in (BEFORE, AFTER))
    ratios = [mine[number] / base[number] for number in mine if base.get(number)]
    low, _, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else (None, None, None)
    return {"low": low, "high": high}


if __name__ == "__main__":
    sys.exit(main())
