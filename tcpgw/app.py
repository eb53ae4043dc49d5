"""The composition root: the only file that picks concrete classes and sees the whole configuration."""

import asyncio
import json
import random
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from functools import partial
from types import MappingProxyType, TracebackType
from typing import Literal, Self

import structlog

from tcpgw.balancing import hashing
from tcpgw.balancing.bounded import Bounded
from tcpgw.balancing.least_request import LeastRequest
from tcpgw.balancing.loads import Loads
from tcpgw.balancing.maglev import Maglev
from tcpgw.balancing.peak_ewma import PeakEwma
from tcpgw.balancing.policy import Policy
from tcpgw.balancing.ring import Ring
from tcpgw.balancing.round_robin import RoundRobin
from tcpgw.balancing.sampling import Random
from tcpgw.balancing.split import Split
from tcpgw.config import schema
from tcpgw.config.codec import Frame
from tcpgw.config.listener import Method
from tcpgw.config.values import parse_path
from tcpgw.discovery.dns import DnsSource
from tcpgw.discovery.file import FileSource
from tcpgw.discovery.modelarts import Account, ModelArtsSource
from tcpgw.discovery.source import Source
from tcpgw.discovery.static import StaticSource
from tcpgw.discovery.store import Store
from tcpgw.discovery.watch import Watcher
from tcpgw.endpoints import Endpoint
from tcpgw.pool import Pool
from tcpgw.relay.framed import FramedPlane
from tcpgw.relay.listener import Listener
from tcpgw.relay.rpc.memory import Memory
from tcpgw.relay.rpc.plane import RpcPlane
from tcpgw.relay.rpc.routing import Key, Routing, Rule, Rules
from tcpgw.relay.rpc.service import Protocol, RpcService
from tcpgw.relay.session import Address, Plane
from tcpgw.relay.sockets import adopt_socket, bind_socket
from tcpgw.relay.stream_plane import Choose, StreamPlane
from tcpgw.relay.upstream import Hash, Upstream
from tcpgw.wire.codec import Codec
from tcpgw.wire.field import Field
from tcpgw.wire.frames import PRESETS, FrameSplitter, LengthField, Splitter
from tcpgw.wire.msgpack_rpc import MsgpackRpc
from tcpgw.wire.msgpack_scan import MsgpackSplitter
from tcpgw.wire.thrift import Thrift

log = structlog.get_logger()


