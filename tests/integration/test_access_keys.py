"""Clients that belong where their hash key or their subject says, wherever they come from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.access import (
    TRUSTED,
    WAYS,
    Book,
    Gate,
    configuration,
    gate,
    instance_of,
    now_claims,
    proxied,
    started,
)
from tests.support.rpc import Instance
from tests.support.tokens import signed

each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
MAGLEV = 'policy = "maglev", table_size = 1021, bounded_load = 0, '


async def place(g: Gate, way: Any, hello: bytes, instances: Sequence[Instance], source: str = "") -> int:
    """Which instance a client comes to."""
    before = [len(instance.requests) for instance in instances]
    peer = g.dial(hello + way.request(1), source=source)
    expected = way.welcome + way.answer(1)
    assert await peer.read(len(expected)) == expected
    (found,) = [at for at, instance in enumerate(instances) if len(instance.requests) > before[at]]
    return found


@each_way
async def test_by_hash_key(way: Any, tmp_path: Path) -> None:
    """One key, one instance, whoever shows it and from wherever; and keys are spread."""
    book = Book(tmp_path)
    bob = book.add("bob")
    instances = [instance_of(way) for _ in range(4)]
    text = configuration(
        await started(*instances), way.lines + book.access(), balance=f'{MAGLEV} key = "hash_key"'
    )
    async with gate(text, *instances) as g:
        places = {}
        for number in range(24):
            key = b"key-%d" % number
            places[key] = await place(g, way, way.hello(book.key, key), instances)
            assert await place(g, way, way.hello(bob, key), instances, "127.0.0.1") == places[key]
        assert len(set(places.values())) > 1  # which depends on the ports that the kernel chose
        # Without one it is the source that counts.
        assert len({await place(g, way, way.hello(book.key), instances) for _ in range(8)}) == 1


@each_way
async def test_by_subject(way: Any, tmp_path: Path) -> None:
    """All that one subject shows leads to one instance, and subjects are spread."""
    book = Book(tmp_path)
    instances = [instance_of(way) for _ in range(4)]
    subjects = [f"user-{number}" for number in range(24)]
    keys = {subject: (book.add(subject), book.add(subject)) for subject in subjects}
    text = configuration(
        await started(*instances), way.lines + book.access(), balance=f'{MAGLEV} key = "subject"'
    )
    async with gate(text, *instances) as g:
        found = set()
        for subject in subjects:
            shown = [*keys[subject], signed(now_claims(sub=subject), "HS256")]
            (one,) = {await place(g, way, way.hello(token), instances) for token in shown}
            found.add(one)
        assert len(found) > 1


@pytest.mark.parametrize("name", ["tcp", "msgpack", "thrift-compact"])
async def test_hash_keys_of_a_proxy(name: str, tmp_path: Path) -> None:
    """A proxy's hash key counts, with credentials or without, unless the client shows one of its own."""
    way, book = WAYS[name], Book(tmp_path)
    for access in (book.access(), ""):
        instances = [instance_of(way) for _ in range(4)]
        text = configuration(
            await started(*instances), way.lines + TRUSTED + access, balance=f'{MAGLEV} key = "hash_key"'
        )
        async with gate(text, *instances) as g:
            if not access:
                open_way = _Open(way)
                places = [await place(g, open_way, proxied(hash_key=b"%d" % n), instances) for n in range(12)]
                assert places == [
                    await place(g, open_way, proxied(hash_key=b"%d" % n, source=("192.0.2.9", 1)), instances)
                    for n in range(12)
                ]
                continue
            places = [
                await place(g, way, proxied(hash_key=b"%d" % n) + way.hello(book.key), instances)
                for n in range(12)
            ]
            assert len(set(places)) > 1
            own = [
                await place(g, way, proxied(hash_key=b"x") + way.hello(book.key, b"%d" % n), instances)
                for n in range(12)
            ]
            assert own == places


class _Open:
    """A way without a credential."""

    welcome = b""

    def __init__(self, way: Any) -> None:
        self.request, self.answer = way.request, way.answer
