"""The testbed: instances, proxies in front of them, where each runs, and what the machine is."""

import os
import platform
import shlex
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from load import Workload
from peers import DIRECT, Address, Forward, Peer, Plan
from processes import Child, find, first_line, free_ports, require, start

BUSY_MACHINE = 0.3  # load average of a minute above which figures are not worth keeping


class Cores(NamedTuple):
    """Where the load and the instances run, and where the proxies do; None leaves it to the scheduler."""

    load: int | None
    proxy: int | None


@dataclass(frozen=True)
class Proxy:
    """A peer with all that is needed to start it."""

    peer: Peer
    program: str
    plan: Plan
    config: Path

    def command(self) -> list[str]:
        return self.peer.command(self.program, self.config)


@dataclass(frozen=True)
class Target:
    """A path to the instances, running: direct, or through a proxy."""

    name: str
    redis: Address
    iperf3: Address
    proxy: Child | None = None

    def address(self, workload: Workload) -> Address:
        return self.iperf3 if workload.bulk else self.redis

    def cpu_seconds(self) -> float:
        """CPU time of the proxy so far, in seconds; 0 for direct."""
        return self.proxy.cpu_seconds() if self.proxy else 0.0


class Running(NamedTuple):
    """What Testbed.start started; iperf3 needs no attention."""

    redis: Child
    targets: Sequence[Target]


@dataclass(frozen=True)
class Testbed:
    """What will run, decided before anything is started. `left_out`: what is missing and where it is from."""

    folder: Path
    cores: Cores
    redis: Address
    iperf3: Address
    proxies: Sequence[Proxy]
    left_out: Sequence[str]

    @classmethod
    def prepare(
        cls, peers: Sequence[Peer], folder: Path, *, cores: Cores, log_connections: bool
    ) -> "Testbed":
        """Find the programs, choose ports, write configurations. Raises BenchmarkError without redis."""
        require("redis-benchmark", "Debian package redis-tools")
        found = {peer: program for peer in peers if (program := peer.find())}
        ports = iter(free_ports(2 + 2 * len(found)))
        redis, iperf3 = Address("127.0.0.1", next(ports)), Address("127.0.0.1", next(ports))
        proxies = []
        for number, (peer, program) in enumerate(found.items(), start=2):
            # Redis gets a loopback address for each path: the ports that one proxy's closed connections hold
            # in TIME_WAIT, which bound how many new ones an address can take, are not missing to the next.
            forwards = (
                Forward("redis", Address("127.0.0.1", next(ports)), Address(f"127.0.0.{number}", redis.port)),
                Forward("iperf3", Address("127.0.0.1", next(ports)), iperf3),
            )
            plan = Plan(forwards, folder / f"{peer.name}.log", log_connections=log_connections)
            config = folder / peer.file
            config.write_text(peer.configure(plan))
            proxies.append(Proxy(peer, program, plan, config))
        left_out = [f"{peer.name}: not found ({peer.package})" for peer in peers if peer not in found]
        return cls(folder, cores, redis, iperf3, proxies, left_out)

    def start(self, ending: ExitStack, *, bulk: bool) -> Running:
        """Start everything and wait until all answer; `ending` stops it, the proxies first.

        Raises BenchmarkError, with its last words, where a process does not come up.
        """
        instance = self._start_redis(ending)
        if bulk:
            self._start_iperf3(ending)
        targets = [Target(DIRECT, self.redis, self.iperf3)]
        for proxy in self.proxies:
            redis, iperf3 = (forward.listener for forward in proxy.plan.forwards)
            child = self._start(ending, proxy.peer.name, proxy.command(), self.cores.proxy, proxy.peer.cwd)
            child.wait_until(partial(answers_ping, redis))
            targets.append(Target(proxy.peer.name, redis, iperf3, child))
        return Running(instance, targets)

    def _start_redis(self, ending: ExitStack) -> Child:
        program = require("redis-server", "Debian package redis-server")
        hosts = [self.redis.host, *(proxy.plan.forwards[0].instance.host for proxy in self.proxies)]
        options = f"--port {self.redis.port} --protected-mode no --appendonly no --dir {self.folder}"
        command = [program, *options.split(), "--save", "", "--bind", *hosts]
        child = self._start(ending, "redis-server", command, self.cores.load)
        child.wait_until(partial(answers_ping, self.redis))
        return child

    def _start_iperf3(self, ending: ExitStack) -> None:
        """Not waited for: a probe would count as a test; the first client tries until it is served."""
        program = require("iperf3", "Debian package iperf3")
        command = [program, "-s", "-B", self.iperf3.host, "-p", str(self.iperf3.port)]
        self._start(ending, "iperf3", command, self.cores.load)

    def _start(
        self, ending: ExitStack, name: str, command: list[str], core: int | None, cwd: Path | None = None
    ) -> Child:
        child = start(name, command, log=self.folder / f"{name}.log", core=core, cwd=cwd)
        ending.callback(child.stop)
        return child

    def place(self, workload: Workload, redis: Child) -> int | None:
        """Return the core to load from, after moving redis there.

        A lone client waits at every hop, so that only one process ever runs. Spread over cores it would
        measure how long an idle one takes to wake (here three times the work itself, and as noisy as
        that): it shares the proxies' core.
        """
        core = self.cores.proxy if workload.lone else self.cores.load
        redis.pin(core)
        return core

    def configurations(self) -> str:
        """Return every proxy's command and configuration."""
        return "\n".join(
            f"### {proxy.peer.name}: {shlex.join(proxy.command())}\n{proxy.config.read_text()}"
            for proxy in self.proxies
        )

    def environment(self) -> dict[str, str]:
        """Return what a figure is worthless without: machine, versions, command, date."""
        cores = (
            "not pinned"
            if self.cores.load is None
            else "load and instances on {}, proxies on {}".format(*self.cores)
        )
        minute = os.getloadavg()[0]
        busy = " (busy: do not keep these figures)" if minute > BUSY_MACHINE else ""
        versions = {proxy.peer.name: proxy.peer.version(proxy.program) for proxy in self.proxies}
        tools = {name: first_line([find(name) or name, "--version"]) for name in ("redis-server", "iperf3")}
        return {
            "date": time.strftime("%Y-%m-%d"),
            "command": shlex.join(["python", *sys.argv]),
            "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
            "cpu": f"{cpu_model()}, {os.cpu_count()} cores, {cores}",
            "load average before": f"{minute:.2f}{busy}",
            "python": platform.python_version(),
            **versions,
            **tools,
        }

    def logged(self) -> dict[str, int]:
        """Count the lines of each proxy's log; complete once it has been ended."""
        return {proxy.peer.name: sum(1 for _ in proxy.plan.log.open("rb")) for proxy in self.proxies}


def answers_ping(address: Address) -> bool:
    """Ask redis, through whatever stands in between: a proxy may accept before it can relay."""
    try:
        with socket.create_connection(address, timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU"
    )
