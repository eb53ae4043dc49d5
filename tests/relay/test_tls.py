"""An upper protocol sees no difference: bytes, their order, and flow control in both directions."""

import asyncio
import random
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from tcpgw.relay.handshake import accept_tls
from tcpgw.relay.tls import TlsLayer
from tests.conftest import Need
from tests.support.certificates import AUTHORITY, client_side, server_side
from tests.support.layering import Above, Below
from tests.support.streams import SMALL, MiB, in_time, until
from tests.support.tls import closing_layers, layer_on, pair, shaken, versions

both = pytest.mark.parametrize("version", versions)
LARGE = random.Random(0).randbytes(5 * MiB)


@both
@pytest.mark.parametrize("size", [1, 64, 16384, 16385, 300_000])
async def test_bytes_go_both_ways(version: str, size: int) -> None:
    """Whatever their number."""
    async with pair() as (here, there):
        server, client = await shaken(here, there, client=client_side(version=version))
        one, other = await layer_on(here, server), await layer_on(there, client)
        for sender, receiver in ((one, other), (other, one)):
            sender.transport.write(LARGE[:size])
            await until(receiver.has(size))
            assert receiver.data == LARGE[:size]


async def test_whatever_kind_of_bytes() -> None:
    """Also such as their owner changes at once, in pieces and empty."""
    async with pair() as (here, there):
        server, client = await shaken(here, there)
        one, other = await layer_on(here, server), await layer_on(there, client)
        mine = bytearray(LARGE[:100_000])
        one.transport.write(mine)
        mine[:] = bytes(len(mine))
        small = bytearray(b"ab")
        one.transport.writelines([small, b"", memoryview(b"cd"), LARGE[:50_000], b"ef"])
        small[:] = b"xx"
        one.transport.write(b"")
        one.transport.write(memoryview(LARGE)[:40_000])
        expected = LARGE[:100_000] + b"abcd" + LARGE[:50_000] + b"ef" + LARGE[:40_000]
        await until(other.has(len(expected)))
        assert other.data == expected


async def test_bytes_that_came_with_the_handshake() -> None:
    """They are delivered like all others, once the upper protocol knows of its transport."""
    async with pair() as (here, there):
        server, client = await shaken(here, there)
        client.ssl.write(b"question")
        server.incoming.write(client.outgoing.read())
        above = await layer_on(here, server)
        await until(lambda: above.data)
        assert above.data == b"question"


@both
async def test_much_both_ways_at_once(version: str) -> None:
    """50 MB in each direction, in writes of all sizes, arrive byte for byte, and whoever writes is paused."""
    blob = random.Random(1).randbytes(50_000_000)
    async with pair() as (here, there):
        server, client = await shaken(here, there, client=client_side(version=version))
        ends = await layer_on(here, server), await layer_on(there, client)

        async def send(above: Above, seed: int) -> None:
            sizes, at = random.Random(seed), 0
            while at < len(blob):
                size = sizes.choice([1, 100, 5000, 16384, 70_000, 300_000, 2_000_000])
                above.transport.write(blob[at : at + size])
                at += size
                await until(lambda: not above.paused)

        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            for seed, above in enumerate(ends):
                tasks.create_task(send(above, seed))
        await until(lambda: all(len(above.data) >= len(blob) for above in ends))
        for above in ends:
            assert above.data == blob
            assert "pause" in above.events
            # One read of the kernel's is one call, or a few.
            assert max(above.sizes) > 100_000


# ---- flow control ----


async def test_a_reader_that_stalls_costs_bounded_memory() -> None:
    """The writer is paused, and its transport holds no more than it was given since; then all arrives."""
    async with pair(SMALL) as (here, there):
        server, client = await shaken(here, there)
        one, other = await layer_on(here, server), await layer_on(there, client)
        other.transport.pause_reading()
        sent = 0
        while not one.paused:
            one.transport.write(LARGE[sent : sent + 50_000])
            sent += 50_000
            await asyncio.sleep(0)
        assert sent < len(LARGE)
        held = one.transport.get_write_buffer_size()
        assert held < 64 * 1024 + 51_000
        one.transport.write(LARGE[sent:])  # as one does that cannot wait
        assert one.transport.get_write_buffer_size() == held + len(LARGE) - sent
        assert other.data == b""
        other.transport.resume_reading()
        await until(other.has(len(LARGE)))
        assert other.data == LARGE
        await until(lambda: not one.paused)
        assert one.transport.get_write_buffer_size() == 0


async def test_a_reader_that_pauses_in_the_middle_of_a_read() -> None:
    """It gets nothing more until it wants it, then the rest, in calls of its own."""
    async with pair() as (here, there):
        server, client = await shaken(here, there)
        one, other = await layer_on(here, server), await layer_on(there, client)
        other.when = lambda event: other.transport.pause_reading() if event == "data" else None
        one.transport.write(LARGE)
        for _ in range(3):
            got = len(other.data)
            await until(other.has(got + 1))
            await asyncio.sleep(0.01)
            calls = len(other.sizes)
            await asyncio.sleep(0.01)
            assert len(other.sizes) == calls
            other.transport.resume_reading()
            assert len(other.sizes) == calls
        other.when = lambda _: None
        other.transport.resume_reading()
        await until(other.has(len(LARGE)))
        assert other.data == LARGE


