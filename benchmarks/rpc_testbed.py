"""The testbed of rpc.py: one echo instance for both protocols, and every proxy in front of it."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import rpc_load
from peers import DIRECT, Address, Forward, Peer
from processes import BenchmarkError, Child, call, first_line, free_ports
from rpc_load import CODECS
from testbed import Cores, Testbed, installed

# The gateway as it comes, and with more and more configured.
GATEWAYS = ("tcpgw", "tcpgw+rules", "tcpgw+deadline")
# Milliseconds that requests through a path say they have left; through the others they say nothing. Less than
# the rule's time-out, so that it is the request's word that counts, and more than any takes.
DEADLINES = {"tcpgw+deadline": 8000}

# Who relays bytes does the same with Thrift's as with MessagePack's: HAProxy alone is measured with both,
# because it is what the others are compared with. Envoy is its tcp_proxy before MessagePack, its thrift_proxy
# before Thrift.
PATHS = {
    "msgpack": (DIRECT, "haproxy", "nginx", "envoy", *GATEWAYS),
    "thrift": (DIRECT, "haproxy", "envoy", *GATEWAYS),
}


@dataclass(frozen=True)
class Target:
    """A path to the instance, running: direct, or through a proxy."""

    name: str
    addresses: Mapping[str, Address]  # by protocol
    proxy: Child | None = None

    def pids(self) -> list[int]:
        return self.proxy.pids() if self.proxy else []

    def last_words(self) -> str:
        return f"\nits log ends with:\n{self.proxy.tail()}" if self.proxy else ""


class Running(NamedTuple):
    """What RpcTestbed.start started."""

    instance: Child
    targets: Sequence[Target]


@dataclass(frozen=True)
class RpcTestbed(Testbed):
    instance: Address
    load_program: Path
    instance_program: Path

    @classmethod
    def prepare(
        cls, peers: Sequence[Peer], folder: Path, *, cores: Cores, log_connections: bool
    ) -> "RpcTestbed":
        """Compile, choose ports, write configurations.

        Raises BenchmarkError without a C compiler, and where none of the peers is installed.
        """
        load_program, instance_program = (
            rpc_load.build(name, folder) for name in ("rpc_load", "rpc_instance")
        )
        found, left_out = installed(peers)
        if not found:
            raise BenchmarkError(f"there is nothing to measure: {'; '.join(left_out)}")
        ports = iter(free_ports(1 + len(CODECS) * len(found)))
        instance = Address("127.0.0.1", next(ports))

        def forwards(_: Peer) -> Sequence[Forward]:
            return [
                Forward(protocol, Address("127.0.0.1", next(ports)), instance, codec)
                for protocol, codec in CODECS.items()
            ]

        proxies = cls.configure(found, forwards, folder, log_connections=log_connections)
        left_out += [f"{each.name}: {each.in_flight >> 20} MiB in flight" for each in rpc_load.LEFT_OUT]
        return cls(folder, cores, proxies, left_out, instance, load_program, instance_program)

    def start(self, ending: ExitStack) -> Running:
        """Start everything and wait until all answer; `ending` stops it, the proxies first.

        Raises BenchmarkError, with its last words, where a process does not come up.
        """
        command = [str(self.instance_program), *map(str, self.instance)]
        instance = self.start_child(ending, "rpc_instance", command, self.cores.load)
        direct = Target(DIRECT, dict.fromkeys(CODECS, self.instance))
        instance.wait_until(partial(self.answers, direct))
        targets = [direct]
        for proxy in self.proxies:
            child = self.start_proxy(ending, proxy)
            addresses = {forward.name: forward.listener for forward in proxy.plan.forwards}
            target = Target(proxy.peer.name, addresses, child)
            child.wait_until(partial(self.answers, target))
            targets.append(target)
        return Running(instance, targets)

    def answers(self, target: Target) -> bool:
        """Ask the instance, through whatever stands in between: a proxy may accept before it can relay."""
        for protocol, address in target.addresses.items():
            command = [self.load_program, protocol, *address, 1, 1, 64, 0, 0]
            try:
                call(list(map(str, command)), timeout=5)
            except BenchmarkError:
                return False
        return True

    def facts(self) -> dict[str, str]:
        return self.environment({"cc": first_line(["cc", "--version"])})
