"""`tcpgw connections`: which connections there are, and who waits."""

import json
from typing import Annotated, Any

import typer

from tcpgw import terminal
from tcpgw.app.connections import MOST
from tcpgw.operate import figures
from tcpgw.operate.ask import ConfigFile, ask, out

_COLUMNS = (
    "worker", "conn", "listener", "client", "service", "endpoint", "age", "in", "out", "in flight", "waiting",
    "connect", "state",
)  # fmt: skip
_WHOLE = ("client", "endpoint")


def connections(
    config: ConfigFile,
    service: Annotated[
        str | None, typer.Option("--service", metavar="NAME", help="Only those of this service.")
    ] = None,
    *,
    slowest: Annotated[
        bool, typer.Option("--slowest", help="Who waits longest for an answer first; else the oldest.")
    ] = False,
    count: Annotated[int, typer.Option(min=1, max=MOST, help="So many at most.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List connections of the running gateway, those of all workers together.

    `waiting` is how long the oldest request without an answer has waited. On tcp listeners, where nobody
    knows what a request is, it is how long no byte has moved since the client sent last, to a few seconds.
    After it `--slowest` goes by the time that connecting to the instance took, then by age.

    A connection of an rpc listener has no endpoint of its own: its requests go to many. `in flight` is not
    known on tcp listeners. `conn` is unique in its worker and listener, and stands in the log.

    Exit code 2: there is no such service.
    """
    found = ask(config, "connections", service, slowest, count)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    table = terminal.table(*_COLUMNS, whole=_WHOLE)
    for one in found["connections"]:
        table.add_row(*map(terminal.visible, _cells(one)))
    if found["connections"]:
        out.print(table)
    shown, total = len(found["connections"]), found["total"]
    typer.echo(f"{shown} of {total} connections" if shown < total else f"{total} connections")
    if found["unheard"]:
        silent = ", ".join(map(str, found["unheard"]))
        typer.secho(f"Without those of workers that did not answer in time: {silent}.", err=True, fg="yellow")


def _cells(one: dict[str, Any]) -> tuple[str, ...]:
    waiting = "-" if not one["waiting"] else figures.latency(one["waiting"])
    return (
        str(one["worker"]),
        str(one["conn"]),
        one["listener"],
        one["client"],
        one["service"] or "-",
        one["endpoint"] or "-",
        figures.age(one["age"]),
        figures.size(one["bytes_in"]),
        figures.size(one["bytes_out"]),
        "-" if one["in_flight"] is None else str(one["in_flight"]),
        waiting,
        figures.latency(one["connect_time"]),
        one["state"],
    )
