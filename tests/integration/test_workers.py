"""A gateway of several processes, and what happens to its clients while those come and go."""

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.load import Background, Load
from tests.support.processes import PATIENCE, Address, GatewayProcess, free_port, wait_until


def config_of(
    instances: list[Address],
    port: int,
    *,
    workers: int = 2,
    gateway: str = "",
    service: str = "",
    more: str = "",
) -> str:
    """A service `s` with these instances behind a listener `l`."""
    members = ", ".join(f'"{host}:{number}"' for host, number in instances)
    return f"""
[gateway]
workers = {workers}
drain = "1s"
hard_stop = "8s"
{gateway}
[[service]]
name = "s"
discovery = {{ type = "static", endpoints = [{members}] }}
balance = {{ key = "source_ip_port", bounded_load = 0 }}
{service}
[[listener]]
name = "l"
bind = "127.0.0.1:{port}"
route = "s"
{more}
"""


class Run:
    """`tcpgw run` with a file that can be written anew."""

    def __init__(self, folder: Path, text: str) -> None:
        self.file = folder / "tcpgw.toml"
        self.file.write_text(text)
        self.log = folder / "log"
        self.address: Address = ("127.0.0.1", int(text.partition('bind = "127.0.0.1:')[2].partition('"')[0]))

    @contextlib.contextmanager
    def started(self) -> Iterator[GatewayProcess]:
        """From `ready` to the end of the context; then it must have ended well, or be told to."""
        command = [sys.executable, "-m", "tcpgw", "run", "-c", str(self.file)]
        environment = {**os.environ, "PYTHONWARNINGS": "always::ResourceWarning"}
        with self.log.open("ab") as log, subprocess.Popen(command, stderr=log, env=environment) as process:
            try:
                gateway = GatewayProcess(process, self.log)
                yield gateway
                if process.poll() is None:
                    process.terminate()
                assert process.wait(PATIENCE) == 0, self.log.read_text()
            finally:
                process.kill()
        text = self.log.read_text()
        assert "Traceback" not in text, text
        assert "ResourceWarning" not in text, text

    def command(self, name: str, *options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tcpgw", name, "-c", str(self.file), *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE, check=False)

    def status(self) -> dict[str, Any]:
        told = self.command("status", "--json")
        assert told.returncode == 0, told.stderr
        found: dict[str, Any] = json.loads(told.stdout)
        return found


@pytest.fixture
def background() -> Iterator[Background]:
    with Background(instances=2) as background:
        yield background


def exchange(address: Address, data: bytes) -> None:
    with socket.create_connection(address, PATIENCE) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        assert b"".join(iter(lambda: client.recv(65536), b"")) == data


def exchange_often(address: Address, times: int) -> None:
    for _ in range(times):
        exchange(address, b"x")


def unharmed(load: Load) -> None:
    assert not load.long, (load.long, load.short)
    assert not load.short, (load.long, load.short)


def runs(pid: int) -> bool:
    """Whether a process is there and has not ended (a child of ours that nobody waited for has)."""
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"
    return False


# ---- what workers do together ----


def test_totals_are_sums_over_workers(tmp_path: Path, background: Background) -> None:
    """Connections are spread over the workers, and the status says of all what clients counted."""
    run = Run(tmp_path, config_of(background.instances, free_port()))
    data = os.urandom(5000)
    with run.started() as gateway:
        assert len(set(gateway.ready["workers"])) == 2
        with contextlib.ExitStack() as held:
            for _ in range(40):
                client = held.enter_context(socket.create_connection(run.address, PATIENCE))
                client.sendall(b"x")
                assert client.recv(1) == b"x"
            status = run.status()
            assert status["listeners"]["l"]["active"] == 40
            each = [worker["connections"] for worker in status["workers"]]
            assert sum(each) == 40
            assert min(each) >= 5
        for _ in range(60):
            exchange(run.address, data)
        wait_until(lambda: run.status()["listeners"]["l"]["active"] == 0)
        status = run.status()
    listener = status["listeners"]["l"]
    assert listener["accepted"] == 100
    assert listener["ended"] == {"client_fin": 100}
    assert listener["bytes_in"] == listener["bytes_out"] == 40 + 60 * len(data)
    endpoints = status["services"]["s"]["endpoints"]
    assert sum(one["connected"] for one in endpoints.values()) == 100
    assert [one["weight"] for one in endpoints.values()] == [1, 1]
    assert (status["state"], status["worker_deaths"]) == ("ready", 0)


def test_status_is_a_table_for_people(tmp_path: Path, background: Background) -> None:
    """It names the workers, the listeners and the endpoints."""
    run = Run(tmp_path, config_of(background.instances, free_port()))
    with run.started() as gateway:
        told = run.command("status")
        assert told.returncode == 0
        for word in (
            *map(str, gateway.ready["workers"]),
            "l",
            str(run.address[1]),
            str(background.instances[0][1]),
        ):
            assert word in told.stdout, told.stdout
    assert run.command("status").returncode == 1
    assert "no gateway" in run.command("status").stderr


def test_workers_hold_no_capabilities_and_no_secrets(tmp_path: Path, background: Background) -> None:
    """What only the supervisor needs is nowhere in them."""
    secret = "correct-horse-battery"
    cloud = f"""
[cloud.modelarts]
endpoint = "http://127.0.0.1:9"
project_id = "p"
auth = {{ type = "token", token = "{secret}" }}
"""
    run = Run(tmp_path, config_of(background.instances, free_port(), more=cloud))
    with run.started() as gateway:
        for pid in gateway.ready["workers"]:
            status = dict(
                line.split(":\t", 1)
                for line in Path(f"/proc/{pid}/status").read_text().splitlines()
                if ":\t" in line
            )
            assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
            assert status["NoNewPrivs"] == "1"
            assert secret not in Path(f"/proc/{pid}/environ").read_text()
            assert secret not in Path(f"/proc/{pid}/cmdline").read_text()
        exchange(run.address, b"hello")


# ---- workers that die ----


def test_a_killed_worker_costs_its_own_connections_only(tmp_path: Path, background: Background) -> None:
    """Those of the others go on, nobody is refused, and what it had counted stays counted."""
    run = Run(tmp_path, config_of(background.instances, free_port()))
    with run.started() as gateway, background.load(run.address, long=24) as long:
        status = run.status()
        victim, other = status["workers"]
        assert victim["connections"] + other["connections"] == 24
        assert min(victim["connections"], other["connections"]) > 0
        with background.load(run.address, short=6) as short:
            short.goes_on()
            os.kill(victim["pid"], signal.SIGKILL)
            wait_until(lambda: gateway.events("worker_died"))
            wait_until(lambda: len(gateway.events("worker_ready")) == 3)
            long.goes_on()
            short.goes_on()
        # Some were in the middle of an exchange, and some between two.
        assert long.long.broken + long.closed == victim["connections"]
        assert short.short.broken <= 6
        assert long.long.refused + short.short.refused == 0
        assert long.long.corrupted + short.short.corrupted == 0
        after = run.status()
        assert after["worker_deaths"] == 1
        assert other["pid"] in [worker["pid"] for worker in after["workers"]]
        assert after["listeners"]["l"]["accepted"] >= status["listeners"]["l"]["accepted"]
    (died,) = gateway.events("worker_died")
    assert (died["pid"], died["code"]) == (victim["pid"], -9)


def test_a_worker_that_is_told_to_end_has_a_successor_first(tmp_path: Path, background: Background) -> None:
    """SIGTERM to one worker costs nobody anything."""
    run = Run(tmp_path, config_of(background.instances, free_port()))
    with run.started() as gateway, background.load(run.address, long=10, short=4) as load:
        load.goes_on()
        (first, *_) = gateway.ready["workers"]
        os.kill(first, signal.SIGTERM)
        wait_until(lambda: len(gateway.events("worker_ready")) == 3)
        load.goes_on()
        unharmed(load)
        load.stop()
        wait_until(lambda: not runs(first))
    unharmed(load)
    assert not gateway.events("worker_died")


def test_workers_outlive_their_supervisor_for_a_while(tmp_path: Path, background: Background) -> None:
    """They go on, new clients included, then drain; a new supervisor can start meanwhile, beside them."""
    port = free_port()
    run = Run(tmp_path, config_of(background.instances, port, gateway='unsupervised = "2s"'))
    with contextlib.suppress(AssertionError), run.started() as gateway:
        orphans = gateway.ready["workers"]
        with background.load(run.address, long=8, short=4) as load:
            load.goes_on()
            os.kill(gateway.process.pid, signal.SIGKILL)
            gateway.process.wait(PATIENCE)
            wait_until(lambda: len(gateway.events("supervisor_lost")) == 2)
            load.goes_on()
            (tmp_path / "next").mkdir()
            following = Run(tmp_path / "next", run.file.read_text())
            with following.started():
                load.goes_on()
                unharmed(load)
                time.sleep(2.5)  # the orphans have stopped to accept
                load.goes_on()
                unharmed(load)
                load.stop()
                wait_until(lambda: not any(map(runs, orphans)))
        unharmed(load)
        raise AssertionError  # the killed one did not end well
    assert not any(map(runs, orphans))


# ---- reload ----


def test_a_reload_harms_nobody(tmp_path: Path, background: Background) -> None:
    """Under load: another weight, a new listener, a broken file, a removed listener."""
    port, second = free_port(), free_port()
    first = background.instances[0]
    extra = f"""
[[listener]]
name = "more"
bind = "127.0.0.1:{second}"
route = "s"
"""
    run = Run(tmp_path, config_of(background.instances, port))
    with run.started() as gateway, background.load(run.address, long=12, short=4) as load:
        load.goes_on()

        # Another weight, by signal.
        heavier = config_of(background.instances, port).replace(
            f'"{first[0]}:{first[1]}"', f'{{ address = "{first[0]}:{first[1]}", weight = 9 }}'
        )
        run.file.write_text(heavier)
        gateway.process.send_signal(signal.SIGHUP)
        wait_until(lambda: gateway.events("reloaded"))
        spread = background.spread(lambda: exchange_often(run.address, 60))
        assert spread[first] > 60 * 0.7

        # A new listener, by command.
        run.file.write_text(heavier + extra)
        told = run.command("reload")
        assert (told.returncode, told.stderr) == (0, "")
        assert "more" in told.stdout
        for _ in range(10):
            exchange(("127.0.0.1", second), b"hello")
        load.goes_on()

        # A broken file: both ways say so, and nothing changes.
        run.file.write_text(heavier + 'nonsense = "x"\n')
        told = run.command("reload")
        assert told.returncode == 2
        assert "nonsense" in told.stderr
        gateway.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(gateway.events("reload_refused")) == 2)
        exchange(("127.0.0.1", second), b"hello")

        # The listener goes: who is connected there finishes, new clients are refused.
        with socket.create_connection(("127.0.0.1", second), PATIENCE) as client:
            client.sendall(b"a")
            assert client.recv(1) == b"a"
            run.file.write_text(heavier)
            assert run.command("reload").returncode == 0
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", second), PATIENCE)
            client.sendall(b"b")
            assert client.recv(1) == b"b"
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
        assert run.command("reload").stdout == "nothing changed\n"
        load.goes_on()
        unharmed(load)
        assert [worker["pid"] for worker in run.status()["workers"]] == gateway.ready["workers"]
    unharmed(load)


