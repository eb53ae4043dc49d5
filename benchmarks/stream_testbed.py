"""The testbed of stream.py: redis and iperf3 as instances, and every proxy in front of both."""

import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from load import Workload
from peers import DIRECT, Address, Forward, Peer
from processes import Child, find, first_line, free_ports, require
from testbed import Cores, Testbed, installed


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
    """What StreamTestbed.start started; iperf3 needs no attention."""

    redis: Child
    targets: Sequence[Target]


@dataclass(frozen=True)
class StreamTestbed(Testbed):
    redis: Address
    iperf3: Address

    @classmethod
    def prepare(
        cls, peers: Sequence[Peer], folder: Path, *, cores: Cores, log_connections: bool, workers: int = 1
    ) -> "StreamTestbed":
        """Find the programs, choose ports, write configurations. Raises BenchmarkError without redis."""
        require("redis-benchmark", "Debian package redis-tools")
        found, left_out = installed(peers)
        ports = iter(free_ports(2 + 2 * len(found)))
        redis, iperf3 = Address("127.0.0.1", next(ports)), Address("127.0.0.1", next(ports))
        # Redis gets a loopback address for each path: the ports that one proxy's closed connections hold
        # in TIME_WAIT, which bound how many new ones an address can take, are not missing to the next.
        hosts = {peer: f"127.0.0.{number}" for number, peer in enumerate(found, start=2)}

        def forwards(peer: Peer) -> Sequence[Forward]:
            return (
                Forward("redis", Address("127.0.0.1", next(ports)), Address(hosts[peer], redis.port)),
                Forward("iperf3", Address("127.0.0.1", next(ports)), iperf3),
            )

        proxies = cls.configure(found, forwards, folder, log_connections=log_connections, workers=workers)
        if find("iperf3") is None:
            left_out.append("bulk: iperf3 not found (Debian package iperf3)")
        return cls(folder, cores, proxies, left_out, redis, iperf3)

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
            child = self.start_proxy(ending, proxy)
            child.wait_until(partial(answers_ping, redis))
            targets.append(Target(proxy.peer.name, redis, iperf3, child))
        return Running(instance, targets)

    def _start_redis(self, ending: ExitStack) -> Child:
        program = require("redis-server", "Debian package redis-server")
        hosts = [self.redis.host, *(proxy.plan.forwards[0].instance.host for proxy in self.proxies)]
        options = f"--port {self.redis.port} --protected-mode no --appendonly no --dir {self.folder}"
        command = [program, *options.split(), "--save", "", "--bind", *hosts]
        child = self.start_child(ending, "redis-server", command, self.cores.load)
        child.wait_until(partial(answers_ping, self.redis))
        return child

    def _start_iperf3(self, ending: ExitStack) -> None:
        """Not waited for: a probe would count as a test; the first client tries until it is served."""
        program = require("iperf3", "Debian package iperf3")
        command = [program, "-s", "-B", self.iperf3.host, "-p", str(self.iperf3.port)]
        self.start_child(ending, "iperf3", command, self.cores.load)

    def facts(self) -> dict[str, str]:
        return self.environment(
            {name: first_line([find(name) or name, "--version"]) for name in ("redis-server", "iperf3")}
        )


def answers_ping(address: Address) -> bool:
    """Ask redis, through whatever stands in between: a proxy may accept before it can relay."""
    try:
        with socket.create_connection(address, timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False
