"""What the benchmark of dead instances asks and reports, and that it works."""

import json
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import health
import probe
import pytest
from health import INSTANCES, PEERS, VICTIM, HealthTestbed, Seen
from peers import TCPGW, Address
from probe import Attempt

from tcpgw.config.load import loads


def bed(tmp_path: Path, *names: str) -> HealthTestbed:
    return HealthTestbed.prepare([peer for peer in PEERS if peer.name in names], tmp_path)


def test_all_are_given_the_same(tmp_path: Path) -> None:
    """Every proxy checks every 2 s, thrice, ejects after five failures, and has one try or three."""
    there = bed(tmp_path, *(peer.name for peer in PEERS))
    texts = {proxy.peer.name: proxy.config.read_text() for proxy in there.proxies}
    assert len(texts) in {2, 4, 6}  # as many as are installed
    for name in ("tcpgw", "tcpgw+retries"):
        (service,) = loads(texts[name], tmp_path).service
        active, passive = service.health.active, service.health.passive
        assert active != "off"
        assert passive != "off"
        assert (active.interval, active.fast_interval, active.fall, active.rise) == (2.0, 0.5, 3, 2)
        assert (passive.failures, service.connect.timeout) == (5, 1.0)
        assert service.connect.candidates == (3 if name.endswith("retries") else 1)
    if "envoy+retries" in texts:
        resources = json.loads(texts["envoy+retries"])["static_resources"]
        assert resources["clusters"][0]["outlier_detection"]["consecutive_5xx"] == 5
    if "haproxy" in texts:
        assert "inter 2s fastinter 500ms fall 3" in texts["haproxy"]
        assert "retries 0\n" in texts["haproxy"]


def test_what_failed_and_what_was_late_are_told_apart() -> None:
    """Who got no name has failed, who waited for half a second is late; when each last began is told."""
    tried = [
        Attempt(-0.1, 0.001, "A"),
        Attempt(0.1, 1.0, ""),
        Attempt(0.2, 1.0, "B"),
        Attempt(0.3, 0.0, ""),
        Attempt(0.4, 0.002, "A"),
    ]
    assert health.seen("refused", "tcpgw", tried) == Seen("refused", "tcpgw", 5, 2, 0.3, 1, 0.2, 1.0)
    assert health.seen("refused", "x", tried[:1]) == Seen("refused", "x", 1, 0, 0.0, 0, 0.0, 0.001)


def test_records_are_medians_and_the_worst() -> None:
    """A row has the median and the most of its repetitions."""
    samples = [Seen("refused", "tcpgw", 10, failed, failed / 10, 0, 0.0, 0.5) for failed in (1, 2, 9)]
    (row,) = health.records(samples)
    assert (row["failed"], row["failed_most"], row["last_failed"], row["last_failed_most"]) == (
        2,
        9,
        0.2,
        0.9,
    )
    assert row["connections"] == 30


@pytest.mark.parametrize("death", health.DEATHS)
def test_victim_is_dead(tmp_path: Path, death: str) -> None:
    """The victim is refused, or nothing at all is heard of it, while the others go on."""
    there = bed(tmp_path)
    with ExitStack() as ending:
        victim, _ = there.start(ending)
        health.die(death, victim, there.instances[VICTIM], ending)
        if death == "refused":
            victim.process.wait(5)
        alive = [name for name in INSTANCES if name != VICTIM]
        assert [probe.ask(there.instances[name]) for name in alive] == alive
        expected = TimeoutError if death == "black hole" else ConnectionRefusedError
        assert _outcome(there.instances[VICTIM]) is expected


def _outcome(address: Address) -> type[OSError] | None:
    """Connect until it fails: who was in the queue at the end may be reset."""
    for _ in range(3 * health.BACKLOG):
        try:
            socket.create_connection(address, 0.2).close()
        except ConnectionResetError:
            pass
        except OSError as error:
            return type(error)
    return None


def test_quick_run_reports(run_script: Callable[..., str]) -> None:
    """A quick run kills an instance in both ways, and reports what clients of each path saw of it."""
    report = run_script("health.py", "--quick", "--peers", f"{TCPGW.name}+retries")
    rows = [line.split() for line in report.splitlines() if "tcpgw+retries  " in line]
    assert len(rows) == len(health.DEATHS)
    assert int(rows[-1][-1].replace(",", "")) > 30
