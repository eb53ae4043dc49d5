import contextlib
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tcpgw.config.values import Bind
from tcpgw.relay.sockets import BindError, bind_socket, listen, set_options
from tests.support.streams import listening, open_sockets


@pytest.fixture(autouse=True)
def _nothing_left_open() -> Iterator[None]:
    before = open_sockets()
    yield
    assert open_sockets() <= before


def at(host: str, port: int = 0) -> Bind:
    return Bind(host=host, port=port)


def unix(path: Path) -> Bind:
    return Bind(path=str(path))


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """Fail instead of waiting for ever in a blocking call."""

    def expired(*_: object) -> None:
        raise TimeoutError("blocked")

    before = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def options(sock: socket.socket) -> list[int]:
    return [
        sock.getsockopt(level, name)
        for level, name in (
            (socket.IPPROTO_TCP, socket.TCP_NODELAY),
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
            (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
        )
    ]


@pytest.mark.parametrize(("keepalive", "seconds"), [(60.0, 60), (1.4, 1), (0.2, 1)])
def test_options(keepalive: float, seconds: int) -> None:
    """No delay, and three probes in whole seconds, at least one."""
    with socket.socket() as sock:
        set_options(sock, keepalive)
        assert options(sock) == [1, 1, seconds, seconds, 3]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_accepted_sockets_inherit_the_options(host: str) -> None:
    """Set once on the listening socket, they hold for each client's."""
    with bind_socket(at(host), 30.0) as sock:
        sock.listen()
        with socket.create_connection(sock.getsockname()[:2]), sock.accept()[0] as accepted:
            assert options(accepted) == [1, 1, 30, 30, 3]


def test_a_bound_socket_does_not_listen_yet() -> None:
    """Clients are refused until the gateway is ready for them; and the loop never blocks on the socket."""
    with bind_socket(at("127.0.0.1"), 60.0) as sock:
        assert not sock.getblocking()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(sock.getsockname())


def test_all_interfaces_of_ipv6_are_those_of_ipv4_too() -> None:
    """`[::]` takes IPv4 clients as well, whatever net.ipv6.bindv6only says."""
    with bind_socket(at("::"), 60.0) as sock:
        sock.listen()
        port = sock.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, port)).close()


def test_a_taken_port_is_named() -> None:
    """The error says which address, and that it is in use."""
    with listening() as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BindError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            bind_socket(at("127.0.0.1", port), 60.0)


def test_another_hosts_address_is_refused() -> None:
    """192.0.2.1 is nobody's (RFC 5737)."""
    with pytest.raises(BindError, match=r"cannot listen on 192\.0\.2\.1:9: Cannot assign requested address"):
        bind_socket(at("192.0.2.1", 9), 60.0)


def test_a_port_can_be_taken_over_from_closed_connections() -> None:
    """A restart does not wait for the connections of the process before (TIME_WAIT) to be forgotten."""
    with bind_socket(at("127.0.0.1"), 60.0) as sock:
        sock.listen()
        port = sock.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = sock.accept()
        accepted.close()  # first, so that TIME_WAIT is at the listener's port
        client.close()
    bind_socket(at("127.0.0.1", port), 60.0).close()


def test_a_socket_file_is_for_owner_and_group(tmp_path: Path) -> None:
    """Mode 0660, whatever the umask lets through."""
    path = tmp_path / "s"
    with bind_socket(unix(path), 60.0) as sock:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        sock.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_a_stale_socket_file_is_replaced(tmp_path: Path) -> None:
    """The file of a process that was killed does not stop the next."""
    path = tmp_path / "s"
    with bind_socket(unix(path), 60.0) as killed:
        killed.listen()
    assert path.is_socket()
    with bind_socket(unix(path), 60.0) as sock, socket.socket(socket.AF_UNIX) as client:
        sock.listen()
        client.connect(str(path))


def test_a_live_socket_file_is_left_alone(tmp_path: Path) -> None:
    """A second gateway does not take the socket away from the first."""
    path = tmp_path / "s"
    with bind_socket(unix(path), 60.0) as first:
        first.listen()
        with pytest.raises(BindError, match=f"cannot listen on unix:{path}: another process listens on it"):
            bind_socket(unix(path), 60.0)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_a_socket_file_of_a_gateway_that_starts_is_left_alone(tmp_path: Path) -> None:
    """Nor does it while the first one still waits for its instances."""
    with bind_socket(unix(tmp_path / "s"), 60.0), pytest.raises(BindError, match="another process listens"):
        bind_socket(unix(tmp_path / "s"), 60.0)


def test_two_that_bound_one_address() -> None:
    """The second to listen is told so: SO_REUSEADDR lets both of them bind."""
    with bind_socket(Bind("127.0.0.1"), 60.0) as first:
        port = first.getsockname()[1]
        with bind_socket(Bind("127.0.0.1", port), 60.0) as second:
            listen(first, "here")
            with pytest.raises(BindError, match="cannot listen on here: Address already in use"):
                listen(second, "here")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_address_may_be_shared(host: str) -> None:
    """Several sockets listen on it if all of them say so; nobody else can join them."""
    with bind_socket(Bind(host), 60.0, shared=True) as first:
        port = first.getsockname()[1]
        listen(first, "here")
        with bind_socket(Bind(host, port), 60.0, shared=True) as second:
            listen(second, "here")
            assert second.getsockname() == first.getsockname()
            with pytest.raises(BindError, match="Address already in use"):
                bind_socket(Bind(host, port), 60.0)


def test_a_socket_file_is_not_shared(tmp_path: Path) -> None:
    """It is one file, which the second would take from the first."""
    with bind_socket(unix(tmp_path / "s"), 60.0, shared=True), pytest.raises(BindError, match="another proc"):
        bind_socket(unix(tmp_path / "s"), 60.0, shared=True)


def test_a_live_socket_file_with_a_full_queue_is_left_alone(tmp_path: Path) -> None:
    """Also when the other process is too busy to take our probe, and without waiting for it."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as filler:
        busy.bind(str(path))
        busy.listen(0)
        filler.connect(str(path))
        with patience(), pytest.raises(BindError, match="another process listens on it"):
            bind_socket(unix(path), 60.0)
        assert path.is_socket()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    """A path that was mistyped costs nobody a file."""
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(BindError, match="a file that is not a socket is in the way"):
        bind_socket(unix(path), 60.0)
    assert path.read_text() == "data"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """The error says which path cannot be made."""
    path = tmp_path / "missing" / "s"
    with pytest.raises(BindError, match=f"cannot listen on unix:{path}: No such file or directory"):
        bind_socket(unix(path), 60.0)


def test_a_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    """sockaddr_un holds 108 bytes, and the error says so."""
    with pytest.raises(BindError, match="path too long"):
        bind_socket(unix(tmp_path / ("x" * 120)), 60.0)
