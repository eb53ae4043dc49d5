"""The command that makes API keys: `tcpgw key new`."""

import json
import time
from typing import Annotated

import typer

from tcpgw import terminal
from tcpgw.access.keys import moment, new_key

key = typer.Typer(name="key", help="Make API keys.", no_args_is_help=True)


@key.callback()
def _group() -> None:
    """Keep `new` a word of its own: a group of one command would swallow it."""


def _patterns(option: str, what: str) -> object:
    text = f"A {what} that it may use; a * at the end stands for any rest. May be repeated."
    return typer.Option(option, metavar="PATTERN", help=text, show_default="all")


@key.command("new")
def new(
    name: Annotated[
        str,
        typer.Option("--name", metavar="SUBJECT", help="Who will hold it: the subject, in logs and limits."),
    ],
    expires: Annotated[
        str,
        typer.Option(
            metavar="TIME", help="When it ends: 2027-01-01 or 2027-01-01T12:00:00Z.", show_default="never"
        ),
    ] = "",
    listener: Annotated[list[str] | None, _patterns("--listener", "listener")] = None,
    service: Annotated[list[str] | None, _patterns("--service", "service")] = None,
    method: Annotated[list[str] | None, _patterns("--method", "method of an rpc codec")] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make an API key and print it, once, with the line to store. Nothing is written anywhere.

    To replace a key, add a new one of the same name, change the clients, and take the old line out.
    """
    try:
        made = new_key(
            name,
            expires=_end(expires),
            listeners=listener or (),
            services=service or (),
            methods=method or (),
        )
    except ValueError as exc:
        raise terminal.end(2, str(exc)) from None
    if as_json:
        typer.echo(json.dumps({"key": made.key, "line": made.line}))
        return
    # Not rich: it would break the long lines, which are there to be copied.
    typer.echo(f"The API key, for {name}. It is not stored, so it cannot be shown again:\n\n{made.key}\n")
    typer.echo(f"The line for the file of listener.access.api_keys:\n\n{made.line}")


def _end(text: str) -> float | None:
    if not text:
        return None
    try:
        end = moment(text)
    except ValueError as exc:
        raise ValueError(f"--expires {text!r} {exc}") from None
    if end <= time.time():
        raise ValueError(f"--expires {text} has passed: the key would be refused at once")
    return end
