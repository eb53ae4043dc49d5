"""A gateway of several processes, under tests: its file, its commands, its clients."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tests.support.load import Load
from tests.support.processes import PATIENCE, Address, GatewayProcess


def config_of(
    instances: list[Address],
    port: int,
    *,
    workers: int = 2,
    hard_stop: str = "8s",
    gateway: str = "",
    service: str = "",
    more: str = "",
) -> str:
    """A service `s` with these instances behind a listener `l`."""
    members = ", ".join(f'"{host}:{number}"' for host, number in instances)
    return f"""
[gateway]
workers = {workers}
drain = "1s"
hard_stop = "{hard_stop}"
{gateway or 'unsupervised = "5s"'}
[[service]]
name = "s"
discovery = {{ type = "static", endpoints = [{members}] }}
balance = {{ key = "source_ip_port", bounded_load = 0 }}
{service}
[[listener]]
name = "l"
bind = "127.0.0.1:{port}"
route = "s"
{more}
"""


class Run:
    """`tcpgw run` with a file that can be written anew."""

    def __init__(self, folder: Path, text: str) -> None:
        self.file = folder / "tcpgw.toml"
        self.file.write_text(text)
        self.log = folder / "log"
        listener = text.partition("[[listener]]")[2]
        port = listener.partition('bind = "127.0.0.1:')[2].partition('"')[0]
        self.address: Address = ("127.0.0.1", int(port))

    @contextlib.contextmanager
    def started(self, code: int = 0) -> Iterator[GatewayProcess]:
        """From `ready` to the end of the context; then it must have ended with that code, or be told to."""
        with self.log.open("ab") as log, self.process(log) as process:
            try:
                gateway = GatewayProcess(process, self.log)
                yield gateway
                if process.poll() is None:
                    process.terminate()
                assert process.wait(PATIENCE) == code, self.log.read_text()
            except BaseException:
                self._kill_all()
                raise
            finally:
                process.kill()
        text = self.log.read_text()
        assert "Traceback" not in text, text
        assert "ResourceWarning" not in text, text

    def process(self, log: IO[bytes]) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "tcpgw", "run", "-c", str(self.file)]
        environment = {**os.environ, "PYTHONWARNINGS": "always::ResourceWarning"}
        return subprocess.Popen(command, stderr=log, env=environment)

    @staticmethod
    def children(pid: int) -> list[int]:
        with contextlib.suppress(OSError):
            return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return []

    def is_supervisor(self, pid: int) -> bool:
        """Whether a process is one that runs this file."""
        with contextlib.suppress(OSError):
            return os.fsencode(self.file) in Path(f"/proc/{pid}/cmdline").read_bytes()
        return False

    def _kill_all(self) -> None:
        """Whatever still runs with this file, such as the successor of a test that failed."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if os.fsencode(self.file) in path.read_bytes():
                    os.kill(int(path.parent.name), signal.SIGKILL)

    def command(self, name: str, *options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tcpgw", name, "-c", str(self.file), *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE, check=False)

    def status(self) -> dict[str, Any]:
        told = self.command("status", "--json")
        assert told.returncode == 0, told.stderr
        found: dict[str, Any] = json.loads(told.stdout)
        return found


def exchange(address: Address, data: bytes) -> None:
    with socket.create_connection(address, PATIENCE) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        assert b"".join(iter(lambda: client.recv(65536), b"")) == data


def exchange_often(address: Address, times: int) -> None:
    for _ in range(times):
        exchange(address, b"x")


def unharmed(load: Load) -> None:
    assert not load.long, (load.long, load.short)
    assert not load.short, (load.long, load.short)


def runs(pid: int) -> bool:
    """Whether a process is there and has not ended (a child of ours that nobody waited for has)."""
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"
    return False
