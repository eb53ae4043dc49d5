"""Accepting: from listening sockets to accepted ones, no more than there is room for, and no busy loop.

States: accepting ↔ paused (there is no room, or an accept failed a moment ago) → stopped.
"""

import asyncio
import errno
import socket
from collections.abc import Callable, Sequence, Sized
from time import monotonic

import structlog

from tcpgw.relay.sockets import adopt_socket

# Accepts per turn of the loop: enough that a burst costs few turns, few enough that relays get theirs.
_BATCH = 32
# Seconds after a failed accept: mostly the process is out of descriptors, which only ending connections cure.
_PAUSE = 0.1
# Seconds between two lines that say the same: a full listener pauses at each connection's end, and one
# without descriptors fails ten times a second.
_SAY_EVERY = 60.0

Peer = tuple[str, int] | str
"""What `socket.accept` says of a client: an address whose first two are host and port, or "" (Unix)."""


class Acceptor:
    """Owns listening sockets. `take` is given each connection, while there is `room` for one.

    `connections` are those that there are. Made and used in one running event loop. Who makes room calls
    `resume`.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        connections: Sized,
        room: Callable[[], int],
        take: Callable[[socket.socket, Peer], None],
        log: "structlog.stdlib.BoundLogger",
    ) -> None:
        self.accepted = 0
        self.failures = 0
        self.paused = 0  # how often there was no room for who waited
        self.sockets = tuple(sockets)
        self._room = room
        self._connections = connections
        self._take = take
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._started = False
        self._accepting = False
        self._stopped = False
        self._retrying: asyncio.TimerHandle | None = None
        self._next_full = 0.0
        self._trouble: _Trouble | None = None
        self._next_failed = 0.0

    def resume(self) -> None:
        """Accept, if nothing speaks against it. Idempotent."""
        self._started = True
        if not self._accepting and not self._stopped and self._retrying is None:
            self._accepting = True
            for sock in self.sockets:
                self._loop.add_reader(sock, self._accept, sock)

    def change(self, keepalive: float) -> None:
        """Take other settings, for who is accepted from now on, and look at whether there is more room."""
        if not self._stopped:
            for sock in self.sockets:
                adopt_socket(sock, keepalive)
        if self._started:
            self.resume()

    def add(self, sockets: Sequence[socket.socket]) -> None:
        """Accept on these listening sockets too."""
        self._pause()
        self.sockets += tuple(sockets)
        if self._started:
            self.resume()

    def stop(self, *, outlived: bool) -> None:
        """Close the sockets: new clients are refused. Idempotent.

        Who already waits in the kernel's queue is let in, as far as there is room: they have been told that
        they are connected, and would be reset, as those are whose handshake is half done. Unless the sockets
        are `outlived` by others of theirs.
        """
        accepted = -1
        while not outlived and self._accepting and accepted != self.accepted:
            accepted = self.accepted
            for sock in self.sockets:
                self._accept(sock)
        self._stopped = True
        self._pause()
        if self._retrying:
            self._retrying.cancel()
        for sock in self.sockets:
            sock.close()

    def _pause(self) -> None:
        if self._accepting:
            self._accepting = False
            for sock in self.sockets:
                self._loop.remove_reader(sock)

    def _accept(self, sock: socket.socket) -> None:
        if not self._accepting:  # another socket's turn came first and paused
            return
        room = self._room()
        if room <= 0:
            self._pause_full()
            return
        before = self.accepted
        for _ in range(min(_BATCH, room)):
            try:
                accepted, peer = sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                break
            except OSError as exc:
                self._back_off(exc)
                return
            self.accepted += 1
            self._take(accepted, peer)
        if self._trouble is not None and self.accepted > before:
            self._recover(self._trouble)

    def _pause_full(self) -> None:
        self.paused += 1
        self._pause()
        now = monotonic()
        if now >= self._next_full:
            self._next_full = now + _SAY_EVERY
            self._log.warning("accept_paused", connections=len(self._connections), times=self.paused)

    # ---- failures ----

    def _back_off(self, exc: OSError) -> None:
        self.failures += 1
        now = monotonic()
        trouble = self._trouble = self._trouble or _Trouble(now, self.failures - 1)
        if now >= self._next_failed:
            self._next_failed = now + _SAY_EVERY
            trouble.said = True
            out_of_files = exc.errno in {errno.EMFILE, errno.ENFILE}
            hint = "raise LimitNOFILE= or ulimit -n: a connection needs two" if out_of_files else None
            failed = self.failures - trouble.failures_before
            active = len(self._connections)
            self._log.error("accept_failed", error=exc.strerror, failed=failed, connections=active, hint=hint)
        self._pause()
        self._retrying = self._loop.call_later(_PAUSE, self._retry)

    def _retry(self) -> None:
        self._retrying = None
        self.resume()

    def _recover(self, trouble: "_Trouble") -> None:
        """Whoever could be accepted was."""
        self._trouble = None
        if trouble.said:
            failed = self.failures - trouble.failures_before
            self._log.warning(
                "accept_recovered", seconds=round(monotonic() - trouble.began, 3), failed=failed
            )


class _Trouble:
    """A time in which accepts fail. `said`: the log has it, as not each of many short ones is told."""

    __slots__ = ("began", "failures_before", "said")

    def __init__(self, began: float, failures_before: int) -> None:
        self.began = began
        self.failures_before = failures_before
        self.said = False
