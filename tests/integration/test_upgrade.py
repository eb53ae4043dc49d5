"""One version taking over from another: nobody is refused, and where it fails nothing has changed."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.load import Background
from tests.support.monitoring import Watched
from tests.support.processes import PATIENCE, free_port, wait_until
from tests.support.workers import Run, config_of, runs, unharmed


@pytest.fixture
def background() -> Iterator[Background]:
    with Background(instances=2) as background:
        yield background


@pytest.mark.parametrize("how", ["command", "signal"])
def test_an_upgrade_refuses_nobody(tmp_path: Path, background: Background, how: str) -> None:
    """A new supervisor accepts on the same sockets, the old one drains and ends well; SIGTERM ends all."""
    run = Run(tmp_path, config_of(background.instances, free_port()))
    with run.started() as gateway, background.load(run.address, long=10, short=6) as load:
        load.goes_on()
        if how == "command":
            told = run.command("upgrade")
            assert told.returncode == 0, told.stderr
        else:
            gateway.process.send_signal(signal.SIGUSR2)
        wait_until(lambda: gateway.events("upgraded"))
        (upgraded,) = gateway.events("upgraded")
        load.goes_on()
        unharmed(load)
        status = run.status()
        assert status["pid"] == upgraded["successor"]
        load.stop()
        assert gateway.process.wait(PATIENCE) == 0
        wait_until(lambda: not any(map(runs, gateway.ready["workers"])))
    unharmed(load)
    with background.load(run.address, short=4) as later:
        later.goes_on()
    unharmed(later)
    os.kill(upgraded["successor"], signal.SIGTERM)
    wait_until(lambda: not runs(upgraded["successor"]))
    stopped = [json.loads(line) for line in run.log.read_text().splitlines() if '"stopped"' in line]
    assert [line["connections_cut"] for line in stopped] == [0, 0]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(run.address, PATIENCE)


def test_an_upgrade_that_fails_changes_nothing(tmp_path: Path, background: Background) -> None:
    """A new version that does not start, here for its configuration, leaves the old one in force."""
    run = Run(tmp_path, config_of(background.instances, free_port()))
    with run.started() as gateway, background.load(run.address, long=4, short=4) as load:
        run.file.write_text("nonsense")
        told = run.command("upgrade")
        assert told.returncode == 1
        assert "ended with 2" in told.stderr
        wait_until(lambda: '"upgrade_failed"' in run.log.read_text())  # beside what the new one says
        load.goes_on()
        unharmed(load)
        assert run.status()["pid"] == gateway.process.pid
    unharmed(load)


def test_a_second_gateway_with_the_same_file_does_not_start(tmp_path: Path, background: Background) -> None:
    """SO_REUSEPORT would let both serve, each with half of the clients."""
    run = Run(tmp_path, config_of(background.instances, free_port()))
    with run.started():
        told = run.command("run")
        assert told.returncode == 1
        assert "runs with" in told.stderr
        assert "tcpgw reload" in told.stderr


def waiting(api: socket.socket) -> str:
    """A service whose start waits for an API that does not answer."""
    return f"""
