"""The listening sockets of a gateway with workers: opened once, by the supervisor, before anybody accepts."""

import errno
from collections.abc import Iterable, Mapping
from contextlib import closing
from socket import socket

import structlog

from tcpgw.address import Address
from tcpgw.config import schema
from tcpgw.config.values import Bind
from tcpgw.process.handover import Sockets
from tcpgw.relay.sockets import BindError, adopt_socket, bind_socket, listen

log = structlog.get_logger()

_SHARED = (
    "another process of this user accepts there too and gets a part of the clients: workers whose supervisor"
    " died, for a while, or a gateway with another file"
)


def lent(passed: Mapping[str, socket], listeners: Iterable[schema.Listener]) -> dict[str, Sockets]:
    """Describe the sockets that systemd passed for listeners: they are shared, and systemd's when we end."""
    binds = {listener.name: str(listener.bind) for listener in listeners}
    return {
        name: Sockets(binds[name], [sock], _told(sock), shared=True, outlived=True)
        for name, sock in passed.items()
    }


def open_sockets(
    listeners: Iterable[schema.Listener], workers: int, given: Mapping[str, Sockets]
) -> dict[str, Sockets]:
    """Have sockets for each listener, one for each worker or one for all: those `given`, or new ones.

    Of what is given, a listener takes what has its name and bind, else its bind. Raises BindError, with
    nothing open that was not before.
    """
    left = dict(given)
    found: dict[str, Sockets] = {}
    opened: list[socket] = []
    try:
        for listener in listeners:
            sockets = found[listener.name] = _taken(listener, left) or Sockets(str(listener.bind))
            sockets.shared = sockets.shared or bool(listener.bind.path)
            others = not sockets.sockets and _has_others(listener)
            for _ in range(len(sockets.sockets), 1 if sockets.shared else workers):
                sockets.sockets.append(_opened(listener, sockets))
                opened.append(sockets.sockets[-1])
            sockets.address = _told(sockets.sockets[0])
            if others:
                log.warning("address_shared", listener=listener.name, bind=sockets.bind, hint=_SHARED)
    except BaseException:
        for sock in opened:
            sock.close()
        raise
    return found


def grow(sockets: Sockets, listener: schema.Listener, workers: int) -> None:
    """Have a listening socket for each of so many workers. Raises BindError, with those that there are."""
    while not sockets.shared and len(sockets.sockets) < workers:
        sock = _opened(listener, sockets)
        try:
            listen(sock, sockets.address)
        except BindError:
            sock.close()
            raise
        sockets.sockets.append(sock)


def listen_on(sockets: Iterable[Sockets]) -> None:
    """Let clients connect: who comes before a worker accepts waits for it. Raises BindError."""
    for one in sockets:
        for sock in one.sockets:
            listen(sock, one.address)


def unserved(ended: Mapping[str, Sockets], opened: Mapping[str, Sockets]) -> list[str]:
    """Say of which ended listeners systemd keeps the socket open, whose clients wait in vain now."""
    return [
        f"listener.{name}: systemd keeps its socket at {one.address} open, and nobody serves it any more:"
        " change tcpgw.socket too, or the next start fails"
        for name, one in ended.items()
        if one.outlived and one not in opened.values()
    ]


def _taken(listener: schema.Listener, left: dict[str, Sockets]) -> Sockets | None:
    bind = str(listener.bind)
    names = [name for name, one in left.items() if one.bind == bind and not listener.bind.is_any]
    name = listener.name if listener.name in left and left[listener.name].bind == bind else None
    name = name or next(iter(names), None)
    if name is None:
        return None
    for sock in left[name].sockets:
        adopt_socket(sock, listener.keepalive)
    return left.pop(name)


def _opened(listener: schema.Listener, sockets: Sockets) -> socket:
    """Where the next socket goes: to the port that the kernel chose for the first, where it was to choose."""
    bind = listener.bind
    if sockets.sockets and bind.is_any:
        bind = Bind(bind.host, sockets.sockets[0].getsockname()[1])
    return bind_socket(bind, listener.keepalive, shared=True)


def _has_others(listener: schema.Listener) -> bool:
    """Whether an address is taken. By SO_REUSEPORT it may be ours all the same."""
    if listener.bind.path or listener.bind.is_any:
        return False
    try:
        with closing(bind_socket(listener.bind, listener.keepalive)):
            return False
    except BindError as exc:
        cause = exc.__cause__
        return isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE


def _told(sock: socket) -> str:
    return str(Address.of_socket(sock))
