import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tcpgw.app import material
from tcpgw.app.background import Background
from tcpgw.app.material import Contents, Materials, read_files
from tcpgw.config.load import loads
from tcpgw.config.schema import Config
from tcpgw.errors import ConfigError, Fault
from tests.support.streams import until

KEY = "listener[0].access.api_keys"


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(material, "_LOOK", 0.01)


def config(folder: Path, more: str = "") -> Config:
    text = f"""
        [[service]]
        name = "s"
        discovery = {{ type = "static", endpoints = ["127.0.0.1:1"] }}
        {more}
        [[listener]]
        name = "l"
        bind = "127.0.0.1:0"
        route = "s"
        access = {{ api_keys = "keys" }}
    """
    return loads(text, folder)


class Taken(list[Contents]):
    """What was put in force. `wrong`: contents that cannot be."""

    wrong = b"wrong"

    async def take(self, contents: Contents) -> None:
        if contents[KEY] == self.wrong:
            raise ConfigError([Fault(KEY, "cannot be used")])
        self.append(contents)


@asynccontextmanager
async def followed(folder: Path, taken: Taken) -> AsyncIterator[Materials]:
    (folder / "keys").write_bytes(b"first")
    background = Background()
    materials = Materials(taken.take, background)
    try:
        contents = await materials.read(config(folder))
        assert contents == {KEY: b"first"}
        materials.follow(config(folder), contents)
        yield materials
    finally:
        await materials.close()
        await background.close()


def test_what_cannot_be_read(tmp_path: Path) -> None:
    """The fault names the key that names the file, the file, and why."""
    with pytest.raises(ConfigError) as refused:
        read_files(config(tmp_path))
    assert str(refused.value) == f"{KEY}: the file {tmp_path}/keys cannot be read: No such file or directory"


async def test_a_file_that_changes(tmp_path: Path) -> None:
    """It is read anew and put in force, once, however it was written."""
    taken = Taken()
    async with followed(tmp_path, taken):
        (tmp_path / "keys").write_bytes(b"written")
        await until(lambda: taken)
        (tmp_path / "new").write_bytes(b"renamed")
        (tmp_path / "new").rename(tmp_path / "keys")
        await until(lambda: len(taken) > 1)
        (tmp_path / "keys").touch()  # nothing new in it
        await asyncio.sleep(0.05)
    assert taken == [{KEY: b"written"}, {KEY: b"renamed"}]


async def test_a_file_that_cannot_be_used(tmp_path: Path) -> None:
    """What was read before stays in force, the log says why, and a better one is taken."""
    taken = Taken()
    with capture_logs() as logs:
        async with followed(tmp_path, taken):
            (tmp_path / "keys").write_bytes(Taken.wrong)
            await until(lambda: logs)
            (tmp_path / "keys").unlink()
            await until(lambda: len(logs) == 2)
            (tmp_path / "keys").write_bytes(b"better")
            await until(lambda: taken)
    assert [line["event"] for line in logs] == ["files_refused", "files_refused", "files_read"]
    assert logs[0]["error"] == f"{KEY}: cannot be used"
    assert logs[1]["error"].endswith("cannot be read: No such file or directory")
    assert taken == [{KEY: b"better"}]


async def test_a_change_while_a_configuration_is_prepared(tmp_path: Path) -> None:
    """What is written after the files were read and before they come into force is not overlooked."""
    taken = Taken()
    async with followed(tmp_path, taken) as materials:
        contents = await materials.read(config(tmp_path))
        (tmp_path / "keys").write_bytes(b"meanwhile")
        materials.follow(config(tmp_path), contents)
        await until(lambda: taken)
    assert taken == [{KEY: b"meanwhile"}]


async def test_a_configuration_that_comes_while_a_change_is_taken(tmp_path: Path) -> None:
    """What was read for it is in force then, by its key paths, and not what was on its way before."""
    going, go = asyncio.Event(), asyncio.Event()

    class Slow(Taken):
        async def take(self, contents: Contents) -> None:
            going.set()
            await go.wait()
            self.append(contents)

    taken = Slow()
    with capture_logs() as logs:
        async with followed(tmp_path, taken) as materials:
            (tmp_path / "keys").write_bytes(b"changed")
            await going.wait()
            other = '[[listener]]\nname = "first"\nbind = "127.0.0.1:0"\nroute = "s"'
            other_config = config(tmp_path, other)
            materials.follow(other_config, await materials.read(other_config))
            go.set()
            await until(lambda: taken)
            (tmp_path / "keys").touch()
            await asyncio.sleep(0.05)
    assert taken == [{KEY: b"changed"}]
    assert not logs