class Gateway:
    """A whole gateway in this process and event loop.

    `async with Gateway(config) as gateway:` binds every listener, starts discovery, waits for each service's
    first snapshot (at most its `wait`), then accepts. Raises BindError or CredentialError where it cannot
    start, with nothing left open. Leaving the context ends every connection at once: `drain` before, to
    spare them.

    `sockets`, by listener, are open already and stay so elsewhere (systemd's): they are listened on in place
    of the `bind`, and closed here with the gateway.
    """

    def __init__(
        self, config: schema.Config, sockets: Mapping[str, socket.socket] = MappingProxyType({})
    ) -> None:
        self.listeners: dict[str, Listener] = {}
        self.pools = {service.name: _make_pool(service) for service in config.service}
        self._config = config
        self._sockets = sockets
        self._services = {service.name: service for service in config.service}
        self._rpc: dict[tuple[str, str], RpcService] = {}
        self._memory = Memory(config.gateway.rpc_memory)
        self._stack = AsyncExitStack()
        self._watchers: dict[str, Watcher] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def failed(self) -> None:
        """Return never, or raise what a background task died of: a bug, since errors are handled there."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def drain(self, seconds: float) -> None:
        """Refuse new clients and let the connections finish, for at most `seconds`."""
        for listener in self.listeners.values():
            listener.drain()
        try:
            async with asyncio.timeout(seconds):
                for listener in self.listeners.values():
                    await listener.drained()
        except TimeoutError:
            pass

    async def _start(self) -> None:
        config = self._config
        for sock in self._sockets.values():
            self._stack.callback(sock.close)
        for settings in config.listener:
            self._add_listener(settings)
        began = asyncio.get_running_loop().time()
        self._stack.push_async_callback(self._end_tasks)
        sources = make_sources(config, config.service)
        for service in config.service:
            name = service.name
            store = _make_store(config, service.discovery)
            watcher = Watcher(name, sources[name], self.pools[name].publish, store=store)
            self._watchers[name] = watcher
            self._tasks.append(asyncio.create_task(watcher.run(), name=f"discovery of {name}"))
        for service in config.service:
            await self._first_snapshot(service, began + service.wait)
        for rpc in self._rpc.values():
            self._tasks.append(asyncio.create_task(rpc.run(), name=f"channels of {rpc.name}"))
        for rpc in self._rpc.values():
            with suppress(TimeoutError):  # then it goes on trying while clients come
                async with asyncio.timeout(2 * rpc.connect_timeout):
                    await rpc.connected()
        for listener in self.listeners.values():
            listener.start()

    def _add_listener(self, settings: schema.Listener) -> None:
        given = self._sockets.get(settings.name)
        listener = self.listeners[settings.name] = Listener(
            settings,
            adopt_socket(given, settings.keepalive)
            if given
            else bind_socket(settings.bind, settings.keepalive),
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
            service: _make_key(self._services[service.name].balance.key, settings.name, hashing.SEED)
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
            _make_key(split_by, settings.name, hashing.SPLIT_SEED),
            keys,
            deadline=Field(settings.deadline) if settings.deadline else None,
        )
        return RpcPlane(
            settings,
            routing,
            self._memory,
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
        if (name, codec) not in self._rpc:
            settings = self._services[name]
            longest = max(one.max_frame for one in self._config.listener if one.by_request)
            instance = MsgpackRpc(framed=False) if codec == "msgpack-rpc-stream" else _client_codec(codec)
            self._rpc[name, codec] = RpcService(
                self.pools[name],
                Protocol(_client_codec(codec), instance, codec != "msgpack-rpc-stream", longest),
                settings.rpc,
                self._memory,
                connect_timeout=settings.connect.timeout,
                tries=settings.connect.candidates,
                observes=settings.balance.policy == "peak_ewma",
            )
        return self._rpc[name, codec]

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
            )
            for name in weights
        }
        first = next(iter(upstreams))
        if len(upstreams) == 1:
            return lambda _: upstreams[first]
        split = Split(weights)
        hash_ = make_hash(services[first].balance.key, listener.name, hashing.SPLIT_SEED)
        return lambda client: upstreams[split.choose(hash_(client))]

    async def _first_snapshot(self, service: schema.Service, deadline: float) -> None:
        """Wait for discovery, but not for ever: one silent source must not keep the other services down."""
        ready = asyncio.create_task(self._watchers[service.name].ready.wait())
        left = max(0, deadline - asyncio.get_running_loop().time())
        try:
            done, _ = await asyncio.wait(
                {ready, *self._tasks}, timeout=left, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            ready.cancel()
        for failed in done - {ready}:
            failed.result()
        if ready not in done:
            log.error(
                "no_first_snapshot",
                service=service.name,
                waited=service.wait,
                hint="its clients are turned away until discovery answers; see discovery_failed above",
            )

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


# ---- the concrete classes behind the configuration's words ----

_PRIORITIES = {"high": 0, "normal": 1, "low": 2}


def _client_codec(codec: str) -> Codec:
    """What reads and makes a client's frames; a MessagePack-RPC client may also speak without lengths."""
    return Thrift() if codec == "thrift-framed" else MsgpackRpc(framed=True)


def _make_key(key: str, listener: str, seed: int) -> Key:
    """What a service's `balance.key` means for the requests of an rpc listener's clients."""

    def of_bytes(data: bytes) -> int:
        return hashing.other(data, seed)

    if key == "method":
        return Key(make_hash("source_ip", listener, seed), of_bytes, by_method=True)
    if key in {"source_ip", "source_ip_port", "listener"}:
        return Key(make_hash(key, listener, seed), of_bytes)
    return Key(make_hash("source_ip", listener, seed), of_bytes, field=Field(parse_path(key)))


