"""How soon do clients see a reload, and how long do they wait when a worker dies? README.md holds the method.

python benchmarks/operations.py            ten repetitions, about five minutes on an otherwise idle machine
python benchmarks/operations.py --quick    does everything still work?
python benchmarks/operations.py --only death --peers tcpgw
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median
from typing import NamedTuple

import probe
import script
from operations_testbed import INSTANCES, LOAD_CONNECTIONS, MORTAL, PEERS, PROBE, OperationsTestbed, Target
from peers import TCPGW
from processes import BenchmarkError, kill
from report import Column, Record, aligned

QUESTIONS = RELOAD, DEATH = "reload", "death"
# Connections in a row, and seconds, after which the old configuration is taken to be gone. That 20 all meet
# the one of two workers that has the new one happens once in a million times. nginx has its old workers
# accept beside the new for 0.1 s, which they seldom do where they are busy.
IN_A_ROW, QUIET = 20, 0.3
# Seconds after which a reload that has not come about never will.
PATIENCE = 15.0
# Seconds that the load has to open its connections and to get going, before the reload.
RAMP = 0.5
# Seconds between the beginnings of connections around a death, and how long before and after it they begin.
EVERY, BEFORE, AFTER = 0.005, 0.3, 1.5
# Seconds that a worker has lived before it is killed. One that dies sooner may be part of a row of quick
# deaths, between which tcpgw pauses: another question.
LIVED = 11.0
# What clients may have to wait when a worker dies.
AIM = 0.3


class Reload(NamedTuple):
    """A reload: seconds until new connections reach only the new instance, and what the proxy says it took.

    Of the connections that were tried until then, `failed` reached nobody. `broken`: of those that were kept
    under load at least one was closed.
    """

    round: int
    path: str
    loaded: bool
    seconds: float
    said: float | None
    asked: int
    failed: int
    broken: bool


class Death(NamedTuple):
    """A worker's death: the longest that a connection waited for its answer, and the usual, in seconds.

    `said`: what the proxy says that the successor took, from its start. `failed` reached nobody.
    """

    round: int
    path: str
    seconds: float
    usual: float
    said: float | None
    asked: int
    failed: int


def main() -> int:
    """Exit with 0; 1 where a process failed or, with --verify, the aim was missed; 2 for bad usage."""
    args = arguments()

    def work(folder: Path) -> int:
        bed = OperationsTestbed.prepare([peer for peer in PEERS if peer.name in args.peers], folder)
        if args.show_config:
            print(bed.configurations())
            return 0
        facts = bed.environment({})
        with ExitStack() as ending:
            targets = bed.start(ending)
            repetitions = args.repetitions
            reloads = list(measure_reloads(bed, targets, repetitions)) if RELOAD in args.only else []
            deaths = list(measure_deaths(targets, repetitions, args.lived)) if DEATH in args.only else []
        records = reload_records(reloads), death_records(deaths)
        line, met = verdict(deaths)
        script.publish(
            facts,
            tables(*records),
            [line],
            records=list(chain(*records)),
            samples=[*reloads, *deaths],
            file=args.json,
        )
        return 1 if args.verify and not met else 0

    return script.run(work)


def arguments() -> argparse.Namespace:
    parser = script.basic_parser(__doc__ or "", PEERS, quick="one repetition")
    add = parser.add_argument
    add("--repetitions", type=int, default=10, help="reloads without and with load, and deaths, of each (10)")
    add("--only", type=script.among(QUESTIONS), default=QUESTIONS, help=f"({','.join(QUESTIONS)})")
    parser.set_defaults(lived=LIVED)
    args = parser.parse_args()
    if args.quick:
        args.repetitions, args.lived = 1, 0.0
    if args.repetitions < 1:
        parser.error("--repetitions must be positive")
    return args


# ---- what is measured ----


def measure_reloads(bed: OperationsTestbed, targets: Sequence[Target], repetitions: int) -> Iterator[Reload]:
    """Each repetition reloads every proxy without load, then with, in rotated order."""
    serving = dict.fromkeys((target.name for target in targets), INSTANCES[0])
    for number in range(repetitions):
        for loaded in (False, True):
            for target in rotated(targets, number):
                (wanted,) = (name for name in INSTANCES if name != serving[target.name])
                found = reload_once(bed, target, number, wanted, loaded=loaded)
                serving[target.name] = wanted
                how = "under load" if loaded else "at rest"
                progress(number, f"reload {how}", found)
                yield found


def reload_once(bed: OperationsTestbed, target: Target, number: int, wanted: str, *, loaded: bool) -> Reload:
    since = target.written()
    target.configure(wanted)
    with ExitStack() as ending:
        load = bed.start_load(ending, target) if loaded else None
        time.sleep(RAMP)
        began = time.monotonic()
        target.reload()
        tried = probe.attempts(target.address(PROBE), began)
        reached = probe.only(wanted, tried, in_a_row=IN_A_ROW, quiet=QUIET, patience=PATIENCE)
        broken = load is not None and load.process.poll() is not None
        if load is not None and broken:
            print(f"a connection under load through {target.name} broke: {load.tail()}", file=sys.stderr)
    said = target.rest(since, "reloaded")
    return Reload(number, target.name, loaded, reached.at, said, reached.asked, reached.failed, broken)


def measure_deaths(targets: Sequence[Target], repetitions: int, lived: float) -> Iterator[Death]:
    """Each repetition kills a worker of every proxy that can lose one, in rotated order."""
    mortal = [target for target in targets if target.name in MORTAL]
    for number in range(repetitions):
        for target in rotated(mortal, number):
            pid, age = target.oldest()
            time.sleep(max(0.0, lived - age))
            found = death_once(target, number, pid)
            progress(number, "death", found)
            yield found


def death_once(target: Target, number: int, pid: int) -> Death:
    since = target.written()
    address = target.address(PROBE)
    trying = probe.keep_trying(address, partial(kill, pid), every=EVERY, before=BEFORE, after=AFTER)
    tried = asyncio.run(trying)
    said = target.rest(since, "worker_ready")
    return death(number, target.name, tried, said)


def death(number: int, path: str, tried: Sequence[probe.Attempt], said: float | None) -> Death:
    """Sum up the connections around a death. Raises BenchmarkError where none was served."""
    served = [each.seconds for each in tried if each.name]
    if not served:
        raise BenchmarkError(f"{path}: none of {len(tried)} connections around a worker's death was served")
    return Death(number, path, max(served), median(served), said, len(tried), len(tried) - len(served))


def rotated(targets: Sequence[Target], number: int) -> list[Target]:
    turn = number % len(targets) if targets else 0
    return [*targets[turn:], *targets[:turn]]


def progress(number: int, what: str, found: Reload | Death) -> None:
    failed = f", {found.failed} of {found.asked} failed" if found.failed else ""
    print(f"{number + 1}: {what}: {found.path} {found.seconds * 1e3:.1f} ms{failed}", file=sys.stderr)


# ---- what is reported ----


def reload_records(reloads: Sequence[Reload]) -> list[Record]:
    """One flat record for each path, at rest and then under load."""
    records: list[Record] = []
    for loaded in (False, True):
        for path in dict.fromkeys(each.path for each in reloads):
            mine = [each for each in reloads if (each.path, each.loaded) == (path, loaded)]
            load = f"{LOAD_CONNECTIONS} kept" if loaded else "none"
            broken = float(sum(each.broken for each in mine)) if loaded else None
            records.append({"path": path, "load": load, "broken": broken, **times(mine)})
    return records


def death_records(deaths: Sequence[Death]) -> list[Record]:
    """One flat record for each path."""
    records: list[Record] = []
    for path in dict.fromkeys(each.path for each in deaths):
        mine = [each for each in deaths if each.path == path]
        records.append({"path": path, "usual": median(each.usual for each in mine), **times(mine)})
    return records


def times(found: Sequence[Reload] | Sequence[Death]) -> Record:
    said = [each.said for each in found if each.said is not None]
    return {
        "seconds": median(each.seconds for each in found),
        "most": max(each.seconds for each in found),
        "said": median(said) if said else None,
        "asked": float(sum(each.asked for each in found)),
        "failed": float(sum(each.failed for each in found)),
    }


def tables(reloads: Sequence[Record], deaths: Sequence[Record]) -> list[str]:
    """Plain aligned text, to be pasted into README.md as it is, of what was measured."""
    median_and_most = (Column("median ms", "seconds", 1, 1e3), Column("max", "most", 1, 1e3))
    said = Column("it says ms", "said", 1, 1e3)
    tried = (Column("connections", "asked", 0), Column("failed", "failed", 0))
    found = []
    if reloads:
        title = "from the signal until new connections reach only the new instance"
        columns = [*median_and_most, said, *tried, Column("broke kept ones", "broken", 0)]
        found.append(f"{title} (reload)\n{aligned(['path', 'load'], columns, reloads)}")
    if deaths:
        title = "the longest that a connection waits for its answer around a worker's death"
        columns = [*median_and_most, Column("usual", "usual", 1, 1e3), said, *tried]
        found.append(f"{title} (death)\n{aligned(['path'], columns, deaths)}")
    return found


def verdict(deaths: Sequence[Death]) -> tuple[str, bool]:
    """Hold the longest wait of all of tcpgw's repetitions against the aim."""
    waits = [each.seconds for each in deaths if each.path == TCPGW.name]
    met = bool(waits) and max(waits) < AIM
    found = f"{max(waits) * 1e3:.0f} ms, {'met' if met else 'MISSED'}" if waits else "not measured"
    return f"death: the longest wait through tcpgw under {AIM * 1e3:.0f} ms: {found}", met


if __name__ == "__main__":
    sys.exit(main())
