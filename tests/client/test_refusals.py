"""The client and a server that will have nothing to do with it, and says so."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from tcpgw.client import ConnectionLostError, RpcError, connect
from tests.support.rpc_ends import frame, nothing_left, read_message, server
from tests.support.streams import PATIENCE, until


@pytest.fixture(autouse=True)
async def leaves_nothing() -> AsyncIterator[None]:
    async with nothing_left():
        yield


@pytest.mark.parametrize("when", ["before the call", "after it"])
async def test_a_refusal_before_anything_was_asked_is_said_so(when: str) -> None:
    """A server that lets this client in nowhere says why: calls raise that, and nobody asks on and on."""
    async with AsyncExitStack() as stack:
        played = stack.enter_context(server())
        client = await stack.enter_async_context(connect(played.address))
        peer = await played.accept()
        refusal = frame(1, None, {"code": "unauthenticated", "message": "access denied"}, None)
        if when == "before the call":
            await peer.send(refusal)
            peer.fin()
            await until(lambda: client._connection and not client._connection.usable)
        calls = [asyncio.create_task(client.call("m", timeout=PATIENCE)) for _ in range(2)]
        if when == "after it":
            await read_message(peer)
            await peer.send(refusal)
        else:
            peer = await played.accept()  # another call tries anew, as access may have been given
            await peer.send(refusal)
        for call in calls:
            with pytest.raises(RpcError, match="unauthenticated: access denied"):
                await call


async def test_an_end_that_is_no_refusal_is_a_loss() -> None:
    """What a server says of itself, or of a client that it has served, is not said of all its calls."""
    for code, served in (("unavailable", False), ("denied", True)):
        with server() as played:
            async with connect(played.address) as client:
                peer = await played.accept()
                if served:
                    call = asyncio.create_task(client.call("m"))
                    message = await read_message(peer)
                    await peer.send(frame(1, message[1], None, None))
                    await call
                call = asyncio.create_task(client.call("m"))
                await read_message(peer)
                await peer.send(frame(1, None, {"code": code, "message": "so"}, None))
                with pytest.raises(ConnectionLostError, match=f"ended the connection: {code}: so"):
                    await call
