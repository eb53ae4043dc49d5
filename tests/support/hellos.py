"""ClientHellos: OpenSSL's own, and such as are built field by field, to go wrong in one place."""

import ssl
from collections.abc import Sequence
from itertools import pairwise


def openssl_hello(
    server_name: str | None = None,
    alpn: Sequence[str] = (),
    version: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED,
) -> bytes:
    """What Python's clients send first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.maximum_version = version
    if alpn:
        context.set_alpn_protocols(alpn)
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=server_name)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake without a server")


def vector(width: int, content: bytes) -> bytes:
    return len(content).to_bytes(width) + content


def extension(kind: int, content: bytes) -> bytes:
    return kind.to_bytes(2) + vector(2, content)


def name_list(*names: bytes) -> bytes:
    return vector(2, b"".join(b"\0" + vector(2, name) for name in names))


def server_name(*names: bytes) -> bytes:
    return extension(0, name_list(*names))


def alpn(*protocols: bytes) -> bytes:
    return extension(16, vector(2, b"".join(vector(1, name) for name in protocols)))


def message(
    extensions: bytes | None = b"",
    *,
    kind: int = 1,
    version: bytes = b"\3\3",
    session: bytes = b"s" * 32,
    suites: bytes = b"\x13\x01\x13\x02",
    compression: bytes = b"\0",
    behind: bytes = b"",
) -> bytes:
    """A handshake message, without record headers. `extensions` None: not even their length."""
    tail = b"" if extensions is None else vector(2, extensions)
    body = version + b"r" * 32 + vector(1, session) + vector(2, suites) + vector(1, compression)
    return bytes([kind]) + vector(3, body + tail + behind)


def records(content: bytes, *cuts: int) -> bytes:
    """Put a message into records, cut at these places."""
    places = [0, *cuts, len(content)]
    return b"".join(b"\x16\3\1" + vector(2, content[start:end]) for start, end in pairwise(places))
