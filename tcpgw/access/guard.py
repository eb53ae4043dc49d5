"""What a listener asks of those who connect: all of it in one value, replaced whole."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tcpgw.access.cidr import Networks
from tcpgw.access.credentials import Credentials
from tcpgw.access.limits import Limiter
from tcpgw.access.tls import ServerTls


@dataclass(frozen=True, slots=True)
class Guard:
    """None: nothing is asked. Times are in seconds.

    `sources` are limits of addresses, IPv6 ones by their first `ipv6_prefix` bits; `subjects` those of whom
    credentials name. `tls`: None where bytes come as they are; `passthrough` where the TLS in them is the
    instance's, and only its first message is read. `renew` asks for newer sets of keys, and returns when they
    are in force.
    """

    networks: Networks | None = None
    sources: Limiter | None = None
    ipv6_prefix: int = 64
    subjects: Limiter | None = None
    tls: ServerTls | None = None
    passthrough: bool = False
    handshake_timeout: float = 5.0
    credentials: Credentials | None = None
    credentials_timeout: float = 5.0
    renew: Callable[[], Awaitable[None]] | None = None

    @property
    def talks(self) -> bool:
        """Whether something must be read of a client before it is let in."""
        return self.tls is not None or self.passthrough or self.credentials is not None


OPEN = Guard()
"""Who comes is let in."""
