"""How connections end: each direction for itself, cut off, by abort, and for a fault of either side."""

import asyncio
import contextlib
import socket
import ssl
import struct

import pytest

from tcpgw.relay.handshake import Conversation
from tcpgw.relay.sockets import drop
from tcpgw.relay.tls import TlsLayer
from tests.support.certificates import client_side
from tests.support.layering import Above, Below
from tests.support.streams import SMALL, MiB, in_time, until
from tests.support.tls import layer_on, pair, shaken, versions

both = pytest.mark.parametrize("version", versions)
LARGE = bytes(range(256)) * (5 * MiB // 256)


async def everything(conversation: Conversation) -> bytes:
    """All that comes up to the end."""
    data = bytearray()
    while piece := await in_time(conversation.receive()):
        data += piece
    return bytes(data)


def end_of(conversation: Conversation) -> bytes:
    """close_notify, to be sent by hand."""
    with contextlib.suppress(ssl.SSLError):
        conversation.ssl.unwrap()
    return conversation.outgoing.read()


# ---- each direction for itself ----


@both
async def test_half_close_from_here(version: str) -> None:
    """What was written arrives before the end, and megabytes go the other way after it."""
    async with pair() as (here, there):
        server, client = await shaken(here, there, client=client_side(version=version))
        one, other = await layer_on(here, server), await layer_on(there, client)
        one.transport.write(LARGE)
        one.transport.write_eof()
        one.transport.write_eof()
        await until(other.heard("eof"))
        assert other.data == LARGE
        other.transport.write(LARGE)
        await until(lambda: len(one.data) == len(LARGE))
        assert one.data == LARGE
        assert "eof" not in one.events
        with pytest.raises(RuntimeError, match="after write_eof"):
            one.transport.write(b"x")
        with pytest.raises(RuntimeError, match="after write_eof"):
            one.transport.writelines([b"x"])
        other.transport.close()
        await until(one.heard("eof"))
        one.transport.close()
        await in_time(asyncio.gather(one.lost.wait(), other.lost.wait()))
        assert (one.error, other.error) == (None, None)


@both
async def test_half_close_while_the_other_direction_is_under_way(version: str) -> None:
    """What has come but was not wanted yet is not lost by saying that we have ended."""
    async with pair() as (here, there):
        server, client = await shaken(here, there, client=client_side(version=version))
        one, other = await layer_on(here, server), await layer_on(there, client)
        one.when = lambda event: one.transport.pause_reading() if event == "data" else None
        other.transport.write(LARGE)
        await until(lambda: one.data)
        one.transport.write_eof()
        await until(other.heard("eof"))
        other.transport.close()
        one.when = lambda _: None
        one.transport.resume_reading()
        await until(one.heard("eof"))
        assert one.data == LARGE


@both
@pytest.mark.parametrize("ends_too", [True, False])
async def test_half_close_with_records_unread(version: str, ends_too: bool) -> None:
    """Records that are there, wanted or not, are neither lost nor an error when we end."""
    async with pair() as (here, there):
        server, client = await shaken(here, there, client=client_side(version=version))
        below, above = Below(), Above()
        layer = TlsLayer(above, server, strict=True)
        layer.connection_made(below)
        above.when = lambda event: layer.pause_reading() if event == "data" else None
        records = b""
        for at in range(0, MiB, 16384):
            client.ssl.write(LARGE[at : at + 16384])
            records += client.outgoing.read()
        layer.data_received(records)
        layer.data_received(end_of(client) if ends_too else b"\x17")
        assert len(above.data) < MiB
        layer.write_eof()
        assert below.calls == ["write_eof"]
        above.when = lambda _: None
        layer.resume_reading()
        await until(above.has(MiB))
        assert above.data == LARGE[:MiB]
        assert above.heard("eof")() == ends_too
        if ends_too:
            layer.data_received(b"nonsense that nobody reads")
            assert below.calls == ["write_eof"]


async def test_openssl_says_nothing_behind_our_end() -> None:
    """Answers to the peer's TLS, if there are any, would come behind FIN."""
    async with pair() as (here, there):
        server, client = await shaken(here, there)
        below, above = Below(), Above()
        layer = TlsLayer(above, server, strict=True)
        layer.connection_made(below)
        layer.write_eof()
        server.outgoing.write(b"an answer")
        client.ssl.write(b"x")
        layer.data_received(client.outgoing.read())
        assert above.data == b"x"
        assert len(below.written) == 1


async def test_an_upper_protocol_that_ends_with_the_peer() -> None:
    """Where `eof_received` says so, what is still written goes out and both ends are closed."""
    async with pair() as (here, there):
        server, client = await shaken(here, there)
        above = Above(keep_open=False)
        above.when = lambda event: above.transport.write(LARGE) if event == "eof" else None
        await layer_on(here, server, above)
        there.send(end_of(client))
        received = await everything(client)
        assert received == LARGE
        await in_time(above.lost.wait())
        assert above.error is None


async def test_the_end_is_not_told_to_who_has_paused() -> None:
    """As data is not; then it is told once."""
    async with pair() as (here, there):
        server, client = await shaken(here, there)
        above = Above()
        above.when = lambda event: above.transport.pause_reading() if event == "data" else None
        await layer_on(here, server, above)
        client.ssl.write(b"last words")
        there.send(client.outgoing.read() + end_of(client))
        await until(lambda: above.data)
        await asyncio.sleep(0.02)
        assert above.events == ["made"]
        above.transport.resume_reading()
        await until(above.heard("eof"))
        above.transport.resume_reading()
        there.send(b"nonsense that nobody reads")
        there.shutdown(socket.SHUT_WR)
        await asyncio.sleep(0.02)
        assert above.events == ["made", "eof"]


async def test_close_sends_what_waits() -> None:
    """Megabytes and the end behind them, to a reader that starts late; nothing more is taken."""
    async with pair(SMALL) as (here, there):
        server, client = await shaken(here, there)
        above = await layer_on(here, server)
        above.transport.write(LARGE)
        above.transport.close()
        above.transport.close()
        above.transport.write(b"not any more")
        above.transport.writelines([b"nor this"])
        above.transport.write_eof()
        assert above.transport.is_closing()
        assert above.transport.get_write_buffer_size() > MiB
        assert await everything(client) == LARGE
        await in_time(above.lost.wait())
        assert above.events == ["made", "pause", "resume", "lost"]
        assert above.data == b""


# ---- cut off ----


@both
@pytest.mark.parametrize("strict", [True, False])
async def test_a_bare_fin(version: str, strict: bool) -> None:
    """A reset where the peer must say that it has ended, else its end; after the bytes before it."""
    async with pair() as (here, there):
        server, client = await shaken(here, there, client=client_side(version=version))
        above = await layer_on(here, server, strict=strict)
        await client.send(b"half an ans")
        there.shutdown(socket.SHUT_WR)
        if strict:
            await in_time(above.lost.wait())
            assert isinstance(above.error, ConnectionResetError)
            assert "FIN without close_notify" in str(above.error)
            assert above.events == ["made", "lost"]
        else:
            await until(above.heard("eof"))
            above.transport.write(b"an answer")
            assert await in_time(client.receive()) == b"an answer"
        assert above.data == b"half an ans"


async def test_a_fin_behind_the_end_is_none_too_many() -> None:
    """Nor does it matter whether the two come together."""
    async with pair() as (here, there):
        server, client = await shaken(here, there)
        above = await layer_on(here, server, strict=True)
        there.send(end_of(client))
        there.shutdown(socket.SHUT_WR)
        await until(above.heard("eof"))
        above.transport.close()
        await in_time(above.lost.wait())
        assert above.error is None


async def test_a_fin_within_a_record() -> None:
    """What is not whole is not delivered."""
    async with pair() as (here, there):
        server, client = await shaken(here, there)
        above = await layer_on(here, server, strict=True)
        client.ssl.write(b"whole")
        client.ssl.write(b"cut off")
        there.send(client.outgoing.read()[:-1])
        there.shutdown(socket.SHUT_WR)
        await in_time(above.lost.wait())
        assert above.data == b"whole"
        assert isinstance(above.error, ConnectionResetError)


# ---- resets ----


async def test_an_abort() -> None:
    """What waits is dropped, and the peer sees that the end is none."""
    async with pair(SMALL) as (here, there):
        server, client = await shaken(here, there)
        one, other = await layer_on(here, server), await layer_on(there, client, strict=True)
        other.transport.pause_reading()
        one.transport.write(LARGE)
        one.transport.abort()
        assert one.transport.is_closing()
        await in_time(one.lost.wait())
        other.transport.resume_reading()
        await in_time(other.lost.wait())
        assert len(other.data) < len(LARGE)
        assert isinstance(other.error, ConnectionResetError)
        assert one.error is None


async def test_a_reset_is_sent_and_seen() -> None:
    """`drop` finds the socket under the layer; RST is told like that of any transport."""
    async with pair() as (here, there):
        server, client = await shaken(here, there)
        one, other = await layer_on(here, server), await layer_on(there, client)
        drop(one.transport, reset=True)
        await in_time(asyncio.gather(one.lost.wait(), other.lost.wait()))
        assert isinstance(other.error, ConnectionResetError)


@pytest.mark.parametrize("says_so", [True, False])
async def test_what_was_said_before_a_reset(says_so: bool) -> None:
    """An answer that came before our request was refused is delivered, with its end if it has one."""
    async with pair() as (here, there):
        server, client = await shaken(here, there)
        above = await layer_on(here, server)
        above.transport.pause_reading()
        client.ssl.write(LARGE[:16384])
        client.ssl.write(b"refused")
        there.send(client.outgoing.read() + (end_of(client) if says_so else b""))
        await asyncio.sleep(0.02)
        there.close()  # session tickets are unread: RST
        await asyncio.sleep(0.02)
        above.transport.write(b"more")
        above.transport.write(b"more")
        await in_time(above.lost.wait())
        assert above.data == LARGE[:16384] + b"refused"
        assert isinstance(above.error, OSError)
        assert above.events == ["made", "eof", "lost"] if says_so else ["made", "lost"]


async def test_nothing_happens_to_who_is_lost() -> None:
    """Calls of a transport that is gone are without effect, whichever they are."""
    async with pair() as (here, there):
        server, client = await shaken(here, there)
        above = await layer_on(here, server)
        above.transport.pause_reading()
        client.ssl.write(b"x")
        there.send(client.outgoing.read())
        there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        there.close()
        above.transport.resume_reading()
        await in_time(above.lost.wait())
        for call in ("close", "abort", "write_eof", "pause_reading", "resume_reading"):
            getattr(above.transport, call)()
        above.transport.write(b"x")
        above.transport.writelines([bytes(MiB)])
        assert above.transport.get_write_buffer_size() == 0
        assert above.transport.get_extra_info("socket") is None
        assert above.transport.is_closing()
        await asyncio.sleep(0.02)


# ---- faults ----


@both
async def test_a_damaged_record(version: str) -> None:
    """What came before it counts, the peer gets an alert, and the loss says what was wrong."""
    async with pair() as (here, there):
        server, client = await shaken(here, there, client=client_side(version=version))
        above = await layer_on(here, server)
        await client.send(b"fine")
        await until(lambda: above.data)
        client.ssl.write(b"damaged")
        damaged = bytearray(client.outgoing.read())
        damaged[-1] ^= 1
        there.send(damaged)
        await in_time(above.lost.wait())
        assert isinstance(above.error, ConnectionAbortedError)
        assert "decryption failed or bad record mac" in str(above.error)
        assert above.data == b"fine"
        with pytest.raises(ssl.SSLError, match="BAD_RECORD_MAC"):
            await in_time(client.receive())


async def test_a_peer_that_sends_an_alert() -> None:
    """Its reason is told; a client learns like this that its certificate was refused."""
    async with pair() as (here, there):
        server, client = await shaken(here, there)
        one = await layer_on(there, client)
        below = Below()
        layer = TlsLayer(Above(), server, strict=False)
        layer.connection_made(below)
        layer.data_received(b"\x17\3\3\0\x13" + bytes(19))
        assert below.calls == ["close"]
        here.send(below.written[0])
        await in_time(one.lost.wait())
        assert "TLS: sslv3 alert bad record mac" in str(one.error)


async def test_a_fault_while_much_waits_to_be_read() -> None:
    """The connection is cut: an alert behind that would wait for who may never read."""
    async with pair() as (here, there):
        server, _ = await shaken(here, there)
        below, above = Below(), Above()
        layer = TlsLayer(above, server, strict=False)
        layer.connection_made(below)
        layer.pause_writing()
        layer.write(LARGE)
        below.buffered = 100
        layer.data_received(b"\x17\3\3\0\x13" + bytes(19))
        assert below.calls == ["abort"]
        assert layer.get_write_buffer_size() == 100
        layer.resume_writing()
        assert below.written == []


@pytest.mark.parametrize("size", [1, 100_000])
async def test_a_write_that_openssl_refuses(size: int) -> None:
    """It ends the connection with that reason; here OpenSSL thinks that it has ended already."""
    async with pair() as (here, there):
        server, _ = await shaken(here, there)
        below, above = Below(), Above()
        layer = TlsLayer(above, server, strict=False)
        layer.connection_made(below)
        end_of(server)
        layer.write(bytes(size))
        assert below.calls == ["abort"]
        layer.connection_lost(None)
        assert "TLS: protocol is shutdown" in str(above.error)


async def test_a_transport_that_is_lost_while_something_waits() -> None:
    """Nothing goes on for it in later turns."""
    async with pair() as (here, there):
        server, _ = await shaken(here, there)
        below = Below()
        layer = TlsLayer(Above(), server, strict=False)
        layer.connection_made(below)
        layer.write(LARGE)
        written = len(below.written)
        layer.connection_lost(OSError("gone"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(below.written) == written
