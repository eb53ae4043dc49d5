"""How a running gateway is asked: over the control socket that its configuration's path leads to."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tcpgw import terminal
from tcpgw.app.control import REFUSED
from tcpgw.client import RpcError, SyncClient
from tcpgw.errors import ConnectError, TcpgwError
from tcpgw.process.control import others, places

ConfigFile = Annotated[
    Path, typer.Option("--config", "-c", metavar="FILE", help="The configuration that the gateway runs with.")
]

# As wide as it takes where nobody looks: half an address is none, also to grep.
out = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200)

# Seconds: a reload waits for the first snapshots of new services, an upgrade for those of all.
_PATIENCE = 600.0
# What a gateway says that does not know a method: tcpgw.service does.
_UNKNOWN = "unknown_method"


class AskError(TcpgwError):
    """Nobody answered, or with an error. `code` is what a command ends with then."""

    blame = "operator"

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def ask(config: Path, method: str, *params: Any) -> Any:
    """Ask the gateway that runs with this file, or exit: 2 where file or question are at fault, else 1."""
    try:
        return call(config, method, *params, timeout=_PATIENCE)
    except AskError as exc:
        raise terminal.end(exc.code, str(exc)) from None


def call(config: Path, method: str, *params: Any, timeout: float) -> Any:
    """Ask the gateway that runs with this file, whichever process that is now. Raises AskError."""
    if not config.exists():
        raise AskError(2, f"{config}: no such file")
    tried = list(places(config, os.environ))
    for place in (*tried, *others(config)):
        try:
            with SyncClient(f"unix:{place}", connect_timeout=1.0) as client:
                return client.call(method, *params, timeout=timeout)
        except ConnectError:
            continue
        except RpcError as exc:
            raise AskError(2 if exc.code == REFUSED else 1, _said(exc)) from None
        except TcpgwError as exc:
            raise AskError(1, str(exc)) from None
    folders = ", ".join(str(place.parent) for place in tried)
    raise AskError(
        1,
        f"no gateway that runs with {config} answers in {folders}. Is it another user's (use that user, or"
        " root), or was it started with another path to the file? Signals work: SIGHUP reloads",
    )


def _said(exc: RpcError) -> str:
    if exc.code == _UNKNOWN:
        return "the gateway that runs is of an older version than this command: `tcpgw upgrade` replaces it"
    return exc.message