def test_a_reload_changes_how_many_workers_there_are(tmp_path: Path, background: Background) -> None:
    """More, then fewer: each change under load, and every queue is somebody's."""
    port = free_port()
    run = Run(tmp_path, config_of(background.instances, port, workers=1))
    with run.started() as gateway, background.load(run.address, long=6, short=6) as load:
        for workers in (3, 1, 2):
            run.file.write_text(config_of(background.instances, port, workers=workers))
            assert run.command("reload").returncode == 0
            states = [worker["state"] for worker in run.status()["workers"]]
            assert states.count("accepting") == workers
            for _ in range(30):
                exchange(run.address, b"x")
            load.goes_on()
        unharmed(load)
        assert gateway.ready["workers"][0] in [worker["pid"] for worker in run.status()["workers"]]
    unharmed(load)


def test_what_needs_new_workers_gets_them_one_by_one(tmp_path: Path, background: Background) -> None:
    """A changed log is for new processes; each accepts before the old one stops."""
    port = free_port()
    run = Run(tmp_path, config_of(background.instances, port))
    with run.started() as gateway, background.load(run.address, long=6, short=6) as load:
        load.goes_on()
        run.file.write_text(config_of(background.instances, port) + '[gateway.log]\nlevel = "debug"\n')
        assert run.command("reload").returncode == 0
        wait_until(lambda: len(gateway.events("worker_ready")) == 4)
        load.goes_on()
        unharmed(load)
        load.stop()
        wait_until(lambda: not any(map(runs, gateway.ready["workers"])))
    unharmed(load)
    assert not gateway.events("worker_died")


