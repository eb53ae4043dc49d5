"""What a TLS client says first, and in the clear: the host it wants and the protocols it speaks.

Sources: RFC 8446 4.1.2 (ClientHello) and 5.1 (records), RFC 6066 3 (server_name), RFC 7301 3.1 (ALPN).
"""

import re
from bisect import bisect_right
from typing import NamedTuple

from tcpgw.errors import ProtocolError

# Bytes of the whole hello, its record headers with it. With post-quantum key shares browsers send about 2
# KiB; who may fill this is one connection that has not yet said who it is.
MAX_SIZE = 16 * 1024
# Records that one may be in: clients write one or a few; thousands would only take time to read.
_MOST_RECORDS = 1024

_RECORD_HEADER, _MAX_RECORD = 5, 1 << 14
_HANDSHAKE, _CLIENT_HELLO = 22, 1
_SERVER_NAME, _ALPN, _HOST_NAME = 0, 16, 0
_RANDOM = 32
_MAX_SESSION_ID = 32
# With underscores, which no host name may have (RFC 952) and some do. A dot at the end means the same name.
_LABEL = rb"[0-9A-Za-z_](?:[0-9A-Za-z_-]{0,61}[0-9A-Za-z_])?"
_NAME = re.compile(rb"(?=.{1,254}\Z)((?:%s\.)*%s)\.?" % (_LABEL, _LABEL))


class ClientHello(NamedTuple):
    """`server_name` is in lower case, and "" where the client gave none; `alpn` is in its order."""

    server_name: str
    alpn: tuple[bytes, ...]


def parse(data: bytes) -> ClientHello | None:
    """Read the hello that `data` starts with; None means that more bytes are needed.

    Call it again with a growing buffer. What stands behind the hello is not looked at. Raises ProtocolError
    with the byte offset, as soon as no further bytes can mend it: no TLS, an older version than TLS 1.0,
    lengths that disagree, a name that is no host name, or a hello of more than MAX_SIZE bytes.
    """
    message = _Message(data[:MAX_SIZE])
    try:
        return _client_hello(message)
    except _IncompleteError:
        if message.broken:
            raise message.broken from None
        if len(data) >= MAX_SIZE:
            raise _error(MAX_SIZE, f"a ClientHello of at most {MAX_SIZE} bytes", "more") from None
        return None


class _IncompleteError(Exception):
    """The bytes end before what is looked at does."""


class _Message:
    """The handshake's bytes without record headers, as far as they have come.

    `broken` is what is wrong behind them. It counts only once somebody asks for more, so that the verdict is
    the same however the bytes are cut.
    """

    def __init__(self, data: bytes) -> None:
        self.broken: ProtocolError | None = None
        # Where each record's content begins: in the message, and in `data`.
        self._starts: list[tuple[int, int]] = []
        parts: list[bytes] = []
        size = at = 0
        while at < len(data):
            length = self._length(data, at)
            if length is None:
                break
            if len(self._starts) == _MOST_RECORDS:
                self.broken = _error(at, f"a ClientHello in at most {_MOST_RECORDS} records", "more")
                break
            at += _RECORD_HEADER
            self._starts.append((size, at))
            parts.append(data[at : at + length])
            size += len(parts[-1])
            at += length
        self.data = b"".join(parts)

    def _length(self, data: bytes, at: int) -> int | None:
        """Read the record header at a place; None: it is not whole, or wrong."""
        if data[at] != _HANDSHAKE:
            expected = "a TLS handshake record (0x16)"
            self.broken = _error(at, expected, f"0x{data[at]:02x}" + ("" if at else " (plain text?)"))
        elif data[at + 1 : at + 2] not in (b"", b"\3"):
            self.broken = _error(at + 1, "TLS (version 3.x)", f"version {data[at + 1]}.x")
        elif len(data) >= at + _RECORD_HEADER:
            length = int.from_bytes(data[at + 3 : at + 5])
            if 0 < length <= _MAX_RECORD:  # RFC 8446 5.1: no empty fragments of handshakes
                return length
            self.broken = _error(at + 3, f"a record of 1 to {_MAX_RECORD} bytes", str(length))
        return None

    def offset(self, place: int) -> int:
        """Where in the connection a byte of the message is, or would be."""
        start, at = self._starts[bisect_right(self._starts, (place, MAX_SIZE)) - 1]
        return at + place - start


