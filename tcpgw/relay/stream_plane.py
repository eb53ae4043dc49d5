"""The stream plane: one connection to an instance for each of a client's, and bytes as they come."""

import asyncio
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from tcpgw.config.schema import Listener as Settings
from tcpgw.endpoints import Endpoint
from tcpgw.relay.outcomes import Kind
from tcpgw.relay.reasons import FAILED, Reason
from tcpgw.relay.session import Client, Connection, OnEnd, canonical
from tcpgw.relay.stream import Relay, Side
from tcpgw.relay.tally import Tallies, Tally
from tcpgw.relay.upstream import Connected, Upstream
from tcpgw.wire import proxy_protocol
from tcpgw.wire.greeting import Greeting, Line

Choose = Callable[[Client], Upstream]
"""A listener's route: the service for a client."""
Judge = Callable[[Client], None]
"""As `Plane.judge`."""
Explain = Callable[[Client], Mapping[str, object]]
"""What a trace says of how a client's service was chosen, besides which it is."""


# Looks without a byte after which a connection ends. Where no answer seems to be owed, 1 s: a model that
# sends its answer token by token pauses for less. Where one does, 10 s: longer than most answers take; but
# there are protocols with requests that are never answered.
_STILL, _STILL_OWED = 10, 100
# Looks from FIN to the close. nginx lingers too: closing at once would reset a client that is just sending,
# and with that take back what it has not read. For ever is no better: some never look at idle connections.
_LINGER = 10
# Seconds of a first_byte_timeout by which the looks at it are spaced, eight in each, even if it is shorter: a
# look at ten thousand connections takes some 10 ms.
_LEAST_TIMEOUT = 0.8


