"""The service as its users see it: methods, errors, serving, stopping."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tcpgw.client import ConnectError, ConnectionLostError, RpcError, SyncClient, connect
from tcpgw.service import ListenError, Service
from tests.support.rpc_ends import frame, nothing_left, peer_of, read_message
from tests.support.streams import PATIENCE, in_time, until


@pytest.fixture(autouse=True)
async def leaves_nothing() -> AsyncIterator[None]:
    async with nothing_left():
        yield


LOCAL = "127.0.0.1:0"


class Gate:
    """A method that says when it is in work and ends when it is let go."""

    def __init__(self) -> None:
        self.begun = 0
        self.cancelled = 0
        self.open = asyncio.Event()

    async def __call__(self, *_: Any) -> str:
        self.begun += 1
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return "done"


# ---- methods ----


async def test_methods_of_every_kind() -> None:
    """Async and plain functions, partials, bound methods and objects that can be called: all are served."""
    gate = Gate()
    gate.open.set()

    def wrapped(a: int) -> Any:
        return later(a, 1)

    service = Service({"partial": partial(pow, 2), "object": gate, "bound": "x".join, "wrapped": wrapped})

    @service.method
    async def later(a: int, b: int) -> int:
        await asyncio.sleep(0)
        return a + b

    @service.method
    def now(a: int, b: int) -> int:
        return a - b

    async with service.serving(LOCAL) as address, connect(address) as client:
        assert await client.call("later", 1, 2) == 3
        assert await client.call("now", 1, 2) == -1
        assert await client.call("partial", 3) == 8
        assert await client.call("object") == "done"
        assert await client.call("bound", ["a", "b"]) == "axb"
        assert await client.call("wrapped", 1) == 2


def test_a_name_is_served_once() -> None:
    """A second method of one name is a mistake, not a replacement."""
    service = Service({"len": len})
    with pytest.raises(ValueError, match="there is a method 'len' already"):
        service.method(len)


async def test_requests_run_concurrently() -> None:
    """A request that waits holds up no other of its connection, whose answers come as they are ready."""
    gate = Gate()
    async with Service({"gate": gate, "len": len}).serving(LOCAL) as address, connect(address) as client:
        slow = asyncio.create_task(client.call("gate"))
        await until(lambda: gate.begun)
        assert await client.call("len", "four") == 4
        gate.open.set()
        assert await in_time(slow) == "done"


async def test_a_plain_function_blocks_nobody() -> None:
    """Plain functions run in threads, at most `threads` at a time, and the loop goes on meanwhile."""
    release, running = threading.Event(), threading.Semaphore(0)

    def block() -> str:
        running.release()
        release.wait(PATIENCE)
        return threading.current_thread().name

    async with Service({"block": block}, threads=2).serving(LOCAL) as address, connect(address) as client:
        calls = [asyncio.create_task(client.call("block")) for _ in range(4)]
        await until(lambda: running._value == 2)
        assert await client.call("tcpgw.ping") == "pong"
        assert running._value == 2
        release.set()
        names = await in_time(asyncio.gather(*calls))
        assert len(set(names)) == 2
        assert all(name.startswith("tcpgw-service") for name in names)


async def test_ping_can_be_the_services_own() -> None:
    """A service that has a better health check than the built-in one gives it the same name."""
    service = Service({"tcpgw.ping": lambda: {"loaded": True}})
    async with service.serving(LOCAL) as address, connect(address) as client:
        assert await client.call("tcpgw.ping") == {"loaded": True}


# ---- errors ----


async def test_a_method_says_its_own_error() -> None:
    """An RpcError that a method raises reaches the client whole, and no log: it is an answer."""

    async def picky(value: str) -> None:
        raise RpcError("bad_input", f"not {value}", data={"allowed": ["b"]})

    with capture_logs() as logs:
        async with Service({"picky": picky}).serving(LOCAL) as address, connect(address) as client:
            with pytest.raises(RpcError) as raised:
                await client.call("picky", "a")
    assert str(raised.value) == "bad_input: not a"
    assert raised.value.data == {"allowed": ["b"]}
    assert not logs


@pytest.mark.parametrize("kind", [ValueError, KeyError, StopIteration, TimeoutError])
async def test_a_failure_is_an_instance_error(kind: type[Exception]) -> None:
    """Whatever a method raises is answered in a sentence; the traceback is in the log alone."""

    async def later() -> None:
        raise kind("why")

    def now() -> None:
        raise kind("why")

    async with Service({"later": later, "now": now}).serving(LOCAL) as address, connect(address) as client:
        for method in ("later", "now"):
            with capture_logs() as logs, pytest.raises(RpcError) as raised:
                await client.call(method)
            assert raised.value.code == "instance_error"
            assert raised.value.message
            assert "\n" not in raised.value.message
            (line,) = logs
            assert (line["event"], line["method"]) == ("method_failed", method)
            assert isinstance(line["exc_info"], Exception)


async def test_a_failure_that_cannot_be_shown_is_answered() -> None:
    """An exception whose text fails as well leaves no caller without an answer."""

    class Broken(Exception):  # noqa: N818
        def __str__(self) -> str:
            raise ValueError

    async def fail() -> None:
        raise Broken

    async with Service({"m": fail}).serving(LOCAL) as address, connect(address) as client:
        with capture_logs(), pytest.raises(RpcError, match=r"^instance_error: Broken$"):
            await client.call("m", timeout=PATIENCE)


async def test_wrong_parameters_are_the_callers_mistake() -> None:
    """A call with too many parameters is answered so, and the connection lives on."""
    async with Service({"len": len}).serving(LOCAL) as address, connect(address) as client:
        with capture_logs(), pytest.raises(RpcError, match=r"instance_error: TypeError: .*argument"):
            await client.call("len", 1, 2)
        assert await client.call("len", "") == 0


async def test_an_unknown_method() -> None:
    """A method that is not there is said so with a code; the text repeats no more than the name's start."""
    async with Service().serving(LOCAL) as address, connect(address) as client:
        with pytest.raises(RpcError, match=r"^unknown_method: there is no method 'x+'$") as raised:
            await client.call("x" * 100_000)
        assert len(raised.value.message) < 100


