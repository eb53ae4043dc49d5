"""The listeners of one process and all that they relay with: planes, pools, connections to instances."""

import asyncio
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from functools import partial
from types import TracebackType
from typing import Literal, Self

from tcpgw.app.background import Background
from tcpgw.app.balancing import make_hash, make_key, make_policy
from tcpgw.balancing import hashing
from tcpgw.balancing.loads import Loads
from tcpgw.balancing.split import Split
from tcpgw.config import schema
from tcpgw.config.codec import Frame
from tcpgw.config.listener import Method
from tcpgw.endpoints import Snapshot
from tcpgw.pool import Pool
from tcpgw.relay.framed import FramedPlane
from tcpgw.relay.listener import Listener
from tcpgw.relay.placement import Placement
from tcpgw.relay.rpc.memory import Memory
from tcpgw.relay.rpc.plane import RpcPlane
from tcpgw.relay.rpc.routing import Routing, Rule, Rules
from tcpgw.relay.rpc.service import Protocol, RpcService
from tcpgw.relay.session import Plane
from tcpgw.relay.sockets import adopt_socket, bind_socket
from tcpgw.relay.stream_plane import Choose, StreamPlane
from tcpgw.relay.upstream import Outcomes, Upstream
from tcpgw.wire.codec import Codec
from tcpgw.wire.field import Field
from tcpgw.wire.frames import PRESETS, FrameSplitter, LengthField, Splitter
from tcpgw.wire.msgpack_rpc import MsgpackRpc
from tcpgw.wire.msgpack_scan import MsgpackSplitter
from tcpgw.wire.thrift import Thrift


