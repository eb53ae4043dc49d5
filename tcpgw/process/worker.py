"""A worker process as its supervisor sees it: started, heard of, asked, ended."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self

from tcpgw.process.channel import Channel
from tcpgw.process.execution import bare

Command = Callable[[int, int], Sequence[str]]
"""What to execute as the worker of a slot that finds its channel at a descriptor: `(slot, descriptor)`."""

Handlers = Mapping[str, Callable[..., Any]]
"""What a worker may say: functions of the worker and what it said, as `channel.Handler`."""

# Seconds between SIGKILL and the end of a process, unless the kernel itself hangs.
_DEATH = 5.0


class WorkerProcess:
    """One process, from `start` on; to be ended with `close`.

    `accepting` is set by whoever brings it up. `leaving`: it accepts nobody any more and ends by itself.
    `ended` is set when it is gone and all that it said was taken; `code` is its exit code then, negative for
    a signal. `report` is the last that it gave of itself.
    """

    def __init__(
        self, slot: int, process: subprocess.Popen[bytes], sock: socket.socket, handlers: Handlers
    ) -> None:
        self.slot = slot
        self.pid = process.pid
        self.started = time.monotonic()
        self.heard = self.started  # when it last said something
        self.accepting = asyncio.Event()
        self.leaving = False
        self.ended = asyncio.Event()
        self.code: int | None = None
        self.report: dict[str, Any] = {}
        self._process = process
        self._channel = Channel(
            sock, {name: partial(self._said, handler) for name, handler in handlers.items()}
        )
        self._following = asyncio.create_task(self._follow(), name=f"worker {slot}, pid {process.pid}")

    @classmethod
    def start(cls, slot: int, command: Command, handlers: Handlers) -> Self:
        """Execute a fresh interpreter, which sees a bare environment. Raises OSError.

        A fork would have the supervisor's event loop, threads and secrets in it.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = subprocess.Popen(  # noqa: S603 - the command is ours
                    command(slot, theirs.fileno()),
                    env=bare(os.environ),
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,  # the Ctrl-C of a terminal is the supervisor's to act on
                )
            except OSError:
                ours.close()
                raise
        return cls(slot, process, ours, handlers)

    def _said(self, handler: Callable[..., Any], *params: object) -> Any:
        self.heard = time.monotonic()
        return handler(self, *params)

    async def _follow(self) -> None:
        """Take what it says until it has ended."""
        loop = asyncio.get_running_loop()
        dead = asyncio.Event()
        pidfd = os.pidfd_open(self.pid)
        loop.add_reader(pidfd, dead.set)
        said = asyncio.create_task(self._channel.run())
        try:
            await dead.wait()
            await asyncio.wait([said], timeout=_DEATH)  # what it said last lies in the socket still
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            said.cancel()
            await asyncio.gather(said, return_exceptions=True)
            self.code = self._process.poll()
            self.ended.set()

    async def call(self, name: str, *params: Any, fds: Sequence[int] = (), timeout: float) -> Any:  # noqa: ASYNC109
        """As `Channel.call`."""
        return await self._channel.call(name, *params, fds=fds, timeout=timeout)

    def tell(self, name: str, *params: Any) -> None:
        """As `Channel.tell`."""
        self._channel.tell(name, *params)

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    @property
    def connections(self) -> int:
        """Clients that it had when it last told."""
        listeners = self.report.get("listeners", {})
        return sum(listener.get("active", 0) for listener in listeners.values())

    def interrupt(self) -> None:
        """Have it end now, with a last word. Idempotent."""
        if self.runs:
            self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """End it at once, with all its connections. Idempotent."""
        if self.runs:
            self._process.send_signal(signal.SIGKILL)

    async def close(self) -> None:
        """Kill it if it still runs, and wait for its end. Idempotent."""
        self.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DEATH):
                await self.ended.wait()
        self._following.cancel()
        await asyncio.gather(self._following, return_exceptions=True)
