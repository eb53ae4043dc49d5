"""Listening sockets on their way from one supervisor to the next, which is a newly installed version.

The old one executes the new one with its sockets and a pipe. The new one says on the pipe that it accepts;
from then on both do, until the old one has left. One environment variable says which descriptor is what.
"""

import asyncio
import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field

from tcpgw.errors import TcpgwError

VARIABLE = "TCPGW_HANDOVER"

# Seconds from SIGTERM to SIGKILL for a successor that does not come up.
_LAST = 3.0


class HandoverError(TcpgwError):
    """The new supervisor did not come up. The old one goes on."""


@dataclass(eq=False)
class Sockets:
    """A listener's listening sockets. `bind` is as it was configured, `address` where clients connect.

    `shared`: there is one, on which all workers accept (systemd's, a Unix socket's); else one for each
    worker, in one SO_REUSEPORT group. `outlived`: somebody else keeps it open when the gateway ends.
    """

    bind: str
    sockets: list[socket.socket] = field(default_factory=list)
    address: str = ""
    shared: bool = False
    outlived: bool = False

    def of_worker(self, slot: int, workers: int) -> list[socket.socket]:
        """Return those of the worker in a slot (from 1). However many there are, each is somebody's."""
        return list(self.sockets) if self.shared else self.sockets[slot - 1 :: workers]

    def close(self) -> None:
        """Idempotent."""
        for sock in self.sockets:
            sock.close()


class Handover:
    """What a supervisor finds when it is started by another: the sockets, and who waits for it."""

    def __init__(self, sockets: dict[str, Sockets], ready: int) -> None:
        self.sockets = sockets
        self.is_one = ready >= 0  # else nobody handed anything over
        self._ready = ready

    @classmethod
    def take(cls, environment: MutableMapping[str, str]) -> "Handover":
        """Take what was handed over to this process, and the variable that says so. Mostly nothing."""
        text = environment.pop(VARIABLE, "")
        if not text:
            return cls({}, -1)
        told = json.loads(text)
        os.set_inheritable(told["ready"], False)
        sockets = {
            name: Sockets(
                one["bind"],
                [_opened(fd) for fd in one["fds"]],
                one["address"],
                shared=one["shared"],
                outlived=one["outlived"],
            )
            for name, one in told["listeners"].items()
        }
        return cls(sockets, told["ready"])

    def accept(self, taken: Collection[Sockets]) -> None:
        """Say that this process accepts on these: what was handed over, among others. Idempotent."""
        if self._ready >= 0:
            names = sorted(name for name, one in self.sockets.items() if one in taken)
            with contextlib.suppress(BrokenPipeError):  # it is gone: all the more is this one needed
                os.write(self._ready, json.dumps(names).encode() + b"\n")
            os.close(self._ready)
            self._ready = -1


def told(sockets: Mapping[str, Sockets], ready: int) -> tuple[dict[str, str], list[int]]:
    """Return the environment and the descriptors for a process that is to `take` these."""
    fds = {name: [sock.fileno() for sock in one.sockets] for name, one in sockets.items()}
    listeners = {
        name: {
            "bind": one.bind,
            "fds": fds[name],
            "address": one.address,
            "shared": one.shared,
            "outlived": one.outlived,
        }
        for name, one in sockets.items()
    }
    text = json.dumps({"listeners": listeners, "ready": ready})
    return {VARIABLE: text}, [ready, *itertools.chain.from_iterable(fds.values())]


def _opened(fd: int) -> socket.socket:
    os.set_inheritable(fd, False)
    return socket.socket(fileno=fd)


async def hand_over(
    command: Sequence[str], environment: Mapping[str, str], sockets: Mapping[str, Sockets], *, seconds: float
) -> tuple[int, list[str]]:
    """Execute a successor; return its pid and whose sockets it took, as soon as it accepts on them.

    It gets this process's environment and, besides, `environment`. Raises HandoverError where it ends, or
    does not accept within so many seconds: then it is killed. So it is when this is cancelled.
    """
    ours, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    variables, fds = told(sockets, theirs)
    try:
        process = subprocess.Popen(  # noqa: ASYNC220, S603 - milliseconds, without a client's byte to wait
            command, env={**os.environ, **environment, **variables}, pass_fds=fds, stdin=subprocess.DEVNULL
        )
    except OSError as exc:
        os.close(ours)
        raise HandoverError(f"{command[0]} cannot be executed: {exc.strerror}") from exc
    finally:
        os.close(theirs)
    try:
        async with asyncio.timeout(seconds):
            line = await _line(ours)
        if not line:
            code = await asyncio.to_thread(process.wait)
            raise HandoverError(f"the new supervisor ended with {code}: see what it logged")
        taken: list[str] = json.loads(line)
    except TimeoutError:
        raise HandoverError(f"the new supervisor does not accept within {seconds:g} s") from None
    else:
        return process.pid, taken
    finally:
        os.close(ours)
        if sys.exception():
            await asyncio.to_thread(_end, process)
        process.returncode = process.returncode or 0  # it outlives this process, which is not to wait for it


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM first: it has workers, which would not know that they are not wanted."""
    process.terminate()
    try:
        process.wait(_LAST)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


async def _line(fd: int) -> bytes:
    """Read up to a newline, or to the end."""
    loop = asyncio.get_running_loop()
    line = b""
    while not line.endswith(b"\n"):
        ready = asyncio.Event()
        loop.add_reader(fd, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(fd)
        data = os.read(fd, 65536)
        if not data:
            return b""
        line += data
    return line
