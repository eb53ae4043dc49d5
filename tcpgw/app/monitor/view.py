"""What is going on in a gateway now: rates, percentiles and states, as the page and `tcpgw top` show them."""

from collections import deque
from collections.abc import Collection, Mapping
from typing import Any

from tcpgw.app.monitor.figures import counts, requests
from tcpgw.app.monitor.picture import Picture
from tcpgw.app.routes import Routes
from tcpgw.config import schema
from tcpgw.observe.histogram import quantile_of
from tcpgw.observe.history import Differ, Window
from tcpgw.process.resources import Resources

View = dict[str, Any]
"""Plain values, documented in docs/monitoring.md. Rates are per second over the last 10 s."""

# Seconds: short enough to follow a change, long enough for a rate of a few in a minute to be seen.
_NOW, _LATELY = 10.0, 60.0
# Points of a chart, one a second.
_CHARTED = 300
# Picks of a service in the last minute below which chance alone decides who got most.
_ENOUGH = 100
_NEVER_ASKED = {"calls": 0, "errors": 0, "answered_at": None, "last_error": ""}
_PERCENTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))


class Recent:
    """What counters did lately. `look` once a second; the rest says what that came to."""

    def __init__(self) -> None:
        self.now = Window(_NOW)
        self.lately = Window(_LATELY)
        self._differ = Differ()
        self._took: Mapping[int, Resources] = {}
        self._cores: dict[int, float] = {}
        self._looked = 0.0
        self._points: dict[str, deque[tuple[float, dict[str, Any]]]] = {}

    def look(self, picture: Picture, processes: Mapping[int, Resources], now: float) -> View:
        """Take what there is (`now` is monotonic, `processes` by pid) and return the view of it."""
        grown = self._differ.look(counts(picture.totals))
        self.now.add(now, grown)
        self.lately.add(now, grown)
        elapsed = now - self._looked
        self._cores = {
            pid: max(0.0, one.cpu - self._took[pid].cpu) / elapsed
            for pid, one in processes.items()
            if pid in self._took
        }
        self._took, self._looked = processes, now
        view = self._view(picture)
        self._note(view)
        return view

    def imbalances(self, picture: Picture) -> dict[str, float]:
        """By service: the share of the endpoint that was picked most, against its weight's share.

        Among those that are used: what is sick gets nothing, and that says nothing of the others. Without
        services of which little was seen.
        """
        found = {}
        for name in picture.snapshots:
            weights = picture.used(name)
            picked = {endpoint: self.lately.sum(("picked", name, endpoint)) for endpoint in weights}
            total = sum(picked.values())
            if total >= max(_ENOUGH, 10 * len(weights)):
                whole = sum(weights.values())
                found[name] = max(picked[one] / total / (weights[one] / whole) for one in weights)
        return found

    def charts(self) -> dict[str, dict[str, list[Any]]]:
        """By service: the points of the last minutes, as lists by what they are of."""
        return {
            name: {
                "at": [at for at, _ in points],
                **{
                    key: [point[key] for _, point in points]
                    for key in ("rate", "failed", "p50", "p90", "p99")
                },
            }
            for name, points in self._points.items()
        }

    def _note(self, view: View) -> None:
        services = {one["name"]: one for one in view["services"]}
        self._points = {name: self._points.get(name) or deque(maxlen=_CHARTED) for name in services}
        for name, one in services.items():
            point = {key: one[key] for key, _ in _PERCENTILES}
            point |= {"rate": one["rate"], "failed": one["failed_rate"]}
            self._points[name].append((view["at"], point))

    # ---- the view ----

    def _view(self, picture: Picture) -> View:
        imbalances = self.imbalances(picture)
        asked_for = {service for _, service, _, _ in requests(picture.totals)}
        services = [self._service(picture, one, imbalances, asked_for) for one in picture.config.service]
        listeners = [self._listener(picture, name) for name in picture.totals.get("listeners", {})]
        total = {
            key: sum(one[key] for one in services)
            for key in ("rate", "failed_rate", "in_flight", "bytes_in_rate", "bytes_out_rate")
        }
        return {
            "at": picture.at,
            "version": picture.version,
            "pid": picture.pid,
            "state": picture.state,
            "since": picture.since,
            "config": picture.path,
            "totals": {"connections": sum(one["active"] for one in listeners), **total},
            "workers": self._workers(picture),
            "worker_deaths": picture.deaths,
            "listeners": listeners,
            "services": services,
            "clouds": [{"name": name, **one} for name, one in picture.clouds.items()],
            "ages": _ages(picture),
            "overload": picture.totals.get("overload", {"active": 0, "times": 0, "shed": 0}),
            "alerts": list(picture.alerts),
            "silences": list(picture.silences),
        }

    def _workers(self, picture: Picture) -> list[View]:
        return [
            {
                "worker": one.slot,
                "pid": one.pid,
                "state": one.state,
                "connections": one.connections,
                "age": one.age,
                "cpu": self._cores.get(one.pid, 0.0),
                "memory": self._took[one.pid].memory if one.pid in self._took else 0,
                "lag": one.lag,
            }
            for one in picture.workers
        ]

    def _listener(self, picture: Picture, name: str) -> View:
        figures = picture.listener(name)
        settings = next((one for one in picture.config.listener if one.name == name), None)
        return {
            "name": name,
            "address": picture.addresses.get(name),
            "mode": settings.mode if settings is not None else "tcp",
            "active": figures.get("active", 0),
            "accepted_rate": self.now.rate(("accepted", name)),
            "denied_rate": self.now.rate(("denied", name)),
            "split": self._split(settings) if settings is not None else [],
        }

    def _split(self, listener: schema.Listener) -> list[View]:
        weights = Routes(listener).weights()
        seen = {name: self.lately.sum(("used", listener.name, name)) for name in weights}
        whole, total = sum(weights.values()), sum(seen.values())
        return [
            {"service": name, "asked": weight / whole, "seen": seen[name] / total if total else None}
            for name, weight in weights.items()
        ]

    def _service(
        self,
        picture: Picture,
        settings: schema.Service,
        imbalances: Mapping[str, float],
        asked_for: Collection[str],
    ) -> View:
        """`asked_for` names services that have ever had requests."""
        name, snapshot = settings.name, picture.snapshots.get(settings.name)
        asked = picture.discovery.get(name, _NEVER_ASKED)
        endpoints = self._endpoints(picture, name)
        # Also when there were none lately: else a quiet service's would be taken for its connects.
        latency_of = "request" if name in asked_for else "connect"
        buckets = self.now.buckets("latency" if name in asked_for else "connect", name)
        return {
            "name": name,
            "version": settings.version,
            "rate": self.now.rate(("invocations", name)),
            "failed_rate": self.now.rate(("failed", name)),
            "in_flight": sum(one["in_flight"] for one in endpoints),
            "latency_of": latency_of,
            **{key: quantile_of(buckets, q) for key, q in _PERCENTILES},
            "bytes_in_rate": self.now.rate(("bytes_in", name)),
            "bytes_out_rate": self.now.rate(("bytes_out", name)),
            "snapshot": {
                "version": snapshot.version if snapshot else None,
                "taken_at": snapshot.taken_at if snapshot else None,
                "age": picture.at - snapshot.taken_at if snapshot else None,
            },
            "panic": bool(picture.health.get(name, {}).get("panic", False)),
            "imbalance": imbalances.get(name),
            "discovery": {
                "type": settings.discovery.type,
                **{key: asked[key] for key in _NEVER_ASKED},
            },
            "endpoints": endpoints,
        }

    def _endpoints(self, picture: Picture, service: str) -> list[View]:
        snapshot, states = picture.snapshots.get(service), picture.states(service)
        if snapshot is None:
            return []
        known = picture.service(service).get("endpoints", {})
        overrides, why = picture.overrides.get(service, {}), picture.health.get(service, {}).get("why", {})
        rates = {str(one): self.now.rate(("picked", service, str(one))) for one, _ in snapshot.members}
        total = sum(rates.values())
        found = []
        for member, weight in snapshot.members:
            endpoint = str(member)
            figures = known.get(endpoint, {})
            found.append(
                {
                    "endpoint": endpoint,
                    "weight": weight,
                    "given_weight": weight,
                    "override": None,
                    **overrides.get(endpoint, {}),
                    "state": states.get(endpoint, "unknown"),
                    "in_flight": figures.get("inflight", 0),
                    "rate": rates[endpoint],
                    "share": rates[endpoint] / total if total else 0.0,
                    "failures": sum(figures.get("failures", {}).values()),
                    "why": why.get(endpoint, ""),
                }
            )
        return found


def _ages(picture: Picture) -> list[View]:
    ages: dict[str, int] = {}
    for listener in picture.totals.get("listeners", {}).values():
        for bound, count in listener.get("ages", {}).items():
            ages[bound] = ages.get(bound, 0) + count
    return [{"up_to": int(bound) if bound else None, "connections": count} for bound, count in ages.items()]
