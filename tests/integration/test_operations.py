"""What operators do and what happens to them: instances die and come, versions are split, gateways end."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tcpgw.app.gateway import Gateway
from tcpgw.config.load import loads
from tcpgw.demo.cloud import Cloud
from tests.support.command import started, tcpgw
from tests.support.instances import (
    Instance,
    account,
    ask_all,
    clients,
    endpoints,
    events,
    listener,
    modelarts,
    moved,
    running,
    until_logged,
)
from tests.support.processes import PATIENCE, GatewayProcess, free_port, relaying, wait_until
from tests.support.streams import dial, listening

# Maglev moves about 1 key in 1000 more than it must; the ring moves none.
STRAY = {"maglev": 0.03, "ring": 0.0}


# ---- instances come and go ----


@pytest.mark.parametrize("policy", ["maglev", "ring"])
async def test_a_killed_instance_costs_five_of_its_own_clients_one_more_try(policy: str) -> None:
    """No client fails when an instance dies, is taken from the list and comes back; only its keys move.

    Five are refused by it, then it is ejected and nobody tries it.
    """
    keys = clients(120)
    async with running(5) as instances, Cloud({"s": endpoints(instances)}, calls_per_minute=2000) as cloud:
        config = account(cloud) + modelarts(policy=policy) + listener()
        with capture_logs() as logs:
            async with Gateway(loads(config, Path())) as gateway:
                before = await ask_all(gateway, keys)
                victim = instances[1]
                its_keys = {key for key, endpoint in before.items() if endpoint == victim.endpoint}
                assert 3 <= len(its_keys) <= 60

                victim.kill()
                dead = await ask_all(gateway, keys)
                assert moved(before, dead) == its_keys
                assert len({dead[key] for key in its_keys}) > 1
                second_tries = [line for line in events(logs, "connection_closed") if line["tries"] > 1]
                assert {line["tries"] for line in second_tries} == {2}
                tried = [key for key in keys if key in its_keys][:5]
                assert [line["client"].partition(":")[0] for line in second_tries] == tried

                cloud.services["s"].remove(victim.endpoint)
                await until_logged(logs, "snapshot_published", 2)
                unlisted = await ask_all(gateway, keys)
                assert its_keys <= moved(before, unlisted)
                assert len(moved(before, unlisted) - its_keys) <= STRAY[policy] * len(keys)

                host, _, port = victim.endpoint.rpartition(":")
                instances.append(await Instance.start(host, int(port)))
                cloud.services["s"].append(victim.endpoint)
                await until_logged(logs, "snapshot_published", 3)
                assert await ask_all(gateway, keys) == before


@pytest.mark.parametrize("policy", ["maglev", "ring"])
async def test_a_new_instance_takes_its_share_and_no_more(policy: str) -> None:
    """The sixth of six gets about a sixth of the keys; all other keys and all connections stay."""
    keys = clients(200)
    async with running(5) as instances, Cloud({"s": endpoints(instances)}, calls_per_minute=2000) as cloud:
        config = account(cloud) + modelarts(policy=policy) + listener()
        with capture_logs() as logs:
            async with Gateway(loads(config, Path())) as gateway:
                before = await ask_all(gateway, keys)
                host, _, port = gateway.listeners["l"].address.rpartition(":")
                held = [dial((host, int(port)), source=key) for key in keys[:20]]
                for client, key in zip(held, keys, strict=False):
                    assert (await client.read(len(before[key]) + 1)).decode() == f"{before[key]}\n"

                instances.append(await Instance.start())
                newcomer = instances[-1].endpoint
                cloud.services["s"].append(newcomer)
                await until_logged(logs, "snapshot_published", 2)
                after = await ask_all(gateway, keys)

                astray = {key for key in moved(before, after) if after[key] != newcomer}
                assert len(astray) <= STRAY[policy] * len(keys)
                assert len(keys) / 6 / 3 <= len(moved(before, after)) <= len(keys) / 6 * 2
                for client in held:
                    await client.send(b"still there?")
                    assert await client.read(12) == b"still there?"
                    client.close()


# ---- several gateways ----


@pytest.mark.parametrize("policy", ["maglev", "ring"])
async def test_gateways_agree_and_explain_tells_the_same(policy: str, tmp_path: Path) -> None:
    """Gateways that were told the same weighted instances, each in its own way, choose alike for every key.

    `tcpgw explain` names that choice.
    """
    keys = clients(80)
    balance = f'balance = {{ policy = "{policy}", bounded_load = 0 }}'
    async with running(4) as instances:
        members = [
            {"address": endpoint, "weight": weight}
            for endpoint, weight in zip(endpoints(instances), (1, 2, 3, 1), strict=True)
        ]
        (tmp_path / "list.json").write_text(json.dumps([members[3], *reversed(members)]))
        static = ", ".join(f'{{ address = "{m["address"]}", weight = {m["weight"]} }}' for m in members)
        discoveries = [
            f'discovery = {{ type = "static", endpoints = [{static}] }}',
            'discovery = { type = "file", path = "list.json" }',
        ]
        configs = [f'[[service]]\nname = "s"\n{how}\n{balance}\n{listener()}' for how in discoveries]
        with capture_logs():
            async with (
                Gateway(loads(configs[0], tmp_path)) as one,
                Gateway(loads(configs[1], tmp_path)) as other,
            ):
                chosen = await ask_all(one, keys)
                assert await ask_all(other, keys) == chosen
        assert len(set(chosen.values())) == 4
        (tmp_path / "tcpgw.toml").write_text(configs[1])
        for key in keys[::20]:
            told = await asyncio.to_thread(
                tcpgw, "explain", "-c", tmp_path / "tcpgw.toml", "--service", "s", key
            )
            assert re.findall(r"^│ 1 +│ (\S+) ", told.out, re.MULTILINE) == [chosen[key]], told


# ---- several versions ----


async def test_a_split_keeps_each_client_with_one_version() -> None:
    """Of 90 to 10, a tenth of the clients gets the second version, always; at 80 to 20 so do some more."""
    keys = clients(400)
    async with running(4) as instances:
        first, second = endpoints(instances[:3]), endpoints(instances[3:])

        def config(weights: tuple[int, int]) -> str:
            route = "[" + ", ".join(
                f'{{ service = "v{n}", weight = {weight} }}' for n, weight in enumerate(weights, 1)
            )
            return f"""
                [[service]]
                name = "v1"
                discovery = {{ type = "static", endpoints = {json.dumps(first)} }}
                balance = {{ bounded_load = 0 }}
                [[service]]
                name = "v2"
                discovery = {{ type = "static", endpoints = {json.dumps(second)} }}
                balance = {{ bounded_load = 0 }}
            """ + listener(f"{route}]")

        with capture_logs() as logs:
            async with Gateway(loads(config((90, 10)), Path())) as gateway:
                before = await ask_all(gateway, keys)
                assert await ask_all(gateway, keys[:100]) == {key: before[key] for key in keys[:100]}
            async with Gateway(loads(config((80, 20)), Path())) as gateway:
                after = await ask_all(gateway, keys)
    few = {key for key, endpoint in before.items() if endpoint in second}
    more = {key for key, endpoint in after.items() if endpoint in second}
    assert 0.06 < len(few) / len(keys) < 0.14
    assert 0.15 < len(more) / len(keys) < 0.25
    assert few < more
    assert moved(before, after) == more - few
    assert set(before.values()) == {*first, *second}
    assert {line["service"] for line in events(logs, "connection_closed")} == {"v1", "v2"}


async def test_a_version_without_weight_gets_nobody() -> None:
    """Weight 0 in a route keeps a service known and unused; the whole goes to the others."""
    async with running(2) as instances:
        services = "".join(
            f"""
            [[service]]
            name = "v{number}"
            discovery = {{ type = "static", endpoints = ["{instance.endpoint}"] }}
            """
            for number, instance in enumerate(instances, 1)
        )
        route = '[{ service = "v1", weight = 0 }, { service = "v2", weight = 5 }]'
        with capture_logs():
            async with Gateway(loads(services + listener(route), Path())) as gateway:
                assert set((await ask_all(gateway, clients(30))).values()) == {instances[1].endpoint}
                assert gateway.pools["v1"].members


# ---- the process ----


@contextlib.contextmanager
def connected(
    gateway: GatewayProcess, instance: socket.socket
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client's connection through the gateway, and the instance's end of it."""
    instance.settimeout(PATIENCE)
    with socket.create_connection(gateway.address(), PATIENCE) as client, instance.accept()[0] as other:
        other.settimeout(PATIENCE)
        yield client, other


