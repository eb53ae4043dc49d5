"""What the listeners of one process accept on: sockets that were given to it, a predecessor's, or its own."""

import socket
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tcpgw.address import Address
from tcpgw.config import schema
from tcpgw.relay.listener import Listener
from tcpgw.relay.sockets import adopt_socket, bind_socket, listen

Sockets = Mapping[str, Sequence[socket.socket]]
"""Open ones by listener, which are listened on in place of its `bind`."""


@dataclass(frozen=True)
class Opened:
    """What a new listener accepts on. `heir_of`: the one whose place and sockets it takes."""

    sockets: Sequence[socket.socket]
    outlived: bool
    heir_of: Listener | None = None


def open_all(
    wanted: Iterable[schema.Listener],
    given: Sockets,
    ended: Mapping[str, Listener],
    outlived: Container[str],
    *,
    listening: bool = False,
) -> dict[str, Opened]:
    """Open sockets for each, by name, or none; `listening` at once. Raises BindError.

    `ended`: by name, listeners whose place these take. `outlived`: whose given sockets somebody else keeps.
    """
    opened: dict[str, Opened] = {}
    try:
        for settings in wanted:
            one = opened[settings.name] = _open(settings, given, ended.get(settings.name), outlived)
            if listening:
                for sock in one.sockets:
                    listen(sock, str(Address.of_socket(sock)))
    except BaseException:
        close_all(sock for one in opened.values() for sock in one.sockets)
        raise
    return opened


def _open(
    settings: schema.Listener, given: Sockets, ended: Listener | None, outlived: Container[str]
) -> Opened:
    if settings.name in given:
        sockets = [adopt_socket(sock, settings.keepalive) for sock in given[settings.name]]
        return Opened(sockets, outlived=settings.name in outlived)
    if ended is not None:
        sockets = [adopt_socket(sock, settings.keepalive) for sock in ended.duplicate()]
        return Opened(sockets, ended.outlived, ended)
    return Opened([bind_socket(settings.bind, settings.keepalive)], outlived=False)


def close_all(sockets: Iterable[socket.socket]) -> None:
    for sock in sockets:
        sock.close()
