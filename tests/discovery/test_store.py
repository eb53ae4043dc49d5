import json
import stat
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tcpgw.config.schema import FileDiscovery
from tcpgw.discovery.file import FileSource
from tcpgw.discovery.store import Store
from tcpgw.endpoints import Endpoint, Member, Snapshot

MEMBERS = [
    Member(Endpoint("10.0.0.1", 80)),
    Member(Endpoint("10.0.0.2", 80), 0),
    Member(Endpoint("fd00::1", 81), 7),
]


def snapshot(service: str = "web", *, version: int = 3, members: list[Member] = MEMBERS) -> Snapshot:
    return Snapshot.of(service, members, taken_at=1_700_000_000.25, version=version)


def file_of(state_dir: Path, service: str = "web") -> Path:
    return state_dir / "snapshots" / f"{service}.json"


@pytest.mark.parametrize("members", [MEMBERS, []])
def test_gives_back_what_was_saved(tmp_path: Path, members: list[Member]) -> None:
    """A new store over the same directory loads an equal snapshot, weights, version and time included."""
    Store(tmp_path / "not" / "yet").save(snapshot(members=members))
    assert Store(tmp_path / "not" / "yet").load("web") == snapshot(members=members)


def test_nothing_saved_is_nothing_loaded(tmp_path: Path) -> None:
    """A first start finds no snapshot, and that is no fault."""
    with capture_logs() as logs:
        assert Store(tmp_path).load("web") is None
    assert logs == []


def test_later_replaces_earlier(tmp_path: Path) -> None:
    """The last saved snapshot is loaded, and one file is left."""
    store = Store(tmp_path)
    store.save(snapshot(version=3))
    store.save(snapshot(version=4, members=[]))
    assert store.load("web") == snapshot(version=4, members=[])
    assert list((tmp_path / "snapshots").iterdir()) == [file_of(tmp_path)]


def test_services_do_not_mix(tmp_path: Path) -> None:
    """Every name that a service can have, and even `.` and `..`, has a file of its own in the directory."""
    names = [".", "..", "a", "a.json", "a.json.tmp", "a.tmp", "A", "-", "a_b"]
    store = Store(tmp_path)
    for version, name in enumerate(names, 1):
        store.save(snapshot(name, version=version))
    loaded = [store.load(name) for name in names]
    assert [(found and found.service, found and found.version) for found in loaded] == [
        (name, version) for version, name in enumerate(names, 1)
    ]
    assert len(list((tmp_path / "snapshots").iterdir())) == len(names)


def test_only_the_owner_reads(tmp_path: Path) -> None:
    """The file is 0600 and its directory 0700."""
    Store(tmp_path).save(snapshot())
    path = file_of(tmp_path)
    assert [stat.S_IMODE(p.stat().st_mode) for p in (path, path.parent)] == [0o600, 0o700]


def test_a_person_can_read_it(tmp_path: Path) -> None:
    """The file names its format, and has addresses and a time as people write them."""
    Store(tmp_path).save(snapshot())
    text = file_of(tmp_path).read_text()
    assert json.loads(text)["format"] == 1
    assert '"10.0.0.1:80"' in text
    assert '"[fd00::1]:81"' in text
    assert "2023-11-14T22:13:20" in text


async def test_file_discovery_reads_it(tmp_path: Path) -> None:
    """A stored snapshot can be served through a `file` discovery."""
    Store(tmp_path).save(snapshot())
    source = FileSource(FileDiscovery.model_validate({"type": "file", "path": str(file_of(tmp_path))}))
    assert list(await source.fetch()) == MEMBERS


def test_a_cut_off_write_leaves_the_old_file(tmp_path: Path) -> None:
    """What a crash in the middle of a write leaves behind is neither loaded nor in the way."""
    store = Store(tmp_path)
    store.save(snapshot(version=3))
    file_of(tmp_path).with_name("web.json.tmp").write_text('{"format": 1, "serv')
    assert store.load("web") == snapshot(version=3)
    store.save(snapshot(version=4))
    assert store.load("web") == snapshot(version=4)


def altered(**changes: Any) -> bytes:
    document = {
        "format": 1,
        "service": "web",
        "version": 3,
        "taken_at": "2026-01-01T00:00:00Z",
        "endpoints": ["10.0.0.1:80"],
    }
    return json.dumps({**document, **changes}).encode()


def test_the_form_that_the_damaged_ones_alter_is_good(tmp_path: Path) -> None:
    """The damaged samples below differ from a good file in the damage alone."""
    store = Store(tmp_path)
    store.save(snapshot())
    file_of(tmp_path).write_bytes(altered())
    loaded = store.load("web")
    assert loaded is not None
    assert loaded.members == (Member(Endpoint("10.0.0.1", 80)),)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "EOF"),
        (b"{", "EOF"),
        (b"[" * 100_000, "recursion"),
        (b"\xff\xfe", "JSON"),
        (b"[]", "object"),
        (altered(format=2), "format"),
        (altered(service="other"), "'other'"),
        (altered(version=None), "version"),
        (altered(version=0), "version"),
        (altered(taken_at="yesterday"), "taken_at"),
        (altered(taken_at="2026-01-01T00:00:00"), "taken_at"),
        (altered(endpoints={}), "endpoints"),
        (altered(endpoints=["10.0.0.1:80", "10.0.0.2"]), "endpoints.1: "),
    ],
)
def test_damaged_file_is_reported_and_ignored(tmp_path: Path, data: bytes, word: str) -> None:
    """A file that cannot be used counts as none, with one log line that names it and what is wrong."""
    store = Store(tmp_path)
    store.save(snapshot())
    file_of(tmp_path).write_bytes(data)
    with capture_logs() as logs:
        assert store.load("web") is None
    assert [(line["event"], line["service"]) for line in logs] == [("snapshot_file_ignored", "web")]
    assert logs[0]["path"] == str(file_of(tmp_path))
    assert word in logs[0]["error"]


def test_unreadable_file_is_reported_and_ignored(tmp_path: Path) -> None:
    """What is no file at all counts as none."""
    file_of(tmp_path).mkdir(parents=True)
    with capture_logs() as logs:
        assert Store(tmp_path).load("web") is None
    assert [line["event"] for line in logs] == ["snapshot_file_ignored"]


def test_failed_save_is_reported(tmp_path: Path) -> None:
    """A state directory that cannot be written is logged with what to do, and nothing is raised."""
    in_the_way = tmp_path / "state"
    in_the_way.write_text("a file where the directory should be")
    with capture_logs() as logs:
        Store(in_the_way).save(snapshot())
    assert [line["event"] for line in logs] == ["snapshot_not_saved"]
    assert "gateway.state_dir" in logs[0]["hint"]


def test_another_source(tmp_path: Path) -> None:
    """A snapshot of another source is not taken for this one's, whatever the service is called."""
    Store(tmp_path, "modelarts a").save(snapshot())
    with capture_logs() as logs:
        assert Store(tmp_path, "modelarts b").load("web") is None
    assert [line["event"] for line in logs] == ["snapshot_file_ignored"]
    assert "modelarts a" in logs[0]["error"]
