"""The rpc plane of one listener: makes its sessions, and holds what they share."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tcpgw.errors import ProtocolError
from tcpgw.relay.rpc.session import RpcSession
from tcpgw.wire.msgpack_scan import MsgpackSplitter

if TYPE_CHECKING:
    from tcpgw.config.listener import Listener as Settings
    from tcpgw.relay.rpc.memory import Memory
    from tcpgw.relay.rpc.routing import Routing
    from tcpgw.relay.session import Connection, OnEnd
    from tcpgw.wire.codec import Codec, Piece


class RpcPlane:
    """See `relay.session.Plane`. Nothing is connected for a client: the services' connections stand already.

    `codec` reads what clients send in frames and `bare` what they send without, None where the protocol has
    no such form. `rewrites`: the instances speak another form than framed clients do.
    """

    def __init__(
        self,
        settings: Settings,
        routing: Routing,
        memory: Memory,
        codec: Codec,
        bare: Codec | None,
        *,
        rewrites: bool,
        bulk: int,
    ) -> None:
        self.settings = settings
        self.routing = routing
        self.memory = memory
        self.answers = codec
        self.may_be_bare = bare is not None
        self.rewrites = rewrites
        self.bulk = bulk  # bytes of an answer from which its client's next requests go by the bulk lane
        self.unread = 0  # bytes that clients who read slowly have not read
        self.loop = asyncio.get_running_loop()
        self._bare = bare

    def codec(self, *, bare: bool) -> Codec:
        """What reads a client's messages."""
        return self._bare if bare and self._bare is not None else self.answers

    def check(self, data: bytes, pos: int, end: int, tail: Sequence[Piece]) -> None:
        """Raise ProtocolError where a frame is not one whole message.

        For instances without lengths: there the rest of it would be taken from the next client's message.
        """
        splitter = MsgpackSplitter(self.settings.max_frame)
        pieces = [data[pos + 4 : end], *tail]
        try:
            ends = [(place, at) for place, piece in enumerate(pieces) for at in splitter.feed(bytes(piece))]
        except ProtocolError:  # in the words of a stream
            ends = []
        if ends != [(len(pieces) - 1, len(pieces[-1]))]:
            raise ProtocolError("the frame does not hold one MessagePack value, and nothing else")

    async def open(self, connection: Connection, early: bytes, on_end: OnEnd) -> RpcSession:
        session = RpcSession(self, connection, early, on_end)
        await self.loop.connect_accepted_socket(lambda: session, connection.socket)
        return session
