"""Accepting: from one socket or several, within the limit, and when there are no descriptors left."""

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import structlog
from structlog.testing import capture_logs

from tcpgw.config.load import loads
from tcpgw.config.values import Bind
from tcpgw.relay import accepting
from tcpgw.relay.accepting import Acceptor, Peer
from tcpgw.relay.listener import Listener
from tcpgw.relay.sockets import bind_socket
from tcpgw.relay.stream_plane import StreamPlane
from tests.support.streams import Line, dial, in_time, listening, new_lines, until


class Short:
    """A listening socket of a process that has no descriptors left while it is `out`."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.out = False
        self.asked = 0

    def accept(self) -> tuple[socket.socket, Any]:
        self.asked += 1
        if self.out:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return self.sock.accept()

    def fileno(self) -> int:
        return self.sock.fileno()

    def close(self) -> None:
        self.sock.close()


class Bed:
    """An acceptor over one or more sockets that may run out of descriptors, and what it took."""

    def __init__(self, sockets: list[Short], most: int, logs: list[Line]) -> None:
        self.sockets = sockets
        self.logs = logs
        self.taken: list[socket.socket] = []
        self.acceptor = Acceptor(
            cast("list[socket.socket]", sockets),
            self.taken,
            lambda: most - len(self.taken),
            self._take,
            structlog.get_logger(),
        )
        self.acceptor.resume()

    def _take(self, sock: socket.socket, _: Peer) -> None:
        self.taken.append(sock)

    def events(self) -> list[str]:
        return [line["event"] for line in self.logs]


@contextmanager
def bed(count: int = 1, most: int = 100) -> Iterator[Bed]:
    with contextlib.ExitStack() as stack:
        logs = stack.enter_context(capture_logs())
        made = Bed([Short(stack.enter_context(listening())) for _ in range(count)], most, logs)
        try:
            yield made
        finally:
            made.acceptor.stop(outlived=True)
            for sock in made.taken:
                sock.close()


@contextmanager
def clients(b: Bed, count: int, number: int = 0) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.callback(dial(b.sockets[number].sock.getsockname()).close)
        yield


async def test_every_socket_is_accepted_from() -> None:
    """Within one limit for all, whichever of them clients come by."""
    with bed(count=3, most=7) as b, clients(b, 5, 0), clients(b, 1, 1), clients(b, 5, 2):
        await until(lambda: b.acceptor.accepted == 7)
        await until(lambda: b.acceptor.paused == 1)
        await asyncio.sleep(0.02)
        assert b.acceptor.accepted == 7
        b.taken.pop().close()
        b.acceptor.resume()
        await until(lambda: b.acceptor.paused == 2)
        assert b.acceptor.accepted == 8


@pytest.mark.parametrize("outlived", [False, True])
async def test_who_waits_at_the_stop(outlived: bool) -> None:
    """At each socket: let in, unless others go on accepting from it."""
    with bed(count=2) as b, clients(b, 40, 0), clients(b, 40, 1):
        b.acceptor.stop(outlived=outlived)
        assert b.acceptor.accepted == (0 if outlived else 80)
        assert [one.fileno() for one in b.sockets] == [-1, -1]
        b.acceptor.stop(outlived=outlived)
        b.acceptor.resume()
        await asyncio.sleep(0)


async def test_without_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said when it begins and when it is over; in between the loop is not kept busy."""
    monkeypatch.setattr(accepting, "_PAUSE", 0.02)
    with bed() as b:
        b.sockets[0].out = True
        with clients(b, 3):
            await until(lambda: b.acceptor.failures >= 5)
            assert b.sockets[0].asked == b.acceptor.failures
            (line,) = b.logs
            assert (line["event"], line["log_level"]) == ("accept_failed", "error")
            assert line["error"] == "Too many open files"
            assert "ulimit -n" in line["hint"]
            b.sockets[0].out = False
            await until(lambda: b.acceptor.accepted == 3)
        failures = b.acceptor.failures
        _, line = b.logs
        assert (line["event"], line["log_level"]) == ("accept_recovered", "warning")
        assert line["failed"] == failures
        assert 0.08 <= line["seconds"] < 5


