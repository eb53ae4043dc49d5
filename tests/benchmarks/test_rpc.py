"""What the rpc benchmark asks of whom, and what it makes of the answers."""

import json
import shutil
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import rpc
import rpc_load
from peers import RPC_PEERS, Address, Forward, Peer, Plan, envoy
from report import Aim, Results, Sample, summary, verdicts
from rpc_load import LEFT_OUT, WORKLOADS, Workload
from rpc_testbed import DEADLINES, GATEWAYS, PATHS, RpcTestbed
from testbed import Cores

from tcpgw.config.load import loads

PLAN = Plan(
    [
        Forward(name, Address("127.0.0.1", port), Address("127.0.0.1", 9), codec)
        for port, (name, codec) in enumerate(rpc_load.CODECS.items(), start=9000)
    ],
    Path("unused.log"),
    log_connections=True,
)


# ---- what is asked ----


def test_only_what_would_measure_memory_is_left_out() -> None:
    """Of the whole matrix one combination is left out, in both protocols, for its bytes in flight."""
    assert [workload.shape for workload in LEFT_OUT] == ["65536x500x16"] * 2
    assert len(WORKLOADS) == 2 * 17


def test_each_protocol_has_its_reference() -> None:
    """Every protocol is measured direct, through HAProxy and every tcpgw, and Thrift through Envoy too."""
    assert set(PATHS) == set(rpc_load.CODECS)
    assert all({"direct", "haproxy", *GATEWAYS} <= set(paths) for paths in PATHS.values())
    assert "envoy" in PATHS["thrift"]


def test_envoy_reads_frames_of_thrift_alone() -> None:
    """Envoy gets its frame-aware filter where the codec is Thrift's, and relays bytes of the other."""
    listeners = json.loads(envoy(PLAN))["static_resources"]["listeners"]
    filters = {each["name"]: each["filter_chains"][0]["filters"][0]["name"] for each in listeners}
    assert filters == {
        "msgpack": "envoy.filters.network.tcp_proxy",
        "thrift": "envoy.filters.network.thrift_proxy",
    }


VARIANTS = [peer for peer in RPC_PEERS if peer.name in GATEWAYS]


@pytest.mark.parametrize("peer", VARIANTS, ids=GATEWAYS)
def test_tcpgw_accepts_its_configuration(tmp_path: Path, peer: Peer) -> None:
    """What tcpgw is given it reads as an rpc listener per codec, with room for every request in flight."""
    config = loads(peer.configure(PLAN), tmp_path)
    assert [(each.mode, each.codec.name) for each in config.listener] == [
        ("rpc", "msgpack-rpc"),
        ("rpc", "thrift-framed"),
    ]
    most = max(workload.connections * workload.depth for workload in WORKLOADS)
    assert all(min(service.rpc.max_inflight, service.rpc.queue) >= most for service in config.service)
    assert all(each.max_inflight >= max(w.depth for w in WORKLOADS) for each in config.listener)


@pytest.mark.parametrize("peer", VARIANTS[1:], ids=GATEWAYS[1:])
def test_rules_concern_the_load(tmp_path: Path, peer: Peer) -> None:
    """What is called has a rule among others, whose time-out only the deadline of a request undercuts."""
    for listener in loads(peer.configure(PLAN), tmp_path).listener:
        echo = listener.methods["echo"]
        assert not isinstance(echo, str)
        assert echo.timeout is not None
        assert DEADLINES.get(peer.name, 0) / 1000 < echo.timeout < listener.request_timeout
        assert listener.methods["admin.*"] == "deny"
        assert (listener.deadline is not None) == (peer.name in DEADLINES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--rounds 0", "--rounds"),
        ("--only fifo", "argument --only: invalid choice: 'fifo'"),
        ("--peers squid", "argument --peers: squid: choose among haproxy"),
        ("--only thrift --peers nginx", "--peers nginx: not measured with --only thrift"),
        ("--minutes nan", "--minutes"),
        ("--json /nowhere/file", "--json /nowhere/file: there is no such folder"),
    ],
)
def test_bad_option_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    """What cannot be measured is refused before anything runs, by the name of its option."""
    monkeypatch.setattr(sys, "argv", ["rpc.py", "--cores", "none", *options.split()])
    with pytest.raises(SystemExit, match="2"):
        rpc.arguments()
    assert message in capsys.readouterr().err


# ---- what is reported ----


def samples(workload: str, path: str, **values: float) -> Sample:
    return Sample(0, workload, path, **({"amount": 1000.0, "rate": 100.0} | values))


def test_aims_bound_from_below_and_above() -> None:
    """A rate must reach its bound, CPU and latency must not pass theirs, each against its own reference."""
    results = Results(
        [
            samples("a", "haproxy", rate=100, p50=1.0),
            samples("a", "envoy", cpu=4e-5),
            samples("a", "tcpgw", rate=125, p50=1.2, cpu=2e-5),
        ]
    )
    aims = [
        Aim("a", "haproxy", 1.25),
        Aim("a", "haproxy", 1.15, "p50", most=True),
        Aim("a", "envoy", 0.5, "cpu", most=True),
    ]
    assert verdicts(results, aims) == (
        [
            "a: at least 1.25 of haproxy: 1.25, met",
            "a: p50 at most 1.15 of haproxy: 1.20, MISSED",
            "a: cpu at most 0.5 of envoy: 0.50, met",
        ],
        False,
    )


