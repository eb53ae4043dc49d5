"""What does it cost to be looked at, and how long does a scrape take? README.md holds method and figures.

python benchmarks/monitoring.py            ten rounds of each, about four minutes on an idle machine
python benchmarks/monitoring.py --quick    does everything still work?
python benchmarks/monitoring.py --only endpoints
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

import script
from load import WORKLOADS, Workload, run
from monitoring_testbed import Gateway, MonitoringTestbed
from peers import TCPGW
from processes import BenchmarkError, cpu_clock
from report import Column, Record, aligned
from scrapes import scraping, watching

QUESTIONS = LOAD, ENDPOINTS = "load", "endpoints"
# Nobody looks; somebody scrapes; somebody scrapes and pages listen.
QUIET, SCRAPED, WATCHED = VARIANTS = "quiet", "scraped", "scraped+pages"
PAGES = 8
KEPT = next(workload for workload in WORKLOADS if workload.name == "keepalive-50")
WARM_UP_REQUESTS = 20_000
# Seconds between scrapes: with ten rounds of 5 s they are 1,000, three hundred times as many as Prometheus'
# usual one in 15 s.
EVERY = 0.05
# The same where there are very many endpoints, and how long each run is: ten rounds of 5 scrapes.
EVERY_OF_MANY, MANY_SECONDS = 0.2, 1.0
MANY_ENDPOINTS = 1000
# Seconds between two questions of a client: fifty times as long as one takes, so that it always waits alone.
PING = 0.002
# By how much of itself the median rate may change, and seconds that any scrape of many endpoints may take.
AIM, LONGEST = 0.03, 0.1


class Run(NamedTuple):
    """Load on a gateway that is looked at, or not. Latency in ms, CPU in seconds.

    `worker` is for each request, `supervisor` for each second. `scrapes` took so many seconds each; `views`
    came to pages.
    """

    round: int
    variant: str
    amount: float
    rate: float
    p99: float
    seconds: float
    worker: float
    supervisor: float
    scrapes: Sequence[float]
    views: int


class Ping(NamedTuple):
    """How many seconds a client waited for each answer, and a scraper for each of its own."""

    round: int
    variant: str
    answers: Sequence[float]
    scrapes: Sequence[float]


def main() -> int:
    """Exit with 0; 1 where a process failed or, with --verify, an aim was missed; 2 for bad usage."""
    args = arguments()

    def work(folder: Path) -> int:
        bed = MonitoringTestbed.prepare(
            folder, cores=args.cores, log_connections=not args.no_log, endpoints=args.endpoints
        )
        if args.show_config:
            print(bed.configurations())
            return 0
        facts = bed.facts()
        runs = list(measure_load(bed, args)) if LOAD in args.only else []
        pings = list(measure_pings(bed, args)) if ENDPOINTS in args.only else []
        records = run_records(runs), ping_records(pings)
        outcomes = [verdict_of_load(runs)] * bool(runs) + [verdict_of_scrapes(pings)] * bool(pings)
        script.publish(
            facts,
            tables(*records, args.endpoints),
            [line for lines, _ in outcomes for line in lines],
            records=[*records[0], *records[1]],
            samples=[*runs, *pings],
            file=args.json,
        )
        return 1 if args.verify and not all(met for _, met in outcomes) else 0

    return script.run(work)


def arguments() -> argparse.Namespace:
    parser = script.parser(__doc__ or "", [TCPGW], rounds=10, seconds=5.0, quick=0.5)
    add = parser.add_argument
    add("--only", type=script.among(QUESTIONS), default=QUESTIONS, help=f"({','.join(QUESTIONS)})")
    add("--every", type=float, default=EVERY, help=f"seconds between scrapes under load ({EVERY})")
    add("--endpoints", type=int, default=MANY_ENDPOINTS, help=f"how many are many ({MANY_ENDPOINTS})")
    args = script.read(parser)
    if args.every <= 0 or args.endpoints < 1:
        parser.error("--every and --endpoints must be positive")
    return args


# ---- what is measured ----


def measure_load(bed: MonitoringTestbed, args: argparse.Namespace) -> Iterator[Run]:
    """Warm up, which also sizes the runs; then each round has every variant, back and forth."""
    with ExitStack() as ending:
        gateway = bed.start_loaded(ending)
        print("warming up", file=sys.stderr)
        requests = WARM_UP_REQUESTS if not args.quick else WARM_UP_REQUESTS // 10
        warm = load_once(bed, gateway, KEPT, requests, args)
        requests = max(requests, int(warm.rate * args.seconds))
        for number in range(args.rounds):
            for variant in VARIANTS[:: 1 if number % 2 == 0 else -1]:
                found = load_once(bed, gateway, KEPT, requests, args, number, variant)
                print(f"round {number + 1}: {variant} {found.rate:,.0f}/s", file=sys.stderr)
                yield found


def load_once(
    bed: MonitoringTestbed,
    gateway: Gateway,
    workload: Workload,
    requests: int,
    args: argparse.Namespace,
    number: int = 0,
    variant: str = QUIET,
) -> Run:
    """Raises BenchmarkError, with the gateway's last words, where load, a scrape or a page failed."""
    core = bed.cores.load
    scrapes: list[float] = []
    views: list[float] = []
    with ExitStack() as looking:
        if variant == WATCHED:
            views = looking.enter_context(watching(gateway.admin, PAGES, core))
        if variant != QUIET:
            scrapes = looking.enter_context(scraping(gateway.admin, args.every, core))
        began, worker, supervisor = (
            time.monotonic(),
            cpu_clock(gateway.worker),
            cpu_clock(gateway.supervisor),
        )
        try:
            load = run(workload, gateway.listener, requests=requests, seconds=args.seconds, core=core)
        except BenchmarkError as error:
            raise BenchmarkError(f"{variant}: {error}\nits log ends with:\n{gateway.child.tail()}") from error
        seconds = time.monotonic() - began
        worker, supervisor = (
            cpu_clock(gateway.worker) - worker,
            cpu_clock(gateway.supervisor) - supervisor,
        )
    return Run(
        number,
        variant,
        load.amount,
        load.rate,
        load.p99 or 0.0,
        seconds,
        worker / load.amount,
        supervisor / seconds,
        scrapes,
        len(views),
    )


