"""The testbed of monitoring.py: a gateway before redis, and one that has very many endpoints."""

import json
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import connect_load
import ping_load
import rpc_load
from peers import TCPGW, Address, Forward, Peer, Plan, tcpgw_gateway, tcpgw_tables
from processes import Child, call, find, first_line, free_ports, pinned, require
from stream_testbed import answers_ping
from testbed import Cores, Testbed, installed

LOADED, MANY = "tcpgw", "tcpgw+endpoints"
# Clients at a time that have every endpoint picked, so that there are figures of each.
PICKERS = 20
# Seconds from then until the clients' connections are closed, and the figures of a whole window are theirs.
SETTLE = 2.0


class Gateway(NamedTuple):
    """One that runs: its processes, where clients find it, and where it is scraped."""

    child: Child
    worker: int
    listener: Address
    admin: Address

    @property
    def supervisor(self) -> int:
        return self.child.process.pid


def loaded(plan: Plan, admin: Address) -> str:
    """As the other benchmarks have it, and where it is scraped."""
    return tcpgw_gateway(plan, f'admin = "{admin}"\n') + "\n".join(map(tcpgw_tables, plan.forwards))


def many(plan: Plan, admin: Address, endpoints: Sequence[Address]) -> str:
    """All are checked as shipped, and take their turns, so that each has been picked."""
    (forward,) = plan.forwards
    return (
        tcpgw_gateway(plan, f'admin = "{admin}"\n')
        + f"""[[service]]
name = "many"
discovery = {{ type = "static", endpoints = {json.dumps([str(each) for each in endpoints])} }}
balance = {{ policy = "round_robin" }}
[[listener]]
name = "many"
bind = "{forward.listener}"
route = "many"
"""
    )


def addresses(count: int, port: int) -> list[Address]:
    """As many of loopback's 16 million: an instance that is bound to all addresses answers at each."""
    return [Address(f"127.1.{number // 250}.{number % 250 + 1}", port) for number in range(count)]


@dataclass(frozen=True)
class MonitoringTestbed(Testbed):
    redis: Address
    echo: Address
    loaded_admin: Address
    many_admin: Address
    endpoints: int
    echo_program: Path

    @classmethod
    def prepare(
        cls, folder: Path, *, cores: Cores, log_connections: bool, endpoints: int
    ) -> "MonitoringTestbed":
        """Compile, choose ports, write configurations. Raises BenchmarkError without redis or a compiler."""
        require("redis-benchmark", "Debian package redis-tools")
        echo_program = rpc_load.build("rpc_instance", folder)
        redis, echo, loaded_admin, many_admin, *listeners = (
            Address("127.0.0.1", port) for port in free_ports(6)
        )
        every = addresses(endpoints, echo.port)
        listener = dict(zip((LOADED, MANY), listeners, strict=True))
        peers = (
            replace(TCPGW, configure=partial(loaded, admin=loaded_admin)),
            replace(
                TCPGW,
                name=MANY,
                file="many.toml",
                configure=partial(many, admin=many_admin, endpoints=every),
            ),
        )
        found, left_out = installed(peers)

        def forwards(peer: Peer) -> Sequence[Forward]:
            instance = redis if peer.name == LOADED else echo
            return [Forward("clients", listener[peer.name], instance)]

        proxies = cls.configure(found, forwards, folder, log_connections=log_connections)
        return cls(
            folder,
            cores,
            proxies,
            left_out,
            redis,
            echo,
            loaded_admin,
            many_admin,
            endpoints,
            echo_program,
        )

    def start_loaded(self, ending: ExitStack) -> Gateway:
        """Start redis on the load's core and the gateway, its supervisor too, on the proxy's."""
        program = require("redis-server", "Debian package redis-server")
        options = f"--port {self.redis.port} --protected-mode no --appendonly no --dir {self.folder}"
        command = [program, *options.split(), "--save", "", "--bind", self.redis.host]
        redis = self.start_child(ending, "redis-server", command, self.cores.load)
        redis.wait_until(partial(answers_ping, self.redis))
        return self._start(ending, LOADED, self.loaded_admin, answers_ping)

    def start_many(self, ending: ExitStack) -> Gateway:
        """Start the gateway and the instance of all its endpoints, and have each picked once.

        The worker and the instance are on the proxy's core, the supervisor on the load's.
        """
        # On all addresses for the length of a run. It answers whoever knows its frames with what they sent.
        command = [str(self.echo_program), "0.0.0.0", str(self.echo.port)]
        echo = self.start_child(ending, "rpc_instance", command, self.cores.proxy)
        echo.wait_until(partial(echoes, self.echo))
        gateway = self._start(ending, MANY, self.many_admin, echoes)
        gateway.child.pin(self.cores.load)
        answer = ping_load.QUESTION[:4]
        connect_load.run(gateway.listener, PICKERS, self.endpoints, ping_load.QUESTION, answer)
        time.sleep(SETTLE)
        return gateway

    def _start(
        self, ending: ExitStack, name: str, admin: Address, answers: Callable[[Address], bool]
    ) -> Gateway:
        proxy = next(each for each in self.proxies if each.peer.name == name)
        listener = proxy.plan.forwards[0].listener
        child = self.start_proxy(ending, proxy)
        child.wait_until(partial(answers, listener))
        (worker,) = child.workers()
        return Gateway(child, worker, listener, admin)

    def ping(self, gateway: Gateway, *, every: float, seconds: float) -> list[float]:
        """Return how long each answer took, in seconds. Raises BenchmarkError where one did not come."""
        script = Path(ping_load.__file__)
        command = [sys.executable, str(script), *map(str, (*gateway.listener, every, seconds))]
        took: list[float] = json.loads(call(pinned(command, self.cores.proxy), timeout=seconds + 30))
        return took

    def facts(self) -> dict[str, str]:
        redis = first_line([find("redis-server") or "redis-server", "--version"])
        return self.environment({"redis-server": redis})


def echoes(address: Address) -> bool:
    """Ask the instance, through whatever stands in between."""
    try:
        with socket.create_connection(address, timeout=1) as connection:
            ping_load.ask(connection)
            return True
    except OSError:
        return False
