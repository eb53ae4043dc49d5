"""Messages to systemd: a socket in its place receives them."""

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tcpgw.process.notify import Notifier, reloading


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """What receives, and its address as $NOTIFY_SOCKET says it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@tcpgw-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name.replace("@", "\0", 1) if request.param == "abstract" else name)
        sock.settimeout(5.0)
        yield sock, name


def test_a_message_is_one_datagram(manager: tuple[socket.socket, str]) -> None:
    """Assignments stand in lines; what is no UTF-8 harms nothing."""
    sock, address = manager
    Notifier(address).tell(READY="1", STATUS="accepting \ud800")
    assert sock.recv(1000) == b"READY=1\nSTATUS=accepting ?"


@pytest.mark.parametrize("address", ["", "/nowhere/at/all"])
def test_nobody_need_listen(address: str) -> None:
    """Without a manager, or with one that is gone, telling does nothing."""
    Notifier(address).tell(READY="1")


def test_the_environment_is_taken() -> None:
    """What was for this process is not handed on to its children."""
    environment = {
        "NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "10", "WATCHDOG_PID": str(os.getpid()), "HOME": "/root",
    }  # fmt: skip
    Notifier.of(environment)
    assert environment == {"HOME": "/root"}


@pytest.mark.parametrize(
    ("microseconds", "pid", "pings"),
    [("40000", "", True), ("40000", "own", True), ("40000", "1", False), ("", "", False), ("x", "", False)],
)
async def test_the_watchdog_hears_of_this_process_alone(
    manager: tuple[socket.socket, str], microseconds: str, pid: str, pings: bool
) -> None:
    """It is told twice in the time in which it wants to hear, if it is this process that it means."""
    sock, address = manager
    sock.setblocking(False)
    pid = str(os.getpid()) if pid == "own" else pid
    given = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": microseconds, "WATCHDOG_PID": pid}
    async with Notifier.of(given).watched():
        heard = 0
        until = time.monotonic() + (5.0 if pings else 0.1)
        while heard < 3 and time.monotonic() < until:
            try:
                assert sock.recv(100) == b"WATCHDOG=1"
                heard += 1
            except BlockingIOError:
                await asyncio.sleep(0.001)
    assert heard == (3 if pings else 0)


async def test_a_loop_that_hangs_is_not_vouched_for(manager: tuple[socket.socket, str]) -> None:
    """The pings come from the loop that works: while that does nothing else, there are none."""
    sock, address = manager
    async with Notifier(address, 0.02).watched():
        await asyncio.sleep(0)
        assert sock.recv(100) == b"WATCHDOG=1"
        sock.setblocking(False)
        time.sleep(0.1)  # noqa: ASYNC251 - that is what hangs
        with pytest.raises(BlockingIOError):
            sock.recv(100)
    await asyncio.sleep(0.05)
    with pytest.raises(BlockingIOError):
        sock.recv(100)


async def test_a_moment_without_descriptors_ends_nothing(
    manager: tuple[socket.socket, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be sent is not; the watchdog is told again as soon as it can be."""
    sock, address = manager
    sock.setblocking(False)
    opened = socket.socket

    def none_left(*_: object) -> socket.socket:
        raise OSError(24, "Too many open files")

    async with Notifier(address, 0.02).watched():
        monkeypatch.setattr("tcpgw.process.notify.socket.socket", none_left)
        await asyncio.sleep(0.05)
        monkeypatch.setattr("tcpgw.process.notify.socket.socket", opened)
        while True:
            try:
                assert sock.recv(100) == b"WATCHDOG=1"
                break
            except BlockingIOError:
                await asyncio.sleep(0.001)


def test_a_successor_finds_what_this_one_found() -> None:
    """But for the watchdog's pid, which is another's then."""
    found = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid())}
    assert Notifier.of({**found}).environment() == {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "10000000"}
    assert Notifier.of({"NOTIFY_SOCKET": "/x"}).environment() == {"NOTIFY_SOCKET": "/x"}
    assert Notifier.of({}).environment() == {}


def test_a_reload_says_when_it_began() -> None:
    """By the clock that systemd compares with."""
    before = time.monotonic_ns() // 1000
    assert int(reloading()["MONOTONIC_USEC"]) - before < 1_000_000
