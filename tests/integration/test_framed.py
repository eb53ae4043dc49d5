"""Framed relays between programs that people use: thriftpy2's client and server, whose frames are u32be."""

import contextlib
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import thriftpy2
from thriftpy2.rpc import make_client
from thriftpy2.thrift import TException
from thriftpy2.transport import TFramedTransportFactory

from tests.support.processes import Address, free_port, gateway, relaying, running, wait_until

CLIENTS = 12
SERVICE = """
exception Refused { 1: string why }
service Echo {
    string echo(1: string text),
    string refuse(1: string why) throws (1: Refused refused),
    oneway void note(1: string text),
    i32 calls(),
    i32 notes()
}
"""
SERVER = """
import sys, threading, thriftpy2
from thriftpy2.rpc import make_server
from thriftpy2.transport import TFramedTransportFactory

echo = thriftpy2.load(sys.argv[1], module_name="echo_thrift")
lock = threading.Lock()

class Handler:
    done = noted = 0
    def echo(self, text):
        with lock:
            self.done += 1
        return text
    def refuse(self, why):
        raise echo.Refused(why=why)
    def note(self, text):
        with lock:
            self.noted += 1
    def calls(self):
        return self.done
    def notes(self):
        return self.noted

make_server(echo.Echo, Handler(), "127.0.0.1", int(sys.argv[2]), trans_factory=TFramedTransportFactory(),
            client_timeout=None).serve()
"""


@pytest.fixture
def echo(tmp_path: Path) -> Any:
    """The service, as thriftpy2 has it."""
    path = tmp_path / "echo.thrift"
    path.write_text(SERVICE)
    return thriftpy2.load(str(path), module_name="echo_thrift")


@pytest.fixture
def instance(echo: Any, tmp_path: Path) -> Iterator[Address]:  # noqa: ARG001 - it wrote the file
    script, port = tmp_path / "server.py", free_port()
    script.write_text(SERVER)
    command: list[str | Path] = [sys.executable, script, tmp_path / "echo.thrift", str(port)]
    with running(command, tmp_path / "server.log", ("127.0.0.1", port)):
        yield "127.0.0.1", port


@contextlib.contextmanager
def connected(echo: Any, address: Address) -> Iterator[Any]:
    host, port = address
    client = make_client(echo.Echo, host, port, trans_factory=TFramedTransportFactory(), timeout=20_000)
    try:
        yield client
    finally:
        client.close()


def listening(codec: str, more: str = "") -> str:
    return f'mode = "rpc"\ncodec = {codec}\n{more}'


FIFO = '{ name = "fifo", frame = "u32be" }'


@pytest.mark.parametrize("codec", ['"u32be"', FIFO])
def test_thrift_calls(tmp_path: Path, echo: Any, instance: Address, codec: str) -> None:
    """Answers large and small, exceptions, and many clients at once: each gets its own, all are counted."""

    def call(number: int) -> None:
        with connected(echo, g.address()) as client:
            for size in (0, 1, 1000, 200_000):
                text = f"{number} " + size * "ü"
                assert client.echo(text) == text
            with pytest.raises(echo.Refused, match="no"):
                client.refuse("no")

    with gateway(tmp_path, relaying([instance], listener=listening(codec))) as g:
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(call, range(CLIENTS)))
        lines = g.lines(CLIENTS)
    for line in lines:
        assert (line["requests"], line["answers"], line["reason"]) == (5, 5, "client_fin")
        assert line["bytes_in"] > 2 * 200_000


def test_calls_that_nobody_answers(tmp_path: Path, echo: Any, instance: Address) -> None:
    """`oneway` passes: an opaque codec expects nothing."""
    with gateway(tmp_path, relaying([instance], listener=listening('"u32be"'))) as g:
        with connected(echo, g.address()) as client:
            for number in range(100):
                client.note(str(number))
            assert client.echo("done") == "done"
            assert client.notes() == 100
        (line,) = g.lines(1)
    assert (line["requests"], line["answers"]) == (102, 2)


def test_a_call_above_the_limit(tmp_path: Path, echo: Any, instance: Address) -> None:
    """It never reaches the instance; those before it were answered, and other clients' go on."""
    settings = listening(FIFO, 'max_frame = "64KiB"')
    with gateway(tmp_path, relaying([instance], listener=settings)) as g:
        with connected(echo, g.address()) as other, connected(echo, g.address()) as client:
            assert client.echo("fits") == "fits"
            with pytest.raises((TException, OSError)):
                client.echo("x" * 65536)
            assert other.echo("still") == "still"
            assert other.calls() == 2
        lines = g.lines(2)
    (line,) = (line for line in lines if line["reason"] != "client_fin")
    assert line["reason"] == "frame_too_large"
    assert "at most 65536 are allowed" in line["error"]
    assert (line["requests"], line["answers"]) == (1, 1)


def test_a_stop_under_load_loses_no_answer(tmp_path: Path, echo: Any, instance: Address) -> None:
    """Stopped while clients ask as fast as they can: what the instance did, its client heard of."""
    answered = [0] * CLIENTS

    def call(number: int) -> None:
        with connected(echo, g.address()) as client, contextlib.suppress(TException, OSError):
            while True:
                assert client.echo(str(answered[number])) == str(answered[number])
                answered[number] += 1

    config = relaying([instance], listener=listening(FIFO))
    with ThreadPoolExecutor(CLIENTS) as pool:
        with gateway(tmp_path, config) as g:
            calls = [pool.submit(call, number) for number in range(CLIENTS)]
            wait_until(lambda: min(answered) > 20)
        for one in calls:
            one.result()
    lines = g.lines(CLIENTS)
    with connected(echo, instance) as client:
        assert client.calls() == sum(answered)
    assert {line["reason"] for line in lines} == {"drained"}
    assert sum(line["answers"] for line in lines) == sum(line["requests"] for line in lines) == sum(answered)