class Relays:
    """Binds every listener on entry, accepts from `start` on, and ends every connection at the exit.

    Raises BindError on entry, with nothing left open. `sockets` are as of `Gateway`.
    """

    def __init__(
        self, config: schema.Config, sockets: Mapping[str, socket.socket], background: Background
    ) -> None:
        self.listeners: dict[str, Listener] = {}
        self.pools = {service.name: _make_pool(service) for service in config.service}
        self.rpc: dict[tuple[str, str], RpcService] = {}
        self.memory = Memory(config.gateway.rpc_memory)
        self._config = config
        self._sockets = sockets
        self._services = {service.name: service for service in config.service}
        self._background = background
        self._stack = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self.outcomes = {name: Outcomes(pool) for name, pool in self.pools.items()}
        self.placements = {
            service.name: Placement(
                self.pools[service.name], self.listeners.values, rebalance=service.balance.rebalance
            )
            for service in config.service
        }

    async def __aenter__(self) -> Self:
        try:
            for sock in self._sockets.values():
                self._stack.callback(sock.close)
            self._stack.push_async_callback(self._end_tasks)
            for settings in self._config.listener:
                self._add_listener(settings)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def publish(self, snapshot: Snapshot) -> None:
        """As `Pool.publish`, of the service that the snapshot is of."""
        await self.pools[snapshot.service].publish(snapshot)

    async def start(self) -> None:
        """Connect to the instances of rpc services, as far as they let us, then accept."""
        for rpc in self.rpc.values():
            self._tasks.append(self._background.start(rpc.run(), f"channels of {rpc.name}"))
        for name, placement in self.placements.items():
            self._tasks.append(self._background.start(placement.run(), f"places of {name}"))
        for rpc in self.rpc.values():
            with suppress(TimeoutError):  # then it goes on trying while clients come
                async with asyncio.timeout(2 * rpc.connect_timeout):
                    await rpc.connected()
        for listener in self.listeners.values():
            listener.start()

    async def drain(
        self, spread: float = 0.0, hard: float | None = None, *, outlived: bool | None = None
    ) -> None:
        """As `Gateway.drain`; `outlived` as of `Listener.stop_accepting`."""
        for listener in self.listeners.values():
            listener.stop_accepting(outlived=outlived)
        for listener in self.listeners.values():
            listener.drain(spread, hard)
        for listener in self.listeners.values():
            await listener.drained()

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            await self._background.stop(task)

    def _add_listener(self, settings: schema.Listener) -> None:
        given = self._sockets.get(settings.name)
        sock = (
            adopt_socket(given, settings.keepalive)
            if given
            else bind_socket(settings.bind, settings.keepalive)
        )
        listener = self.listeners[settings.name] = Listener(
            settings,
            (sock,),
            self._make_plane(settings),
            log_connections=self._config.gateway.log.connections,
            outlived=given is not None,
        )
        self._stack.push_async_callback(listener.close)

    def _make_plane(self, settings: schema.Listener) -> Plane:
        if settings.by_request:
            return self._make_rpc_plane(settings)
        if settings.mode == "tcp":
            return StreamPlane(settings, self._route(settings))
        in_order = settings.codec.name == "fifo"
        return FramedPlane(settings, self._route(settings), _make_splitter(settings), in_order=in_order)

    def _make_rpc_plane(self, settings: schema.Listener) -> RpcPlane:
        codec = settings.codec.name
        bare = MsgpackRpc(framed=False) if codec != "thrift-framed" else None
        weights = {route.service: route.weight for route in settings.route if route.weight}
        rules = self._make_rules(settings)
        named = {rule.service for rule in rules.all if rule.service is not None}
        routed = {name: self._rpc_service(name, settings) for name in weights}
        keys = {
            service: make_key(self._services[service.name].balance.key, settings.name, hashing.SEED)
            for service in {*routed.values(), *named}
        }
        for service in keys:
            service.expect(rules.all, own_deadlines=settings.deadline is not None)
        first = next(iter(routed.values()))
        split = Split(weights)
        # Where there is nothing to split, no request is searched for a key of it.
        split_by = self._services[first.name].balance.key if len(routed) > 1 else "source_ip"
        routing = Routing(
            rules,
            (lambda position: routed[split.choose(position)]) if len(routed) > 1 else (lambda _: first),
            make_key(split_by, settings.name, hashing.SPLIT_SEED),
            keys,
            deadline=Field(settings.deadline) if settings.deadline else None,
        )
        return RpcPlane(
            settings,
            routing,
            self.memory,
            _client_codec(codec),
            bare,
            rewrites=codec == "msgpack-rpc-stream",
            bulk=first.settings.bulk,
        )

    def _make_rules(self, settings: schema.Listener) -> Rules:
        def rule(name: str, method: Method | Literal["deny"]) -> Rule:
            if method == "deny":
                return Rule(name, timeout=settings.request_timeout, denied=True)
            return Rule(
                name,
                timeout=method.timeout or settings.request_timeout,
                service=self._rpc_service(method.service, settings) if method.service else None,
                idempotent=method.idempotent,
                hedge=method.hedge,
                priority=_PRIORITIES[method.priority],
                limit=method.max_inflight,
            )

        default = Rule("", timeout=settings.request_timeout)
        return Rules(default, {name: rule(name, method) for name, method in settings.methods.items()})

    def _rpc_service(self, name: str, listener: schema.Listener) -> RpcService:
        """One for each service and codec, so that listeners share its connections."""
        codec = listener.codec.name
        if (name, codec) not in self.rpc:
            settings = self._services[name]
            longest = max(one.max_frame for one in self._config.listener if one.by_request)
            instance = MsgpackRpc(framed=False) if codec == "msgpack-rpc-stream" else _client_codec(codec)
            self.rpc[name, codec] = RpcService(
                self.pools[name],
                Protocol(_client_codec(codec), instance, codec != "msgpack-rpc-stream", longest),
                settings.rpc,
                self.memory,
                connect_timeout=settings.connect.timeout,
                tries=settings.connect.candidates,
                observes=settings.balance.policy == "peak_ewma",
            )
        return self.rpc[name, codec]

    def _route(self, listener: schema.Listener) -> Choose:
        services = self._services
        weights = {route.service: route.weight for route in listener.route if route.weight}
        upstreams = {
            name: Upstream(
                self.pools[name],
                make_hash(services[name].balance.key, listener.name, hashing.SEED),
                timeout=services[name].connect.timeout,
                tries=services[name].connect.candidates,
                send_proxy=services[name].send_proxy,
                outcomes=self.outcomes[name],
            )
            for name in weights
        }
        first = next(iter(upstreams))
        if len(upstreams) == 1:
            return lambda _: upstreams[first]
        split = Split(weights)
        hash_ = make_hash(services[first].balance.key, listener.name, hashing.SPLIT_SEED)
        return lambda client: upstreams[split.choose(hash_(client))]


# ---- the concrete classes behind the configuration's words ----

_PRIORITIES = {"high": 0, "normal": 1, "low": 2}


def _client_codec(codec: str) -> Codec:
    """What reads and makes a client's frames; a MessagePack-RPC client may also speak without lengths."""
    return Thrift() if codec == "thrift-framed" else MsgpackRpc(framed=True)


def _make_splitter(listener: schema.Listener) -> Callable[[], Splitter]:
    """What finds the ends of an opaque or fifo listener's frames, one for each direction of a connection."""
    frame = listener.codec.frame
    if frame == "msgpack":
        return partial(MsgpackSplitter, listener.max_frame)
    field = LengthField(**frame.model_dump()) if isinstance(frame, Frame) else PRESETS[frame or "u32be"]
    return partial(FrameSplitter, field, listener.max_frame)


def _make_pool(service: schema.Service) -> Pool:
    return Pool(service.name, partial(make_policy, service.balance), Loads(time.monotonic))
