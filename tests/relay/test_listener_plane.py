"""What a listener promises to any plane: one that the test plays itself, whose sessions move no bytes."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from math import inf
from pathlib import Path
from types import MappingProxyType

from structlog.testing import capture_logs

from tcpgw.config.load import loads
from tcpgw.relay.draining import Cause
from tcpgw.relay.listener import Listener
from tcpgw.relay.reasons import Reason
from tcpgw.relay.session import Client, Connection, OnEnd
from tcpgw.relay.sockets import bind_socket
from tcpgw.relay.tally import Tallies
from tcpgw.wire.greeting import Line as Preamble
from tests.support.streams import Line, Peer, dial, in_time, new_lines, until


class Played:
    """A session that does as the test says, and keeps what the listener did."""

    service_name = "s"
    received, sent = 3, 4
    over = False

    def __init__(self, connection: Connection, on_end: OnEnd) -> None:
        self.connection = connection
        self.tended: list[float] = []
        self.drains = 0
        self._on_end: OnEnd | None = on_end

    def end(self, reason: Reason, error: str = "") -> None:
        self.connection.socket.close()
        if self._on_end:
            self._on_end(reason, error)
            self._on_end = None

    def abort(self, reason: Reason, *, reset: bool) -> None:  # noqa: ARG002 - the interface's
        self.end(reason)

    def drain(self, reason: Reason = Reason.DRAINED) -> None:  # noqa: ARG002 - the interface's
        self.drains += 1

    def look(self, now: float) -> None:
        pass

    def tend(self, now: float) -> None:
        self.tended.append(now)

    def owed(self, now: float) -> tuple[int | None, float | None]:  # noqa: ARG002 - the interface's
        return None, None

    def idle_seconds(self, now: float) -> float:
        return now - self.connection.opened

    def facts(self) -> dict[str, object]:
        return {"requests": 5, "endpoint": "the last of many"}


class Plane:
    """Opens when it may; `then` is what it does with a session before it returns it."""

    unknown: Mapping[str, object] = MappingProxyType({"endpoint": None})
    timeout = inf

    greeting = Preamble()

    def judge(self, client: Client) -> None:
        """It lets everybody in."""

    def figures(self, tallies: Tallies) -> dict[str, object]:  # noqa: ARG002
        return {"played": 1}

    def __init__(self, then: Callable[[Played], None] = lambda _: None) -> None:
        self.sessions: list[Played] = []
        self.may_open = asyncio.Event()
        self._then = then

    async def open(self, connection: Connection, early: bytes, on_end: OnEnd) -> Played:  # noqa: ARG002
        connection.facts = {"service": "s"}
        await self.may_open.wait()
        session = Played(connection, on_end)
        self.sessions.append(session)
        self._then(session)
        return session


@asynccontextmanager
async def listening(
    plane: Plane, settings: str = "", **lines: object
) -> AsyncIterator[tuple[Listener, Peer, list[Line]]]:
    """A listener over `plane` with one client, and the lines about it; closed at the end."""
    text = f"""
        [[service]]
        name = "s"
        discovery = {{ type = "static", endpoints = ["127.0.0.1:1"] }}
        [[listener]]
        name = "l"
        bind = "127.0.0.1:0"
        route = "s"
        {settings}
    """
    made = loads(text, Path()).listener[0]
    with capture_logs() as logs:
        sock = bind_socket(made.bind, made.keepalive)
        listener = Listener(made, (sock,), plane, lines=new_lines(**lines))
        listener.start()
        client = dial(sock.getsockname())
        await until(lambda: listener.accepted)
        try:
            yield listener, client, logs
        finally:
            await in_time(listener.close())
            client.close()


async def test_the_line_has_what_the_session_says() -> None:
    """Figures and facts are read after the end; what a session says outdoes what was known before it."""
    plane = Plane()
    plane.may_open.set()
    async with listening(plane) as (listener, _, logs):
        await until(lambda: plane.sessions)
        await asyncio.sleep(0)
        plane.sessions[0].end(Reason.FRAME_TOO_LARGE, "byte 7")
        assert listener.ended == {Reason.FRAME_TOO_LARGE: 1}
        status = listener.status()
        assert (status["bytes_in"], status["bytes_out"], status["played"]) == (3, 4, 1)
    (line,) = logs
    assert {key: line[key] for key in ("service", "endpoint", "requests", "bytes_in", "bytes_out")} == {
        "service": "s", "endpoint": "the last of many", "requests": 5, "bytes_in": 3, "bytes_out": 4,
    }  # fmt: skip
    assert (line["reason"], line["error"]) == ("frame_too_large", "byte 7")


async def test_a_time_out_of_the_plane_is_looked_at_often_enough() -> None:
    """Where it is shorter than all of the listener's, sessions are tended several times in it."""
    plane = Plane()
    plane.timeout = 0.08
    plane.may_open.set()
    async with listening(plane):
        await until(lambda: plane.sessions and len(plane.sessions[0].tended) > 3)


