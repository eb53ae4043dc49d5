"""What a connection says of its instance: at most one success, or what it failed of."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tcpgw.endpoints import Endpoint
from tcpgw.relay.framed import FramedPlane
from tcpgw.relay.outcomes import Kind, Outcome, Outcomes
from tcpgw.relay.stream_plane import StreamPlane, StreamSession
from tests.support.framed import U32BE, ask, u32be
from tests.support.streams import Bed, Peer, bed


class Judged:
    """A gateway of which it is asked how its only instance does."""

    def __init__(self, b: Bed) -> None:
        self.bed = b
        self.outcomes: Outcomes = b.gateway.relays.reports.outcomes(b.pool)
        self.outcomes.change([kind for kind in Kind if kind is not Kind.ERROR], failures=1)

    @property
    def outcome(self) -> Outcome:
        return self.outcomes[Endpoint.parse(self.bed.endpoint())]

    @property
    def found(self) -> tuple[int, dict[Kind, int]]:
        """Successes, and failures by kind."""
        return self.outcome.successes, {kind: n for kind, n in self.outcome.failures.items() if n}

    async def session(self, first_byte: float | None = None) -> StreamSession:
        session = await self.bed.relay()
        assert isinstance(session, StreamSession)
        session.upstream.first_byte_timeout = first_byte
        return session


@asynccontextmanager
async def judged(listener: str = "") -> AsyncIterator[Judged]:
    """Nobody but the test looks at the time: the listener's sweep comes too late for it."""
    times = [f'{name} = "1h"' for name in ("fin_timeout", "keepalive")]
    if listener:
        times.append('frame_timeout = "1h"')
    async with bed(listener="\n".join([listener, *times])) as b:
        yield Judged(b)


Ends = Callable[[Peer, Peer], Awaitable[object]]


async def answer(client: Peer, instance: Peer) -> None:
    await client.send(b"question")
    await instance.read(8)
    await instance.send(b"answer")
    await client.read(6)
    client.reset()


async def greet(client: Peer, instance: Peer) -> None:
    await instance.send(b"hello")
    await client.read(5)
    instance.reset()


async def reset(client: Peer, instance: Peer) -> None:
    await client.send(b"question")
    await instance.read(8)
    instance.reset()


async def reset_at_once(client: Peer, instance: Peer) -> None:  # noqa: ARG001
    instance.reset()


async def hang_up(client: Peer, instance: Peer) -> None:
    await client.send(b"question")
    await instance.read(8)
    client.reset()


async def close(client: Peer, instance: Peer) -> None:
    await client.send(b"question")
    await instance.read(8)
    instance.close()
    client.close()


async def close_unasked(client: Peer, instance: Peer) -> None:
    instance.close()
    assert await client.read_to_end() == b""
    client.close()


async def say_nothing(client: Peer, instance: Peer) -> None:
    client.close()
    assert await instance.read_to_end() == b""
    instance.close()


async def only_listen(client: Peer, instance: Peer) -> None:
    await client.send(b"news")
    client.fin()
    assert await instance.read_to_end() == b"news"
    instance.close()


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        (answer, (1, {})),
        (greet, (1, {})),
        (reset, (0, {Kind.RESET: 1})),
        (reset_at_once, (0, {Kind.RESET: 1})),
        (hang_up, (0, {})),
        (close, (0, {})),
        (close_unasked, (0, {})),
        (say_nothing, (0, {})),
        (only_listen, (1, {})),
    ],
)
async def test_what_an_end_says(ends: Ends, expected: tuple[int, dict[Kind, int]]) -> None:
    """A byte from the instance is a success. Before any, its reset is a failure.

    Other ends mostly say nothing.
    """
    async with judged() as j:
        await ends(*await j.bed.pair())
        await j.bed.line()
        assert j.found == expected


async def test_where_a_first_byte_is_expected_no_other_end_is_a_success() -> None:
    """An instance that does no more than end after its client does not answer."""
    async with judged() as j:
        pair = await j.bed.pair()
        await j.session(first_byte=10.0)
        await only_listen(*pair)
        await j.bed.line()
        assert j.found == (0, {})


async def test_where_a_first_byte_is_expected_an_early_end_is_a_failure() -> None:
    """An instance that is asked and hangs up has not answered."""
    async with judged() as j:
        pair = await j.bed.pair()
        await j.session(first_byte=10.0)
        await close(*pair)
        await j.bed.line()
        assert j.found == (0, {Kind.RESET: 1})


