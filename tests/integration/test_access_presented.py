"""All ways to say who one is, to a gateway that asks: good credentials, and what is wrong with others."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.access import (
    KINDS,
    WAYS,
    Book,
    Gate,
    Proxied,
    Way,
    bad_tokens,
    configuration,
    gate,
    instance_of,
    started,
)
from tests.support.streams import Peer, until

each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
with_words = pytest.mark.parametrize(
    "way", [way for way in WAYS.values() if not isinstance(way, Proxied)], ids=lambda way: way.name
)


@contextlib.asynccontextmanager
async def asking(way: Way, book: Book, seconds: str = "10s") -> AsyncIterator[Gate]:
    """A gateway that asks for credentials in this way, before an instance that echoes."""
    instance = instance_of(way)
    text = configuration(await started(instance), way.lines + book.access(seconds=seconds))
    async with gate(text, instance) as made:
        yield made
        assert all(request.method == "m" for request in instance.requests)


async def is_served(way: Way, peer: Peer, at: int) -> None:
    await peer.send(way.request(at))
    assert await peer.read(len(way.answer(at))) == way.answer(at)


# ---- good ones ----


@each_way
@pytest.mark.parametrize("kind", KINDS)
async def test_a_good_credential(kind: str, way: Way, tmp_path: Path) -> None:
    """It lets its bearer in as often as shown: in one segment with requests, byte by byte, alone."""
    book = Book(tmp_path)
    async with asking(way, book) as g:
        hello = way.hello(book.token(kind))
        one = g.dial(hello + way.request(1) + way.request(2))
        expected = way.welcome + way.answer(1) + way.answer(2)
        assert await one.read(len(expected)) == expected
        await is_served(way, one, 3)

        slow = g.dial()
        for byte in hello + way.request(1):
            await slow.send(bytes((byte,)))
            await asyncio.sleep(0)
        expected = way.welcome + way.answer(1)
        assert await slow.read(len(expected)) == expected

        alone = g.dial(hello)
        assert await alone.read(len(way.welcome)) == way.welcome if way.welcome else True
        await is_served(way, alone, 1)
        for peer in (one, slow, alone):
            peer.fin()
            assert await peer.read_to_end() == b""
        await until(lambda: len(g.events("connection_closed")) == 3)
        assert {line["subject"] for line in g.events("connection_closed")} == {"alice"}
        assert not g.events("denied")


async def test_a_large_first_request_behind_the_credential(tmp_path: Path) -> None:
    """What may follow in the same segment is not judged by the limit of the credential."""
    for name in ("tcp", "msgpack", "bare"):
        way = WAYS[name]
        book = Book(tmp_path)
        async with asking(way, book) as g:
            large = (way.pack if name != "tcp" else WAYS["msgpack"].pack)(0, 1, "m", [b"x" * 100_000])
            peer = g.dial(way.hello(book.key))
            peer.sock.send(large[:2000])
            await peer.send(large[2000:])
            answer = (way.pack if name != "tcp" else WAYS["msgpack"].pack)(1, 1, None, [b"x" * 100_000])
            expected = way.welcome + answer
            assert await peer.read(len(expected)) == expected


# ---- bad ones ----


@each_way
async def test_what_is_wrong_is_not_told(way: Way, tmp_path: Path) -> None:
    """Whatever it is, clients hear the same and FIN, and are counted; the log says why, without tokens."""
    book = Book(tmp_path)
    bad = bad_tokens(book)
    async with asking(way, book) as g:
        told = {cause: await g.told(way.hello(token) + way.request(1)) for cause, token in bad.items()}
        assert set(told.values()) == {way.denied()}, told
        await until(lambda: g.ended() == {"denied_credentials": len(bad)})
        (line,) = g.events("denied")
        assert line["reason"] == "denied_credentials"
        assert not g.events("connection_closed")
        said = repr(g.logs)
        for token in bad.values():
            assert not any(part in said for part in token.decode().split(".") if len(part) > 5), said


@with_words
async def test_a_credential_that_does_not_come(way: Way, tmp_path: Path) -> None:
    """Half of one, none, or one that is too long: told alike; who is slow has the listener's time."""
    book = Book(tmp_path)
    hello = way.hello(book.key)
    async with asking(way, book, seconds="400ms") as g:
        assert await g.told(hello[:-5], fin=True) == way.denied_unread(hello[:-5])
        assert await g.told(b"", fin=True) == way.denied_unread(b"")
        await until(lambda: g.ended() == {"denied_credentials": 2})
        slow = g.dial(hello[:-5])
        silent = g.dial()
        assert await slow.read_to_end() == way.denied_unread(hello[:-5])
        assert await silent.read_to_end() == way.denied_unread(b"")
        slow.close()
        silent.close()
        await until(lambda: g.ended() == {"denied_credentials": 2, "credentials_timeout": 2})
        large = way.hello(b"x" * 9000)
        assert await g.told(large) == way.denied_unread(large[:4096])
        await until(lambda: g.ended() == {"denied_credentials": 3, "credentials_timeout": 2})
        await is_let_in(g, way, book)


async def is_let_in(g: Gate, way: Way, book: Book) -> None:
    peer = g.dial(way.hello(book.key) + way.request(1))
    expected = way.welcome + way.answer(1)
    assert await peer.read(len(expected)) == expected
