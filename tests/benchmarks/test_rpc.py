"""What the rpc benchmark computes, and that its load generator finds every wrong answer."""

import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import rpc
import rpc_load
from peers import Address, Forward, Plan, envoy, tcpgw
from processes import BenchmarkError, free_ports, start
from report import Aim, Results, Sample, summary, verdicts
from rpc_load import LEFT_OUT, WORKLOADS, Load, Workload, read
from rpc_testbed import PATHS

from tcpgw.config.load import loads

ANSWER = {
    "answers": 1000,
    "seconds": 0.5,
    "p50_us": 40.0,
    "p99_us": 90.0,
    "load_cpu": 0.1,
    "cpu": [0.2, 0.1, 0.05],
}
PLAN = Plan(
    [
        Forward(name, Address("127.0.0.1", port), Address("127.0.0.1", 9), codec)
        for port, (name, codec) in enumerate(rpc_load.CODECS.items(), start=9000)
    ],
    Path("unused.log"),
    log_connections=True,
)


# ---- what was measured ----


def test_load_is_read() -> None:
    """Rate, latencies in ms and CPU per request come from the answer; the proxy's processes are added up."""
    found = read(json.dumps(ANSWER), proxies=2)
    assert found == pytest.approx(Load(1000.0, 2000.0, 0.04, 0.09, 0.0003, 0.00005, 0.0001))


def test_direct_path_has_no_proxy_cpu() -> None:
    """Without a proxy all CPU time is the instance's."""
    load = read(json.dumps(ANSWER | {"cpu": [0.05]}), proxies=0)
    assert (load.cpu, load.instance_cpu) == (None, 0.00005)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not what it prints"),
        ("{}", "answers"),
        (json.dumps(ANSWER | {"answers": 0}), "nothing was answered"),
    ],
)
def test_load_without_figures_is_an_error(text: str, message: str) -> None:
    """An answer without figures is refused and shown, never read as a rate."""
    with pytest.raises(BenchmarkError, match=message):
        read(text, proxies=0)


# ---- what is asked ----


def test_only_what_would_measure_memory_is_left_out() -> None:
    """Of the whole matrix one combination is left out, in both protocols, for its bytes in flight."""
    assert [workload.shape for workload in LEFT_OUT] == ["65536x500x16"] * 2
    assert len(WORKLOADS) == 2 * 17


def test_each_protocol_has_its_reference() -> None:
    """Every protocol is measured direct, through HAProxy and through tcpgw, and Thrift through Envoy too."""
    assert set(PATHS) == set(rpc_load.CODECS)
    assert all({"direct", "haproxy", "tcpgw"} <= set(paths) for paths in PATHS.values())
    assert "envoy" in PATHS["thrift"]


def test_envoy_reads_frames_of_thrift_alone() -> None:
    """Envoy gets its frame-aware filter where the codec is Thrift's, and relays bytes of the other."""
    listeners = json.loads(envoy(PLAN))["static_resources"]["listeners"]
    filters = {each["name"]: each["filter_chains"][0]["filters"][0]["name"] for each in listeners}
    assert filters == {
        "msgpack": "envoy.filters.network.tcp_proxy",
        "thrift": "envoy.filters.network.thrift_proxy",
    }


def test_tcpgw_accepts_its_configuration(tmp_path: Path) -> None:
    """What tcpgw is given it reads as an rpc listener per codec, with room for every request in flight."""
    config = loads(tcpgw(PLAN), tmp_path)
    assert [(each.mode, each.codec.name) for each in config.listener] == [
        ("rpc", "msgpack-rpc"),
        ("rpc", "thrift-framed"),
    ]
    most = max(workload.connections * workload.depth for workload in WORKLOADS)
    assert all(service.rpc.max_inflight >= most for service in config.service)


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


# ---- the C programs ----

needs_compiler = pytest.mark.skipif(
    shutil.which("cc") is None, reason="cc is not installed (Debian package gcc)"
)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("programs")
    return {name: rpc_load.build(name, folder) for name in ("rpc_load", "rpc_instance")}


def load(programs: dict[str, Path], workload: Workload, address: Address, instance: list[int]) -> Load:
    return rpc_load.run(
        programs["rpc_load"],
        workload,
        address,
        warm_up=0.02,
        seconds=0.1,
        core=None,
        proxy=[],
        instance=instance,
    )


@needs_compiler
@pytest.mark.parametrize("protocol", rpc_load.CODECS)
@pytest.mark.parametrize("shape", [(8, 1, 1), (200, 3, 16), (300_000, 2, 4)])
def test_instance_answers_the_load(
    programs: dict[str, Path], tmp_path: Path, protocol: str, shape: tuple[int, int, int]
) -> None:
    """Requests of any size and depth are answered and every answer passes the check, in both protocols."""
    address = Address("127.0.0.1", free_ports(1)[0])
    command = [str(programs["rpc_instance"]), *map(str, address)]
    with ExitStack() as ending:
        instance = start("rpc_instance", command, log=tmp_path / "log", core=None)
        ending.callback(instance.stop)
        instance.wait_until(lambda: accepts(address))
        found = load(programs, Workload(protocol, *shape), address, instance.pids())
    assert found.amount > 0
    assert found.instance_cpu > 0
    assert 0 < found.p50 <= found.p99 < 100


