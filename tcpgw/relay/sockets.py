"""Opening sockets for listening, and the options that both sides of a relay carry."""

import asyncio
import contextlib
import fcntl
import os
import socket
import stat
import struct
import termios

from tcpgw.config.values import Bind
from tcpgw.errors import TcpgwError

# Long enough for a burst of reconnecting clients; the kernel cuts it to net.core.somaxconn (4096 on Linux).
BACKLOG = 4096
# Unanswered probes before the kernel gives a connection up: at 60 s, a dead peer is noticed after 4 minutes.
_KEEPALIVE_PROBES = 3
# Whoever may read and write the socket file may connect: owner and group, as HAProxy's and PostgreSQL's
# packages set theirs up.
_UNIX_MODE = 0o660
# SO_LINGER on, 0 s: closing sends RST and drops what is unsent (socket(7)).
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class BindError(TcpgwError):
    """The address cannot be listened on: taken, not this host's, or not permitted."""

    blame = "operator"


def set_options(sock: socket.socket, keepalive: float) -> None:
    """TCP_NODELAY, and probes every `keepalive` seconds. On Linux, accepted sockets inherit both."""
    probe = max(1, round(keepalive))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, probe)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, probe)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)


def bind_socket(bind: Bind, keepalive: float, *, shared: bool = False) -> socket.socket:
    """Open a non-blocking socket at an address, not listening yet. Raises BindError, nothing left open.

    `shared`: others of this user may bind the address as well, if they say so too, and the kernel spreads
    the clients over all that listen. Of TCP only: a Unix socket's file is one.
    """
    family = socket.AF_UNIX if bind.path else socket.AF_INET6 if ":" in bind.host else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as exc:
        raise BindError(f"cannot listen on {bind}: {exc.strerror}") from exc
    try:
        if bind.path:
            _remove_stale(bind.path)
            sock.bind(bind.path)
            os.chmod(bind.path, _UNIX_MODE)  # noqa: PTH101 - also right for an unusual path
            # At once: another start would take a file that nobody listens on for a crash's and remove it.
            sock.listen(BACKLOG)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                # "[::]:9000" takes IPv4 too, as nginx and HAProxy do on Linux by default.
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            set_options(sock, keepalive)
            sock.bind((bind.host, bind.port))
        sock.setblocking(False)
    except OSError as exc:
        sock.close()
        raise BindError(f"cannot listen on {bind}: {exc.strerror or exc}") from exc
    return sock


def adopt_socket(sock: socket.socket, keepalive: float) -> socket.socket:
    """Make a listening socket that somebody else opened like one of `bind_socket`; returns it."""
    if sock.family != socket.AF_UNIX:
        set_options(sock, keepalive)
    sock.setblocking(False)
    return sock


def listen(sock: socket.socket, address: str) -> None:
    """Listen on a bound socket. Raises BindError: SO_REUSEADDR lets two bind an address, but one listen."""
    try:
        sock.listen(BACKLOG)
    except OSError as exc:
        raise BindError(f"cannot listen on {address}: {exc.strerror or exc}") from exc


def _remove_stale(path: str) -> None:
    """Remove a socket file that nobody listens on, as left by a crash. Raises OSError where somebody does."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):  # noqa: PTH116
            raise FileExistsError(17, "a file that is not a socket is in the way")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)  # a full queue is a listener too: EAGAIN
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)  # noqa: PTH108
                return
            except BlockingIOError:
                pass
        raise FileExistsError(17, "another process listens on it")


def unacknowledged(transport: asyncio.Transport) -> int:
    """Bytes that the kernel holds for the other side (SIOCOUTQ, tcp(7)), beside the transport's own."""
    sock: socket.socket | None = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return 0
    (size,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))
    return int(size)


def drop(transport: asyncio.Transport, *, reset: bool) -> None:
    """End a transport at once: by RST, or by FIN (within TLS by close_notify before it). Idempotent.

    What was written and is not sent yet is lost.
    """
    sock: socket.socket | None = transport.get_extra_info("socket")
    if reset and sock is not None:  # uvloop's answer from the closing of the socket until connection_lost
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    if not reset:
        transport.close()
    if reset or transport.get_write_buffer_size():
        transport.abort()
