"""What the benchmark of monitoring asks and reports, and that it works."""

import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import monitoring
import ping_load
import pytest
from monitoring import QUIET, SCRAPED, VARIANTS, WATCHED, Ping, Run
from monitoring_testbed import LOADED, MANY, MonitoringTestbed, addresses
from peers import Address
from processes import BenchmarkError
from scrapes import scraping, watching
from testbed import Cores

from tcpgw.config.load import loads

NOWHERE = Cores(None, None)
METRICS = b'# TYPE tcpgw_build_info gauge\ntcpgw_build_info{version="1"} 1.0\n'


@pytest.mark.skipif(
    shutil.which("redis-benchmark") is None or shutil.which("cc") is None,
    reason="redis or gcc are not installed",
)
def test_gateways_are_scraped_and_checked_as_shipped(tmp_path: Path) -> None:
    """Both configurations are valid, with one worker and an admin server; of many endpoints all differ."""
    bed = MonitoringTestbed.prepare(tmp_path, cores=NOWHERE, log_connections=True, endpoints=1000)
    configs = {proxy.peer.name: loads(proxy.config.read_text(), tmp_path) for proxy in bed.proxies}
    assert set(configs) == {LOADED, MANY}
    for config in configs.values():
        assert config.gateway.workers == 1
        assert config.gateway.admin != "off"
        assert config.service[0].health.active != "off"
    discovery = configs[MANY].service[0].discovery
    assert discovery.type == "static"
    assert len(set(discovery.endpoints)) == 1000


def test_many_addresses_are_of_loopback() -> None:
    """However many there are, they differ and are this machine's own."""
    found = addresses(1000, 9)
    assert len(set(found)) == 1000
    assert all(each.host.startswith("127.") and each.host.split(".")[3] != "0" for each in found)


# ---- who looks ----


class Handler(BaseHTTPRequestHandler):
    """Answers as a gateway does, with a view every 10 ms; `wrong` has it refuse."""

    protocol_version = "HTTP/1.1"
    wrong = False

    def do_GET(self) -> None:
        if self.wrong:
            self.send_error(503)
        elif self.path == "/metrics":
            self.send_response(200)
            self.send_header("Content-Length", str(len(METRICS)))
            self.end_headers()
            self.wfile.write(METRICS)
        else:
            self._views()

    def _views(self) -> None:
        self.send_response(200)
        self.end_headers()
        while True:
            try:
                self.wfile.write(b"event: view\ndata: {}\n\n")
            except OSError:
                return
            time.sleep(0.01)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def admin() -> Iterator[Address]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield Address(*server.server_address[:2])  # type: ignore[arg-type]
        server.shutdown()
        thread.join()


@pytest.fixture
def refusing(admin: Address, monkeypatch: pytest.MonkeyPatch) -> Address:
    monkeypatch.setattr(Handler, "wrong", True)
    return admin


def wait_for(found: list[float], count: int) -> None:
    deadline = time.monotonic() + 5
    while len(found) < count and time.monotonic() < deadline:
        time.sleep(0.005)


def test_scrapes_are_spread_evenly(admin: Address) -> None:
    """Scrapes come at the pace that was asked for, no faster, and each one's time is kept."""
    began = time.monotonic()
    with scraping(admin, 0.02, None) as took:
        wait_for(took, 5)
    assert len(took) >= 5
    assert len(took) <= (time.monotonic() - began) / 0.02 + 1
    assert all(0 < each < 5 for each in took)


def test_views_of_all_pages_are_counted(admin: Address) -> None:
    """Each page that listens is sent views, and they are counted as they come."""
    with watching(admin, 3, None) as came:
        wait_for(came, 9)
    assert len(came) >= 9


def test_refused_scrape_is_an_error(refusing: Address) -> None:
    """A scrape that is not answered with metrics ends the benchmark: it would have cost nothing."""
    with pytest.raises(BenchmarkError, match="answered with 503"), scraping(refusing, 0.01, None):
        time.sleep(0.1)


def test_refused_page_is_an_error(refusing: Address) -> None:
    """A page that is not let in ends the benchmark."""
    with pytest.raises(BenchmarkError, match="503"), watching(refusing, 1, None):
        pass