def accepts(address: Address) -> bool:
    try:
        socket.create_connection(address, timeout=1).close()
    except OSError:
        return False
    return True


Answer = Callable[[bytes], bytes]


@pytest.fixture
def instance() -> Iterator[Callable[[Answer], Address]]:
    """Serve one connection, each request with what the test makes of it."""
    with ExitStack() as ending:

        def serve(answer: Answer) -> Address:
            listener = ending.enter_context(closing(socket.create_server(("127.0.0.1", 0))))
            thread = threading.Thread(target=talk, args=(listener, answer))
            thread.start()
            ending.callback(thread.join)
            return Address(*listener.getsockname())

        yield serve


def talk(listener: socket.socket, answer: Answer) -> None:
    connection, _ = listener.accept()
    with connection, connection.makefile("rb") as requests:
        while length := requests.read(4):
            reply = answer(requests.read(int.from_bytes(length)))
            try:
                connection.sendall(reply)
            except OSError:  # the load has seen enough
                return
            if not reply:
                return


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(4) + message


def msgpack_answer(request: bytes) -> bytes:
    """Answer as rpc_instance does: the method's name gives way to no error and the longest array header."""
    head, _, payload = request.partition(b"\xa4echo\x91")
    return b"\x94\x01" + head[2:] + b"\xc0\xdd\0\0\0\1" + payload


def thrift_answer(request: bytes) -> bytes:
    return request[:3] + b"\2" + request[4:18] + b"\0" + request[19:]


def with_byte(answer: bytes, at: int, value: int) -> bytes:
    return answer[:at] + bytes([value]) + answer[at + 1 :]


STAMP = b"\0\0\0\0\0\0\0\1"  # with which a payload begins: of connection 0, request 1
HONEST = {"msgpack": msgpack_answer, "thrift": thrift_answer}
LIES: dict[str, Answer] = {
    "the last byte of the payload differs": lambda answer: framed(answer[:-2] + b"?" + answer[-1:]),
    "its id differs": lambda answer: framed(with_byte(answer, 2 if answer[0] == 0x94 else 15, 2)),
    "the id in its payload differs": lambda answer: framed(answer.replace(STAMP, STAMP[:7] + b"\2")),
    "it is of another connection": lambda answer: framed(answer.replace(STAMP, b"\0\0\0\7" + STAMP[4:])),
    "it is too short": lambda answer: framed(answer[:-1]),
    "it is too long": lambda answer: framed(answer + b"\0"),
    "it comes twice": lambda answer: framed(answer) * 2,
    "it is the request": lambda answer: framed(answer[:1] + b"\0" + answer[2:]),
    "it is empty": lambda _: framed(b""),
}


@needs_compiler
@pytest.mark.parametrize("protocol", rpc_load.CODECS)
def test_honest_answers_pass(
    programs: dict[str, Path], instance: Callable[[Answer], Address], protocol: str
) -> None:
    """What the tests below spoil is right before they do."""
    address = instance(lambda request: framed(HONEST[protocol](request)))
    assert load(programs, Workload(protocol, 64, 1, 1), address, []).amount > 0


@needs_compiler
@pytest.mark.parametrize("protocol", rpc_load.CODECS)
@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_wrong_answer_fails_the_run(
    programs: dict[str, Path], instance: Callable[[Answer], Address], protocol: str, lie: Answer
) -> None:
    """A single answer that is not the request's own, in any way, makes the run fail and is shown."""
    address = instance(lambda request: lie(HONEST[protocol](request)))
    with pytest.raises(BenchmarkError, match="answer none of its requests"):
        load(programs, Workload(protocol, 64, 1, 1), address, [])


@needs_compiler
def test_error_answer_fails_the_run(programs: dict[str, Path], instance: Callable[[Answer], Address]) -> None:
    """An answer in which the gateway reports an error is no answer, and its text is readable."""
    address = instance(lambda request: framed(b"\x94\x01" + request[2:3] + b"\x81\xa4code\xaaoverloaded\xc0"))
    with pytest.raises(BenchmarkError, match=r"code\.overloaded"):
        load(programs, Workload("msgpack", 64, 1, 1), address, [])


@needs_compiler
def test_closed_connection_fails_the_run(
    programs: dict[str, Path], instance: Callable[[Answer], Address]
) -> None:
    """A connection that ends with requests in flight makes the run fail."""
    address = instance(lambda _: b"")
    with pytest.raises(BenchmarkError, match="was closed"):
        load(programs, Workload("thrift", 64, 1, 1), address, [])
