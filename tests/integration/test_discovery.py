"""The whole gateway before the emulated cloud: what clients and operators see of every kind of answer."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tcpgw.app.gateway import Gateway
from tcpgw.demo.cloud import Cloud, Fault
from tests.support import processes
from tests.support.instances import (
    Instance,
    account,
    ask,
    ask_all,
    clients,
    endpoints,
    events,
    listener,
    members,
    modelarts,
    moved,
    running,
    serving,
    until_logged,
)
from tests.support.streams import in_time, until

Need = Callable[[str], str]

KEYS = clients(20)
# How much faster than the real one the cloud's minute goes where the budget itself is at stake.
HASTE = 100


# ---- answers that are none ----


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (401, ["401", "APIG.0301", "check cloud.modelarts.auth"]),
        (403, ["403", "ModelArts.0212", "ModelArts role", "cloud.modelarts.project_id"]),
        (404, ["404", "ModelArts.3502", "check the service's discovery.service_id"]),
        (429, ["429", "APIG.0308", "lower cloud.modelarts.calls_per_minute"]),
        (500, ["500", "ModelArts.0010", "the fault is the cloud's"]),
        ("garbage", ["the answer is not JSON", "504 Gateway Time-out"]),
        ("timeout", ["no whole answer within 0.3 s", "check cloud.modelarts.endpoint"]),
        ("drip", ["no whole answer within 0.3 s", "check cloud.modelarts.endpoint"]),
    ],
)
async def test_a_failing_api_changes_nothing_for_clients(fault: Fault, said: list[str]) -> None:
    """While it fails every key keeps its instance, the log says why and what to do, and it ends by itself."""
    async with running(4) as instances, Cloud({"s": endpoints(instances)}, calls_per_minute=2000) as cloud:
        cloud.retry_after = "1" if fault == 429 else None
        async with serving(account(cloud) + modelarts() + listener()) as (gateway, logs):
            before = await ask_all(gateway, KEYS)
            version = gateway.pools["s"].snapshot

            cloud.fault = fault
            failed = await until_logged(logs, "discovery_failed")
            calls = cloud.api_calls
            if fault != 429:  # otherwise the cloud said to wait
                await until(lambda: cloud.api_calls > calls)
            assert await ask_all(gateway, KEYS) == before

            cloud.fault = None
            await until_logged(logs, "discovery_recovered")
            assert await ask_all(gateway, KEYS) == before
            assert gateway.pools["s"].snapshot is version
        assert failed["service"] == "s"
        assert all(words in failed["error"] for words in said), failed["error"]
        assert cloud.password not in str(logs)
        assert cloud.throttled_calls == 0


async def test_a_refusal_for_haste_is_honoured_to_the_second() -> None:
    """After a 429 no service of that user calls before the time that the cloud named is over."""
    async with running(2) as instances:
        services = {name: endpoints(instances) for name in ("s", "t")}
        async with Cloud(services, calls_per_minute=2000) as cloud:
            cloud.retry_after = "1"
            config = account(cloud) + modelarts("s") + modelarts("t") + listener()
            async with serving(config) as (_, logs):
                cloud.fault = 429
                paused = await until_logged(logs, "calls_paused")
                refused_at, calls = time.monotonic(), cloud.api_calls
                cloud.fault = None
                await until(lambda: cloud.api_calls > calls)
                assert 0.95 < time.monotonic() - refused_at < 5
            assert 1 <= paused["seconds"] <= 1.1
            assert paused["cloud"] == "cloud.modelarts"


async def test_a_token_that_ends_early_costs_one_more_call() -> None:
    """A revoked token is renewed at the 401, which nobody hears of as a failure."""
    async with running(2) as instances, Cloud({"s": endpoints(instances)}, calls_per_minute=2000) as cloud:
        async with serving(account(cloud) + modelarts() + listener()) as (gateway, logs):
            cloud.revoke_tokens()
            await until(lambda: cloud.token_calls == 2)
            cloud.services["s"].pop()
            await until(lambda: members(gateway) == set(endpoints(instances[:1])))
        assert not events(logs, "discovery_failed")
        assert cloud.token_calls == 2


async def test_one_failure_is_one_line() -> None:
    """An API that fails the same way call after call fills no log, though each answer has its own id."""
    async with running(1) as instances, Cloud({"s": endpoints(instances)}, calls_per_minute=2000) as cloud:
        async with serving(account(cloud) + modelarts() + listener()) as (_, logs):
            cloud.fault = 500
            calls = cloud.api_calls
            await until(lambda: cloud.api_calls >= calls + 4)
        assert len(events(logs, "discovery_failed")) == 1


# ---- answers that are suspect ----


@pytest.mark.parametrize(("fault", "left"), [("empty", 0), ("half", 2)])
async def test_a_sudden_loss_is_not_believed_at_once(fault: Fault, left: int) -> None:
    """An empty answer, or less than half of the list, is held back and said; when it goes, nothing was."""
    async with running(5) as instances, Cloud({"s": endpoints(instances)}, calls_per_minute=2000) as cloud:
        async with serving(account(cloud) + modelarts(refresh="150ms") + listener()) as (gateway, logs):
            before = await ask_all(gateway, KEYS)

            cloud.fault = fault
            await until_logged(logs, "snapshot_suspect", 2)
            cloud.fault = None
            assert await ask_all(gateway, KEYS) == before

            calls = cloud.api_calls
            await until(lambda: cloud.api_calls >= calls + 3)
            assert members(gateway) == set(endpoints(instances))
        first, second = events(logs, "snapshot_suspect")
        assert first["reason"] == (
            f"the source names {left} endpoints where 5 are in force; "
            "2 further answers naming the same ones would confirm it"
        )
        assert "1 further answer naming" in second["reason"]
        assert first["version"] == 1
        assert len(events(logs, "snapshot_published")) == 1


async def test_a_loss_that_is_confirmed_twice_is_believed() -> None:
    """The third equal answer is published, and only the keys of what went have moved."""
    async with running(5) as instances, Cloud({"s": endpoints(instances)}, calls_per_minute=2000) as cloud:
        async with serving(account(cloud) + modelarts() + listener()) as (gateway, logs):
            before = await ask_all(gateway, KEYS)
            gone = set(endpoints(instances[2:]))

            cloud.services["s"] = endpoints(instances[:2])
            published = await until_logged(logs, "snapshot_published", 2)
            after = await ask_all(gateway, KEYS)
        assert moved(before, after) == {key for key, endpoint in before.items() if endpoint in gone}
        assert len(events(logs, "snapshot_suspect")) == 2
        assert (published["version"], published["endpoints"]) == (2, 2)
        assert set(published["removed"]) == gone


async def test_a_failure_between_two_answers_neither_confirms_nor_clears() -> None:
    """A loss that was said once is still believed after two more answers, whatever fails in between."""
    async with running(3) as instances, Cloud({"s": endpoints(instances)}, calls_per_minute=2000) as cloud:
        async with serving(account(cloud) + modelarts() + listener()) as (gateway, logs):
            cloud.services["s"] = endpoints(instances[:1])
            await until_logged(logs, "snapshot_suspect")
            cloud.fault = 500
            await until_logged(logs, "discovery_failed")
            assert len(members(gateway)) == 3
            cloud.fault = None
            await until_logged(logs, "snapshot_published", 2)
            assert members(gateway) == {instances[0].endpoint}
        assert len(events(logs, "snapshot_suspect")) == 2


async def test_the_end_of_all_instances_is_believed_in_the_end() -> None:
    """A list that stays empty turns clients away, with that reason; the next instance serves them again."""
    async with running(2) as instances, Cloud({"s": endpoints(instances)}, calls_per_minute=2000) as cloud:
        async with serving(account(cloud) + modelarts() + listener()) as (gateway, logs):
            cloud.services["s"] = []
            await until_logged(logs, "snapshot_published", 2)
            with pytest.raises(EOFError):
                await ask(gateway, KEYS[0])
            turned_away = await until_logged(logs, "connection_closed")

            cloud.services["s"] = endpoints(instances[1:])
            await until(lambda: members(gateway))
            assert await ask(gateway, KEYS[0]) == instances[1].endpoint
        assert turned_away["reason"] == "no_endpoint"
        assert turned_away["error"] == "service s has no endpoint that takes connections"


async def test_half_of_the_list_is_no_loss_to_doubt() -> None:
    """Two of four are published at once: that is how services scale, and keys of those two stay."""
    async with running(4) as instances, Cloud({"s": endpoints(instances)}, calls_per_minute=2000) as cloud:
        async with serving(account(cloud) + modelarts() + listener()) as (gateway, logs):
            before = await ask_all(gateway, KEYS)
            cloud.fault = "half"
            await until_logged(logs, "snapshot_published", 2)
            kept = set(endpoints(instances[:2]))
            assert members(gateway) == kept
            after = await ask_all(gateway, KEYS)
        assert moved(before, after) == {key for key, endpoint in before.items() if endpoint not in kept}
        assert not events(logs, "snapshot_suspect")


# ---- the budget ----


async def test_a_scarce_budget_is_shared_and_never_overdrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four services that would call 80 times a second get by with 6 calls a (shortened) minute.

    All of it is spent, every service hears of its change, a revoked token and a failing API are inside it,
    and the cloud has nothing to refuse.
    """
    monkeypatch.setattr("tcpgw.discovery.budget.WINDOW", 61 / HASTE)
    names, limit, began = ["a", "b", "c", "d"], 6, time.time()
    async with running(5) as instances:
        services = {name: endpoints(instances[:1]) for name in names}
        hasty = Cloud(services, calls_per_minute=limit, clock=lambda: began + (time.time() - began) * HASTE)
        async with hasty as cloud:
            config = account(cloud, calls=limit, timeout="2s") + "".join(map(modelarts, names))
            async with serving(config + listener('"a"')) as (gateway, logs):
                for name, instance in zip(names, instances[1:], strict=True):
                    cloud.services[name] = [instance.endpoint]
                calls = cloud.api_calls
                new = {name: {instance.endpoint} for name, instance in zip(names, instances[1:], strict=True)}
                await until(lambda: {name: members(gateway, name) for name in names} == new)
                assert cloud.api_calls - calls <= 3 * len(names)
                cloud.revoke_tokens()
                await until(lambda: cloud.token_calls == 2)
                cloud.fault = 500
                await until_logged(logs, "discovery_failed")
                cloud.fault = None
                await until_logged(logs, "discovery_recovered")
                assert await ask(gateway, KEYS[0], "l") == instances[1].endpoint
            minutes = (time.time() - began) * HASTE / 60
            assert cloud.throttled_calls == 0
            assert limit < cloud.api_calls <= limit * (minutes + 1)
        stretched = events(logs, "refresh_stretched")[-1]
        assert (stretched["services"], stretched["calls_per_minute"]) == (4, limit)
        assert "IAM user of their own" in stretched["hint"]


