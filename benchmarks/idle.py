"""How much memory does a connection take that waits? README.md holds the method and the figures.

python benchmarks/idle.py            three rounds, about five minutes on an otherwise idle machine
python benchmarks/idle.py --quick    does everything still work?
"""

import argparse
import resource
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import rpc_load
import script
from peers import PEERS, TCPGW, Address, Forward, Peer
from processes import START_TIMEOUT, BenchmarkError, Child, free_ports
from report import Aim, Column, Record, aligned
from testbed import Cores, Proxy, Testbed, installed

WORKERS = 2
COUNTS, QUICK = (1000, 4000), (20, 80)
# Seconds until a reading, in which a proxy frees what only setting up took.
SETTLE = 2.0
# Connections opened before it is awaited that the proxy has them: less than any backlog.
WAVE = 100
# Connections that come and go before anything is read, so many that each worker has had some.
FIRST = 20
# Open files of a process beside its connections' two each.
SPARE = 500

RPC = "tcpgw-rpc"
PATHS = (*PEERS, replace(TCPGW, name=RPC, file="tcpgw-rpc.toml"))
CODEC = "msgpack-rpc"
# What rpc_instance echoes: request 1, a byte. Whoever only relays bytes relays these.
REQUEST = b"\0\0\0\x0c\x94\0\1\xa4echo\x91\xc4\1?"


class Reading(NamedTuple):
    """A proxy's memory in bytes, and its open files, at each count of connections, the first being none.

    `spoke`: each connection has had a request and its answer; otherwise it has never sent anything.
    """

    round: int
    path: str
    spoke: bool
    counts: Sequence[int]
    memory: Sequence[int]
    files: Sequence[int]

    def bytes_each(self) -> float:
        """Bytes that a further connection takes, once there are as many as the first count."""
        return self._slope(self.memory)

    def files_each(self) -> float:
        return self._slope(self.files)

    def _slope(self, values: Sequence[int]) -> float:
        return (values[-1] - values[1]) / (self.counts[-1] - self.counts[1])


def main() -> int:
    """Exit with 0; 1 where a process failed or, with --verify, an aim was missed; 2 for bad usage."""
    args = arguments()

    def work(folder: Path) -> int:
        files = raise_open_files(args.counts[-1])
        peers = [peer for peer in PATHS if peer.name in args.peers]
        bed = IdleTestbed.prepare(peers, folder, connections=args.counts[-1])
        if args.show_config:
            print(bed.configurations())
            return 0
        facts = {**bed.environment({}), "open files": f"{files:,} for each process (ulimit -n)"}
        readings = list(measure(bed, args.counts, args.rounds, args.settle))
        names = [proxy.peer.name for proxy in bed.proxies]
        records = summary(readings, names)
        lines, met = verdicts(readings, names)
        tables = [table(records, args.counts)]
        script.publish(facts, tables, lines, records=records, samples=readings, file=args.json)
        return 1 if args.verify and not met else 0

    return script.run(work)


def arguments() -> argparse.Namespace:
    parser = script.basic_parser(__doc__ or "", PATHS, quick=f"one round of {QUICK[-1]} connections")
    parser.add_argument("--rounds", type=int, default=3, help="each round runs every path twice (3)")
    parser.set_defaults(counts=COUNTS, settle=SETTLE)
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.counts, args.settle = 1, QUICK, 0.1
    if args.rounds < 1:
        parser.error("--rounds must be positive")
    return args


