"""How lines leave: through real pipes, sockets and files, to readers that stall or leave."""

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from tcpgw.observe import logs, writer
from tests.support.pipes import Pipe

log = structlog.get_logger()


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
    written = 3 * writer.MAX_LINES
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
    lines = writer.LineWriter(pipe.writer, str)
    for _ in range(1000):
        lines.write("x" * 100)
    started = time.perf_counter()
    lines.close(timeout=0.1)
    assert 0.1 <= time.perf_counter() - started < 2
    lines.close(timeout=60)
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
        structlog.get_logger().info("numbered", number=number, **{f"text{i}": "x" * 2000 for i in range(10)})
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
        assert time.perf_counter() - started < writer._FLUSH_TIMEOUT
    assert [line["event"] for line in pipe.lines()] == ["first", "second"]


def test_a_file_needs_no_turns(tmp_path: Path) -> None:
    """What takes each write as one, such as a file or /dev/null, is not waited for."""
    with (tmp_path / "log").open("wb") as file, stopped_in_its_turn(file.fileno()):
        started = time.perf_counter()
        with logs.configured("json", "info", file.fileno()):
            log.info("only")
        assert time.perf_counter() - started < writer._TURN
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

    lines = writer.LineWriter(fd, report)
    written, counts = 0, list[int]()
    while len(counts) < 3:  # reports that nobody hears: what they told of has to be told again
        lines.write("line")
        written += 1
        with contextlib.suppress(queue.Empty):
            counts.append(reports.get(timeout=0.02))
    second = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    lines.write("line")
    lines.close()
    os.close(fd)
    with os.fdopen(second) as file:
        heard = file.read().split("\n")
    told = sum(int(line.removeprefix("dropped ")) for line in heard if line.startswith("dropped"))
    assert counts == sorted(set(counts))
    assert told >= 2
    assert heard.count("line") >= 1
    assert heard.count("line") + told == written + 1


# A disk that is full in the midst of the third line, and has room again once a loss is told of.
FULL_DISK = """
import resource, threading
from tcpgw.observe.writer import LineWriter

most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
told = threading.Event()

def report(count):
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    told.set()
    return f"dropped {count}"

resource.setrlimit(resource.RLIMIT_FSIZE, (12, most))
lines = LineWriter(2, report)
written = 0
while not told.wait(0.02):
    lines.write("line")
    written += 1
lines.write("last")
lines.close()
print(written)
"""


def test_a_line_that_was_cut_off_costs_no_other(tmp_path: Path) -> None:
    """Where a disk was full in the midst of a line, that one counts as dropped and the next are whole."""
    with (tmp_path / "log").open("wb") as file:
        done = subprocess.run(
            [sys.executable, "-c", FULL_DISK], stdout=subprocess.PIPE, stderr=file, check=True, timeout=20
        )
    heard = (tmp_path / "log").read_text().splitlines()
    (told,) = [int(line.removeprefix("dropped ")) for line in heard if line.startswith("dropped")]
    assert heard[:3] == ["line", "line", "li"]
    assert heard.count("line") + told == int(done.stdout)
    assert heard[-1] == "last"
