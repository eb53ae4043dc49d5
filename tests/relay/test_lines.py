"""Which connections have lines in the log, and what these say."""

import socket
import time
from collections.abc import Iterator
from logging import WARNING
from math import inf
from pathlib import Path
from typing import Any, cast

import pytest
import structlog
from structlog.testing import capture_logs

from tcpgw.config.load import loads
from tcpgw.config.log import ConnectionLog
from tcpgw.relay.lines import ConnectionLines, End
from tcpgw.relay.reasons import Reason
from tcpgw.relay.session import Connection, Session
from tests.relay.test_listener_plane import Played
from tests.support.streams import bed, new_lines, until


class Said:
    """A listener's log."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.lines.append({"event": event, **fields})

    def numbers(self, event: str) -> list[int]:
        return [line["conn"] for line in self.lines if line["event"] == event]


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.socket() as made:
        yield made


def connection_of(number: int, sock: socket.socket, opened: float = 0.0) -> Connection:
    made = Connection(number, sock, ("192.0.2.1", 5), opened, lambda *_: None)
    made.session = cast("Session", Played(made, lambda *_: None))
    return made


def end(lines: ConnectionLines, said: Said, connection: Connection, reason: Reason, error: str = "") -> None:
    lines.closed(said, connection, connection.session, {}, End(reason, error, {"bytes_in": 1}))


# ---- sampling ----


def test_a_sample_is_of_connections(said: Said, sock: socket.socket) -> None:
    """About the share that was asked for, evenly; who is drawn has all its lines, which say of how many."""
    lines = new_lines(opened=True, every=10.0, sample=0.1, per_second=1_000_000)
    connections = [connection_of(number, sock) for number in range(1000)]
    for connection in connections:
        lines.opened(said, connection, {})
        lines.look(said, connection, {}, 5.0, 10.0)
        end(lines, said, connection, Reason.CLIENT_FIN)
    numbers = said.numbers("connection_opened")
    assert numbers == said.numbers("connection_open") == said.numbers("connection_closed")
    assert 98 <= len(numbers) <= 102
    assert all(7 <= sum(number // 100 == part for number in numbers) <= 13 for part in range(10))
    assert {line["sample"] for line in said.lines} == {0.1}


def test_who_ended_badly_has_a_line_anyway(said: Said, sock: socket.socket) -> None:
    """Drawn or not, and without a share: each stands for itself."""
    lines = new_lines(sample=0.0)
    for number, reason in enumerate(Reason):
        end(lines, said, connection_of(number, sock), reason)
    quiet = {"client_fin", "instance_fin", "idle_timeout", "drained", "max_age", "rebalanced"}
    assert [line["reason"] for line in said.lines] == [one.value for one in Reason if one.value not in quiet]
    assert not any("sample" in line for line in said.lines)
    end(lines, said, connection_of(1, sock), Reason.DRAINED, "it was cut")
    assert (said.lines[-1]["reason"], said.lines[-1]["error"]) == ("drained", "it was cut")


def test_all_is_no_sample(said: Said, sock: socket.socket) -> None:
    """By default each end has a line, without a share, and nothing else has."""
    lines = new_lines()
    for number in range(100):
        lines.opened(said, connection_of(number, sock), {})
        lines.look(said, connection_of(number, sock), {}, 0.0, 1e6)
        end(lines, said, connection_of(number, sock), Reason.CLIENT_FIN)
    assert said.numbers("connection_closed") == list(range(100))
    assert len(said.lines) == 100
    assert not any("sample" in line for line in said.lines)


# ---- limits ----


def test_too_many_are_counted(said: Said, sock: socket.socket) -> None:
    """Beyond the limit lines are left out, those of good ends first; the count is told at the end, too."""
    with capture_logs() as logs:
        lines = new_lines(per_second=40, every=1.0)
        # As the timer would: no event loop runs here.
        lines._limit._later = lambda *_: cast("Any", socket.socket)  # never cancelled
        lines._limit._clock = lambda: lines._limit._at
        for number in range(100):
            end(lines, said, connection_of(number, sock), Reason.CLIENT_FIN)
        for number in range(100, 200):
            end(lines, said, connection_of(number, sock), Reason.CONNECT_FAILED)
        lines._limit._timer = None
        lines.close()
        lines.close()
    assert said.numbers("connection_closed") == [*range(30), *range(100, 110)]
    assert logs == [
        {
            "event": "log_lines_suppressed",
            "log_level": "warning",
            "count": 160,
            "setting": "gateway.log.connections.per_second",
        }
    ]


def test_what_the_level_leaves_out_is_not_made(said: Said, sock: socket.socket) -> None:
    """All lines of connections are informative: with a higher level none is made, nor counted as left out."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(WARNING))
    try:
        lines = new_lines(per_second=1, opened=True, every=5.0)
        for number in range(5):
            lines.opened(said, connection_of(number, sock), {})
            end(lines, said, connection_of(number, sock), Reason.CONNECT_FAILED)
        with capture_logs() as logs:
            lines.close()
    finally:
        structlog.configure(**before)
    assert (said.lines, logs, lines.every) == ([], [], inf)


