"""How many clients meet an instance that has died, and for how long? README.md holds method and figures.

python benchmarks/health.py            five deaths of each kind, about four minutes
python benchmarks/health.py --quick    does everything still work?
"""

import argparse
import asyncio
import json
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, Protocol

import probe
import script
from peers import ENVOY, HAPROXY, TCPGW, Address, Forward, Peer, Plan, envoy_address, tcpgw_gateway
from probe import Attempt
from processes import Child, free_ports
from report import Column, Record, aligned
from testbed import Cores, Testbed, installed

WORKERS = 2
INSTANCES = ("A", "B", "C")
VICTIM = "C"
DEATHS = ("refused", "black hole")
# Seconds between two connections through each proxy, before and after the death.
EVERY, BEFORE, AFTER = 0.02, 0.5, 12.0
# Seconds that a proxy has to find its instances healthy.
SETTLE = 5.0
# Seconds after which an answer is no failure but late: far above what any takes, and half a connect time-out.
LATE = 0.5
# Connections that the victim's queue holds; once it has them, the kernel drops every SYN.
BACKLOG = 16


# ---- what each proxy is given ----


def haproxy(plan: Plan, tries: int) -> str:
    """`redispatch 1`: a retry goes to another server, at once."""
    servers = "".join(f"    server {each.name} {each.instance}\n" for each in plan.forwards)
    retries = f"retries {tries - 1}\n    option redispatch 1" if tries > 1 else "retries 0"
    return f"""global
    nbthread {plan.workers}
defaults
    mode tcp
    timeout connect 1s
    timeout check 1s
    timeout client 1h
    timeout server 1h
    {retries}
listen probe
    bind {plan.forwards[0].listener}
    balance roundrobin
    default-server check inter 2s fastinter 500ms fall 3 rise 2
    default-server observe layer4 error-limit 5 on-error mark-down
{servers}"""


def envoy(plan: Plan, tries: int) -> str:
    types = "type.googleapis.com/envoy.extensions"
    proxy = {
        "@type": f"{types}.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "probe",
        "cluster": "probe",
        "max_connect_attempts": tries,
    }
    filters = [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]
    listener = {
        "name": "probe",
        "address": envoy_address(plan.forwards[0].listener),
        "filter_chains": [{"filters": filters}],
    }
    endpoints = [{"endpoint": {"address": envoy_address(each.instance)}} for each in plan.forwards]
    check = {
        "timeout": "1s",
        "interval": "2s",
        "no_traffic_interval": "2s",
        "unhealthy_edge_interval": "0.5s",
        "unhealthy_threshold": 3,
        "healthy_threshold": 2,
        "tcp_health_check": {},
    }
    cluster: dict[str, Any] = {
        "name": "probe",
        "type": "STATIC",
        "connect_timeout": "1s",
        "lb_policy": "ROUND_ROBIN",
        "load_assignment": {"cluster_name": "probe", "endpoints": [{"lb_endpoints": endpoints}]},
        "health_checks": [check],
        "outlier_detection": {"consecutive_5xx": 5, "base_ejection_time": "30s", "max_ejection_percent": 50},
    }
    return json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}}, indent=1)


def tcpgw(plan: Plan, tries: int) -> str:
    """Checks and ejection are as they come: every 2 s (0.5 s once one failed), 3 failures; 5 in a row."""
    endpoints = json.dumps([str(each.instance) for each in plan.forwards])
    return (
        tcpgw_gateway(replace(plan, log_connections=False))
        + f"""[[service]]
name = "probe"
discovery = {{ type = "static", endpoints = {endpoints} }}
balance = {{ policy = "round_robin" }}
connect = {{ timeout = "1s", candidates = {tries} }}
[[listener]]
name = "probe"
bind = "{plan.forwards[0].listener}"
route = "probe"
"""
    )


class Configure(Protocol):
    """Makes a peer's configuration, with so many tries for a connection."""

    def __call__(self, plan: Plan, tries: int) -> str: ...


def variants(peer: Peer, configure: Configure) -> Iterator[Peer]:
    """With one try for a connection, and with up to three."""
    stem, _, suffix = peer.file.rpartition(".")
    for name, tries in ((peer.name, 1), (f"{peer.name}+retries", 3)):
        file = f"{stem}-{tries}.{suffix}"
        yield replace(peer, name=name, file=file, configure=partial(configure, tries=tries))


PEERS = (*variants(HAPROXY, haproxy), *variants(ENVOY, envoy), *variants(TCPGW, tcpgw))


# ---- what runs ----


@dataclass(frozen=True)
class HealthTestbed(Testbed):
    instances: Mapping[str, Address]

    @classmethod
    def prepare(cls, peers: Sequence[Peer], folder: Path) -> "HealthTestbed":
        """Choose ports, write configurations."""
        found, left_out = installed(peers)
        ports = iter(free_ports(len(INSTANCES) + len(found)))
        instances = {name: Address("127.0.0.1", next(ports)) for name in INSTANCES}

        def forwards(_: Peer) -> Sequence[Forward]:
            listener = Address("127.0.0.1", next(ports))
            return [Forward(name, listener, address) for name, address in instances.items()]

        proxies = cls.configure(found, forwards, folder, log_connections=False, workers=WORKERS)
        return cls(folder, Cores(None, None), proxies, left_out, instances)

    def start(self, ending: ExitStack) -> tuple[Child, Mapping[str, Address]]:
        """Start everything; returns the victim and where each proxy is, once all have found it healthy."""
        children = {}
        for name, address in self.instances.items():
            command = [sys.executable, str(Path(__file__).with_name("named_instance.py"))]
            command += ["--backlog", str(BACKLOG), name, *map(str, address)]
            children[name] = self.start_child(ending, f"instance-{name}", command, None)
            children[name].wait_until(partial(answers, address))
        listeners = {}
        for proxy in self.proxies:
            listeners[proxy.peer.name] = proxy.plan.forwards[0].listener
            child = self.start_proxy(ending, proxy)
            child.wait_until(partial(answers, listeners[proxy.peer.name]))
        return children[VICTIM], listeners


