"""That the rpc benchmark's load generator finds every wrong answer, and what is read of its figures."""

import json
import shutil
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import rpc_load
from peers import Address
from processes import BenchmarkError, free_ports, start
from rpc_load import Load, Workload, read

ANSWER = {
    "answers": 1000,
    "seconds": 0.5,
    "p50_us": 40.0,
    "p99_us": 90.0,
    "load_cpu": 0.1,
    "cpu": [0.2, 0.1, 0.05],
}


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


# ---- the C programs ----

needs_compiler = pytest.mark.skipif(
    shutil.which("cc") is None, reason="cc is not installed (Debian package gcc)"
)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("programs")
    return {name: rpc_load.build(name, folder) for name in ("rpc_load", "rpc_instance")}


def load(
    programs: dict[str, Path],
    workload: Workload,
    address: Address,
    instance: list[int],
    deadline: int | None = None,
) -> Load:
    return rpc_load.run(
        programs["rpc_load"],
        workload,
        address,
        warm_up=0.02,
        seconds=0.1,
        core=None,
        proxy=[],
        instance=instance,
        deadline=deadline,
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


@needs_compiler
@pytest.mark.parametrize("protocol", rpc_load.CODECS)
@pytest.mark.parametrize(
    ("told", "kept"), [(4999.5, True), (5000.0, False), (0.0, False), (float("nan"), False)]
)
def test_deadline_must_be_kept(
    programs: dict[str, Path],
    instance: Callable[[Answer], Address],
    protocol: str,
    told: float,
    kept: bool,
) -> None:
    """The instance must be told a deadline shorter than the client's, or the run fails and says so."""
    said, passed_on = (struct.pack(">d", number) for number in (5000, told))
    address = instance(lambda request: framed(HONEST[protocol](request).replace(said, passed_on)))
    with ExitStack() as refused:
        if not kept:
            refused.enter_context(pytest.raises(BenchmarkError, match="nobody on the way kept it"))
        assert load(programs, Workload(protocol, 64, 1, 1), address, [], deadline=5000).amount > 0
