"""HAProxy's PROXY protocol, versions 1 and 2: the bytes that tell the next hop who the client is.

Source: haproxy/doc/proxy-protocol.txt of 2020/03/05; section numbers below are its.
"""

import re
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from tcpgw.errors import ProtocolError

Address = tuple[str, int]
Tlv = tuple[int, bytes]
_Ip = IPv4Address | IPv6Address

# Bytes of a whole header, either version. A length field allows 65,551, but section 2 wants the header to fit
# one 536-byte segment; only certificate TLVs go beyond. nginx draws the same line, and who may fill it is one
# connection that has not yet said who it is.
MAX_SIZE = 4096
_MAX_V1 = 107  # section 2.1: the worst line, CRLF included

# Sections 2.2.1 and 2.2.2: what was negotiated by ALPN, and the host name that the client asked for (SNI).
TLV_ALPN = 0x01
TLV_AUTHORITY = 0x02
# Ours, of the range that section 2.2.8 leaves to everybody (PP2_TYPE_MIN_CUSTOM 0xE0 to PP2_TYPE_MAX_CUSTOM
# 0xEF): an API key or a JWT for the gateway, and bytes to be hashed where `balance.key` is "hash_key".
TLV_TOKEN = 0xE0
TLV_HASH_KEY = 0xE1

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_TCP4, _TCP6 = b"PROXY TCP4 ", b"PROXY TCP6 "
# UNKNOWN ends at once, or with anything up to the CRLF, but UNKNOWNX is another word.
_OPENINGS = (_SIGNATURE, _TCP4, _TCP6, b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN ")

# Both refuse what `ipaddress` or `int` would let through: scope ids, signs, underscores, leading zeros.
_V1_FIELDS = re.compile(rb"([0-9A-Fa-f.:]+) ([0-9A-Fa-f.:]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})")
_V1_WRONG = re.compile(rb"[^0-9A-Fa-f.: \r]|\r(?!\Z)")  # in a line that has no CRLF yet

_FIXED = 16  # signature, command, family, length
_LOCAL, _PROXY = 0x20, 0x21
_UNSPEC, _TCP_OVER_4, _TCP_OVER_6 = 0x00, 0x11, 0x21
# The combinations that section 2.2 expects "in practice", with the size of their two addresses. All others
# it leaves to the receiver or has refused.
_ADDRESS_SIZE = {_UNSPEC: 0, _TCP_OVER_4: 12, 0x12: 12, _TCP_OVER_6: 36, 0x22: 36, 0x31: 216, 0x32: 216}
_CRC32C = 0x03


class Header(NamedTuple):
    """What a PROXY header said. `size` is how many bytes it took; those after it are the client's own.

    `source` and `destination` are None, always together, where the real connection's addresses count: v1
    UNKNOWN, v2 LOCAL, and families that a TCP gateway has no use for (AF_UNSPEC, AF_UNIX, UDP). Addresses
    are canonical text, IPv4-mapped ones as IPv4: the same client is the same key whichever way it came.
    """

    version: int
    source: Address | None
    destination: Address | None
    tlvs: tuple[Tlv, ...]
    size: int


def parse(data: bytes | bytearray | memoryview) -> Header | None:
    """Read the header that `data` starts with; None means that more bytes are needed.

    Call it again with a growing buffer (reads of at most MAX_SIZE keep that small); `data[header.size:]` is
    not the header's. Raises ProtocolError with the byte offset, as soon as no further bytes can mend it.
    """
    head = bytes(data[:MAX_SIZE])
    opening = _opening(head)
    if opening is None:
        return None
    return _parse_v2(head) if opening is _SIGNATURE else _parse_v1(head, opening)


def build_v1(source: Address | None, destination: Address | None) -> bytes:
    """Write a version 1 header: UNKNOWN where either address is None (a Unix socket's client has none).

    A mixed pair goes out as TCP6, as `build_v2` says. Raises ValueError for what is no IP address or port.
    """
    if source is None or destination is None:
        return b"PROXY UNKNOWN\r\n"
    client, target = _one_family(source, destination)
    return f"PROXY TCP{client.version} {client} {target} {source[1]} {destination[1]}\r\n".encode()


def build_v2(source: Address | None, destination: Address | None, tlvs: Iterable[Tlv] = ()) -> bytes:
    """Write a version 2 header: LOCAL where either address is None (receivers then ignore the TLVs).

    LOCAL, although the connection is relayed: receivers must accept LOCAL and may refuse PROXY with
    AF_UNSPEC (section 2.2), and HAProxy sends it for the same case. Of a mixed pair the IPv4 address is
    mapped into IPv6, HAProxy's choice too. Raises ValueError for what is no IP address or port, and where
    the header would be longer than MAX_SIZE.
    """
    command, family, block = _LOCAL, _UNSPEC, b""
    if source is not None and destination is not None:
        client, target = _one_family(source, destination)
        command, family = _PROXY, _TCP_OVER_4 if client.version == 4 else _TCP_OVER_6
        block = client.packed + target.packed + struct.pack("!HH", source[1], destination[1])
    block += b"".join(struct.pack("!BH", kind, len(value)) + value for kind, value in tlvs)
    if len(block) > MAX_SIZE - _FIXED:
        raise ValueError(f"a PROXY header of {_FIXED + len(block)} bytes is longer than {MAX_SIZE}")
    return _SIGNATURE + struct.pack("!BBH", command, family, len(block)) + block


def _opening(data: bytes) -> bytes | None:
    """Find the opening that `data` has begun with; None while it is only part of one."""
    for opening in _OPENINGS:
        if data.startswith(opening):
            return opening
    if any(opening.startswith(data) for opening in _OPENINGS):
        return None
    offset = max(_agreement(data, opening) for opening in _OPENINGS)
    expected = "a PROXY header, version 1 or 2 (is the sender set to send one?)"
    raise _error(offset, expected, f"0x{data[offset]:02x}")


def _agreement(data: bytes, opening: bytes) -> int:
    pairs = enumerate(zip(data, opening, strict=False))
    return next((offset for offset, (got, wanted) in pairs if got != wanted), min(len(data), len(opening)))


def _parse_v1(data: bytes, opening: bytes) -> Header | None:
    known = opening in (_TCP4, _TCP6)
    end = data.find(b"\r\n", 0, _MAX_V1)
    if end < 0:
        if known and (wrong := _V1_WRONG.search(data, len(opening))):
            raise _error(wrong.start(), "addresses, ports and CRLF", f"0x{data[wrong.start()]:02x}")
        if len(data) >= _MAX_V1:
            raise _error(_MAX_V1, f"CRLF within {_MAX_V1} bytes", "none")
        return None
    if not known:
        return Header(1, None, None, (), end + 2)
    fields = _V1_FIELDS.fullmatch(data, len(opening), end)
    if fields is None:
        expected = "source, destination and their two ports, one space between"
        raise _error(len(opening), expected, repr(data[len(opening) : end]))
    source, destination = (_v1_address(fields, which, opening) for which in (1, 2))
    return Header(1, source, destination, (), end + 2)


def _v1_address(fields: re.Match[bytes], which: int, opening: bytes) -> Address:
    host, port = fields[which].decode(), int(fields[which + 2])
    try:
        address = IPv4Address(host) if opening is _TCP4 else IPv6Address(host)
    except ValueError:
        expected = f"an IPv{opening[9:10].decode()} address"
        raise _error(fields.start(which), expected, repr(host)) from None
    if port > 65535:
        raise _error(fields.start(which + 2), "a port of at most 65535", str(port))
    return str(_unmapped(address)), port


def _parse_v2(data: bytes) -> Header | None:
    """Check each fixed field as it arrives, then wait for the whole."""
    command = data[12] if len(data) > 12 else None
    family = data[13] if len(data) > 13 else None
    if command not in (_LOCAL, _PROXY, None):
        raise _error(12, "version 2 with command LOCAL or PROXY (0x20 or 0x21)", f"0x{command:02x}")
    # LOCAL's family is ignored, whatever it says.
    if command == _PROXY and family not in (*_ADDRESS_SIZE, None):
        raise _error(13, "a known address family and transport", f"0x{family:02x}")
    if len(data) < _FIXED or family is None:
        return None
    needed = _ADDRESS_SIZE[family] if command == _PROXY else 0
    size = _FIXED + int.from_bytes(data[14:16])
    if not _FIXED + needed <= size <= MAX_SIZE:
        raise _error(14, f"a length of {needed} to {MAX_SIZE - _FIXED}", str(size - _FIXED))
    if len(data) < size:
        return None
    if needed == 0:
        # LOCAL is skipped whole. AF_UNSPEC does not say how long its addresses are, so its TLVs
        # cannot be found.
        return Header(2, None, None, (), size)
    tlvs = tuple(_tlvs(data[:size], _FIXED + needed))
    if family not in (_TCP_OVER_4, _TCP_OVER_6):
        return Header(2, None, None, tlvs, size)
    source, destination = _v2_addresses(data[_FIXED : _FIXED + needed])
    return Header(2, source, destination, tlvs, size)


def _v2_addresses(block: bytes) -> tuple[Address, Address]:
    width = (len(block) - 4) // 2
    source, destination = (_unmapped(ip_address(block[at : at + width])) for at in (0, width))
    source_port, destination_port = struct.unpack_from("!HH", block, 2 * width)
    return (str(source), source_port), (str(destination), destination_port)


def _tlvs(header: bytes, offset: int) -> Iterable[Tlv]:
    """Cut the rest of the header into TLVs; verify its checksum where it carries one."""
    verified = False
    while offset < len(header):
        kind, length = header[offset], int.from_bytes(header[offset + 1 : offset + 3])
        start, end = offset + 3, offset + 3 + length
        if end > len(header):
            raise _error(offset, "a TLV that ends within the header", f"{len(header) - offset} bytes for it")
        if kind == _CRC32C:
            # One: each costs a pass over the header, and 581 of them fit.
            if verified or length != 4:
                raise _error(offset, "one CRC32c of 4 bytes", "another")
            _verify(header, start)
            verified = True
        yield kind, header[start:end]
        offset = end


def _verify(header: bytes, at: int) -> None:
    """Section 2.2.3: the sum is over the whole header with zeros in the sum's place."""
    wanted, got = _crc32c(header[:at] + bytes(4) + header[at + 4 :]), int.from_bytes(header[at : at + 4])
    if wanted != got:
        raise _error(at, f"CRC32c 0x{wanted:08x}", f"0x{got:08x}")


def _crc32c_entry(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value


_CRC32C_TABLE = tuple(map(_crc32c_entry, range(256)))


def _crc32c(data: bytes) -> int:
    """RFC 4960, appendix B. zlib's crc32 is another polynomial."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC32C_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _unmapped(address: _Ip) -> _Ip:
    return getattr(address, "ipv4_mapped", None) or address


def _one_family(source: Address, destination: Address) -> tuple[_Ip, _Ip]:
    for _, port in (source, destination):
        if not 0 <= port <= 65535:
            raise ValueError(f"port {port} is not between 0 and 65535")
    # A scope id (fe80::1%eth0) names a link of this host; the receiver has no use for it.
    client, target = (_unmapped(ip_address(host.partition("%")[0])) for host, _ in (source, destination))
    return (client, target) if client.version == target.version else (_as_ipv6(client), _as_ipv6(target))


def _as_ipv6(address: _Ip) -> IPv6Address:
    return address if isinstance(address, IPv6Address) else IPv6Address(f"::ffff:{address}")


def _error(offset: int, expected: str, got: str) -> ProtocolError:
    return ProtocolError(f"PROXY header, byte {offset}: expected {expected}, got {got}")
