"""What the benchmark of idle connections reads of a proxy, and what it makes of it."""

import shutil
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import idle
import pytest
from idle import Clients, Reading
from peers import HAPROXY, TCPGW, Address, Forward, Plan
from processes import BenchmarkError, start

from tcpgw.config.load import loads

KIB = 1 << 10


def reading(path: str, each: float, number: int = 0, *, spoke: bool = True) -> Reading:
    """A proxy that takes `each` KiB for a connection beyond the first ten, and 1 MiB for those."""
    memory = [10 << 20, 11 << 20, (11 << 20) + int(90 * each * KIB)]
    return Reading(number, path, spoke, (0, 10, 100), memory, (5, 25, 205))


def test_connection_costs_the_slope_between_counts() -> None:
    """What a connection takes is the growth from the first count to the last; the first pays what is once."""
    found = reading("haproxy", 3)
    assert (found.bytes_each(), found.files_each()) == (3 * KIB, 2)


def test_ratio_is_taken_within_rounds() -> None:
    """Each round is compared with HAProxy's of the same round, and silent connections with silent ones."""
    readings = [
        *(reading("haproxy", each, number) for number, each in enumerate((2, 4, 4))),
        *(reading("tcpgw", each, number) for number, each in enumerate((3, 6, 1))),
        reading("tcpgw", 9, spoke=False),
    ]
    assert idle.ratio(readings, "tcpgw", spoke=True) == 1.5
    assert idle.ratio(readings, "tcpgw", spoke=False) is None


def test_nothing_is_compared_with_nothing() -> None:
    """Where HAProxy's memory did not grow there is no ratio."""
    readings = [reading("haproxy", 0), reading("tcpgw", 3)]
    assert idle.ratio(readings, "tcpgw", spoke=True) is None


def both(path: str, each: float) -> list[Reading]:
    return [reading(path, each, spoke=spoke) for spoke in (True, False)]


def test_both_planes_are_held_to_haproxy() -> None:
    """The aim is HAProxy's memory for each plane of tcpgw that ran, speaking or silent."""
    readings = [*both("haproxy", 4), *both("tcpgw", 4), *both(idle.RPC, 5)]
    assert idle.verdicts(readings, ["haproxy", "tcpgw", idle.RPC]) == (
        [
            "tcpgw, having spoken: at most 1.0 of haproxy: 1.00, met",
            "tcpgw, silent: at most 1.0 of haproxy: 1.00, met",
            "tcpgw-rpc, having spoken: at most 1.0 of haproxy: 1.25, MISSED",
            "tcpgw-rpc, silent: at most 1.0 of haproxy: 1.25, MISSED",
        ],
        False,
    )
    assert idle.verdicts(readings, ["haproxy", "tcpgw"])[1] is True
    assert idle.verdicts(readings[2:], ["tcpgw"])[1] is False


def test_table_shows_base_slope_and_ratio() -> None:
    """A row holds memory at each count, KiB for a connection in both cases, ratios and descriptors."""
    readings = [*both("haproxy", 2), *both("tcpgw", 3)]
    text = idle.table(idle.summary(readings, ["haproxy", "tcpgw"]), (10, 100))
    heading, _, *rows = text.splitlines()
    assert heading == "idle connections, PSS of all processes"
    assert [" ".join(row.split()) for row in rows] == [
        "haproxy 10.0 11.0 11.2 2.00 1.00 2.00 1.00 2.00",
        "tcpgw 10.0 11.0 11.3 3.00 1.50 3.00 1.50 2.00",
    ]


def test_tcpgw_is_measured_on_both_planes(tmp_path: Path) -> None:
    """One of tcpgw's paths relays bytes and one balances requests, with room for every connection."""
    address = Address("127.0.0.1", 9000)
    modes = {}
    for peer in idle.PATHS:
        if peer.configure is TCPGW.configure:
            codec = idle.CODEC if peer.name == idle.RPC else ""
            plan = Plan([Forward("idle", address, address, codec)], tmp_path, log_connections=True)
            (listener,) = loads(peer.configure(plan), tmp_path).listener
            assert listener.max_connections > idle.COUNTS[-1]
            modes[peer.name] = listener.mode
    assert modes == {"tcpgw": "tcp", idle.RPC: "rpc"}


def test_too_few_open_files_are_refused() -> None:
    """More connections than the machine lets a process have are refused before anything runs."""
    with pytest.raises(BenchmarkError, match=r"raise ulimit -Hn"):
        idle.raise_open_files(10**9)


def serve(listener: socket.socket, answer: bytes) -> None:
    with suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(answer)


@pytest.mark.parametrize("answer", [b"", b"\0\0", b"\0" * len(idle.REQUEST)])
def test_wrong_answer_is_an_error(answer: bytes) -> None:
    """A connection counts as having spoken only where its request was answered."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=serve, args=(listener, answer), daemon=True)
        thread.start()
        clients = Clients(Address(*listener.getsockname()), speak=True)
        with pytest.raises(ConnectionError):
            clients.add(1)
        clients.close()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_connections_that_are_not_relayed_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reading is not taken before the proxy has the connections; one that never has them is named."""
    monkeypatch.setattr(idle, "START_TIMEOUT", 0.1)
    child = start(
        "sleeper", [sys.executable, "-c", "import signal; signal.pause()"], log=tmp_path / "log", core=None
    )
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        clients = Clients(Address(*listener.getsockname()), speak=False)
        try:
            with pytest.raises(BenchmarkError, match=r"sleeper has .* descriptors for 3 connections"):
                idle.grow(clients, child, 0, 3, child.descriptors() + 100, 2)
        finally:
            clients.close()
            child.stop()


@pytest.mark.skipif(
    shutil.which("cc") is None or HAPROXY.find() is None, reason="gcc or haproxy are not installed"
)
def test_quick_run_reports(run_script: Callable[..., str]) -> None:
    """A quick run reads HAProxy and both planes of tcpgw, of which rpc has fewer descriptors."""
    report = run_script("idle.py", "--quick", "--peers", f"haproxy,tcpgw,{idle.RPC}")
    rows = [line.split() for line in report.partition("PSS of all processes")[2].splitlines()[2:5]]
    assert [(row[0], row[-1]) for row in rows] == [("haproxy", "2.00"), ("tcpgw", "2.00"), (idle.RPC, "1.00")]