# ---- upgrade ----


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


# ---- the end ----


def test_a_drain_lets_connections_finish_and_then_cuts(tmp_path: Path, background: Background) -> None:
    """Idle connections get FIN within `drain`; one that waits for an answer has until `hard_stop`."""
    text = config_of(background.instances, free_port()).replace('hard_stop = "8s"', 'hard_stop = "2s"')
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = silent.getsockname()
        run = Run(
            tmp_path,
            text
            + f"""
[[service]]
name = "silent"
discovery = {{ type = "static", endpoints = ["127.0.0.1:{address[1]}"] }}
[[listener]]
name = "silent"
bind = "127.0.0.1:0"
route = "silent"
""",
        )
        with run.started() as gateway:
            idle = socket.create_connection(run.address, PATIENCE)
            idle.sendall(b"x")
            assert idle.recv(1) == b"x"
            owed = socket.create_connection(gateway.address("silent"), PATIENCE)
            owed.sendall(b"a question")
            instance, _ = silent.accept()
            began = time.monotonic()
            gateway.process.send_signal(signal.SIGTERM)
            assert idle.recv(1) == b""
            assert time.monotonic() - began < 2
            with pytest.raises(ConnectionResetError):
                owed.recv(1)
            assert time.monotonic() - began >= 1.9
            for sock in (idle, owed, instance):
                sock.close()
    (stopped,) = gateway.events("stopped")
    assert stopped["connections_cut"] == 1
    closed = {line["listener"]: line for line in gateway.events("connection_closed")}
    assert {line["reason"] for line in closed.values()} == {"drained"}
    assert "error" not in closed["l"]
    assert "not ended within" in closed["silent"]["error"]


# ---- descriptors ----


def test_running_out_of_descriptors_pauses_and_recovers(tmp_path: Path, background: Background) -> None:
    """It is said once, costs no busy loop, hurts nobody who is connected, and ends with the shortage."""
    run = Run(tmp_path, config_of(background.instances, free_port(), workers=1))
    with run.started() as gateway, background.load(run.address, long=5) as load:
        (pid,) = gateway.ready["workers"]
        load.goes_on()
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used, limits[1]))
        waiting = [socket.create_connection(run.address, PATIENCE) for _ in range(5)]
        wait_until(lambda: gateway.events("accept_failed"))
        before = cpu_seconds(pid)
        load.goes_on()
        time.sleep(1.0)
        assert cpu_seconds(pid) - before < 0.5
        assert len(gateway.events("accept_failed")) == 1
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        for client in waiting:
            client.settimeout(PATIENCE)
            client.sendall(b"at last")
            assert client.recv(100) == b"at last"
            client.close()
        wait_until(lambda: gateway.events("accept_recovered"))
    unharmed(load)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
