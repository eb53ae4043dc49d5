"""A trace under tests."""

import time
from ipaddress import ip_network

from tcpgw.app.gateway import Gateway
from tcpgw.relay.tracing import Event, Tracer
from tests.support.streams import until


class Told:
    """A trace of a gateway in this process, and what it was told so far."""

    def __init__(self, gateway: Gateway, network: str = "127.0.0.0/8") -> None:
        self.events: list[Event] = []
        self.tracer = Tracer(time.monotonic, time.time)
        self.tracer.begin("t", ip_network(network), 60.0)
        self._gateway = gateway
        gateway.relays.trace(self.tracer)

    def names(self) -> list[str]:
        self.events += self.tracer.take().get("t", [])
        return [event["event"] for event in self.events]

    def one(self, name: str) -> Event:
        """The only event of that name."""
        self.names()
        (found,) = (event for event in self.events if event["event"] == name)
        return found

    async def until(self, name: str) -> Event:
        """Wait for the only event of that name."""
        await until(lambda: name in self.names())
        return self.one(name)

    def stop(self) -> None:
        self.tracer.end("t")
        self._gateway.relays.trace(None)
