"""What a listener and a plane know of each other, and no more.

A *plane* says how bytes move: the listener accepts a client, finds out who it is, and hands it over; from
then on the plane's *session* owns the client's socket and every byte. The listener asks it for figures, lets
it look at its time-outs, and hears of its end.
"""

import asyncio
import socket
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from tcpgw.access.grant import Grant
from tcpgw.access.limits import Usage
from tcpgw.relay.reasons import Reason
from tcpgw.relay.tally import Tallies, Tally
from tcpgw.relay.tracing import Trace
from tcpgw.wire.greeting import Greeting

Address = tuple[str, int]
"""A client's IP address, in canonical text, and port."""


class Client(Protocol):
    """Who is served, as far as keys, routes and rules go by it. A `Connection` is one."""

    @property
    def address(self) -> Address | None:
        """The true source, behind any PROXY header. None: of a Unix socket."""

    @property
    def grant(self) -> Grant | None:
        """What its credential lets it use; None where no credential is asked for."""

    @property
    def hash_key(self) -> bytes:
        """What it asks to be hashed by; b"" where it does not."""

    @property
    def server_name(self) -> str:
        """The host that it asked TLS for; "" without one."""

    @property
    def alpn(self) -> str:
        """The protocol that it and the gateway agreed on in TLS; "" without one."""


class Someone(NamedTuple):
    """A Client without a connection, for who asks what one would get."""

    address: Address | None
    grant: Grant | None = None
    hash_key: bytes = b""
    server_name: str = ""
    alpn: str = ""


OnEnd = Callable[[Reason, str], None]
"""Told once that a session is over, with its reason, and the text of an error or ""."""


class Session(Protocol):
    """A connection past its set-up. It ends for one reason, which goes to its plane's `OnEnd` once.

    Nothing of it is open any more when that is called; the figures can be read after it.
    """

    @property
    def service_name(self) -> str:
        """The service that it is for; of one whose requests go to several, the first."""

    @property
    def received(self) -> int:
        """Bytes that came from the client; a PROXY header is none of them."""

    @property
    def sent(self) -> int:
        """Bytes for the client that came from instances or were answered in their stead."""

    def abort(self, reason: Reason, *, reset: bool) -> None:
        """End now, with RST if `reset` or if bytes are dropped, else with FIN. Idempotent; the end follows.

        Where the session is ending already, the first reason stays.
        """

    def drain(self, reason: Reason = Reason.DRAINED) -> None:
        """End for `reason` at the next moment at which nothing is lost, however late. Idempotent.

        Asked again, the first reason stays.
        """

    def look(self, now: float) -> None:
        """See whether this is the moment. Called every `draining.LOOK` seconds from `drain` to the end."""

    @property
    def over(self) -> bool:
        """Whether only its close is to come: everything was delivered as far as it will be, and FIN sent."""

    def tend(self, now: float) -> None:
        """Look at the time: keep-alive and time-outs. `now` is `time.monotonic()`.

        Called several times in each of the listener's time-outs, so that a session needs no timer.
        """

    def owed(self, now: float) -> tuple[int | None, float | None]:
        """How many answers its client waits for, as far as is known, and how many seconds for the oldest.

        None where it does not know that itself.
        """

    def idle_seconds(self, now: float) -> float:
        """How long nothing moved and nothing was under way, to the accuracy of the calls to `tend`."""

    def facts(self) -> dict[str, object]:
        """Return what the closing line says besides the connection's own facts (`requests=`, …)."""


MakeLayer = Callable[[asyncio.Protocol], asyncio.Protocol]
"""Makes what a protocol takes for its transport, and a transport for a protocol."""

_NO_FACTS: Mapping[str, object] = MappingProxyType({})


class Connection:
    """One client's connection: who it is, and what is known of it for the log.

    There may be ten thousand idle ones, so it holds no object of its own that it can do without.
    """

    __slots__ = (
        "_on_end", "address", "alpn", "destination", "facts", "grant", "hash_key", "id", "layers", "opened",
        "over", "peer", "server_name", "session", "setup", "socket", "tally", "trace", "uses",
    )  # fmt: skip

    def __init__(
        self,
        id_: int,
        sock: socket.socket,
        peer: Address | None,
        opened: float,
        on_end: Callable[["Connection", Reason, str], None],
    ) -> None:
        self._on_end = on_end
        self.id = id_
        self.socket = sock  # closed by the listener until a session has taken it over
        self.peer = peer  # None: of a Unix socket
        self.address = peer  # until a PROXY header says who is behind it
        self.destination: Address | None = None  # what a PROXY header says the client connected to
        self.grant: Grant | None = None
        self.hash_key = b""
        self.server_name = ""
        self.alpn = ""
        self.opened = opened  # time.monotonic()
        # For the closing line, which needs them however far the set-up gets: what is known before there is a
        # session, whose facts are added to these.
        self.facts = _NO_FACTS
        # What stands between the socket and whoever takes it over, the nearest to that first.
        self.layers: tuple[MakeLayer, ...] = ()
        self.uses: tuple[Usage, ...] = ()  # of limits; left at its end
        self.trace: Trace | None = None  # where its steps are told, while somebody looks
        # The listener's own.
        self.setup: asyncio.Task[None] | None = None
        self.session: Session | None = None
        self.over: tuple[Reason, str] | None = None
        self.tally: Tally | None = None  # where it counts, once it has a session

    def dressed(self, protocol: asyncio.Protocol) -> asyncio.Protocol:
        """Return what to give the socket's transport to, so that `protocol` gets the client's bytes. Once."""
        for make in self.layers:
            protocol = make(protocol)
        self.layers = ()
        return protocol

    def end(self, reason: Reason, error: str) -> None:
        """Hear from the session that it is over: an OnEnd."""
        self._on_end(self, reason, error)


class Plane(Protocol):
    """How the bytes of a listener's connections move. Made and used in one running event loop.

    `unknown`: the facts that a closing line has in any case, with what they are before they are known.
    `greeting`: how its clients say who they are.
    """

    @property
    def unknown(self) -> Mapping[str, object]: ...
    @property
    def greeting(self) -> Greeting: ...

    def judge(self, client: Client) -> None:
        """Raise DeniedError where its credential allows none of the services that it can come to."""

    def figures(self, tallies: Tallies) -> dict[str, Any]:
        """Return plain values that add up: `invocations`, and what it counts itself.

        `invocations` are those of its listener's connections, of which it gets the tallies, that count as one
        each: by service how many were `opened`, have `ended`, and of these `failed`.
        """

    @property
    def timeout(self) -> float:
        """The shortest of its sessions' time-outs that the listener's settings do not have, in seconds.

        Sessions are tended several times in it. inf without any.
        """

    async def open(self, connection: Connection, early: bytes, on_end: OnEnd) -> Session:
        """Take a client over, whose first bytes `early` were read already.

        Runs in a task of the connection's own and may take its time: nothing else waits for it. Raises
        NoEndpointError, OverloadError, ConnectError, ProtocolError, or OSError for the client's own socket.
        Then, and when cancelled, nothing is left open or counted but `connection.socket`, which the listener
        closes, and `on_end` is heard no more. It may be called before this returns.
        """


def canonical(host: str) -> str:
    """Return the kernel's text of an address as `endpoints.Endpoint` writes it: one client is one key."""
    mapped = host.removeprefix("::ffff:")
    return mapped if "." in mapped and ":" not in mapped else host.partition("%")[0]
