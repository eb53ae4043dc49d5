"""All that is known of a running gateway at one moment, for whoever shows, exposes or judges it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from tcpgw.config import schema
from tcpgw.endpoints import Snapshot
from tcpgw.health.verdict import may_be_given
from tcpgw.observe.totals import Figures
from tcpgw.process.worker import WorkerProcess


@dataclass(frozen=True)
class WorkerPicture:
    """One worker process. `state` is starting, accepting or leaving; `age` and `lag` in seconds."""

    slot: int
    pid: int
    state: str
    connections: int
    age: float
    lag: float

    @classmethod
    def of(cls, worker: WorkerProcess) -> Self:
        state = "leaving" if worker.leaving else "accepting" if worker.accepting.is_set() else "starting"
        lag = worker.report.get("process", {}).get("lag", 0.0)
        age = round(time.monotonic() - worker.started, 3)
        return cls(worker.slot, worker.pid, state, worker.connections, age, lag)


@dataclass(frozen=True)
class Picture:
    """`at`, `since` and `reloaded_at` are Unix time. `totals` are all workers' (see `figures.Totals`).

    `health` and `discovery` are by service, `clouds` by [cloud] table, `certificates` by listener and then
    kind, with the Unix time at which they expire. `snapshots` are those in force, and `overrides` says by
    service and endpoint what an operator changed in them (see `overrides.told`). `lag` is the supervisor's.
    """

    at: float
    version: str
    pid: int
    state: str
    since: float
    path: str
    lag: float
    config: schema.Config
    workers: Sequence[WorkerPicture]
    deaths: int
    totals: Figures
    addresses: Mapping[str, str]
    snapshots: Mapping[str, Snapshot]
    health: Mapping[str, Figures]
    discovery: Mapping[str, Figures]
    clouds: Mapping[str, Figures]
    certificates: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    reloads: Mapping[str, int] = field(default_factory=dict)
    reloaded_at: float = 0.0
    overrides: Mapping[str, Mapping[str, Figures]] = field(default_factory=dict)
    alerts: Sequence[Mapping[str, Any]] = ()
    silences: Sequence[Mapping[str, Any]] = ()
    receivers: Sequence[Mapping[str, Any]] = ()

    def listener(self, name: str) -> Figures:
        """What its connections came to; empty before any worker told."""
        found: Figures = self.totals.get("listeners", {}).get(name, {})
        return found

    def service(self, name: str) -> Figures:
        found: Figures = self.totals.get("services", {}).get(name, {})
        return found

    def states(self, service: str) -> Mapping[str, str]:
        """By endpoint."""
        found: Mapping[str, str] = self.health.get(service, {}).get("states", {})
        return found

    def is_known(self, service: str) -> bool:
        """Whether its endpoints are: without a snapshot it has none, but the start waits for the first."""
        return service in self.snapshots or self.state != "starting"

    def confirmed_at(self, service: schema.Service) -> float | None:
        """When a source that is asked again and again last said what is in force, in Unix time, if ever."""
        if not is_asked_again(service):
            return None
        answered_at: float | None = self.discovery.get(service.name, {}).get("answered_at")
        snapshot = self.snapshots.get(service.name)
        # Without an answer since the start it is a stored one that is in force.
        return answered_at or (snapshot.taken_at if snapshot else None)

    def usable(self, service: str) -> tuple[int, int]:
        """How many endpoints may be given something, and how many have a weight."""
        weights, states = self._weights(service), self.states(service)
        return sum(may_be_given(weight, states.get(one)) for one, weight in weights.items()), len(weights)

    def used(self, service: str) -> Mapping[str, int]:
        """Weights of the endpoints that are given something: of all in a panic, else of the usable ones."""
        weights, states = self._weights(service), self.states(service)
        if self.health.get(service, {}).get("panic", False):
            return weights
        return {one: weight for one, weight in weights.items() if may_be_given(weight, states.get(one))}

    def _weights(self, service: str) -> dict[str, int]:
        """Those that are not 0, by endpoint."""
        snapshot = self.snapshots.get(service)
        return {str(one): weight for one, weight in snapshot.members if weight} if snapshot else {}


def is_asked_again(service: schema.Service) -> bool:
    """Whether its discovery is asked again and again; others tell when something changes, if ever."""
    return service.discovery.type in {"dns", "modelarts"}