class StreamSession(Relay):
    """A relay that knows its time-outs, and gives its endpoint back when it ends."""

    __slots__ = (
        "_asked", "_asked_at", "_ending", "_endpoint", "_fault", "_fin_sent", "_holds", "_judged",
        "_kept_alive", "_moved", "_seconds", "_settings", "_still", "_tries", "position", "upstream",
    )  # fmt: skip

    def __init__(self, settings: Settings, upstream: Upstream, on_end: OnEnd, now: float) -> None:
        super().__init__(on_end, now, settings.buffer)
        self.upstream = upstream
        self.position = 0  # of its key
        self._settings = settings
        self._endpoint: Endpoint | None = None
        self._seconds = 0.0  # that connecting took
        self._tries = 0
        self._holds = False
        self._judged = False  # it is counted what became of it, as a success or a failure
        self._fault: Kind | None = None  # that it has before it is known whose
        self._asked = 0  # bytes that the client had sent at the last look that saw more of them
        self._asked_at = 0.0  # when that was
        self._kept_alive = False
        self._ending: Reason | None = None  # what it is being drained for
        self._fin_sent = False
        self._moved = -1  # bytes, at the last look
        self._still = 0  # looks since something moved, or since FIN

    @property
    def endpoint(self) -> Endpoint | None:
        """Where it is connected to; None before that and after its end."""
        return self._endpoint if self._holds else None

    def hold(self, connected: Connected) -> None:
        """Count as its endpoint's load, which `Upstream.connect` has begun to, until the end."""
        self._endpoint, _, self._seconds, self._tries, self.position = connected
        self._holds = True
        if self._fault is not None:
            self._fail(self._fault)

    def release(self) -> None:
        """End that. Idempotent."""
        if self._endpoint is not None and self._holds:
            self._holds = False
            self.upstream.release(self._endpoint)

    def _finish(self, reason: Reason) -> None:
        if not self._judged:
            self._judge_end(reason)
        self.release()
        super()._finish(reason)

    def on_first_byte(self, heard: Callable[[], None]) -> None:
        """Call `heard` when the instance sends its first byte; at once if it has. Once both sides stand."""
        if self.instance.received:
            heard()
        elif self.reason is None:
            write = self.instance.write

            def begin(data: bytes) -> None:
                self.instance.write = write  # which may put another in its place
                heard()
                write(data)

            self.instance.write = begin

    # ---- what it says of its endpoint ----

    def join(self) -> None:
        super().join()
        if self.reason is not None or self._judged:
            return
        if self.instance.received:
            self._succeed()
        else:
            self.instance.write = self._begin

    def _begin(self, data: bytes) -> None:
        """Stand in for the instance's `write` until its first byte, which is a success.

        At once, as failures count at once: seen only at the next look, what was answered meanwhile would not
        end a streak. And only once, so that the bytes after it are not asked for it.
        """
        assert self.client.transport is not None  # noqa: S101 - both stand
        self.instance.write = self.client.transport.write
        self.instance.write(data)
        if not self._judged:
            self._succeed()

    def _judge(self, now: float) -> None:
        """See whether the instance has not begun to answer in time.

        Time counts from the client's last byte, because nobody answers a request before it is whole.
        """
        timeout = self.upstream.first_byte_timeout
        if timeout is not None and self.client.received:
            if self.client.received != self._asked:
                self._asked, self._asked_at = self.client.received, now
            elif now - self._asked_at >= timeout:
                self._fail(Kind.TIMEOUT)

    def _judge_end(self, reason: Reason) -> None:
        """One that ended without a byte from the instance mostly says nothing of it.

        But an instance that is the first to end, though the client has sent something, broke it off as by a
        reset. Where it need not answer, it is well if it took what the client sent and ended after it: in
        protocols in which only clients speak, no instance would ever have a success.
        """
        if self.instance.received:
            self._succeed()
        elif reason is Reason.INSTANCE_RESET or (
            # Where it must answer: what only receives may close whoever is idle.
            reason is Reason.INSTANCE_FIN and self.client.received and self.upstream.first_byte_timeout
        ):
            self._fail(Kind.RESET)
        elif reason is Reason.CLIENT_FIN and self.client.received and self.instance.ended:
            self._judged = self.upstream.first_byte_timeout is not None
            if not self._judged:
                self._succeed()

    def _succeed(self) -> None:
        if self._endpoint is not None:
            self._judged = True
            self.upstream.outcomes[self._endpoint].successes += 1

    def _fail(self, kind: Kind) -> None:
        self._judged = True
        if self._endpoint is None:
            self._fault = kind
        else:
            self.upstream.outcomes.fail(self._endpoint, kind)

    # ---- the listener's side ----

    @property
    def service_name(self) -> str:
        return self.upstream.service

    @property
    def received(self) -> int:
        return self.client.received

    @property
    def sent(self) -> int:
        return self.instance.received

    def tend(self, now: float) -> None:
        if not self._kept_alive:
            # Here and not at the connect: a connection that ends before the first probe is due, as most do
            # where connections are short, is spared five system calls.
            self._kept_alive = True
            self.keep_alive(self._settings.keepalive)
        if not self._judged:
            self._judge(now)
        quiet = self.idle_seconds(now)
        if self.half_closed and quiet >= self._settings.fin_timeout:
            self.abort(Reason.FIN_TIMEOUT, reset=True)
        elif quiet >= self._settings.idle_timeout:
            self.abort(Reason.IDLE_TIMEOUT, reset=False)

    def owed(self, now: float) -> tuple[int | None, float | None]:
        """A guess, as that of `drain`: who sent last is owed an answer. To the accuracy of `idle_seconds`."""
        return None, self.idle_seconds(now) if self.last is self.client else 0.0

    def facts(self) -> dict[str, object]:
        return {
            "service": self.upstream.service,
            "endpoint": str(self._endpoint),
            "connect_time": round(self._seconds, 6),
            "tries": self._tries,
        }

    # ---- its end at a quiet moment ----

    def drain(self, reason: Reason = Reason.DRAINED) -> None:
        """End when nothing seems to be under way: both sides get FIN, and what they send then is lost.

        Where a request ends is not known, so this is a guess, and who it is wrong about sees an answer or a
        request cut off. If nothing waits to be written and no byte has moved for 1 s, and the instance sent
        last or nobody ever did, the client is taken for served. After a byte of the client's
        an answer is taken for owed, and it takes 10 s without a byte. A connection of which one side has
        ended is coming to its end already, and is left to it. A busy one goes on until it pauses or is cut.
        """
        if self._ending is None:
            self._ending = reason
            self._moved = -1  # who looked before may have done so a moment ago

    def undrain(self) -> bool:
        """Take `drain` back. Returns whether it was in time."""
        if self.reason is None:
            self._ending = None
        return self._ending is None

    @property
    def over(self) -> bool:
        return self._fin_sent

    def look(self, now: float) -> None:  # noqa: ARG002 - the interface's
        if self._fin_sent:
            self._still += 1
            if self._still >= _LINGER:
                for transport in self._open_transports():
                    transport.close()
        elif self.rests() and self._ending is not None:
            self.end(self._ending)

    def rests(self) -> bool:
        """Whether this is a moment to end it at. Looks without a byte are counted by the calls to this."""
        moved = self.client.received + self.instance.received
        self._still = self._still + 1 if moved == self._moved else 0
        self._moved = moved
        return self.reason is None and self._still >= self._patience()

    def _patience(self) -> float:
        """Looks without a byte until this connection may be ended."""
        if self.half_closed or any(one.get_write_buffer_size() for one in self._open_transports()):
            return math.inf
        return _STILL_OWED if self.last is self.client else _STILL

    def end(self, reason: Reason) -> None:
        """Send FIN both ways now, and close a second later if `look` is called meanwhile."""
        self._ending = self.reason = reason
        self._first_fin = self._first_fin or self.instance.fin
        self._fin_sent, self._still = True, 0
        for side in (self.client, self.instance):
            side.write = side.discard
        for transport in self._open_transports():
            transport.write_eof()

    def _open_transports(self) -> list[asyncio.Transport]:
        both = (self.client.transport, self.instance.transport)
        return [transport for transport in both if transport is not None and not transport.is_closing()]


