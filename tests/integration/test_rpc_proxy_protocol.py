"""PROXY headers before requests: whatever comes right behind one is asked, once, by whom the header names.

The headers are written out here, from the specification, and not with tcpgw's own builder.
"""

import asyncio
import random
import struct
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest

from tcpgw.balancing import hashing
from tests.support.rpc import NOTIFY, REQUEST, Bed, Client, Instance, bare, bed, echo, hold
from tests.support.rpc_ends import frame
from tests.support.streams import MiB, Peer, until

TRUSTED = 'accept_proxy = ["127.0.0.0/8"]\n'
RULED = 'methods = { "other" = { timeout = "10s" } }'
SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
SOURCE = "203.0.113.7:51234"


def v1(host: str, port: int = 51234) -> bytes:
    return f"PROXY TCP4 {host} 198.51.100.1 {port} 443\r\n".encode()


def v2(host: str, port: int = 51234, *, tlvs: bytes = b"") -> bytes:
    addresses = ip_address(host).packed + ip_address("198.51.100.1").packed
    body = addresses + struct.pack("!HH", port, 443) + tlvs
    return SIGNATURE + struct.pack("!BBH", 0x21, 0x11, len(body)) + body


HEADERS = {
    "v1": v1("203.0.113.7"),
    "v2": v2("203.0.113.7"),
    "v2 that is long": v2("203.0.113.7", tlvs=b"\x04" + struct.pack("!H", 4000) + bytes(4000)),
}
every_header = pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
every_form = pytest.mark.parametrize("framed", [True, False], ids=["framed", "bare"])
every_path = pytest.mark.parametrize("rules", ["", RULED], ids=["in runs", "one by one"])


def packed(framed: bool) -> Callable[..., bytes]:
    return frame if framed else bare


def requests(count: int, framed: bool, *params: Any) -> bytes:
    pack = packed(framed)
    return b"".join(pack(REQUEST, number, "m", [number, *params]) for number in range(count))


async def answered(client: Client, count: int) -> None:
    """Each of `requests` has one answer, its own."""
    answers = await client.got(count)
    assert [(number, error) for _, number, error, _ in sorted(answers)] == [(n, None) for n in range(count)]
    assert all(result[0] == number for _, number, _, result in answers)


async def sent_by(g: Bed, peer: Peer, framed: bool) -> Client:
    """Go on as a client with what a peer began."""
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(lambda: Client(framed=framed), sock=peer.sock.dup())
    g._clients.append(client)
    return client


def received(g: Bed) -> int:
    """Bytes of all clients' requests that were read."""
    return sum(c.session.received for c in g.listener.connections.values() if c.session)


# ---- in one segment ----


@every_path
@every_form
@every_header
async def test_pipelined_behind_a_header(header: bytes, framed: bool, rules: str) -> None:
    """Requests in the header's own segment are answered, and the log counts and names them right."""
    instance = Instance()
    data = requests(40, framed)
    async with bed(instance, listener=TRUSTED + rules) as g:
        client = await g.client(framed=framed)
        client.transport.write(header + data)
        await answered(client, 40)
        assert await client.is_served()
        client.transport.close()
        line = await g.line()
    assert list(instance.seen.values()) == [1] * 41
    assert (line["client"], line["requests"], line["reason"]) == (SOURCE, 41, "client_fin")
    assert line["bytes_in"] == len(data) + len(packed(framed)(REQUEST, 1, "m", ["ping"]))


@every_form
@every_header
async def test_a_header_with_all_that_is_ever_asked(header: bytes, framed: bool) -> None:
    """A client that sends header, requests and FIN at once has every answer, and is closed after them."""
    instance = Instance(hold)
    async with bed(instance, listener=TRUSTED) as g:
        client = await g.client(framed=framed)
        tell = packed(framed)(NOTIFY, "told", ["x"])
        client.transport.write(header + requests(10, framed) + tell)
        client.transport.write_eof()
        await until(lambda: len(instance.held) == 10 and instance.notifications)
        instance.answer_all()
        await answered(client, 10)
        line = await g.line()
    assert instance.notifications == [("told", ["x"])]
    assert (line["client"], line["requests"], line["notifications"]) == (SOURCE, 10, 1)
    assert line["reason"] == "client_fin"