def raise_open_files(connections: int) -> int:
    """Raise this process's limit of open files, which all that it starts inherit, and return it.

    Raises BenchmarkError where that is too low: HAProxy and Envoy have all connections in one process.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * connections + SPARE
    if hard < needed:
        raise BenchmarkError(
            f"{connections:,} connections take {needed:,} open files: raise ulimit -Hn, {hard:,}"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


# ---- what runs ----


@dataclass(frozen=True)
class IdleTestbed(Testbed):
    """An instance for each proxy: no two of them meet each other's closed connections, as in stream.py."""

    instance_program: Path

    @classmethod
    def prepare(cls, peers: Sequence[Peer], folder: Path, *, connections: int) -> "IdleTestbed":
        """Compile, choose ports, write configurations. Raises BenchmarkError without a C compiler."""
        program = rpc_load.build("rpc_instance", folder)
        found, left_out = installed(peers)
        ports = iter(free_ports(2 * len(found)))

        def forwards(peer: Peer) -> Sequence[Forward]:
            listener, instance = (Address("127.0.0.1", next(ports)) for _ in range(2))
            return [Forward("idle", listener, instance, CODEC if peer.name == RPC else "")]

        proxies = cls.configure(
            found, forwards, folder, log_connections=True, workers=WORKERS, connections=connections + WAVE
        )
        return cls(folder, Cores(None, None), proxies, left_out, program)

    def start(self, ending: ExitStack, proxy: Proxy) -> Child:
        """Start one path, and wait until it answers: what first connections leave belongs to the base."""
        (forward,) = proxy.plan.forwards
        command = [str(self.instance_program), *map(str, forward.instance)]
        instance = self.start_child(ending, f"instance-{proxy.peer.name}", command, None)
        instance.wait_until(partial(answers, forward.instance))
        child = self.start_proxy(ending, proxy)
        child.wait_until(partial(answers, forward.listener))
        for _ in range(FIRST):
            answers(forward.listener)
        return child


class Clients:
    """Connections to an address that stay open until `close`."""

    def __init__(self, address: Address, *, speak: bool) -> None:
        self._address = address
        self._speak = speak
        self._open: list[socket.socket] = []

    def add(self, count: int) -> None:
        """Open so many more. Raises OSError where one is refused, or not answered."""
        for _ in range(count):
            self._open.append(socket.create_connection(self._address, timeout=5))
            if self._speak:
                speak(self._open[-1])

    def close(self) -> None:
        for each in self._open:
            each.close()


def speak(connection: socket.socket) -> None:
    """Send a request and take its answer, which is as long. Raises OSError where that is not what comes."""
    connection.sendall(REQUEST)
    answer = b""
    while len(answer) < len(REQUEST):
        if not (more := connection.recv(len(REQUEST) - len(answer))):
            raise ConnectionError(f"closed after {answer!r}")
        answer += more
    if answer[-1:] != REQUEST[-1:]:
        raise ConnectionError(f"no answer: {answer!r}")


def answers(address: Address) -> bool:
    try:
        with socket.create_connection(address, timeout=1) as connection:
            speak(connection)
    except OSError:
        return False
    return True


# ---- what is measured ----


def measure(bed: IdleTestbed, counts: Sequence[int], rounds: int, settle: float) -> Iterator[Reading]:
    """Each round runs every path, started afresh, in rotated order, once speaking and once silent."""
    for number in range(rounds):
        turn = number % len(bed.proxies)
        for spoke in (True, False):
            for proxy in [*bed.proxies[turn:], *bed.proxies[:turn]]:
                reading = read_once(bed, proxy, number, spoke=spoke, counts=counts, settle=settle)
                how = "having spoken" if spoke else "silent"
                each = reading.bytes_each() / 1024
                print(f"round {number + 1}: {proxy.peer.name} {how} {each:.2f} KiB", file=sys.stderr)
                yield reading


def read_once(
    bed: IdleTestbed, proxy: Proxy, number: int, *, spoke: bool, counts: Sequence[int], settle: float
) -> Reading:
    (forward,) = proxy.plan.forwards
    with ExitStack() as ending:
        child = bed.start(ending, proxy)
        clients = Clients(forward.listener, speak=spoke)
        ending.callback(clients.close)  # first: nobody has to wait for them when it is ended
        time.sleep(settle)
        files, memory = [child.descriptors()], [child.memory()]
        # A client of the rpc plane has no connection to the instance of its own.
        each = 1 if forward.codec else 2
        for before, count in zip((0, *counts), counts, strict=False):
            grow(clients, child, before, count, files[0], each)
            time.sleep(settle)
            files.append(child.descriptors())
            memory.append(child.memory())
    return Reading(number, proxy.peer.name, spoke, (0, *counts), memory, files)