async def test_a_first_byte_is_noticed_at_once() -> None:
    """Once, however often it is looked for and whatever comes later."""
    async with judged() as j:
        client, instance = await j.bed.pair()
        session = await j.session()
        session.tend(1.0)
        assert j.found == (0, {})
        await instance.send(b"hello")
        await client.read(5)
        assert j.found == (1, {})
        session.tend(2.0)
        await instance.send(b"again")
        assert await client.read(5) == b"again"
        session.tend(3.0)
        instance.reset()
        await j.bed.line()
        assert j.found == (1, {})


async def test_answered_connections_that_go_on_end_a_streak() -> None:
    """Failures between which others were answered are not in a row, though no look has seen these yet."""
    async with judged() as j:
        for number in range(1, 4):
            client, instance = await j.bed.pair()
            await instance.send(b"hello")
            await client.read(5)
            await reset(*await j.bed.pair())
            await j.bed.closed(number)
            assert j.outcome.streak == 1
        assert j.found == (3, {Kind.RESET: 3})


async def test_no_first_byte_in_time() -> None:
    """It counts from the client's last byte, once; the connection goes on, and says no more."""
    async with judged() as j:
        client, instance = await j.bed.pair()
        session = await j.session(first_byte=5.0)
        session.tend(100.0)
        session.tend(200.0)  # nobody has asked
        for now, sent in ((201.0, b"half "), (205.9, b"the rest")):
            await client.send(sent)
            assert await instance.read(len(sent)) == sent
            session.tend(now)
        session.tend(210.0)
        assert j.found == (0, {})
        session.tend(210.9)
        session.tend(300.0)
        assert j.found == (0, {Kind.TIMEOUT: 1})
        await instance.send(b"late")
        assert await client.read(4) == b"late"
        session.tend(301.0)
        instance.reset()
        await j.bed.line()
        assert j.found == (0, {Kind.TIMEOUT: 1})


async def test_without_a_time_out_silence_says_nothing() -> None:
    """There are protocols in which an answer may take for ever."""
    async with judged() as j:
        client, instance = await j.bed.pair()
        session = await j.session()
        await client.send(b"question")
        await instance.read(8)
        session.tend(1.0)
        session.tend(1000.0)
        assert j.found == (0, {})


async def test_how_often_a_plane_wants_to_be_looked_at() -> None:
    """As its time-out needs it; but not so often that it costs more than it tells."""

    def choose(*_: object) -> Any:
        raise NotImplementedError

    async with judged() as j:
        settings = j.bed.listener._settings
        assert StreamPlane(settings, choose).timeout > 1e9
        assert StreamPlane(settings, choose, 5.0).timeout == 5.0
        assert FramedPlane(settings, choose, choose, 0.05, in_order=True).timeout == 0.8


# ---- frames ----


async def test_what_is_no_frame_of_the_instance() -> None:
    """It is a failure, also of an instance that has answered before."""
    async with judged(listener=U32BE + '\nmax_frame = "1KiB"') as j:
        client, instance = await j.bed.pair()
        session = await j.session()
        await ask(client, instance)
        session.tend(1.0)
        await instance.send(u32be(bytes(2000)))
        await client.read_to_end()
        client.close()
        await j.bed.line()
        assert j.found == (1, {Kind.PROTOCOL: 1})


async def test_what_is_no_frame_of_the_client() -> None:
    """No instance is blamed for what a client sends."""
    async with judged(listener=U32BE + '\nmax_frame = "1KiB"') as j:
        client, instance = await j.bed.pair()
        await client.send(u32be(bytes(2000)))
        await instance.read_to_end()
        instance.close()
        await j.bed.line()
        assert j.found == (0, {})


async def test_an_instance_that_begins_with_no_frame() -> None:
    """Each time a failure and never a success, however early it comes."""
    async with judged(listener=U32BE + '\nmax_frame = "1KiB"') as j:
        loop = asyncio.get_running_loop()

        def accept_and_send() -> None:
            peer = Peer(j.bed.instances[0].accept()[0])
            peer.sock.send(u32be(bytes(2000)))
            j.bed._keep(peer)

        loop.add_reader(j.bed.instances[0], accept_and_send)
        for number in range(1, 21):
            client = j.bed.dial()
            with contextlib.suppress(ConnectionResetError):
                assert await client.read_to_end() == b""
            client.close()
            await j.bed.closed(number)
        loop.remove_reader(j.bed.instances[0])
        refused = sum(line["reason"] == "frame_too_large" for line in j.bed.lines)
        assert j.found == (0, {Kind.PROTOCOL: refused})