def answers(address: Address) -> bool:
    return bool(probe.ask(address))


def die(death: str, victim: Child, address: Address, ending: ExitStack) -> None:
    """Have it gone, so that the kernel refuses; or so stuck that no SYN is answered any more."""
    if death == "refused":
        victim.process.kill()
        return
    victim.process.send_signal(signal.SIGSTOP)
    ending.callback(victim.process.kill)  # it would not hear anything else
    for _ in range(2 * BACKLOG):
        filling = ending.enter_context(socket.socket())
        filling.setblocking(False)
        filling.connect_ex(address)


# ---- what is measured ----


class Seen(NamedTuple):
    """What clients of one proxy saw of one death. `last` is when the last that failed or was late began.

    In seconds after the death, 0 where none did. `late` were answered, but after half a second or more;
    `longest` is the longest that anybody who was answered waited.
    """

    death: str
    path: str
    connections: int
    failed: int
    last_failed: float
    late: int
    last_late: float
    longest: float


def seen(death: str, path: str, tried: Sequence[Attempt]) -> Seen:
    """Of those that were begun before the death, only what was under way then can have failed."""
    failed = [each.at for each in tried if not each.name]
    served = [each for each in tried if each.name]
    late = [each.at for each in served if each.seconds >= LATE]
    return Seen(
        death,
        path,
        len(tried),
        len(failed),
        max(failed, default=0.0),
        len(late),
        max(late, default=0.0),
        max((each.seconds for each in served), default=0.0),
    )


def measure(
    bed: HealthTestbed, deaths: Sequence[str], repetitions: int, *, settle: float, after: float
) -> Iterator[Seen]:
    """In each repetition all proxies meet the same death of the same instance."""
    for number in range(repetitions):
        for death in deaths:
            with ExitStack() as ending:
                victim, listeners = bed.start(ending)
                time.sleep(settle)
                act = partial(die, death, victim, bed.instances[VICTIM], ending)
                for path, tried in asyncio.run(through_all(listeners, act, after)).items():
                    found = seen(death, path, tried)
                    print(f"repetition {number + 1}: {found}", file=sys.stderr)
                    yield found


async def through_all(
    listeners: Mapping[str, Address], act: Callable[[], None], after: float
) -> Mapping[str, Sequence[Attempt]]:
    """The last of them to come to it acts, a moment after the others' clocks began."""
    acts = [lambda: None] * (len(listeners) - 1) + [act]
    tried = await asyncio.gather(
        *(
            probe.keep_trying(address, acting, every=EVERY, before=BEFORE, after=after)
            for address, acting in zip(listeners.values(), acts, strict=True)
        )
    )
    return dict(zip(listeners, tried, strict=True))


# ---- what is reported ----


def records(samples: Sequence[Seen]) -> list[Record]:
    """A row for each death and path: medians over the repetitions, and the worst."""
    found: list[Record] = []
    for death, path in dict.fromkeys((each.death, each.path) for each in samples):
        mine = [each for each in samples if (each.death, each.path) == (death, path)]
        found.append(
            {
                "death": death,
                "path": path,
                "connections": float(sum(each.connections for each in mine)),
                "failed": float(median(each.failed for each in mine)),
                "failed_most": float(max(each.failed for each in mine)),
                "last_failed": median(each.last_failed for each in mine),
                "last_failed_most": max(each.last_failed for each in mine),
                "late": float(median(each.late for each in mine)),
                "last_late": median(each.last_late for each in mine),
                "longest": max(each.longest for each in mine),
            }
        )
    return found


COLUMNS = (
    Column("failed", "failed", 0),
    Column("max", "failed_most", 0),
    Column("last after s", "last_failed"),
    Column("max", "last_failed_most"),
    Column("late", "late", 0),
    Column("last after s", "last_late"),
    Column("longest s", "longest"),
    Column("connections", "connections", 0),
)


def main() -> int:
    """Exit with 0; 1 where a process failed; 2 for bad usage."""
    args = arguments()

    def work(folder: Path) -> int:
        bed = HealthTestbed.prepare([peer for peer in PEERS if peer.name in args.peers], folder)
        if args.show_config:
            print(bed.configurations())
            return 0
        facts = bed.environment({})
        samples = list(measure(bed, args.deaths, args.repetitions, settle=args.settle, after=args.after))
        table = aligned(["death", "path"], COLUMNS, records(samples))
        title = (
            f"clients that meet a dead instance of {len(INSTANCES)}, one connection each {EVERY * 1e3:g} ms"
        )
        script.publish(
            facts,
            [f"{title}\n{table}"],
            ["none: told beside the peers'"],
            records=records(samples),
            samples=samples,
            file=args.json,
        )
        return 0

    return script.run(work)


def arguments() -> argparse.Namespace:
    parser = script.basic_parser(__doc__ or "", PEERS, quick="one short death of each kind")
    add = parser.add_argument
    add("--repetitions", type=int, default=5, help="deaths of each kind (5)")
    add("--deaths", type=script.among(DEATHS), default=DEATHS, help=f"({','.join(DEATHS)})")
    parser.set_defaults(settle=SETTLE, after=AFTER)
    args = parser.parse_args()
    if args.quick:
        args.repetitions, args.settle, args.after = 1, 1.0, 1.0
    if args.repetitions < 1:
        parser.error("--repetitions must be positive")
    return args


if __name__ == "__main__":
    sys.exit(main())