def grow(clients: Clients, child: Child, before: int, count: int, files: int, each: int) -> None:
    """Open connections until there are `count`, and wait until the proxy has all their descriptors.

    Raises BenchmarkError, with the proxy's last words, where one fails or that does not come about.
    """
    for have in range(before, count, WAVE):
        more = min(WAVE, count - have)
        try:
            clients.add(more)
        except OSError as error:
            raise BenchmarkError(
                f"{child.name}, connection {have} or later: {error}\n{child.tail()}"
            ) from error
        deadline = time.monotonic() + START_TIMEOUT
        while child.descriptors() < files + each * (have + more):
            if time.monotonic() > deadline:
                found = f"{child.descriptors() - files} descriptors for {have + more} connections"
                raise BenchmarkError(f"{child.name} has {found}, not {each} for each:\n{child.tail()}")
            time.sleep(0.01)


# ---- what is reported ----


def bytes_each(readings: Sequence[Reading], path: str, *, spoke: bool) -> Mapping[int, float]:
    """Map each round to a path's bytes for a connection."""
    return {each.round: each.bytes_each() for each in readings if (each.path, each.spoke) == (path, spoke)}


def ratio(readings: Sequence[Reading], path: str, *, spoke: bool) -> float | None:
    """Median over the rounds of the ratio to HAProxy; None where either was not measured."""
    base = bytes_each(readings, "haproxy", spoke=spoke)
    mine = bytes_each(readings, path, spoke=spoke)
    ratios = [mine[number] / base[number] for number in mine if base.get(number, 0) > 0]
    return median(ratios) if ratios else None


def summary(readings: Sequence[Reading], paths: Sequence[str]) -> list[Record]:
    """One flat record for each path: medians over the rounds."""
    records: list[Record] = []
    for path in paths:
        spoken = [each for each in readings if each.path == path and each.spoke]
        record: Record = {"path": path, "files": median(each.files_each() for each in spoken)}
        for index, count in enumerate(spoken[0].counts):
            record[f"memory_{count}"] = float(median(each.memory[index] for each in spoken))
        for name, spoke in (("spoken", True), ("silent", False)):
            record[name] = median(bytes_each(readings, path, spoke=spoke).values())
            record[f"{name}_to_haproxy"] = ratio(readings, path, spoke=spoke)
        records.append(record)
    return records


def table(records: Sequence[Record], counts: Sequence[int]) -> str:
    """Plain aligned text, to be pasted into README.md as it is."""
    kib, mib = 1 / 1024, 1 / (1 << 20)
    columns = [
        Column("base MiB", "memory_0", 1, mib),
        *(Column(f"at {count:,}", f"memory_{count}", 1, mib) for count in counts),
        Column("KiB/connection", "spoken", 2, kib),
        Column("x haproxy", "spoken_to_haproxy"),
        Column("silent KiB", "silent", 2, kib),
        Column("x haproxy", "silent_to_haproxy"),
        Column("descriptors", "files", 2),
    ]
    return f"idle connections, PSS of all processes\n{aligned(['path'], columns, records)}"


def verdicts(readings: Sequence[Reading], paths: Sequence[str]) -> tuple[list[str], bool]:
    """Hold tcpgw's planes against the aim: a line for each, and whether all are met."""
    outcomes = [
        Aim(f"{path}, {how}", "haproxy", 1.0, most=True).verdict(ratio(readings, path, spoke=spoke))
        for path in (TCPGW.name, RPC)
        if path in paths
        for how, spoke in (("having spoken", True), ("silent", False))
    ]
    return [line for line, _ in outcomes], all(met for _, met in outcomes)


if __name__ == "__main__":
    sys.exit(main())