def accepts(address: tuple[str, int]) -> bool:
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection(address, PATIENCE):
        return True
    return False


def silent_service(api: socket.socket, *, wait: str) -> str:
    """A service `silent` whose API does not answer."""
    return f"""
        [cloud.modelarts]
        endpoint = "http://127.0.0.1:{api.getsockname()[1]}"
        project_id = "p"
        auth = {{ type = "token", token = "t" }}
        timeout = "1m"
    """ + modelarts("silent", more=f'wait = "{wait}"')


def api_called(api: socket.socket) -> bool:
    with contextlib.suppress(BlockingIOError):
        api.accept()[0].detach()  # left open: closing it would be an answer
        return True
    return False


def test_ready_is_said_once_when_clients_are_accepted(tmp_path: Path) -> None:
    """While a start waits for discovery clients are refused, and `ready` comes with the first that is not."""
    address = ("127.0.0.1", free_port())
    with listening() as api, listening() as instance:  # an API that takes connections and says nothing
        silent = silent_service(api, wait="700ms")
        config = relaying([instance.getsockname()]).replace("127.0.0.1:0", f"127.0.0.1:{address[1]}")
        config += '[gateway]\ndrain = "100ms"\nhard_stop = "200ms"\n'
        with started(tmp_path, silent + config) as run:
            wait_until(lambda: api_called(api))
            assert not accepts(address)
            assert '"ready"' not in run.log.read_text()
            wait_until(lambda: accepts(address))
            accepted_at = time.time()
            ready = run.ready().ready
            run.signal(signal.SIGTERM)
            log = run.end()
    assert datetime.fromisoformat(ready["ts"]).timestamp() < accepted_at + 2.0
    assert ready["listeners"] == {"l": f"127.0.0.1:{address[1]}"}
    assert ready["endpoints"] == {"silent": 0, "s": 1}
    # How many workers there are, and whether their connections fit, depends on the machine.
    incidental = {"connection_closed", "max_connections_lowered", "worker_ready", "worker_ended"}
    assert [line["event"] for line in log if line["event"] not in incidental] == [
        "snapshot_published", "no_first_snapshot", "ready", "draining", "stopped"
    ]  # fmt: skip


