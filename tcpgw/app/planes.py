"""What a listener's settings mean: the plane that moves its bytes, its route, its rules."""

from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import partial
from math import inf
from types import MappingProxyType
from typing import Any

from tcpgw.access.grant import allowed
from tcpgw.app.balancing import make_hash, make_key
from tcpgw.app.routes import Routes, Way, Weights
from tcpgw.balancing import hashing
from tcpgw.balancing.split import Split
from tcpgw.config import schema
from tcpgw.config.codec import Frame
from tcpgw.pool import Pool
from tcpgw.relay.circuit import Circuit
from tcpgw.relay.dial import InstanceTls
from tcpgw.relay.framed import FramedPlane
from tcpgw.relay.outcomes import Outcomes
from tcpgw.relay.rpc.memory import Memory
from tcpgw.relay.rpc.plane import RpcPlane
from tcpgw.relay.rpc.routing import PermittedRules, Routing, Rule, Rules
from tcpgw.relay.rpc.service import RpcService
from tcpgw.relay.session import Client, Plane
from tcpgw.relay.stream_plane import Choose, Explain, StreamPlane
from tcpgw.relay.upstream import Upstream
from tcpgw.wire.auth_frame import AuthFrame
from tcpgw.wire.codec import Codec
from tcpgw.wire.field import Field
from tcpgw.wire.frames import PRESETS, FrameSplitter, LengthField, Splitter
from tcpgw.wire.msgpack_rpc import MsgpackRpc
from tcpgw.wire.msgpack_scan import MsgpackSplitter
from tcpgw.wire.thrift import Thrift

_PRIORITIES = {"high": 0, "normal": 1, "low": 2}


def reached(listener: schema.Listener) -> set[str]:
    """The services that a listener's clients can come to."""
    return Routes(listener).reached


def client_codec(codec: str) -> Codec:
    """What reads and makes a client's frames; a MessagePack-RPC client may also speak without lengths."""
    return Thrift() if codec == "thrift-framed" else MsgpackRpc(framed=True)


