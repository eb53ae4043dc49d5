"""What alerts go by: numbers of the last minute, by the readings' names in `alerts.rules`. Pure."""

from collections import deque
from collections.abc import Mapping

from tcpgw.alerts.rules import Labels, Readings
from tcpgw.app.monitor.picture import Picture
from tcpgw.app.monitor.view import Recent
from tcpgw.config import schema
from tcpgw.observe.histogram import quantile_of

# Seconds for which a worker's death counts.
_DEATHS = 600.0
# Requests or connects of the last minute below which a percentile says nothing.
_ENOUGH = 100


class Reader:
    """Reads a gateway once a second.

    `min_volume`: invocations in a minute below which nothing is said of the share that failed.
    """

    def __init__(self, min_volume: int) -> None:
        self.min_volume = min_volume
        self._deaths: deque[tuple[float, int]] = deque()  # how many there were, and when that was first so

    def read(self, picture: Picture, recent: Recent, now: float) -> Readings:
        """`now` is monotonic."""
        readings: dict[str, dict[Labels, float]] = {
            "worker_deaths": {(): self._recent_deaths(picture.deaths, now)},
            "overloaded": {(): float(picture.totals.get("overload", {}).get("active", 0))},
            "imbalance": {_of(name): ratio for name, ratio in recent.imbalances(picture).items()},
        }
        for service in picture.config.service:
            for name, value in self._service(picture, recent, service).items():
                readings.setdefault(name, {})[_of(service.name)] = value
        for name, cloud in picture.clouds.items():
            share = cloud["left"] / cloud["budget"]
            readings.setdefault("budget_left_ratio", {})[(("cloud", name),)] = share
        for listener in picture.config.listener:
            of_listener: Labels = (("listener", listener.name),)
            readings.setdefault("denials_rate", {})[of_listener] = recent.lately.rate(
                ("denied", listener.name)
            )
        for name, kinds in picture.certificates.items():
            for kind, at in kinds.items():
                certificate: Labels = (("kind", kind), ("listener", name))
                readings.setdefault("certificate_left", {})[certificate] = at - picture.at
        return readings

    def _service(self, picture: Picture, recent: Recent, service: schema.Service) -> Mapping[str, float]:
        name = service.name
        found = {"panic": float(picture.health.get(name, {}).get("panic", False))}
        if picture.is_known(name):
            usable, endpoints = picture.usable(name)
            found["usable_endpoints"] = float(usable)
            if endpoints:
                found["usable_share"] = usable / endpoints
        lately = recent.lately
        ended, failed = lately.sum(("invocations", name)), lately.sum(("failed", name))
        if ended >= self.min_volume:
            found["error_ratio"] = failed / ended
        buckets = lately.buckets("latency", name) or lately.buckets("connect", name)
        p99 = quantile_of(buckets, 0.99)
        if p99 is not None and sum(buckets.values()) >= _ENOUGH:
            found["p99_latency"] = p99
        confirmed_at = picture.confirmed_at(service)
        if confirmed_at is not None:
            found["discovery_age"] = picture.at - confirmed_at
        return found

    def _recent_deaths(self, deaths: int, now: float) -> float:
        if not self._deaths or self._deaths[-1][1] != deaths:
            self._deaths.append((now, deaths))
        while len(self._deaths) > 1 and self._deaths[1][0] <= now - _DEATHS:
            self._deaths.popleft()
        return float(deaths - self._deaths[0][1])


def _of(service: str) -> Labels:
    return (("service", service),)