class _Block:
    """A part of the message of known size, read from its front."""

    def __init__(self, message: _Message, at: int, end: int) -> None:
        self.message = message
        self.at = at
        self.end = end

    def __bool__(self) -> bool:
        return self.at < self.end

    def take(self, size: int, what: str) -> bytes:
        """Read a field. Raises ProtocolError where the block is too small for it, else _IncompleteError."""
        start, self.at = self.at, self.at + size
        if self.at > self.end:
            raise self.error(start, f"{size} bytes of {what}", str(self.end - start))
        if self.at > len(self.message.data):
            raise _IncompleteError
        return self.message.data[start : self.at]

    def number(self, width: int, what: str) -> int:
        return int.from_bytes(self.take(width, f"the {what}"))

    def block(self, width: int, what: str, least: int = 0, most: int = MAX_SIZE) -> "_Block":
        """Enter a vector: a length of `width` bytes, then as many bytes, which count as read."""
        start = self.at
        size = self.number(width, f"length of {what}")
        most = min(most, self.end - self.at)
        if not least <= size <= most:
            raise self.error(start, f"{least} to {most} bytes of {what}", str(size))
        self.at += size
        return _Block(self.message, self.at - size, self.at)

    def error(self, place: int, expected: str, got: str) -> ProtocolError:
        return _error(self.message.offset(place), expected, got)


def _client_hello(message: _Message) -> ClientHello:
    handshake = _Block(message, 0, MAX_SIZE - _RECORD_HEADER)
    kind = handshake.number(1, "handshake type")
    if kind != _CLIENT_HELLO:
        raise handshake.error(0, "a ClientHello (1)", str(kind))
    hello = handshake.block(3, "ClientHello")
    major, minor = hello.number(1, "version"), hello.number(1, "version")
    if major != 3 or minor == 0:  # SSL 3.0 has no extensions; TLS 1.3 says 1.2 here
        raise hello.error(hello.at - 2, "TLS 1.0 or later (3.1)", f"{major}.{minor}")
    hello.take(_RANDOM, "random")
    # The contents of these are not looked at, but waited for with the rest.
    hello.block(1, "session id", most=_MAX_SESSION_ID)
    hello.block(2, "cipher suites", 2)
    hello.block(1, "compression methods", 1)
    result = _extensions(hello.block(2, "extensions")) if hello else ClientHello("", ())
    if hello:
        raise hello.error(hello.at, "the end of the ClientHello", f"{hello.end - hello.at} more bytes")
    if hello.end > len(message.data):
        raise _IncompleteError
    return result


def _extensions(extensions: _Block) -> ClientHello:
    server_name = ""
    alpn: tuple[bytes, ...] = ()
    seen: set[int] = set()
    while extensions:
        start = extensions.at
        kind = extensions.number(2, "extension's type")
        if kind in seen:
            raise extensions.error(start, "each extension once", f"{kind} again")
        seen.add(kind)
        content = extensions.block(2, "extension")
        if kind == _SERVER_NAME:
            server_name = _server_name(content)
        elif kind == _ALPN:
            alpn = _alpn(content)
    return ClientHello(server_name, alpn)


def _server_name(content: _Block) -> str:
    names = _only(content, "server names")
    found = b""
    while names:
        start = names.at
        kind = names.number(1, "name's type")
        name = names.block(2, "server name", 1)
        if kind != _HOST_NAME:
            continue  # there are none yet; all that come begin with a length as well
        if found:
            raise names.error(start, "one host name", "another")
        match = _NAME.fullmatch(name.take(name.end - name.at, "server name"))
        if match is None:
            raw = names.message.data[start + 3 : name.end]
            raise names.error(start + 3, "a host name", repr(raw[:64]))
        found = match[1]
    return found.decode().lower()


def _alpn(content: _Block) -> tuple[bytes, ...]:
    protocols = _only(content, "protocol names")
    found = []
    while protocols:
        name = protocols.block(1, "protocol name", 1)
        found.append(name.take(name.end - name.at, "protocol name"))
    return tuple(found)


def _only(content: _Block, what: str) -> _Block:
    """Enter the list that is all of an extension's content."""
    size = content.end - content.at - 2
    return content.block(2, what, max(size, 1), size)


def _error(offset: int, expected: str, got: str) -> ProtocolError:
    return ProtocolError(f"ClientHello, byte {offset}: expected {expected}, got {got}")
