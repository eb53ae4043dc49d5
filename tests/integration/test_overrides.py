"""Operators drain endpoints and weigh them, and nobody who is served loses anything by it."""

import contextlib
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tcpgw.client import SyncClient
from tcpgw.service import Service
from tests.support.load import Background
from tests.support.monitoring import Watched
from tests.support.processes import PATIENCE, Address, free_port, wait_until
from tests.support.rpc_ends import served
from tests.support.workers import Run, config_of, exchange_often, runs, unharmed


@pytest.fixture
def background() -> Iterator[Background]:
    with Background(instances=2) as background:
        yield background


def text(address: Address) -> str:
    return f"{address[0]}:{address[1]}"


def spread(run: Run, background: Background) -> list[int]:
    """How many of 40 connections each instance gets."""
    return list(background.spread(lambda: exchange_often(run.address, 40)).values())


def drained(run: Run) -> set[str]:
    """By what `status` says."""
    return {
        endpoint
        for endpoint, one in run.status()["services"]["s"]["endpoints"].items()
        if one.get("override") == "drained"
    }


def until_followed(run: Run, background: Background, expected: Callable[[list[int]], bool]) -> None:
    """Workers take up what was said within moments."""
    wait_until(lambda: expected(spread(run, background)))


def test_a_drain_disturbs_nobody(tmp_path: Path, background: Background) -> None:
    """New connections go elsewhere, those there go on, and undrain gives it its share again."""
    run = Run(tmp_path, config_of(background.instances, free_port()))
    first = text(background.instances[0])
    with run.started() as gateway, background.load(run.address, long=12, short=4) as load:
        load.goes_on()
        told = run.command("drain", first)
        assert (told.returncode, told.stdout) == (0, f"s: {first} is drained\n")
        assert "ends with the gateway's process: gateway.state_dir is not set." in told.stderr
        until_followed(run, background, lambda found: found[0] == 0)
        load.goes_on()
        assert load.closed == 0
        (endpoint,) = (
            one for name, one in run.status()["services"]["s"]["endpoints"].items() if name == first
        )
        assert endpoint["inflight"] > 0  # the long ones that were there
        assert (endpoint["weight"], endpoint["given_weight"]) == (0, 1)
        assert "drained by operator" in run.command("status").stdout
        assert run.command("drain", first).stdout == f"s: {first} is drained already\n"

        told = run.command("drain", first, "--wait", "1s")
        assert told.returncode == 1
        assert "are still in flight there; it stays drained" in told.stderr
        load.stop()
        wait_until(lambda: not load.connected)
        told = run.command("drain", first, "--wait", "20")
        assert (told.returncode, told.stdout.splitlines()[-1]) == (0, "nothing is in flight there")

        told = run.command("undrain", first)
        assert told.stdout == f"s: {first} is no longer drained: weight 1, as discovery says\n"
        until_followed(run, background, lambda found: min(found) > 5)
    unharmed(load)
    events = [
        line["event"] for line in gateway.events("endpoint_drained") + gateway.events("endpoint_undrained")
    ]
    assert events == ["endpoint_drained", "endpoint_undrained"]


def test_what_cannot_be_drained_is_refused(tmp_path: Path, background: Background) -> None:
    """With 2 and the reason; the last one only by force."""
    run = Run(tmp_path, config_of(background.instances, free_port()))
    first, second = map(text, background.instances)
    with run.started():
        for arguments, why in (
            (("10.0.0.1",), "is not an endpoint"),
            (("10.0.0.1:80",), "no service has an endpoint 10.0.0.1:80"),
            ((first, "--service", "x"), "no service is called 'x': there are s"),
        ):
            told = run.command("drain", *arguments)
            assert (told.returncode, told.stdout) == (2, "")
            assert why in told.stderr
        assert run.command("drain", first, "--service", "s").returncode == 0
        told = run.command("drain", second)
        assert told.returncode == 2
        assert f"{second} is the last usable endpoint of service s (others: {first} weight 0)" in told.stderr
        assert drained(run) == {first}
        assert run.command("drain", second, "--force").returncode == 0
        assert drained(run) == {first, second}
        for endpoint in (first, second):
            assert run.command("undrain", endpoint).returncode == 0


