"""`tcpgw trace`: the lives of some clients' connections, line by line as they happen."""

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from tcpgw import terminal
from tcpgw.app.background import first
from tcpgw.app.control import RefusedError
from tcpgw.app.tracing import LONGEST, network_of
from tcpgw.client import Client
from tcpgw.errors import ConnectError, TcpgwError
from tcpgw.operate.ask import AskError, ConfigFile, answered, asking
from tcpgw.operate.options import duration
from tcpgw.operate.steps import Steps
from tcpgw.process.signals import Ending, ending

# Seconds for an answer: a question waits for one second at the gateway.
_PATIENCE = 10.0
# Seconds in which the gateway is told that nobody looks any more; else it finds that out by itself.
_PARTING = 1.0


def _network(text: str) -> str:
    try:
        return network_of(text)
    except RefusedError as exc:
        raise typer.BadParameter(str(exc)) from None


def _length(text: str) -> float:
    seconds = duration(text)
    if seconds > LONGEST:
        raise typer.BadParameter(f"{text}: a trace takes at most {LONGEST:g} s; for longer there is the log")
    return seconds


def trace(
    config: ConfigFile,
    client: Annotated[
        str,
        typer.Option(parser=_network, metavar="CIDR", help="Whom to trace: 10.0.0.7, 10.0.0.0/24, fd00::/8."),
    ],
    seconds: Annotated[
        float,
        typer.Option(
            "--for",
            parser=_length,
            metavar="DURATION",
            help="30s, 5m, or seconds; 1m where it is not given.",
            show_default=False,
        ),
    ] = 60.0,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print each event as one JSON object.")] = False,
) -> None:
    """Print what becomes of the connections of some clients, step by step, from now on.

    Of those that connect while it runs: accept, PROXY header, TLS, access, service, key, candidates, each try
    to connect, the first byte, drain and end; on rpc listeners also each request, `#3.7` the seventh of the
    third connection. Times are since the accept. Credentials are not shown, nor the keys of requests.

    Ends after --for, 10 min at most, or with Ctrl-C. Of a flood a part is told, and how much was not.

    Exit code 2: that is no network, or too many traces run.
    """
    try:
        uvloop.run(_trace(config, client, seconds, Steps(as_json=as_json)))
    except AskError as exc:
        raise terminal.end(exc.code, str(exc)) from None


async def _trace(config: Path, network: str, seconds: float, steps: Steps) -> None:
    async with asking(config) as gateway:
        with answered():
            name = await gateway.call("trace_begin", network, seconds, timeout=_PATIENCE)
        _note(f"tracing who connects from {network}, for {seconds:g} s; Ctrl-C ends it")
        began = time.monotonic()
        with ending() as end:
            try:
                await first(_followed(gateway, name, end, steps), end.now.wait())
            finally:
                _note(f"{time.monotonic() - began:.0f} s: {steps.summary()}")
                with contextlib.suppress(TcpgwError):  # also where nobody reads on
                    await gateway.call("trace_end", name, timeout=_PARTING)


async def _followed(gateway: Client, name: str, end: Ending, steps: Steps) -> None:
    """Print all events until the trace is over, which it is soon once that is asked for."""

    async def end_early() -> None:
        await end.asked.wait()
        with contextlib.suppress(TcpgwError):
            await gateway.call("trace_end", name, timeout=_PATIENCE)

    ending_early = asyncio.create_task(end_early())
    try:
        over = False
        while not over:
            with answered():
                answer = await gateway.call("trace_next", name, timeout=_PATIENCE)
            for event in answer["events"]:
                steps.show(event)
            over = answer["over"]
    except (AskError, ConnectError) as exc:
        raise AskError(1, f"the gateway ended meanwhile, or another process took over: {exc}") from None
    finally:
        ending_early.cancel()
        await asyncio.gather(ending_early, return_exceptions=True)


def _note(text: str) -> None:
    """Say something that is no event."""
    typer.echo(text, err=True)