def admit_all(_: Client) -> None:
    """A Judge where credentials say nothing of services."""


def explain_nothing(_: Client) -> Mapping[str, object]:
    """An Explain where there is one service."""
    return {}


class StreamPlane:
    """Connects each client to an instance of the service that `choose` names. See `session.Plane`."""

    unknown: Mapping[str, object] = MappingProxyType({"endpoint": None, "connect_time": None, "tries": 0})

    greeting: Greeting = Line()

    def __init__(
        self,
        settings: Settings,
        choose: Choose,
        first_byte_timeout: float = math.inf,
        *,
        judge: Judge = admit_all,
        explain: Explain = explain_nothing,
    ) -> None:
        """`first_byte_timeout` is the shortest one of the upstreams that are chosen, in seconds."""
        self.timeout = max(first_byte_timeout, _LEAST_TIMEOUT)
        self.judge = judge
        self._settings = settings
        self._choose = choose
        self._explain = explain
        self._loop = asyncio.get_running_loop()

    def figures(self, tallies: Tallies) -> dict[str, Any]:
        return {"invocations": {service: _invoked(tally) for service, tally in tallies.items() if service}}

    async def open(self, connection: Connection, early: bytes, on_end: OnEnd) -> StreamSession:
        upstream = self._choose(connection)
        connection.facts = upstream.facts
        trace = connection.trace
        if trace is not None:
            trace.add("routed", service=upstream.service, **self._explain(connection))

        def new_side() -> Side:
            return self._new_session(upstream, on_end, connection.opened).instance

        header = _proxy_header(connection, upstream.send_proxy) if upstream.send_proxy else b""
        connected = await upstream.connect(connection, new_side, header, trace)
        session = connected.side.relay
        assert isinstance(session, StreamSession)  # noqa: S101 - new_side made it
        session.hold(connected)
        try:
            if early:
                session.client.data_received(early)
            client = connection.dressed(session.client)
            await self._loop.connect_accepted_socket(lambda: client, connection.socket)
        except BaseException:
            session.abort(Reason.SHUTDOWN, reset=True)
            session.release()
            raise
        if trace is not None:
            session.on_first_byte(lambda: trace.add("first_byte"))
        return session

    def _new_session(self, upstream: Upstream, on_end: OnEnd, now: float) -> StreamSession:
        return StreamSession(self._settings, upstream, on_end, now)


def _invoked(tally: Tally) -> dict[str, int]:
    failed = sum(tally.ended[reason] for reason in FAILED)
    return {"opened": tally.opened, "ended": tally.ended.total(), "failed": failed}


def _proxy_header(connection: Connection, version: str) -> bytes:
    destination = connection.destination
    if destination is None and connection.peer:
        host, port = connection.socket.getsockname()[:2]
        destination = (canonical(host), port)
    if version == "v1":
        return proxy_protocol.build_v1(connection.address, destination)
    said = {
        proxy_protocol.TLV_ALPN: connection.alpn.encode(),
        proxy_protocol.TLV_AUTHORITY: connection.server_name.encode(),
    }
    tlvs = [(kind, value) for kind, value in said.items() if value]
    return proxy_protocol.build_v2(connection.address, destination, tlvs)