class Planes:
    """Makes planes for one configuration, and changes those that stay to it.

    `rpc` has the RpcService of each service and codec that its listeners need, `tls` what connections to a
    service's instances are wrapped in, `outcomes` is where it is counted what comes of them, and `circuit`
    what limits them.
    """

    def __init__(
        self,
        config: schema.Config,
        pools: Mapping[str, Pool],
        rpc: Mapping[tuple[str, str], RpcService],
        memory: Memory,
        tls: Mapping[str, InstanceTls],
        outcomes: Callable[[Pool], Outcomes],
        circuit: Callable[[Pool], Circuit],
    ) -> None:
        self._outcomes = outcomes
        self._circuit = circuit
        self._tls = tls
        # Of 65,536 entries each; by weights and not by who goes there, of whom there may be thousands.
        self._splits: dict[tuple[tuple[str, int], ...], Split] = {}
        self._services = {service.name: service for service in config.service}
        self._pools = pools
        self._rpc = rpc
        self._memory = memory

    def make(self, listener: schema.Listener) -> Plane:
        if listener.by_request:
            return self._make_rpc(listener)
        routes = Routes(listener)
        choose = self._choose(listener, routes)
        explain = self._explain(listener, routes)
        times = [_first_byte_timeout(self._services[name]) or inf for name in routes.services]
        if listener.mode == "tcp":
            return StreamPlane(listener, choose, min(times), judge=routes.judge, explain=explain)
        in_order = listener.codec.name == "fifo"
        splitter = _make_splitter(listener)
        return FramedPlane(
            listener, choose, splitter, min(times), judge=routes.judge, explain=explain, in_order=in_order
        )

    def changed(self, listener: schema.Listener, plane: Plane) -> Plane:
        """What takes the place of a plane of the same mode and codec.

        The rpc plane stays itself and its sessions follow. Of the others sessions keep the plane that they
        have, so they are made anew, and go on counting where the old one was.
        """
        if isinstance(plane, RpcPlane):
            self._change_rpc(listener, plane)
            return plane
        new = self.make(listener)
        if isinstance(plane, FramedPlane) and isinstance(new, FramedPlane):
            new.count_on(plane)
        return new

    # ---- by connection ----

    def _choose(self, listener: schema.Listener, routes: Routes) -> Choose:
        services = self._services
        upstreams = {
            name: Upstream(
                self._pools[name],
                make_hash(services[name].balance.key, listener.name, hashing.SEED),
                timeout=services[name].connect.timeout,
                tries=services[name].connect.candidates,
                send_proxy=services[name].send_proxy,
                outcomes=self._outcomes(self._pools[name]),
                circuit=self._circuit(self._pools[name]),
                tls=self._tls.get(name),
                first_byte_timeout=_first_byte_timeout(services[name]),
                key=services[name].balance.key,
            )
            for name in routes.services
        }

        def choose_of(weights: Weights) -> Choose:
            first = next(iter(weights))
            if len(weights) == 1:
                return lambda _: upstreams[first]
            split = Split(weights)
            hash_ = make_hash(services[first].balance.key, listener.name, hashing.SPLIT_SEED)
            return lambda client: upstreams[split.choose(hash_(client))]

        most = choose_of(routes.weights())
        # By what they lead to, and not by who goes there: as many as the configuration has.
        others: dict[tuple[tuple[str, int], ...], Choose] = {}

        def choose(client: Client) -> Upstream:
            way = routes.way(client)
            if way is None:
                return most(client)
            weights = routes.weights(way)
            key = tuple(weights.items())
            if key not in others:
                others[key] = choose_of(weights)
            return others[key](client)

        return choose if routes.differ else most

    def _explain(self, listener: schema.Listener, routes: Routes) -> Explain:
        """Tell of a split that a client comes to, and of the host that leads there."""

        def explain(client: Client) -> dict[str, object]:
            way = routes.way(client)
            weights = routes.weights(way)
            told: dict[str, object] = {"host": way.host} if way is not None and way.host else {}
            if len(weights) > 1:
                key = make_key(
                    self._services[next(iter(weights))].balance.key, listener.name, hashing.SPLIT_SEED
                )
                told["split"] = dict(weights)
                if key.stays:
                    told["split_position"] = f"{key.of_client(client):#010x}"
            return told

        return explain

    # ---- by request ----

    def _make_rpc(self, listener: schema.Listener) -> RpcPlane:
        codec = listener.codec.name
        rules = self._make_rules(listener, {})
        client, bare = client_codec(codec), MsgpackRpc(framed=False) if codec != "thrift-framed" else None
        return RpcPlane(
            listener,
            self._make_routing(listener, rules),
            self._memory,
            client,
            bare,
            greeting=AuthFrame(client, bare, first=1 if codec == "thrift-framed" else 0),
            variants=self._variants(listener, rules),
            explain=self._explain(listener, Routes(listener)),
            rewrites=codec == "msgpack-rpc-stream",
            bulk=self._bulk(listener),
        )

    def _change_rpc(self, listener: schema.Listener, plane: RpcPlane) -> None:
        plane.settle()
        old = plane.routing
        reached = [one.routing.services for one in plane.all]
        rules = self._make_rules(listener, {rule.name: rule for rule in old.rules.all})
        routing = self._make_routing(listener, rules)
        variants = self._variants(listener, rules)
        explain = self._explain(listener, Routes(listener))
        plane.change(listener, routing, variants=variants, explain=explain, bulk=self._bulk(listener))
        gone = set(old.rules.all) - set(rules.all)
        left = {service for one in plane.all for service in one.routing.services}
        for service in {service for services in reached for service in services}:
            service.dismiss(gone)
            if service not in left:
                _part(service, old.rules, plane)

    def _variants(self, listener: schema.Listener, rules: Rules) -> "_Variants | None":
        routes = Routes(listener)
        return _Variants(self, listener, routes, rules) if routes.differ else None

    def routing_of(self, listener: schema.Listener, routes: Routes, rules: Rules, way: Way) -> Routing:
        """The routing of those of an rpc listener's clients who go a way of their own."""
        weights = routes.weights(way)
        names = {name for name in routes.reached if allowed(way.services, name)}
        services = {self._rpc_service(name, listener) for name in names}
        permits = way.methods.match if way.methods is not None else None
        permitted = PermittedRules(rules, permits, services, routed=bool(weights))
        return self._make_routing(listener, permitted, weights)

    def _make_routing(
        self, listener: schema.Listener, rules: Rules, weights: Weights = MappingProxyType({})
    ) -> Routing:
        """`weights`: of the services that the clients' requests go to, by default those of the listener."""
        weights = weights or Routes(listener).weights()
        routed = {name: self._rpc_service(name, listener) for name in weights}
        named = {rule.service for rule in rules.all if rule.service is not None}
        keys = {
            service: make_key(self._services[service.name].balance.key, listener.name, hashing.SEED)
            for service in {*routed.values(), *named}
        }
        for service in keys:
            service.expect(rules.all, own_deadlines=listener.deadline is not None)
        first = next(iter(routed.values()))
        # Where there is nothing to split, no request is searched for a key of it.
        split_by = self._services[first.name].balance.key if len(routed) > 1 else "source_ip"
        return Routing(
            rules,
            self._chooser(routed, weights) if len(routed) > 1 else (lambda _: first),
            make_key(split_by, listener.name, hashing.SPLIT_SEED),
            keys,
            deadline=Field(listener.deadline) if listener.deadline else None,
        )

    def _chooser(self, routed: Mapping[str, RpcService], weights: Weights) -> Callable[[int], RpcService]:
        """By a split's table, of which there is one for each that the configuration and credentials make."""
        key = tuple(weights.items())
        if key not in self._splits:
            self._splits[key] = Split(weights)
        split = self._splits[key]
        return lambda position: routed[split.choose(position)]

    def _make_rules(self, listener: schema.Listener, known: Mapping[str, Rule]) -> Rules:
        """The rules of a listener. Of the `known` ones, by name, those that stay are changed."""

        def rule(name: str, terms: dict[str, Any]) -> Rule:
            if name not in known:
                return Rule(name, listener=listener.name, **terms)
            known[name].change(**terms)
            return known[name]

        default = rule("", {"timeout": listener.request_timeout})
        terms = {name: self._terms(listener, method) for name, method in listener.methods.items()}
        return Rules(default, {name: rule(name, terms[name]) for name in terms})

    def _terms(self, listener: schema.Listener, method: schema.Rule) -> dict[str, Any]:
        if method == "deny":
            return {"timeout": listener.request_timeout, "denied": True}
        return {
            "timeout": method.timeout or listener.request_timeout,
            "service": self._rpc_service(method.service, listener) if method.service else None,
            "idempotent": method.idempotent,
            "hedge": method.hedge,
            "priority": _PRIORITIES[method.priority],
            "limit": method.max_inflight,
        }

    def _rpc_service(self, name: str, listener: schema.Listener) -> RpcService:
        return self._rpc[name, listener.codec.name]

    def _bulk(self, listener: schema.Listener) -> int:
        return self._services[next(iter(Routes(listener).weights()))].rpc.bulk