def test_standstill_is_seen_by_all_who_were_due() -> None:
    """While nobody answers, each question that was due waits as long as it would have waited."""
    ours, theirs = socket.socketpair()

    def answer() -> None:
        with theirs:
            for number in range(10):
                data = theirs.recv(len(ping_load.QUESTION))
                if number == 3:
                    time.sleep(0.1)
                theirs.sendall(data)

    thread = threading.Thread(target=answer)
    thread.start()
    with ours:
        took = ping_load.ask_evenly(ours, 0.02, 0.2)
    thread.join()
    assert len(took) == 10
    assert took[3] >= 0.1
    assert took[4] >= 0.06  # asked when the others were over, and due long before


# ---- what is reported ----


def runs(*rates: tuple[float, float, float]) -> list[Run]:
    return [
        Run(number, variant, 1000.0, rate, 1.0, 2.0, 1e-5, cpu, scrapes, views)
        for number, row in enumerate(rates)
        for variant, rate, cpu, scrapes, views in zip(
            VARIANTS, row, (0.01, 0.05, 0.06), ([], [0.004] * 40, [0.005] * 40), (0, 0, 16), strict=True
        )
    ]


@pytest.mark.parametrize(
    ("scraped", "outcome"),
    [(98.0, "-2.0%, met"), (102.9, "+2.9%, met"), (96.0, "-4.0%, MISSED"), (104.0, "+4.0%, MISSED")],
)
def test_change_of_the_median_rate_is_held_to_the_aim(scraped: float, outcome: str) -> None:
    """The median rate may change by less than 3 %, up or down; what pages change is told."""
    found = runs((100.0, scraped, 90.0), (50.0, 20.0, 45.0), (400.0, 500.0, 390.0))
    lines, met = monitoring.verdict_of_load(found)
    assert lines[0] == f"load: 120 scrapes change the median rate by less than 3%: {outcome}"
    assert "-10.0%" in lines[1]
    assert met is outcome.endswith("met")


def test_supervisor_pays_for_a_scrape_what_it_does_not_pay_anyway() -> None:
    """CPU for a scrape is what a second has more than one without scrapes, shared by those of a second."""
    rows = {row["variant"]: row for row in monitoring.run_records(runs((100.0, 99.0, 98.0)))}
    assert rows[SCRAPED]["scrape_cpu"] == pytest.approx(0.04 * 2 / 40)
    assert rows[QUIET]["scrape_cpu"] is None
    assert rows[QUIET]["scrape_p50"] is None
    assert rows[WATCHED]["views"] == 16
    assert rows[SCRAPED]["change_in_round"] == pytest.approx(-0.01)


@pytest.mark.parametrize(
    ("longest", "outcome"), [(0.099, "99 ms, met"), (0.1, "100 ms, MISSED"), (None, "not measured")]
)
def test_longest_scrape_is_held_to_the_aim(longest: float | None, outcome: str) -> None:
    """One scrape that takes too long misses the aim, whatever the others took."""
    scrapes = [] if longest is None else [0.03, longest, 0.02]
    lines, met = monitoring.verdict_of_scrapes(
        [Ping(0, QUIET, [0.001], []), Ping(0, SCRAPED, [0.001], scrapes)]
    )
    assert lines == [f"endpoints: the longest of {len(scrapes)} scrapes under 100 ms: {outcome}"]
    assert met is outcome.endswith(", met")


@pytest.mark.skipif(
    shutil.which("redis-benchmark") is None or shutil.which("cc") is None,
    reason="redis or gcc are not installed",
)
def test_quick_run_reports(run_script: Callable[..., str], tmp_path: Path) -> None:
    """A quick run has every variant, with scrapes and views where there should be some."""
    kept = tmp_path / "kept.json"
    report = run_script("monitoring.py", "--quick", "--endpoints", "60", "--json", str(kept))
    assert "(load)" in report
    assert "60 endpoints" in report
    samples = json.loads(kept.read_text())["samples"]
    assert [each["variant"] for each in samples] == [*VARIANTS, QUIET, SCRAPED]
    assert [bool(each["scrapes"]) for each in samples] == [False, True, True, False, True]
    assert samples[2]["views"] > 0
