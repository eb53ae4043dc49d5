"""The listening sockets of a gateway with workers: opened once, by the supervisor, before anybody accepts."""

from collections.abc import Iterable, Mapping
from socket import socket

from tcpgw.address import Address
from tcpgw.config import schema
from tcpgw.config.values import Bind
from tcpgw.process.handover import Sockets
from tcpgw.relay.sockets import adopt_socket, bind_socket


def open_sockets(
    listeners: Iterable[schema.Listener],
    workers: int,
    *,
    passed: Mapping[str, socket] | None = None,
    handed: Mapping[str, Sockets] | None = None,
) -> dict[str, Sockets]:
    """Have a socket for each listener and worker: `passed` by systemd, `handed` by a predecessor, or new.

    What is handed over and not wanted is closed. Raises BindError, with nothing open that was not before.
    """
    passed, handed = passed or {}, dict(handed or {})
    found: dict[str, Sockets] = {}
    opened: list[socket] = []
    try:
        for listener in listeners:
            bind = str(listener.bind)
            if listener.name in passed:
                sock = adopt_socket(passed[listener.name], listener.keepalive)
                found[listener.name] = Sockets(bind, [sock], _told(sock), shared=True, outlived=True)
                continue
            sockets = found[listener.name] = _handed(listener, handed) or Sockets(bind)
            sockets.shared = sockets.shared or bool(listener.bind.path)
            for _ in range(len(sockets.sockets), 1 if sockets.shared else workers):
                sockets.sockets.append(
                    bind_socket(_address(listener, sockets), listener.keepalive, shared=True)
                )
                opened.append(sockets.sockets[-1])
            sockets.address = _told(sockets.sockets[0])
    except BaseException:
        for sock in opened:
            sock.close()
        raise
    for unwanted in handed.values():
        unwanted.close()
    return found


def grow(sockets: Sockets, listener: schema.Listener, workers: int) -> None:
    """Have a socket for each of so many workers. Raises BindError, with those that there are."""
    while not sockets.shared and len(sockets.sockets) < workers:
        sockets.sockets.append(bind_socket(_address(listener, sockets), listener.keepalive, shared=True))


def _handed(listener: schema.Listener, handed: dict[str, Sockets]) -> Sockets | None:
    one = handed.get(listener.name)
    if one is None or one.bind != str(listener.bind):
        return None
    for sock in one.sockets:
        adopt_socket(sock, listener.keepalive)
    return handed.pop(listener.name)


def _address(listener: schema.Listener, sockets: Sockets) -> Bind:
    """Where the next socket goes: to the port that the kernel chose for the first, where it was to choose."""
    if not sockets.sockets or listener.bind.path:
        return listener.bind
    return Bind(listener.bind.host, sockets.sockets[0].getsockname()[1])


def _told(sock: socket) -> str:
    return str(Address.of_socket(sock))
