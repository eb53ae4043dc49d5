"""The testbed of operations.py: instances that say who they are, proxies that are told to reload, or hurt."""

import json
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import probe
import rpc_load
from peers import HAPROXY, NGINX, TCPGW, Address, Forward, Peer
from processes import BenchmarkError, Child, free_ports, started
from testbed import Cores, Proxy, Testbed, installed

WORKERS = 2
INSTANCES = ("A", "B")
PROBE, LOAD = "probe", "load"
LOAD_CONNECTIONS = 50
# Seconds after which a load ends that nobody ended: longer than any reload is waited for.
LONGEST_LOAD = 120
# Seconds in which what was set going comes to rest: old workers end, successors come, the log is written.
REST = 20.0

# As its master and a worker, which Debian's unit runs; `-db`, as in the other scripts, would have no master.
MASTER = replace(HAPROXY, command=lambda program, config, _: [program, "-W", "-f", str(config)])
PEERS = (MASTER, NGINX, TCPGW)
RELOAD = {"haproxy": signal.SIGUSR2, "nginx": signal.SIGHUP, "tcpgw": signal.SIGHUP}
# HAProxy's workers are threads, of which none dies alone.
MORTAL = ("nginx", "tcpgw")


def events(lines: str, name: str) -> list[dict[str, Any]]:
    """Return the events of that name in a log of JSON lines, among which there may be others."""
    found = []
    for line in lines.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("event") == name:
            found.append(event)
    return found


@dataclass(frozen=True)
class Target:
    """A proxy, running, with the workers that it should have."""

    proxy: Proxy
    child: Child
    processes: int  # that it consists of while nothing happens
    instances: Mapping[str, Address]

    @property
    def name(self) -> str:
        return self.proxy.peer.name

    def address(self, listener: str) -> Address:
        return next(each.listener for each in self.proxy.plan.forwards if each.name == listener)

    def configure(self, instance: str) -> None:
        """Write the configuration that has the probe's connections go to another instance."""
        plan = self.proxy.plan
        forwards = [
            each._replace(instance=self.instances[instance]) if each.name == PROBE else each
            for each in plan.forwards
        ]
        self.proxy.config.write_text(self.proxy.peer.configure(replace(plan, forwards=forwards)))

    def reload(self) -> None:
        self.child.process.send_signal(RELOAD[self.name])

    def oldest(self) -> tuple[int, float]:
        """Return the worker that has lived longest, and for how many seconds."""
        pid = self.child.workers()[0]
        return pid, time.clock_gettime(time.CLOCK_BOOTTIME) - (started(pid) or 0)

    def written(self) -> int:
        """How long its log is: where what it says next begins."""
        return self.child.log.stat().st_size

    def said(self, since: int, name: str) -> float | None:
        """Return the `seconds` that it logged with the last event of a name, None where there was none."""
        with self.child.log.open("rb") as log:
            log.seek(since)
            found = events(log.read().decode(errors="replace"), name)
        return float(found[-1]["seconds"]) if found else None

    def rest(self, since: int, name: str) -> float | None:
        """Wait until it has as many processes as before, and return what `said` does, if it says anything.

        Raises BenchmarkError where it does not come to rest.
        """
        deadline = time.monotonic() + REST
        while len(self.child.pids()) != self.processes or (
            self.name == TCPGW.name and self.said(since, name) is None
        ):
            if time.monotonic() > deadline:
                raise BenchmarkError(
                    f"{self.name} has {len(self.child.pids())} processes instead of {self.processes}, "
                    f"or does not log {name}:\n{self.child.tail()}"
                )
            time.sleep(0.02)
        return self.said(since, name)


@dataclass(frozen=True)
class OperationsTestbed(Testbed):
    named: Mapping[str, Address]
    load_instance: Address
    load_program: Path
    load_instance_program: Path

    @classmethod
    def prepare(cls, peers: Sequence[Peer], folder: Path) -> "OperationsTestbed":
        """Compile, choose ports, write configurations. Raises BenchmarkError without a C compiler."""
        programs = [rpc_load.build(name, folder) for name in ("rpc_load", "rpc_instance")]
        found, left_out = installed(peers)
        ports = iter(free_ports(len(INSTANCES) + 1 + 2 * len(found)))

        def address() -> Address:
            return Address("127.0.0.1", next(ports))

        named = {name: address() for name in INSTANCES}
        load_instance = address()

        def forwards(_: Peer) -> Sequence[Forward]:
            first = named[INSTANCES[0]]
            return [Forward(PROBE, address(), first), Forward(LOAD, address(), load_instance)]

        proxies = cls.configure(found, forwards, folder, log_connections=False, workers=WORKERS)
        return cls(folder, Cores(None, None), proxies, left_out, named, load_instance, *programs)

    def start(self, ending: ExitStack) -> list[Target]:
        """Start everything and wait until all answer; `ending` stops it, the proxies first.

        Raises BenchmarkError, with its last words, where a process does not come up.
        """
        listeners = [word for name, at in self.named.items() for word in (name, *map(str, at))]
        script = Path(__file__).with_name("named_instance.py")
        named = self.start_child(ending, "named_instance", [sys.executable, str(script), *listeners], None)
        for name, address in self.named.items():
            named.wait_until(partial(reaches, address, name))
        command = [str(self.load_instance_program), *map(str, self.load_instance)]
        self.start_child(ending, "rpc_instance", command, None)
        return [self._start_target(ending, proxy) for proxy in self.proxies]

    def _start_target(self, ending: ExitStack, proxy: Proxy) -> Target:
        child = self.start_proxy(ending, proxy)
        target = Target(proxy, child, 0, self.named)
        child.wait_until(partial(reaches, target.address(PROBE), INSTANCES[0]))
        # A thread for each worker in HAProxy, a process in the others.
        workers = 1 if proxy.peer is MASTER else WORKERS
        child.wait_until(lambda: len(child.workers()) == workers)
        return replace(target, processes=1 + workers)

    def start_load(self, ending: ExitStack, target: Target) -> Child:
        """Keep connections through a proxy busy until `ending`, or until one of them breaks."""
        what = ("msgpack", *target.address(LOAD), LOAD_CONNECTIONS, 1, 64, 0, LONGEST_LOAD)
        return self.start_child(ending, "rpc_load", [str(self.load_program), *map(str, what)], None)


def reaches(address: Address, name: str) -> bool:
    return probe.ask(address) == name
