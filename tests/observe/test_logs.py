"""The log, read from the other end of real pipes, sockets and terminals."""

import asyncio
import contextlib
import errno
import fcntl
import json
import logging
import os
import pty
import queue
import re
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import structlog

from tcpgw.endpoints import Endpoint
from tcpgw.errors import ConfigError
from tcpgw.observe import logs

log = structlog.get_logger()


class Pipe:
    """A pipe whose end for writing is the log's."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def close_writer(self) -> None:
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def read(self) -> bytes:
        """What has come, at most a few hundred lines; nothing for ten seconds fails the test."""
        assert select.select([self.reader], [], [], 10)[0]
        return os.read(self.reader, 1 << 16)

    def text(self) -> str:
        """Everything that was written; the log must be closed."""
        self.close_writer()
        with open(self.reader, encoding="utf-8", closefd=False) as file:
            return file.read()

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close_writer()
    os.close(pipe.reader)


def terminal_output(format_: logs.Format = "auto") -> str:
    """What one event looks like on a terminal."""
    leader, follower = pty.openpty()
    try:
        with logs.configured(format_, "info", follower):
            log.info("ready", listener="predict")
        return os.read(leader, 65536).decode()
    finally:
        os.close(leader)
        os.close(follower)


class Unshowable:
    """What some library's exception argument may turn out to be."""

    def __str__(self) -> str:
        raise RuntimeError("no")


def test_a_line_is_one_json_object(pipe: Pipe) -> None:
    """Into a pipe, "auto" is JSON: time, level and event, then the rest in the order given, bound first."""
    before = datetime.now(UTC)
    with logs.configured("auto", "info", pipe.writer):
        log.bind(listener="predict").info(
            "connection_closed", client="10.0.0.9:1", bytes_in=3, reason="client_fin"
        )
    (line,) = pipe.lines()
    assert list(line) == ["ts", "level", "event", "listener", "client", "bytes_in", "reason"]
    assert list(line.values())[1:] == ["info", "connection_closed", "predict", "10.0.0.9:1", 3, "client_fin"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["ts"])
    # Cut to milliseconds, so up to one early.
    assert before - timedelta(milliseconds=1) <= datetime.fromisoformat(line["ts"]) <= datetime.now(UTC)


def test_auto_is_coloured_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal "auto" writes coloured text for people, unless NO_COLOR asks for plain text."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = terminal_output()
    assert "\x1b[" in coloured
    assert "ready" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert re.fullmatch(r"\S+Z \[info +\] ready +listener=predict\r\n", terminal_output())
    assert json.loads(terminal_output("json"))["event"] == "ready"


def test_console_into_a_pipe_is_plain(pipe: Pipe) -> None:
    """Asked for by name where there is no terminal, the console form comes without colours."""
    with logs.configured("console", "info", pipe.writer):
        log.warning("snapshot_suspect", service="resnet", was=4)
    assert re.fullmatch(r"\S+Z \[warning +\] snapshot_suspect +service=resnet was=4\n", pipe.text())


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", ["a", "A", "b", "B", "c", "C"]),
        ("info", ["b", "B", "c", "C"]),
        ("warning", ["c", "C"]),
        ("error", []),
    ],
)
def test_level_holds_for_both_sources(pipe: Pipe, level: logs.Level, expected: list[str]) -> None:
    """The level cuts structlog's and the standard library's events alike."""
    library = logging.getLogger("aiohttp.server")
    with logs.configured("json", level, pipe.writer):
        log.debug("a")
        library.debug("A")
        log.info("b")
        library.info("B")
        log.warning("c")
        library.warning("C")
    assert [line["event"] for line in pipe.lines()] == expected


async def test_the_event_loops_own_errors_are_logged(pipe: Pipe) -> None:
    """What asyncio reports through the standard library comes out in the same form, traceback and all."""
    with logs.configured("json", "info", pipe.writer):
        error = ZeroDivisionError("a task's")
        asyncio.get_running_loop().call_exception_handler({"message": "never retrieved", "exception": error})
    (line,) = pipe.lines()
    assert list(line) == ["ts", "level", "event", "logger", "exception"]
    assert (line["level"], line["logger"]) == ("error", "asyncio")
    assert line["event"].startswith("never retrieved")
    assert line["exception"].endswith("ZeroDivisionError: a task's")


