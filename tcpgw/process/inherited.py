"""Listening sockets that systemd opened before the gateway was there: sd_listen_fds(3).

They outlive it: who connects while it restarts waits in the kernel's queue instead of being refused.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, MutableMapping
from typing import NamedTuple

from tcpgw.address import Address
from tcpgw.errors import TcpgwError

_FIRST = 3  # SD_LISTEN_FDS_START


class InheritedError(TcpgwError):
    """A socket was passed that no listener can use: told where the operator named it."""

    blame = "operator"


class Inherited(NamedTuple):
    """A socket as it was passed. `name` is its FileDescriptorName=, by default that of its unit."""

    name: str
    socket: socket.socket

    @property
    def address(self) -> str:
        """Where it listens, as a listener's `bind` says it."""
        return str(Address.of_socket(self.socket))


def take(environment: MutableMapping[str, str]) -> list[Inherited]:
    """Take the sockets that were passed to this process, and the variables that say so.

    Raises InheritedError where one of them is no socket, or listens for no streams; all are closed then.
    """
    pid = environment.pop("LISTEN_PID", "")
    count = environment.pop("LISTEN_FDS", "")
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    found: list[Inherited] = []
    for place in range(int(count)):
        try:
            sock = socket.socket(fileno=_FIRST + place)
        except OSError as exc:
            _close(found)
            told = f"descriptor {_FIRST + place}, the {place + 1}. of {count}"
            raise InheritedError(f"systemd passed {told}, which is no socket: {exc.strerror}") from exc
        os.set_inheritable(sock.fileno(), False)
        found.append(Inherited(names[place] if place < len(names) else "", sock))
    wrong = [one for one in found if not _listens(one.socket)]
    if wrong:
        _close(found)
        raise InheritedError(f"systemd passed {_told(wrong)}, which takes no connections: use ListenStream=")
    return found


def assign(found: Iterable[Inherited], binds: dict[str, str]) -> dict[str, socket.socket]:
    """Give each listener its socket: the one of its name, else the one at its `bind`.

    `binds` are the listeners' addresses by name; those without a socket are not in the answer. Raises
    InheritedError for sockets that no listener takes, and where two are for one; all are closed then.
    """
    found = list(found)
    given: dict[str, socket.socket] = {}
    left = []
    for one in found:
        names = [name for name, bind in binds.items() if one.name == name or one.address == bind]
        name = one.name if one.name in names else next(iter(names), "")
        if not name or name in given:
            left.append(one)
        else:
            given[name] = one.socket
    if left:
        told = _told(left)
        _close(found)
        listeners = ", ".join(f"{name} ({bind})" for name, bind in binds.items())
        raise InheritedError(
            f"systemd passed {told}, which no listener takes; there are {listeners}. Give each socket its"
            " listener's name (FileDescriptorName=), or the address of its bind (ListenStream=)"
        )
    return given


def _listens(sock: socket.socket) -> bool:
    return sock.type == socket.SOCK_STREAM and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _told(sockets: Iterable[Inherited]) -> str:
    return ", ".join(f"{one.name or 'a socket'} at {one.address}" for one in sockets)


def _close(sockets: Iterable[Inherited]) -> None:
    for one in sockets:
        one.socket.close()
