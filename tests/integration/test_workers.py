"""A gateway of several processes, and what happens to its clients while those come and go."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.load import Background
from tests.support.processes import PATIENCE, free_port, wait_until
from tests.support.workers import Run, config_of, exchange, exchange_often, runs, unharmed


@pytest.fixture
def background() -> Iterator[Background]:
    with Background(instances=2) as background:
        yield background


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


def test_workers_hold_no_capabilities_and_no_secrets(
    tmp_path: Path, background: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only the supervisor needs is nowhere in them."""
    secret = "correct-horse-battery"
    monkeypatch.setenv("A_SECRET", secret)
    cloud = """
[cloud.modelarts]
endpoint = "http://127.0.0.1:9"
project_id = "p"
auth = { type = "token", token = "env:A_SECRET" }
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


def test_others_serve_for_a_worker_that_does_not_come_up(
    tmp_path: Path, background: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is hashed to its sockets does not wait for ever, and the status says that it is missing."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "is_worker = 'tcpgw.app.worker' in ' '.join(sys.orig_argv)\n"
        f"if is_worker and os.path.exists({str(tmp_path / 'broken')!r}):\n"
        "    os._exit(1)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    run = Run(tmp_path, config_of(background.instances, free_port()))
    with run.started() as gateway:
        (tmp_path / "broken").touch()
        os.kill(gateway.ready["workers"][0], signal.SIGKILL)
        with background.load(run.address, short=8) as load:
            wait_until(lambda: gateway.events("worker_stands_in"))
            load.goes_on()
            status = run.status()
            assert status["state"] == "degraded"
            assert [one["state"] for one in status["workers"]].count("accepting") == 1
            (tmp_path / "broken").unlink()
            wait_until(lambda: run.status()["state"] == "ready")
            load.goes_on()
        assert (load.short.refused, load.short.corrupted) == (0, 0)
        assert load.short.broken <= 8  # of the killed one


def test_a_worker_that_hangs_is_replaced(tmp_path: Path, background: Background) -> None:
    """After ten seconds without a word; meanwhile the others serve, and who came to it waits."""
    run = Run(tmp_path, config_of(background.instances, free_port()))
    with run.started() as gateway, background.load(run.address, short=6) as load:
        load.goes_on()
        victim = gateway.ready["workers"][0]
        os.kill(victim, signal.SIGSTOP)
        wait_until(lambda: gateway.events("worker_hung"))
        wait_until(lambda: len(gateway.events("worker_ready")) == 3)
        load.goes_on()
        assert load.short.refused == load.short.corrupted == 0
        assert load.short.broken <= 6  # what was under way in it
    (hung,) = gateway.events("worker_hung")
    assert hung["pid"] == victim


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
    with run.started(code=-signal.SIGKILL) as gateway:
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


def test_a_listener_may_be_renamed(tmp_path: Path, background: Background) -> None:
    """It keeps its sockets: nobody is refused meanwhile."""
    port = free_port()
    text = config_of(background.instances, port)
    run = Run(tmp_path, text)
    with run.started(), background.load(run.address, short=8) as load:
        for name in ("other", "l", "other"):
            load.goes_on()
            run.file.write_text(text.replace('name = "l"', f'name = "{name}"'))
            assert run.command("reload").returncode == 0
        load.goes_on()
    unharmed(load)


def test_one_socket_serves_all_workers(tmp_path: Path, background: Background) -> None:
    """A Unix socket cannot be opened twice; a new one of the same path is not refused for the old one."""
    port = free_port()
    path = tmp_path / "x.sock"
    unix = f"""
