"""Clients that do not read: what they may leave unread, for how long, and who is not to blame."""

import asyncio
from types import SimpleNamespace
from typing import cast

import pytest

from tcpgw.relay.rpc import slow_reader
from tcpgw.relay.rpc.plane import RpcPlane
from tcpgw.relay.rpc.session import RpcSession
from tcpgw.relay.rpc.slow_reader import SlowReader, delivered

BUFFER, FRAME, LIMIT = 100, 1000, 40_000


class Client:
    """One whose transport holds `unread` bytes; all else that was sent has left the host."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, sent: int, unread: int) -> None:
        self.sent = sent
        self.unread = unread
        self.gone = False
        self.why = ""
        self.owed: list[int] = []
        monkeypatch.setattr(slow_reader, "unacknowledged", lambda _: 0)
        monkeypatch.setattr(slow_reader, "monotonic", lambda: 50.0)
        memory = SimpleNamespace(limit=LIMIT, owe=lambda _, size: self.owed.append(size))
        settings = SimpleNamespace(max_frame=FRAME, buffer=BUFFER, frame_timeout=10.0)
        transport = SimpleNamespace(get_write_buffer_size=lambda: self.unread)
        self.transport = cast("asyncio.Transport", transport)
        plane = cast("RpcPlane", SimpleNamespace(memory=memory, settings=settings))
        self.reader = SlowReader(cast("RpcSession", self), plane, self.transport)

    def cut(self, why: str) -> None:
        self.why, self.gone = why, True

    def read(self, count: int) -> None:
        self.unread -= count


def test_who_reads_within_a_share_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the account is one client's, and all of it is told."""
    client = Client(monkeypatch, sent=20_000, unread=LIMIT // 4)
    assert not client.reader.overflows()
    client.unread += 1
    assert client.reader.overflows()
    assert client.why == "10001 bytes of its answers are unread"
    assert client.owed == [10_000, 10_001]


def test_who_was_cut_for_the_account_is_not_cut_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The account may cut it when it is told; then that is why."""
    client = Client(monkeypatch, sent=90_000, unread=80_000)
    client.gone = True
    assert client.reader.overflows()
    assert client.why == ""


def test_who_reads_a_buffer_in_time_has_another_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time begins anew; who reads less by then is cut off and told how much it was."""
    client = Client(monkeypatch, sent=5000, unread=4000)
    client.read(BUFFER)
    client.reader.tend(55.0)
    client.read(BUFFER - 1)
    client.reader.tend(64.9)
    assert not client.gone
    client.reader.tend(65.0)
    assert client.why == "99 bytes of its answers were read within 10 s"


def test_who_has_read_all_is_not_to_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it waits for then is its limit of bytes per second."""
    client = Client(monkeypatch, sent=50, unread=50)
    client.read(50)
    client.reader.tend(100.0)
    assert not client.gone
    assert client.reader.reads(100.0, 1 << 20)


def test_reading_is_judged_after_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the rate since it became slow."""
    client = Client(monkeypatch, sent=5000, unread=4000)
    assert client.reader.reads(50.4, 1000)
    assert not client.reader.reads(51.0, 1000)
    client.read(1000)
    assert client.reader.reads(51.0, 1000)


def test_what_the_kernel_holds_is_not_delivered_while_more_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing waits here, the client has or will have it without us."""
    client = Client(monkeypatch, sent=5000, unread=1000)
    monkeypatch.setattr(slow_reader, "unacknowledged", lambda _: 300)
    assert delivered(5000, client.transport) == 3700
    client.unread = 0
    assert delivered(5000, client.transport) == 5000
