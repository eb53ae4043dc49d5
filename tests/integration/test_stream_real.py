"""The stream plane between programs that people use: curl, Redis, HAProxy."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.conftest import Need
from tests.support.processes import (
    PATIENCE,
    Address,
    GatewayProcess,
    free_port,
    gateway,
    relaying,
    running,
    wait_until,
)


def output_of(*command: str | Path, stdin: bytes = b"") -> str:
    """What a command that must succeed prints."""
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.decode("latin-1")


# ---- HTTP ----


class _Predict(BaseHTTPRequestHandler):
    """An instance as in the documentation: it answers a POST of JSON with JSON."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps({"got": request, "type": self.headers["Content-Type"]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def predict() -> Iterator[Address]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Predict) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
        try:
            yield "127.0.0.1", server.server_port
        finally:
            server.shutdown()


def test_curl(need: Need, tmp_path: Path, predict: Address) -> None:
    """The documentation's POST gets the instance's answer, and a second one uses the same connection."""
    curl = need("curl")
    with gateway(tmp_path, relaying([predict])) as g:
        url = "http://{}:{}/".format(*g.address())
        header = "Content-Type: application/json"
        shown = "\n%{http_code} %{num_connects}\n"
        data = '{"a":"a"}'
        printed = output_of(curl, "-sS", "-X", "POST", "-H", header, "-d", data, "-w", shown, url, url)
        (line,) = g.lines(1)
    answer = '{"got": {"a": "a"}, "type": "application/json"}'
    assert printed.splitlines() == [answer, "200 1", answer, "200 0"]
    assert line["reason"] == "client_fin"
    assert line["service"] == "s"
    assert line["endpoint"] == "{}:{}".format(*predict)
    assert line["bytes_in"] > 2 * len(data)
    assert line["bytes_out"] > 2 * len(answer)


# ---- Redis ----


@contextmanager
def redis(need: Need, folder: Path) -> Iterator[Address]:
    port = free_port()
    command = [need("redis-server"), "--port", str(port), "--bind", "127.0.0.1"]
    command += ["--save", "", "--appendonly", "no", "--dir", str(folder)]
    with running(command, folder / "redis.log", ("127.0.0.1", port)):
        yield "127.0.0.1", port


def test_redis(need: Need, tmp_path: Path) -> None:
    """redis-cli and redis-benchmark do through the gateway what they do without it."""
    cli, benchmark = need("redis-cli"), need("redis-benchmark")
    value = bytes(range(1, 256)).replace(b"\n", b"") * 8000  # 2 MB
    with redis(need, tmp_path) as instance, gateway(tmp_path, relaying([instance])) as g:
        host, port = g.address()
        at = ("-h", host, "-p", str(port))
        assert output_of(cli, *at, "-x", "SET", "large", stdin=value) == "OK\n"
        assert output_of(cli, *at, "STRLEN", "large") == f"{len(value)}\n"
        direct = output_of(cli, "-p", str(instance[1]), "GET", "large")
        assert output_of(cli, *at, "GET", "large") == direct
        alive = output_of(benchmark, *at, "-n", "3000", "-c", "20", "-t", "ping_mbulk,set", "-q")
        pipelined = output_of(benchmark, *at, "-n", "5000", "-c", "5", "-P", "50", "-t", "set", "-q")
        short = output_of(benchmark, *at, "-n", "200", "-c", "10", "-k", "0", "-t", "ping_mbulk", "-q")
        for printed in (alive, pipelined, short):
            assert "requests per second" in printed
            assert "error" not in printed.lower()
        total = output_of(cli, "-p", str(instance[1]), "INFO", "stats")
    assert "rejected_connections:0" in total
    lines = g.events("connection_closed")
    assert len(lines) >= 200 + 20 + 20 + 5 + 3
    assert {line["reason"] for line in lines} <= {"client_fin", "client_reset"}
    assert sum(line["bytes_in"] for line in lines) > len(value)
    assert sum(line["bytes_out"] for line in lines) > len(value)


# ---- HAProxy ----

_GLOBAL = """
global
    log stderr format raw local0
defaults
    timeout connect 5s
    timeout client 5s
    timeout server 5s
"""


