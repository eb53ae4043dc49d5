"""Starts without the cloud's API: what is served meanwhile, and what is said."""

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tcpgw.demo.cloud import Cloud
from tests.support.instances import (
    access_key,
    account,
    ask,
    ask_all,
    clients,
    endpoints,
    events,
    listener,
    members,
    modelarts,
    running,
    serving,
    until_logged,
)
from tests.support.processes import free_port
from tests.support.streams import until

KEYS = clients(20)


async def test_a_start_without_the_api_uses_the_last_good_snapshot(tmp_path: Path) -> None:
    """It accepts at once, says how old the list is, and follows the API when it comes back."""
    port = free_port()
    cloud = Cloud({}, calls_per_minute=2000, port=port)
    state = f'[gateway]\nstate_dir = "{tmp_path}"\n'
    tables = account(cloud, f"http://127.0.0.1:{port}", auth=access_key(cloud))
    config = state + tables + modelarts() + listener()
    async with running(3) as instances:
        cloud.services["s"] = endpoints(instances)
        async with cloud, serving(config) as (gateway, _):
            before = await ask_all(gateway, KEYS)
            await until((tmp_path / "snapshots/s.json").exists)
        age_by(tmp_path / "snapshots/s.json", timedelta(hours=2, minutes=5))

        began = time.monotonic()
        async with serving(config) as (gateway, logs):
            assert time.monotonic() - began < 5
            assert await ask_all(gateway, KEYS) == before
            (failed,), (restored,) = events(logs, "discovery_failed"), events(logs, "snapshot_restored")
            assert "Connect call failed" in failed["error"]
            assert "check cloud.modelarts.endpoint" in failed["error"]
            assert (restored["endpoints"], restored["version"], restored["age"]) == (3, 1, "2 h 5 min old")

            cloud.services["s"] = endpoints(instances[:2])
            async with cloud:
                published = await until_logged(logs, "snapshot_published")
                assert members(gateway) == set(endpoints(instances[:2]))
            assert (published["version"], published["removed"]) == (2, [instances[2].endpoint])
            assert events(logs, "discovery_recovered")


def age_by(file: Path, age: timedelta) -> None:
    """Let a stored snapshot be of that age."""
    taken_at = (datetime.now(UTC) - age).isoformat()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"taken_at": taken_at}))


async def test_a_start_with_nothing_to_go_by_says_so_and_recovers() -> None:
    """Without API and stored list it waits as long as it may, turns clients away, and serves when it can."""
    port = free_port()
    cloud = Cloud({}, calls_per_minute=2000, port=port)
    tables = account(cloud, f"http://127.0.0.1:{port}", auth=access_key(cloud))
    config = tables + modelarts(more='wait = "300ms"') + listener()
    async with running(1) as instances:
        cloud.services["s"] = endpoints(instances)
        began = time.monotonic()
        async with serving(config, starts=False) as (gateway, logs):
            assert 0.3 <= time.monotonic() - began < 5
            (silent,) = events(logs, "no_first_snapshot")
            assert (silent["service"], silent["waited"]) == ("s", 0.3)
            with pytest.raises(EOFError):
                await ask(gateway, KEYS[0])
            assert (await until_logged(logs, "connection_closed"))["reason"] == "no_endpoint"
            async with cloud:
                await until_logged(logs, "snapshot_published")
                assert await ask(gateway, KEYS[0]) == instances[0].endpoint


async def test_one_silent_service_does_not_keep_the_others_down() -> None:
    """All services wait at the same time, and those that are there in time are not complained of."""
    async with running(1) as instances, Cloud({"s": endpoints(instances)}, calls_per_minute=2000) as cloud:
        missing = modelarts("missing", more='wait = "600ms"') + modelarts("too", more='wait = "500ms"')
        config = account(cloud) + missing + modelarts() + listener()
        began = time.monotonic()
        async with serving(config, starts=False) as (gateway, logs):
            assert time.monotonic() - began < 1.1
            assert await ask(gateway, KEYS[0]) == instances[0].endpoint
        assert [line["service"] for line in events(logs, "no_first_snapshot")] == ["missing", "too"]
