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
_FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)


class InheritedError(TcpgwError):
    """A socket was passed that no listener can use: told where the operator named it."""

    blame = "operator"


class Inherited(NamedTuple):
    """A socket as it was passed. `name` is its FileDescriptorName=, by default that of its unit."""

    name: str
    socket: socket.socket

    @property
    def address(self) -> str:
        """Where it listens, as a listener's `bind` says it; of no such family, its name."""
        if self.socket.family not in _FAMILIES:
            return self.socket.family.name
        return str(Address.of_socket(self.socket))


def take(environment: MutableMapping[str, str]) -> list[Inherited]:
    """Take the sockets that were passed to this process, and the variables that say so.

    Raises InheritedError where one of them is no socket, or listens for no streams; the sockets before it are
    closed then, and the process is to end.
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
            told = f"{count} descriptors, and {_FIRST + place} is no socket"
            raise InheritedError(f"systemd passed {told}: {exc.strerror}. Use ListenStream=") from exc
        os.set_inheritable(sock.fileno(), False)
        found.append(Inherited(names[place] if place < len(names) else "", sock))
    wrong = [one for one in found if not _listens(one.socket)]
    if wrong:
        told = _told(wrong)
        _close(found)
        raise InheritedError(f"systemd passed {told}, which takes no connections: use ListenStream=")
    return found


def assign(found: Iterable[Inherited], binds: dict[str, str]) -> dict[str, socket.socket]:
    """Give each listener its socket: the one of its name, else the one at its `bind`.

    `binds` are the listeners' addresses by name; those without a socket are not in the answer. Raises
    InheritedError for sockets that no listener takes, and where two are for one; all are closed then.
    """
    found = list(found)
    given: dict[str, Inherited] = {}
    # By both first: one unit may name several sockets alike, and only one of them is that listener's.
    for by_name, by_bind in ((True, True), (True, False), (False, True)):
        for one in found:
            for name, bind in binds.items():
                fits = (one.name == name or not by_name) and (one.address == bind or not by_bind)
                if fits and name not in given and one not in given.values():
                    given[name] = one
    if left := [one for one in found if one not in given.values()]:
        told = _told(left)
        _close(found)
        listeners = ", ".join(f"{name} ({bind})" for name, bind in binds.items())
        raise InheritedError(
            f"systemd passed {told}, which no listener takes, or has one already; there are {listeners}."
            " Give each socket its listener's name (FileDescriptorName=), or the address of its bind"
            " (ListenStream=)"
        )
    return {name: one.socket for name, one in given.items()}


def _listens(sock: socket.socket) -> bool:
    if sock.family not in _FAMILIES or sock.type != socket.SOCK_STREAM:
        return False
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _told(sockets: Iterable[Inherited]) -> str:
    return ", ".join(f"{one.name or 'a socket'} at {one.address}" for one in sockets)


def _close(sockets: Iterable[Inherited]) -> None:
    for one in sockets:
        one.socket.close()
