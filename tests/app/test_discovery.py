"""The discovery of a configuration that changes: who is asked, by which account, and what stays meanwhile."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tcpgw.app.background import Background
from tcpgw.app.discovery import Discovery
from tcpgw.config.load import loads
from tcpgw.config.schema import Config
from tcpgw.discovery.file import FileSource
from tcpgw.endpoints import Snapshot
from tcpgw.errors import CredentialError
from tests.support.instances import events, listener
from tests.support.streams import in_time, until

CLOUD = """
    [cloud.{name}]
    endpoint = "http://127.0.0.1:1"
    project_id = "p"
    auth = {auth}
"""
TOKEN = '{ type = "token", token = "t" }'
KEYS = '{ type = "aksk", access_key = "a", secret_key = "s" }'


def static(name: str, *endpoints: str) -> str:
    listed = ", ".join(f'"{endpoint}"' for endpoint in endpoints)
    return f'[[service]]\nname = "{name}"\ndiscovery = {{ type = "static", endpoints = [{listed}] }}\n'


def file(name: str, path: str, *, refresh: str = "10ms", wait: str = "5s") -> str:
    discovery = f'type = "file", path = "{path}", refresh = "{refresh}"'
    return f'[[service]]\nname = "{name}"\ndiscovery = {{ {discovery} }}\nwait = "{wait}"\n'


def modelarts(name: str, cloud: str = "modelarts") -> str:
    discovery = f'type = "modelarts", service_id = "{name}", cloud = "{cloud}", refresh = "1h"'
    return f'[[service]]\nname = "{name}"\ndiscovery = {{ {discovery} }}\nwait = "10ms"\n'


class Bed:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.published: list[Snapshot] = []
        self.discovery: Discovery

    def config(self, text: str) -> Config:
        name = text.partition('name = "')[2].partition('"')[0]
        return loads(text + listener(f'"{name}"'), self.folder)

    async def publish(self, snapshot: Snapshot) -> None:
        self.published.append(snapshot)

    def write(self, path: str, *endpoints: str) -> None:
        (self.folder / path).write_text(json.dumps(endpoints))

    def versions(self, service: str) -> list[tuple[int, int]]:
        return [(one.version, len(one.members)) for one in self.published if one.service == service]

    async def apply(self, text: str) -> None:
        await in_time(self.discovery.apply(self.config(text)))
        await in_time(self.discovery.first_snapshots())


@asynccontextmanager
async def bed(text: str, folder: Path) -> AsyncIterator[Bed]:
    """Run the discovery of `text` with its first snapshots; it leaves no task."""
    tasks = asyncio.all_tasks()
    made, background = Bed(folder), Background()
    with capture_logs():
        async with Discovery(made.config(text), made.publish, background) as made.discovery:
            await in_time(made.discovery.first_snapshots())
            yield made
    await background.close()
    assert asyncio.all_tasks() == tasks


A, B, C, D = (f"127.0.0.1:{port}" for port in range(1, 5))


async def test_services_come_and_go(tmp_path: Path) -> None:
    """A new one is asked for at once; one that is gone is not asked for any more."""
    async with bed(static("s", A), tmp_path) as b:
        b.write("list.json", A, B)
        await b.apply(static("s", A) + file("t", "list.json"))
        assert b.versions("t") == [(1, 2)]
        assert b.versions("s") == [(1, 1)]
        await b.apply(static("s", A))
        b.write("list.json", A)
        await asyncio.sleep(0.05)
        assert b.versions("t") == [(1, 2)]


async def test_a_list_that_is_shorter_now_is_taken(tmp_path: Path) -> None:
    """What an operator wrote is in no doubt, with the version after the last one."""
    async with bed(static("s", A, B, C, D), tmp_path) as b:
        await b.apply(static("s", A))
        await until(lambda: b.versions("s") == [(1, 4), (2, 1)])


async def test_only_how_often_a_source_is_asked(tmp_path: Path) -> None:
    """With the same source a suspect answer is still held against what was published."""
    b: Bed
    (tmp_path / "list.json").write_text(json.dumps([A, B, C, D]))
    async with bed(file("s", "list.json"), tmp_path) as b:
        b.write("list.json", A)
        await b.apply(file("s", "list.json", refresh="1h"))
        with pytest.raises(TimeoutError):
            await in_time(until(lambda: (2, 1) in b.versions("s")), 0.1)
        await b.apply(file("s", "list.json", refresh="5ms"))
        b.write("list.json", A, B)
        await until(lambda: b.versions("s")[-1] == (2, 2))


async def test_what_is_the_same_goes_on(tmp_path: Path) -> None:
    """A watcher whose service stays is not started anew."""
    text = static("s", A) + modelarts("m") + CLOUD.format(name="modelarts", auth=TOKEN)
    async with bed(text, tmp_path) as b:
        watched = dict(b.discovery._watched)
        accounts = dict(b.discovery._accounts)
        await b.apply(static("t", A) + text)
        assert b.discovery._watched.items() > watched.items()
        assert b.discovery._accounts == accounts


async def test_a_changed_cloud_has_a_new_account(tmp_path: Path) -> None:
    """Its services move over together, the other cloud's stay, and the old account has nobody left."""
    other = CLOUD.format(name="other", auth=TOKEN)
    services = static("s", A) + modelarts("a") + modelarts("b") + modelarts("c", "other")
    text = services + CLOUD.format(name="modelarts", auth=TOKEN) + other
    async with bed(text, tmp_path) as b:
        before = dict(b.discovery._accounts)
        await b.apply(services + CLOUD.format(name="modelarts", auth=TOKEN.replace('"t"', '"u"')) + other)
        after = b.discovery._accounts
        await until(lambda: not before["modelarts"]._services)
        assert after["other"] is before["other"]
        assert after["modelarts"] is not before["modelarts"]
        assert [len(after[name]._services) for name in ("modelarts", "other")] == [2, 1]


