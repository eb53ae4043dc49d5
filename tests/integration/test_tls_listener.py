"""TLS that ends at a listener: clients' bytes arrive as they were, and instances see nothing of it."""

import asyncio
import os
import ssl
from pathlib import Path

import pytest

from tests.support.certificates import AUTHORITY, client_side
from tests.support.framed import FIFO, U32BE, u32be
from tests.support.secure import PLAIN_TLS, Secured, bed, send_until_stalled, server_tls, versions
from tests.support.streams import MiB, Peer, in_time, until

PLANES = {"stream": "", "framed": U32BE, "fifo": FIFO}
LARGE = 30 * MiB


@pytest.mark.parametrize("version", versions)
@pytest.mark.parametrize("plane", PLANES)
async def test_pipelined_requests(tmp_path: Path, plane: str, version: str) -> None:
    """Whatever is asked before the first answer arrives in its order, and so do the answers."""
    async with bed(tmp_path, listener=f"{PLANES[plane]}\n{PLAIN_TLS}") as b:
        client = await b.client(client_side(version=version))
        assert client.ssl.version() == f"TLSv{version}"
        instance = await b.accept()
        asked = b"".join(u32be(os.urandom(size)) for size in (1, 17, 16384, 70_000))
        answered = b"".join(u32be(os.urandom(size)) for size in (70_000, 1, 40, 16385))
        await client.send(asked)
        assert await instance.read(len(asked)) == asked
        await instance.send(answered)
        assert await client.read(len(answered)) == answered
        await client.end()
        assert await instance.read_to_end() == b""
        instance.fin()
        assert await client.read_to_end() == b""
        line = await b.line()
        assert (line["reason"], line["bytes_in"], line["bytes_out"]) == (
            "client_fin",
            len(asked),
            len(answered),
        )


@pytest.mark.parametrize("version", versions)
@pytest.mark.parametrize("plane", ["stream", "framed"])
async def test_large_both_ways_at_once(tmp_path: Path, plane: str, version: str) -> None:
    """30 MB in each direction, each byte in its place."""
    more = "max_frame = '64MiB'\n[gateway]\nrpc_memory = '256MiB'\n" if plane == "framed" else ""
    mode, _, frame = more.partition("\n")
    async with bed(tmp_path, listener=f"{PLANES[plane]}\n{mode}\n{PLAIN_TLS}\n{frame}") as b:
        client = await b.client(client_side(version=version))
        instance = await b.accept()
        asked, answered = u32be(os.urandom(LARGE)), u32be(os.urandom(LARGE))
        _, _, got, heard = await asyncio.wait_for(
            asyncio.gather(
                client.send(asked),
                instance.send(answered),
                instance.read(len(asked)),
                client.read(len(answered)),
            ),
            60,
        )
        assert got == asked
        assert heard == answered


async def test_first_bytes_within_the_finished(tmp_path: Path) -> None:
    """What a client sends in one segment with the end of its handshake is not lost."""
    async with bed(tmp_path) as b:
        client = b.secured()
        assert not client.step()
        await client.flush()
        while not client.step():
            await client._fetch()
        client.ssl.write(b"first bytes")
        await client.flush()
        instance = await b.accept()
        assert await instance.read(11) == b"first bytes"


async def test_the_request_and_the_end_within_the_finished(tmp_path: Path) -> None:
    """A client that has said all it has to say by its second segment is answered."""
    async with bed(tmp_path) as b:
        client = b.secured()
        assert not client.step()
        await client.flush()
        while not client.step():
            await client._fetch()
        client.ssl.write(b"all of it")
        await client.end()
        instance = await b.accept()
        assert await instance.read_to_end() == b"all of it"
        await instance.send(b"answer")
        instance.fin()
        assert await client.read_to_end() == b"answer"


async def test_an_instance_that_speaks_first(tmp_path: Path) -> None:
    """Its greeting arrives though the client has sent nothing."""
    async with bed(tmp_path) as b:
        client = await b.client()
        instance = await b.accept()
        await instance.send(b"220 ready")
        assert await client.read(9) == b"220 ready"


@pytest.mark.parametrize("reads", ["instance", "client"])
@pytest.mark.parametrize("plane", ["stream", "framed"])
async def test_a_reader_that_stalls_stops_the_sender(tmp_path: Path, plane: str, reads: str) -> None:
    """However much is sent to it, the gateway holds a few buffers; all arrives once it reads."""
    async with bed(tmp_path, listener=f"{PLANES[plane]}\nbuffer = '64KiB'\n{PLAIN_TLS}") as b:
        peer = b.dial(receive_buffer=65536)
        client = await Secured(peer, client_side(), "localhost", server_side=False).shake()
        instance = await b.accept()
        relay = await b.relay()
        held = [side for side in (relay.client, relay.instance) if side.transport is not None]
        if reads == "client":
            if plane == "framed":
                await instance.send((8 * MiB).to_bytes(4))
            await instance.send_until_stalled(0.3)
        else:
            if plane == "framed":
                await client.send((8 * MiB).to_bytes(4))
            await send_until_stalled(client)
        sizes = [side.transport.get_write_buffer_size() for side in held if side.transport]
        assert max(sizes) < MiB
        assert max(sizes) > 0
        if reads == "client":
            instance.fin()
            assert await _discard(client) == relay.instance.received
        else:
            peer.reset()
            assert await instance.is_reset()


