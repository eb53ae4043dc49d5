"""The command line as its user meets it: commands in this process, and `tcpgw run` in one of its own."""

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from tcpgw import cli
from tests.support.processes import PATIENCE, GatewayProcess, wait_until


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def tcpgw(*args: object) -> Outcome:
    """Run `tcpgw ARGS…` without the second that a new interpreter takes to start.

    Needs a thread without a running event loop. The log goes past `err`, to descriptor 2.
    """
    out, err = io.StringIO(), io.StringIO()
    argv = ["tcpgw", *map(str, args)]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), patch.object(sys, "argv", argv):
        try:
            cli.main()
        except SystemExit as exc:
            code = exc.code
        else:
            code = 0
    assert code is None or isinstance(code, int), code
    return Outcome(code or 0, out.getvalue(), err.getvalue())


class Run:
    """`tcpgw run`, perhaps not ready yet, and its log."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process = process
        self.log = log

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def until(self, event: str) -> None:
        """Wait until the log has that event."""
        wait_until(lambda: f'"{event}"' in self.log.read_text() or self.process.poll() is not None)
        assert f'"{event}"' in self.log.read_text()

    def ready(self) -> GatewayProcess:
        return GatewayProcess(self.process, self.log)

    def end(self, code: int = 0) -> list[dict[str, Any]]:
        """Wait for the end, with that exit code and nothing on stdout, and return the log."""
        out, _ = self.process.communicate(timeout=PATIENCE)
        assert (self.process.returncode, out) == (code, b""), self.log.read_text()
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@contextlib.contextmanager
def started(folder: Path, config: str, *, open_files: int | None = None) -> Iterator[Run]:
    """Start `tcpgw run`, for the test to end; perhaps where it may open so many files only."""
    file, log = folder / "run.toml", folder / "run.log"
    file.write_text(config)
    command = [sys.executable, "-m", "tcpgw", "run", "-c", str(file)]
    if open_files:
        command = ["sh", "-c", f'ulimit -n {open_files}; exec "$@"', "sh", *command]
    with (
        log.open("wb") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr) as process,
    ):
        try:
            yield Run(process, log)
        finally:
            process.kill()
