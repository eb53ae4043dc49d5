"""Which listener has which of the sockets that systemd passed. Taking them: integration/test_systemd.py."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tcpgw.process.inherited import Inherited, InheritedError, assign, take


class Sockets:
    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack = stack
        self._folder = folder

    def tcp(self, name: str = "", host: str = "127.0.0.1") -> Inherited:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = self._stack.enter_context(socket.create_server((host, 0), family=family))
        return Inherited(name, sock)

    def unix(self, name: str = "") -> Inherited:
        sock = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        sock.bind(str(self._folder / "x.sock"))
        sock.listen()
        return Inherited(name, sock)


@pytest.fixture
def sockets(tmp_path: Path) -> Iterator[Sockets]:
    with ExitStack() as stack:
        yield Sockets(stack, tmp_path)


def test_by_address(sockets: Sockets) -> None:
    """A socket is its listener's whose bind says where it is; others bind their own."""
    four, six, unix = sockets.tcp("tcpgw.socket"), sockets.tcp("", "::1"), sockets.unix()
    binds = {"a": four.address, "b": six.address, "c": unix.address, "d": "127.0.0.1:1"}
    assert six.address.startswith("[::1]:")
    assert unix.address.startswith("unix:/")
    assert assign([unix, four, six], binds) == {"a": four.socket, "b": six.socket, "c": unix.socket}


def test_by_name(sockets: Sockets) -> None:
    """A socket that has a listener's name is that listener's, wherever it is."""
    named, placed = sockets.tcp("a"), sockets.tcp("tcpgw.socket")
    binds = {"a": "0.0.0.0:9000", "b": placed.address}
    assert assign([named, placed], binds) == {"a": named.socket, "b": placed.socket}


def test_several_of_one_name(sockets: Sockets) -> None:
    """A unit names all its sockets alike: the listener has the one at its bind, the others go by address."""
    one, other = sockets.tcp("a"), sockets.tcp("a")
    binds = {"b": one.address, "a": other.address}
    expected = {"b": one.socket, "a": other.socket}
    assert assign([one, other], binds) == assign([other, one], binds) == expected


def test_a_name_counts_before_an_address(sockets: Sockets) -> None:
    """Whatever their order, who has a listener's name is not another's by its place."""
    named, placed = sockets.tcp("b"), sockets.tcp("x")
    binds = {"a": placed.address, "b": named.address, "c": named.address}
    assert assign([placed, named], binds) == {"a": placed.socket, "b": named.socket}


def test_a_socket_that_nobody_takes(sockets: Sockets) -> None:
    """It would be listened on by nobody: the error says which it is, what there is, and what to do."""
    known, lost = sockets.tcp("a"), sockets.tcp("tcpgw.socket")
    told = f"tcpgw.socket at {lost.address}", "a (0.0.0.0:9000)", "FileDescriptorName="
    with pytest.raises(InheritedError) as caught:
        assign([known, lost], {"a": "0.0.0.0:9000"})
    assert all(part in str(caught.value) for part in told)
    assert known.socket.fileno() == lost.socket.fileno() == -1


def test_two_sockets_for_one_listener(sockets: Sockets) -> None:
    """A listener has one address: the second is refused, by name."""
    first, second = sockets.tcp("a"), sockets.tcp("a")
    told = f"a at {second.address}"
    with pytest.raises(InheritedError, match=told):
        assign([first, second], {"a": "0.0.0.0:9000"})


@pytest.mark.parametrize(
    "environment",
    [{}, {"LISTEN_PID": "1", "LISTEN_FDS": "1"}, {"LISTEN_FDS": "1"}, {"LISTEN_PID": "x", "LISTEN_FDS": "y"}],
)
def test_what_is_passed_to_others_is_left_alone(environment: dict[str, str]) -> None:
    """Without variables, or with those of another process, there are no sockets."""
    assert take(environment) == []
    assert environment == {}
