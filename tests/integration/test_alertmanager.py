"""A real Alertmanager is told of an alert, and that it is over."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tcpgw.alerts.rules import Labels, Readings
from tcpgw.app.background import Background
from tcpgw.app.monitor.alerting import Alerting
from tcpgw.config.load import loads
from tcpgw.config.schema import Config
from tests.conftest import Need
from tests.support.inbox import inbox
from tests.support.processes import free_port, running
from tests.support.streams import until

SERVICE: Labels = (("service", "s"),)
PANIC = {"panic": {SERVICE: 1.0}}
CALM = {"panic": {SERVICE: 0.0}}


@contextlib.asynccontextmanager
async def alertmanager(binary: str, folder: Path, webhook: str) -> AsyncIterator[str]:
    """Run one that tells `webhook`, and yield its URL."""
    route = {"receiver": "hook", "group_wait": "0s", "group_interval": "1s"}
    receiver = {"name": "hook", "webhook_configs": [{"url": webhook}]}
    (folder / "am.yml").write_text(json.dumps({"route": route, "receivers": [receiver]}))
    port = free_port()
    command = [
        binary,
        f"--config.file={folder / 'am.yml'}",
        f"--storage.path={folder}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    ]
    with running(command, folder / "am.log", ("127.0.0.1", port)):
        yield f"http://127.0.0.1:{port}"


async def alerts_of(url: str) -> list[dict[str, Any]]:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/api/v2/alerts") as response:
        found: list[dict[str, Any]] = await response.json()
        return found


@pytest.fixture
async def background() -> AsyncIterator[Background]:
    made = Background()
    yield made
    await made.close()


async def test_alertmanager_hears_of_an_alert_and_of_its_end(
    need: Need, tmp_path: Path, background: Background
) -> None:
    """It has the alert with labels and texts, tells its own receivers, and tells them when it is over.

    Its webhooks and the gateway's have one form, so one receiver reads both.
    """
    async with (
        inbox() as theirs,
        inbox() as ours,
        alertmanager(need("prometheus-alertmanager"), tmp_path, theirs.url) as url,
    ):
        config = _config(url, ours.url)
        alerting = Alerting(config, background)
        alerting.follow(config)
        readings = {**PANIC}
        background.start(_looking(alerting, readings), "a supervisor")
        await until(lambda: theirs.told and ours.told)
        (found,) = await alerts_of(url)
        labels = {"alertname": "TcpgwPanic", "severity": "critical", "service": "s", "instance": "gw-1"}
        assert found["labels"] == labels
        assert found["annotations"]["summary"].startswith("So few instances of s")
        assert found["status"]["state"] == "active"
        readings |= CALM
        await until(lambda: len(theirs.told) == len(ours.told) == 2)
        assert theirs.told == ours.told == ["firing TcpgwPanic", "resolved TcpgwPanic"]
        for one, other in zip(theirs.messages, ours.messages, strict=True):
            assert one["body"].keys() == other["body"].keys()
            assert one["body"]["alerts"][0].keys() == other["body"]["alerts"][0].keys()
            assert one["body"]["commonLabels"] == other["body"]["commonLabels"] == labels
        assert await alerts_of(url) == []


async def _looking(alerting: Alerting, readings: Readings) -> None:
    while True:
        alerting.look(readings)
        await asyncio.sleep(0.1)


def _config(alertmanager: str, webhook: str) -> Config:
    return loads(
        f"""
        [alerts]
        labels = {{ instance = "gw-1" }}
        group_wait = 0
        group_interval = 1
        keep_firing_for = 0
        [alerts.webhook.hook]
        url = "{webhook}"
        [alerts.alertmanager]
        urls = ["{alertmanager}"]
        [[service]]
        name = "s"
        discovery = {{ type = "static", endpoints = ["127.0.0.1:1"] }}
        [[listener]]
        name = "l"
        bind = "127.0.0.1:0"
        route = "s"
        """,
        Path("/etc"),
    )