@contextmanager
def haproxy(need: Need, folder: Path, name: str, port: int, rest: str) -> Iterator[None]:
    """HAProxy with a frontend at `port`."""
    config = folder / f"{name}.cfg"
    config.write_text(f"{_GLOBAL}\nfrontend f\n    bind 127.0.0.1:{port}{rest}\n")
    with running([need("haproxy"), "-db", "-f", config], folder / f"{name}.log", ("127.0.0.1", port)):
        yield


@contextmanager
def haproxy_behind(need: Need, folder: Path) -> Iterator[Address]:
    """An instance that insists on PROXY headers and answers each request with its client's address."""
    port = free_port()
    answer = 'status 200 content-type text/plain lf-string "%[src] %[src_port] %[dst_port]"'
    rest = f" accept-proxy\n    mode http\n    http-request return {answer}"
    with haproxy(need, folder, "behind", port, rest):
        yield "127.0.0.1", port


@contextmanager
def haproxy_in_front(need: Need, folder: Path, of: Address) -> Iterator[Address]:
    """A balancer that tells the gateway its clients in PROXY v2."""
    port = free_port()
    host, behind = of
    server = f"backend b\n    mode tcp\n    server tcpgw {host}:{behind} send-proxy-v2"
    with haproxy(need, folder, "front", port, f"\n    mode tcp\n    default_backend b\n{server}"):
        yield "127.0.0.1", port


def ask(need: Need, address: Address, source: str, *options: str) -> tuple[str, str]:
    """What an HTTP server says to a client from `source`, and the port that the client had."""
    url = "http://{}:{}/".format(*address)
    printed = output_of(need("curl"), "-sS", "--interface", source, "-w", "\n%{local_port}", *options, url)
    answer, _, port = printed.rpartition("\n")
    return answer, port


def line_of(g: GatewayProcess, client: str) -> dict[str, Any]:
    """The closing line of a client, once it is there."""

    def found() -> list[dict[str, Any]]:
        return [line for line in g.events("connection_closed") if line["client"] == client]

    wait_until(found)
    (line,) = found()
    return line


def test_haproxy_in_front(need: Need, tmp_path: Path, predict: Address) -> None:
    """HAProxy sends PROXY v2, and the true source is logged, HAProxy's own address beside it."""
    config = relaying([predict], listener='accept_proxy = ["127.0.0.1/32"]')
    with gateway(tmp_path, config) as g, haproxy_in_front(need, tmp_path, g.address()) as front:
        answer, port = ask(need, front, "127.0.0.9", "-d", "{}")
        assert json.loads(answer)["got"] == {}
        line = line_of(g, f"127.0.0.9:{port}")
    assert line["peer"].startswith("127.0.0.1:")
    assert line["bytes_out"] > len(answer)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_haproxy_behind(need: Need, tmp_path: Path, version: str) -> None:
    """HAProxy reads tcpgw's header, either version, and sees the gateway's client."""
    with ExitStack() as stack:
        instance = stack.enter_context(haproxy_behind(need, tmp_path))
        config = relaying([instance], service=f'send_proxy = "{version}"')
        g = stack.enter_context(gateway(tmp_path, config))
        answer, port = ask(need, g.address(), "127.0.0.9")
        assert answer == f"127.0.0.9 {port} {g.address()[1]}"
        assert line_of(g, f"127.0.0.9:{port}")["reason"] == "client_fin"


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_haproxy_on_both_sides(need: Need, tmp_path: Path, version: str) -> None:
    """The true source goes through HAProxy, tcpgw and HAProxy, and so does where it connected to."""
    with ExitStack() as stack:
        instance = stack.enter_context(haproxy_behind(need, tmp_path))
        config = relaying(
            [instance], service=f'send_proxy = "{version}"', listener='accept_proxy = ["127.0.0.1/32"]'
        )
        g = stack.enter_context(gateway(tmp_path, config))
        front = stack.enter_context(haproxy_in_front(need, tmp_path, g.address()))
        answer, port = ask(need, front, "127.0.0.9")
        assert answer == f"127.0.0.9 {port} {front[1]}"
        assert line_of(g, f"127.0.0.9:{port}")["reason"] == "client_fin"