def test_a_bind_that_fails_is_one_readable_line(tmp_path: Path) -> None:
    """A port that is taken ends `run` with 1 and names the address, whatever other listeners there are."""
    with listening() as taken:
        bind = "{}:{}".format(*taken.getsockname())
        config = relaying([("127.0.0.1", 9)]) + listener(name="taken", bind=bind)
        with started(tmp_path, config) as run:
            lines = run.end(code=1)
    assert [line["event"] for line in lines if line["event"] != "max_connections_lowered"] == ["stopped"]
    assert lines[-1]["level"] == "error"
    assert lines[-1]["error"] == f"cannot listen on {bind}: Address already in use"


def test_few_open_files_let_clients_wait_and_not_fail(tmp_path: Path) -> None:
    """Where `ulimit -n` is too low for max_connections, it is lowered and said; who is beyond it waits."""
    with contextlib.ExitStack() as stack, listening() as instance:
        config = relaying([instance.getsockname()]) + "[gateway]\nworkers = 1\n"
        run = stack.enter_context(started(tmp_path, config, open_files=200))
        gateway = run.ready()
        (lowered,) = gateway.events("max_connections_lowered")
        limit = lowered["max_connections"]["l"]
        assert lowered["open_files"] == 200
        assert 10 < limit < 100
        held = [stack.enter_context(connected(gateway, instance)) for _ in range(limit)]
        waiting = stack.enter_context(socket.create_connection(gateway.address(), PATIENCE))
        waiting.sendall(b"patience")
        instance.settimeout(0.3)
        with pytest.raises(TimeoutError):
            instance.accept()
        for end in held.pop():
            end.close()
        instance.settimeout(PATIENCE)
        served = stack.enter_context(instance.accept()[0])
        served.settimeout(PATIENCE)
        assert served.recv(100) == b"patience"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_connections_finish(tmp_path: Path, number: int) -> None:
    """New clients are refused, the connection in flight goes on to its end, and the process ends well."""
    with listening() as instance, started(tmp_path, relaying([instance.getsockname()])) as run:
        gateway = run.ready()
        with connected(gateway, instance) as (client, other):
            run.signal(number)
            run.until("draining")
            assert not accepts(gateway.address())
            client.sendall(b"a late question")
            assert other.recv(100) == b"a late question"
            other.sendall(b"an answer")
            assert client.recv(100) == b"an answer"
            client.close()
            assert other.recv(1) == b""
        log = run.end()
    assert (log[-1]["event"], log[-1]["connections_cut"]) == ("stopped", 0)
    assert [line["reason"] for line in log if line["event"] == "connection_closed"] == ["client_fin"]


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    """It cuts what is left, which clients see as a reset, and the process ends well."""
    with (
        listening() as instance,
        started(tmp_path, relaying([instance.getsockname()])) as run,
        connected(run.ready(), instance) as (client, _),
    ):
        run.signal(signal.SIGTERM)
        run.until("draining")
        run.signal(signal.SIGTERM)
        log = run.end()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert (log[-1]["event"], log[-1]["connections_cut"]) == ("stopped", 1)
    assert [line["reason"] for line in log if line["event"] == "connection_closed"] == ["shutdown"]


