"""How connections with TLS to the client end: as those without it do, with close_notify for FIN."""

import asyncio
import os
from pathlib import Path

import pytest

from tests.support.certificates import client_side
from tests.support.framed import U32BE, u32be
from tests.support.secure import PLAIN_TLS, SecureBed, Secured, bed, versions
from tests.support.streams import MiB, Peer, until


async def exchanged(b: SecureBed, version: str = "1.3") -> tuple[Secured, Peer]:
    """A client and its instance, each of which has heard of the other."""
    client = await b.client(client_side(version=version))
    instance = await b.accept()
    await client.send(u32be(b"q"))
    assert await instance.read(5) == u32be(b"q")
    await instance.send(u32be(b"a"))
    assert await client.read(5) == u32be(b"a")
    return client, instance


@pytest.mark.parametrize("version", versions)
@pytest.mark.parametrize("mode", ["", U32BE], ids=["stream", "framed"])
async def test_a_client_that_has_asked_all(tmp_path: Path, mode: str, version: str) -> None:
    """Its close_notify and FIN are the instance's FIN; megabytes of an answer come after it."""
    async with bed(tmp_path, listener=f"{mode}\n{PLAIN_TLS}") as b:
        client, instance = await exchanged(b, version)
        await client.end()
        assert await instance.read_to_end() == b""
        answer = u32be(os.urandom(4 * MiB))
        _, heard = await asyncio.gather(instance.send(answer), client.read(len(answer)))
        instance.fin()
        assert heard == answer
        assert await client.read_to_end() == b""
        assert (await b.line())["reason"] == "client_fin"


@pytest.mark.parametrize("version", versions)
@pytest.mark.parametrize("mode", ["", U32BE], ids=["stream", "framed"])
async def test_an_instance_that_has_said_all(tmp_path: Path, mode: str, version: str) -> None:
    """Its FIN is the client's close_notify and FIN; megabytes of a request go on after it."""
    async with bed(tmp_path, listener=f"{mode}\n{PLAIN_TLS}") as b:
        client, instance = await exchanged(b, version)
        instance.fin()
        assert await client.read_to_end() == b""
        assert await client.peer.read_some() == b""
        request = u32be(os.urandom(4 * MiB))
        _, heard = await asyncio.gather(client.send(request), instance.read(len(request)))
        assert heard == request
        await client.end()
        assert await instance.read_to_end() == b""
        assert (await b.line())["reason"] == "instance_fin"


@pytest.mark.parametrize("version", versions)
async def test_a_client_that_says_no_goodbye(tmp_path: Path, version: str) -> None:
    """FIN without close_notify, as Python's clients end, is its end and no reset."""
    async with bed(tmp_path) as b:
        client, instance = await exchanged(b, version)
        await client.send(b"last words")
        client.peer.fin()
        assert await instance.read_to_end() == b"last words"
        instance.fin()
        assert await client.read_to_end() == b""
        assert (await b.line())["reason"] == "client_fin"


@pytest.mark.parametrize("version", versions)
async def test_an_instance_that_resets(tmp_path: Path, version: str) -> None:
    """The client is reset, without the close_notify that would make a cut-off answer look whole."""
    async with bed(tmp_path) as b:
        client, instance = await exchanged(b, version)
        await instance.send(b"half of an ans")
        assert await client.read(14) == b"half of an ans"
        instance.reset()
        assert await client.is_reset()
        assert (await b.line())["reason"] == "instance_reset"


async def test_a_client_that_resets(tmp_path: Path) -> None:
    """The instance is reset."""
    async with bed(tmp_path) as b:
        client, instance = await exchanged(b)
        client.peer.reset()
        assert await instance.is_reset()
        assert (await b.line())["reason"] == "client_reset"


async def test_a_client_that_sends_rubbish(tmp_path: Path) -> None:
    """A record that cannot be decrypted ends it like a reset; the client reads an alert, the instance RST."""
    async with bed(tmp_path) as b:
        client, instance = await exchanged(b)
        await client.peer.send(b"\x17\x03\x03\x00\x20" + bytes(32))
        assert await client.alert() == "SSLV3_ALERT_BAD_RECORD_MAC"
        assert await instance.is_reset()
        assert (await b.line())["reason"] == "client_reset"


