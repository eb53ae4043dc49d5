"""What tests of framed relays share."""

import struct

from tcpgw.relay.framed import FramedPlane, FramedSession
from tests.support.streams import Bed, Peer

U32BE = 'mode = "rpc"\ncodec = "u32be"'
FIFO = 'mode = "rpc"\ncodec = { name = "fifo", frame = "u32be" }'


def u32be(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


async def session(b: Bed) -> FramedSession:
    found = await b.relay()
    assert isinstance(found, FramedSession)
    return found


def plane(b: Bed) -> FramedPlane:
    found = b.listener._plane
    assert isinstance(found, FramedPlane)
    return found


async def ask(client: Peer, instance: Peer) -> None:
    """A question and its answer."""
    await client.send(u32be(b"q"))
    assert await instance.read(5) == u32be(b"q")
    await instance.send(u32be(b"a"))
    assert await client.read(5) == u32be(b"a")