@every_form
@every_header
async def test_a_header_alone(header: bytes, framed: bool) -> None:
    """What is asked later is asked as behind the header."""
    instance = Instance()
    async with bed(instance, listener=TRUSTED) as g:
        client = await g.client(framed=framed)
        client.transport.write(header)
        await until(lambda: any(c.session for c in g.listener.connections.values()))
        assert await client.is_served()


@every_form
async def test_bad_requests_behind_a_header(framed: bool) -> None:
    """Who breaks the protocol in the header's segment is told so like anybody else; nothing is asked."""
    instance = Instance()
    async with bed(instance, listener=TRUSTED) as g:
        client = await g.client(framed=framed)
        client.transport.write(HEADERS["v1"] + packed(framed)(7, 1, "m", []))
        ((_, number, error, _),) = await client.got(1)
        assert (number, error["code"]) == (None, "bad_frame")
        await client.ended.wait()
        client.transport.close()
        line = await g.line()
    assert (line["client"], line["reason"]) == (SOURCE, "protocol_error")
    assert line["error"].startswith("at byte 0 of the connection")
    assert not instance.requests


# ---- in pieces ----


@every_form
@pytest.mark.parametrize("header", [HEADERS["v1"], HEADERS["v2"]], ids=["v1", "v2"])
async def test_split_at_every_byte(header: bytes, framed: bool) -> None:
    """Wherever the network cuts header and requests in two, each request is asked once."""
    instance = Instance()
    data = header + requests(4, framed, "x" * 20)
    async with bed(instance, listener=f"{TRUSTED}max_connections = 4096") as g:
        peers = [g.dial() for _ in range(1, len(data))]
        for at, peer in enumerate(peers, 1):
            await peer.send(data[:at])
        behind = sum(max(0, at - len(header)) for at in range(1, len(data)))
        await until(lambda: g.listener.accepted == len(peers) and received(g) == behind)
        for at, peer in enumerate(peers, 1):
            await peer.send(data[at:])
        for peer in peers:
            await answered(await sent_by(g, peer, framed), 4)
    assert set(instance.seen.values()) == {len(peers)}
    assert {line["client"] for line in g.lines} == {SOURCE}


@every_form
@pytest.mark.parametrize("header", [HEADERS["v1"], HEADERS["v2"]], ids=["v1", "v2"])
async def test_in_single_bytes(header: bytes, framed: bool) -> None:
    """Header and requests may come byte by byte."""
    instance = Instance()
    data = requests(3, framed)
    async with bed(instance, listener=TRUSTED) as g:
        peer = g.dial()
        for byte in header:
            await peer.send(bytes([byte]))
            await asyncio.sleep(0.0005)
        for count, byte in enumerate(data, 1):
            await peer.send(bytes([byte]))
            await until(lambda count=count: received(g) == count)  # type: ignore[misc]
        await answered(await sent_by(g, peer, framed), 3)
    assert list(instance.seen.values()) == [1] * 3