async def test_an_idle_connection(tmp_path: Path) -> None:
    """It ends by close_notify and FIN, for both."""
    async with bed(tmp_path, listener=f'idle_timeout = "200ms"\n{PLAIN_TLS}') as b:
        client, instance = await exchanged(b)
        assert await instance.read_to_end() == b""
        assert await client.read_to_end() == b""
        assert await client.peer.read_some() == b""
        assert (await b.line())["reason"] == "idle_timeout"


async def test_one_that_is_half_closed_for_long(tmp_path: Path) -> None:
    """It is reset after fin_timeout, by both directions."""
    async with bed(tmp_path, listener=f'fin_timeout = "200ms"\n{PLAIN_TLS}') as b:
        client, instance = await exchanged(b)
        await client.end()
        assert await instance.read_to_end() == b""
        assert await client.is_reset()
        assert (await b.line())["reason"] == "fin_timeout"


@pytest.mark.parametrize("mode", ["", U32BE], ids=["stream", "framed"])
async def test_a_drain(tmp_path: Path, mode: str) -> None:
    """A connection that is quiet ends by close_notify; nothing of what was answered is lost."""
    async with bed(tmp_path, listener=f"{mode}\n{PLAIN_TLS}") as b:
        client, instance = await exchanged(b)
        await instance.send(u32be(b"more"))
        draining = asyncio.create_task(b.gateway.drain(hard=8.0))
        assert await client.read(8) == u32be(b"more")
        assert await client.read_to_end() == b""
        assert await instance.read_to_end() == b""
        await client.end()
        instance.fin()
        await draining
        assert (await b.line())["reason"] == "drained"


async def test_a_drain_while_hands_are_shaken(tmp_path: Path) -> None:
    """Who has not finished the handshake by the hard stop is closed, and it is no error."""
    async with bed(tmp_path) as b:
        client = b.secured()
        assert not client.step()
        await client.flush()
        await until(lambda: b.listener.connections)
        await asyncio.wait_for(b.gateway.drain(hard=0.2), 5)
        assert (await b.line())["reason"] == "shutdown"


async def test_a_drain_lets_a_handshake_finish(tmp_path: Path) -> None:
    """Who was in the middle of it is connected, and then drained like all others."""
    async with bed(tmp_path) as b:
        client = b.secured()
        assert not client.step()
        await client.flush()
        await until(lambda: b.listener.connections)
        draining = asyncio.create_task(b.gateway.drain(hard=9.0))
        await client.shake()
        instance = await b.accept()
        await instance.send(b"hello")
        assert await client.read(5) == b"hello"
        assert await client.read_to_end() == b""
        await client.end()
        instance.fin()
        await draining


async def test_old_connections(tmp_path: Path) -> None:
    """One that is older than max_age ends at a quiet moment by close_notify."""
    async with bed(tmp_path, listener=f'max_age = "300ms"\n{PLAIN_TLS}') as b:
        client, instance = await exchanged(b)
        assert await client.read_to_end() == b""
        await client.end()
        assert await instance.read_to_end() == b""
        instance.fin()
        assert (await b.line())["reason"] == "max_age"


async def test_a_frame_that_is_too_large(tmp_path: Path) -> None:
    """Its sender is reset, the instance gets FIN and nothing of it."""
    async with bed(tmp_path, listener=f'{U32BE}\nmax_frame = "1KiB"\n{PLAIN_TLS}') as b:
        client, instance = await exchanged(b)
        await client.send(u32be(bytes(2000)))
        assert await instance.read_to_end() == b""
        assert await client.is_reset()
        assert (await b.line())["reason"] == "frame_too_large"


async def test_nobody_to_connect_to(tmp_path: Path) -> None:
    """Where no instance answers, the client's handshake succeeds and then its connection ends."""
    async with bed(tmp_path) as b:
        b.instances[0].close()
        client = await b.client()
        assert await _ended(client) in {"FIN", "RST"}
        assert (await b.line())["reason"] == "connect_failed"


async def _ended(client: Secured) -> str:
    try:
        await client.read_to_end()
    except EOFError:
        return "FIN"
    except ConnectionResetError:
        return "RST"
    return "close_notify"