def _make_splitter(listener: schema.Listener) -> Callable[[], Splitter]:
    """What finds the ends of an opaque or fifo listener's frames, one for each direction of a connection."""
    frame = listener.codec.frame
    if frame == "msgpack":
        return partial(MsgpackSplitter, listener.max_frame)
    field = LengthField(**frame.model_dump()) if isinstance(frame, Frame) else PRESETS[frame or "u32be"]
    return partial(FrameSplitter, field, listener.max_frame)


def make_sources(config: schema.Config, services: Iterable[schema.Service]) -> dict[str, Source]:
    """A source for each service by name; those of one cloud share its account. Close each of them.

    Raises CredentialError where an account's credentials cannot be used at all.
    """
    accounts: dict[str, Account] = {}
    sources: dict[str, Source] = {}
    for service in services:
        match service.discovery:
            case schema.StaticDiscovery() as settings:
                sources[service.name] = StaticSource(settings)
            case schema.FileDiscovery() as settings:
                sources[service.name] = FileSource(settings)
            case schema.DnsDiscovery() as settings:
                sources[service.name] = DnsSource(settings)
            case schema.ModelArtsDiscovery(cloud=cloud) as settings:
                if cloud not in accounts:
                    accounts[cloud] = Account(cloud, config.cloud[cloud])
                sources[service.name] = ModelArtsSource(settings, accounts[cloud])
    return sources


def make_policy(balance: schema.Balance, weights: Mapping[Endpoint, float], loads: Loads) -> Policy:
    """Build a service's policy; takes up to a tenth of a second, so off the event loop."""
    policy: Policy
    match balance.policy:
        case "maglev":
            policy = Maglev(weights, balance.table_size, breathe=_breathe)
        case "ring":
            policy = Ring(weights, breathe=_breathe)
        case "least_request":
            return LeastRequest(weights, loads, random.Random())
        case "peak_ewma":
            return PeakEwma(weights, loads, random.Random())
        case "round_robin":
            return RoundRobin(weights, random.Random())
        case "random":
            return Random(weights, random.Random())
    return Bounded(policy, weights, loads, balance.bounded_load) if balance.bounded_load else policy


def _breathe() -> None:
    """Let the event loop's thread have the interpreter; sleep(0) often takes it back before that wakes."""
    time.sleep(1e-6)


def make_hash(key: str, listener: str, seed: int) -> Hash:
    """What a service's `balance.key` means for the clients of a listener."""
    if key == "listener":
        fixed = hashing.other(listener.encode(), seed)
        return lambda _: fixed

    def of_source(client: Address | None) -> int:
        if client is None:  # of a Unix socket: no address to keep, so it is spread
            return random.getrandbits(32)
        return (
            hashing.source_ip(client[0], seed)
            if key == "source_ip"
            else hashing.source_ip_port(*client, seed)
        )

    return of_source


def describe(discovery: schema.Discovery) -> str:
    """Say for operators where a service's endpoints come from."""
    match discovery:
        case schema.StaticDiscovery(endpoints=endpoints):
            return f"static, {len(endpoints)} endpoints"
        case schema.FileDiscovery(path=path):
            return f"file {path}"
        case schema.DnsDiscovery(name=name, record=record):
            return f"dns {record} {name}"
        case schema.ModelArtsDiscovery(service_id=service_id, cloud=cloud):
            return f"modelarts {service_id} by cloud.{cloud}"


def _make_store(config: schema.Config, discovery: schema.Discovery) -> Store | None:
    # A static list changes with the configuration alone: there is no older one to fall back to.
    if config.gateway.state_dir is None or isinstance(discovery, schema.StaticDiscovery):
        return None
    # Everything that decides which instances are found, and not how often or how long they are asked for.
    source = discovery.model_dump(mode="json", exclude={"cloud", "refresh", "timeout"})
    if isinstance(discovery, schema.ModelArtsDiscovery):
        cloud = config.cloud[discovery.cloud]
        source |= {"endpoint": cloud.endpoint, "project_id": cloud.project_id}
    return Store(config.gateway.state_dir, json.dumps(source, sort_keys=True))


def _make_pool(service: schema.Service) -> Pool:
    return Pool(service.name, partial(make_policy, service.balance), Loads(time.monotonic))
