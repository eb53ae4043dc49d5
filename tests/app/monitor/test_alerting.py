"""Alerts as the supervisor has them: what is read goes in, who is to know is told."""

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tcpgw.alerts.engine import MOST
from tcpgw.alerts.rules import Readings
from tcpgw.alerts.silences import SilenceError
from tcpgw.app.background import Background
from tcpgw.app.monitor.alerting import Alerting
from tcpgw.config.load import loads
from tcpgw.config.schema import Config
from tests.support.inbox import Inbox, inbox
from tests.support.streams import until

WALL = 1_750_000_000.0
PANIC: Readings = {"panic": {(("service", "s"),): 1.0}}
CALM: Readings = {"panic": {(("service", "s"),): 0.0}}


def config(alerts: str = "", service: str = "") -> Config:
    return loads(
        f"""
        [alerts]
        group_wait = 0
        group_interval = 1
        keep_firing_for = 0
        {alerts}
        [[service]]
        name = "s"
        discovery = {{ type = "file", path = "s.json", refresh = "1h" }}
        {service}
        [[listener]]
        name = "l"
        bind = "127.0.0.1:0"
        route = "s"
        """,
        Path("/etc"),
    )


def webhook(url: str, more: str = "") -> str:
    return f'[alerts.webhook.hook]\nurl = "{url}/hook"\n{more}'


class Alerted:
    """An Alerting with a clock."""

    def __init__(self, config: Config, background: Background) -> None:
        self.now = 1000.0
        self.alerting = Alerting(config, background, clock=lambda: self.now, wall=lambda: WALL + self.now)
        self.alerting.follow(config)

    def look(self, readings: Readings, after: float = 1.0) -> None:
        self.now += after
        self.alerting.look(readings)


async def test_everything_stands_in_the_log(background: Background) -> None:
    """When it fires and when it is over, with what an operator does next, whoever else is told."""
    alerted = Alerted(config(), background)
    with capture_logs() as lines:
        alerted.look(PANIC)
        alerted.look(PANIC)
        alerted.look(CALM, after=60)
    told = {
        "name": "TcpgwPanic",
        "severity": "critical",
        "labels": {"service": "s"},
        "value": 1.0,
        "threshold": 0.0,
        "summary": "So few instances of s are usable that all are used, the sick too",
    }
    hint = lines[0]["hint"]
    assert "health.active" in hint
    assert lines == [
        {"event": "alert_firing", "log_level": "warning", **told, "hint": hint},
        {
            "event": "alert_resolved",
            "log_level": "info",
            **told,
            "summary": f"Over: {told['summary']}",
            "seconds": 61,
        },
    ]


async def test_what_there_is_can_be_asked(background: Background) -> None:
    """As the page and the commands want it."""
    alerted = Alerted(config(), background)
    alerted.look(PANIC)
    alerted.look({"error_ratio": {(("service", "s"),): 0.5}})
    alerted.look({**PANIC, "error_ratio": {(("service", "s"),): 0.5}})
    alerted.alerting.silence("TcpgwErrorRate", {}, 60, "known")
    firing, pending, resolved = alerted.alerting.alerts()
    assert [one["state"] for one in (firing, pending, resolved)] == ["firing", "pending", "resolved"]
    assert pending == {
        "alert": "TcpgwErrorRate",
        "labels": {"service": "s"},
        "severity": "critical",
        "state": "pending",
        "since": WALL + 1002,
        "value": 0.5,
        "summary": "50 % of what s is asked fails",
        "hint": pending["hint"],
        "silenced_until": WALL + 1063,
    }
    assert (resolved["since"], firing["silenced_until"]) == (WALL + 1002, None)
    json.dumps(alerted.alerting.alerts())


async def test_a_webhook_is_told(background: Background, received: Inbox) -> None:
    """With its credentials, and of the end as well."""
    alerted = Alerted(config(webhook(received.url, 'bearer = "t"\nheaders = { X-Key = "k" }')), background)
    alerted.look(PANIC)
    alerted.look(CALM)
    await until(lambda: len(received.messages) == 2)
    assert received.told == ["firing TcpgwPanic", "resolved TcpgwPanic"]
    (message, _) = received.messages
    assert (message["path"], message["body"]["receiver"]) == ("/hook", "hook")
    assert (message["headers"]["Authorization"], message["headers"]["X-Key"]) == ("Bearer t", "k")
    assert message["body"]["commonLabels"].keys() == {"alertname", "severity", "instance", "service"}
    await until(lambda: alerted.alerting.receivers()[0]["sent"] == 2)
    assert alerted.alerting.receivers() == [
        {
            "receiver": "hook",
            "url": received.url,
            "sent": 2,
            "failed": 0,
            "dropped": 0,
            "waiting": 0,
            "error": "",
        }
    ]


