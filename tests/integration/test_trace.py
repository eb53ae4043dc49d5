"""`tcpgw trace` of a gateway that runs: clients of all workers, and what becomes of the trace itself."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tcpgw.client import SyncClient
from tcpgw.service import Service
from tests.support.load import Background
from tests.support.processes import PATIENCE, free_port, wait_until
from tests.support.rpc_ends import served
from tests.support.workers import Run, config_of, exchange

Event = dict[str, Any]
LIFE = ["accepted", "allowed", "routed", "candidates", "connecting", "connected", "first_byte", "closed"]


class Trace:
    """A command that runs, and what it printed so far."""

    def __init__(self, process: "subprocess.Popen[bytes]", out: Path, err: Path) -> None:
        self.process = process
        self._out = out
        self.err = err

    @property
    def events(self) -> list[Event]:
        lines = self._out.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def names(self, client: str) -> list[str]:
        return [event["event"] for event in self.events if event.get("client") == client]

    def interrupt(self) -> str:
        """End it as Ctrl-C does; returns its last line."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(PATIENCE) == 0, self.err.read_text()
        return self.err.read_text().splitlines()[-1]


@contextlib.contextmanager
def tracing(run: Run, folder: Path, client: str = "127.0.0.0/8", *options: str) -> Iterator[Trace]:
    """Trace from the moment on in which all workers do."""
    out, err = folder / "trace.out", folder / "trace.err"
    command = [sys.executable, "-m", "tcpgw", "trace", "-c", str(run.file), "--client", client, "--json"]
    with (
        out.open("wb") as stdout,
        err.open("wb") as stderr,
        subprocess.Popen([*command, *options], stdout=stdout, stderr=stderr) as process,
    ):
        try:
            wait_until(lambda: "Ctrl-C ends it" in err.read_text())
            yield Trace(process, out, err)
        finally:
            process.kill()


def test_clients_of_all_workers_are_traced(tmp_path: Path) -> None:
    """Each from its accept to its end, with its endpoint; those of other addresses are not."""
    with Background() as background, contextlib.ExitStack() as stack:
        run = Run(tmp_path, config_of(background.instances, free_port()))
        stack.enter_context(run.started())
        trace = stack.enter_context(tracing(run, tmp_path, "127.0.0.2"))
        exchange(run.address, b"x")
        clients = []
        for _ in range(24):
            with socket.create_connection(run.address, PATIENCE, ("127.0.0.2", 0)) as client:
                clients.append("{}:{}".format(*client.getsockname()))
                client.sendall(b"x")
                assert client.recv(1) == b"x"
        wait_until(lambda: [event["event"] for event in trace.events].count("closed") == 24)
        assert {event["client"] for event in trace.events} == set(clients)
        assert {event["worker"] for event in trace.events} == {1, 2}
        for client_name in clients:
            assert trace.names(client_name) == LIFE
        connected = {event["endpoint"] for event in trace.events if event["event"] == "connected"}
        assert connected == {"{}:{}".format(*instance) for instance in background.instances}
        assert "24 connections, 192 events" in trace.interrupt()
        wait_until(lambda: '"trace_ended"' in run.log.read_text())


def test_who_is_denied_and_what_is_asked(tmp_path: Path) -> None:
    """The one with the reason, the other with each request's key and endpoint."""
    with served(Service({"double": lambda number: 2 * number})) as one, contextlib.ExitStack() as stack:
        host, port = one.split(":")
        listener = 'mode = "rpc"\ncodec = "msgpack-rpc"\naccess = { deny = ["127.0.0.2"] }'
        config = config_of([(host, int(port))], free_port(), more=listener)
        run = Run(tmp_path, config)
        stack.enter_context(run.started())
        trace = stack.enter_context(tracing(run, tmp_path))
        with socket.create_connection(run.address, PATIENCE, ("127.0.0.2", 0)) as denied:
            name = "{}:{}".format(*denied.getsockname())
            with contextlib.suppress(ConnectionError):
                denied.recv(1)
        wait_until(lambda: trace.names(name) == ["accepted", "denied", "closed"])
        with SyncClient("{}:{}".format(*run.address)) as client:
            assert [client.call("double", number) for number in (1, 2)] == [2, 4]
        wait_until(lambda: [event["event"] for event in trace.events].count("closed") == 2)
        second = [event for event in trace.events if event.get("request") == 2]
        assert [event["event"] for event in second] == ["request", "candidates", "sent", "answered"]
        assert (second[0]["method"], second[0]["key"]) == ("double", "source_ip_port")
        assert {event.get("endpoint", one) for event in second} == {one}


def test_a_worker_that_is_killed_and_its_successor(tmp_path: Path) -> None:
    """The end of the one is told, and clients of the other are traced as well."""
    with Background() as background, contextlib.ExitStack() as stack:
        run = Run(tmp_path, config_of(background.instances, free_port(), workers=1))
        stack.enter_context(run.started())
        trace = stack.enter_context(tracing(run, tmp_path))
        with socket.create_connection(run.address, PATIENCE):
            wait_until(lambda: "connected" in [event["event"] for event in trace.events])
            old = trace.events[0]["pid"]
            os.kill(old, signal.SIGKILL)
            wait_until(lambda: trace.events[-1]["event"] == "worker_gone")
        exchange(run.address, b"x")
        wait_until(lambda: trace.events[-1]["event"] == "closed")
        assert trace.events[-1]["pid"] != old


def test_a_command_that_is_killed_ends_its_trace(tmp_path: Path) -> None:
    """The gateway notices, and nobody is traced any more; a gateway that ends ends the command."""
    with Background() as background, contextlib.ExitStack() as stack:
        run = Run(tmp_path, config_of(background.instances, free_port()))
        gateway = stack.enter_context(run.started())
        with tracing(run, tmp_path) as trace:
            trace.process.kill()
            trace.process.wait(PATIENCE)
        wait_until(lambda: '"trace_ended"' in run.log.read_text())
        with tracing(run, tmp_path) as trace:
            gateway.process.terminate()
            assert trace.process.wait(PATIENCE) == 1
            assert "the gateway ended meanwhile" in trace.err.read_text()


def test_it_takes_as_long_as_was_said(tmp_path: Path) -> None:
    """And ends with 0."""
    with Background() as background, contextlib.ExitStack() as stack:
        run = Run(tmp_path, config_of(background.instances, free_port(), workers=1))
        stack.enter_context(run.started())
        with tracing(run, tmp_path, "10.0.0.0/8", "--for", "0.5s") as trace:
            assert trace.process.wait(PATIENCE) == 0
            assert trace.err.read_text().endswith("s: 0 connections, 0 events\n")
