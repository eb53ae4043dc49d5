"""What clients from outside find out about a change: pure counting, and real connections."""

import asyncio
import itertools
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import probe
import processes
import pytest
from peers import Address
from probe import Attempt, Reached, only
from processes import BenchmarkError, free_ports, start

# ---- counting ----


def tried(names: str, every: float = 1) -> list[Attempt]:
    """Make an attempt from each letter, `-` being one that failed."""
    return [Attempt(n * every, 0.0, "" if name == "-" else name) for n, name in enumerate(names)]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("BBBBB", Reached(0, 4, 0)),
        ("AABBBBB", Reached(2, 6, 0)),
        ("ABBBABBBBB", Reached(5, 9, 0)),
        ("A-B-BBBBB", Reached(4, 8, 2)),
    ],
)
def test_change_is_the_first_of_the_streak(names: str, found: Reached) -> None:
    """The change is there when the first connection began after which none reached another, or failed."""
    assert only("B", tried(names), in_a_row=4, quiet=0, patience=9) == found


def test_streak_must_last() -> None:
    """A streak of many within a moment is not yet one: an old process may accept again."""
    quickly = tried("AAA" + "B" * 20 + "A" + "B" * 400, every=0.001)
    assert only("B", quickly, in_a_row=4, quiet=0.3, patience=9).at == pytest.approx(0.024)


def test_change_that_never_comes_is_an_error() -> None:
    """What is not there after its time is an error, and so is a proxy that is tried in vain."""
    for names in ("A" * 60, "AB" * 30, "-" * 60):
        with pytest.raises(BenchmarkError, match="B is not all that 52 connections in 50 s reached"):
            only("B", tried(names), in_a_row=4, quiet=0, patience=50)


# ---- real connections ----


@pytest.fixture
def named(tmp_path: Path) -> Iterator[dict[str, Address]]:
    """Run two instances that say who they are."""
    script = Path(processes.__file__).with_name("named_instance.py")
    addresses = {name: Address("127.0.0.1", port) for name, port in zip("AB", free_ports(2), strict=True)}
    words = [word for name, address in addresses.items() for word in (name, *map(str, address))]
    child = start("named", [sys.executable, str(script), *words], log=tmp_path / "log", core=None)
    try:
        child.wait_until(lambda: all(probe.ask(addresses[name]) == name for name in addresses))
        yield addresses
    finally:
        child.stop()


def test_instances_say_who_they_are(named: dict[str, Address]) -> None:
    """Each connection tells which instance it reached, again and again."""
    for name, address in named.items():
        found = list(itertools.islice(probe.attempts(address, 0.0), 5))
        assert [each.name for each in found] == [name] * 5
        assert [each.at for each in found] == sorted(each.at for each in found)


def test_refused_connection_reaches_nobody() -> None:
    """A connection that is refused has no name, one after the other or side by side."""
    address = Address("127.0.0.1", free_ports(1)[0])
    assert probe.ask(address) == ""
    trying = probe.keep_trying(address, lambda: None, every=0.01, before=0.02, after=0.02)
    assert [each.name for each in asyncio.run(trying)] == [""] * 4


def test_connections_go_on_around_what_is_done(named: dict[str, Address]) -> None:
    """Connections begin before and after the act, whose time theirs count from."""
    acts: list[str] = []
    trying = probe.keep_trying(named["A"], lambda: acts.append("act"), every=0.01, before=0.05, after=0.1)
    found = asyncio.run(trying)
    assert acts == ["act"]
    assert [each.name for each in found] == ["A"] * 15
    assert [each.at < 0 for each in found] == [True] * 5 + [False] * 10


def test_connections_do_not_wait_for_each_other() -> None:
    """One that nobody serves does not keep the next from beginning, and has waited until it is served."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:

        def serve_none() -> None:
            asyncio.get_running_loop().call_later(0.2, serve)

        def serve() -> None:
            for _ in range(8):
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(b"A")

        address = Address(*listener.getsockname())
        found = asyncio.run(probe.keep_trying(address, serve_none, every=0.01, before=0.04, after=0.04))
    assert [each.name for each in found] == ["A"] * 8
    assert max(each.seconds for each in found) >= 0.2