async def test_each_alertmanager_is_told(background: Background, received: Inbox) -> None:
    """Of a cluster every one, again while it fires, with the operator's labels."""
    async with inbox() as other:
        urls = f'[alerts.alertmanager]\nurls = ["{received.url}", "{other.url}/am/"]'
        labels = 'labels = { instance = "gw-1", team = "ml" }'
        alerted = Alerted(config(f"{labels}\n{urls}"), background)
        for after in (1.0, 1.0, 60.0):
            alerted.look(PANIC, after)
        await until(lambda: len(received.messages) == len(other.messages) == 2)
        assert [one["path"] for one in received.messages] == ["/api/v2/alerts"] * 2
        assert other.messages[0]["path"] == "/am/api/v2/alerts"
        ((first,), (again,)) = [one["body"] for one in other.messages]
        assert first["labels"] == again["labels"]
        assert (first["labels"]["instance"], first["labels"]["team"]) == ("gw-1", "ml")
        assert first["endsAt"] < again["endsAt"]


async def test_silence_is_kept(background: Background, received: Inbox) -> None:
    """Nobody is told, but that is shown and logged; when it is ended, what still fires is told."""
    alerted = Alerted(config(webhook(received.url)), background)
    listed = alerted.alerting.silence("*", {"service": "s"}, 600, "rolling out")
    assert listed == {
        "alert": "*",
        "labels": {"service": "s"},
        "until": WALL + 1600,
        "comment": "rolling out",
    }
    assert alerted.alerting.silences() == [listed]
    alerted.look(PANIC)
    assert alerted.alerting.alerts()[0]["silenced_until"] == WALL + 1600
    assert alerted.alerting.unsilence("*", {"service": "s"}) == 1
    assert alerted.alerting.unsilence("*", {"service": "s"}) == 0
    assert alerted.alerting.receivers()[0]["waiting"] == 0
    alerted.look(PANIC)
    await until(lambda: received.told == ["firing TcpgwPanic"])
    with pytest.raises(SilenceError):
        alerted.alerting.silence("Panic", {}, 600, "")


async def test_a_reload_keeps_what_stays(background: Background, received: Inbox) -> None:
    """Alerts, silences and what receivers know; a new receiver is told of what fires already."""
    alerted = Alerted(config(webhook(received.url)), background)
    alerted.look(PANIC)
    alerted.alerting.silence("TcpgwErrorRate", {}, 600, "")
    await until(lambda: received.told == ["firing TcpgwPanic"])
    async with inbox() as other:
        both = f"{webhook(received.url)}\n[alerts.webhook.other]\nurl = '{other.url}'"
        alerted.alerting.follow(config(both))
        alerted.look(PANIC)
        await until(lambda: other.told == ["firing TcpgwPanic"])
        assert received.told == ["firing TcpgwPanic"]
        assert len(alerted.alerting.silences()) == 1
        alerted.alerting.follow(config(both, service='alerts = { panic = "off" }'))
        alerted.look(PANIC)
        await until(lambda: received.told == other.told == ["firing TcpgwPanic", "resolved TcpgwPanic"])
    alerted.alerting.follow(config())
    assert alerted.alerting.receivers() == []


async def test_who_is_asked_seldom_is_not_late_soon(background: Background) -> None:
    """The service's refresh is an hour."""
    alerted = Alerted(config(), background)
    alerted.look({"discovery_age": {(("service", "s"),): 10_000.0}})
    assert alerted.alerting.alerts() == []
    alerted.look({"discovery_age": {(("service", "s"),): 11_000.0}})
    assert [(one["alert"], one["state"]) for one in alerted.alerting.alerts()] == [
        ("TcpgwDiscoveryAge", "firing")
    ]


async def test_those_left_out_are_told_once(background: Background) -> None:
    """With their number."""
    alerted = Alerted(config(), background)
    many: Readings = {"panic": {(("service", str(number)),): 1.0 for number in range(MOST + 2)}}
    with capture_logs() as lines:
        alerted.look(many)
        alerted.look(many)
    left_out = [line for line in lines if line["event"] == "alerts_left_out"]
    assert [(line["name"], line["more"]) for line in left_out] == [("TcpgwPanic", 2)]


async def test_closing_is_soon(background: Background) -> None:
    """Whatever a receiver does, and twice is once."""

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        alerted = Alerted(config(webhook(f"http://127.0.0.1:{port}", "timeout = '1h'")), background)
        alerted.look(PANIC)
        await until(lambda: not alerted.alerting.receivers()[0]["waiting"])
        began = time.monotonic()
        await alerted.alerting.close()
        await alerted.alerting.close()
        assert time.monotonic() - began < 2
    assert alerted.alerting.receivers() == []


def test_without_receivers_nothing_is_imported_that_sends() -> None:
    """The library for that takes its time, and its memory."""
    heavy = "{'aiohttp', 'tcpgw.alerts.senders'}"
    code = f"import sys, tcpgw.app.monitor.alerting; print({heavy} & sys.modules.keys())"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "set()"
