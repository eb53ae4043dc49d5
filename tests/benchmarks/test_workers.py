"""What several workers are measured with, and what each peer is told of them."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import workers
from peers import ENVOY, PEERS, TCPGW, Address, Forward, Peer, Plan, haproxy, nginx
from report import AIMS as STREAM_AIMS

from tcpgw.config.load import loads


def plan(count: int, connections: int = 1000) -> Plan:
    forward = Forward("redis", Address("127.0.0.1", 9000), Address("127.0.0.1", 9))
    return Plan([forward], Path("unused.log"), log_connections=True, workers=count, connections=connections)


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("count", [1, 2])
def test_tcpgw_accepts_its_configuration(tmp_path: Path, count: int, log: bool) -> None:
    """The gateway is told how many workers to run, which by default would be the machine's choice."""
    config = loads(TCPGW.configure(replace(plan(count), log_connections=log)), tmp_path)
    assert (config.gateway.workers, config.gateway.log.of_connections is not None) == (count, log)
    assert [listener.mode for listener in config.listener] == ["tcp"]


def test_peers_run_as_many() -> None:
    """Every peer gets the same number of threads or processes, and nginx spreads connections over several."""
    assert "nbthread 2\n" in haproxy(plan(2))
    assert "worker_processes 2;" in nginx(plan(2))
    assert "listen 127.0.0.1:9000 reuseport;" in nginx(plan(2))
    assert "reuseport" not in nginx(plan(1))
    assert ENVOY.command("envoy", Path("envoy.json"), plan(2))[3:5] == ["--concurrency", "2"]


def test_peers_hold_as_many_connections() -> None:
    """What limits connections is raised to what is asked for, in nginx with both sides in one worker."""
    assert "maxconn 5000\n" in haproxy(plan(2, 5000))
    assert "worker_connections 10064;" in nginx(plan(2, 5000))
    limits = json.loads(ENVOY.configure(plan(2, 5000)))["static_resources"]["clusters"][0]["circuit_breakers"]
    assert limits["thresholds"][0]["max_connections"] > 5000


def test_workloads_have_connections_to_spread() -> None:
    """Each workload has far more connections than there are workers, and none has an aim of stream.py's."""
    assert all(workload.clients >= 20 * workers.WORKERS for workload in workers.WORKLOADS)
    assert {aim.workload for aim in workers.AIMS} == {workload.name for workload in workers.WORKLOADS}
    assert not any(aim.binding for aim in workers.AIMS)
    assert all(aim.binding for aim in STREAM_AIMS)


def installed(*peers: Peer) -> bool:
    return all(peer.find() for peer in peers) and shutil.which("redis-benchmark") is not None


@pytest.mark.skipif(not installed(PEERS[0]), reason="haproxy or redis-tools are not installed")
def test_quick_run_reports(run_script: Callable[..., str]) -> None:
    """A quick run measures tcpgw beside HAProxy and direct, and says with how many workers."""
    report = run_script(
        "workers.py", "--quick", "--peers", "haproxy,tcpgw", "--workloads", "keepalive-50", "--no-log"
    )
    assert "\nworkers: 2\n" in report
    rows = [line.split()[0] for line in report.partition("(keepalive-50)")[2].splitlines()[2:5]]
    assert rows == ["direct", "haproxy", "tcpgw"]
