"""`tcpgw status`: what a running gateway does and did."""

import json
import time
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from tcpgw import terminal
from tcpgw.app.monitor.figures import requests
from tcpgw.operate.ask import ConfigFile, ask, out, say
from tcpgw.operate.figures import age, latency

_WHOLE = ("address", "endpoint")


def status(
    config: ConfigFile,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print what the running gateway does and did, all its workers together."""
    found = ask(config, "status")
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        _show(found)


def _show(found: dict[str, Any]) -> None:
    up = age(time.time() - found["since"])
    say(f"tcpgw {found['version']}: {found['state']}; pid {found['pid']}, up {up}")
    workers = terminal.table("worker", "pid", "state", "connections", "up", whole=_WHOLE)
    for one in found["workers"]:
        cells = (one["worker"], one["pid"], one["state"], one["connections"], age(one["age"]))
        workers.add_row(*map(str, cells))
    listeners = terminal.table("listener", "address", "connections", "accepted", whole=_WHOLE)
    for name, one in found["listeners"].items():
        listeners.add_row(name, one["address"] or "removed", str(one.get("active", 0)), str(one["accepted"]))
    services = terminal.table(
        "service", "endpoint", "weight", "state", "in flight", "connected", "failures", whole=_WHOLE
    )
    for name, service in found["services"].items():
        for endpoint, one in service["endpoints"].items():
            figures = (str(one.get(key, 0)) for key in ("inflight", "connected"))
            failures = ", ".join(f"{kind} {count}" for kind, count in one.get("failures", {}).items())
            cells = (name, endpoint, *_standing(one), *figures, failures or "0")
            services.add_row(*map(terminal.visible, cells))
    out.print(workers, listeners, services)
    asked = terminal.table(
        "service", "listener", "method", "requests", "outcomes", "p50", "p99", whole=_WHOLE
    )
    for listener, service, method, one in requests(found):
        asked.add_row(*map(terminal.visible, (service, listener, method, *_came_to(one))))
    if asked.row_count:
        out.print(asked)
    for name, one in found["listeners"].items():
        if one["ended"]:
            ended = ", ".join(f"{reason} {count}" for reason, count in sorted(one["ended"].items()))
            say(f"{name}: {one['bytes_in']} bytes in, {one['bytes_out']} out; ended: {ended}")
    for name, service in found["services"].items():
        for said in _told(service):
            say(f"{name}: {said}")
    if found["overload"]["active"]:
        say("overloaded: new connections are closed; see the log")
    for one in found.get("receivers", ()):
        if one["error"]:
            say(f"alerts to {one['receiver']}, {one['url']}: {one['error']}")
    if found["worker_deaths"]:
        say(f"workers that died: {found['worker_deaths']}")


def _came_to(asked: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """How many requests there were, what became of them, and how long those took that were answered."""
    outcomes = asked.get("outcomes", {})
    often = sorted(outcomes.items(), key=lambda one: -one[1])
    took = asked.get("latency", {})
    return (
        str(sum(outcomes.values())),
        ", ".join(f"{outcome} {count}" for outcome, count in often),
        latency(took.get("p50")),
        latency(took.get("p99")),
    )


def _told(service: Mapping[str, Any]) -> Iterator[str]:
    """What is to be said of a service in words."""
    rpc, circuit = service.get("rpc"), service.get("circuit", {})
    refused, hedges = circuit.get("retries_refused", 0), ""
    retries = service.get("retried", 0)  # connects; requests are counted apart
    if rpc is not None:
        retries += rpc.get("retried", 0)
        refused += rpc.get("retries_refused", 0)
        hedges = f", {rpc.get('hedged', 0)} hedged"
    if hedges or retries or refused:
        more = f" ({refused} more were over the budget)" if refused else ""
        yield f"{retries} retried{more}{hedges}"
    for endpoint, one in service["endpoints"].items():
        if one.get("why"):
            yield f"{endpoint} is {one['state']}: {one['why']}"
    if service.get("health", {}).get("panic"):
        yield "too few endpoints are usable, so all are used (panic)"


def _standing(endpoint: Mapping[str, Any]) -> tuple[str, str]:
    """An endpoint's weight and state, and what an operator said of them."""
    weight, given = endpoint["weight"], endpoint.get("given_weight")
    shown = str(weight) if given in (None, weight) else f"{weight} (discovery: {given})"
    return shown, "drained by operator" if endpoint.get("override") == "drained" else endpoint.get(
        "state", ""
    )