# ---- long ones ----


def test_each_time_that_it_is_so_old_again(said: Said, sock: socket.socket) -> None:
    """Once in each period of its age, whenever it is looked at, and not before the first."""
    lines = new_lines(every=60.0)
    connection = connection_of(1, sock, opened=1000.0)
    told = []
    for at in range(990, 1400, 7):
        lines.look(said, connection, {}, at - 7.0, float(at))
        if said.lines:
            told.append(said.lines.pop()["age"])
    assert told == [60, 123, 186, 242, 305, 361]


def test_no_time_is_negative(said: Said, sock: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """What moved after the look began was idle for no time."""
    connection = connection_of(1, sock)
    monkeypatch.setattr(connection.session, "idle_seconds", lambda _: -0.0001)
    new_lines(every=1.0).look(said, connection, {}, 0.0, 1.0)
    assert str(said.lines[0]["idle"]) == "0.0"


def test_other_settings_hold_for_open_connections(said: Said, sock: socket.socket) -> None:
    """What is changed while it is open counts for its next line, and none is none."""
    lines = ConnectionLines(None)
    connection = connection_of(1, sock)
    lines.opened(said, connection, {})
    lines.look(said, connection, {}, 0.0, 100.0)
    end(lines, said, connection, Reason.CONNECT_FAILED)
    assert (said.lines, lines.every) == ([], inf)
    lines.change(ConnectionLog(opened=True, every=30.0))
    lines.look(said, connection, {}, 100.0, 121.0)
    assert said.numbers("connection_open") == [1]
    lines.change(None)
    end(lines, said, connection, Reason.CONNECT_FAILED)
    assert len(said.lines) == 1


# ---- in a gateway ----


async def test_a_connections_lines() -> None:
    """Opened, open and closed: the same connection by its number, with what is known by then."""
    lines = "log = { connections = { opened = true, every = 1 } }"
    async with bed(gateway=lines) as b:
        client, instance = await b.pair()
        await until(lambda: b.about)
        await client.send(b"question")
        assert await instance.read(8) == b"question"
        await until(lambda: len(b.about) > 1)
        assert b.endpoint() == b.about[0]["endpoint"]
        client.close()
        instance.close()
        await b.closed(1)
    opened, still, closed = b.about
    assert [line["event"] for line in b.about] == [
        "connection_opened", "connection_open", "connection_closed"
    ]  # fmt: skip
    known = ("conn", "client", "listener", "service", "endpoint", "connect_time", "tries", "log_level")
    assert [opened[key] for key in known] == [still[key] for key in known] == [closed[key] for key in known]
    assert opened.keys() == {*known, "event"}
    assert still.keys() == {*known, "event", "age", "idle", "bytes_in", "bytes_out"}
    assert (still["bytes_in"], still["bytes_out"]) == (8, 0)
    assert 1 <= still["age"] < 3  # a look comes once a second
    assert 0 <= still["idle"] <= still["age"]


async def test_a_client_that_cannot_be_served_was_never_open() -> None:
    """Its only line is that of its end."""
    async with bed(
        instances=0, endpoints=["127.0.0.1:1"], gateway="log = { connections = { opened = true } }"
    ) as b:
        b.dial()
        assert (await b.line())["reason"] == "connect_failed"
        assert [line["event"] for line in b.about] == ["connection_closed"]


async def test_a_reload_changes_what_is_logged() -> None:
    """At once, for the connections that are open too, without touching them."""
    async with bed() as b:
        client, instance = await b.pair()
        await b.relay()
        text = f"""
            [gateway]
            log = {{ connections = {{ opened = true, every = "1s" }}, requests = {{ slow = "2s" }} }}
            [[service]]
            name = "s"
            discovery = {{ type = "static", endpoints = ["{b.endpoint()}"] }}
            [[listener]]
            name = "l"
            route = "s"
            bind = "127.0.0.1:0"
        """
        await b.gateway.reload(loads(text, Path()))
        lines = b.gateway.relays._lines
        assert (lines.connections.every, lines.requests.least) == (1, 2)
        before = time.monotonic()
        other, there = await b.pair()
        await until(lambda: [line for line in b.about if line["event"] == "connection_opened"])
        assert time.monotonic() - before < 1
        for peer in (client, instance, other, there):
            peer.close()
        await b.closed(2)
