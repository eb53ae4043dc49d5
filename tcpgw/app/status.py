"""The state of a whole gateway as plain values: what workers counted, beside what the supervisor knows."""

import time
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from tcpgw.config import schema
from tcpgw.endpoints import Snapshot
from tcpgw.observe.totals import Figures
from tcpgw.process.worker import WorkerProcess

Status = dict[str, Any]


def made(
    config: schema.Config,
    workers: Iterable[WorkerProcess],
    addresses: Mapping[str, str],
    snapshots: Mapping[str, Snapshot],
    totals: Figures,
    health: Mapping[str, Figures],
    overrides: Mapping[str, Mapping[str, Figures]] = MappingProxyType({}),
) -> Status:
    """Return `workers` (a list of slot, pid, state, connections, age), `listeners` and `services` (by name).

    `overload` counts workers that are overloaded now (`active`), how often any was, and what they let go.

    A listener that was removed has the address None, and counts on. A service's endpoints are those of the
    snapshot in force, with their state, and with `override` and `given_weight` where `overrides` has them;
    `taken_at` is Unix time, None without a snapshot.
    """
    listeners = totals.get("listeners", {})
    services = totals.get("services", {})
    return {
        "workers": [_worker(worker) for worker in workers],
        "listeners": {
            name: {"address": addresses.get(name), **figures} for name, figures in listeners.items()
        },
        "overload": totals.get("overload", {"active": 0, "times": 0, "shed": 0}),
        "services": {
            service.name: _service(
                services.get(service.name, {}),
                snapshots.get(service.name),
                health.get(service.name, {}),
                overrides.get(service.name, {}),
            )
            for service in config.service
        },
    }


def _worker(worker: WorkerProcess) -> Status:
    state = "leaving" if worker.leaving else "accepting" if worker.accepting.is_set() else "starting"
    return {
        "worker": worker.slot,
        "pid": worker.pid,
        "state": state,
        "connections": worker.connections,
        "age": round(time.monotonic() - worker.started, 3),
    }


def _service(
    figures: Figures, snapshot: Snapshot | None, health: Figures, overrides: Mapping[str, Figures]
) -> Status:
    counts, states = figures.get("endpoints", {}), health.get("states", {})
    members = snapshot.members if snapshot else ()
    return {
        **figures,
        "version": snapshot.version if snapshot else None,
        "taken_at": snapshot.taken_at if snapshot else None,
        **({"health": {key: one for key, one in health.items() if key != "states"}} if health else {}),
        "endpoints": {
            str(endpoint): {
                **counts.get(str(endpoint), {}),
                "weight": weight,
                **({"state": states[str(endpoint)]} if str(endpoint) in states else {}),
                **overrides.get(str(endpoint), {}),
            }
            for endpoint, weight in members
        },
    }
