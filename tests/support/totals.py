"""Figures as workers report them."""

from typing import Any

from tcpgw.observe.histogram import Histogram
from tcpgw.relay.reasons import FAILED


def times(*seconds: float) -> dict[str, Any]:
    histogram = Histogram()
    for one in seconds:
        histogram.add(one)
    return histogram.figures()


def tally(opened: int = 0, active: int = 0, **ended: int) -> dict[str, Any]:
    """What connections to a service came to."""
    return {
        "opened": opened,
        "active": active,
        "bytes_in": 10 * opened,
        "bytes_out": 100 * opened,
        "ended": ended,
        "duration": times(*[1.0] * sum(ended.values())),
    }


def listener(counts: str = "connections", /, **services: dict[str, Any]) -> dict[str, Any]:
    """What a listener's connections came to; it `counts` them as invocations, or "requests"."""
    ended: dict[str, int] = {}
    for one in services.values():
        for reason, count in one["ended"].items():
            ended[reason] = ended.get(reason, 0) + count
    return {
        "accepted": sum(one["opened"] for one in services.values()),
        "active": sum(one["active"] for one in services.values()),
        "paused": 0,
        "accept_failures": 0,
        "bytes_in": 0,
        "bytes_out": 0,
        "ended": ended,
        "drains": {},
        "services": services,
        "ages": {"1": 1, "10": 0, "": 2},
        "invocations": {name: invoked(one) for name, one in services.items() if name}
        if counts == "connections"
        else {},
    }


def invoked(one: dict[str, Any]) -> dict[str, int]:
    ended = one["ended"]
    failed = sum(ended.get(reason, 0) for reason in FAILED)
    return {"opened": one["opened"], "ended": sum(ended.values()), "failed": failed}


def method(*seconds: float, inflight: int = 0, **outcomes: int) -> dict[str, Any]:
    """What the requests of a method came to."""
    return {"outcomes": outcomes, "latency": times(*seconds), "inflight": inflight}
