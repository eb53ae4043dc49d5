"""Addresses of the client and the service."""

import socket
from pathlib import Path

import pytest

from tcpgw.address import Address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.1:9000", Address("10.0.0.1", 9000)),
        ("[::1]:0", Address("::1", 0)),
        ("gateway.internal:65535", Address("gateway.internal", 65535)),
        ("unix:/run/x.sock", Address(path="/run/x.sock")),
        ("unix:x:80", Address(path="x:80")),
    ],
)
def test_an_address_is_read_and_written(text: str, address: Address) -> None:
    """What is read is written the same."""
    assert Address.parse(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        ":80",
        "::1:80",
        "[::1]",
        "[]:80",
        "[::1:80",
        "h:",
        "h:-1",
        "h:²",
        "h:65536",
        "unix:",
        "a..b:1",
        f"{'a' * 64}:1",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    """A text that is no address raises ValueError, which repeats it."""
    with pytest.raises(ValueError, match="is no address") as refused:
        Address.parse(text)
    assert repr(text) in str(refused.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_where_a_socket_is_bound(host: str, tmp_path: Path) -> None:
    """It reads as a user would write it, of all families."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as sock:
        assert Address.of_socket(sock) == Address(host, sock.getsockname()[1])
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "x.sock"))
        assert str(Address.of_socket(sock)) == f"unix:{tmp_path / 'x.sock'}"
