"""The gateway as systemd runs it: sockets that are passed, messages that it is told, units that it takes."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import pytest

from tests.support.processes import PATIENCE, GatewayProcess, free_port, wait_until
from tests.support.workers import runs

UNITS = Path(__file__).parents[2] / "systemd"

# What systemd does between fork and exec: the sockets from 3 on, and for whom they are.
LAUNCHER = """
import os, sys
numbers = [int(number) for number in sys.argv[1].split(",")]
for place, number in enumerate(numbers):
    os.dup2(number, 3 + place)
    os.set_inheritable(3 + place, True)
environment = {**os.environ, "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(numbers))}
os.execve(sys.argv[2], sys.argv[2:], environment)
"""


class HasFileno(Protocol):
    def fileno(self) -> int: ...


def configuration(folder: Path, instance: tuple[str, int], bind: str) -> Path:
    file = folder / "tcpgw.toml"
    file.write_text(
        f"""
        [gateway]
        drain = "1s"
        hard_stop = "5s"
        [gateway.log]
        format = "json"
        [[service]]
        name = "s"
        discovery = {{ type = "static", endpoints = ["{instance[0]}:{instance[1]}"] }}
        [[listener]]
        name = "l"
        bind = "{bind}"
        route = "s"
        """
    )
    return file


@contextlib.contextmanager
def launched(
    config: Path, sockets: Sequence[HasFileno], log: Path, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """`tcpgw run` with the sockets, as a service. Killed at the end if it still runs."""
    numbers = [sock.fileno() for sock in sockets]
    command = [sys.executable, "-m", "tcpgw", "run", "-c", str(config)]
    if sockets:
        command = [sys.executable, "-c", LAUNCHER, ",".join(map(str, numbers)), *command]
    with (
        log.open("wb") as file,
        subprocess.Popen(
            command, stderr=file, env={**os.environ, **environment}, pass_fds=numbers
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def instance() -> Iterator[socket.socket]:
    """A listening socket whose connections the test accepts itself."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.settimeout(PATIENCE)
        yield sock


@pytest.fixture
def passed() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def exchange(client: socket.socket, instance: socket.socket, text: bytes) -> None:
    """Through the gateway and back."""
    client.sendall(text)
    accepted, _ = instance.accept()
    with accepted:
        accepted.settimeout(PATIENCE)
        assert accepted.recv(100) == text
        accepted.sendall(text[::-1])
        assert client.recv(100) == text[::-1]


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize("by_name", [True, False])
def test_a_passed_socket_is_listened_on(
    tmp_path: Path, instance: socket.socket, passed: socket.socket, by_name: bool
) -> None:
    """It is the listener's of its name or of its address, and that one binds nothing."""
    address = passed.getsockname()
    bind = "127.0.0.1:0" if by_name else f"127.0.0.1:{address[1]}"
    config = configuration(tmp_path, instance.getsockname(), bind)
    log = tmp_path / "log"
    with launched(config, [passed], log, LISTEN_FDNAMES="l" if by_name else "tcpgw.socket") as process:
        gateway = GatewayProcess(process, log)
        assert gateway.address() == address
        assert gateway.ready["inherited"] == ["l"]
        with socket.create_connection(address, PATIENCE) as client:
            exchange(client, instance, b"hello")
        stop(process)


def test_a_restart_refuses_nobody(tmp_path: Path, instance: socket.socket, passed: socket.socket) -> None:
    """Who connects between two gateways, or while one drains, waits and is served by the next."""
    config = configuration(tmp_path, instance.getsockname(), f"127.0.0.1:{passed.getsockname()[1]}")
    waiting: list[socket.socket] = []
    with contextlib.ExitStack() as stack:

        def connect() -> None:
            waiting.append(stack.enter_context(socket.create_connection(passed.getsockname(), PATIENCE)))

        connect()
        for start in range(2):
            log = tmp_path / f"log {start}"
            with launched(config, [passed], log) as process:
                gateway = GatewayProcess(process, log)
                while waiting:
                    with waiting.pop(0) as client:
                        exchange(client, instance, b"waited")
                with socket.create_connection(passed.getsockname(), PATIENCE) as client:
                    exchange(client, instance, b"now")
                    process.send_signal(signal.SIGTERM)
                    wait_until(lambda gateway=gateway: gateway.events("draining"))  # type: ignore[misc]
                    connect()
                assert process.wait(PATIENCE) == 0
            connect()
        assert len(waiting) == 2


def test_a_socket_for_no_listener_is_told(
    tmp_path: Path, instance: socket.socket, passed: socket.socket
) -> None:
    """The gateway does not start without the socket that somebody meant it to have."""
    config = configuration(tmp_path, instance.getsockname(), "127.0.0.1:0")
    log = tmp_path / "log"
    with launched(config, [passed], log, LISTEN_FDNAMES="typo") as process:
        assert process.wait(PATIENCE) == 2
    line = json.loads(log.read_text().splitlines()[-1])
    assert line["event"] == "stopped"
    assert f"typo at 127.0.0.1:{passed.getsockname()[1]}, which no listener takes" in line["error"]


def test_a_datagram_socket_is_told(tmp_path: Path, instance: socket.socket) -> None:
    """ListenDatagram= where ListenStream= is meant."""
    config = configuration(tmp_path, instance.getsockname(), "127.0.0.1:0")
    log = tmp_path / "log"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wrong:
        wrong.bind(("127.0.0.1", 0))
        with launched(config, [wrong], log, LISTEN_FDNAMES="l") as process:
            assert process.wait(PATIENCE) == 2
    line = json.loads(log.read_text().splitlines()[-1])
    assert line["event"] == "stopped"
    assert re.search("l at 127.0.0.1:[0-9]+, which takes no connections: use ListenStream=", line["error"])


def test_what_is_no_socket_is_told(tmp_path: Path, instance: socket.socket, passed: socket.socket) -> None:
    """By its place among those that were passed."""
    config = configuration(tmp_path, instance.getsockname(), "127.0.0.1:0")
    log = tmp_path / "log"
    with config.open() as file, launched(config, [passed, file], log, LISTEN_FDNAMES="l:x") as process:
        assert process.wait(PATIENCE) == 2
    assert "systemd passed 2 descriptors, and 4 is no socket" in log.read_text()


def test_systemd_is_told_when_it_is_ready_alive_and_stopping(tmp_path: Path, instance: socket.socket) -> None:
    """Ready means that clients are accepted; from then on the watchdog is told, until it stops."""
    config = configuration(tmp_path, instance.getsockname(), "127.0.0.1:0")
    log, address = tmp_path / "log", tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(PATIENCE)
        told: list[str] = []

        def hear(wanted: str) -> None:
            while not told or wanted not in told[-1]:
                told.append(manager.recv(1000).decode())

        with launched(config, [], log, NOTIFY_SOCKET=str(address), WATCHDOG_USEC="100000") as process:
            hear("READY=1")
            gateway = GatewayProcess(process, log)
            socket.create_connection(gateway.address(), PATIENCE).close()
            instance.accept()[0].close()
            for _ in range(3):
                told.clear()
                hear("WATCHDOG=1")
            process.send_signal(signal.SIGTERM)
            hear("STOPPING=1")
            assert process.wait(PATIENCE) == 0
        wait_until(lambda: gateway.events("stopped"))


def test_a_listener_may_leave_a_passed_socket_and_come_back(
    tmp_path: Path, instance: socket.socket, passed: socket.socket
) -> None:
    """At another address it opens its own; what systemd keeps open meanwhile is served again later."""
    here = f"127.0.0.1:{passed.getsockname()[1]}"
    config = configuration(tmp_path, instance.getsockname(), here)
    log = tmp_path / "log"

    def reload() -> None:
        command = [sys.executable, "-m", "tcpgw", "reload", "-c", str(config)]
        subprocess.run(command, check=True, timeout=PATIENCE, capture_output=True)

    with launched(config, [passed], log) as process:
        GatewayProcess(process, log)
        for _ in range(2):
            there = free_port()
            configuration(tmp_path, instance.getsockname(), f"127.0.0.1:{there}")
            reload()
            with socket.create_connection(passed.getsockname(), PATIENCE) as waiting:
                with socket.create_connection(("127.0.0.1", there), PATIENCE) as client:
                    exchange(client, instance, b"there")
                configuration(tmp_path, instance.getsockname(), here)
                reload()
                exchange(waiting, instance, b"here")
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", there), PATIENCE)
        stop(process)


def test_systemd_is_told_of_a_successor(tmp_path: Path, instance: socket.socket) -> None:
    """At an upgrade the new supervisor becomes the main process, and tells the watchdog from then on."""
    config = configuration(tmp_path, instance.getsockname(), "127.0.0.1:0")
    log, address = tmp_path / "log", tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        manager.settimeout(PATIENCE)

        def hear(wanted: str) -> tuple[int, str]:
            """Who says it, and all of it."""
            while True:
                told, ancillary, _, _ = manager.recvmsg(1000, socket.CMSG_SPACE(12))
                if wanted in told.decode():
                    return int.from_bytes(ancillary[0][2][:4], sys.byteorder), told.decode()

        with launched(config, [], log, NOTIFY_SOCKET=str(address), WATCHDOG_USEC="100000") as process:
            assert hear("READY=1")[0] == process.pid
            process.send_signal(signal.SIGUSR2)
            teller, told = hear("MAINPID=")
            successor = int(told.removeprefix("MAINPID="))
            try:
                assert teller == process.pid
                assert process.wait(PATIENCE) == 0
                assert hear("WATCHDOG=1")[0] in {process.pid, successor}
                while hear("WATCHDOG=1")[0] != successor:
                    pass
            finally:
                os.kill(successor, signal.SIGTERM)
            assert hear("STOPPING=1")[0] == successor
        wait_until(lambda: not runs(successor))


# ---- the units ----

DROP_IN = Path("tcpgw.service.d", "kernel-plane.conf")
SYSCTL = UNITS / "sysctl.d" / "tcpgw.conf"


def installed(folder: Path, *, drop_in: bool) -> list[Path]:
    """The units as they would be installed, with the program where it is here."""
    script = Path(sys.executable).with_name("tcpgw")
    for unit in UNITS.glob("tcpgw.*"):
        if unit.is_file():
            (folder / unit.name).write_text(unit.read_text().replace("/opt/tcpgw/bin/tcpgw", str(script)))
    if drop_in:
        (folder / DROP_IN.parent).mkdir()
        (folder / DROP_IN).write_text((UNITS / DROP_IN).read_text())
    return sorted(unit for unit in folder.glob("tcpgw.*") if unit.is_file())


@pytest.mark.parametrize("drop_in", [False, True])
def test_the_units_are_right(need: Callable[[str], str], tmp_path: Path, drop_in: bool) -> None:
    """Nothing is to be said about them, where the program is installed, with the drop-in and without."""
    units = installed(tmp_path, drop_in=drop_in)
    assert [unit.name for unit in units] == ["tcpgw.service", "tcpgw.socket"]
    ran = subprocess.run(
        [need("systemd-analyze"), "verify", "--man=no", "--recursive-errors=no", *units],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize("drop_in", [False, True])
def test_the_service_may_do_little(need: Callable[[str], str], tmp_path: Path, drop_in: bool) -> None:
    """Its exposure, as systemd reckons it from 0 to 10, is 2.0 at most, also where it may write rules."""
    service, _ = installed(tmp_path, drop_in=False)
    if drop_in:  # read offline, a unit is one file: what comes later counts as in a drop-in
        service.write_text(service.read_text() + (UNITS / DROP_IN).read_text())
    ran = subprocess.run(
        [need("systemd-analyze"), "security", "--offline=true", "--no-pager", service],
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"Overall exposure level for tcpgw.service: ([0-9.]+)", ran.stdout)
    assert found is not None, ran.stdout
    assert float(found[1]) <= 2.0


def settings() -> list[str]:
    """The lines that set something, or would if they were not commented out."""
    lines = SYSCTL.read_text().splitlines()
    return [line for line in lines if line and not line.startswith("# ") and line != "#"]


def test_advice_to_the_kernel_is_well_formed() -> None:
    """Each line is a key and numbers, and no key is set twice."""
    assert len(settings()) >= 8
    keys = [re.fullmatch(r"#?-?([a-z0-9_.-]+) = [0-9]+( [0-9]+)?", line) for line in settings()]
    assert None not in keys, settings()
    assert len({key[1] for key in keys if key}) == len(keys)


@pytest.mark.parametrize("line", settings())
def test_advice_to_the_kernel_is_of_keys_that_exist(line: str) -> None:
    """This kernel knows the key, if it has what the key is about: sysctl would say so at every boot."""
    key = line.lstrip("#-").partition(" ")[0]
    path = Path("/proc/sys", *key.split("."))
    if key.startswith("net.netfilter") and not path.parent.exists():
        pytest.skip("no connection tracking in this kernel, or in none of its modules that are loaded")
    if key.endswith("tcp_migrate_req") and kernel() < (5, 14):
        pytest.skip("not in this kernel yet")
    assert path.exists()


def kernel() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int(re.sub("[^0-9].*", "", minor))
