"""The state of a whole gateway since its start as plain values, for programs and `tcpgw status`."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tcpgw.app.monitor.picture import Picture
from tcpgw.config import schema
from tcpgw.observe.histogram import quantile_of
from tcpgw.observe.totals import Figures

Status = dict[str, Any]


def made(picture: Picture) -> Status:
    """Return `workers` (a list of worker, pid, state, connections, age), `listeners` and `services` by name.

    `receivers` says of each that is told of alerts how many messages were sent and dropped, how many wait,
    how many tries failed, and why the last did.

    `overload` counts workers that are overloaded now (`active`), how often any was, and what they let go.

    A listener that was removed has the address None, and counts on. A service's endpoints are those of the
    snapshot in force, with their state, and with `override` and `given_weight` where an operator said
    something; its `version` is the configuration's, that of its `snapshot` counts changes, and `taken_at` is
    Unix time, both None without one. Times are in seconds: of a distribution how many there were, their mean,
    and percentiles to a sixteenth.
    """
    totals = picture.totals
    return {
        "version": picture.version,
        "pid": picture.pid,
        "state": picture.state,
        "since": picture.since,
        "config": picture.path,
        "worker_deaths": picture.deaths,
        "reloads": dict(picture.reloads),
        "workers": [_worker(asdict(worker)) for worker in picture.workers],
        "listeners": {
            name: {
                "address": picture.addresses.get(name),
                **_summary(figures),
                **({"expires": dict(picture.certificates[name])} if name in picture.certificates else {}),
            }
            for name, figures in totals.get("listeners", {}).items()
        },
        "overload": totals.get("overload", {"active": 0, "times": 0, "shed": 0}),
        "services": {service.name: _service(picture, service) for service in picture.config.service},
        "clouds": {name: dict(one) for name, one in picture.clouds.items()},
        "receivers": [dict(one) for one in picture.receivers],
    }


def _worker(worker: Figures) -> Figures:
    return {"worker": worker.pop("slot"), **worker}


def _service(picture: Picture, settings: schema.Service) -> Status:
    name = settings.name
    figures, states, snapshot = picture.service(name), picture.states(name), picture.snapshots.get(name)
    counts, why = figures.get("endpoints", {}), picture.health.get(name, {}).get("why", {})
    overrides, health = picture.overrides.get(name, {}), picture.health.get(name)
    return {
        **_summary({key: one for key, one in figures.items() if key != "endpoints"}),
        "version": settings.version,
        "snapshot": {
            "version": snapshot.version if snapshot else None,
            "taken_at": snapshot.taken_at if snapshot else None,
        },
        **({"discovery": dict(picture.discovery[name])} if name in picture.discovery else {}),
        **({"health": {key: health[key] for key in health.keys() - {"states", "why"}}} if health else {}),
        "endpoints": {
            endpoint: {
                **counts.get(endpoint, {}),
                "weight": weight,
                **({"state": states[endpoint]} if endpoint in states else {}),
                **({"why": why[endpoint]} if endpoint in why else {}),
                **overrides.get(endpoint, {}),
            }
            for endpoint, weight in ((str(one), weight) for one, weight in snapshot.members)
        }
        if snapshot
        else {},
    }


def _summary(figures: Mapping[str, Any]) -> Figures:
    """Return the same with what people can read in place of the buckets of distributions, at any depth."""
    if "buckets" in figures:
        count = figures["count"]
        percentiles = {f"p{q}": quantile_of(figures["buckets"], q / 100) for q in (50, 90, 99)}
        return {"count": count, "mean": figures["sum"] / count if count else None, **percentiles}
    return {key: _summary(one) if isinstance(one, Mapping) else one for key, one in figures.items()}
