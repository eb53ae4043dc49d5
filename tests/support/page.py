"""What the status page is looked at with: scenes of a gateway, and a headless Chromium."""

import contextlib
import math
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, Page, async_playwright

from tcpgw.admin.source import Json
from tests.support.admin import alert, endpoint, service, view

SICK = "10.0.1.13:8080"


def calm(**more: Any) -> Json:
    """A gateway that is well: two services, one of them small."""
    ranker = [endpoint(f"10.0.1.{11 + n}:8080", share=0.25, rate=120.0 + n) for n in range(4)]
    resnet = [endpoint(f"10.0.2.{11 + n}:9000", share=0.5, rate=60.0, weight=2) for n in range(2)]
    return view([service("ranker", ranker), service("resnet", resnet, version="v2", imbalance=None)], **more)


def troubled(**more: Any) -> Json:
    """The same with something of everything that can be wrong."""
    ranker = [
        endpoint("10.0.1.11:8080", share=0.41, rate=197.2, in_flight=5),
        endpoint("10.0.1.12:8080", share=0.39, rate=187.0, in_flight=4),
        endpoint(
            SICK, "unhealthy", share=0.0, rate=0.0, failures=38, why="no connection in 1 s (3 in a row)"
        ),
        endpoint("10.0.1.14:8080", "ejected", share=0.0, rate=0.0, failures=12, why="5 failed in a row"),
        endpoint("10.0.1.15:8080", "trial", share=0.02, rate=9.6, failures=6),
        endpoint("10.0.1.16:8080", "draining", weight=0, override="drained", share=0.0, rate=0.0),
        endpoint("10.0.1.17:8080", share=0.18, rate=86.4, weight=5, given_weight=10, override="weight"),
    ]
    resnet = [endpoint(f"10.0.2.{11 + n}:9000", share=0.5, rate=60.0, weight=2) for n in range(2)]
    errors = {
        "type": "modelarts",
        "calls": 398,
        "errors": 7,
        "answered_at": None,
        "last_error": "ModelArts answered 429 (request 4f1c)",
    }
    services = [
        service("ranker", ranker, failed_rate=4.1, imbalance=1.62, p99=0.231),
        service(
            "resnet", resnet, version="v2", discovery=errors, panic=True, latency_of="connect", p50=0.0004
        ),
    ]
    alerts = [
        alert(
            "usable_endpoints",
            {"service": "ranker"},
            severity="critical",
            summary="ranker has 3 of 7 endpoints",
        ),
        alert(
            "budget_left", {"cloud": "modelarts"}, state="pending", summary="few calls are left this minute"
        ),
        alert(
            "denials", {"listener": "predict"}, silenced_until=time.time() + 3000, summary="many are denied"
        ),
        alert("worker_deaths", {}, state="resolved", summary="no worker died lately"),
    ]
    silences = [
        {
            "alert": "denials",
            "labels": {"listener": "predict"},
            "until": time.time() + 3000,
            "comment": "a scan that we know, until its owner is back on Monday",
        }
    ]
    shown = view(services, alerts=alerts, silences=silences, state="degraded", worker_deaths=1, **more)
    shown["overload"] = {"active": 1, "times": 3, "shed": 112}
    shown["clouds"][0] |= {"left": 2, "paused": 12.0}
    shown["listeners"][0]["split"] = [
        {"service": "ranker", "asked": 0.9, "seen": 0.884},
        {"service": "resnet", "asked": 0.1, "seen": 0.116},
    ]
    shown["listeners"].append(
        {
            "name": "redis",
            "address": None,
            "mode": "tcp",
            "active": 3,
            "accepted_rate": 0.0,
            "denied_rate": 0.4,
            "split": [{"service": "resnet", "asked": 1.0, "seen": None}],
        }
    )
    shown["workers"][1] |= {"state": "leaving", "cpu": 0.93, "lag": 0.182}
    return shown


def charts(shown: Json, seconds: int = 300) -> Json:
    """Five minutes before a view: waves, a burst of failures, and a gap."""
    made: Json = {}
    for one in shown["services"]:
        points: Json = {key: [] for key in ("at", "rate", "failed", "p50", "p90", "p99")}
        for back in range(seconds, 0, -1):
            if 90 < back < 110:
                continue
            wave = 1 + 0.12 * math.sin(back / 17) + 0.03 * math.sin(back * 1.7)
            burst = max(0.0, 1 - abs(back - 60) / 25)
            points["at"].append(shown["at"] - back)
            points["rate"].append(one["rate"] * wave)
            points["failed"].append(one["failed_rate"] * wave + 6 * burst)
            for key, most in (("p50", 1.2), ("p90", 2), ("p99", 5)):
                points[key].append(one[key] * wave * (1 + burst * most))
        made[one["name"]] = points
    return made


def many(number: int) -> Json:
    """A service of so many endpoints, of which the last is sick."""
    endpoints = [endpoint(f"10.1.{n >> 8}.{n & 255}:8080", share=1 / number) for n in range(number)]
    endpoints[-1] |= {"state": "unhealthy", "why": "refused"}
    return view([service("wide", endpoints)])


@contextlib.asynccontextmanager
async def chromium(path: str) -> AsyncIterator[Browser]:
    """Debian's, which may run as root only without its sandbox."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            await browser.close()


def pictures(tmp_path: Path) -> Path:
    """Where screenshots go: to TCPGW_TEST_PICTURES, to be looked at, else away with the test."""
    folder = Path(os.environ.get("TCPGW_TEST_PICTURES", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Complaints:
    """What the browser's console said that is no mere remark, and errors that nobody caught."""

    def __init__(self, page: Page) -> None:
        self.all: list[str] = []
        page.on(
            "console", lambda said: self.all.append(said.text) if said.type in {"error", "warning"} else None
        )
        page.on("pageerror", lambda error: self.all.append(str(error)))