async def test_a_long_shortage_is_said_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once in a while for as long as it lasts, with how many failed."""
    monkeypatch.setattr(accepting, "_PAUSE", 0.01)
    monkeypatch.setattr(accepting, "_SAY_EVERY", 0.1)
    with bed() as b:
        b.sockets[0].out = True
        with clients(b, 1):
            await until(lambda: len(b.logs) == 3)
            assert b.events() == ["accept_failed"] * 3
            failed = [line["failed"] for line in b.logs]
            assert failed[0] == 1 < failed[1] < failed[2] <= b.acceptor.failures
            b.sockets[0].out = False
            await until(lambda: b.acceptor.accepted)


async def test_many_short_shortages_are_few_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where each connection that ends lets one in, the log does not have a line for each."""
    monkeypatch.setattr(accepting, "_PAUSE", 0.001)
    with bed() as b:
        for number in range(10):
            b.sockets[0].out = True
            failures = b.acceptor.failures
            with clients(b, 1):
                await until(lambda failures=failures: b.acceptor.failures > failures)  # type: ignore[misc]
                b.sockets[0].out = False
                await until(lambda number=number: b.acceptor.accepted == number + 1)  # type: ignore[misc]
        assert b.acceptor.failures >= 10
        assert b.events() == ["accept_failed", "accept_recovered"]


async def test_a_stop_without_descriptors() -> None:
    """Nothing is tried again after it."""
    with bed() as b:
        b.sockets[0].out = True
        with clients(b, 1):
            await until(lambda: b.acceptor.failures)
            b.acceptor.stop(outlived=False)
            asked = b.sockets[0].asked
            await asyncio.sleep(0.15)
            assert b.sockets[0].asked == asked


# ---- a listener of several sockets ----


async def test_a_listener_of_several_sockets() -> None:
    """Sockets that share an address: the kernel spreads the clients, all are served, all sockets closed."""
    first = bind_socket(Bind("127.0.0.1", 0), 60.0, shared=True)
    port = first.getsockname()[1]
    sockets = [first, *(bind_socket(Bind("127.0.0.1", port), 60.0, shared=True) for _ in range(2))]

    def choose(_: object) -> Any:
        raise ConnectionResetError

    with capture_logs():
        listener = Listener(_settings(), sockets, StreamPlane(_settings(), choose), lines=new_lines())
        assert listener.address == f"127.0.0.1:{port}"
        listener.start()
        peers = [dial(("127.0.0.1", port)) for _ in range(30)]
        for peer in peers:
            assert await peer.read_to_end() == b""
            peer.close()
        assert listener.status()["accepted"] == 30
        assert listener.status()["ended"] == {"client_reset": 30}
        await in_time(listener.close())
    assert [sock.fileno() for sock in sockets] == [-1] * 3


@pytest.mark.parametrize("made_outlived", [False, True])
@pytest.mark.parametrize("stop", ["stop_accepting", "drain"])
async def test_whether_others_go_on_is_known_at_the_end(made_outlived: bool, stop: str) -> None:
    """What is said when the accepting stops outdoes what was said at the beginning."""

    def choose(_: object) -> Any:
        raise ConnectionResetError

    for outlived in (None, False, True):
        with capture_logs():
            sock = bind_socket(Bind("127.0.0.1", 0), 60.0)
            plane = StreamPlane(_settings(), choose)
            listener = Listener(_settings(), (sock,), plane, lines=new_lines(), outlived=made_outlived)
            listener.start()
            waiting = dial(sock.getsockname())
            getattr(listener, stop)(outlived=outlived)
            expected = made_outlived if outlived is None else outlived
            assert listener.accepted == (0 if expected else 1)
            await in_time(listener.close())
            waiting.close()


def _settings() -> Any:
    text = """
        [[service]]
        name = "s"
        discovery = { type = "static", endpoints = ["127.0.0.1:1"] }
        [[listener]]
        name = "l"
        bind = "127.0.0.1:0"
        route = "s"
    """
    return loads(text, Path()).listener[0]
