"""The clients notice what a bad gateway would do to their bytes."""

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable

import pytest

from tcpgw.demo import traffic as module
from tcpgw.demo.traffic import Traffic

Serve = Callable[[StreamReader, StreamWriter], Awaitable[None]]


@pytest.fixture(autouse=True)
def _short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    # On the screen a round is spread so that a person can follow.
    monkeypatch.setattr(module, "ROUND", 0.05)


async def _one_round(serve: Serve) -> Traffic:
    """Let the clients of the echo meet a server of the test's own."""

    async def handle(reader: StreamReader, writer: StreamWriter) -> None:
        await serve(reader, writer)
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        traffic = Traffic({"echo": server.sockets[0].getsockname()})
        async with traffic.flowing():
            await traffic.round()
    return traffic


async def _echo(
    reader: StreamReader, writer: StreamWriter, *, flip: bool = False, name: bytes = b"a"
) -> None:
    writer.write(name + b"\n")
    while data := await reader.read(65536):
        writer.write(bytes([data[0] ^ 1]) + data[1:] if flip else data)
        flip = False


async def test_a_true_echo_passes() -> None:
    """Clients count what they opened and compared, and complain of nothing."""
    traffic = await _one_round(_echo)
    assert (traffic.broken, traffic.bytes_mismatched, traffic.moved) == ([], 0, [])
    assert traffic.connections == traffic.per_instance["a"] > 100
    assert traffic.bytes_exchanged > 100_000
    assert len(traffic.seen) == 100
    assert traffic.open == 0


async def test_a_changed_byte_is_counted() -> None:
    """One byte that differs in each connection is one byte mismatched in each."""
    traffic = await _one_round(lambda reader, writer: _echo(reader, writer, flip=True))
    assert traffic.bytes_mismatched == traffic.connections
    assert traffic.broken == []


async def test_bytes_too_many_are_counted() -> None:
    """What comes after the answer is mismatched as well."""

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        await _echo(reader, writer)
        writer.write(b"more")

    traffic = await _one_round(serve)
    assert traffic.bytes_mismatched == 4 * traffic.connections


async def test_a_connection_that_breaks_is_written_down_with_its_address() -> None:
    """By the address and port the gateway's log can say on which instance it was open."""

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        writer.write(b"a\n")
        await reader.read(1)

    traffic = await _one_round(serve)
    assert len(traffic.broken) == traffic.connections > 100
    assert all(str(broken.client).startswith(f"{broken.key.source}:") for broken in traffic.broken)


async def test_a_refused_connection_is_written_down() -> None:
    """A client that cannot connect at all is a failure, not an exception."""
    async with await asyncio.start_server(_echo, "127.0.0.1", 0) as server:
        address = server.sockets[0].getsockname()
    traffic = Traffic({"echo": address})
    async with traffic.flowing():
        await traffic.round()
    assert len(traffic.broken) == traffic.connections > 100
    assert {broken.client for broken in traffic.broken} == {None}


async def test_a_key_that_goes_elsewhere_has_moved() -> None:
    """A change of instance between two new connections of a key is one move, told once."""
    names = iter([b"a"] * 60)
    traffic = await _one_round(lambda reader, writer: _echo(reader, writer, name=next(names, b"b")))
    moved = traffic.take_moved()
    assert moved
    assert {(move.old, move.new) for move in moved} == {("a", "b")}
    assert len({move.key for move in moved}) == len(moved)
    assert traffic.take_moved() == []
