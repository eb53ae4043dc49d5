"""Pictures of gateways that are only told of."""

from pathlib import Path
from typing import Any

from tcpgw.app.monitor.picture import Picture, WorkerPicture
from tcpgw.config import schema
from tcpgw.config.load import loads
from tcpgw.endpoints import Endpoint, Member, Snapshot
from tests.support.processes import relaying

NOW = 1_700_000_000.0

# A configuration of one service, s, whose source is asked again and again.
ASKED = """
[cloud.c]
endpoint = "https://modelarts.example.com"
project_id = "0123456789abcdef0123456789abcdef"
auth = { type = "token", token = "t" }
[[service]]
name = "s"
discovery = { type = "modelarts", service_id = "11111111-2222-3333-4444-555555555555", cloud = "c" }
[[listener]]
name = "l"
bind = "127.0.0.1:0"
route = "s"
"""


def snapshot(*weights: int, service: str = "s", version: int = 7, taken_at: float = NOW - 5) -> Snapshot:
    """Of 10.0.0.1:1 and so on, with these weights."""
    members = tuple(Member(Endpoint(f"10.0.0.{place}", 1), weight) for place, weight in enumerate(weights, 1))
    return Snapshot(service, version, members, taken_at)


def config(text: str = "") -> schema.Config:
    """By default of one service, s, and one listener, l."""
    return loads(text or relaying([("10.0.0.1", 1)]), Path())


def worker(slot: int = 1, state: str = "accepting", pid: int = 0, lag: float = 0.25) -> WorkerPicture:
    return WorkerPicture(slot, pid or slot + 10, state, connections=4, age=9.0, lag=lag)


def picture(**changes: Any) -> Picture:
    """Of a gateway that has not been asked for anything yet, but for what is told."""
    known: dict[str, Any] = {
        "at": NOW,
        "version": "1.2.3",
        "pid": 10,
        "state": "ready",
        "since": NOW - 60,
        "path": "gw.toml",
        "lag": 0.5,
        "config": config(),
        "workers": [],
        "deaths": 0,
        "totals": {},
        "addresses": {},
        "snapshots": {},
        "health": {},
        "discovery": {},
        "clouds": {},
    }
    return Picture(**known | changes)