async def test_what_comes_although_reading_is_paused_is_kept() -> None:
    """Uvloop reads once more where an upper protocol pauses as soon as it is connected."""
    async with pair() as (here, there):
        server, client = await shaken(here, there)
        below, above = Below(), Above()
        layer = TlsLayer(above, server, strict=False)
        layer.connection_made(below)
        layer.pause_reading()
        for size in (10, 200_000, 50_000):
            client.ssl.write(b"")
            records = b""
            for at in range(0, size, 16384):
                client.ssl.write(LARGE[at : min(at + 16384, size)])
                records += client.outgoing.read()
            layer.data_received(records)
        layer.eof_received()
        assert above.data == b""
        layer.resume_reading()
        await until(above.heard("eof"))
        assert above.data == LARGE[:10] + LARGE[:200_000] + LARGE[:50_000]


async def test_limits_of_the_write_buffer() -> None:
    """An upper protocol is told at its own, counted over what waits here and below."""
    async with pair() as (here, there):
        server, _ = await shaken(here, there)
        below, above = Below(), Above()
        layer = TlsLayer(above, server, strict=False)
        layer.connection_made(below)
        layer.set_write_buffer_limits(high=1000)
        assert layer.get_write_buffer_limits() == (250, 1000)
        layer.pause_writing()
        layer.resume_writing()
        assert above.events == ["made", "pause", "resume"]
        layer.pause_writing()
        layer.write(bytes(1001))
        below.buffered = 50
        assert layer.get_write_buffer_size() == 1051
        assert below.written == []
        layer.resume_writing()
        assert not above.paused
        assert layer.get_write_buffer_size() == 50
        # More than a turn's worth goes out in several, so that others have theirs.
        layer.write(bytes(MiB))
        assert len(below.written) == 2
        assert above.paused
        await until(lambda: not above.paused)
        assert len(below.written) == 5
        assert max(map(len, below.written)) < 300_000


async def test_small_pieces_share_a_record() -> None:
    """What waits is joined: a record for each piece would be longer than the pieces."""
    async with pair() as (here, there):
        server, client = await shaken(here, there)
        await server.send(b"first")
        assert await in_time(client.receive()) == b"first"  # behind session tickets
        below = Below()
        layer = TlsLayer(Above(), server, strict=False)
        layer.connection_made(below)
        layer.writelines([b"abc"] * 1000)
        assert len(below.written) == 1
        assert len(below.written[0]) < 3050
        client.incoming.write(below.written[0])
        assert client.ssl.read(16384) == b"abc" * 1000


# ---- what OpenSSL says for itself ----


async def test_extra_information() -> None:
    """The TLS object is there for who asks; the rest is the socket's."""
    async with pair() as (here, there):
        server, _ = await shaken(here, there)
        above = await layer_on(here, server)
        assert isinstance(above.transport.get_extra_info("ssl_object"), ssl.SSLObject)
        assert above.transport.get_extra_info("peername") == there.getsockname()
        assert isinstance(above.transport.get_extra_info("socket").fileno(), int)


async def test_a_key_update(need: Need, tmp_path: Path) -> None:
    """A client may change its keys, and ask for ours to be changed, at any time."""
    (tmp_path / "ca").write_bytes(AUTHORITY.pem)
    async with closing_layers():
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setblocking(False)
        command = [need("openssl"), "s_client", "-connect", f"127.0.0.1:{listening.getsockname()[1]}"]
        client = await asyncio.create_subprocess_exec(
            *command,
            "-CAfile",
            str(tmp_path / "ca"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=-3,
        )
        assert client.stdin is not None
        assert client.stdout is not None
        sock, _ = await in_time(asyncio.get_running_loop().sock_accept(listening))
        with listening, sock:
            conversation = await in_time(accept_tls(asyncio.get_running_loop(), sock, server_side()))
            above = await layer_on(sock, conversation)
            for line in (b"one\n", b"K\n", b"two\n", b"k\n", b"three\n"):
                client.stdin.write(line)
                await asyncio.sleep(0.1)  # s_client takes a letter for a command only at the start of a read
            await until(lambda: above.data.endswith(b"three\n"))
            assert above.data == b"one\ntwo\nthree\n"
            above.transport.write(b"answer\n")
            above.transport.close()
            out = await in_time(client.stdout.read())
            assert out.endswith(b"answer\n") or b"answer\n" in out
            client.stdin.close()
            await in_time(client.wait())


async def test_who_makes_openssl_talk_and_reads_nothing_is_not_read() -> None:
    """What has to be answered is held up while the answers are not taken."""
    async with pair() as (here, there):
        server, client = await shaken(here, there, client=client_side(version="1.2"))
        below, above = Below(), Above()
        layer = TlsLayer(above, server, strict=False)
        layer.connection_made(below)
        layer.pause_writing()
        server.outgoing.write(b"an answer")
        client.ssl.write(b"x")
        layer.data_received(client.outgoing.read())
        assert below.written == [b"an answer"]
        assert above.data == b"x"
        assert not below.reading
        layer.resume_writing()
        assert below.reading


async def test_idle_connections_are_small() -> None:
    """OpenSSL keeps the buffers that were needed once; few were."""
    async with pair() as (here, there):
        server, client = await shaken(here, there)
        one, other = await layer_on(here, server), await layer_on(there, client)
        pieces: list[int] = []

        class Noting:
            """A BIO that notes how much it was given at a time."""

            def __init__(self, bio: ssl.MemoryBIO) -> None:
                self.bio = bio

            @property
            def pending(self) -> int:
                return self.bio.pending

            def write(self, data: bytes) -> int:
                pieces.append(len(data))
                return self.bio.write(data)

        layer = other.transport
        assert isinstance(layer, TlsLayer)
        layer._incoming = Noting(layer._incoming)  # type: ignore[assignment]
        one.transport.write(LARGE)
        await until(other.has(len(LARGE)))
        assert max(pieces) == 32 * 1024
