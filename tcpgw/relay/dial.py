"""Connections to instances: over TCP as they are, or within TLS."""

import asyncio
import ssl
from collections.abc import Callable
from typing import TypeVar

from tcpgw.endpoints import Endpoint
from tcpgw.relay.tls import connect_tls

P = TypeVar("P", bound=asyncio.Protocol)


class InstanceTls:
    """What connections to a service's instances are wrapped in. `server_name` "": the endpoint's address.

    `strict`: a FIN without close_notify is a reset.

    `make` makes the context that offers one protocol (ALPN), or none. Such as clients agree on with their
    listener are passed on so, and as many contexts are kept: one for each that a listener's settings name.
    """

    def __init__(self, make: Callable[[str], ssl.SSLContext], server_name: str, *, strict: bool) -> None:
        self.server_name = server_name
        self.strict = strict
        self._make = make
        self._contexts = {"": make("")}

    def context(self, alpn: str) -> ssl.SSLContext:
        """The context that offers this protocol."""
        if alpn not in self._contexts:
            self._contexts[alpn] = self._make(alpn)
        return self._contexts[alpn]


async def dial(
    loop: asyncio.AbstractEventLoop,
    new: Callable[[], P],
    endpoint: Endpoint,
    tls: InstanceTls | None,
    alpn: str = "",
    first: bytes = b"",
) -> P:
    """Connect, and return what `new` made for the connection. Raises OSError. Has no time-out of its own.

    `alpn` is what is offered in TLS, `first` what is sent before anything else, also before TLS.
    """
    if tls is None:
        transport, protocol = await loop.create_connection(new, *endpoint)
        if first:
            transport.write(first)
    else:
        _, protocol = await connect_tls(
            loop, new, *endpoint, tls.context(alpn), tls.server_name, first=first, strict=tls.strict
        )
    return protocol