class _Variants:
    """See `relay.rpc.plane.Variants`: by a client's Way."""

    def __init__(self, planes: Planes, listener: schema.Listener, routes: Routes, rules: Rules) -> None:
        self._planes = planes
        self._listener = listener
        self._routes = routes
        self._rules = rules
        self.judge = routes.judge
        self.key = routes.way

    def routing(self, key: Hashable) -> Routing:
        assert isinstance(key, Way)  # noqa: S101 - `key` made it
        return self._planes.routing_of(self._listener, self._routes, self._rules, key)


def _first_byte_timeout(service: schema.Service) -> float | None:
    passive = service.health.passive
    return None if passive == "off" else passive.first_byte_timeout


def _make_splitter(listener: schema.Listener) -> Callable[[], Splitter]:
    """What finds the ends of an opaque or fifo listener's frames, one for each direction of a connection."""
    frame = listener.codec.frame
    if frame == "msgpack":
        return partial(MsgpackSplitter, listener.max_frame)
    field = LengthField(**frame.model_dump()) if isinstance(frame, Frame) else PRESETS[frame or "u32be"]
    return partial(FrameSplitter, field, listener.max_frame)


def dismiss(plane: Plane) -> None:
    """A plane has no clients any more: let its services forget it."""
    if isinstance(plane, RpcPlane):
        for one in plane.all:
            for service in one.routing.services:
                _part(service, one.routing.rules, one)


def _part(service: RpcService, rules: Rules, plane: RpcPlane) -> None:
    service.dismiss(rules.all)
    service.forget_plane(plane)


def services_of(planes: Iterable[Plane]) -> set[RpcService]:
    """The services that these planes send requests to."""
    rpc = [one for plane in planes if isinstance(plane, RpcPlane) for one in plane.all]
    return {service for plane in rpc for service in plane.routing.services}