def test_a_library_that_logs_badly_is_still_heard(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments that do not fit a record's text, and levels of its own, cost nobody a line."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own fails the test for such a record
    with logs.configured("json", "info", pipe.writer):
        logging.getLogger("lib").warning("%d instances", "four")
        logging.getLogger("lib").log(35, "odd")
    assert [(line["level"], line["event"]) for line in pipe.lines()] == [
        ("warning", "%d instances ['four']"),
        ("level 35", "odd"),
    ]


CYCLE: list[object] = []
CYCLE.append(CYCLE)

VALUES: dict[str, tuple[object, object]] = {
    "endpoint": (Endpoint("10.0.0.1", 80), "10.0.0.1:80"),
    "unicode": ("模型 \x1b[2J\u2028", "模型 \x1b[2J\u2028"),
    "surrogate": ("\ud800", "\ud800"),
    "bytes": (b"caf\xc3\xa9 \xff", "café \\xff"),
    "error": (ConnectionResetError(104, "reset"), "ConnectionResetError: [Errno 104] reset"),
    "path": (Path("/etc/tcpgw"), "/etc/tcpgw"),
    "nan": (float("nan"), None),
    "5000 digits": (10**5000, "<int: ValueError when shown>"),
    "unshowable": (Unshowable(), "<Unshowable: RuntimeError when shown>"),
    "unshowable in an error": (ValueError(Unshowable()), "<ValueError: RuntimeError when shown>"),
    "unshowable key": ({Unshowable(): 1}, ANY),  # with an address in it
    "mapping": ({("a", 1): {2}}, {"('a', 1)": [2]}),
    "list in itself": (CYCLE, [[[[["..."]]]]]),
    "plain list": ([None, True, 1.5], [None, True, 1.5]),
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("format_", ["json", "console"])
def test_no_value_breaks_the_log(pipe: Pipe, format_: logs.Format, name: str) -> None:
    """Any value gives one readable line, and the lines around it are whole."""
    value, expected = VALUES[name]
    with logs.configured(format_, "info", pipe.writer):
        log.info("before")
        log.info("odd", value=value, next=7)
        log.info(value)
        log.info("after")
    text = pipe.text()
    assert text.count("\n") == 4
    if format_ == "json":
        lines = [json.loads(line) for line in text.splitlines()]
        assert [line["event"] for line in (lines[0], lines[1], lines[3])] == ["before", "odd", "after"]
        assert lines[1]["next"] == 7
        assert lines[1]["value"] == lines[2]["event"] == expected
    else:
        assert "\x1b" not in text
        assert re.search(r"odd +value=.* next=7\n|\"next\":7\}\n", text)


def fail(text: str) -> None:
    held = "hunter" + "2"
    raise ConnectionError(f"{text}, {len(held)}")


def test_a_traceback_is_one_line_of_json(pipe: Pipe) -> None:
    """log.exception carries the traceback in the same object, as text."""
    with logs.configured("json", "info", pipe.writer):
        try:
            fail("no route")
        except ConnectionError:
            log.exception("check_failed", endpoint="10.0.0.1:80")
    (line,) = pipe.lines()
    assert (line["level"], line["endpoint"]) == ("error", "10.0.0.1:80")
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ConnectionError: no route, 7")


def test_a_traceback_on_the_console_shows_no_variables(pipe: Pipe) -> None:
    """The console's traceback shows no local variables, which may be secrets; no terminal obeys it."""
    with logs.configured("console", "info", pipe.writer):
        try:
            fail("no route\x1b[2J")
        except ConnectionError:
            log.exception("check_failed")
    text = pipe.text()
    assert "\nConnectionError: no route\\x1b[2J, 7\n" in text
    assert "hunter2" not in text
    assert "\x1b" not in text


def test_secrets_are_masked(pipe: Pipe) -> None:
    """Values whose names say that they are secret never come out, nested ones either; counts and names do."""
    with logs.configured("json", "info", pipe.writer):
        log.info(
            "request",
            iam_password="hunter2",
            api_keys=["hunter2"],
            Authorization="hunter2",
            headers={"X-Auth-Token": "hunter2", "Accept": "*/*"},
            nested=[{"secret_key": b"hunter2"}],
            tokens=3,
            token_expires_at="2026-01-01",
            password_env="TCPGW_IAM_PASSWORD",
            key="10.0.0.1",
            credential="iam",
        )
    (line,) = pipe.lines()
    assert "hunter2" not in json.dumps(line)
    assert line["headers"] == {"X-Auth-Token": "***", "Accept": "*/*"}
    assert list(line.values())[8:] == [3, "2026-01-01", "TCPGW_IAM_PASSWORD", "10.0.0.1", "iam"]


def test_order_is_kept_and_the_end_is_flushed(pipe: Pipe) -> None:
    """Everything logged before the end is written by the end, in order, also past a pipe's buffer."""
    received = bytearray()

    def read() -> None:
        while data := pipe.read():
            received.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    with logs.configured("json", "info", pipe.writer):
        for number in range(5000):
            log.info("numbered", number=number)
    pipe.close_writer()
    reader.join()
    assert len(received) > 65536
    assert [json.loads(line)["number"] for line in received.splitlines()] == list(range(5000))


def test_lines_share_a_write() -> None:
    """Lines logged together leave in a few writes, not one each."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # keeps writes apart
    with ours, theirs:
        with logs.configured("json", "info", ours.fileno()):
            for number in range(200):
                log.info("numbered", number=number)
        ours.close()
        packets = list(iter(lambda: theirs.recv(1 << 20), b""))
    assert b"".join(packets).count(b"\n") == 200
    assert len(packets) <= 50


async def test_a_stalled_reader_costs_lines_not_time(pipe: Pipe) -> None:
    """With a full pipe the event loop goes on; what is dropped is told as soon as there is room."""
    fcntl.fcntl(pipe.writer, fcntl.F_SETPIPE_SZ, 4096)
    written = 3 * logs.MAX_LINES
    longest, started = 0.0, time.perf_counter()
    numbers: list[int] = []
    dropped = 0
    with logs.configured("json", "info", pipe.writer):
        for number in range(written):
            log.info("numbered", number=number)
            if number % 100 == 0:
                await asyncio.sleep(0)
                longest, started = max(longest, time.perf_counter() - started), time.perf_counter()
        partial = b""
        while len(numbers) + dropped < written:
            *lines, partial = (partial + await asyncio.to_thread(pipe.read)).split(b"\n")
            for line in map(json.loads, lines):
                if line["event"] == "log_lines_dropped":
                    assert line["level"] == "warning"
                    dropped += line["count"]
                else:
                    numbers.append(line["number"])
        log.info("after")
    assert longest < 1  # 100 lines take a millisecond
    assert dropped > 0
    assert len(numbers) + dropped == written
    assert numbers == sorted(set(numbers))
    assert [line["event"] for line in pipe.lines()] == ["after"]


def test_a_stalled_reader_does_not_hold_up_the_end(pipe: Pipe) -> None:
    """Closing waits no longer than it was told, and closing again not at all."""
    fcntl.fcntl(pipe.writer, fcntl.F_SETPIPE_SZ, 4096)
    writer = logs.LineWriter(pipe.writer, str)
    for _ in range(1000):
        writer.write("x" * 100)
    started = time.perf_counter()
    writer.close(timeout=0.1)
    assert 0.1 <= time.perf_counter() - started < 2
    writer.close(timeout=60)
    assert time.perf_counter() - started < 3


def test_a_process_ends_though_its_log_stalls(pipe: Pipe) -> None:
    """A process whose stderr nobody reads exits by itself, soon and with its own exit code."""
    program = (
        "import structlog\n"
        "from tcpgw.observe import logs\n"
        "with logs.configured('json', 'info'):\n"
        "    for number in range(5000): structlog.get_logger().info('numbered', number=number)\n"
        "raise SystemExit(7)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stderr=pipe.writer) as process:
        assert process.wait(timeout=20) == 7


# ---- several processes ----

# Lines of 20 kB, more than a pipe takes as one, in batches that begin together.
WORKER = """
import sys, time, structlog
from tcpgw.observe import logs
worker = int(sys.argv[1])
with logs.configured("json", "info", worker=worker):
    for number in range(60):
        if number % 20 == 0:
            time.sleep(-time.time() % 0.3)
        structlog.get_logger().info("numbered", number=number, text="x" * 20_000)
"""


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_processes_with_one_log_do_not_cut_each_others_lines(kind: str) -> None:
    """Every line of every process is whole, says whose it is, and comes in its order."""
    if kind == "pipe":
        reader, writer = os.pipe()
    else:
        reader, writer = (end.detach() for end in socket.socketpair())
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(worker)], stderr=writer) for worker in (1, 2, 3)
    ]
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        lines = [json.loads(line) for line in file]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    for worker in (1, 2, 3):
        assert [line["number"] for line in lines if line["worker"] == worker] == list(range(60))


HOLDER = """
import fcntl, os, signal, sys
fcntl.lockf(2, fcntl.LOCK_EX)
print("locked", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""


@contextlib.contextmanager
def stopped_in_its_turn(fd: int) -> Iterator[None]:
    """Another process that was stopped in the middle of a batch."""
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, stderr=fd) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"locked\n"
            yield
        finally:
            holder.kill()


def test_a_stopped_process_does_not_silence_the_others(pipe: Pipe) -> None:
    """Who waits in vain for its turn writes without it, and its end is as soon as ever."""
    with stopped_in_its_turn(pipe.writer):
        with logs.configured("json", "info", pipe.writer):
            log.info("first")
            time.sleep(0.2)  # its batch is waiting by now
            log.info("second")
            started = time.perf_counter()
        assert time.perf_counter() - started < logs._FLUSH_TIMEOUT
    assert [line["event"] for line in pipe.lines()] == ["first", "second"]


def test_a_file_needs_no_turns(tmp_path: Path) -> None:
    """What takes each write as one, such as a file or /dev/null, is not waited for."""
    with (tmp_path / "log").open("wb") as file, stopped_in_its_turn(file.fileno()):
        started = time.perf_counter()
        with logs.configured("json", "info", file.fileno()):
            log.info("only")
        assert time.perf_counter() - started < logs._TURN
    assert json.loads((tmp_path / "log").read_text())["event"] == "only"


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "no locks"), PermissionError()])
def test_where_there_are_no_locks_lines_are_written(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    """A lock that cannot be had costs nothing but its use."""

    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with logs.configured("json", "info", pipe.writer):
        log.info("only")
    assert [line["event"] for line in pipe.lines()] == ["only"]


def test_a_workers_lines_say_so(pipe: Pipe) -> None:
    """The field stands right after the event in lines of both sources, in the console form too."""
    with logs.configured("json", "info", pipe.writer, worker=3):
        log.bind(listener="predict").info("ready", port=1)
        logging.getLogger("asyncio").warning("slow")
    ready, slow = pipe.lines()
    assert list(ready)[1:] == ["level", "event", "worker", "listener", "port"]
    assert list(slow)[1:] == ["level", "event", "worker", "logger"]
    assert (ready["worker"], slow["worker"]) == (3, 3)
    other = Pipe()
    with logs.configured("console", "info", other.writer, worker=3):
        log.info("ready", port=1)
    assert other.text().endswith(" worker=3 port=1\n")
    os.close(other.reader)


# ---- the descriptor ----


def test_a_pipe_that_would_block_loses_nothing(pipe: Pipe) -> None:
    """A descriptor that someone made non-blocking is waited for."""
    fcntl.fcntl(pipe.writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(pipe.writer, False)
    received = bytearray()
    with logs.configured("json", "info", pipe.writer):
        for number in range(1000):
            log.info("numbered", number=number)
        while received.count(b"\n") < 1000:
            received += pipe.read()
    assert [json.loads(line)["number"] for line in received.splitlines()] == list(range(1000))


def test_a_reader_that_left_costs_its_lines_only(tmp_path: Path) -> None:
    """Without a reader logging goes on quietly; a new one is told how many lines it missed."""
    path = tmp_path / "log"
    os.mkfifo(path)
    first = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    fd = os.open(path, os.O_WRONLY)
    os.close(first)
    reports: queue.SimpleQueue[int] = queue.SimpleQueue()

    def report(count: int) -> str:
        reports.put(count)
        return f"dropped {count}"

    writer = logs.LineWriter(fd, report)
    written, counts = 0, list[int]()
    while len(counts) < 3:  # reports that nobody hears: what they told of has to be told again
        writer.write("line")
        written += 1
        with contextlib.suppress(queue.Empty):
            counts.append(reports.get(timeout=0.02))
    second = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer.write("line")
    writer.close()
    os.close(fd)
    with os.fdopen(second) as file:
        heard = file.read().split("\n")
    told = sum(int(line.removeprefix("dropped ")) for line in heard if line.startswith("dropped"))
    assert counts == sorted(set(counts))
    assert told >= 2
    assert heard.count("line") >= 1
    assert heard.count("line") + told == written + 1


def test_the_end_puts_everything_back(pipe: Pipe) -> None:
    """Afterwards structlog and the root logger are as before, also when the block failed."""
    root = logging.getLogger()
    before = structlog.get_config(), root.level, list(root.handlers)
    with contextlib.suppress(KeyError), logs.configured("json", "debug", pipe.writer):
        assert root.level == logging.DEBUG
        raise KeyError
    assert (structlog.get_config(), root.level, list(root.handlers)) == before


def test_a_logger_follows_the_configuration(pipe: Pipe) -> None:
    """A module's logger that was used under one configuration obeys the next."""
    first = Pipe()
    with logs.configured("json", "error", first.writer):
        log.error("one")
        log.info("two")
    assert [line["event"] for line in first.lines()] == ["one"]
    os.close(first.reader)
    with logs.configured("json", "info", pipe.writer):
        log.info("three")
    assert [line["event"] for line in pipe.lines()] == ["three"]


def test_a_closed_descriptor_is_said_so(pipe: Pipe) -> None:
    """Where there is nothing to write to, the error says what to do, and nothing was configured."""
    before = structlog.get_config()
    closed = pipe.writer
    pipe.close_writer()
    with pytest.raises(ConfigError, match=rf"start with {closed}>/dev/null"), logs.configured(fd=closed):
        pass
    assert structlog.get_config() == before
