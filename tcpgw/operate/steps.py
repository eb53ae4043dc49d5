"""How steps of connections are printed: one line each, for people or for programs."""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import typer

from tcpgw.operate.figures import latency, size
from tcpgw.terminal import visible

Event = Mapping[str, Any]

_GOOD = {"allowed", "connected", "answered"}
_BAD = {"denied", "connect_failed", "failed", "dropped", "worker_gone"}
_BOLD = {"accepted", "closed"}
# Of each event, what is not told in words of its own.
_COMMON = {"at", "event", "after", "listener", "conn", "client", "worker", "pid", "request"}
# What is counted of that which was not told.
_LOST = ("connections", "requests", "events")


class Steps:
    """Prints events, and knows how many there were."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        # None: on a terminal; https://no-color.org
        self._color = False if os.environ.get("NO_COLOR") else None
        self._numbers: dict[tuple[int, str, int], int] = {}  # of connections that have not ended
        self._connections = 0
        self._events = 0
        self._lost: Counter[str] = Counter()

    def show(self, event: Event) -> None:
        """Print an event, as the gateway told it."""
        if event["event"] == "dropped":
            self._lost.update({what: event[what] for what in _LOST})
        else:
            self._events += 1
        number = self._number(event)
        typer.echo(json.dumps(event) if self._as_json else _line(event, number), color=self._color)

    def summary(self) -> str:
        told = f"{self._connections} connections, {self._events} events"
        return f"{told}; not told: {_counted(self._lost)}" if +self._lost else told

    def _number(self, event: Event) -> int | None:
        """Which connection this is of, counted from 1: ids are each worker's and listener's own."""
        if event["event"] == "worker_gone":
            self._numbers = {of: one for of, one in self._numbers.items() if of[0] != event["pid"]}
        if "conn" not in event:
            return None
        whose = event["pid"], event["listener"], event["conn"]
        if whose not in self._numbers:
            self._connections += 1
            self._numbers[whose] = self._connections
        return self._numbers.pop(whose) if event["event"] == "closed" else self._numbers[whose]


def _line(event: Event, number: int | None) -> str:
    what, at = str(event["event"]), event["at"]
    clock = f"{time.strftime('%H:%M:%S', time.localtime(at))}.{int(at % 1 * 1000):03d}"
    of = "" if number is None else f"#{number}.{event['request']}" if "request" in event else f"#{number}"
    since = latency(event["after"]) if event.get("after") else ""
    color = typer.colors.GREEN if what in _GOOD else typer.colors.RED if what in _BAD else None
    said = visible(_SAID.get(what, _listed)(event))
    name = visible(what.replace("_", " "))
    # Padded where no style hides it: at the end of a line there is to be nothing.
    gap = " " * max(1, 15 - len(name)) if said else ""
    name = typer.style(name, fg=color, bold=what in _BOLD)
    of = f"{typer.style(of, fg=typer.colors.CYAN)}{' ' * (6 - len(of))}"
    return f"{typer.style(clock, dim=True)} {of} {since:>7}  {name}{gap}{said}"


# ---- a connection's ----


def _accepted(event: Event) -> str:
    where = f"listener {event['listener']}, worker {event['worker']}, conn {event['conn']}"
    return f"{event['client']} at {event['to']}; {where}"


def _allowed(event: Event) -> str:
    if "subject" not in event:
        return "no credential is asked for"
    key = f" {event['key']}" if "key" in event else ""
    return f"as {event['subject']}, by {event['credential']}{key}"


def _routed(event: Event) -> str:
    host = f" for host {event['host']}" if "host" in event else ""
    service = f"service {event['service']}" if "service" in event else "a service by request"
    return f"{service}{host}{_split(event)}"


def _placed(event: Event) -> str:
    if event.get("by") == "request":
        return f"{_routed(event)}; each request by its own key"
    place = event["endpoint"] or "an endpoint by load"
    return f"{place} of {_routed(event)}; {_key(event)}"


def _split(event: Event) -> str:
    if "split" not in event:
        return ""
    shares = ", ".join(f"{service} {weight}" for service, weight in event["split"].items())
    return f" of {shares}" + (f" (at {event['split_position']})" if "split_position" in event else "")


def _key(event: Event) -> str:
    value = f" {event['value']}" if "value" in event else ""
    return f"key {event['key']}{value} at {event['position']}"


def _candidates(event: Event) -> str:
    endpoints, home = event["endpoints"], event["home"]
    order = ", ".join(endpoints) or "none"
    passed = f"; {home}, its home, comes later" if home and endpoints and home != endpoints[0] else ""
    return f"{order}{passed}" + (f"; {_key(event)}" if "key" in event else "")


def _connect_failed(event: Event) -> str:
    return f"{event['endpoint']} after {latency(event['seconds'])}: {event['error']}"


def _closed(event: Event) -> str:
    error = f": {event['error']}" if "error" in event else ""
    requests = f"; {event['requests']} requests" if "requests" in event else ""
    return f"{event['reason']}{error}{requests}; {size(event['bytes_in'])} in, {size(event['bytes_out'])} out"


# ---- a request's ----


def _request(event: Event) -> str:
    kind = "notification " if event["notification"] else ""
    return f"{kind}{event['method']}, {size(event['bytes'])}, to {event['service']}; {_key(event)}"


def _answered(event: Event) -> str:
    what = " with an error" if event["error"] else ""
    return f"by {event['endpoint']} in {latency(event['seconds'])}{what}"


def _failed(event: Event) -> str:
    return f"{event['code']}: {event['error']}"


# ---- all others ----


def _tried(event: Event) -> str:
    again = f", try {event['tries']}" if event["tries"] > 1 else ""
    return f"{event['endpoint']}{again}"


def _worker_gone(event: Event) -> str:
    return f"worker {event['worker']}, and with it what connections it had left"


def _counted(lost: Mapping[str, int]) -> str:
    return ", ".join(f"{lost[what]} {what}" for what in _LOST if lost[what])


def _listed(event: Event) -> str:
    """Of what has no words of its own, as events of a newer gateway: what there is."""
    told = {
        name: value for name, value in event.items() if name not in _COMMON and value not in (None, "", [])
    }
    return ", ".join(f"{name.replace('_', ' ')} {_text(value)}" for name, value in told.items())


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


_SAID: dict[str, Callable[[Event], str]] = {
    "accepted": _accepted,
    "allowed": _allowed,
    "denied": lambda event: f"{event['reason']}: {event['why']}",
    "routed": _routed,
    "placed": _placed,
    "candidates": _candidates,
    "waiting": lambda event: f"for a place at {event['endpoint']}",
    "connecting": _tried,
    "first_byte": lambda _: "from the instance",
    "connected": lambda event: f"{event['endpoint']} in {latency(event['seconds'])}",
    "connect_failed": _connect_failed,
    "closed": _closed,
    "request": _request,
    "sent": _tried,
    "retrying": lambda event: event["error"],
    "answered": _answered,
    "failed": _failed,
    "dropped": lambda event: f"{_counted(event)} were too many to be told",
    "worker_gone": _worker_gone,
}
