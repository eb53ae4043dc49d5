"""What a service's connections to instances go by: what is spoken there, and what the configuration says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tcpgw.wire.codec import Codec
from tcpgw.wire.mux import Account, Mux

if TYPE_CHECKING:
    from tcpgw.config.service import Rpc
    from tcpgw.relay.dial import InstanceTls

# What renumbering may add to a frame: the client's id may be shorter than ours.
_GROWTH = 64


@dataclass(frozen=True)
class Protocol:
    """What the instances speak. `client` reads and makes the clients' frames, `instance` the instances'.

    `framed`: with a length in front of each frame.
    """

    client: Codec
    instance: Codec
    framed: bool
    max_frame: int

    def mux(self, account: Account) -> Mux:
        """Make what one connection to an instance is read and written by."""
        return Mux(self.instance, self.client, self.max_frame + _GROWTH, account, framed=self.framed)


@dataclass(frozen=True)
class Terms:
    """What the configuration says of a service's requests. With other ones it is another RpcService.

    `observes`: its policy looks at latencies.
    """

    rpc: Rpc
    connect_timeout: float
    tries: int
    observes: bool
    tls: InstanceTls | None = None
