import asyncio
import os
from pathlib import Path

import pytest

from tcpgw.config.schema import FileDiscovery
from tcpgw.discovery.file import FileSource
from tcpgw.endpoints import Endpoint, Member
from tcpgw.errors import AnswerError, DiscoveryError

ONE = Member(Endpoint("10.0.0.1", 80))
TWO = Member(Endpoint("10.0.0.2", 80), 2)


def follow(path: Path, refresh: float = 0.001) -> FileSource:
    return FileSource(FileDiscovery.model_validate({"type": "file", "path": str(path), "refresh": refresh}))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.json", '["10.0.0.1:80", {"address": "10.0.0.2:80", "weight": 2}]'),
        ("object.json", '{"endpoints": ["10.0.0.1:80", {"address": "10.0.0.2:80", "weight": 2}]}'),
        ("line.toml", 'endpoints = ["10.0.0.1:80", { address = "10.0.0.2:80", weight = 2 }]'),
        (
            "tables.toml",
            '[[endpoints]]\naddress = "10.0.0.1:80"\n[[endpoints]]\naddress = "10.0.0.2:80"\nweight = 2',
        ),
    ],
)
async def test_reads_every_form(tmp_path: Path, name: str, content: str) -> None:
    """JSON lists, JSON objects and TOML name the same endpoints and weights."""
    path = tmp_path / name
    path.write_text(content)
    assert list(await follow(path).fetch()) == [ONE, TWO]


@pytest.mark.parametrize(("name", "content"), [("e.json", "[]"), ("e.toml", "endpoints = []")])
async def test_empty_list_is_an_answer(tmp_path: Path, name: str, content: str) -> None:
    """A file may say that there is no instance."""
    path = tmp_path / name
    path.write_text(content)
    assert list(await follow(path).fetch()) == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("e.json", b"", ["line 1 column 1"]),
        ("e.json", b'["10.0.0.1:80",\n"10.0', ["line 2 column 1"]),
        ("e.json", b"[" * 100_000, ["recursion"]),
        ("e.json", b'["\xff"]', ["utf-8", "position 2"]),
        ("e.json", b'{"instances": []}', ["no list of endpoints", 'endpoints = ["10.0.0.1:80"]']),
        ("e.json", b'"10.0.0.1:80"', ["no list of endpoints"]),
        ("e.toml", b"", ["no list of endpoints"]),
        ("e.toml", b'endpoints = ["10.0.0.1:80",\n"10.0', ["at end of document"]),
        ("e.toml", b'endpoints = ["10.0.0.1:80",\n10.0.0.2:80]', ["line 2"]),
        ("e.json", b'["10.0.0.1:80", "10.0.0.2"]', ["endpoints[1]: '10.0.0.2' is not an endpoint"]),
        ("e.json", b'["10.0.0.1:0"]', ["endpoints[0]: port 0"]),
        ("e.json", b"[7, 8, 9]", ["endpoints[0]: ", "(and 2 more faults)"]),
        ("e.json", b'[{"address": "10.0.0.1:80", "weight": -1}]', ["endpoints[0]: weight must be"]),
        ("e.json", b'[{"address": "10.0.0.1:80", "wieght": 1}]', ["endpoints[0]: ", "address ="]),
        ("e.json", b'["db.internal:80"]', ["endpoints[0]: 'db.internal:80' has a host name", "dns"]),
    ],
)
async def test_unusable_file_is_explained(
    tmp_path: Path, name: str, content: bytes, words: list[str]
) -> None:
    """A file without a list of endpoints raises AnswerError with the file, the place and what is wrong."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(AnswerError) as raised:
        await follow(path).fetch()
    for word in [str(path), *words]:
        assert word in str(raised.value)


async def test_missing_file_is_explained(tmp_path: Path) -> None:
    """A file that cannot be read raises DiscoveryError with its name and the system's reason."""
    path = tmp_path / "gone.json"
    with pytest.raises(DiscoveryError, match=r"gone\.json: cannot be read: No such file"):
        await follow(path).fetch()


async def test_half_written_file_is_read_again(tmp_path: Path) -> None:
    """A file caught half-written is an error once, and an answer when it is finished."""
    path = tmp_path / "e.json"
    path.write_text('["10.0.0.1:80",')
    source = follow(path)
    with pytest.raises(AnswerError):
        await source.fetch()
    path.write_text('["10.0.0.1:80"]')
    await source.wait()
    assert list(await source.fetch()) == [ONE]


async def test_follows_an_atomic_rename(tmp_path: Path) -> None:
    """A finished file renamed into place is the next answer."""
    path = tmp_path / "e.json"
    path.write_text('["10.0.0.1:80"]')
    source = follow(path)
    assert list(await source.fetch()) == [ONE]
    (tmp_path / "new").write_text('[{"address": "10.0.0.2:80", "weight": 2}]')
    (tmp_path / "new").rename(path)
    assert list(await source.fetch()) == [TWO]


async def test_sees_a_write_that_time_and_size_hide(tmp_path: Path) -> None:
    """A change that leaves inode, size and time stamp as they were is seen all the same."""
    path = tmp_path / "e.json"
    path.write_text('["10.0.0.1:80"]')
    before = path.stat()
    source = follow(path)
    await source.fetch()
    path.write_text('["10.0.0.3:80"]')
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert list(await source.fetch()) == [Member(Endpoint("10.0.0.3", 80))]


async def test_recovers_the_content_from_before_a_fault(tmp_path: Path) -> None:
    """A file that breaks and is put back as it was answers as before."""
    path = tmp_path / "e.json"
    path.write_text('["10.0.0.1:80"]')
    source = follow(path)
    await source.fetch()
    path.unlink()
    with pytest.raises(DiscoveryError):
        await source.fetch()
    path.write_text('["10.0.0.1:80"]')
    assert list(await source.fetch()) == [ONE]


async def test_an_unchanged_file_answers_again(tmp_path: Path) -> None:
    """Waiting ends without a change too, so that a file can confirm what was suspect."""
    path = tmp_path / "e.json"
    path.write_text('["10.0.0.1:80"]')
    source = follow(path)
    first = await source.fetch()
    async with asyncio.timeout(5):
        await source.wait()
    assert await source.fetch() == first
    await source.close()
