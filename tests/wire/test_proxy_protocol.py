"""The PROXY protocol against the specification's own words, and against bytes that HAProxy sent."""

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgw.endpoints import Endpoint
from tcpgw.errors import ProtocolError
from tcpgw.wire import proxy_protocol
from tcpgw.wire.proxy_protocol import (
    MAX_SIZE,
    TLV_ALPN,
    TLV_AUTHORITY,
    TLV_HASH_KEY,
    TLV_TOKEN,
    Address,
    Header,
    build_v1,
    build_v2,
    parse,
)

SIGNATURE = bytes.fromhex("0D0A0D0A000D0A515549540A")  # section 2.2
V4 = bytes.fromhex("C0A80001 C0A8000B DC04 01BB")  # 192.168.0.1:56324 to 192.168.0.11:443
SOURCE, DESTINATION = ("192.168.0.1", 56324), ("192.168.0.11", 443)
UNKNOWN_WORST = b"PROXY UNKNOWN " + b" ".join([b":".join([b"ffff"] * 8)] * 2) + b" 65535 65535\r\n"
# Captured from HAProxy 2.6 with `send-proxy-v2 proxy-v2-options crc32c,unique-id`.
HAPROXY_CRC = bytes.fromhex(
    "0d0a0d0a000d0a515549540a211100237f0000017f000001da52cc85030004cbcf748c05000d6162632d3132372e302e302e31"
)


def v2(command: int, family: int, block: bytes) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(block)) + block


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


ports = st.integers(0, 65535)
v4_hosts = st.ip_addresses(v=4).map(str)
# Without the mapped ones, which come out as IPv4 on purpose.
v6_hosts = st.ip_addresses(v=6).filter(lambda address: getattr(address, "ipv4_mapped", None) is None).map(str)
addresses = st.tuples(v4_hosts | v6_hosts, ports)
# The checksum's type is left out: a random value in it is rightly refused.
tlvs = st.lists(st.tuples(st.integers(4, 255), st.binary(max_size=40)), max_size=4).map(tuple)
headers = st.one_of(
    st.builds(build_v1, addresses | st.none(), addresses),
    st.builds(build_v2, addresses | st.none(), addresses, tlvs),
    st.sampled_from([HAPROXY_CRC, UNKNOWN_WORST, v2(0x21, 0x31, b"/run/x.sock".ljust(108, b"\0") * 2)]),
)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n", Header(1, SOURCE, DESTINATION, (), 47)),
        (
            b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
            Header(1, ("255.255.255.255", 65535), ("255.255.255.255", 65535), (), 56),
        ),
        (
            b"PROXY TCP6 " + b" ".join([b":".join([b"FFFF"] * 8)] * 2) + b" 65535 65535\r\n",
            Header(1, (":".join(["ffff"] * 8), 65535), (":".join(["ffff"] * 8), 65535), (), 104),
        ),
        (b"PROXY TCP6 2001:DB8:0::1 ::1 0 1\r\n", Header(1, ("2001:db8::1", 0), ("::1", 1), (), 34)),
        (b"PROXY UNKNOWN\r\n", Header(1, None, None, (), 15)),
        (b"PROXY UNKNOWN what\never\r\n", Header(1, None, None, (), 25)),
        (UNKNOWN_WORST, Header(1, None, None, (), 107)),
        (v2(0x21, 0x11, V4), Header(2, SOURCE, DESTINATION, (), 28)),
        (
            v2(0x21, 0x21, bytes(15) + b"\1" + bytes(15) + b"\2" + b"\0\7\0\x09"),
            Header(2, ("::1", 7), ("::2", 9), (), 52),
        ),
        (v2(0x20, 0x00, b""), Header(2, None, None, (), 16)),
        (v2(0x20, 0xFF, b"discarded"), Header(2, None, None, (), 25)),
        (v2(0x21, 0x00, b"ignored"), Header(2, None, None, (), 23)),
        (v2(0x21, 0x12, V4 + tlv(4, b"")), Header(2, None, None, ((4, b""),), 31)),
        (v2(0x21, 0x31, bytes(216) + tlv(5, b"id")), Header(2, None, None, ((5, b"id"),), 237)),
        (
            v2(0x21, 0x11, V4 + tlv(2, b"example.com") + tlv(0xE0, b"")),
            Header(2, SOURCE, DESTINATION, ((2, b"example.com"), (0xE0, b"")), 45),
        ),
    ],
)
def test_reads_what_the_specification_allows(data: bytes, expected: Header) -> None:
    """Each form of the specification is read as it says, and what follows the header is left alone."""
    assert len(data) == expected.size
    assert parse(data) == expected
    assert parse(data + b"GET / HTTP/1.1\r\n\r\n") == expected