@pytest.mark.parametrize(
    ("result", "code"),
    [(object(), "instance_error"), (2**64, "instance_error"), (bytes(1000), "frame_too_large")],
)
async def test_a_result_that_cannot_be_sent(result: Any, code: str) -> None:
    """A result without a MessagePack form, or above max_frame, is an error to its caller, and logged."""
    service = Service({"m": lambda: result}, max_frame=1000)
    async with service.serving(LOCAL) as address, connect(address) as client:
        with capture_logs() as logs, pytest.raises(RpcError, match="its result cannot be sent") as raised:
            await client.call("m")
        assert raised.value.code == code
        assert [line["event"] for line in logs] == ["result_unusable"]
        assert await client.call("tcpgw.ping") == "pong"


async def test_a_method_that_is_cancelled_by_itself_answers() -> None:
    """A CancelledError out of a method's own work is a failure like any other: the caller hears of it."""

    async def cancelled() -> None:
        raise asyncio.CancelledError

    async with Service({"m": cancelled}).serving(LOCAL) as address, connect(address) as client:
        with pytest.raises(RpcError, match="m was cancelled"):
            await client.call("m", timeout=PATIENCE)


# ---- where it is served ----


async def test_an_address_that_is_taken() -> None:
    """What cannot be listened on is a ListenError that names the address."""
    async with Service().serving(LOCAL) as address:
        with pytest.raises(ListenError, match=f"cannot listen on {address}: "):
            await Service().serving(address).__aenter__()


async def test_an_address_that_is_none() -> None:
    """What can be no address is a ValueError."""
    with pytest.raises(ValueError, match="is no address"):
        await Service().serving("8080").__aenter__()


