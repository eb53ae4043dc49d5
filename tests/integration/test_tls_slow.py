"""Clients that take their time, or all of the gateway's, before it is known who they are."""

import asyncio
import resource
from pathlib import Path

import pytest

from tests.support.certificates import client_side
from tests.support.hellos import openssl_hello
from tests.support.secure import PLAIN_TLS, bed, server_tls, versions
from tests.support.streams import Peer, in_time, until

HASTY = server_tls("server", more='handshake_timeout = "300ms"')


async def closed_without_a_word(peer: Peer) -> bool:
    try:
        return await peer.read_to_end() == b""
    except ConnectionResetError:
        return True


async def test_one_that_says_nothing(tmp_path: Path) -> None:
    """It has handshake_timeout; then it is closed, and counted."""
    async with bed(tmp_path, listener=HASTY) as b:
        assert await closed_without_a_word(b.dial())
        assert (await b.denied())["reason"] == "handshake_timeout"
        assert b.listener.ended == {"handshake_timeout": 1}


async def test_one_that_drips_its_hello(tmp_path: Path) -> None:
    """Bytes now and then do not make it last longer."""
    async with bed(tmp_path, listener=HASTY) as b:
        peer, began = b.dial(), asyncio.get_running_loop().time()
        dripping = asyncio.create_task(_drip(peer, openssl_hello("localhost")))
        assert await closed_without_a_word(peer)
        assert asyncio.get_running_loop().time() - began < 2.0
        dripping.cancel()
        await asyncio.gather(dripping, return_exceptions=True)
        assert (await b.denied())["reason"] == "handshake_timeout"


async def _drip(peer: Peer, data: bytes) -> None:
    for at in range(len(data)):
        await peer.send(data[at : at + 1])
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("version", versions)
async def test_one_that_stops_before_its_finished(tmp_path: Path, version: str) -> None:
    """The time is for the whole handshake."""
    async with bed(tmp_path, listener=HASTY) as b:
        client = b.secured(client_side(version=version))
        assert not client.step()
        await client.flush()
        assert await client.peer.read_some()
        assert await closed_without_a_word(client.peer)
        assert (await b.denied())["reason"] == "handshake_timeout"


async def test_a_slow_one_that_is_in_time(tmp_path: Path) -> None:
    """A handshake in single bytes is one, if it ends in time."""
    async with bed(tmp_path) as b:
        client = b.secured()
        assert not client.step()
        for byte in client.outgoing.read():
            await client.peer.send(bytes([byte]))
            await asyncio.sleep(0)
        await client.shake()
        await client.send(b"x")
        assert await (await b.accept()).read(1) == b"x"


@pytest.mark.parametrize("said", [b"", openssl_hello("localhost")[:100]], ids=["nothing", "half a hello"])
async def test_a_thousand_half_open_handshakes(tmp_path: Path, said: bytes) -> None:
    """Others are served meanwhile without delay, up to limits.handshakes; all the thousand are closed."""
    _files(4096)
    listener = server_tls("server", more='handshake_timeout = "1500ms"') + "limits = { handshakes = 1100 }\n"
    async with bed(tmp_path, listener=listener) as b:
        loop = asyncio.get_running_loop()
        peers = []
        for _ in range(1000):
            peers.append(b.dial())
            if said:
                await peers[-1].send(said)
            await asyncio.sleep(0)
        await until(lambda: b.listener._admission.talking == 1000)
        for _ in range(5):
            began = loop.time()
            client = await b.client()
            await client.send(b"x")
            assert await (await b.accept()).read(1) == b"x"
            assert loop.time() - began < 0.5
        await until(lambda: b.listener._admission.talking == 0)
        assert b.listener.ended == {"handshake_timeout": 1000}
        told = b.events("denied")
        assert len(told) <= 2  # and not a thousand lines


async def test_more_handshakes_than_there_may_be(tmp_path: Path) -> None:
    """Accepting pauses; who waits is served as soon as a place is free, and connections go on."""
    listener = HASTY + "limits = { handshakes = 10 }\n"
    async with bed(tmp_path, listener=listener) as b:
        old = await b.client()
        instance = await b.accept()
        idle = [b.dial() for _ in range(30)]
        await until(lambda: b.listener._admission.talking == 10)
        assert b.listener.accepted == 11
        await old.send(b"still here")
        assert await instance.read(10) == b"still here"
        client = await in_time(b.client())  # behind the thirty: three rounds of 300 ms
        await client.send(b"x")
        assert await (await b.accept()).read(1) == b"x"
        assert b.listener.paused
        await until(lambda: b.listener.ended == {"handshake_timeout": 30})
        for peer in idle:
            assert await closed_without_a_word(peer)


async def test_places_of_handshakes_that_fail_are_free_again(tmp_path: Path) -> None:
    """Whatever ends one: rubbish, FIN, RST or an alert."""
    async with bed(tmp_path, listener=f"{PLAIN_TLS}limits = {{ handshakes = 4 }}\n") as b:
        for number in range(40):
            peer = b.dial()
            if number % 4 == 0:
                await peer.send(b"rubbish, and enough of it to be seen as such")
                peer.fin()
            elif number % 4 == 1:
                peer.fin()
            elif number % 4 == 2:
                peer.reset()
            else:
                await peer.send(openssl_hello("localhost")[:-3])
                peer.reset()
        client = await in_time(b.client())
        await client.send(b"x")
        assert await (await b.accept()).read(1) == b"x"
        await until(lambda: b.listener._admission.talking == 0)
        assert b.listener.ended.total() == 40


async def test_one_that_shakes_hands_and_is_silent(tmp_path: Path) -> None:
    """The first byte within TLS has a time-out of its own; TLS itself is no byte of the client's."""
    limits = 'limits = { first_byte_timeout = "400ms" }\n'
    async with bed(tmp_path, listener=PLAIN_TLS + limits) as b:
        silent, other = await b.client(), await b.client()
        instances = [await b.accept(), await b.accept()]
        await other.send(b"x")
        assert await silent.read_to_end() == b""
        line = await b.line()
        assert (line["reason"], line["bytes_in"]) == ("first_byte_timeout", 0)
        assert b.listener.connections
        del instances


async def test_credentials_within_tls_have_a_time(tmp_path: Path) -> None:
    """A client that shook hands and presents nothing is denied after access.timeout."""
    (tmp_path / "keys").write_text("# nobody")
    access = '[listener.access]\napi_keys = "keys"\ntimeout = "300ms"\n'
    async with bed(tmp_path, listener=PLAIN_TLS + access) as b:
        client = await b.client()
        assert await client.read_to_end() == b"TCPGW DENIED\n"
        assert (await b.denied())["reason"] == "credentials_timeout"


def _files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))
