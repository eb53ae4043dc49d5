"""A service of a test's own sockets, as an Upstream connects to it."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

from tcpgw.balancing.loads import Loads
from tcpgw.balancing.policy import Keyless
from tcpgw.balancing.standing import Share
from tcpgw.endpoints import Endpoint, Member, Snapshot
from tcpgw.pool import Pool
from tcpgw.relay.circuit import Circuit
from tcpgw.relay.outcomes import Outcomes
from tcpgw.relay.reasons import Reason
from tcpgw.relay.session import Someone
from tcpgw.relay.stream import Relay, Side
from tcpgw.relay.upstream import Connected, Upstream
from tests.support.streams import in_time, open_sockets

CLIENT = Someone(("127.0.0.1", 40000))


class InOrder(Keyless):
    """The policy of a service whose endpoints are asked in the order of their weights, greatest first."""

    def __init__(self, weights: Mapping[Endpoint, float]) -> None:
        self.order = sorted(weights, key=weights.__getitem__, reverse=True)
        self.asked = 0

    def candidates(self, position: int) -> Iterator[Endpoint]:  # noqa: ARG002 - the interface's
        for endpoint in self.order:
            self.asked += 1
            yield endpoint

    def under(self, shares: Mapping[Endpoint, Share]) -> Self:
        self.order = [endpoint for endpoint in self.order if endpoint not in shares]
        return self

    def explain(self, position: int) -> str:  # noqa: ARG002 - the interface's
        return "in order"


class Service:
    """An upstream whose candidates are `addresses`, in that order."""

    def __init__(self, pool: Pool, policies: list[InOrder], upstream: Upstream) -> None:
        self.pool = pool
        self.upstream = upstream
        self.policy = policies[0]
        self._connected: list[Connected] = []

    @classmethod
    async def of(
        cls,
        addresses: Sequence[str],
        *,
        seconds: float = 5.0,
        tries: int = 3,
        weights: Sequence[int] = (),
        **limits: Any,
    ) -> "Service":
        """`limits` are of its Circuit."""
        policies: list[InOrder] = []

        def make_policy(weights: Mapping[Endpoint, float], _: Loads) -> InOrder:
            policies.append(InOrder(weights))
            return policies[-1]

        pool = Pool("s", make_policy, Loads(time.monotonic))
        weights = weights or range(len(addresses), 0, -1)
        members = [Member(Endpoint.parse(a), w) for a, w in zip(addresses, weights, strict=True)]
        await pool.publish(Snapshot.of("s", members, taken_at=0.0))
        outcomes, circuit = Outcomes(pool), Circuit(pool, **limits)
        upstream = Upstream(
            pool, lambda _: 0, timeout=seconds, tries=tries, outcomes=outcomes, circuit=circuit
        )
        return cls(pool, policies, upstream)

    async def publish(self, *addresses: str) -> None:
        members = [Member(Endpoint.parse(address)) for address in addresses]
        await self.pool.publish(Snapshot.of("s", members, taken_at=0.0, version=2))

    async def connect(self) -> Connected:
        connected = await in_time(self.upstream.connect(CLIENT, self._new_side))
        self._connected.append(connected)
        return connected

    async def close(self) -> None:
        for connected in self._connected:
            connected.side.relay.abort(Reason.SHUTDOWN, reset=True)
        await asyncio.sleep(0)

    def _new_side(self) -> Side:
        return Relay(lambda *_: None, now=0.0).instance


@asynccontextmanager
async def service(addresses: Sequence[str], **settings: Any) -> AsyncIterator[Service]:
    """A service for a test; at the end nothing may be counted as loaded, and no socket of it be open."""
    before = open_sockets()
    made = await Service.of(addresses, **settings)
    try:
        yield made
    finally:
        await made.close()
    assert made.pool.loads.total == 0
    assert made.upstream.circuit.waiting == 0
    assert made.upstream.circuit.retries.running == 0
    assert not made.upstream.circuit._open
    await asyncio.sleep(0)
    assert open_sockets() <= before


def text(sock: socket.socket) -> str:
    return "{}:{}".format(*sock.getsockname())
