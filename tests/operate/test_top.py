"""`tcpgw top` in a terminal, as its user meets it, of a gateway that answers with a recorded view."""

import codecs
import contextlib
import fcntl
import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import tcpgw
from tests.support.control import answering
from tests.support.processes import PATIENCE

VIEW: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "view.json").read_text())
SHOW, HIDE = "\x1b[?1049h", "\x1b[?1049l"
CURSOR = "\x1b[?25h"


class Screen:
    """A terminal of a size, and `tcpgw top` in it. `seen` is what was written since it was last cleared."""

    def __init__(self, config: Path, *options: str, columns: int = 80, lines: int = 24, **more: str) -> None:
        self.person, self.program = os.openpty()
        self.seen = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._size(columns, lines)
        self.modes = termios.tcgetattr(self.program)
        environment = {**os.environ, "TERM": "xterm-256color", **more}
        for name in ("COLUMNS", "LINES"):
            environment.pop(name, None)
        # A session of its own, so that Ctrl-C and a change of size reach it as from a terminal.
        command = ["setsid", "--ctty", sys.executable, "-m", "tcpgw", "top", "-c", str(config), *options]
        ends = dict.fromkeys(("stdin", "stdout", "stderr"), self.program)
        self.process = subprocess.Popen(command, env=environment, **ends)  # type: ignore[call-overload]

    def _size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.person, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def resize(self, columns: int, lines: int) -> None:
        self.seen = ""
        self._size(columns, lines)

    def type(self, keys: str) -> None:
        self.seen = ""
        os.write(self.person, keys.encode())

    def until(self, pattern: str) -> None:
        """Wait until that stands on the screen, whatever its colours."""
        deadline = time.monotonic() + PATIENCE
        while not re.search(pattern, re.sub(r"\x1b\[[0-9;]*m", "", self.seen)):
            assert time.monotonic() < deadline, self.seen
            self._read(0.05)

    def _read(self, seconds: float) -> None:
        if select.select([self.person], [], [], seconds)[0]:
            self.seen += self._decoder.decode(os.read(self.person, 65536))

    def end(self) -> int:
        """Wait for the program's end, and return its exit code."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.seen
            self._read(0.05)
        self._read(0.05)
        return self.process.returncode  # type: ignore[no-any-return]

    def restored(self) -> bool:
        """Whether the terminal is what it was before."""
        return termios.tcgetattr(self.program) == self.modes and HIDE in self.seen and CURSOR in self.seen


@contextlib.contextmanager
def screen(config: Path, *options: str, **how: Any) -> Iterator[Screen]:
    made = Screen(config, *options, **how)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()
        os.close(made.person)
        os.close(made.program)


def test_q_leaves_with_the_terminal_as_it_was(config: Path) -> None:
    """Exit code 0, the old screen and the cursor back, nothing left on it."""
    with answering(config, {"view": lambda: VIEW}), screen(config) as top:
        top.until("10.0.1.14:8080 .*ejected")
        assert SHOW in top.seen
        top.type("q")
        assert top.end() == 0
        assert top.restored()
        assert "Traceback" not in top.seen


@pytest.mark.parametrize("how", ["key", signal.SIGTERM, signal.SIGHUP])
def test_other_ends_leave_the_terminal_as_it_was_too(config: Path, how: Any) -> None:
    """Ctrl-C, and signals that end programs."""
    with answering(config, {"view": lambda: VIEW}), screen(config) as top:
        top.until("resnet-v1")
        if how == "key":
            top.type("\x03")
        else:
            top.seen = ""
            top.process.send_signal(how)
        assert top.end() == 0
        assert top.restored()


def test_a_resize_draws_it_anew_at_once(config: Path) -> None:
    """Narrow or wide, low or high, without waiting for the next look."""
    with answering(config, {"view": lambda: VIEW}), screen(config, "--interval", "60") as top:
        top.until("and 24 more")
        top.resize(160, 50)
        top.until("5 failed in a row: out for 30 s")
        top.resize(60, 20)
        top.until(r"… and \d+ more")
        assert "0.0.0.0:9000" not in top.seen
        top.type("q")
        assert top.end() == 0


def test_keys_scroll_and_sort(config: Path) -> None:
    """At once, and no further than there is anything."""
    with answering(config, {"view": lambda: VIEW}), screen(config, "--interval", "60") as top:
        top.until("and 24 more")
        for keys, expected in (
            ("j", "1 above, and 23 more"),
            ("\x1b[B", "2 above, and 22 more"),
            ("\x1b[6~", "6 above, and 18 more"),
            ("kkk", "3 above, and 21 more"),
            ("G", "24 above"),
            ("jjjj", "24 above"),
            ("k", "23 above, and 1 more"),
            ("\x1b[H", "… and 24 more"),
            ("s", "sorted by: rate"),
            ("ssss", "sorted by: sick first"),
        ):
            top.type(keys)
            top.until(expected)
        top.type("q")
        assert top.end() == 0


def test_a_gateway_that_goes_away_is_waited_for(config: Path) -> None:
    """What it said last stays, with since when; then it is another one's, as after an upgrade."""
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(contextlib.ExitStack())
        first.enter_context(answering(config, {"view": lambda: VIEW}))
        top = stack.enter_context(screen(config, "--interval", "0.2"))
        top.until("pid 4242")
        first.close()
        top.seen = ""
        top.until(r"no answer since \d\d:\d\d:\d\d \(\d+ s\), trying on: no gateway that runs with")
        assert "resnet-v1" in top.seen
        with answering(config, {"view": lambda: {**VIEW, "pid": 5000}}):
            top.seen = ""
            top.until("pid 5000")
            top.seen = ""
            top.until("pid 5000")
            assert "no answer since" not in top.seen
            top.type("q")
            assert top.end() == 0


def test_it_rests_between_its_looks(config: Path) -> None:
    """A screen that nobody touches takes next to no CPU."""
    asked = []

    def view() -> Any:
        asked.append(0)
        return VIEW

    with answering(config, {"view": view}), screen(config) as top:
        top.until("resnet-v1")
        before, looks = _cpu(top.process.pid), len(asked)
        while len(asked) < looks + 3:
            top._read(0.2)
        assert _cpu(top.process.pid) - before < 1.0
        top.type("q")
        assert top.end() == 0


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_without_colours(config: Path) -> None:
    """NO_COLOR leaves out what is colour, and nothing else."""
    with answering(config, {"view": lambda: VIEW}):
        for environment, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
            with screen(config, **environment) as top:
                top.until("10.0.1.14:8080 .*ejected")
                assert bool(re.search(r"\x1b\[[0-9;]*3[0-7]m", top.seen)) is coloured
                top.type("q")
                assert top.end() == 0


# ---- without a terminal ----


def test_once_prints_it_whole(config: Path) -> None:
    """As plain text of one width, for scripts."""
    with answering(config, {"view": lambda: VIEW}):
        code, out, err = tcpgw("top", "-c", config, "--once")
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    assert out.startswith("tcpgw 0.6.0 ready · pid 4242 · up 3 h 5 min · /etc/tcpgw/tcpgw.toml · ")
    assert out.count("healthy") >= 20
    assert max(map(len, out.splitlines())) <= 160


def test_without_a_terminal_it_says_what_does(config: Path) -> None:
    """With 2: keys and a screen are not to be had."""
    with answering(config, {"view": lambda: VIEW}):
        code, out, err = tcpgw("top", "-c", config)
        assert (code, out) == (2, "")
        assert "--once prints what it shows" in err
        with screen(config, TERM="dumb") as top:
            assert top.end() == 2
            assert "--once" in top.seen
