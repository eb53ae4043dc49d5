"""The rpc plane of one listener: makes its sessions, and holds what they share."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from math import inf
from types import MappingProxyType
from typing import TYPE_CHECKING

from tcpgw.relay.rpc.session import RpcSession
from tcpgw.relay.rpc.turn import EachTurn
from tcpgw.wire.msgpack_scan import MsgpackSplitter

if TYPE_CHECKING:
    from tcpgw.config.listener import Listener as Settings
    from tcpgw.relay.rpc.memory import Memory
    from tcpgw.relay.rpc.routing import Routing
    from tcpgw.relay.session import Connection, OnEnd
    from tcpgw.wire.codec import Codec

_SMALL = 4096


class RpcPlane:
    """See `relay.session.Plane`. Nothing is connected for a client: the services' connections stand already.

    `sessions` are all that are open or are being set up: they follow what is changed here.

    `codec` reads what clients send in frames and `bare` what they send without, None where the protocol has
    no such form. `rewrites`: the instances speak another form than framed clients do.
    """

    # Requests have endpoints here, and connections none.
    unknown: Mapping[str, object] = MappingProxyType({})
    timeout = inf  # requests have a sweep of their own

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
        self.memory = memory
        self.answers = codec
        self.may_be_bare = bare is not None
        self.sessions: set[RpcSession] = set()
        self.loop = asyncio.get_running_loop()
        self._bare = bare
        self._rewrites = rewrites
        self._take(settings, routing, bulk)

    def _take(self, settings: Settings, routing: Routing, bulk: int) -> None:
        self.settings = settings
        self.routing = routing
        self.bulk = bulk  # bytes of an answer from which its client's next requests go by the bulk lane
        # Instances without lengths would take what follows a value in a frame for the next client's message.
        self.inner = partial(MsgpackSplitter, settings.max_frame) if self._rewrites else None
        # Bytes of a read up to which it may go by a turn. Reads that small need no account of their bytes,
        # because they are bounded by how many clients there are.
        self.small = min(_SMALL, 4 + settings.max_frame, bulk or _SMALL)
        # Whether clients' requests may be taken together in turns, and the turn of those that go different
        # ways. Bodies that are looked at as they come have none.
        self.turns = self.inner is None and routing.by_name
        self.each = EachTurn(self) if self.inner is None and routing.looks else None

    def settle(self) -> None:
        """Pass on what clients sent, by what is in force. Call before that changes, rules included."""
        for session in list(self.sessions):
            session.settle_turn()

    def change(self, settings: Settings, routing: Routing, *, bulk: int) -> None:
        """Take other settings and another routing, of the same codec, for all sessions. After `settle`.

        Requests that have gone to a service stay there; the next ones go by what is new.
        """
        self._take(settings, routing, bulk)
        for session in list(self.sessions):
            session.changed()

    def codec(self, *, bare: bool) -> Codec:
        """What reads a client's messages."""
        return self._bare if bare and self._bare is not None else self.answers

    async def open(self, connection: Connection, early: bytes, on_end: OnEnd) -> RpcSession:
        session = RpcSession(self, connection, early, on_end)
        self.sessions.add(session)
        try:
            await self.loop.connect_accepted_socket(lambda: session, connection.socket)
        except BaseException:
            self.sessions.discard(session)
            raise
        return session