[cloud.modelarts]
endpoint = "http://127.0.0.1:{api.getsockname()[1]}"
project_id = "p"
auth = {{ type = "token", token = "t" }}
timeout = "1m"
[[service]]
name = "silent"
discovery = {{ type = "modelarts", service_id = "x" }}
wait = "1m"
[[listener]]
name = "silent"
bind = "127.0.0.1:0"
route = "silent"
"""


def successor_of(run: Run, pid: int) -> int:
    """The process that is to take over, as soon as it is there."""
    found: list[int] = []

    def look() -> bool:
        found[:] = [child for child in run.children(pid) if run.is_supervisor(child)]
        return bool(found)

    wait_until(look)
    return found[0]


def test_a_successor_that_dies_in_its_start_changes_nothing(tmp_path: Path, background: Background) -> None:
    """Until it accepts, the old one is asked; afterwards too."""
    port = free_port()
    run = Run(tmp_path, config_of(background.instances, port))
    with (
        socket.create_server(("127.0.0.1", 0)) as api,
        run.started() as gateway,
        background.load(run.address, short=4) as load,
    ):
        run.file.write_text(config_of(background.instances, port) + waiting(api))
        gateway.process.send_signal(signal.SIGUSR2)
        successor = successor_of(run, gateway.process.pid)
        api.accept()[0].detach()  # it waits for discovery now
        assert run.status()["pid"] == gateway.process.pid
        os.kill(successor, signal.SIGKILL)
        wait_until(lambda: gateway.events("upgrade_failed"))
        assert run.status()["pid"] == gateway.process.pid
        run.file.write_text(config_of(background.instances, port))
        assert run.command("reload").returncode == 0
        load.goes_on()
    unharmed(load)


def test_who_looks_sees_the_one_that_serves(tmp_path: Path, background: Background) -> None:
    """While a successor starts: ready, with the old one's figures; from then on with the new one's."""
    run = Watched(tmp_path, background.instances)
    before = run.file.read_text()

    def told() -> tuple[bytes, int]:
        return run.get("/readyz"), json.loads(run.get("/status"))["pid"]

    with socket.create_server(("127.0.0.1", 0)) as api, run.started() as gateway:
        run.file.write_text(before + waiting(api))
        gateway.process.send_signal(signal.SIGUSR2)
        successor = successor_of(run, gateway.process.pid)
        api.accept()[0].detach()  # it waits for discovery now
        ready = b'{"status":"ready"}'
        assert {told() for _ in range(20)} == {(ready, gateway.process.pid)}
        os.kill(successor, signal.SIGKILL)
        wait_until(lambda: gateway.events("upgrade_failed"))
        run.file.write_text(before)
        gateway.process.send_signal(signal.SIGUSR2)
        assert gateway.process.wait(PATIENCE) == 0
        (upgraded,) = gateway.events("upgraded")
        assert told() == (ready, upgraded["successor"])
        os.kill(upgraded["successor"], signal.SIGTERM)
        wait_until(lambda: not runs(upgraded["successor"]))


def test_a_successor_judges_when_it_serves(tmp_path: Path, background: Background) -> None:
    """Before, the old one does: one that did not come to serve could not tell that its alerts are over."""
    port = free_port()
    run = Run(tmp_path, config_of(background.instances, port))
    with socket.create_server(("127.0.0.1", 0)) as api, run.started() as gateway:
        more = waiting(api).replace('wait = "1m"', 'wait = "3s"')
        alerts = "[alerts]\ninstances_below = { threshold = 100, for = 0 }\n"
        run.file.write_text(config_of(background.instances, port) + more + alerts)
        gateway.process.send_signal(signal.SIGUSR2)
        wait_until(lambda: gateway.events("alert_firing"))
        ready, fired = gateway.events("ready"), gateway.events("alert_firing")
        assert len(ready) == 2
        assert ready[1]["ts"] <= fired[0]["ts"]
        assert gateway.process.wait(PATIENCE) == 0
    (upgraded,) = gateway.events("upgraded")
    os.kill(upgraded["successor"], signal.SIGTERM)
    wait_until(lambda: not runs(upgraded["successor"]))


def test_a_stop_ends_an_upgrade_too(tmp_path: Path, background: Background) -> None:
    """Nobody is left who serves a gateway that was told to end."""
    port = free_port()
    run = Run(tmp_path, config_of(background.instances, port))
    with socket.create_server(("127.0.0.1", 0)) as api, run.started() as gateway:
        run.file.write_text(config_of(background.instances, port) + waiting(api))
        gateway.process.send_signal(signal.SIGUSR2)
        successor = successor_of(run, gateway.process.pid)
        api.accept()[0].detach()
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(PATIENCE) == 0
        wait_until(lambda: not runs(successor))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(run.address, PATIENCE)


def test_a_successor_goes_on_where_its_predecessor_died(tmp_path: Path, background: Background) -> None:
    """It has all that it needs by then."""
    run = Run(tmp_path, config_of(background.instances, free_port(), gateway='unsupervised = "1s"'))
    with run.started(code=-signal.SIGKILL) as gateway:
        gateway.process.send_signal(signal.SIGUSR2)
        successor = successor_of(run, gateway.process.pid)
        gateway.process.kill()
        gateway.process.wait(PATIENCE)
        wait_until(lambda: len(ready(run)) == 2)
        with background.load(run.address, short=4) as load:
            load.goes_on()
            wait_until(lambda: not any(map(runs, gateway.ready["workers"])))
            load.goes_on()
        unharmed(load)
        assert run.status()["pid"] == successor
        os.kill(successor, signal.SIGTERM)
        wait_until(lambda: not runs(successor))


def ready(run: Run) -> list[str]:
    return [line for line in run.log.read_text().splitlines() if '"ready"' in line]
