"""What is read of a ClientHello, and at which byte it is refused."""

import socket
import ssl
import subprocess

import pytest

from tcpgw.errors import ProtocolError
from tcpgw.wire.client_hello import MAX_SIZE, ClientHello, parse
from tests.conftest import Need
from tests.support.hellos import alpn, extension, message, openssl_hello, records, server_name, vector

NOTHING = ClientHello("", ())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_real_hello(version: ssl.TLSVersion) -> None:
    """Host name and protocols of Python's own clients are read, whichever TLS they speak."""
    hello = openssl_hello("A.Example.com", ["h2", "http/1.1"], version)
    assert parse(hello) == ClientHello("a.example.com", (b"h2", b"http/1.1"))
    assert parse(openssl_hello(None, [], version)) == NOTHING


def test_the_hello_of_the_openssl_command(need: Need) -> None:
    """What `openssl s_client` sends first is read too."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = "{}:{}".format(*server.getsockname())
        command = [need("openssl"), "s_client", "-connect", address, "-servername", "b.example.com"]
        client = subprocess.Popen([*command, "-alpn", "h2"], stdin=-1, stdout=-3, stderr=-3)
        server.settimeout(10)
        try:
            with server.accept()[0] as accepted:
                accepted.settimeout(10)
                data = b""
                while (hello := parse(data)) is None:
                    data += accepted.recv(100)
        finally:
            client.communicate()
    assert hello == ClientHello("b.example.com", (b"h2",))


@pytest.mark.parametrize(
    ("hello", "expected"),
    [
        (message(None), NOTHING),
        (message(), NOTHING),
        (message(extension(10, b"\0\2\0\x1d")), NOTHING),
        (
            message(server_name(b"a_b.c-d.E") + alpn(b"x", b"\xff" * 255)),
            ("a_b.c-d.e", (b"x", b"\xff" * 255)),
        ),
        (message(server_name(b"dot.example.")), ("dot.example", ())),
        (message(server_name(b"10.0.0.1")), ("10.0.0.1", ())),
        (message(extension(0, vector(2, b"\7\0\1x\0\0\1y"))), ("y", ())),  # a type of name of the future
        (message(session=b"", version=b"\3\1"), NOTHING),
        (message(extension(51, bytes(2000)) + server_name(b"late")), ("late", ())),  # post-quantum shares
    ],
)
def test_hellos(hello: bytes, expected: ClientHello) -> None:
    """Hellos with all that is allowed, in one record or in many, and whatever comes behind."""
    for data in (records(hello), records(hello, *range(1, len(hello), 7)), records(hello) + b"\x17\3\3"):
        assert parse(data) == expected
    assert parse(records(hello)[:-1]) is None


START = 5 + 4  # where a hello's version stands
EXTENSIONS = START + 2 + 32 + 33 + 6 + 2  # where its length of extensions does
FIRST = EXTENSIONS + 2


@pytest.mark.parametrize(
    ("data", "offset", "expected"),
    [
        (b"GET / HTTP/1.1\r\n", 0, "TLS handshake record (0x16), got 0x47 (plain text?)"),
        (b"\x80\x2e\1\0\2", 0, "0x80"),  # of SSL 2
        (b"\x16\2", 1, "version 3.x"),
        (b"\x16\3\1\0\0", 3, "1 to 16384 bytes, got 0"),
        (b"\x16\3\1\x40\1", 3, "got 16385"),
        (records(message(kind=2)), 5, "a ClientHello (1), got 2"),
        (b"\x16\3\1\2\0\1\1\0\0", 6, "bytes of ClientHello, got 65536"),
        (b"\x16\3\1\2\0\1\0\0\x20" + bytes(2), START, "TLS 1.0 or later (3.1), got 0.0"),
        (records(message(version=b"\3\0")), START, "TLS 1.0 or later (3.1), got 3.0"),
        (records(message(version=b"\2\0")), START, "got 2.0"),
        (records(message(session=bytes(33))), START + 34, "0 to 32 bytes of session id, got 33"),
        (records(message(suites=b"")), START + 67, "bytes of cipher suites, got 0"),
        (records(message(compression=b"")), START + 73, "bytes of compression methods, got 0"),
        (records(message(None, compression=b"")[:-1] + b"\1"), START + 73, "1 to 0 bytes"),
        (records(message(behind=b"x")), FIRST, "the end of the ClientHello, got 1 more bytes"),
        (records(message(None, behind=b"\0\1")), EXTENSIONS, "0 to 0 bytes of extensions, got 1"),
        (records(message(b"\0")), FIRST, "2 bytes of the extension's type, got 1"),
        (records(message(b"\0\0\0\1")), FIRST + 2, "0 to 0 bytes of extension, got 1"),
        (records(message(server_name(b"a") * 2)), FIRST + 10, "each extension once, got 0 again"),
        (records(message(extension(0, b""))), FIRST + 4, "length of server names, got 0"),
        (records(message(extension(0, b"\0\0"))), FIRST + 4, "bytes of server names, got 0"),
        (records(message(extension(0, b"\0\2\0\0\1"))), FIRST + 4, "3 to 3 bytes of server names, got 2"),
        (records(message(server_name(b""))), FIRST + 7, "bytes of server name, got 0"),
        (records(message(server_name(b"a", b"b"))), FIRST + 10, "one host name, got another"),
        (records(message(server_name(b"a..b"))), FIRST + 9, "a host name, got b'a..b'"),
        (records(message(server_name(b"-a"))), FIRST + 9, "a host name"),
        (records(message(server_name(b"b\xc3\xbc"))), FIRST + 9, "a host name"),
        (records(message(server_name(b"a" * 64))), FIRST + 9, "a host name"),
        (records(message(server_name(b"abc." * 64))), FIRST + 9, "a host name"),
        (records(message(server_name(b"a\n"))), FIRST + 9, "a host name"),
        (records(message(alpn())), FIRST + 4, "bytes of protocol names, got 0"),
        (records(message(alpn(b""))), FIRST + 6, "bytes of protocol name, got 0"),
        (records(message(extension(16, b"\0\2\2a"))), FIRST + 6, "1 to 1 bytes of protocol name, got 2"),
        (records(message(), 9)[:14] + b"\x17\3\3", 14, "TLS handshake record (0x16), got 0x17"),
        (records(message(server_name(b"a..b")), FIRST), FIRST + 5 + 4 + 5, "a host name"),
    ],
)
def test_what_is_wrong_is_refused_at_its_byte(data: bytes, offset: int, expected: str) -> None:
    """The message names the byte of the connection, what must stand there and what does."""
    with pytest.raises(ProtocolError) as caught:
        parse(data)
    assert f"ClientHello, byte {offset}: expected " in str(caught.value)
    assert expected in str(caught.value)


def test_a_record_that_is_wrong_behind_the_hello_does_not_matter() -> None:
    """Only what is needed is looked at."""
    assert parse(records(message()) + b"GET /") == NOTHING


def test_size() -> None:
    """A hello of 16 KiB is taken; a longer one is refused by its length, or when the bytes are used up."""
    room = MAX_SIZE - FIRST
    assert parse(records(message(extension(99, bytes(room - 4))))) == NOTHING
    with pytest.raises(ProtocolError, match="byte 6: expected 0 to 16375 bytes of ClientHello, got 16376"):
        parse(records(message(extension(99, bytes(room - 3))), 9)[:20])
    with pytest.raises(ProtocolError, match="a ClientHello in at most 1024 records, got more"):
        parse(records(message(extension(99, bytes(3000))), *range(1, 3000)))
    split = records(message(extension(99, bytes(15000))), *range(20, 15000, 20))
    assert parse(split[: MAX_SIZE - 1]) is None
    with pytest.raises(
        ProtocolError, match="byte 16384: expected a ClientHello of at most 16384 bytes, got more"
    ):
        parse(split)