@every_path
@every_form
@every_header
@pytest.mark.parametrize("size", [3000, 9000, 50_000, 3 * MiB])
async def test_half_a_large_frame_behind_a_header(header: bytes, framed: bool, rules: str, size: int) -> None:
    """A frame that the header's segment only begins is asked when it is whole, with what came before it."""
    instance = Instance()
    payload = random.Random(size).randbytes(size)
    pack = packed(framed)
    whole = pack(REQUEST, 2, "m", [2, payload])
    async with bed(instance, listener=TRUSTED + rules) as g:
        client, other = await g.client(framed=framed), await g.client(framed=framed)
        other.transport.write(HEADERS["v1"])
        small = requests(2, framed)
        client.transport.write(header + small + whole[: size // 2])
        await answered(client, 2)
        assert await other.is_served()
        assert set(instance.seen) == {0, 1, "ping"}
        client.transport.write(whole[size // 2 :] + pack(REQUEST, 3, "m", [3]))
        answers = await client.got(4)
        assert {number: result for _, number, _, result in answers[2:]} == {2: [2, payload], 3: [3]}
    assert set(instance.seen.values()) == {1}


@every_form
async def test_half_a_frame_and_the_end(framed: bool) -> None:
    """A client that resets within the frame behind its header leaves nothing."""
    instance = Instance()
    async with bed(instance, listener=TRUSTED) as g:
        client = await g.client(framed=framed)
        whole = packed(framed)(REQUEST, 1, "m", [bytes(100_000)])
        client.transport.write(HEADERS["v2"] + whole[:40_000])
        await until(lambda: received(g) == 40_000)
        client.reset()
        assert (await g.line())["reason"] == "client_reset"
        assert g.held == 0
    assert not instance.requests


# ---- more than a client may have under way ----


@every_path
@every_form
@every_header
async def test_more_behind_a_header_than_may_be_under_way(header: bytes, framed: bool, rules: str) -> None:
    """A client that is full before it is set up has at most max_inflight requests under way, and all run."""
    instance = Instance(hold)
    async with bed(instance, listener=f"{TRUSTED}max_inflight = 4\n{rules}") as g:
        client = await g.client(framed=framed)
        client.transport.write(header + requests(100, framed))
        while len(client.answers) < 100:
            await until(lambda: len(instance.held) >= 4)
            assert len(instance.held) == 4
            await client.got(len(client.answers) + instance.answer_all())
        await answered(client, 100)
    assert list(instance.seen.values()) == [1] * 100


@every_path
@every_form
async def test_who_is_full_before_it_is_set_up_is_not_read(framed: bool, rules: str) -> None:
    """The rest of what it sends stays in the kernel: one read more at most is taken. Then it is answered."""
    instance = Instance(hold)
    count = 1500
    pack = packed(framed)
    # The first ones are small: they fill it with what is read together with the header.
    data = b"".join(pack(REQUEST, n, "m", [n, bytes(10 if n < 8 else 1000)]) for n in range(count))
    async with bed(instance, listener=f"{TRUSTED}max_inflight = 4\n{rules}") as g:
        client, other = await g.client(framed=framed), await g.client(framed=framed)
        client.transport.write(HEADERS["v1"] + data)
        await until(lambda: len(instance.held) == 4)
        instance.behave = echo
        other.transport.write(HEADERS["v2"])
        for _ in range(20):
            assert await other.is_served()
        assert received(g) < 300 * 1024
        assert len(instance.requests) == 4 + 20
        instance.answer_all()
        await answered(client, count)
    assert instance.seen.pop("ping") == 20


# ---- the key ----


@every_path
@every_form
async def test_the_header_is_the_key(framed: bool, rules: str) -> None:
    """Clients behind a balancer are spread by the headers' addresses, and all of each one's stay together."""
    instances = [Instance() for _ in range(3)]
    balance = 'policy = "maglev", bounded_load = 0.0, table_size = 1021'
    async with bed(*instances, listener=TRUSTED + rules, balance=balance) as g:
        expected = {}
        for number in range(40):
            host = f"203.0.113.{number}"
            expected[host] = str(next(g.pool.candidates(hashing.source_ip(host, hashing.SEED))))
            client = await g.client(framed=framed)
            pack = packed(framed)
            data = b"".join(pack(REQUEST, place, "m", [host]) for place in range(3))
            client.transport.write((v2 if number % 2 else v1)(host) + data)
            await client.got(3)
            assert await client.call(host) == [host]
    seen = {host: instance.endpoint for instance in instances for host in instance.seen}
    assert seen == expected
    assert sum(len(instance.seen) for instance in instances) == 40
    assert all(len(instance.seen) > 3 for instance in instances)


@every_form
@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", SIGNATURE + b"\x20\x00\x00\x00"])
async def test_a_header_without_addresses(header: bytes, framed: bool) -> None:
    """The balancer's own requests (UNKNOWN, LOCAL) go where its own address belongs."""
    instances = [Instance() for _ in range(3)]
    balance = 'policy = "maglev", bounded_load = 0.0, table_size = 1021'
    async with bed(*instances, listener=TRUSTED, balance=balance) as g:
        home = str(next(g.pool.candidates(hashing.source_ip("127.0.0.1", hashing.SEED))))
        client = await g.client(framed=framed)
        client.transport.write(header + requests(5, framed))
        await answered(client, 5)
        client.transport.close()
        line = await g.line()
    assert {instance.endpoint for instance in instances if instance.requests} == {home}
    assert "peer" not in line
