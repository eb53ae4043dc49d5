"""Starts, measures and ends the processes of a benchmark. Linux only: reads /proc, pins with taskset."""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

STOP_TIMEOUT = 5.0
START_TIMEOUT = 15.0
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PR_SET_CHILD_SUBREAPER = 36  # of linux/prctl.h


class BenchmarkError(Exception):
    """The benchmark cannot go on; the message names the process and shows what it said last."""


def find(program: str) -> str | None:
    """Find a command on PATH, beside this interpreter (wheels), or in sbin, which a user's PATH lacks."""
    beside = Path(sys.executable).parent
    return shutil.which(program, path=f"{beside}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def require(program: str, package: str) -> str:
    """Find a command that there is no benchmark without. Raises BenchmarkError naming what offers it."""
    path = find(program)
    if path is None:
        raise BenchmarkError(f"{program} is not installed: it comes with {package}")
    return path


def free_ports(count: int) -> list[int]:
    """Let the kernel choose TCP ports. All are held until the last is known, so no two are alike."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def pinned(command: list[str], core: int | None) -> list[str]:
    # taskset replaces itself by the command, so the pid that Popen knows stays the right one.
    return command if core is None else ["taskset", "-c", str(core), *command]


def parents() -> dict[int, int]:
    """Map every process to its parent: CONFIG_PROC_CHILDREN, which would be shorter, is optional."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := stat_fields(int(entry.name))):
            found[int(entry.name)] = int(fields[1])
    return found


def stat_fields(pid: int) -> list[str]:
    """Return /proc/PID/stat from its third field on (the second, the name, may hold spaces), [] if gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def family(pid: int) -> list[int]:
    """Return a process and all its living descendants."""
    parent = parents()
    members = [pid]
    for member in members:  # grows while it is walked: breadth first
        members.extend(child for child, of in parent.items() if of == member)
    return members


def started(pid: int) -> float | None:
    """Return when a process was started, in seconds of CLOCK_BOOTTIME, None if it is gone.

    With the pid, which is used again, it is the process's identity.
    """
    fields = stat_fields(pid)
    return int(fields[19]) / TICKS_PER_SECOND if fields else None


def pss(pid: int) -> int:
    """Bytes of a process's proportional set size, 0 if it is gone.

    A page that several processes map counts in each of them as its part, so that the sum over a tree counts
    it once. Raises BenchmarkError where this user may not look.
    """
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except PermissionError as error:
        raise BenchmarkError(f"the memory of process {pid} is not this user's to see: {error}") from error
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:")), 0)


def cpu_clock(pid: int) -> float:
    """Return the seconds of CPU time of a process and its threads, without its children's.

    For what takes less than the ticks that `Child.cpu_seconds` knows: the kernel counts nanoseconds. Raises
    BenchmarkError where the process has ended.
    """
    try:
        # As clock_getcpuclockid(3) makes it of a pid. Python has it for threads alone.
        return time.clock_gettime(~pid << 3 | 2)
    except OSError as error:
        raise BenchmarkError(f"process {pid} has ended: {error}") from error


def descriptors(pid: int) -> int:
    """Count the open files of a process, 0 if it is gone."""
    try:
        return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    except FileNotFoundError:
        return 0


def adopt_orphans() -> None:
    """Have descendants that lose their parent become this process's children, which it can find and end."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_descendants() -> None:
    """Kill whatever this process started, and what that started, and is not gone."""
    for pid in family(os.getpid())[1:]:
        kill(pid)


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@dataclass(frozen=True)
class Child:
    """A process that this benchmark started. What is measured of it is measured of its descendants too."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def pids(self) -> list[int]:
        """Return the process and all its living descendants."""
        return family(self.process.pid)

    def workers(self) -> list[int]:
        """Return the processes that it has as its children, the oldest first."""
        ages = [
            (when, pid) for pid, of in parents().items() if of == self.process.pid and (when := started(pid))
        ]
        return [pid for _, pid in sorted(ages)]

    def memory(self) -> int:
        """Bytes of the process and its descendants, as `pss`. Raises BenchmarkError where it has ended."""
        self._expect_alive()
        return sum(map(pss, self.pids()))

    def descriptors(self) -> int:
        """Count the open files of the process and its descendants."""
        return sum(map(descriptors, self.pids()))

    def cpu_seconds(self) -> float:
        """User and system time of the process, its threads and its children, living or waited for.

        The kernel derives it from run time in nanoseconds and reports it in ticks of 10 ms. Raises
        BenchmarkError where the process has ended: its children may relay on, and would cost nothing.
        """
        self._expect_alive()
        fields = filter(None, (stat_fields(pid) for pid in self.pids()))
        return sum(int(ticks) for each in fields for ticks in each[11:15]) / TICKS_PER_SECOND

    def _expect_alive(self) -> None:
        if self.process.poll() is not None:
            raise BenchmarkError(f"{self.name} ended with {self.process.returncode}:\n{self.tail()}")

    def pin(self, core: int | None) -> None:
        """Move the running process, all its threads, to a core; None leaves it where it is."""
        if core is not None:
            for thread in Path(f"/proc/{self.process.pid}/task").iterdir():
                os.sched_setaffinity(int(thread.name), {core})

    def stop(self) -> None:
        """End the process, then whatever is left of its group and its family.

        A killed nginx leaves its workers behind, and so does tcpgw, whose workers have sessions of their own.
        """
        left = self._identities()
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_TIMEOUT)
        left |= self._identities()  # a supervisor that does not end may have replaced a worker
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pid, when in left:
            if started(pid) == when:
                kill(pid)

    def _identities(self) -> set[tuple[int, float]]:
        """Each process of the family with its start; none where it has ended."""
        if self.process.poll() is not None:
            return set()
        return {(pid, when) for pid in self.pids() if (when := started(pid)) is not None}

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Poll until the process does its work. Raises BenchmarkError when it ends first, or never does."""
        deadline = time.monotonic() + START_TIMEOUT
        while not ready():
            if self.process.poll() is not None:
                raise BenchmarkError(
                    f"{self.name} ended at once with {self.process.returncode}:\n{self.tail()}"
                )
            if time.monotonic() > deadline:
                raise BenchmarkError(f"{self.name} did not answer in {START_TIMEOUT:.0f} s:\n{self.tail()}")
            time.sleep(0.02)

    def tail(self) -> str:
        """Return the last lines of what the process wrote."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])


def start(name: str, command: list[str], *, log: Path, core: int | None, cwd: Path | None = None) -> Child:
    """Start a process with its output appended to `log`, which peers may also open for their access log."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            pinned(command, core),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=cwd,
            start_new_session=True,  # Ctrl-C reaches only the benchmark, which then ends the rest in order
        )
    return Child(name, process, log)


def call(command: list[str], *, timeout: float) -> str:
    """Run a command to its end and return what it printed. Raises BenchmarkError when it fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"{' '.join(command)} did not end within {timeout:.0f} s") from error
    # iperf3 -J reports its errors in its JSON, whatever its exit code.
    if done.returncode and not done.stdout.startswith("{"):
        raise BenchmarkError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def first_line(command: list[str]) -> str:
    """Return the first line that a command prints, on either stream: nginx tells its version on stderr."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown ({error})"
    lines = (done.stdout + done.stderr).split("\n")
    return next((line.strip() for line in lines if line.strip()), "unknown")