def test_a_weight_shifts_the_split(tmp_path: Path, background: Background) -> None:
    """At once, and "auto" gives back what discovery says."""
    run = Run(tmp_path, config_of(background.instances, free_port()))
    first = text(background.instances[0])
    with run.started():
        told = run.command("weight", first, "19")
        assert told.stdout == f"s: {first}: weight 19 (discovery: 1)\n"
        until_followed(run, background, lambda found: found[0] > 40 * 0.8)
        assert "19 (discovery: 1)" in run.command("status").stdout
        told = run.command("weight", first, "auto")
        assert told.stdout == f"s: {first}: weight 1, as discovery says\n"
        until_followed(run, background, lambda found: min(found) > 8)
        for weight in ("0", "x", "65536"):
            told = run.command("weight", first, weight)
            assert told.returncode == 2
            assert "1 to 65535, or auto" in told.stderr


@pytest.mark.parametrize("kept", [True, False])
def test_a_drain_outlives_what_happens_to_a_gateway(
    tmp_path: Path, background: Background, *, kept: bool
) -> None:
    """A reload always; with a state_dir an upgrade and a restart too, in whose first moments nothing goes
    there either.
    """
    port = free_port()
    settings = f'state_dir = "{tmp_path}/state"' if kept else 'unsupervised = "5s"'

    def config(workers: int) -> str:
        # The load never pauses, so who has to leave is cut at hard_stop.
        return config_of(background.instances, port, gateway=settings, workers=workers, hard_stop="60s")

    run = Run(tmp_path, config(2))
    first = text(background.instances[0])
    with run.started() as gateway, background.load(run.address, long=4, short=2) as load:
        told = run.command("drain", first)
        assert bool(told.stderr) is not kept
        run.file.write_text(config(1))
        gateway.process.send_signal(signal.SIGHUP)
        wait_until(lambda: gateway.events("reloaded"))
        assert drained(run) == {first}
        assert spread(run, background)[0] == 0

        assert run.command("upgrade").returncode == 0
        expected = {first} if kept else set()
        assert drained(run) == expected
        load.stop()
        wait_until(lambda: not load.connected)
        assert (spread(run, background)[0] == 0) is kept
        assert gateway.process.wait(PATIENCE) == 0
    unharmed(load)
    successor = run.status()["pid"]
    os.kill(successor, signal.SIGTERM)
    wait_until(lambda: not runs(successor))
    if kept:
        run.log.unlink()
        with run.started():
            assert spread(run, background)[0] == 0
            assert drained(run) == {first}
            assert run.command("undrain", first).stderr == ""
        run.log.unlink()
        with run.started():
            assert drained(run) == set()


@contextlib.contextmanager
def asked(address: Address) -> Iterator[Counter[str]]:
    """Calls one after the other on three connections, by who answered or what went wrong."""
    counts: Counter[str] = Counter()
    over = threading.Event()

    def ask() -> None:
        with SyncClient(text(address)) as client:
            while not over.is_set():
                try:
                    counts[client.call("who", timeout=PATIENCE)] += 1
                except Exception as exc:  # noqa: BLE001 - that is what is counted
                    counts[repr(exc)] += 1

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield counts
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_a_drain_loses_no_request(tmp_path: Path) -> None:
    """Clients keep their connections, and their next requests go elsewhere; nothing is left in flight."""
    with (
        served(Service({"who": lambda: "one"})) as one,
        served(Service({"who": lambda: "two"})) as two,
    ):
        instances = [(host, int(port)) for host, port in (each.split(":") for each in (one, two))]
        listener = 'mode = "rpc"\ncodec = "msgpack-rpc"'
        config = config_of(instances, free_port(), more=listener).replace(
            'balance = { key = "source_ip_port", bounded_load = 0 }', 'balance = { policy = "round_robin" }'
        )
        run = Run(tmp_path, config)
        with run.started(), asked(run.address) as counts:
            wait_until(lambda: min(counts["one"], counts["two"]) > 50)
            told = run.command("drain", one, "--wait", "10s")
            assert told.returncode == 0, told.stderr
            counts.clear()
            wait_until(lambda: counts["two"] > 200)
            assert set(counts) == {"two"}
            assert run.command("undrain", one).returncode == 0
            wait_until(lambda: counts["one"] > 50)
        assert set(counts) == {"one", "two"}


def test_a_weight_is_given_and_reset_over_http(tmp_path: Path, background: Background) -> None:
    """Null gives back what discovery says; `undrain` does not, and leaves the weight that was given."""
    run = Watched(tmp_path, background.instances)
    first = text(background.instances[0])

    def now() -> list[object]:
        one = run.status()["services"]["s"]["endpoints"][first]
        return [one["weight"], one.get("override")]

    with run.started():
        run.act("weight", endpoint=first, weight=7)
        assert now() == [7, "weight"]
        run.act("undrain", endpoint=first)
        assert now() == [7, "weight"]
        run.act("weight", endpoint=first, weight=None)
        assert now() == [1, None]