def measure_pings(bed: MonitoringTestbed, args: argparse.Namespace) -> Iterator[Ping]:
    """Each round has a client ask while nobody scrapes and while somebody does, back and forth."""
    seconds = args.seconds if args.quick else MANY_SECONDS
    with ExitStack() as ending:
        gateway = bed.start_many(ending)
        for number in range(args.rounds):
            for variant in (QUIET, SCRAPED)[:: 1 if number % 2 == 0 else -1]:
                scrapes: list[float] = []
                with ExitStack() as looking:
                    if variant == SCRAPED:
                        scrapes = looking.enter_context(
                            scraping(gateway.admin, EVERY_OF_MANY, bed.cores.load)
                        )
                    answers = bed.ping(gateway, every=PING, seconds=seconds)
                longest = f"{max(answers) * 1e3:.1f} ms"
                print(f"round {number + 1}: {variant}, the longest answer {longest}", file=sys.stderr)
                yield Ping(number, variant, answers, scrapes)


# ---- what is reported ----


def run_records(runs: Sequence[Run]) -> list[Record]:
    """One flat record for each variant: medians, and changes from when nobody looks."""
    records: list[Record] = []
    for variant in dict.fromkeys(each.variant for each in runs):
        mine = [each for each in runs if each.variant == variant]
        rates = [each.rate for each in mine]
        records.append(
            {
                "variant": variant,
                "rate": median(rates),
                "least": min(rates),
                "most": max(rates),
                "change": change(runs, variant),
                "change_in_round": in_rounds(runs, variant, "rate"),
                "worker": median(each.worker for each in mine),
                "worker_change": in_rounds(runs, variant, "worker"),
                "supervisor": median(each.supervisor for each in mine),
                "views": float(sum(each.views for each in mine)),
                "p99": median(each.p99 for each in mine),
                **spread("scrape", [took for each in mine for took in each.scrapes]),
                "scrape_cpu": scrape_cpu(runs) if variant == SCRAPED else None,
            }
        )
    return records


def change(runs: Sequence[Run], variant: str) -> float | None:
    """By how much of itself the median rate differs from that of nobody looking."""
    rates = {
        name: [each.rate for each in runs if each.variant == name] for name in dict.fromkeys((QUIET, variant))
    }
    return median(rates[variant]) / median(rates[QUIET]) - 1 if all(rates.values()) else None


def in_rounds(runs: Sequence[Run], variant: str, what: str) -> float | None:
    """The median of the changes within a round, which a machine that drifts does not change."""
    base = {each.round: getattr(each, what) for each in runs if each.variant == QUIET}
    mine = [
        getattr(each, what) / base[each.round] - 1
        for each in runs
        if each.variant == variant and each.round in base
    ]
    return median(mine) if mine else None


