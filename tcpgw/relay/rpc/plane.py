"""The rpc plane of one listener: makes its sessions, and holds what they share."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Iterator, Mapping
from functools import partial
from math import inf
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from tcpgw.relay.rpc.session import RpcSession
from tcpgw.relay.rpc.turn import EachTurn
from tcpgw.relay.stream_plane import Explain, explain_nothing
from tcpgw.wire.msgpack_scan import MsgpackSplitter

if TYPE_CHECKING:
    from tcpgw.config.listener import Listener as Settings
    from tcpgw.relay.rpc.memory import Memory
    from tcpgw.relay.rpc.routing import Routing
    from tcpgw.relay.session import Client, Connection, OnEnd
    from tcpgw.relay.tally import Tallies
    from tcpgw.wire.codec import Codec
    from tcpgw.wire.greeting import Greeting

_SMALL = 4096


class Variants(Protocol):
    """How a listener's clients differ in what they may reach."""

    def judge(self, client: Client) -> None:
        """As `Plane.judge`."""

    def key(self, client: Client) -> Hashable:
        """What clients have in common for whom the same routing holds; None: the plane's own."""

    def routing(self, key: Hashable) -> Routing:
        """The routing for those, by what is in force now."""


class RpcPlane:
    """See `relay.session.Plane`. Nothing is connected for a client: the services' connections stand already.

    `sessions` are all that are open or are being set up: they follow what is changed here. Clients that may
    reach other services or methods than most are sessions of a plane of their own, which is one of the
    `variants` of this one for as long as it has any: so theirs are as fast, and pass in runs, too.

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
        greeting: Greeting,
        variants: Variants | None = None,
        explain: Explain = explain_nothing,
        rewrites: bool,
        bulk: int,
    ) -> None:
        self.greeting = greeting
        self.explain = explain
        self.variants: dict[Hashable, RpcPlane] = {}
        self.memory = memory
        self.answers = codec
        self.may_be_bare = bare is not None
        self.sessions: set[RpcSession] = set()
        self.loop = asyncio.get_running_loop()
        self._bare = bare
        self._rewrites = rewrites
        self._vary = variants
        self._base: tuple[RpcPlane, Hashable] | None = None  # of which this is a variant
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
        for plane in self.all:
            for session in list(plane.sessions):
                session.settle_turn()

    def change(
        self,
        settings: Settings,
        routing: Routing,
        *,
        variants: Variants | None = None,
        explain: Explain = explain_nothing,
        bulk: int,
    ) -> None:
        """Take other settings and another routing, of the same codec, for all sessions. After `settle`.

        Requests that have gone to a service stay there; the next ones go by what is new.
        """
        self._vary = variants
        self.explain = explain
        for service in set(self.routing.services) - set(routing.services):
            service.forget_plane(self)
        self._take(settings, routing, bulk)
        for session in list(self.sessions):
            session.changed()
            self.tell_placement(session)
        for key, variant in self.variants.items():
            own = variants.routing(key) if variants else routing
            variant.change(settings, own, explain=explain, bulk=bulk)

    @property
    def all(self) -> Iterator[RpcPlane]:
        """This plane and its variants."""
        yield self
        yield from self.variants.values()

    def judge(self, client: Client) -> None:
        if self._vary is not None:
            self._vary.judge(client)

    def figures(self, tallies: Tallies) -> dict[str, Any]:  # noqa: ARG002 - requests count, not connections
        return {"invocations": {}}  # its services count them

    def codec(self, *, bare: bool) -> Codec:
        """What reads a client's messages."""
        return self._bare if bare and self._bare is not None else self.answers

    async def open(self, connection: Connection, early: bytes, on_end: OnEnd) -> RpcSession:
        plane = self._of(connection)
        session = RpcSession(plane, connection, early, on_end)
        plane.sessions.add(session)
        try:
            protocol = connection.dressed(session)
            await self.loop.connect_accepted_socket(lambda: protocol, connection.socket)
        except BaseException:
            plane.left(session)
            raise
        plane.tell_placement(session)
        return session

    def tell_placement(self, session: RpcSession) -> None:
        """Tell whoever traces its client where a session's requests go."""
        client = session.client
        if client.trace is not None:
            told = {**self.routing.placement(client, session.home), **self.explain(client)}
            client.trace.add("placed", **told)

    def _of(self, client: Client) -> RpcPlane:
        key = self._vary.key(client) if self._vary is not None else None
        if key is None or self._vary is None:
            return self
        if key not in self.variants:
            routing = self._vary.routing(key)
            self.variants[key] = variant = RpcPlane(
                self.settings,
                routing,
                self.memory,
                self.answers,
                self._bare,
                greeting=self.greeting,
                explain=self.explain,
                rewrites=self._rewrites,
                bulk=self.bulk,
            )
            variant._base = self, key
        return self.variants[key]

    def left(self, session: RpcSession) -> None:
        """A session has ended. Idempotent."""
        self.sessions.discard(session)
        if self._base is not None and not self.sessions:
            base, key = self._base
            if base.variants.get(key) is self:  # a second call may come when another has taken its place
                del base.variants[key]
            for service in self.routing.services:
                service.forget_plane(self)
