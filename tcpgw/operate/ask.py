"""How a running gateway is asked: over the control socket that its configuration's path leads to."""

import contextlib
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tcpgw import terminal
from tcpgw.app.control import REFUSED
from tcpgw.client import Client, RpcError, SyncClient
from tcpgw.errors import ConnectError, TcpgwError
from tcpgw.process.control import others, places

ConfigFile = Annotated[
    Path, typer.Option("--config", "-c", metavar="FILE", help="The configuration that the gateway runs with.")
]

# As wide as it takes where nobody looks: half an address is none, also to grep.
out = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200)

# Seconds in which a process that is there has accepted.
_CONNECT = 1.0
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


def say(text: str) -> None:
    """Print a line, whatever those who had a say in it put there."""
    out.print(terminal.visible(text), soft_wrap=True)


def ask(config: Path, method: str, *params: Any) -> Any:
    """Ask the gateway that runs with this file, or exit: 2 where file or question are at fault, else 1."""
    try:
        return call(config, method, *params, timeout=_PATIENCE)
    except AskError as exc:
        raise terminal.end(exc.code, str(exc)) from None


def call(config: Path, method: str, *params: Any, timeout: float) -> Any:
    """Ask the gateway that runs with this file, whichever process that is now. Raises AskError."""
    for address in _addresses(config):
        try:
            with SyncClient(address, connect_timeout=_CONNECT) as client, answered():
                return client.call(method, *params, timeout=timeout)
        except ConnectError:
            continue
    raise _nobody(config)


@contextlib.asynccontextmanager
async def asking(config: Path) -> AsyncIterator[Client]:
    """Connect to the process that runs with this file now, for questions to that one. Raises AskError."""
    async with contextlib.AsyncExitStack() as stack:
        for address in _addresses(config):
            with contextlib.suppress(ConnectError):
                client = await stack.enter_async_context(Client(address, connect_timeout=_CONNECT))
                break
        else:
            raise _nobody(config)
        yield client


@contextlib.contextmanager
def answered() -> Iterator[None]:
    """Raise AskError for what a call raises, but for ConnectError, when nobody has heard it."""
    try:
        yield
    except ConnectError:
        raise
    except RpcError as exc:
        older = "the gateway that runs is of an older version than this command: `tcpgw upgrade` replaces it"
        # What is wrong with a configuration has several lines.
        lines = [older] if exc.code == _UNKNOWN else map(terminal.visible, exc.message.splitlines())
        raise AskError(2 if exc.code == REFUSED else 1, "\n".join(lines)) from None
    except TcpgwError as exc:
        raise AskError(1, str(exc)) from None


def _addresses(config: Path) -> Iterator[str]:
    if not config.exists():
        raise AskError(2, f"{config}: no such file")
    for place in (*places(config, os.environ), *others(config)):
        yield f"unix:{place}"


def _nobody(config: Path) -> AskError:
    folders = ", ".join(str(place.parent) for place in places(config, os.environ))
    return AskError(
        1,
        f"no gateway that runs with {config} answers in {folders}. Is it running? If so, use the path that it"
        " was started with as -c, and its user or root",
    )