def scrape_cpu(runs: Sequence[Run]) -> float | None:
    """What the supervisor took for a scrape, beside what it takes in any second; the median of rounds."""
    base = {each.round: each.supervisor for each in runs if each.variant == QUIET}
    found = [
        (each.supervisor - base[each.round]) * each.seconds / len(each.scrapes)
        for each in runs
        if each.variant == SCRAPED and each.scrapes and each.round in base
    ]
    return median(found) if found else None


def ping_records(pings: Sequence[Ping]) -> list[Record]:
    """One flat record for each variant, of all its rounds together."""
    records: list[Record] = []
    for variant in dict.fromkeys(each.variant for each in pings):
        mine = [each for each in pings if each.variant == variant]
        records.append(
            {
                "variant": variant,
                **spread("answer", [took for each in mine for took in each.answers]),
                **spread("scrape", [took for each in mine for took in each.scrapes]),
            }
        )
    return records


def spread(name: str, took: Sequence[float]) -> Record:
    """How many there were, and how long they took: median, 99th percentile, the longest."""
    return {
        name: float(len(took)),
        f"{name}_p50": median(took) if took else None,
        f"{name}_p99": quantiles(took, n=100, method="inclusive")[98] if len(took) > 1 else None,
        f"{name}_max": max(took, default=None),
    }


def spread_columns(name: str, header: str) -> list[Column]:
    return [
        Column(header, name, 0),
        *(Column(f"{of} ms" if of == "p50" else of, f"{name}_{of}", 2, 1e3) for of in ("p50", "p99", "max")),
    ]


def tables(runs: Sequence[Record], pings: Sequence[Record], endpoints: int) -> list[str]:
    """Plain aligned text, to be pasted into README.md as it is, of what was measured."""
    found = []
    if runs:
        columns = [
            Column("request/s", "rate", 0),
            Column("min", "least", 0),
            Column("max", "most", 0),
            Column("change", "change", 1, 100, "%"),
            Column("in a round", "change_in_round", 1, 100, "%"),
            Column("p99 ms", "p99"),
            Column("worker µs/request", "worker", 2, 1e6),
            Column("in a round", "worker_change", 1, 100, "%"),
            Column("supervisor ms/s", "supervisor", 1, 1e3),
            Column("ms/scrape", "scrape_cpu", 2, 1e3),
        ]
        title = f"{KEPT.title}, while somebody looks"
        found.append(f"{title} ({LOAD})\n{aligned(['variant'], columns, runs)}")
        columns = [*spread_columns("scrape", "scrapes"), Column("views", "views", 0)]
        found.append(
            f"scrapes under this load, and views that came to pages\n{aligned(['variant'], columns, runs)}"
        )
    if pings:
        columns = [*spread_columns("answer", "answers"), *spread_columns("scrape", "scrapes")]
        title = f"{endpoints:,} endpoints: a client's answers through the worker, and scrapes"
        found.append(f"{title} ({ENDPOINTS})\n{aligned(['variant'], columns, pings)}")
    return found


def verdict_of_load(runs: Sequence[Run]) -> tuple[list[str], bool]:
    """Hold the change of the median rate against the aim; with pages it is told."""
    scrapes = sum(len(each.scrapes) for each in runs if each.variant == SCRAPED)
    found, watched = change(runs, SCRAPED), change(runs, WATCHED)
    met = found is not None and abs(found) < AIM
    outcome = "not measured" if found is None else f"{found:+.1%}, {'met' if met else 'MISSED'}"
    lines = [f"{LOAD}: {scrapes:,} scrapes change the median rate by less than {AIM:.0%}: {outcome}"]
    if watched is not None:
        lines.append(f"{LOAD}: with {PAGES} pages as well (no aim): {watched:+.1%}")
    return lines, met


def verdict_of_scrapes(pings: Sequence[Ping]) -> tuple[list[str], bool]:
    """Hold the longest scrape against the aim."""
    took = [each for ping in pings for each in ping.scrapes]
    met = bool(took) and max(took) < LONGEST
    outcome = f"{max(took) * 1e3:.0f} ms, {'met' if met else 'MISSED'}" if took else "not measured"
    limit = f"the longest of {len(took)} scrapes under {LONGEST * 1e3:.0f} ms"
    return [f"{ENDPOINTS}: {limit}: {outcome}"], met


if __name__ == "__main__":
    sys.exit(main())
