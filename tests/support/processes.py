"""Real programs, and the gateway as operators run it: in processes of their own."""

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# Seconds for a program to start, to stop, or to do what a test waits for: long, for busy machines.
PATIENCE = 20.0

Address = tuple[str, int]


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE:g} s"
        time.sleep(0.01)


def open_files() -> int:
    """Of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def free_port() -> int:
    """A port of 127.0.0.1 for a program that cannot be told to choose one itself."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextlib.contextmanager
def running(command: Sequence[str | Path], output: Path, listens: Address) -> Iterator[None]:
    """Run a program from when it accepts at `listens` to the end of the context. It writes to `output`."""
    with output.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:
            wait_until(lambda: process.poll() is not None or _accepts(listens))
            assert process.poll() is None, output.read_text()
            yield
        finally:
            process.terminate()
            process.wait(PATIENCE)


def _accepts(address: Address) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(address, timeout=1.0):
        return True
    return False


class GatewayProcess:
    """`tcpgw run`, started and ready; its log is its stderr."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log
        wait_until(lambda: self.events("ready") or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        (self.ready,) = self.events("ready")

    def address(self, listener: str = "l") -> Address:
        host, _, port = self.ready["listeners"][listener].rpartition(":")
        return host.strip("[]"), int(port)

    def events(self, name: str) -> list[dict[str, Any]]:
        """What was logged so far under that event name. A line that is no JSON fails the test."""
        whole, _, _ = self._log.read_text().rpartition("\n")
        events = [json.loads(line) for line in whole.splitlines()]
        return [event for event in events if event["event"] == name]

    def lines(self, count: int) -> list[dict[str, Any]]:
        """The closing lines, as soon as there are `count`; more are a failure."""
        wait_until(lambda: len(self.events("connection_closed")) >= count)
        found = self.events("connection_closed")
        assert len(found) == count
        return found

    @property
    def worker(self) -> int:
        """The process that relays, where there is one such."""
        (pid,) = self.ready["workers"]
        return int(pid)

    def rss(self) -> int:
        """Resident memory of the worker in bytes."""
        pages = Path(f"/proc/{self.worker}/statm").read_text().split()[1]
        return int(pages) * resource.getpagesize()

    def cpu_seconds(self) -> float:
        """User and system time of the worker so far."""
        fields = Path(f"/proc/{self.worker}/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def open_files(self) -> int:
        return len(list(Path(f"/proc/{self.worker}/fd").iterdir()))


@contextlib.contextmanager
def gateway(folder: Path, config: str, *, files: int | None = None) -> Iterator[GatewayProcess]:
    """Run a gateway with one worker, and `files` open files at most.

    It must end well, without a warning or a traceback.
    """
    file, log = folder / "tcpgw.toml", folder / "tcpgw.log"
    file.write_text(config + "\n[gateway]\nworkers = 1\ndrain = '100ms'\nhard_stop = '200ms'\n")
    limited = ["prlimit", f"--nofile={files}"] if files else []
    command: list[str | Path] = [*limited, sys.executable, "-m", "tcpgw", "run", "-c", file]
    environment = {**os.environ, "PYTHONWARNINGS": "always::ResourceWarning"}  # the worker's too
    with log.open("wb") as stderr, subprocess.Popen(command, stderr=stderr, env=environment) as process:
        try:
            yield GatewayProcess(process, log)
        finally:
            process.terminate()
            try:
                code = process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
    text = log.read_text()
    assert code == 0, text
    assert "Traceback" not in text, text
    assert "ResourceWarning" not in text, text


def relaying(endpoints: Sequence[Address], *, service: str = "", listener: str = "") -> str:
    """A configuration with one service `s` and one listener `l`; both may have further lines."""
    members = ", ".join(f'"{host}:{port}"' for host, port in endpoints)
    return f"""
[[service]]
name = "s"
discovery = {{ type = "static", endpoints = [{members}] }}
{service}
[[listener]]
name = "l"
bind = "127.0.0.1:0"
route = "s"
{listener}
"""
