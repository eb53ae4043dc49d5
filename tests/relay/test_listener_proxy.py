"""PROXY headers on the wire: taken from trusted sources, sent to instances, the true source going through.

The headers are written out here, from the specification, and not with tcpgw's own builder.
"""

import asyncio
import struct
from ipaddress import ip_address
from pathlib import Path

import pytest

from tcpgw.balancing import hashing
from tests.support.streams import Peer, bed, until

TRUST_LOOPBACK = 'accept_proxy = ["127.0.0.0/8"]'
V1 = b"PROXY TCP4 203.0.113.7 198.51.100.1 51234 443\r\n"
SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


def v2(source: tuple[str, int], destination: tuple[str, int]) -> bytes:
    """A version 2 header, command PROXY, for TCP."""
    addresses = [ip_address(host) for host, _ in (source, destination)]
    family = {4: 0x11, 6: 0x21}[addresses[0].version]
    body = b"".join(a.packed for a in addresses) + struct.pack("!HH", source[1], destination[1])
    return SIGNATURE + struct.pack("!BBH", 0x21, family, len(body)) + body


V2 = v2(("203.0.113.7", 51234), ("198.51.100.1", 443))
V2_IPV6 = v2(("2001:db8::7", 51234), ("2001:db8::1", 443))
V2_LOCAL = SIGNATURE + b"\x20\x00\x00\x00"


def own(peer: Peer) -> tuple[str, int]:
    host, port = peer.sock.getsockname()[:2]
    return host, port


# ---- accepted ----


@pytest.mark.parametrize(
    ("header", "source"),
    [(V1, "203.0.113.7:51234"), (V2, "203.0.113.7:51234"), (V2_IPV6, "[2001:db8::7]:51234")],
)
async def test_a_trusted_header_names_the_client(header: bytes, source: str) -> None:
    """The header is taken off, the bytes right behind it arrive, and the log knows client and sender."""
    async with bed(listener=TRUST_LOOPBACK) as b:
        client = b.dial()
        await client.send(header + b"question")
        address = client.address
        client.fin()
        instance = await b.accept()
        assert await instance.read_to_end() == b"question"
        await instance.send(b"answer")
        instance.close()
        assert await client.read_to_end() == b"answer"
        line = await b.line()
    assert line["client"] == source
    assert line["peer"] == address
    assert (line["bytes_in"], line["bytes_out"]) == (8, 6)
    assert line["reason"] == "client_fin"


@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", V2_LOCAL])
async def test_a_header_without_addresses_leaves_the_connections_own(header: bytes) -> None:
    """A balancer's own checks (UNKNOWN, LOCAL) come from the balancer."""
    async with bed(listener=TRUST_LOOPBACK) as b:
        client = b.dial()
        await client.send(header + b"x")
        instance = await b.accept()
        assert await instance.read(1) == b"x"
        address = client.address
        client.close()
        instance.close()
        line = await b.line()
    assert line["client"] == address
    assert "peer" not in line


@pytest.mark.parametrize("header", [V1, V2])
async def test_a_header_in_single_bytes(header: bytes) -> None:
    """However the network cuts it, the header ends where it ends."""
    async with bed(listener=TRUST_LOOPBACK) as b:
        client = b.dial()
        for byte in header + b"body":
            await client.send(bytes([byte]))
            await asyncio.sleep(0.0005)
        instance = await b.accept()
        assert await instance.read(4) == b"body"
        client.reset()
        assert (await b.line())["client"] == "203.0.113.7:51234"


async def test_much_data_behind_a_header() -> None:
    """More than one read behind the header arrives whole and in order."""
    data = bytes(range(256)) * 4096
    async with bed(listener=TRUST_LOOPBACK) as b:
        client = b.dial()
        async with asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(client.send(V2 + data))
            instance = await b.accept()
            assert await instance.read(len(data)) == data
            await sending
        client.reset()
        assert (await b.line())["bytes_in"] == len(data)


async def test_a_header_from_elsewhere_is_data() -> None:
    """Who is not trusted to send a header cannot claim to be someone else."""
    async with bed(listener='accept_proxy = ["10.0.0.0/8", "fd00::/8"]') as b:
        client = b.dial()
        await client.send(V1)
        instance = await b.accept()
        assert await instance.read(len(V1)) == V1
        address = client.address
        client.close()
        instance.close()
        assert (await b.line())["client"] == address


async def test_a_trusted_ipv4_network_on_a_dual_stack_listener() -> None:
    """127.0.0.0/8 is trusted although the kernel says ::ffff:127.0.0.1."""
    async with bed(bind="[::]:0", listener=TRUST_LOOPBACK) as b:
        client = b.dial()
        await client.send(V1 + b"x")
        assert await (await b.accept()).read(1) == b"x"
        client.reset()
        assert (await b.line())["client"] == "203.0.113.7:51234"


async def test_the_true_source_is_the_key() -> None:
    """Clients behind a balancer are spread by their own addresses, and each stays with its instance."""
    async with bed(listener=TRUST_LOOPBACK, balance="bounded_load = 0.0", instances=3) as b:
        expected = {}
        for number in range(50):
            host = f"203.0.113.{number}"
            expected[f"{host}:1000"] = str(next(b.pool.candidates(hashing.source_ip(host, hashing.SEED))))
            client = b.dial()
            await client.send(v2((host, 1000), ("198.51.100.1", 443)))
        await until(lambda: sum(c.session is not None for c in b.listener.connections.values()) == 50)
    assert {line["client"]: line["endpoint"] for line in b.lines} == expected
    assert len(set(expected.values())) == 3


