"""Telling systemd how the gateway is, and that it still runs: sd_notify(3), one datagram for each message.

Written here, because the library is small C that few images have, and the protocol is a line of text.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, MutableMapping

# Of the time in which systemd wants to hear something: what sd_watchdog_enabled(3) advises.
_PINGS = 2


class Notifier:
    """The manager's socket, or nobody's: then telling does nothing.

    A message that cannot be sent is dropped, because the gateway must not stop for it; a watchdog that
    starves says so itself.
    """

    def __init__(self, address: str = "", watchdog: float = 0.0) -> None:
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._watchdog = watchdog

    @classmethod
    def of(cls, environment: MutableMapping[str, str]) -> Notifier:
        """Take what systemd put there, and out of it: children have nothing to tell it.

        A watchdog counts where it is for this process.
        """
        address = environment.pop("NOTIFY_SOCKET", "")
        microseconds = environment.pop("WATCHDOG_USEC", "")
        pid = environment.pop("WATCHDOG_PID", "")
        ours = microseconds.isdecimal() and pid in ("", str(os.getpid()))
        return cls(address, int(microseconds) / 1e6 if ours else 0.0)

    def environment(self) -> dict[str, str]:
        """Return what a process that takes over from this one is to find."""
        if not self._address:
            return {}
        watchdog = {"WATCHDOG_USEC": str(round(self._watchdog * 1e6))} if self._watchdog else {}
        return {"NOTIFY_SOCKET": self._address.replace("\0", "@", 1), **watchdog}

    def tell(self, **message: str) -> None:
        """Send assignments: `tell(READY="1", STATUS="…")`."""
        if not self._address:
            return
        text = "\n".join(f"{name}={value}" for name, value in message.items())
        # Descriptors may have run out too.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto(text.encode(errors="replace"), self._address)

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Tell the watchdog, for as long as the context lasts, that the running loop has its turns."""
        if not self._watchdog:
            yield
            return
        task = asyncio.create_task(self._ping(self._watchdog / _PINGS), name="watchdog")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _ping(self, seconds: float) -> None:
        while True:
            self.tell(WATCHDOG="1")
            await asyncio.sleep(seconds)


def reloading() -> dict[str, str]:
    """What is told when a reload begins (sd_notify(3), for Type=notify-reload); READY=1 ends it."""
    return {"RELOADING": "1", "MONOTONIC_USEC": str(time.monotonic_ns() // 1000)}
