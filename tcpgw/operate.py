"""The commands that ask a running gateway: `tcpgw status`, `tcpgw reload`, `tcpgw upgrade`."""

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tcpgw import terminal
from tcpgw.app.control import REFUSED
from tcpgw.client import RpcError, SyncClient
from tcpgw.errors import ConnectError, TcpgwError
from tcpgw.process.control import others, places

# As wide as it takes where nobody looks: half an address is none, also to grep.
out = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200)

ConfigFile = Annotated[
    Path, typer.Option("--config", "-c", metavar="FILE", help="The configuration that the gateway runs with.")
]

_WHOLE = ("address", "endpoint")
# Seconds: a reload waits for the first snapshots of new services, an upgrade for those of all.
_PATIENCE = 600.0


def reload(config: ConfigFile) -> None:
    """Have the running gateway read its configuration again; connections go on.

    Prints what changed. Exit code 2: the file is not valid, or what it asks for cannot be had (an address
    that is taken), and the configuration in force stays as it was.
    """
    changes = _ask(config, "reload")
    for line in changes:
        typer.echo(line)
    if not changes:
        typer.echo("nothing changed")


def upgrade(config: ConfigFile) -> None:
    """Have the running gateway replaced by the version installed now; no client is refused.

    The new one takes over the listening sockets, the old one drains.
    """
    successor = _ask(config, "upgrade")
    typer.echo(
        f"process {successor['pid']} accepts on {', '.join(successor['listeners'])}; the old one drains"
    )


def status(
    config: ConfigFile,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print what the running gateway does and did, all its workers together."""
    found = _ask(config, "status")
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        _show(found)


def _ask(config: Path, method: str) -> Any:
    """Ask the gateway that runs with this file, or exit: 2 where the file is at fault, else 1."""
    if not config.exists():
        raise terminal.end(2, f"{config}: no such file")
    tried = list(places(config, os.environ))
    for place in (*tried, *others(config)):
        try:
            with SyncClient(f"unix:{place}", connect_timeout=1.0) as client:
                return client.call(method, timeout=_PATIENCE)
        except ConnectError:
            continue
        except RpcError as exc:
            raise terminal.end(2 if exc.code == REFUSED else 1, exc.message) from None
        except TcpgwError as exc:
            raise terminal.end(1, str(exc)) from None
    folders = ", ".join(str(place.parent) for place in tried)
    raise terminal.end(
        1,
        f"no gateway that runs with {config} answers in {folders}. Is it another user's (use that user, or"
        " root), or was it started with another path to the file? Signals work: SIGHUP reloads",
    )


def _show(found: Mapping[str, Any]) -> None:
    age = _age(time.time() - found["since"])
    out.print(f"tcpgw {found['version']}: {found['state']}; pid {found['pid']}, up {age}", soft_wrap=True)
    workers = terminal.table("worker", "pid", "state", "connections", "up", whole=_WHOLE)
    for one in found["workers"]:
        cells = (one["worker"], one["pid"], one["state"], one["connections"], _age(one["age"]))
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
            services.add_row(
                name, endpoint, str(one["weight"]), one.get("state", ""), *figures, failures or "0"
            )
    out.print(workers, listeners, services)
    for name, one in found["listeners"].items():
        if one["ended"]:
            ended = ", ".join(f"{reason} {count}" for reason, count in sorted(one["ended"].items()))
            out.print(
                f"{name}: {one['bytes_in']} bytes in, {one['bytes_out']} out; ended: {ended}", soft_wrap=True
            )
    for name, service in found["services"].items():
        if service.get("health", {}).get("panic"):
            out.print(f"{name}: too few endpoints are usable, so all are used (panic)", soft_wrap=True)
    if found["overload"]["active"]:
        out.print("overloaded: new connections are closed; see the log", soft_wrap=True)
    if found["worker_deaths"]:
        out.print(f"workers that died: {found['worker_deaths']}")


def _age(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [f"{count} {unit}" for count, unit in ((days, "d"), (hours, "h"), (minutes, "min")) if count]
    return " ".join(parts[:2]) or f"{rest} s"