async def test_a_start_beyond_the_budget_accepts_with_what_it_has() -> None:
    """Services for whose first call no turn comes in time are told of, and do not hold up the others."""
    names = ["a", "b", "c", "d"]
    async with (
        running(1) as instances,
        Cloud({name: endpoints(instances) for name in names}, calls_per_minute=4) as cloud,
    ):
        config = account(cloud, calls=4, timeout="200ms") + "".join(
            modelarts(name, refresh="10s", more='wait = "500ms"') + listener(f'"{name}"', name)
            for name in names
        )
        async with serving(config, starts=False) as (gateway, logs):
            served = {name for name in names if members(gateway, name)}
            for name in served:
                assert await ask(gateway, KEYS[0], name) == instances[0].endpoint
        late = events(logs, "discovery_failed")
        assert len(served) == 2
        assert {line["service"] for line in late} == set(names) - served
        assert "4 calls a minute for 4 services) is spent for now" in late[0]["error"]
        assert {line["service"] for line in events(logs, "no_first_snapshot")} == set(names) - served
        assert (cloud.api_calls, cloud.throttled_calls) == (2, 0)


# ---- other sources ----


def write_list(file: Path, instances: Sequence[Instance]) -> None:
    """Replace the list as its writers should: whole."""
    unfinished = file.with_suffix(".new")
    unfinished.write_text(json.dumps(endpoints(instances)))
    unfinished.replace(file)