# ---- refused ----


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (b"GET / HTTP/1.1\r\n", "PROXY header, byte 0: expected a PROXY header"),
        (b"PROXY TCP4 nonsense\r\n", "PROXY header, byte 11"),
        (SIGNATURE + b"\x31\x11\x00\x0c", "PROXY header, byte 12"),
    ],
)
async def test_garbage_closes_the_connection(sent: bytes, error: str) -> None:
    """Nothing reaches an instance, and the line says at which byte it went wrong."""
    async with bed(listener=TRUST_LOOPBACK) as b:
        client = b.dial()
        await client.send(sent)
        await client.is_reset()
        line = await b.line()
    assert line["reason"] == "protocol_error"
    assert line["error"].startswith(error)
    assert (line["service"], line["endpoint"], line["tries"]) == (None, None, 0)


async def test_a_header_that_breaks_off() -> None:
    """A sender that closes in the middle of its header is no client."""
    async with bed(listener=TRUST_LOOPBACK) as b:
        client = b.dial()
        await client.send(V1[:20])
        client.fin()
        assert await client.read_to_end() == b""
        line = await b.line()
    assert line["reason"] == "protocol_error"
    assert "byte 20" in line["error"]


async def test_a_reset_before_the_header() -> None:
    """A sender that resets before its header was not timed out: it reset."""
    async with bed(listener=TRUST_LOOPBACK) as b:
        client = b.dial()
        await until(lambda: b.listener.accepted)
        client.reset()
        assert (await b.line())["reason"] == "client_reset"


@pytest.mark.parametrize("sent", [b"", V1[:-1]])
async def test_a_header_that_does_not_come(sent: bytes) -> None:
    """A trusted source that says nothing, or not enough, is closed after proxy_timeout."""
    async with bed(listener=TRUST_LOOPBACK + '\nproxy_timeout = "150ms"') as b:
        client = b.dial()
        await client.send(sent)
        assert await client.read_to_end() == b""
        line = await b.line()
    assert line["reason"] == "header_timeout"
    assert 0.14 <= line["duration"] < 1


# ---- sent ----


async def test_version_1_is_sent() -> None:
    """The instance's first bytes are a version 1 line with the client and the listener's own address."""
    async with bed(service='send_proxy = "v1"') as b:
        client, instance = await b.pair()
        server = client.sock.getpeername()
        await client.send(b"hello")
        expected = f"PROXY TCP4 127.0.0.1 127.0.0.1 {own(client)[1]} {server[1]}\r\nhello".encode()
        assert await instance.read(len(expected)) == expected
        client.reset()
        assert (await b.line())["bytes_in"] == 5


@pytest.mark.parametrize("bind", ["127.0.0.1:0", "[::1]:0"])
async def test_version_2_is_sent(bind: str) -> None:
    """The same in version 2, for both families."""
    async with bed(bind=bind, service='send_proxy = "v2"') as b:
        client, instance = await b.pair()
        await client.send(b"hello")
        expected = v2(own(client), client.sock.getpeername()[:2]) + b"hello"
        assert await instance.read(len(expected)) == expected


async def test_a_header_is_sent_before_the_client_says_anything() -> None:
    """An instance that greets first may need to know whom."""
    async with bed(service='send_proxy = "v1"') as b:
        client, instance = await b.pair()
        assert (await instance.read(11)) == b"PROXY TCP4 "
        await instance.send(b"220 ready")
        assert await client.read(9) == b"220 ready"


@pytest.mark.parametrize(("version", "expected"), [("v1", b"PROXY UNKNOWN\r\n"), ("v2", V2_LOCAL)])
async def test_a_unix_client_has_no_address_to_send(tmp_path: Path, version: str, expected: bytes) -> None:
    """Instances that insist on a header get one that claims nothing."""
    async with bed(bind=f"unix:{tmp_path / 's'}", service=f'send_proxy = "{version}"') as b:
        client, instance = await b.pair()
        await client.send(b"x")
        assert await instance.read(len(expected) + 1) == expected + b"x"


@pytest.mark.parametrize("over", ["tcp", "unix"])
@pytest.mark.parametrize("header", [V1, V2], ids=["v1 in", "v2 in"])
async def test_the_true_source_goes_on(tmp_path: Path, header: bytes, over: str) -> None:
    """What a trusted header said of the client is what the instance is told, data behind it included."""
    bind = f"unix:{tmp_path / 's'}" if over == "unix" else "127.0.0.1:0"
    async with bed(bind=bind, listener=TRUST_LOOPBACK, service='send_proxy = "v1"') as b:
        client = b.dial()
        await client.send(header + b"data")
        client.fin()
        instance = await b.accept()
        line, end, data = (await instance.read_to_end()).partition(b"\r\n")
        words = line.decode().split(" ")
        assert words[:3] == ["PROXY", "TCP4", "203.0.113.7"]
        assert words[4] == "51234"
        assert end + data == b"\r\ndata"
        instance.close()
        assert (await b.line())["client"] == "203.0.113.7:51234"