async def _discard(client: Secured) -> int:
    size = 0
    while chunk := await client.read_some(MiB):
        size += len(chunk)
    return size


# ---- PROXY headers ----

HEADER = b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n"


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_proxy_header_in_front(tmp_path: Path, at_once: bool) -> None:
    """It comes in the clear, TLS begins behind it, and the instance is told of the same source."""
    settings = f'accept_proxy = ["127.0.0.0/8"]\n{PLAIN_TLS}'
    async with bed(tmp_path, listener=settings, service='send_proxy = "v1"') as b:
        client = b.secured()
        assert not client.step()
        hello = client.outgoing.read()
        if at_once:
            await client.peer.send(HEADER + hello)
        else:
            await client.peer.send(HEADER[:20])
            await asyncio.sleep(0.02)
            await client.peer.send(HEADER[20:])
            await asyncio.sleep(0.02)
            await client.peer.send(hello)
        await client.shake()
        await client.send(b"hello")
        instance = await b.accept()
        assert await instance.read(len(HEADER) + 5) == HEADER + b"hello"
        await client.end()
        instance.fin()
        line = await b.line()
        assert (line["client"], line["bytes_in"]) == ("192.0.2.7:4711", 5)


async def test_the_source_behind_tls_is_told(tmp_path: Path) -> None:
    """`send_proxy` names the client that shook hands, before its first byte."""
    async with bed(tmp_path, service='send_proxy = "v1"') as b:
        client = await b.client()
        await client.send(b"hello")
        instance = await b.accept()
        host, port = client.peer.sock.getsockname()
        there = client.peer.sock.getpeername()[1]
        header = f"PROXY TCP4 {host} 127.0.0.1 {port} {there}\r\n".encode()
        assert await instance.read(len(header) + 5) == header + b"hello"


# ---- what is spoken ----


async def test_protocols_are_agreed_on(tmp_path: Path) -> None:
    """The listener's order counts; a client with none of them is served without."""
    async with bed(tmp_path, listener=server_tls("server", more='alpn = ["h2", "http/1.1"]')) as b:
        for offered, agreed in ((("http/1.1", "h2"), "h2"), (("http/1.1",), "http/1.1"), (("x",), None)):
            client = await b.client(client_side(alpn=offered))
            assert client.ssl.selected_alpn_protocol() == agreed


async def test_the_least_version(tmp_path: Path) -> None:
    """An older client gets the alert, and the log says what was wrong with it."""
    async with bed(tmp_path, listener=server_tls("server", more='min_version = "1.3"')) as b:
        assert await b.secured(client_side(version="1.2")).alert() == "TLSV1_ALERT_PROTOCOL_VERSION"
        line = await b.denied()
        assert (line["reason"], line["error"]) == ("tls_error", "no version of TLS in common")
        await b.client()


@pytest.mark.parametrize("version", versions)
async def test_a_session_is_taken_up_again(tmp_path: Path, version: str) -> None:
    """A client that comes back is spared the certificate, and is served as the first time."""
    async with bed(tmp_path) as b:
        context = client_side(version=version)
        first = await b.client(context)
        instance = await b.accept()
        await instance.send(b"x")
        assert await first.read(1) == b"x"  # behind the tickets
        session = first.ssl.session
        second = b.secured(context)
        second.ssl.session = session
        await second.shake()
        assert second.ssl.session_reused
        await second.send(b"again")
        assert await (await b.accept()).read(5) == b"again"


async def test_plain_text_is_refused(tmp_path: Path) -> None:
    """Who speaks something else than TLS gets FIN, no instance is asked, and the log says it."""
    async with bed(tmp_path) as b:
        plain: Peer = b.dial()
        await plain.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        plain.fin()
        assert b"x" not in await plain.read_to_end()
        line = await b.denied()
        assert (line["reason"], line["error"]) == ("tls_error", "plain HTTP instead of TLS")
        assert b.pool.loads.total == 0


async def test_who_does_not_believe_the_gateway(tmp_path: Path) -> None:
    """A client that refuses the certificate is counted as a handshake that failed."""
    stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    async with bed(tmp_path) as b:
        client = b.secured(stranger)
        with pytest.raises(ssl.SSLCertVerificationError):
            await client.shake()
        await client.flush()
        line = await b.denied()
        assert (line["reason"], "unknown ca" in line["error"]) == ("tls_error", True)


async def test_many_clients_at_once(tmp_path: Path) -> None:
    """A hundred handshakes and exchanges side by side, with an authority read from a file as clients do."""
    context = ssl.create_default_context(cadata=AUTHORITY.pem.decode())
    async with bed(tmp_path) as b:

        async def one(number: int) -> None:
            client = await b.client(context)
            data = str(number).encode() * 1000
            await client.send(data)
            assert await client.read(len(data)) == data
            await client.end()
            assert await client.read_to_end() == b""

        async def echo(peer: Peer) -> None:
            while data := await peer.read_some():
                await peer.send(data)
            peer.fin()

        async def serve() -> None:
            async with asyncio.TaskGroup() as group:
                for _ in range(100):
                    group.create_task(echo(await b.accept()))

        await in_time(asyncio.gather(*map(one, range(100)), serve()), 30)
        await until(lambda: len(b.lines) == 100)
        assert {line["reason"] for line in b.lines} == {"client_fin"}
