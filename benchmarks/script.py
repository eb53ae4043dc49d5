"""What the scripts have in common: arguments, an end that cleans up, and printing."""

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from peers import Peer
from processes import BenchmarkError, adopt_orphans, end_descendants
from report import Record
from testbed import Cores


def parser(
    doc: str, peers: Sequence[Peer], *, rounds: int, seconds: float, quick: float, cores: str = "0,1"
) -> argparse.ArgumentParser:
    """Make a parser of the options that every comparison of rates has. `quick` is what --quick runs for."""
    made = basic_parser(doc, peers, quick=f"one round of {quick} s runs")
    made.set_defaults(quick_seconds=quick)
    add = made.add_argument
    add("--rounds", type=int, default=rounds, help=f"each round runs every path once per workload ({rounds})")
    add("--seconds", type=float, default=seconds, help=f"length of one run ({seconds})")
    where = f"cores to pin to, or none ({cores})"
    add("--cores", type=read_cores, default=cores, metavar="LOAD,PROXY", help=where)
    add("--no-log", action="store_true", help="turn every proxy's access log off")
    return made


def basic_parser(doc: str, peers: Sequence[Peer], *, quick: str) -> argparse.ArgumentParser:
    """Make a parser of the options that every script with peers has. `quick` says what --quick does."""
    names = [peer.name for peer in peers]
    made = argparse.ArgumentParser(description=doc.partition("\n")[0])
    add = made.add_argument
    add("--quick", action="store_true", help=f"{quick}: a smoke test, not figures")
    add("--peers", type=among(names), default=names, help=f"what is measured ({','.join(names)})")
    add("--show-config", action="store_true", help="print every proxy's configuration and stop")
    add("--json", type=Path, metavar="FILE", help="write samples and summary to a file as well")
    add("--verify", action="store_true", help="exit with 1 where tcpgw misses an aim")
    return made


def read(parser: argparse.ArgumentParser) -> argparse.Namespace:
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.seconds = 1, args.quick_seconds
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


def read_cores(text: str) -> Cores:
    """Read `0,1` or `none`. Raises ArgumentTypeError where this process may not use such a core."""
    if text == "none":
        return Cores(None, None)
    usable = sorted(os.sched_getaffinity(0))
    load, _, proxy = text.partition(",")
    if not {load, proxy} <= set(map(str, usable)):
        raise argparse.ArgumentTypeError(f"{text!r}: give LOAD,PROXY, each one of {usable}, or none")
    return Cores(int(load), int(proxy))


def run(work: Callable[[Path], int]) -> int:
    """Call `work` with a temporary folder. Returns its exit code; 1 where a process failed, 130 on Ctrl-C.

    Nothing that was started is left then, not even what lost its parent on the way.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):  # all ways of being ended clean up alike
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's wish
            signal.signal(number, signal.default_int_handler)
    adopt_orphans()
    try:
        with tempfile.TemporaryDirectory(prefix="tcpgw-benchmark-") as folder:
            return work(Path(folder))
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        end_descendants()


class Measured(Protocol):
    """A named tuple of any script."""

    def _asdict(self) -> dict[str, Any]: ...


def publish(
    facts: Mapping[str, str],
    tables: Iterable[str],
    aims: Iterable[str],
    *,
    records: Sequence[Record],
    samples: Sequence[Measured],
    file: Path | None,
) -> None:
    """Print a report, to be pasted into README.md as it is, and write it with all samples to a file."""
    print("\n".join(f"{name}: {value}" for name, value in facts.items()))
    print(*(f"\n{table}" for table in tables), sep="\n")
    print("\naims", *aims, sep="\n  ")
    if file:
        raw = [sample._asdict() for sample in samples]
        file.write_text(json.dumps({"facts": facts, "summary": records, "samples": raw}, indent=1) + "\n")
