"""What operators see of a whole gateway: in Prometheus, at an Alertmanager, in a browser."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import expect

import tcpgw
from tests.conftest import Need
from tests.support.inbox import inbox
from tests.support.load import Background
from tests.support.monitoring import TOKEN, Series, Watched, redis
from tests.support.page import Complaints, chromium, pictures
from tests.support.processes import PATIENCE, free_port, running, wait_until
from tests.support.streams import until
from tests.support.workers import exchange, exchange_often

MONITORING = Path(tcpgw.__file__).parent / "monitoring"
# Checks that find a dead instance within a second, as an operator would set who wants to know so fast.
FAST = """
[service.health.active]
type = "tcp"
interval = "500ms"
fast_interval = "200ms"
timeout = "200ms"
fall = 2
rise = 1
"""


@pytest.fixture
def background() -> Iterator[Background]:
    with Background(instances=2) as background:
        yield background


# ---- totals ----


class Scraped:
    """Scrapes all the while, and notes what went down."""

    def __init__(self, run: Watched) -> None:
        self.fell: list[object] = []
        self.scrapes = 0
        self._run = run
        self._over = threading.Event()
        self._before: Series = {}

    def look(self) -> Series:
        found = self._run.scrape()
        for key, value in found.items():
            grows = key[0].endswith(("_total", "_count", "_bucket", "_sum"))
            if grows and not key[0].startswith("tcpgw_process") and value < self._before.get(key, 0):
                self.fell.append((key, self._before[key], value))
        self._before = found
        self.scrapes += 1
        return found

    @contextlib.contextmanager
    def all_the_while(self) -> Iterator[None]:
        def go_on() -> None:
            while not self._over.wait(0.05):
                self.look()

        thread = threading.Thread(target=go_on)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()


def test_totals_are_what_clients_counted(tmp_path: Path, background: Background) -> None:
    """Over all workers, across a reload and a worker's death; and no counter ever goes down."""
    run = Watched(tmp_path, background.instances)
    opened, closed = ("tcpgw_connections_opened_total", "l", "s"), "tcpgw_connections_closed_total"
    sent = "tcpgw_connection_received_bytes_total", "l", "s"
    with run.started():
        scraped = Scraped(run)
        with scraped.all_the_while():
            exchange_often(run.address, 100)
            wait_until(lambda: run.scrape().get((closed, "l", "client_fin", "s")) == 100)
            assert (run.scrape()[opened], run.scrape()[sent]) == (100, 100)

            run.file.write_text(run.file.read_text().replace('route = "s"', 'route = "s"\nmax_age = "1h"'))
            assert run.command("reload").returncode == 0
            exchange_often(run.address, 50)
            wait_until(lambda: run.scrape().get((closed, "l", "client_fin", "s")) == 150)

            with contextlib.ExitStack() as held:
                for _ in range(20):
                    client = held.enter_context(socket.create_connection(run.address, PATIENCE))
                    client.sendall(b"x")
                    assert client.recv(1) == b"x"
                assert run.scrape()["tcpgw_connections_active", "l", "s"] == 20
                victim = run.status()["workers"][0]
                os.kill(victim["pid"], signal.SIGKILL)
                wait_until(lambda: run.scrape()["tcpgw_worker_restarts_total",] == 1)
                wait_until(lambda: run.scrape()["tcpgw_workers", "accepting"] == 2)
            exchange_often(run.address, 50)
            wait_until(lambda: run.scrape()["tcpgw_connections_active", "l", "s"] == 0)
        last = scraped.look()
        assert last[opened] == 220
        ended = {key[2]: value for key, value in last.items() if key[0] == closed}
        lost = ended.pop("worker_lost", 0)
        assert lost == victim["connections"]
        assert ended == {"client_fin": 220 - lost}
        assert last["tcpgw_invocations_total", "s", ""] == 220
        assert last["tcpgw_failed_invocations_total", "s", ""] == lost
        assert last["tcpgw_config_reloads_total", "ok"] == 1
        assert scraped.fell == []
        assert scraped.scrapes > 10


