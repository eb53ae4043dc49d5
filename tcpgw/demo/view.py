"""The demo on the screen: a live table and the steps in words, a table of promises at the end, or JSON."""

import asyncio
import contextlib
import dataclasses
import errno
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import uvloop
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from tcpgw.demo.instances import DemoError
from tcpgw.demo.result import Promise, Result, make_promises
from tcpgw.demo.rpc_clients import CLIENTS, Load
from tcpgw.demo.scenario import play
from tcpgw.demo.stage import RELAYED, SERVICES, Stage, set_up
from tcpgw.demo.traffic import EXAMPLE, KEYS, Traffic

T = TypeVar("T")

_REFRESH = 0.2  # s
_BAR = 20  # characters for half of a service's clients
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_demo(seconds: float, *, as_json: bool, serve: bool) -> int:
    """Run the whole demo. Returns the exit code, and leaves no process and no file.

    0: every promise was kept (or a signal ended `serve`). 1: one was not, the demo could not go on, or a
    signal ended it early.
    """
    console = _Console(highlight=False, quiet=as_json)
    screen = _Screen(console)
    with tempfile.TemporaryDirectory(prefix="tcpgw-demo-") as folder:
        demo = screen.serve(Path(folder)) if serve else screen.perform(Path(folder), seconds)
        try:
            result = uvloop.run(_until_signal(demo))
        except DemoError as exc:
            Console(stderr=True, highlight=False).print(str(exc), style="red", markup=False, soft_wrap=True)
            return 1
    if result is None:
        console.print("\nEnded by a signal. Nothing is left running.")
        return 0 if serve else 1
    promises = make_promises(result)
    broken = [promise.text for promise in promises if not promise.kept]
    if as_json:
        json.dump(dataclasses.asdict(result) | {"promises_broken": broken}, sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        console.print(_summary(result, promises))
    return 1 if broken else 0


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # As of `| head`. Not rich's SystemExit, which asyncio lets out of its loop before the clean-up.
        raise BrokenPipeError(errno.EPIPE, "nobody reads the demo's output any more")


class _Screen:
    """What the demo shows while it runs: steps in words, and on a terminal a live table below them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()

    async def perform(self, folder: Path, seconds: float) -> Result:
        async with set_up(folder, self._tell) as stage:
            self._show_gateway(stage)
            traffic = Traffic({service: stage.address(service) for service in RELAYED})
            load = Load(stage.address("infer"))
            async with self._board(lambda: _board(stage, traffic, load)):
                return await play(stage, traffic, load, seconds, self._tell)

    async def serve(self, folder: Path) -> None:
        """Runs until it is cancelled. Raises DemoError where the gateway ends by itself."""
        async with set_up(folder, self._tell, self._show_connection) as stage:
            self._show_gateway(stage)
            self._show_usage(stage)
            await stage.gateway.ended.wait()
        raise DemoError("the gateway ended by itself")

    def _tell(self, sentence: str) -> None:
        step = Table.grid(padding=(0, 1))
        step.add_row(f"[cyan]{time.monotonic() - self._began:5.1f} s[/]", Text(sentence))
        self._console.print(step)

    def _show_gateway(self, stage: Stage) -> None:
        self._tell(f"The gateway: tcpgw run -c {stage.config}, which says:")
        text = stage.configuration()
        if self._console.is_terminal:
            self._console.print(Padding(Syntax(text, "toml", background_color="default"), (1, 0, 0, 2)))
        else:
            self._console.print(f"\n{text}", markup=False, soft_wrap=True)
        for service, address in stage.gateway.listeners.items():
            self._tell(f"The gateway listens on {address} for {service}.")

    def _show_usage(self, stage: Stage) -> None:
        listeners = stage.gateway.listeners
        predict, echo, infer = (listeners[service] for service in ("predict", "echo", "infer"))
        post = f"-H 'Content-Type: application/json' -d '{EXAMPLE.decode()}' http://{predict}"
        lines = {
            "Ask service predict (the answer names the instance):": f"curl {post}",
            "From another address, so perhaps another instance:": f"curl --interface 127.77.0.9 {post}",
            "Which instance an address gets, and why:": (
                f"tcpgw explain -c {stage.config} --service predict 127.77.0.9"
            ),
            "Type at service echo:": f"nc {echo.replace(':', ' ')}",
            "Ask service infer over MessagePack-RPC, several times:": (
                f"tcpgw call {infer} predict '{EXAMPLE.decode()}'"
            ),
            "What one of its instances sees, however many clients there are:": f"tcpgw call {infer} stats",
        }
        for what, line in lines.items():
            self._console.print(f"\n{what}")
            self._console.print(f"  {line}", style="bold", markup=False, soft_wrap=True)
        self._console.print("\nEach connection is shown when it has ended. Ctrl-C ends everything.\n")

    def _show_connection(self, event: dict[str, Any]) -> None:
        if event["event"] == "connection_closed":
            # A connection whose requests are balanced one by one has no endpoint.
            where = f" at {event['endpoint']}" if event.get("endpoint") else ""
            size = f"{event['bytes_in']} bytes in, {event['bytes_out']} out"
            asked = f"requests: {event['requests']}, " if "requests" in event else ""
            end = f"{event['duration'] * 1000:.1f} ms, {event['reason']}"
            self._tell(f"{event['client']} to {event['service']}{where}: {asked}{size}, {end}")

    @contextlib.asynccontextmanager
    async def _board(self, draw: Callable[[], Group]) -> AsyncIterator[None]:
        """Show the table live on a terminal, elsewhere once at the end."""
        if not self._console.is_terminal or self._console.is_dumb_terminal:
            yield
            self._console.print(draw())
            return
        # No thread refreshes: instances are forked from this process.
        with Live(console=self._console, auto_refresh=False) as live:

            async def refresh() -> None:
                while True:
                    live.update(draw(), refresh=True)
                    await asyncio.sleep(_REFRESH)

            task = asyncio.create_task(refresh(), name="live table")
            try:
                yield
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                live.update(draw(), refresh=True)


def _board(stage: Stage, traffic: Traffic, load: Load) -> Group:
    clients = Counter(traffic.seen.values()) + Counter(load.seen.values())
    table = Table("instance", "endpoint", "clients", "", "connections", box=box.SIMPLE_HEAD)
    table.columns[2].justify = table.columns[4].justify = "right"
    for service in SERVICES:
        for instance in stage.of(service):
            name = instance.name
            bar = ProgressBar((KEYS if service in RELAYED else CLIENTS) / 2, clients[name], width=_BAR)
            connections = traffic.per_instance[name] if service in RELAYED else load.connections.get(name, 0)
            table.add_row(
                name,
                str(instance.endpoint),
                str(clients[name]),
                Text("killed", style="red") if instance.killed else bar,
                f"{connections:,}",
            )
    cut, failed = stage.judge(traffic.broken)
    return Group(
        table,
        f"{traffic.connections:,} connections: {traffic.open} open, {len(failed)} failed, {len(cut)} cut by "
        f"the kill, {stage.gateway.second_choice} by next candidate",
        f"rpc: {len(load.clients):,} connections open, {load.lost} lost; {load.requests:,} requests, "
        f"{len(load.failures)} failed",
        f"calls of the cloud's API: {stage.cloud.api_calls}; tokens: {stage.cloud.token_calls}",
    )


def _summary(result: Result, promises: list[Promise]) -> Group:
    table = Table("promise", "measured", "", box=box.SIMPLE_HEAD)
    for promise in promises:
        verdict = Text("kept", style="green") if promise.kept else Text("BROKEN", style="bold red")
        table.add_row(promise.text, promise.figures, verdict)
    return Group(
        table,
        f"Connections open on {result.killed} when it died, which no gateway can save: "
        f"{result.cut_with_instance}. New ones that met it dead while the cloud still listed it, and that "
        f"the next candidate served: {result.second_choice}.",
        f"Requests under way on {result.rpc.killed} when it died, which it may have done: "
        f"{result.rpc.failed}. Were their method declared idempotent, others would have answered, within the "
        "retry budget.",
        *(Text(error, style="red") for error in result.errors + result.rpc.errors),
    )


async def _until_signal(coroutine: Coroutine[Any, Any, T]) -> T | None:
    """Run it to its end or to the first signal; then cancel it, and let no second signal disturb that."""
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    for number in _ENDING:
        loop.add_signal_handler(number, asked.set)
    task = asyncio.create_task(coroutine)
    waiter = asyncio.create_task(asked.wait())
    await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()
    if task.done():
        return task.result()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return None