async def test_who_is_being_set_up_is_counted_as_there() -> None:
    """Without a service, from the first client on; then with the one that it came to."""
    plane = Plane()

    def active() -> dict[str, int]:
        return {name: one["active"] for name, one in listener.status()["services"].items()}

    async with listening(plane) as (listener, _, _):
        assert active() == {"": 1}
        plane.may_open.set()
        await until(lambda: "s" in active())
        assert active() == {"": 0, "s": 1}


async def test_an_end_before_the_session_is_known() -> None:
    """A session that ends before `open` has returned it is logged once, with its own figures and reason."""
    plane = Plane(lambda session: session.end(Reason.CLIENT_RESET))
    plane.may_open.set()
    async with listening(plane) as (listener, _, logs):
        await until(lambda: logs)
        assert not listener.connections
    (line,) = logs
    assert (line["reason"], line["bytes_in"], line["requests"]) == ("client_reset", 3, 5)


async def test_an_open_that_fails_after_its_end() -> None:
    """Whatever a plane reports of a client that it failed to take over, there is one line."""

    def fail(session: Played) -> None:
        session.end(Reason.CLIENT_RESET)
        raise ConnectionResetError(104, "Connection reset by peer")

    plane = Plane(fail)
    plane.may_open.set()
    async with listening(plane) as (listener, client, logs):
        await until(lambda: logs)
        assert not listener.connections
        with contextlib.suppress(ConnectionResetError):
            assert await client.read_to_end() == b""
    (line,) = logs
    assert (line["reason"], line["service"], line["bytes_in"]) == ("client_reset", "s", 0)


async def test_sessions_are_tended() -> None:
    """Several times per shortest time-out, with the time."""
    plane = Plane()
    plane.may_open.set()
    settings = 'mode = "rpc"\nframe_timeout = "200ms"'
    async with listening(plane, settings):
        await until(lambda: plane.sessions)
        began = time.monotonic()
        tended = plane.sessions[0].tended
        await until(lambda: len(tended) == 4)
        assert time.monotonic() - began < 0.2
        assert began <= tended[0] < tended[1] < tended[2] < tended[3] <= time.monotonic()


async def test_a_session_that_cannot_be_tended_does_not_flood_the_log() -> None:
    """It is looked at again and again, and told of once for some time, with its traceback."""
    times = 0

    def fail(_: float) -> None:
        nonlocal times
        times += 1
        raise RuntimeError("a bug")

    plane = Plane(lambda session: setattr(session, "tend", fail))
    plane.timeout = 0.08
    plane.may_open.set()
    async with listening(plane) as (listener, _, logs):
        await until(lambda: times > 3)
        assert listener.connections
        (line,) = logs
    assert (line["event"], line["listener"], line["conn"]) == ("connection_not_tended", "l", 1)
    assert str(line["exc_info"]) == "a bug"


async def test_lines_about_open_connections_do_not_have_all_looked_at_too_often() -> None:
    """Once a second at most: with many connections each look costs some of it."""
    plane = Plane()
    plane.may_open.set()
    async with listening(plane, every=1.0) as (_, _, logs):
        await until(lambda: logs)
        assert logs[0]["event"] == "connection_open"
        assert len(plane.sessions[0].tended) <= 3


async def test_a_drain_says_why() -> None:
    """Stages are counted by the cause that it is given, of every connection once."""
    plane = Plane()
    plane.may_open.set()
    async with listening(plane) as (listener, _, logs):
        await until(lambda: plane.sessions and listener.connections[1].session)
        listener.drain(cause=Cause.LISTENER_REMOVED)
        listener.drain(0.0, 0.2)
        await in_time(listener.drained())
        assert listener.status()["drains"] == {
            "listener_removed": {"started": 1, "finished": 0, "closed": 0, "reset": 1, "spared": 0}
        }
    (line,) = logs
    assert (line["reason"], line["error"]) == ("drained", "not ended within 0.2 s of its drain")


async def test_drain_asks_every_session() -> None:
    """Those that stand at once, and those that are being opened as soon as they stand."""
    plane = Plane()
    async with listening(plane) as (listener, _, logs):
        address = listener.address.rpartition(":")
        standing = dial(("127.0.0.1", int(address[2])))
        await until(lambda: listener.accepted == 2)
        plane.may_open.set()
        await until(lambda: len(plane.sessions) == 2)
        plane.may_open.clear()
        await asyncio.sleep(0)
        opening = dial(("127.0.0.1", int(address[2])))
        await until(lambda: listener.accepted == 3)
        listener.drain()
        assert [session.drains for session in plane.sessions] == [1, 1]
        plane.may_open.set()
        await until(lambda: len(plane.sessions) == 3 and plane.sessions[2].drains)
        assert not logs
        for session in plane.sessions:
            session.end(Reason.DRAINED)
        await in_time(listener.drained())
        standing.close()
        opening.close()
    assert [line["reason"] for line in logs] == ["drained"] * 3
