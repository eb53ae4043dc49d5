"""The admin server of a running gateway: its socket, which a successor takes over, and what it shows."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

import structlog

from tcpgw.address import Address
from tcpgw.admin.server import AdminServer
from tcpgw.admin.source import Json
from tcpgw.app.monitor.monitor import Monitor
from tcpgw.config import schema
from tcpgw.process.handover import Sockets
from tcpgw.relay.sockets import BindError, bind_socket, listen

log = structlog.get_logger()

SOCKET = "@admin"
"""Under which name its socket is handed over: no listener can be called so."""

# Seconds between TCP probes: pages stay open in browsers that are gone.
_KEEPALIVE = 60.0

Methods = Mapping[str, Callable[..., Awaitable[Any]]]


class Shown:
    """See `admin.source.Source`. `methods` are those of the control socket, by name; `ready` as there."""

    def __init__(self, monitor: Monitor, methods: Methods, ready: Callable[[], str]) -> None:
        self._methods = methods
        self.ready = ready
        self.view = monitor.view
        self.charts = monitor.charts
        self.metrics = monitor.metrics

    async def status(self) -> Json:
        found: Json = await self._methods["status"]()
        return found

    async def drain(self, endpoint: str, service: str | None) -> Any:
        return await self._methods["drain"](endpoint, service)

    async def undrain(self, endpoint: str, service: str | None) -> Any:
        return await self._methods["undrain"](endpoint, service)

    async def weight(self, endpoint: str, weight: int | None, service: str | None) -> Any:
        return await self._methods["weight"](endpoint, weight, service)

    async def silence(self, alert: str, labels: Mapping[str, str], seconds: float, comment: str) -> Any:
        return await self._methods["silence"](alert, labels, seconds, comment)

    async def unsilence(self, alert: str, labels: Mapping[str, str]) -> int:
        ended: int = await self._methods["unsilence"](alert, labels)
        return ended

    async def reload(self) -> Any:
        return await self._methods["reload"]()


class Administration:
    """Owns the server and its socket. Used in one running event loop."""

    def __init__(self, given: Sockets | None = None) -> None:
        self.sockets = given
        self._source: Shown | None = None
        self._stack = AsyncExitStack()

    @property
    def address(self) -> str:
        """Where it is reached; "" where it is off, or its default address is taken."""
        return self.sockets.address if self.sockets is not None else ""

    def opened(self, gateway: schema.Gateway) -> Sockets | None:
        """Have a socket for these settings: the present one where it is of the same address.

        Raises BindError where an address cannot be had that somebody chose.
        """
        admin = gateway.admin
        if admin == "off":
            return None
        bind = str(admin.bind)
        if self.sockets is not None and self.sockets.bind == bind:
            return self.sockets
        try:
            sock = bind_socket(admin.bind, _KEEPALIVE)
            address = str(Address.of_socket(sock))
            try:
                listen(sock, address)  # here, where it may still be refused
            except BindError:
                sock.close()
                raise
        except BindError as exc:
            if "admin" in gateway.model_fields_set:
                raise BindError(f"gateway.admin: {exc}") from exc
            log.warning(
                "no_admin_server", error=str(exc), hint="set gateway.admin to another address, or off"
            )
            return None
        return Sockets(bind, [sock], address, shared=True)

    async def serve(
        self, gateway: schema.Gateway, sockets: Sockets | None, source: Shown | None = None
    ) -> None:
        """Serve by these settings on what was `opened` for them, and by no others any more.

        `source` is what it shows from now on.
        """
        await self._stack.aclose()
        self._source = source or self._source
        if self.sockets is not None and self.sockets is not sockets:
            self.sockets.close()
        self.sockets = sockets
        if sockets is None or gateway.admin == "off" or self._source is None:
            return
        server = AdminServer(gateway.admin, self._source)
        await self._stack.enter_async_context(server.serving(sockets.sockets[0]))

    async def close(self) -> None:
        """Serve no more, and let go of the socket. Idempotent."""
        await self._stack.aclose()
        if self.sockets is not None:
            self.sockets.close()
            self.sockets = None