async def test_a_file_is_followed_without_a_restart(tmp_path: Path) -> None:
    """A new list is served; a broken one is reported, and the last good one serves until the next."""
    file = tmp_path / "instances.json"
    config = """
        [[service]]
        name = "s"
        discovery = { type = "file", path = "instances.json", refresh = "20ms" }
    """
    async with running(3) as instances:
        write_list(file, instances[:2])
        async with serving(config + listener(), tmp_path) as (gateway, logs):
            assert set((await ask_all(gateway, KEYS)).values()) == set(endpoints(instances[:2]))
            write_list(file, instances[1:])
            await until_logged(logs, "snapshot_published", 2)
            after = await ask_all(gateway, KEYS)
            assert set(after.values()) == set(endpoints(instances[1:]))

            file.write_text('["127.0.0.1:1", ')
            failed = await until_logged(logs, "discovery_failed")
            assert str(file) in failed["error"]
            assert failed["version"] == 2
            assert await ask_all(gateway, KEYS) == after
            write_list(file, instances)
            await until_logged(logs, "snapshot_published", 3)
            assert members(gateway) == set(endpoints(instances))


async def test_a_name_is_followed_without_a_restart(need: Need, tmp_path: Path) -> None:
    """Instances that the DNS adds to a name get their share of the keys."""
    hosts = tmp_path / "hosts"  # dnsmasq reads what is put there at once
    hosts.mkdir()
    (hosts / "first").write_text("127.0.7.1 instances.test\n")
    resolver = ("127.0.0.1", processes.free_port())
    command = [need("dnsmasq"), "--no-daemon", "--conf-file=/dev/null", "--pid-file=", "--no-resolv"]
    command += ["--no-hosts", f"--hostsdir={hosts}", "--bind-interfaces", "--listen-address=127.0.0.1"]
    first = await Instance.start("127.0.7.1")
    port = first.endpoint.rpartition(":")[2]
    second = await Instance.start("127.0.7.2", int(port))
    config = f"""
        [[service]]
        name = "s"
        [service.discovery]
        type = "dns"
        name = "instances.test"
        port = {port}
        resolvers = ["{resolver[0]}:{resolver[1]}"]
        refresh = "100ms"
    """
    try:
        with processes.running([*command, f"--port={resolver[1]}"], tmp_path / "dnsmasq.log", resolver):
            async with serving(config + listener()) as (gateway, _):
                assert set((await ask_all(gateway, KEYS)).values()) == {first.endpoint}
                (hosts / "second").write_text("127.0.7.2 instances.test\n")
                await until(lambda: len(members(gateway)) == 2)
                assert set((await ask_all(gateway, KEYS)).values()) == {first.endpoint, second.endpoint}
    finally:
        first.kill()
        second.kill()


# ---- publishing while serving ----


async def test_clients_notice_nothing_of_a_list_that_changes() -> None:
    """Clients that connect all the while are served without exception, through every published list."""
    served = 0

    async def keep_asking(gateway: Gateway, source: str) -> None:
        nonlocal served
        while True:
            await ask(gateway, source)
            served += 1

    async with running(6) as instances, Cloud({"s": endpoints(instances)}, calls_per_minute=2000) as cloud:
        config = account(cloud) + modelarts(policy="maglev") + listener()
        async with serving(config) as (gateway, logs):
            tasks = [asyncio.create_task(keep_asking(gateway, source)) for source in KEYS[:4]]
            for count in (4, 6, 3, 5, 6):
                published = len(events(logs, "snapshot_published"))
                cloud.services["s"] = endpoints(instances[:count])
                await until_logged(logs, "snapshot_published", published + 1)
            for task in tasks:
                assert not task.done(), task
                task.cancel()
            await in_time(asyncio.wait(tasks))
    assert served > 50
    assert all(line["tries"] == 1 for line in events(logs, "connection_closed") if line["endpoint"])
