"""The stream plane: one connection to an instance for each of a client's, and bytes as they come."""

import asyncio
from collections.abc import Callable, Mapping
from types import MappingProxyType

from tcpgw.config.schema import Listener as Settings
from tcpgw.endpoints import Endpoint
from tcpgw.relay.reasons import Reason
from tcpgw.relay.session import Address, Connection, OnEnd, canonical
from tcpgw.relay.stream import Relay, Side
from tcpgw.relay.upstream import Upstream
from tcpgw.wire import proxy_protocol

Choose = Callable[[Address | None], Upstream]
"""A listener's route: the service for a client. A client of a Unix socket has no address."""


class StreamSession(Relay):
    """A relay that knows its time-outs, and gives its endpoint back when it ends."""

    __slots__ = ("_endpoint", "_kept_alive", "_settings", "_upstream")

    def __init__(self, settings: Settings, upstream: Upstream, on_end: OnEnd, now: float) -> None:
        super().__init__(on_end, now, settings.buffer)
        self._settings = settings
        self._upstream = upstream
        self._endpoint: Endpoint | None = None
        self._kept_alive = False

    def hold(self, endpoint: Endpoint) -> None:
        """Count as `endpoint`'s load, which `Upstream.connect` has begun to, until the end."""
        self._endpoint = endpoint

    def release(self) -> None:
        """End that. Idempotent."""
        if self._endpoint is not None:
            self._upstream.release(self._endpoint)
            self._endpoint = None

    def _finish(self, reason: Reason) -> None:
        self.release()
        super()._finish(reason)

    # ---- the listener's side ----

    @property
    def received(self) -> int:
        return self.client.received

    @property
    def sent(self) -> int:
        return self.instance.received

    def drain(self) -> None:
        """Go on: where a request ends is not known, so no moment is better than the client's own."""

    def tend(self, now: float) -> None:
        if not self._kept_alive:
            # Here and not at the connect: a connection that ends before the first probe is due, as most do
            # where connections are short, is spared five system calls.
            self._kept_alive = True
            self.keep_alive(self._settings.keepalive)
        quiet = self.idle_seconds(now)
        if self.half_closed and quiet >= self._settings.fin_timeout:
            self.abort(Reason.FIN_TIMEOUT, reset=True)
        elif quiet >= self._settings.idle_timeout:
            self.abort(Reason.IDLE_TIMEOUT, reset=False)

    def facts(self) -> dict[str, object]:
        return {}


class StreamPlane:
    """Connects each client to an instance of the service that `choose` names. See `session.Plane`."""

    unknown: Mapping[str, object] = MappingProxyType({"endpoint": None, "connect_time": None, "tries": 0})

    def __init__(self, settings: Settings, choose: Choose) -> None:
        self._settings = settings
        self._choose = choose
        self._loop = asyncio.get_running_loop()

    async def open(self, connection: Connection, early: bytes, on_end: OnEnd) -> StreamSession:
        upstream = self._choose(connection.client)
        connection.facts["service"] = upstream.service

        def new_side() -> Side:
            return self._new_session(upstream, on_end, connection.opened).instance

        endpoint, side, seconds, tries = await upstream.connect(connection.client, new_side)
        connection.facts |= {"endpoint": str(endpoint), "connect_time": round(seconds, 6), "tries": tries}
        session = side.relay
        assert isinstance(session, StreamSession)  # noqa: S101 - new_side made it
        session.hold(endpoint)
        try:
            if upstream.send_proxy:
                session.send_first(_proxy_header(connection, upstream.send_proxy))
            if early:
                session.client.data_received(early)
            await self._loop.connect_accepted_socket(lambda: session.client, connection.socket)
        except BaseException:
            session.abort(Reason.SHUTDOWN, reset=True)
            session.release()
            raise
        return session

    def _new_session(self, upstream: Upstream, on_end: OnEnd, now: float) -> StreamSession:
        return StreamSession(self._settings, upstream, on_end, now)


def _proxy_header(connection: Connection, version: str) -> bytes:
    destination = connection.destination
    if destination is None and connection.peer:
        host, port = connection.socket.getsockname()[:2]
        destination = (canonical(host), port)
    build = proxy_protocol.build_v1 if version == "v1" else proxy_protocol.build_v2
    return build(connection.client, destination)