async def test_credentials_that_cannot_be_used_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No watcher is another, none came, and the next configuration can be taken."""
    monkeypatch.setitem(__import__("sys").modules, "huaweicloudsdkcore.sdk_request", None)
    async with bed(static("s", A), tmp_path) as b:
        watched = dict(b.discovery._watched)
        bad = static("s", B) + static("t", A) + modelarts("a") + CLOUD.format(name="modelarts", auth=KEYS)
        with pytest.raises(CredentialError):
            await b.apply(bad)
        assert b.discovery._watched == watched
        await b.apply(static("s", B) + static("t", A))
        await until(lambda: b.versions("s") == [(1, 1), (2, 1)])


async def test_what_was_begun_can_be_abandoned(tmp_path: Path) -> None:
    """New services are given up, and those that would have changed have not."""
    async with bed(static("s", A), tmp_path) as b:
        b.discovery.begin(b.config(static("s", B) + static("t", A)))
        await in_time(b.discovery.first_snapshots())
        assert b.versions("t") == [(1, 1)]
        for _ in range(2):
            await b.discovery.abandon()
        assert list(b.discovery._watched) == ["s"]
        assert b.versions("s") == [(1, 1)]


async def test_a_first_snapshot_is_waited_for_once(tmp_path: Path) -> None:
    """A service that stays silent costs one reload its `wait`, and is complained of once."""
    async with bed(static("s", A), tmp_path) as b:
        with capture_logs() as logs:
            await b.apply(static("s", A) + file("t", "none.json", wait="50ms"))
            await b.apply(static("s", A) + file("t", "none.json", wait="50ms") + static("u", B))
            await b.apply(static("s", A) + file("t", "other.json", wait="1h") + static("u", B))
        (line,) = events(logs, "no_first_snapshot")
        assert (line["service"], line["waited"]) == ("t", 0.05)


async def test_one_watcher_at_a_time_publishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the one before takes its time to end, the next has not asked."""
    closing, closed = asyncio.Event(), asyncio.Event()
    close = FileSource.close

    async def slow(self: FileSource) -> None:
        closing.set()
        await closed.wait()
        await close(self)

    (tmp_path / "a.json").write_text(json.dumps([A]))
    (tmp_path / "b.json").write_text(json.dumps([B, C]))
    async with bed(file("s", "a.json"), tmp_path) as b:
        monkeypatch.setattr(FileSource, "close", slow)
        applying = asyncio.create_task(b.apply(file("s", "b.json")))
        await in_time(closing.wait())
        await asyncio.sleep(0.05)
        assert b.versions("s") == [(1, 1)]
        closed.set()
        await in_time(applying)
        await until(lambda: b.versions("s") == [(1, 1), (2, 2)])