def test_a_path_that_is_no_utf_8_is_shown_as_far_as_it_goes(tmp_path: Path, background: Background) -> None:
    """By HTTP and by the commands; what is wrong with such a file is told too."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    shown = f"{tmp_path}/caf\N{REPLACEMENT CHARACTER}/tcpgw.toml"
    run = Watched(folder, background.instances)
    with run.started():
        assert json.loads(run.get("/status"))["config"] == shown
        wait_until(lambda: run.has("/view"))
        assert run.view()["config"] == shown
        assert run.status()["config"] == shown
        run.file.rename(folder / "away")
        status, error = run.refused("reload")
        assert (status, error) == (409, f"{shown} cannot be read: No such file or directory")


# ---- Prometheus ----


@contextlib.contextmanager
def prometheus(binary: str, folder: Path, run: Watched) -> Iterator[str]:
    """One that scrapes the gateway and has its rules, with shorter times; its URL."""
    rules = (MONITORING / "rules.yml").read_text().replace("for: 1m", "for: 1s")
    (folder / "rules.yml").write_text(rules)
    scrape = {
        "job_name": "tcpgw",
        "authorization": {"credentials": TOKEN},
        "static_configs": [{"targets": [run.admin]}],
    }
    settings = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(folder / "rules.yml")],
        "scrape_configs": [scrape],
    }
    (folder / "prometheus.yml").write_text(json.dumps(settings))
    port = free_port()
    command = [
        binary,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with running(command, folder / "prometheus.log", ("127.0.0.1", port)):
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: is_ready(f"{url}/-/ready"))
        yield url


def is_ready(url: str) -> bool:
    """Prometheus answers 503 until it has read its storage."""
    with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(url, timeout=20):
        return True
    return False


def asked(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=20) as response:
        return json.loads(response.read())["data"]


def test_prometheus_scrapes_and_its_rule_fires(need: Need, tmp_path: Path) -> None:
    """The shipped rules, in a real Prometheus: an instance is killed, and it is said of which service."""
    ports = [free_port(), free_port()]
    run = Watched(tmp_path, [("127.0.0.1", port) for port in ports], service=FAST)
    with contextlib.ExitStack() as stack:
        stack.enter_context(redis(need("redis-server"), tmp_path, ports[0]))
        victim = stack.enter_context(contextlib.ExitStack())
        victim.enter_context(redis(need("redis-server"), tmp_path, ports[1]))
        stack.enter_context(run.started())
        url = stack.enter_context(prometheus(need("prometheus"), tmp_path, run))

        def healthy() -> list[str]:
            query = f"{url}/api/v1/query?query=tcpgw_endpoints%7Bstate%3D%22healthy%22%7D"
            return [one["value"][1] for one in asked(query)["result"]]

        wait_until(lambda: healthy() == ["2"])
        (target,) = asked(f"{url}/api/v1/targets")["activeTargets"]
        assert (target["health"], target["lastError"]) == ("up", "")
        victim.close()

        def firing() -> list[dict[str, str]]:
            alerts = asked(f"{url}/api/v1/alerts")["alerts"]
            return [alert["labels"] for alert in alerts if alert["state"] == "firing"]

        wait_until(firing)
        (labels,) = firing()
        assert (labels["alertname"], labels["service"]) == ("TcpgwUsableShare", "s")


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
def test_promtool_takes_what_a_gateway_exposes(
    need: Need, tmp_path: Path, background: Background, accept: str
) -> None:
    """After some traffic; OpenMetrics ends as it must."""
    run = Watched(tmp_path, background.instances)
    with run.started():
        exchange(run.address, b"x")
        text = run.get("/metrics", accept)
    if accept:
        assert text.endswith(b"# EOF\n")
        return
    done = subprocess.run(
        [need("promtool"), "check", "metrics"], input=text, capture_output=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


# ---- alerts ----

SHORT = """
[alerts]
group_wait = "100ms"
group_interval = "1s"
keep_firing_for = "1s"
usable_share = {{ for = "500ms" }}
[alerts.webhook.chat]
url = "{url}"
"""


async def test_the_gateway_tells_of_a_killed_instance_itself(need: Need, tmp_path: Path) -> None:
    """Its webhook hears which service has too few usable instances, and that it is over; so does the log."""
    ports = [free_port(), free_port()]
    async with inbox() as hook:
        run = Watched(
            tmp_path, [("127.0.0.1", port) for port in ports], service=FAST, more=SHORT.format(url=hook.url)
        )
        with contextlib.ExitStack() as stack:
            stack.enter_context(redis(need("redis-server"), tmp_path, ports[0]))
            victim = stack.enter_context(contextlib.ExitStack())
            victim.enter_context(redis(need("redis-server"), tmp_path, ports[1]))
            gateway = stack.enter_context(run.started())
            await asyncio.to_thread(wait_until, lambda: run.view()["services"][0]["endpoints"])
            await asyncio.to_thread(victim.close)
            await until(lambda: hook.told)
            assert hook.told == ["firing TcpgwUsableShare"]
            (alert,) = hook.messages[0]["body"]["alerts"]
            assert alert["labels"]["service"] == "s"
            told = await asyncio.to_thread(run.command, "alerts")
            assert "TcpgwUsableShare" in told.stdout
            stack.enter_context(redis(need("redis-server"), tmp_path, ports[1]))
            await until(lambda: len(hook.told) > 1)
            assert hook.told[1:] == ["resolved TcpgwUsableShare"]
            await asyncio.to_thread(wait_until, lambda: gateway.events("alert_resolved"))
            assert len(gateway.events("alert_firing")) == 1


async def test_a_silenced_alert_is_not_told(need: Need, tmp_path: Path) -> None:
    """It is shown as silenced, and the webhook hears nothing of it until the silence is ended."""
    port = free_port()
    async with inbox() as hook:
        run = Watched(
            tmp_path, [("127.0.0.1", port), ("127.0.0.1", free_port())], service=FAST,
            more=SHORT.format(url=hook.url),
        )  # fmt: skip
        with redis(need("redis-server"), tmp_path, port), run.started() as gateway:
            told = await asyncio.to_thread(
                run.command, "silence", "TcpgwUsableShare", "--label", "service=s", "--for", "1h"
            )
            assert told.returncode == 0, told.stderr
            await asyncio.to_thread(wait_until, lambda: gateway.events("alert_firing"))
            await asyncio.sleep(1.5)  # longer than group_wait and a look
            assert hook.messages == []
            (shown,) = run.view()["alerts"]
            assert shown["silenced_until"] is not None
            told = await asyncio.to_thread(
                run.command, "unsilence", "TcpgwUsableShare", "--label", "service=s"
            )
            assert told.returncode == 0, told.stderr
            await until(lambda: hook.told == ["firing TcpgwUsableShare"])


# ---- the page ----


async def test_the_page_of_a_whole_gateway(need: Need, tmp_path: Path) -> None:
    """A killed instance turns red within 3 s, and its button drains it; the console stays empty."""
    ports = [free_port(), free_port()]
    run = Watched(tmp_path, [("127.0.0.1", port) for port in ports], service=FAST)
    with contextlib.ExitStack() as stack:
        stack.enter_context(redis(need("redis-server"), tmp_path, ports[0]))
        victim = stack.enter_context(contextlib.ExitStack())
        victim.enter_context(redis(need("redis-server"), tmp_path, ports[1]))
        stack.enter_context(run.started())
        async with chromium(need("chromium")) as browser:
            page = await browser.new_page()
            complaints = Complaints(page)
            await page.goto(f"http://{run.admin}/")
            await page.get_by_label("Token").fill(TOKEN)
            await page.keyboard.press("Enter")
            killed = page.locator("tr", has_text=f"127.0.0.1:{ports[1]}")
            await expect(killed).to_contain_text("healthy")
            await asyncio.to_thread(victim.close)
            await expect(killed).to_contain_text("unhealthy", timeout=3000)
            await page.screenshot(path=pictures(tmp_path) / "gateway-sick.png", full_page=True)
            await killed.get_by_role("button", name="Drain").click()
            await page.get_by_role("dialog").get_by_role("button", name="Drain").click()
            await expect(killed).to_contain_text("draining")
            await page.screenshot(path=pictures(tmp_path) / "gateway-drained.png", full_page=True)
            assert complaints.all == []
        (service,) = run.status()["services"].values()
        assert service["endpoints"][f"127.0.0.1:{ports[1]}"]["override"] == "drained"
