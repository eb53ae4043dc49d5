"""A testbed: proxies in front of an instance, where each runs, and what the machine is."""

import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from peers import Forward, Peer, Plan
from processes import Child, start

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
        return self.peer.command(self.program, self.config, self.plan)


def installed(peers: Sequence[Peer]) -> tuple[dict[Peer, str], list[str]]:
    """Return the peers that are here with their programs, and what is missing and where it is from."""
    found = {peer: program for peer in peers if (program := peer.find())}
    return found, [f"{peer.name}: not found ({peer.package})" for peer in peers if peer not in found]


@dataclass(frozen=True)
class Testbed:
    """What will run, decided before anything is started. `left_out`: what is missing and where it is from."""

    folder: Path
    cores: Cores
    proxies: Sequence[Proxy]
    left_out: Sequence[str]

    @staticmethod
    def configure(
        found: Mapping[Peer, str],
        forwards: Callable[[Peer], Sequence[Forward]],
        folder: Path,
        *,
        log_connections: bool,
        workers: int = 1,
        connections: int = 1000,
    ) -> list[Proxy]:
        """Write every peer's configuration. The rest is as in `Plan`."""
        proxies = []
        for peer, program in found.items():
            log = folder / f"{peer.name}.log"
            plan = Plan(forwards(peer), log, log_connections, workers, connections)
            config = folder / peer.file
            config.write_text(peer.configure(plan))
            proxies.append(Proxy(peer, program, plan, config))
        return proxies

    def start_child(
        self, ending: ExitStack, name: str, command: list[str], core: int | None, cwd: Path | None = None
    ) -> Child:
        """Start a process that `ending` stops."""
        child = start(name, command, log=self.folder / f"{name}.log", core=core, cwd=cwd)
        ending.callback(child.stop)
        return child

    def start_proxy(self, ending: ExitStack, proxy: Proxy) -> Child:
        return self.start_child(ending, proxy.peer.name, proxy.command(), self.cores.proxy, proxy.peer.cwd)

    def place(self, instance: Child, *, lone: bool) -> int | None:
        """Return the core to load from, after moving the instance there.

        A lone client waits at every hop, so that only one process ever runs. Spread over cores it would
        measure how long an idle one takes to wake (here three times the work itself, and as noisy as
        that): it shares the proxies' core.
        """
        core = self.cores.proxy if lone else self.cores.load
        instance.pin(core)
        return core

    def configurations(self) -> str:
        """Return every proxy's command and configuration."""
        return "\n".join(
            f"### {proxy.peer.name}: {shlex.join(proxy.command())}\n{proxy.config.read_text()}"
            for proxy in self.proxies
        )

    def environment(self, tools: Mapping[str, str]) -> dict[str, str]:
        """Return what a figure is worthless without: machine, versions (`tools` too), command, date."""
        cores = (
            "not pinned"
            if self.cores.load is None
            else "load and instances on {}, proxies on {}".format(*self.cores)
        )
        minute = os.getloadavg()[0]
        busy = " (busy: do not keep these figures)" if minute > BUSY_MACHINE else ""
        workers = {proxy.plan.workers for proxy in self.proxies}
        versions = {proxy.peer.name: proxy.peer.version(proxy.program) for proxy in self.proxies}
        return {
            "date": time.strftime("%Y-%m-%d"),
            "command": shlex.join(["python", *sys.argv]),
            "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
            "cpu": f"{cpu_model()}, {os.cpu_count()} cores, {cores}",
            "workers": " or ".join(map(str, sorted(workers))),
            "load average before": f"{minute:.2f}{busy}",
            "python": platform.python_version(),
            **versions,
            **tools,
            "left out": "; ".join(self.left_out) or "nothing",
        }

    def logged(self) -> dict[str, int]:
        """Count the lines of each proxy's log; complete once it has been ended."""
        return {proxy.peer.name: sum(1 for _ in proxy.plan.log.open("rb")) for proxy in self.proxies}


def cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU"
    )