@pytest.mark.parametrize(
    "option", ["per_connection", "max_inflight", "max_frame", "stall_timeout", "stop_timeout"]
)
def test_limits_are_above_zero(option: str) -> None:
    """A limit of 0 would serve nobody."""
    options: Any = {option: 0}
    with pytest.raises(ValueError, match="above 0"):
        Service(**options)


async def test_ipv6_and_unix_sockets(tmp_path: Path) -> None:
    """The address served is written so that a client can read it; a socket file goes with its service."""
    for given in ("[::1]:0", f"unix:{tmp_path / 's'}"):
        async with Service().serving(given) as address, connect(address) as client:
            assert await client.call("tcpgw.ping") == "pong"
    assert not (tmp_path / "s").exists()


# ---- stopping ----


async def test_a_stop_finishes_what_is_in_work() -> None:
    """A stop takes no connection and no request any more, and answers what is in work before it closes."""
    gate = Gate()
    serving = Service({"gate": gate}).serving(LOCAL)
    address = await serving.__aenter__()
    async with connect(address) as client:
        call = asyncio.create_task(client.call("gate"))
        await client.notify("gate")
        await until(lambda: gate.begun == 2)
        stopping = asyncio.create_task(serving.__aexit__(None, None, None))
        await asyncio.sleep(0)
        with pytest.raises(RpcError, match="overloaded: this instance is stopping") as refused:
            await client.call("gate")
        assert refused.value.retry_safe
        with pytest.raises(ConnectError, match="refused"):
            await connect(address).__aenter__()
        assert (gate.begun, stopping.done()) == (2, False)
        gate.open.set()
        assert await in_time(call) == "done"
        await in_time(stopping)
    assert gate.cancelled == 0


async def test_a_stop_is_cut_short() -> None:
    """What is still in work after stop_timeout is cancelled, requests and notifications."""
    gate = Gate()
    serving = Service({"gate": gate}, stop_timeout=0.05).serving(LOCAL)
    address = await serving.__aenter__()
    async with connect(address) as client:
        call = asyncio.create_task(client.call("gate"))
        await client.notify("gate")
        await until(lambda: gate.begun == 2)
        with capture_logs() as logs:
            await in_time(serving.__aexit__(None, None, None))
        with pytest.raises(ConnectionLostError):
            await in_time(call)
    assert gate.cancelled == 2
    assert [line["event"] for line in logs] == ["stop_cut_short", "client_aborted"]


async def test_a_stop_does_not_wait_for_a_client_that_stays() -> None:
    """An idle client is told by FIN; where it does not close within a second, it is cut."""
    serving = Service().serving(LOCAL)
    address = await serving.__aenter__()
    with peer_of(address) as peer:
        await peer.send(frame(0, 1, "tcpgw.ping", []))
        assert await read_message(peer) == [1, 1, None, "pong"]
        stopping = asyncio.create_task(serving.__aexit__(None, None, None))
        assert await peer.read_to_end() == b""
        await in_time(stopping)


SCRIPT = """
import os, signal, sys, time
from tcpgw.service import Service

service = Service()

@service.method
def stop(times):
    for _ in range(times):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
    time.sleep(0.2)
    return "done"

service.run("127.0.0.1:0")
"""


@pytest.mark.parametrize("times", [1, 2])
def test_run_serves_until_a_signal(times: int) -> None:
    """A signal lets `run` finish what is in work, a second one does not; the exit code is 0, the log JSON."""
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            ready = json.loads(process.stderr.readline())
            assert (ready["event"], ready["methods"]) == ("service_ready", ["stop"])
            client = SyncClient(ready["address"])
            if times == 1:
                assert client.call("stop", 1) == "done"
            else:
                with pytest.raises(ConnectionLostError):
                    client.call("stop", 2)
            client.close()
            assert process.wait(PATIENCE) == 0
            events = [json.loads(line)["event"] for line in process.stderr]
            assert events[0] == "service_stopping"
            assert ("service_stopped" in events) == (times == 1)
        finally:
            process.kill()
