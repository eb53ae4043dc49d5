"""A relay with TLS on both sides does what it does without: FIN, RST and rests are passed on."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest

from tcpgw.relay.handshake import Conversation
from tcpgw.relay.reasons import Reason
from tcpgw.relay.stream import Relay
from tcpgw.relay.tls import TlsLayer
from tests.support.layering import Above
from tests.support.streams import MiB, in_time, until
from tests.support.tls import layer_on, pair, shaken

LARGE = bytes(range(256)) * (3 * MiB // 256)


class Bed(NamedTuple):
    """A client and an instance of a relay, and why it ended."""

    client: Above
    instance: Above
    instance_socket: socket.socket
    instance_said: Conversation
    ended: "asyncio.Future[Reason]"


@contextlib.asynccontextmanager
async def bed() -> AsyncIterator[Bed]:
    """TLS from the client to the relay, and from there to an instance, which the relay is strict with."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[Reason] = loop.create_future()
    relay = Relay(lambda reason, _: ended.set_result(reason), 0.0)
    async with pair() as (front, client), pair() as (instance, back):
        front_said, client_said = await shaken(front, client)
        instance_said, back_said = await shaken(instance, back)
        inner = TlsLayer(relay.instance, back_said, strict=True)
        await loop.connect_accepted_socket(lambda: inner, back)
        outer = TlsLayer(relay.client, front_said, strict=False)
        await loop.connect_accepted_socket(lambda: outer, front)
        at_client = await layer_on(client, client_said, strict=True)
        at_instance = await layer_on(instance, instance_said)
        yield Bed(at_client, at_instance, instance, instance_said, ended)
        relay.abort(Reason.SHUTDOWN, reset=True)
        await in_time(ended)


@pytest.mark.parametrize("first", ["client", "instance"])
async def test_each_direction_ends_for_itself(first: str) -> None:
    """Megabytes and their end go one way, then megabytes the other."""
    async with bed() as b:
        one, other = (b.client, b.instance) if first == "client" else (b.instance, b.client)
        for sender, receiver in ((one, other), (other, one)):
            sender.transport.write(LARGE)
            sender.transport.write_eof()
            await until(receiver.heard("eof"))
            assert receiver.data == LARGE
        reason = await in_time(b.ended)
        assert reason == (Reason.CLIENT_FIN if first == "client" else Reason.INSTANCE_FIN)
        assert b.client.error is b.instance.error is None


async def test_a_cut_off_answer_does_not_look_finished() -> None:
    """An instance that goes without close_notify is a reset for the client."""
    async with bed() as b:
        b.instance.transport.write(b"half an ans")
        await until(lambda: b.client.data)
        b.instance_socket.shutdown(socket.SHUT_WR)
        assert await in_time(b.ended) == Reason.INSTANCE_RESET
        await in_time(b.client.lost.wait())
        assert b.client.data == b"half an ans"
        assert isinstance(b.client.error, ConnectionResetError)


async def test_a_reset_is_passed_on_as_a_reset() -> None:
    """From the instance to the client."""
    async with bed() as b:
        linger = struct.pack("ii", 1, 0)
        b.instance_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        b.instance.transport.abort()
        assert await in_time(b.ended) == Reason.INSTANCE_RESET
        await in_time(b.client.lost.wait())
        assert isinstance(b.client.error, ConnectionResetError)


async def test_an_instance_that_refuses_the_rest_of_a_request() -> None:
    """What arrives of its answer is as it was said: the rest that a relay reads is no record of TLS."""
    async with bed() as b:
        b.instance.when = lambda event: b.instance.transport.pause_reading() if event == "data" else None
        b.client.transport.write(LARGE)
        await until(lambda: b.instance.data)
        b.instance.transport.write(b"too large")
        b.instance.transport.close()
        assert await in_time(b.ended) in {Reason.INSTANCE_FIN, Reason.INSTANCE_RESET}
        assert b"too large".startswith(bytes(b.client.data))