def test_further_gateway_is_held_to_the_same_aims() -> None:
    """Beside tcpgw's lines, tcpgw+rules has a count and the aims that it misses, and fails them alike."""
    rates = {"haproxy": 100, "tcpgw": 125, "tcpgw+rules": 90}
    results = Results([samples("a", path, rate=rate) for path, rate in rates.items()])
    aims = [Aim("a", "haproxy", 1.25), Aim("a", "haproxy", 0.5), Aim("b", "haproxy", 1.0, binding=False)]
    lines, met = rpc.held(results, aims, list(rates))
    assert (lines[-2:], met) == (
        ["tcpgw+rules: 1 of 2 met", "tcpgw+rules, a: at least 1.25 of haproxy: 0.90, MISSED"],
        False,
    )
    assert rpc.held(results, aims, ["haproxy", "tcpgw"]) == verdicts(results, aims)


def test_variants_are_shown_beside_tcpgw() -> None:
    """What more a variant costs is a ratio to tcpgw for each workload; without one there is no table."""
    name = "msgpack-64x1x1"
    results = Results(
        [samples(name, "tcpgw", cpu=1e-5, p50=1.0), samples(name, "tcpgw+rules", rate=80, cpu=2e-5, p50=1.5)]
    )
    text = rpc.extras("msgpack", results, ["tcpgw", "tcpgw+rules"])
    assert [" ".join(row.split()) for row in text.splitlines()] == [
        "msgpack-rpc, x tcpgw",
        "workload +rules request/s +rules CPU +rules p50",
        "64x1x1 0.80 2.00 1.50",
    ]
    assert rpc.extras("msgpack", results, ["tcpgw"]) == ""


def test_ratio_without_an_aim_is_told_only() -> None:
    """What does not bind is shown as a ratio, and fails nothing, measured or not."""
    aim = Aim("a", "haproxy", 0.45, binding=False)
    measured = Results([samples("a", "haproxy"), samples("a", "tcpgw", rate=20)])
    assert verdicts(measured, [aim]) == (["a: of haproxy (no aim): 0.20"], True)
    assert verdicts(Results([]), [aim])[1] is True
    assert verdicts(Results([]), [aim._replace(binding=True)])[1] is False


def test_every_promise_binds_somewhere() -> None:
    """Rate at depth 1 and 16, a lone request's latency, and CPU beside Envoy each bind in real workloads."""
    names = {workload.name for workload in WORKLOADS}
    binding = [aim for aim in rpc.AIMS if aim.binding]
    assert {aim.workload for aim in rpc.AIMS} <= names
    assert {(aim.value, aim.reference, aim.bound) for aim in binding} == {
        ("rate", "haproxy", 1.25),
        ("rate", "haproxy", 0.45),
        ("p50", "haproxy", 1.15),
        ("cpu", "envoy", 0.5),
    }


def test_table_shows_who_was_busy() -> None:
    """A row holds rate, ratios, CPU per request of proxy and instance, and how busy all three were."""
    found = [
        samples("thrift-64x1x1", "haproxy", cpu=2e-3, p50=0.05, p99=0.1, instance_cpu=1e-3, load_cpu=5e-4),
        samples("msgpack-64x1x1", "haproxy"),
    ]
    text = rpc.table("thrift", summary(Results(found), WORKLOADS, ["haproxy"]))
    heading, _, *rows = text.splitlines()
    assert heading == "thrift-framed"
    assert [" ".join(row.split()) for row in rows] == [
        "64x1x1 haproxy 100 100 100 1.00 2,000.00 1.00 1,000.00 50 100 20% 10% 5%"
    ]


# ---- all together ----


@pytest.mark.skipif(shutil.which("cc") is None, reason="cc is not installed (Debian package gcc)")
def test_every_gateway_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each gateway answers what its path asks, in both protocols, and keeps deadlines where there are some.

    Once its time is over nothing is measured any more.
    """
    monkeypatch.setattr(rpc, "WARM_UP", 0.02)
    bed = RpcTestbed.prepare(VARIANTS, tmp_path, cores=Cores(None, None), log_connections=True)
    workloads = [Workload(protocol, 64, 3, 4) for protocol in rpc_load.CODECS]
    with ExitStack() as ending:
        running = bed.start(ending)
        late = time.monotonic() + 300
        found = list(rpc.measure(bed, running, workloads, rounds=1, seconds=0.05, until=late))
        assert not list(rpc.measure(bed, running, workloads, rounds=1, seconds=0.05, until=0))
    assert [sample.path for sample in found] == ["direct", *GATEWAYS] * 2
    assert all(sample.amount > 0 for sample in found)
