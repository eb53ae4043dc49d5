"""The connections to instances that rpc listeners share: one RpcService for each service and codec."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from tcpgw.app.background import Background
from tcpgw.app.planes import client_codec, reached
from tcpgw.config import schema
from tcpgw.observe.totals import Figures, summed
from tcpgw.pool import Pool
from tcpgw.relay.dial import InstanceTls
from tcpgw.relay.outcomes import Outcomes
from tcpgw.relay.rpc.memory import Memory
from tcpgw.relay.rpc.request_lines import RequestLines
from tcpgw.relay.rpc.service import RpcService
from tcpgw.relay.rpc.terms import Protocol, Terms
from tcpgw.wire.msgpack_rpc import MsgpackRpc

# Seconds that a service which nobody sends to any more may take to finish: as an endpoint that left.
_LEAVE = 30.0
# Seconds between looks at whether it has.
_LOOK = 0.05

Key = tuple[str, str]
"""A service's name, and a codec's."""


class Channels:
    """Owns RpcServices and the tasks that run them. `by_key` are those in use.

    Used in one running event loop.
    """

    def __init__(
        self,
        memory: Memory,
        background: Background,
        outcomes: Callable[[Pool], Outcomes],
        lines: RequestLines,
    ) -> None:
        self.by_key: dict[Key, RpcService] = {}
        self._memory = memory
        self._outcomes = outcomes
        self._lines = lines
        self._background = background
        self._running: dict[RpcService, asyncio.Task[None]] = {}
        self._leaving: dict[RpcService, asyncio.Task[None]] = {}
        self._past: dict[str, Figures] = {}  # of services that are closed, by name

    def wanted(
        self, config: schema.Config, pools: Mapping[str, Pool], tls: Mapping[str, InstanceTls]
    ) -> dict[Key, RpcService]:
        """What a configuration's listeners need: those in use that suit it, and new ones, not running."""
        services = {service.name: service for service in config.service}
        listeners = [listener for listener in config.listener if listener.by_request]
        longest = max((listener.max_frame for listener in listeners), default=0)
        keys = {(name, listener.codec.name) for listener in listeners for name in reached(listener)}
        return {
            key: self._suiting(key, services[key[0]], pools[key[0]], tls.get(key[0]), longest)
            for key in sorted(keys)
        }

    def _suiting(
        self, key: Key, service: schema.Service, pool: Pool, tls: InstanceTls | None, longest: int
    ) -> RpcService:
        connect = service.connect
        terms = Terms(
            service.rpc,
            connect_timeout=connect.timeout,
            tries=connect.candidates,
            observes=service.balance.policy == "peak_ewma",
            tls=tls,
        )
        used = self.by_key.get(key)
        # A shorter frame is no reason: a listener judges those of its clients itself.
        if used and used.pool is pool and used.terms == terms and used.protocol.max_frame >= longest:
            return used
        codec = key[1]
        instance = MsgpackRpc(framed=False) if codec == "msgpack-rpc-stream" else client_codec(codec)
        protocol = Protocol(client_codec(codec), instance, codec != "msgpack-rpc-stream", longest)
        return RpcService(pool, protocol, terms, self._memory, self._outcomes(pool), self._lines)

    async def run(self, services: Iterable[RpcService]) -> None:
        """Run those that do not yet, and wait until they are connected, as far as instances let them.

        Cancelled, some may run: `release` ends them.
        """
        new = [service for service in services if service not in self._running]
        for service in new:
            self._running[service] = self._background.start(service.run(), f"channels of {service.name}")
        await asyncio.gather(*map(_connected, new))

    def release(self, used: Iterable[RpcService]) -> None:
        """Close all others, each when what it has under way is finished, at the latest after a while."""
        for service in self._running.keys() - set(used) - self._leaving.keys():
            name = f"end of channels of {service.name}"
            self._leaving[service] = self._background.start(self._leave(service), name)

    async def _leave(self, service: RpcService) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_LEAVE):
                while True:  # at least once: what was read in this turn of the loop may still come to it
                    await asyncio.sleep(_LOOK)
                    if service.targets.idle:
                        break
        await self._background.stop(self._running[service])
        del self._running[service], self._leaving[service]
        self._past[service.name] = summed([self._past.get(service.name, {}), service.status()])

    async def close(self) -> None:
        """End all now. Idempotent."""
        for task in (*self._leaving.values(), *self._running.values()):
            await self._background.stop(task)

    @property
    def all(self) -> set[RpcService]:
        """Those in use, and those that finish what they have under way."""
        return {*self.by_key.values(), *self._running}

    def status(self, service: str) -> Figures:
        """What the requests of a service came to, those of closed RpcServices included; empty without any."""
        running = [one.status() for one in self.all if one.name == service]
        return summed([self._past.get(service, {}), *running])


async def _connected(service: RpcService) -> None:
    with suppress(TimeoutError):  # then it goes on trying while clients come
        async with asyncio.timeout(2 * service.connect_timeout):
            await service.connected()
