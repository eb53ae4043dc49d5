"""A gateway that only pretends: what the admin server shows of it, and what it was asked to do."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from aiohttp import ClientSession
from pydantic import SecretStr

from tcpgw.admin.server import AdminServer
from tcpgw.admin.source import Json
from tcpgw.config.admin import Admin
from tcpgw.config.values import Bind
from tcpgw.errors import TcpgwError

TOKEN = "a-token-of-the-tests-0123456789"


class UnknownEndpointError(TcpgwError):
    """What an operator asks wrong."""

    blame = "operator"


class Pretended:
    """A source whose figures are those that a test sets; `done` has the actions."""

    def __init__(self, view: Json | None = None) -> None:
        self.shown = view
        self.reason = ""
        self.done: list[tuple[Any, ...]] = []
        self.error: Exception | None = None
        self.history: Json = {}
        self.ended = 1  # silences, by `unsilence`

    async def status(self) -> Json:
        if self.error is not None:
            raise self.error
        return {"version": "1", "state": "ready"}

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        kind = "application/openmetrics-text" if "openmetrics" in accept else "text/plain"
        return b"tcpgw_build_info 1\n", f"{kind}; version=1.0.0; charset=utf-8"

    def view(self) -> Json | None:
        return self.shown

    def charts(self) -> Json:
        return self.history

    def ready(self) -> str:
        return self.reason

    async def drain(self, endpoint: str, service: str | None) -> Any:
        return self._do("drain", endpoint, service)

    async def undrain(self, endpoint: str, service: str | None) -> Any:
        return self._do("undrain", endpoint, service)

    async def weight(self, endpoint: str, weight: int | None, service: str | None) -> Any:
        return self._do("weight", endpoint, weight, service)

    async def silence(self, alert: str, labels: Mapping[str, str], seconds: float, comment: str) -> Any:
        return self._do("silence", alert, dict(labels), seconds, comment)

    async def unsilence(self, alert: str, labels: Mapping[str, str]) -> int:
        self._do("unsilence", alert, dict(labels))
        return self.ended

    async def reload(self) -> Any:
        return self._do("reload") or ["gateway.drain: 30 -> 5"]

    def _do(self, *what: Any) -> Any:
        if self.error is not None:
            raise self.error
        self.done.append(what)


def settings(*, token: str | None = None, bind: str = "127.0.0.1:0", hosts: tuple[str, ...] = ()) -> Admin:
    return Admin(bind=Bind.parse(bind), token=SecretStr(token) if token else None, hosts=hosts)


@contextlib.asynccontextmanager
async def served(
    source: Pretended, admin: Admin | None = None, sock: socket.socket | None = None
) -> AsyncIterator[str]:
    """Serve a pretended gateway on loopback; yield where."""
    with sock or socket.create_server(("127.0.0.1", 0)) as place:
        async with AdminServer(admin or settings(), source).serving(place):
            yield f"http://127.0.0.1:{place.getsockname()[1]}"


def endpoint(address: str, state: str = "healthy", **more: Any) -> Json:
    return {
        "endpoint": address,
        "weight": 1,
        "given_weight": 1,
        "override": None,
        "state": state,
        "in_flight": 2,
        "rate": 120.0,
        "share": 0.25,
        "failures": 0,
        "why": "",
        **more,
    }


def service(name: str, endpoints: list[Json], **more: Any) -> Json:
    return {
        "name": name,
        "version": "",
        "rate": 480.0,
        "failed_rate": 0.0,
        "in_flight": 8,
        "latency_of": "request",
        "p50": 0.0021,
        "p90": 0.0048,
        "p99": 0.0125,
        "bytes_in_rate": 1.5e6,
        "bytes_out_rate": 6.4e6,
        "snapshot": {"version": 17, "taken_at": time.time() - 4, "age": 4.0},
        "panic": False,
        "imbalance": 1.08,
        "discovery": {
            "type": "modelarts",
            "calls": 412,
            "errors": 0,
            "answered_at": time.time() - 4,
            "last_error": "",
        },
        "endpoints": endpoints,
        **more,
    }


def alert(name: str, labels: Mapping[str, str], **more: Any) -> Json:
    return {
        "alert": name,
        "labels": dict(labels),
        "severity": "warning",
        "state": "firing",
        "since": time.time() - 95,
        "value": 1.0,
        "summary": f"{name} of {', '.join(labels.values())}",
        "hint": "look at the log",
        "silenced_until": None,
        **more,
    }


def view(services: list[Json], **more: Any) -> Json:
    now = time.time()
    return {
        "at": now,
        "version": "0.6.0",
        "pid": 4211,
        "state": "ready",
        "since": now - 93784,
        "config": "/etc/tcpgw/tcpgw.toml",
        "totals": {
            "connections": 1284,
            "rate": 812.4,
            "failed_rate": 0.3,
            "in_flight": 17,
            "bytes_in_rate": 2.4e6,
            "bytes_out_rate": 9.1e6,
        },
        "workers": [
            {
                "worker": slot,
                "pid": 4212 + slot,
                "state": "accepting",
                "connections": 640 + slot,
                "age": 93780.0,
                "cpu": 0.21 + slot / 50,
                "memory": 68 << 20,
                "lag": 0.0004,
            }
            for slot in range(2)
        ],
        "worker_deaths": 0,
        "listeners": [
            {
                "name": "predict",
                "address": "0.0.0.0:9000",
                "mode": "rpc",
                "active": 1284,
                "accepted_rate": 3.2,
                "denied_rate": 0.0,
                "split": [
                    {"service": one["name"], "asked": 1 / len(services), "seen": 1 / len(services)}
                    for one in services
                ],
            }
        ],
        "services": services,
        "clouds": [{"name": "modelarts", "calls": 412, "errors": 0, "budget": 20, "left": 14, "paused": 0.0}],
        "ages": [
            {"up_to": 1, "connections": 4},
            {"up_to": 60, "connections": 230},
            {"up_to": 3600, "connections": 610},
            {"up_to": None, "connections": 440},
        ],
        "overload": {"active": 0, "times": 0, "shed": 0},
        "alerts": [],
        "silences": [],
        **more,
    }


# ---- clients ----


async def answer(http: ClientSession, method: str, url: str, **more: Any) -> tuple[int, Any]:
    async with http.request(method, url, **more) as response:
        text = await response.text()
        return response.status, json.loads(text) if "json" in response.content_type else text


async def raw(base: str, text: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection with the beginning of a request; the server can write little that nobody reads."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(base.rpartition(":")[2]))
    writer.write(text.encode())
    return reader, writer


async def gone(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """What came until the server ended the connection."""
    try:
        async with asyncio.timeout(5):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def log_in(http: ClientSession, base: str, token: str = TOKEN) -> tuple[int, str]:
    async with http.post(f"{base}/login", json={"token": token}, headers={"Origin": base}) as response:
        return response.status, response.headers.get("Set-Cookie", "")
