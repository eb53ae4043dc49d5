"""What all workers counted together, those that are gone included; and what it says of each service."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tcpgw.endpoints import Snapshot
from tcpgw.errors import Code
from tcpgw.observe.totals import Figures, counted, summed
from tcpgw.process.worker import WorkerProcess
from tcpgw.relay.reasons import DENIED, Reason

# Answers that say nothing of a service: the client was not let in to it.
_NOT_SERVED = {"denied"}


class Totals:
    """Sums of workers' reports that never go down."""

    def __init__(self) -> None:
        self._past: Figures = {}
        self._reports: list[Figures] = []  # that `_sum` is of
        self._sum: Figures = {}

    @property
    def cut(self) -> int:
        """How many connections workers that are gone took with them."""
        found: int = self._past.get("cut", 0)
        return found

    def gone(self, worker: WorkerProcess, snapshots: Mapping[str, Snapshot]) -> None:
        """A worker has ended: what it counted stays, but for endpoints that are in no snapshot."""
        # One that did not say how many connections it cut has cut all that it had.
        report = {"cut": worker.connections, **_lost(worker.report)}
        self._past = summed([self._past, counted(report)])
        self._reports = []
        for name, service in self._past.get("services", {}).items():
            there = {str(one) for one, _ in snapshots[name].members} if name in snapshots else set()
            known = service.get("endpoints", {})
            service["endpoints"] = {endpoint: one for endpoint, one in known.items() if endpoint in there}

    def of(self, workers: Iterable[WorkerProcess]) -> Figures:
        """Of these, and of all that are gone. Not to be changed."""
        reports = [worker.report for worker in workers]
        # Asked for at each look and scrape, while reports of many endpoints come every few seconds.
        if not reports or [*map(id, reports)] != [*map(id, self._reports)]:
            without = ({**report, "process": {}} for report in reports)  # which does not add up
            self._reports, self._sum = reports, summed([self._past, *without])
        return self._sum


def _lost(report: Figures) -> Figures:
    """Return a worker's last report with an end for each connection and request that had none in it."""
    listeners = {name: _cut_off(one) for name, one in report.get("listeners", {}).items()}
    unanswered = [
        {service: {"rpc": {"methods": {listener: {method: {"outcomes": {Code.UPSTREAM_LOST.value: count}}}}}}}
        for listener, service, method, figures in _of_rpc(report)
        if (count := figures.get("inflight", 0))
    ]
    services = summed([report.get("services", {}), *unanswered])
    return {**report, "process": {}, "listeners": listeners, "services": services}


def _cut_off(listener: Figures) -> Figures:
    """Return what a listener's connections came to, now that all of them have ended."""
    services, invocations = listener.get("services", {}), listener.get("invocations", {})
    lost = {name: one["active"] for name, one in services.items() if one["active"]}
    open_ = {name: one["opened"] - one["ended"] for name, one in invocations.items()}

    def ends(count: int) -> Figures:
        return {"ended": {Reason.WORKER_LOST.value: count}}

    more = {
        "services": {name: ends(count) for name, count in lost.items()},
        "invocations": {name: {"ended": count, "failed": count} for name, count in open_.items()},
        **(ends(sum(lost.values())) if lost else {}),
    }
    return summed([listener, more])


def requests(totals: Figures) -> Iterator[tuple[str, str, str, Figures]]:
    """Yield listener, service and method of all requests, and what they came to (see `rpc.figures`)."""
    yield from _of_rpc(totals)
    for name, listener in totals.get("listeners", {}).items():
        for service, figures in listener.get("requests", {}).items():
            yield name, service, "*", figures


def _of_rpc(totals: Figures) -> Iterator[tuple[str, str, str, Figures]]:
    for service, one in totals.get("services", {}).items():
        for listener, methods in one.get("rpc", {}).get("methods", {}).items():
            for method, figures in methods.items():
                yield listener, service, method, figures


def connections(totals: Figures) -> Iterator[tuple[str, str, Figures]]:
    """Yield listener and service ("" without) of all connections, and what they came to (see `Tally`)."""
    for name, listener in totals.get("listeners", {}).items():
        for service, figures in listener.get("services", {}).items():
            yield name, service, figures


def invocations(totals: Figures) -> dict[str, tuple[int, int]]:
    """By service: how many requests ended, or connections where those are not seen; how many failed."""
    found: dict[str, tuple[int, int]] = {}

    def add(service: str, ended: int, failed: int) -> None:
        before, failed_before = found.get(service, (0, 0))
        found[service] = before + ended, failed_before + failed

    for _, service, _, figures in requests(totals):
        served = {
            name: count for name, count in figures.get("outcomes", {}).items() if name not in _NOT_SERVED
        }
        ended = sum(served.values())
        add(service, ended, ended - served.get("ok", 0))
    for _, service, figures in _connections_invoked(totals):
        add(service, figures["ended"], figures["failed"])
    return found


def _connections_invoked(totals: Figures) -> Iterator[tuple[str, str, Figures]]:
    """Yield listener and service of connections that are invocations (see `session.Plane.figures`)."""
    for name, listener in totals.get("listeners", {}).items():
        for service, figures in listener.get("invocations", {}).items():
            yield name, service, figures


def counts(totals: Figures) -> dict[tuple[Any, ...], float]:
    """Flatten what is looked at over time: by what it is, and of which service, listener or endpoint.

    Buckets of histograms are numbers of their own.
    """
    flat: dict[tuple[Any, ...], float] = {}

    def add(key: tuple[Any, ...], count: float) -> None:
        flat[key] = flat.get(key, 0) + count

    for service, (ended, failed) in invocations(totals).items():
        flat["invocations", service], flat["failed", service] = ended, failed
    for name, service, _, figures in requests(totals):
        add(("used", name, service), sum(figures.get("outcomes", {}).values()))
        for bucket, count in figures.get("latency", {}).get("buckets", {}).items():
            add(("latency", service, bucket), count)
    for name, service, figures in _connections_invoked(totals):
        add(("used", name, service), figures["opened"])
    for _, service, figures in connections(totals):
        for moved in ("bytes_in", "bytes_out"):
            add((moved, service), figures[moved])
    for service, one in totals.get("services", {}).items():
        for bucket, count in one.get("connect", {}).get("buckets", {}).items():
            flat["connect", service, bucket] = count
        for endpoint, figures in one.get("endpoints", {}).items():
            flat["picked", service, endpoint] = figures.get("picked", 0)
    for name, listener in totals.get("listeners", {}).items():
        flat["accepted", name] = listener["accepted"]
        flat["denied", name] = sum(listener["ended"].get(reason, 0) for reason in DENIED)
    return flat