def test_draining_ends_with_its_time(tmp_path: Path) -> None:
    """Quiet connections are ended within gateway.drain; one that waits for its answer is cut at
    gateway.hard_stop, and counted.
    """
    config = '[gateway]\ndrain = "200ms"\nhard_stop = "3s"\n'
    with (
        listening() as instance,
        started(tmp_path, config + relaying([instance.getsockname()])) as run,
        connected(run.ready(), instance) as (quiet, _),
        connected(run.ready(), instance) as (busy, other),
    ):
        busy.sendall(b"a question")
        assert other.recv(100) == b"a question"
        began = time.monotonic()
        run.signal(signal.SIGTERM)
        assert quiet.recv(1) == b""
        assert time.monotonic() - began < 2.8
        quiet.close()
        with pytest.raises(ConnectionResetError):
            busy.recv(1)
        assert time.monotonic() - began > 2.9
        log = run.end()
    assert [line["reason"] for line in log if line["event"] == "connection_closed"] == ["drained", "drained"]
    assert log[-1]["connections_cut"] == 1


def test_a_signal_ends_a_start_that_waits(tmp_path: Path) -> None:
    """Whoever gives up on a start that waits for discovery does not have to wait with it."""
    with listening() as api:
        config = silent_service(api, wait="1h") + listener('"silent"')
        with started(tmp_path, config) as run:
            wait_until(lambda: api_called(api))
            run.signal(signal.SIGTERM)
            log = run.end()
    assert (log[-1]["event"], log[-1]["connections_cut"]) == ("stopped", 0)
    assert "ready" not in [line["event"] for line in log]


def test_a_bug_is_one_line_of_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no one foresaw ends the process with 1, and the traceback stands in a line like any other."""
    (tmp_path / "sitecustomize.py").write_text(
        "from tcpgw.discovery.file import FileSource\n"
        "async def fetch(self): raise RuntimeError('a bug')\n"
        "FileSource.fetch = fetch\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    config = '[[service]]\nname = "s"\ndiscovery = { type = "file", path = "list.json" }\n' + listener()
    with started(tmp_path, config) as run:
        last = run.end(code=1)[-1]
    assert (last["event"], last["level"]) == ("crashed", "error")
    assert "RuntimeError: a bug" in last["exception"]
