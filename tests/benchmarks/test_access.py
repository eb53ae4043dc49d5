"""What the benchmark of guards asks and reports, and that it works."""

import json
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import access
import access_testbed
import connect_load
import pytest
from access_testbed import NETWORKS, Guard, guarded, guards, make_secrets, networks
from load import Load
from peers import ENVOY, HAPROXY, NGINX, TCPGW, Address, Forward, Plan
from report import Results, Sample

from tcpgw.config.load import loads
from tcpgw.config.schema import ServerTls


def plan(asked: list[Guard], certificate: Path | None = None) -> Plan:
    forwards = [
        Forward(
            f"guard-{number}",
            Address("127.0.0.1", 9000 + number),
            Address("127.0.0.1", 9),
            certificate=certificate if guard.tls else None,
        )
        for number, guard in enumerate(asked)
    ]
    return Plan(forwards, Path("unused.log"), log_connections=True)


def test_tcpgw_accepts_every_guard(tmp_path: Path) -> None:
    """Each guard is a valid listener that asks for what its name says, and the first asks for nothing."""
    secrets = make_secrets(tmp_path)
    asked = {guard.name: guard for guard in guards(secrets)}
    config = loads(guarded(list(asked.values()))(plan(list(asked.values()), secrets.certificate)), tmp_path)
    found = dict(zip(asked, config.listener, strict=True))
    services = dict(zip(asked, config.service, strict=True))
    bare = loads(TCPGW.configure(plan([Guard("open")])), tmp_path).listener[0]
    assert (found["open"].access, found["open"].limits, found["open"].tls) == (bare.access, bare.limits, None)
    assert len(found["cidr"].access.allow) == NETWORKS
    assert found["per-source"].limits.per_source is not None
    assert found["bytes/s"].limits.per_source is not None
    assert found["api-key"].access.api_keys is not None
    assert found["jwt"].access.jwt is not None
    assert isinstance(found["tls"].tls, ServerTls)
    assert [name for name, service in services.items() if service.tls] == ["to-tls"]
    assert {guard.name for guard in asked.values() if guard.token} == {"api-key", "jwt"}


def test_networks_are_as_many_as_promised_and_let_the_load_in() -> None:
    """The list has ten thousand different entries, and the load's own network is among them."""
    assert len(set(networks())) == NETWORKS
    assert networks()[-1] == "127.0.0.0/8"


def test_every_peer_ends_tls() -> None:
    """Each peer is given the same certificate, and the one version of TLS; without one it has no TLS."""
    there = plan([Guard("tls", tls=True)], Path("/c.pem"))
    assert "bind 127.0.0.1:9000 ssl crt /c.pem ssl-min-ver TLSv1.3\n" in HAPROXY.configure(there)
    assert "ssl_certificate /c.pem; ssl_certificate_key /c.pem; ssl_protocols TLSv1.3;" in NGINX.configure(
        there
    )
    assert "DownstreamTlsContext" in ENVOY.configure(there)
    bare = plan([Guard("open")])
    assert not any("tls" in peer.configure(bare).lower() for peer in (ENVOY, TCPGW))
    assert not any(" ssl" in peer.configure(bare) for peer in (HAPROXY, NGINX))


@pytest.fixture
def greeter() -> Callable[[bytes], tuple[str, int]]:
    """Start a server that answers what it is told on each connection, once something came."""

    def start(answer: bytes) -> tuple[str, int]:
        sock = socket.create_server(("127.0.0.1", 0))

        def serve() -> None:
            with sock:
                for _ in range(3):
                    connection, _ = sock.accept()
                    with connection:
                        connection.recv(64)
                        connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        host, port = sock.getsockname()
        return host, port

    return start


def test_connections_are_opened_and_counted(greeter: Callable[[bytes], tuple[str, int]]) -> None:
    """As many connections are opened as were asked for, however many there are at a time."""
    assert connect_load.run(greeter(b"+PONG\r\n"), 2, 3, b"PING\r\n", b"+PONG\r\n") == 3


def test_another_answer_is_an_error(greeter: Callable[[bytes], tuple[str, int]]) -> None:
    """A client that is turned away ends the benchmark, with what it was told."""
    with pytest.raises(ConnectionError, match="DENIED"):
        connect_load.run(greeter(b"TCPGW DENIED\n"), 1, 1, b"PING\r\n", b"+PONG\r\n")


def test_bulk_is_told_in_gib() -> None:
    """1,024 values of 1 MiB are one GiB; other workloads count requests."""
    bulk = next(workload for workload in access.WORKLOADS if workload.bulk)
    assert access_testbed.BULK == 1 << 20
    assert access.in_units(bulk, Load(1024.0, 2048.0))[:2] == (1.0, 2.0)
    assert access.in_units(access.WORKLOADS[0], Load(1024.0, 2048.0))[:2] == (1024.0, 2048.0)


@pytest.mark.parametrize(("cost", "met"), [(1.01, True), (1.05, False)])
def test_networks_are_held_against_none(cost: float, met: bool) -> None:
    """The list of networks may cost what these runs cannot see, and no more; the rest is told."""
    samples = [
        Sample(0, name, way, 1.0, 100.0, cpu=cpu)
        for name in ("kept", "new")
        for way, cpu in (("open", 1e-5), ("cidr", cost * 1e-5), ("jwt", 9e-5))
    ]
    lines, all_met = access.held(Results(samples), {"kept", "new"})
    assert all_met is met
    assert len([line for line in lines if "MISSED" in line]) == (0 if met else 2)


@pytest.mark.skipif(
    shutil.which("redis-benchmark") is None or shutil.which("redis-cli") is None or HAPROXY.find() is None,
    reason="haproxy or redis are not installed",
)
def test_quick_run_reports(run_script: Callable[..., str], tmp_path: Path) -> None:
    """A quick run measures every guard and keeps every sample."""
    kept = tmp_path / "kept.json"
    report = run_script(
        "access.py", "--quick", "--peers", "haproxy,tcpgw", "--json", str(kept), "--workloads", "new,new-tls"
    )
    assert "(new-tls)" in report
    ways = [each["path"] for each in json.loads(kept.read_text())["samples"]]
    new, new_tls = (next(w for w in access.WORKLOADS if w.name == name) for name in ("new", "new-tls"))
    assert ways == [*new.ways, *(way for way in new_tls.ways if way not in ("nginx", "envoy"))]