[[listener]]
name = "unix"
bind = "unix:{path}"
route = "s"
"""
    run = Run(tmp_path, config_of(background.instances, port, more=unix))
    with run.started() as gateway, contextlib.ExitStack() as held:
        clients = [held.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(40)]
        for client in clients:
            client.settimeout(PATIENCE)
            client.connect(str(path))
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        assert run.status()["listeners"]["unix"]["active"] == 40
        os.kill(gateway.ready["workers"][0], signal.SIGKILL)
        wait_until(lambda: len(gateway.events("worker_ready")) == 3)
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(str(path))
            client.sendall(b"y")
            assert client.recv(1) == b"y"


def test_connections_to_a_removed_instance_drain(tmp_path: Path, background: Background) -> None:
    """Who is idle gets FIN, who is busy goes on until it is, and each stage is counted over all workers."""
    port = free_port()
    both, one = (config_of(background.instances[:count], port) for count in (2, 1))
    run = Run(tmp_path, both)
    with run.started(), contextlib.ExitStack() as held:
        clients = []
        for _ in range(30):
            client = held.enter_context(socket.create_connection(run.address, PATIENCE))
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            clients.append(client)
        endpoints = run.status()["services"]["s"]["endpoints"]
        leaving = endpoints["{}:{}".format(*background.instances[1])]["inflight"]
        assert 0 < leaving < 30
        busy = held.enter_context(background.load(run.address, long=12))
        busy.goes_on()
        run.file.write_text(one)
        assert run.command("reload").returncode == 0

        def stages() -> dict[str, int]:
            found: dict[str, int] = run.status()["listeners"]["l"]["drains"].get("endpoint_removed", {})
            return found

        wait_until(lambda: stages().get("closed") == leaving)
        busy.goes_on()
        unharmed(busy)
        started = stages()["started"]
        assert leaving < started <= leaving + 12
        busy.stop()
        wait_until(lambda: stages()["finished"] == started - leaving)
        assert stages() == {
            "started": started, "finished": started - leaving, "closed": leaving, "reset": 0, "spared": 0
        }  # fmt: skip
        ended = 0
        for client in clients:
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                ended += client.recv(1) == b""
        assert ended == leaving


def test_two_requests_to_end_one_worker_leave_as_many_workers(tmp_path: Path, background: Background) -> None:
    """Whoever is impatient with a worker gets no second one in its slot."""
    run = Run(tmp_path, config_of(background.instances, free_port()))
    with run.started() as gateway, background.load(run.address, short=4) as load:
        (first, *_) = gateway.ready["workers"]
        os.kill(first, signal.SIGTERM)
        time.sleep(0.1)
        os.kill(first, signal.SIGTERM)
        wait_until(lambda: not runs(first))
        load.goes_on()
        wait_until(lambda: [one["state"] for one in run.status()["workers"]] == ["accepting"] * 2)
        assert sorted(one["worker"] for one in run.status()["workers"]) == [1, 2]
    unharmed(load)


def test_a_worker_that_dies_while_its_slot_goes_does_not_come_back(
    tmp_path: Path, background: Background
) -> None:
    """Whichever the supervisor hears of first."""
    port = free_port()
    run = Run(tmp_path, config_of(background.instances, port))
    with run.started() as gateway, background.load(run.address, short=4) as load:
        run.file.write_text(config_of(background.instances, port, workers=1))
        os.kill(gateway.ready["workers"][1], signal.SIGKILL)
        gateway.process.send_signal(signal.SIGHUP)
        wait_until(lambda: gateway.events("reloaded"))
        wait_until(lambda: [one["worker"] for one in run.status()["workers"]] == [1])
        time.sleep(0.5)
        assert [one["worker"] for one in run.status()["workers"]] == [1]
        load.goes_on()


def test_workers_of_a_start_that_was_killed_end(tmp_path: Path, background: Background) -> None:
    """They were told nothing yet, and nobody will."""
    run = Run(tmp_path, config_of(background.instances, free_port()))
    for seconds in (0.3, 0.4, 0.5):
        with run.log.open("ab") as log, run.process(log) as process:
            time.sleep(seconds)
            workers = run.children(process.pid)
            process.kill()
        wait_until(lambda workers=workers: not any(map(runs, workers)))  # type: ignore[misc]


def test_any_number_of_listeners_is_served(tmp_path: Path, background: Background) -> None:
    """Also more than the kernel passes on at a time."""
    more = "".join(
        f'[[listener]]\nname = "l{number}"\nbind = "127.0.0.1:0"\nroute = "s"\n' for number in range(300)
    )
    run = Run(tmp_path, config_of(background.instances, free_port(), workers=1, more=more))
    with run.started() as gateway:
        for number in (0, 150, 299):
            exchange(gateway.address(f"l{number}"), b"hello")


def test_a_stop_under_load_breaks_no_exchange(tmp_path: Path, background: Background) -> None:
    """Who is connected is served, also from the kernel's queue; who comes later is refused, and no more.

    But for the handshakes that are half done when the sockets close: the kernel resets those. A busy machine
    leaves some so for a moment.
    """
    run = Run(tmp_path, config_of(background.instances, free_port()))
    with run.started() as gateway, background.load(run.address, short=16) as load:
        load.goes_on()
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(PATIENCE) == 0
    assert load.short.refused
    reset = [error for error in load.short.errors if error.startswith("ConnectionResetError")]
    assert load.short.broken == len(reset) <= 4, load.short.errors
    assert load.short.corrupted == 0
    ended = {line["reason"] for line in gateway.events("connection_closed")}
    assert ended == {"client_fin"}
