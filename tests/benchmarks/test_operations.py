"""What the benchmark of operations asks and reports, and that it works."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import operations
import operations_testbed
import pytest
from operations import Death, Reload
from operations_testbed import MASTER, MORTAL, PEERS, RELOAD, OperationsTestbed, Target, events
from peers import NGINX, TCPGW
from probe import Attempt
from processes import BenchmarkError, start
from testbed import Proxy

from tcpgw.config.load import loads

LOG = """{"event": "reloaded", "seconds": 0.5}
[notice] a line of somebody else's
{"event": "worker_ready", "worker": 1, "seconds": 0.25}
[1]
{"event": "reloaded", "seconds": 0.125}
"""


# ---- what is read ----


def test_events_are_found_in_a_log() -> None:
    """The events of a name are read, in order, from among other lines and other events."""
    assert [event["seconds"] for event in events(LOG, "reloaded")] == [0.5, 0.125]
    assert events(LOG, "stopped") == []


def target(tmp_path: Path, processes: int = 1) -> Target:
    if shutil.which("cc") is None:
        pytest.skip("cc is not installed (Debian package gcc)")
    bed = OperationsTestbed.prepare([TCPGW], tmp_path)
    command = [sys.executable, "-c", "import signal; signal.pause()"]
    child = start("sleeper", command, log=tmp_path / "sleeper.log", core=None)
    return Target(bed.proxies[0], child, processes, bed.named)


def test_what_was_said_before_does_not_count(tmp_path: Path) -> None:
    """Only what a proxy logs after it was told to do something is its answer."""
    found = target(tmp_path)
    try:
        found.child.log.write_text(LOG)
        assert found.said(0, "reloaded") == 0.125
        assert found.said(found.written(), "reloaded") is None
        assert found.rest(0, "reloaded") == 0.125
    finally:
        found.child.stop()


def test_unrest_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that does not have its workers again, or does not say what it should, ends the benchmark."""
    monkeypatch.setattr(operations_testbed, "REST", 0.05)
    found = target(tmp_path, processes=3)
    try:
        found.child.log.write_text(LOG)
        with pytest.raises(BenchmarkError, match="has 1 processes instead of 3"):
            found.rest(0, "reloaded")
    finally:
        found.child.stop()


def test_other_instance_is_configured(tmp_path: Path) -> None:
    """A reload changes the endpoints of the probe's service and nothing else; both files are valid."""
    found = target(tmp_path)
    try:
        proxy: Proxy = found.proxy
        before = loads(proxy.config.read_text(), tmp_path)
        found.configure("B")
        after = loads(proxy.config.read_text(), tmp_path)
        found.configure("A")
        assert loads(proxy.config.read_text(), tmp_path) == before
    finally:
        found.child.stop()
    changed = [old.name for old, new in zip(before.service, after.service, strict=True) if old != new]
    assert changed == [operations_testbed.PROBE]
    assert (before.listener, before.gateway) == (after.listener, after.gateway)
    assert before.gateway.workers == operations_testbed.WORKERS


def test_every_peer_can_be_reloaded() -> None:
    """Each peer has a signal that reloads it, and HAProxy a master that takes it."""
    assert set(RELOAD) == {peer.name for peer in PEERS} >= set(MORTAL)
    assert "-W" in next(peer for peer in PEERS if peer.name == "haproxy").command("", Path(), None)  # type: ignore[arg-type]


def test_death_is_the_longest_wait_of_who_was_served() -> None:
    """The longest and the usual wait are of connections that were served; the others have failed."""
    tried = [Attempt(0, each, "A") for each in (0.001, 0.002, 0.2)] + [Attempt(0, 5.0, "")]
    assert operations.death(0, "tcpgw", tried, 0.18) == Death(0, "tcpgw", 0.2, 0.002, 0.18, 4, 1)
    with pytest.raises(BenchmarkError, match="none of 1 connections"):
        operations.death(0, "tcpgw", tried[3:], None)


# ---- what is reported ----


def test_tables_show_median_and_most() -> None:
    """A row holds median and longest, what the proxy says, connections, failed ones, loads that broke."""
    reloads = [
        Reload(number, "tcpgw", loaded, seconds, seconds / 2, 100, number, broken=loaded and number == 2)
        for loaded in (False, True)
        for number, seconds in enumerate((0.01, 0.05, 0.02))
    ]
    deaths = [Death(n, "nginx", seconds, 0.001, None, 100, 1) for n, seconds in enumerate((0.1, 0.3, 0.2))]
    texts = operations.tables(operations.reload_records(reloads), operations.death_records(deaths))
    assert [" ".join(row.split()) for text in texts for row in text.splitlines()[2:]] == [
        "tcpgw none 20.0 50.0 10.0 300 3 -",
        "tcpgw 50 kept 20.0 50.0 10.0 300 3 1",
        "nginx 200.0 300.0 1.0 - 300 3",
    ]
    assert operations.tables([], []) == []


@pytest.mark.parametrize(
    ("waits", "line", "met"),
    [
        ([0.1, 0.299], "299 ms, met", True),
        ([0.1, 0.1, 0.3], "300 ms, MISSED", False),
        ([], "not measured", False),
    ],
)
def test_longest_wait_of_all_is_held_to_the_aim(waits: list[float], line: str, met: bool) -> None:
    """One repetition that takes too long misses the aim, whatever the others took; nginx's do not count."""
    deaths = [Death(n, "tcpgw", seconds, 0.001, 0.1, 100, 0) for n, seconds in enumerate(waits)]
    deaths.append(Death(0, "nginx", 0.9, 0.001, None, 100, 0))
    assert operations.verdict(deaths) == (f"death: the longest wait through tcpgw under 300 ms: {line}", met)


# ---- all together ----


@pytest.mark.skipif(
    shutil.which("cc") is None or MASTER.find() is None or NGINX.find() is None,
    reason="gcc, haproxy or nginx with its stream module are not installed",
)
def test_quick_run_reports(run_script: Callable[..., str], tmp_path: Path) -> None:
    """A quick run reloads each proxy at rest and under load, kills a worker, and keeps every sample."""
    kept = tmp_path / "kept.json"
    report = run_script("operations.py", "--quick", "--json", str(kept))
    assert "(reload)" in report
    assert "(death)" in report
    samples = json.loads(kept.read_text())["samples"]
    assert [(each["path"], each.get("loaded")) for each in samples] == [
        *((path, loaded) for loaded in (False, True) for path in ("haproxy", "nginx", "tcpgw")),
        ("nginx", None),
        ("tcpgw", None),
    ]
