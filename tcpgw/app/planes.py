"""What a listener's settings mean: the plane that moves its bytes, its route, its rules."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from tcpgw.app.balancing import make_hash, make_key
from tcpgw.balancing import hashing
from tcpgw.balancing.split import Split
from tcpgw.config import schema
from tcpgw.config.codec import Frame
from tcpgw.pool import Pool
from tcpgw.relay.framed import FramedPlane
from tcpgw.relay.outcomes import Outcomes
from tcpgw.relay.rpc.memory import Memory
from tcpgw.relay.rpc.plane import RpcPlane
from tcpgw.relay.rpc.routing import Routing, Rule, Rules
from tcpgw.relay.rpc.service import RpcService
from tcpgw.relay.session import Plane
from tcpgw.relay.stream_plane import Choose, StreamPlane
from tcpgw.relay.upstream import Upstream
from tcpgw.wire.codec import Codec
from tcpgw.wire.field import Field
from tcpgw.wire.frames import PRESETS, FrameSplitter, LengthField, Splitter
from tcpgw.wire.msgpack_rpc import MsgpackRpc
from tcpgw.wire.msgpack_scan import MsgpackSplitter
from tcpgw.wire.thrift import Thrift

_PRIORITIES = {"high": 0, "normal": 1, "low": 2}


def reached(listener: schema.Listener) -> set[str]:
    """The services that a listener's clients can come to."""
    ruled = {rule.service for rule in listener.methods.values() if rule != "deny" and rule.service}
    return ruled | {route.service for route in listener.route if route.weight}


def client_codec(codec: str) -> Codec:
    """What reads and makes a client's frames; a MessagePack-RPC client may also speak without lengths."""
    return Thrift() if codec == "thrift-framed" else MsgpackRpc(framed=True)


class Planes:
    """Makes planes for one configuration, and changes those that stay to it.

    `rpc` has the RpcService of each service and codec that its listeners need; `outcomes` is where connecting
    to a service's endpoints is counted.
    """

    def __init__(
        self,
        config: schema.Config,
        pools: Mapping[str, Pool],
        rpc: Mapping[tuple[str, str], RpcService],
        memory: Memory,
        outcomes: Callable[[Pool], Outcomes],
    ) -> None:
        self._outcomes = outcomes
        self._services = {service.name: service for service in config.service}
        self._pools = pools
        self._rpc = rpc
        self._memory = memory

    def make(self, listener: schema.Listener) -> Plane:
        if listener.by_request:
            return self._make_rpc(listener)
        if listener.mode == "tcp":
            return StreamPlane(listener, self._choose(listener))
        in_order = listener.codec.name == "fifo"
        return FramedPlane(listener, self._choose(listener), _make_splitter(listener), in_order=in_order)

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
            new.latencies = plane.latencies
        return new

    # ---- by connection ----

    def _choose(self, listener: schema.Listener) -> Choose:
        services = self._services
        weights = _weights(listener)
        upstreams = {
            name: Upstream(
                self._pools[name],
                make_hash(services[name].balance.key, listener.name, hashing.SEED),
                timeout=services[name].connect.timeout,
                tries=services[name].connect.candidates,
                send_proxy=services[name].send_proxy,
                outcomes=self._outcomes(self._pools[name]),
            )
            for name in weights
        }
        first = next(iter(upstreams))
        if len(upstreams) == 1:
            return lambda _: upstreams[first]
        split = Split(weights)
        hash_ = make_hash(services[first].balance.key, listener.name, hashing.SPLIT_SEED)
        return lambda client: upstreams[split.choose(hash_(client))]

    # ---- by request ----

    def _make_rpc(self, listener: schema.Listener) -> RpcPlane:
        codec = listener.codec.name
        return RpcPlane(
            listener,
            self._make_routing(listener, self._make_rules(listener, {})),
            self._memory,
            client_codec(codec),
            MsgpackRpc(framed=False) if codec != "thrift-framed" else None,
            rewrites=codec == "msgpack-rpc-stream",
            bulk=self._bulk(listener),
        )

    def _change_rpc(self, listener: schema.Listener, plane: RpcPlane) -> None:
        plane.settle()
        old = plane.routing
        rules = self._make_rules(listener, {rule.name: rule for rule in old.rules.all})
        routing = self._make_routing(listener, rules)
        plane.change(listener, routing, bulk=self._bulk(listener))
        gone = set(old.rules.all) - set(rules.all)
        for service in old.services:
            service.dismiss(gone)
            if service not in routing.services:
                _part(service, old.rules, plane)

    def _make_routing(self, listener: schema.Listener, rules: Rules) -> Routing:
        weights = _weights(listener)
        routed = {name: self._rpc_service(name, listener) for name in weights}
        named = {rule.service for rule in rules.all if rule.service is not None}
        keys = {
            service: make_key(self._services[service.name].balance.key, listener.name, hashing.SEED)
            for service in {*routed.values(), *named}
        }
        for service in keys:
            service.expect(rules.all, own_deadlines=listener.deadline is not None)
        first = next(iter(routed.values()))
        split = Split(weights)
        # Where there is nothing to split, no request is searched for a key of it.
        split_by = self._services[first.name].balance.key if len(routed) > 1 else "source_ip"
        return Routing(
            rules,
            (lambda position: routed[split.choose(position)]) if len(routed) > 1 else (lambda _: first),
            make_key(split_by, listener.name, hashing.SPLIT_SEED),
            keys,
            deadline=Field(listener.deadline) if listener.deadline else None,
        )

    def _make_rules(self, listener: schema.Listener, known: Mapping[str, Rule]) -> Rules:
        """The rules of a listener. Of the `known` ones, by name, those that stay are changed."""

        def rule(name: str, terms: dict[str, Any]) -> Rule:
            if name not in known:
                return Rule(name, **terms)
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
        return self._services[next(iter(_weights(listener)))].rpc.bulk


def _weights(listener: schema.Listener) -> dict[str, int]:
    return {route.service: route.weight for route in listener.route if route.weight}


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
        for service in plane.routing.services:
            _part(service, plane.routing.rules, plane)


def _part(service: RpcService, rules: Rules, plane: RpcPlane) -> None:
    service.dismiss(rules.all)
    service.forget_plane(plane)


def services_of(planes: Iterable[Plane]) -> set[RpcService]:
    """The services that these planes send requests to."""
    return {service for plane in planes if isinstance(plane, RpcPlane) for service in plane.routing.services}