@pytest.mark.parametrize(
    ("data", "offset", "expected"),
    [
        (b"GET / HTTP/1.1\r\n", 0, "a PROXY header"),
        (b"POST", 1, "a PROXY header"),
        (b"PROXY TCP5", 9, "a PROXY header"),
        (b"PROXY UNKNOWNX", 13, "a PROXY header"),
        (b"PROXY UNKNOWN\n", 13, "a PROXY header"),
        (b"\r\n\r\n\r", 4, "a PROXY header"),
        (b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\n", 45, "CRLF"),
        (b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\rx", 45, "CRLF"),
        (b"PROXY TCP4 192.168.0.1 x", 23, "addresses, ports and CRLF"),
        (b"PROXY TCP4 " + b"1" * 96, 107, "CRLF within 107"),
        (b"PROXY UNKNOWN " + b"x" * 93 + b"\r\n", 107, "CRLF within 107"),
        (b"PROXY TCP4 192.168.0.01 192.168.0.11 1 2\r\n", 11, "an IPv4 address"),
        (b"PROXY TCP4 ::1 ::1 1 2\r\n", 11, "an IPv4 address"),
        (b"PROXY TCP6 ::1 1.2.3.4 1 2\r\n", 15, "an IPv6 address"),
        (b"PROXY TCP6 ::1 fe80::1%eth0 1 2\r\n", 11, "source, destination"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.5 1 65536\r\n", 29, "at most 65535"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.5 01 2\r\n", 11, "source, destination"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.5 +1 2\r\n", 11, "source, destination"),
        (b"PROXY TCP4  1.2.3.4 1.2.3.5 1 2\r\n", 11, "source, destination"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.5 1 2 \r\n", 11, "source, destination"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.5 1\r\n", 11, "source, destination"),
        (SIGNATURE + b"\x11", 12, "version 2"),
        (SIGNATURE + b"\x22", 12, "LOCAL or PROXY"),
        (SIGNATURE + b"\x21\x41", 13, "address family"),
        (SIGNATURE + b"\x21\x13", 13, "address family"),
        (SIGNATURE + b"\x21\x11\x00\x0b", 14, "a length of 12 to 4080"),
        (SIGNATURE + b"\x21\x21\x00\x0c", 14, "a length of 36"),
        (SIGNATURE + b"\x20\x00\x0f\xf1", 14, "a length of 0 to 4080"),
        (v2(0x21, 0x11, V4 + b"\4"), 28, "a TLV"),
        (v2(0x21, 0x11, V4 + tlv(4, b"") + b"\4\0\1"), 31, "a TLV"),
        (v2(0x21, 0x11, V4 + tlv(3, b"\0\0\0")), 28, "one CRC32c of 4 bytes"),
        (HAPROXY_CRC.replace(b"\xda\x52", b"\xda\x53"), 31, "CRC32c 0x"),
        (build_v2(SOURCE, DESTINATION, [(3, b"\0\0\0\0")]), 31, "CRC32c 0x"),
    ],
)
def test_refuses_what_it_does_not(data: bytes, offset: int, expected: str) -> None:
    """Bytes that cannot become a header are refused at once, with the offset and what was expected there."""
    with pytest.raises(ProtocolError, match=rf"^PROXY header, byte {offset}: expected .*{expected}.*, got "):
        parse(data)


def test_verifies_the_checksum_that_haproxy_sends() -> None:
    """A header with HAProxy's own CRC32c passes, and one with two of them is refused."""
    assert parse(HAPROXY_CRC) == Header(
        2,
        ("127.0.0.1", 55890),
        ("127.0.0.1", 52357),
        ((3, bytes.fromhex("cbcf748c")), (5, b"abc-127.0.0.1")),
        len(HAPROXY_CRC),
    )
    block = HAPROXY_CRC[16:28] + HAPROXY_CRC[28:35] * 2
    with pytest.raises(ProtocolError, match="byte "):
        parse(v2(0x21, 0x11, block))


def test_checksum_is_the_published_polynomial() -> None:
    """CRC32c has its catalogued check value."""
    assert proxy_protocol._crc32c(b"123456789") == 0xE3069283


def test_the_longest_header_is_read() -> None:
    """A header of exactly MAX_SIZE bytes is accepted both ways; the writer refuses to make a longer one."""
    room = MAX_SIZE - 16 - 12 - 3
    header = build_v2(SOURCE, DESTINATION, [(4, bytes(room))])
    assert len(header) == MAX_SIZE
    assert parse(header + b"more") == Header(2, SOURCE, DESTINATION, ((4, bytes(room)),), MAX_SIZE)
    with pytest.raises(ValueError, match="4097 bytes is longer than 4096"):
        build_v2(SOURCE, DESTINATION, [(4, bytes(room + 1))])


@pytest.mark.parametrize(
    "data",
    [
        b"PROXY TCP6 ::ffff:192.168.0.1 ::FFFF:c0a8:b 56324 443\r\n",
        v2(0x21, 0x21, bytes(10) + b"\xff\xff" + V4[:4] + bytes(10) + b"\xff\xff" + V4[4:]),
    ],
)
def test_one_client_has_one_name(data: bytes) -> None:
    """An IPv4-mapped IPv6 address comes out as the IPv4 one, as endpoints.Endpoint has it."""
    header = parse(data)
    assert header is not None
    assert (header.source, header.destination) == (SOURCE, DESTINATION)
    assert header.source == Endpoint.of("::ffff:192.168.0.1", 56324)


def test_writes_the_specification_bytes() -> None:
    """Written headers are byte for byte what the specification shows."""
    assert build_v1(SOURCE, DESTINATION) == b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"
    assert build_v1(("2001:db8::1", 1), ("::1", 2)) == b"PROXY TCP6 2001:db8::1 ::1 1 2\r\n"
    assert build_v1(None, DESTINATION) == b"PROXY UNKNOWN\r\n"
    assert build_v2(SOURCE, DESTINATION) == v2(0x21, 0x11, V4)
    assert build_v2(SOURCE, None) == v2(0x20, 0x00, b"")
    assert build_v2(SOURCE, DESTINATION, [(5, b"id")]) == v2(0x21, 0x11, V4 + tlv(5, b"id"))


def test_writes_canonical_addresses() -> None:
    """Mapped addresses go out as IPv4 where both can, and a scope id stays at home."""
    assert build_v1(("::ffff:192.168.0.1", 56324), DESTINATION) == build_v1(SOURCE, DESTINATION)
    assert build_v1(("fe80::1%eth0", 1), ("::1", 2)) == b"PROXY TCP6 fe80::1 ::1 1 2\r\n"


@pytest.mark.parametrize("build", [build_v1, build_v2])
@pytest.mark.parametrize("source", [("client.example", 1), ("", 1), ("1.2.3.4", 65536), ("1.2.3.4", -1)])
def test_will_not_write_nonsense(build: Callable[[Address, Address], bytes], source: Address) -> None:
    """What is no address or port never reaches the wire."""
    with pytest.raises(ValueError, match=r"address|port"):
        build(source, DESTINATION)


@given(source=addresses, destination=addresses, extra=tlvs)
def test_round_trip(source: Address, destination: Address, extra: tuple[tuple[int, bytes], ...]) -> None:
    """Both versions bring back the addresses they were given, mixed families too."""
    first, second = build_v1(source, destination), build_v2(source, destination, extra)
    assert parse(first) == Header(1, source, destination, (), len(first))
    assert parse(second) == Header(2, source, destination, extra, len(second))


@given(header=headers, rest=st.binary(max_size=20))
def test_any_split_gives_the_same(header: bytes, rest: bytes) -> None:
    """Fed byte by byte, every part short of the whole asks for more, and the whole reads as in one piece."""
    whole = parse(header)
    assert whole is not None
    assert whole.size == len(header)
    data = header + rest
    for size in range(len(data) + 1):
        assert parse(data[:size]) == (whole if size >= len(header) else None)


@given(header=headers)
def test_every_kind_of_buffer(header: bytes) -> None:
    """bytes, bytearray and memoryview read alike."""
    assert parse(header) == parse(bytearray(header)) == parse(memoryview(header))


def test_types_of_the_gateways_own() -> None:
    """The gateway's own TLVs are in the custom range, and what is written into them is read."""
    tlvs = (
        (TLV_TOKEN, b"a.b.c"),
        (TLV_HASH_KEY, b"\0user"),
        (TLV_AUTHORITY, b"x.example"),
        (TLV_ALPN, b"h2"),
    )
    assert all(0xE0 <= kind <= 0xEF for kind in (TLV_TOKEN, TLV_HASH_KEY))
    header = parse(build_v2(SOURCE, DESTINATION, tlvs))
    assert header is not None
    assert header.tlvs == tlvs
