"""The way out of the log: a bounded queue, and one thread that writes what has gathered with one call.

When the reader of the log stalls (a full pipe, a paused terminal, a slow journal) the queue fills, and lines
are dropped and counted instead of traffic delayed. Processes that share the descriptor take turns.
"""

import contextlib
import fcntl
import os
import select
import stat
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue

from tcpgw.errors import ConfigError, Fault

# About 3.5 MB of connection lines, and as much again in a write that stalls: at 8,000 connections a second
# that bridges a stall of more than a second.
MAX_LINES = 10_000
# Seconds that a line may wait for others to share its write call. For each batch the thread asks for the
# interpreter five times, each time for up to 5 ms of a busy loop, and meanwhile every system call of the
# loop costs a futex more: with 10 ms here, 8 % of a short connection. A person does not notice 100 ms.
_GATHER = 0.1
_FLUSH_TIMEOUT = 2.0  # seconds at exit for a reader that stalls; process supervisors wait longer than this
# Seconds that a batch waits for its turn, and between two looks whether it is there. Who writes for longer is
# stopped, or its reader stalls; two waits, the last batch's and that before it, are still within a flush.
# Each look asks for the interpreter once more, so not too often.
_TURN, _LOOK = 0.5, 0.01


class LineWriter:
    """Lines into a file descriptor, by a thread of its own.

    `report` makes the line that tells how many lines were dropped. A descriptor and not `sys.stderr`: a
    thread stuck in a write would hold that object's lock, and the interpreter's exit wants it. A copy of
    the descriptor: a thread that `close` gave up on must not write to whoever gets the number next.

    Raises ConfigError where `fd` is not open.
    """

    def __init__(self, fd: int, report: Callable[[int], str]) -> None:
        try:
            self._fd = os.dup(fd)
        except OSError as error:
            hint = (
                f"no log: descriptor {fd} cannot be used ({error}); to have none, start with {fd}>/dev/null"
            )
            raise ConfigError([Fault("", hint)]) from error
        self._report = report
        self._mixes = _mixes(self._fd)
        # Not Queue: SimpleQueue.put cannot deadlock when a finaliser logs in the middle of another put.
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._dropped = 0  # ever; several threads add to it, and a count lost between them would harm nobody
        self._torn = False  # the last line that was written has no end
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Take a line, without its newline. Never blocks, never raises; drops it where MAX_LINES wait."""
        if self._lines.qsize() < MAX_LINES:
            self._lines.put(line)
        else:
            self._dropped += 1

    # What structlog calls a logger's methods.
    debug = info = warning = error = critical = write

    def close(self, timeout: float = _FLUSH_TIMEOUT) -> None:
        """Write what waits, for at most `timeout` seconds. Idempotent. Later lines go nowhere."""
        if not self._closed:
            self._closed = True
            self._lines.put(None)
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            self._write_batches()
        finally:
            os.close(self._fd)

    def _write_batches(self) -> None:
        reported = 0
        closing = False
        while not closing:
            batch = [self._lines.get()]
            time.sleep(_GATHER)
            batch += [self._lines.get_nowait() for _ in range(self._lines.qsize())]
            closing = None in batch
            lines = [line for line in batch if line is not None]
            dropped = self._dropped
            news = [self._report(dropped - reported)] if dropped > reported else []
            if unwritten := self._write_out(lines + news):
                self._dropped += unwritten - len(news)  # and what the report told of stays to be told
            else:
                reported = dropped

    def _write_out(self, lines: list[str]) -> int:
        """Write the lines; return how many were not: nobody reads them any more, or the disk is full."""
        whole = "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")
        rest = memoryview(whole)
        try:
            with self._turn():
                while self._torn:  # or the first of these would be lost in it
                    self._torn = not self._write_some(memoryview(b"\n"))
                while rest:
                    rest = rest[self._write_some(rest) :]
        except OSError:
            if written := whole[: len(whole) - len(rest)]:
                self._torn = not written.endswith(b"\n")
            return bytes(rest).count(b"\n")
        return 0

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Keep the batches of several processes apart, or where that fails let them mix: lines cut in two are
        better than none. The kernel takes the lock back from who dies.
        """
        if not (self._mixes and self._locked()):
            yield
            return
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def _locked(self) -> bool:
        # Looks again and again: a wait in the kernel has no end where the owner of the lock was stopped.
        until = time.monotonic() + _TURN
        while time.monotonic() < until:
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(_LOOK)
            except OSError:  # a descriptor or a kernel without locks
                return False
            else:
                return True
        return False

    def _write_some(self, data: memoryview) -> int:
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            # O_NONBLOCK belongs to the open file, so any process that shares our terminal can have set it.
            poll = select.poll()
            poll.register(self._fd, select.POLLOUT)
            poll.poll()
            return 0


def _mixes(fd: int) -> bool:
    """Whether a long write can have another process's in its midst, as in pipes beyond PIPE_BUF.

    Files and terminals take a write as one; and a lock of /dev/null would be the whole machine's.
    """
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
