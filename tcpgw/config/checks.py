"""Checks that need more than one value: pure functions over a configuration that is right in each part."""

import re
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address
from math import isqrt
from typing import TYPE_CHECKING

from tcpgw.config.values import Bind, written_size

if TYPE_CHECKING:
    from tcpgw.config.schema import Config, Gateway, Listener, ModelArtsCloud, Route, Service

Place = tuple[str | int, ...]
"""Keys and indices from the configuration's root: `("listener", 0, "bind")`."""


def between_tables(config: "Config") -> Iterator[tuple[Place, str]]:
    """Yield each contradiction between tables with its place. A `Config` calls this on itself when made."""
    yield from _repeated("service", (service.name for service in config.service))
    yield from _repeated("listener", (listener.name for listener in config.listener))
    yield from _shared_binds(config.listener)
    yield from _shared_users(config.cloud)
    yield from _stop(config.gateway)
    yield from _admin_bind(config)
    for index, service in enumerate(config.service):
        cloud = getattr(service.discovery, "cloud", None)
        if cloud is not None and cloud not in config.cloud:
            yield (
                ("service", index, "discovery", "cloud"),
                f"there is no [cloud.{cloud}] table{_known(config.cloud)}",
            )
    keys = {service.name: service.balance.key for service in config.service}
    for index, listener in enumerate(config.listener):
        yield from _routes(listener.route, ("listener", index, "route"), keys)
        yield from _methods(listener, ("listener", index, "methods"), keys)
        for name, routes in listener.sni.items():
            yield from _routes(routes, ("listener", index, "sni", name), keys)
        yield from _memory(listener, ("listener", index, "max_frame"), config.gateway.rpc_memory)
        yield from _guards(listener, ("listener", index))
    for index, service in enumerate(config.service):
        yield from _users(service, ("service", index), config.listener)


def _repeated(table: str, names: Iterable[str]) -> Iterator[tuple[Place, str]]:
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        if first.setdefault(name, index) != index:
            yield (table, index, "name"), f"{table}[{first[name]}] has the name {name!r} already"


def _shared_binds(listeners: Iterable["Listener"]) -> Iterator[tuple[Place, str]]:
    first: dict[str, int] = {}
    for index, listener in enumerate(listeners):
        if not listener.bind.is_any and first.setdefault(str(listener.bind), index) != index:
            yield (
                ("listener", index, "bind"),
                f"listener[{first[str(listener.bind)]}] binds {listener.bind} already",
            )


def _shared_users(clouds: Mapping[str, "ModelArtsCloud"]) -> Iterator[tuple[Place, str]]:
    """The cloud counts a user's calls together, so two budgets would let twice as many through."""
    first: dict[tuple[str, ...], str] = {}
    for name, cloud in clouds.items():
        auth, key = cloud.auth, ""
        user: tuple[str, ...] = ()
        if auth.type == "password":
            user, key = (auth.iam, auth.domain, auth.user), "user"
        elif auth.type == "aksk":
            user, key = (auth.access_key.get_secret_value(),), "access_key"
        if user and first.setdefault(user, name) != name:
            message = (
                f"[cloud.{first[user]}] is the same IAM user, whose calls are counted together: let the "
                f"services name cloud = {first[user]!r}, or give this table a user of its own"
            )
            yield ("cloud", name, "auth", key), message


def _stop(gateway: "Gateway") -> Iterator[tuple[Place, str]]:
    # Who only raised drain wants its connections asked, and not cut.
    if "hard_stop" in gateway.model_fields_set and gateway.hard_stop < gateway.drain:
        drain = f"gateway.drain, {gateway.drain:g} s"
        message = f"must be at least {drain}, or connections are cut before they are asked to end"
        yield ("gateway", "hard_stop"), message


def _admin_bind(config: "Config") -> Iterator[tuple[Place, str]]:
    admin = config.gateway.admin
    if admin == "off" or admin.bind.is_any:
        return
    default = "" if "admin" in config.gateway.model_fields_set else ", its default"
    for index, listener in enumerate(config.listener):
        if _collide(listener.bind, admin.bind):
            message = (
                f"gateway.admin has {admin.bind}{default}: write another address here, or gateway.admin = "
                'another one or "off"'
            )
            yield ("listener", index, "bind"), message


def _collide(one: Bind, other: Bind) -> bool:
    """Whether a client of the one could mean the other; the kernel refuses the second then."""
    if one.path or other.path:
        return one.path == other.path
    if one.port != other.port:
        return False
    hosts = {one.host, other.host}
    return len(hosts) == 1 or "::" in hosts or ("0.0.0.0" in hosts and not any(":" in host for host in hosts))


def _routes(routes: Iterable["Route"], place: Place, keys: Mapping[str, str]) -> Iterator[tuple[Place, str]]:
    seen: set[str] = set()
    for index, route in enumerate(routes):
        if route.service not in keys:
            yield (*place, index, "service"), f"there is no service {route.service!r}{_known(keys)}"
        elif route.service in seen:
            yield (
                (*place, index, "service"),
                f"{route.service!r} stands twice in this route: add its weights up",
            )
        seen.add(route.service)
    hashed = {keys[name]: name for name in sorted(seen & keys.keys())}
    if len(hashed) > 1:
        which = ", ".join(f"{name!r} {key}" for key, name in sorted(hashed.items()))
        yield place, f"the services of a split must hash one key, but {which}: set balance.key alike"


def _methods(listener: "Listener", place: Place, keys: Mapping[str, str]) -> Iterator[tuple[Place, str]]:
    for pattern, rule in listener.methods.items():
        if rule == "deny":
            continue
        if rule.service is not None and rule.service not in keys:
            yield (*place, pattern, "service"), f"there is no service {rule.service!r}{_known(keys)}"
        timeout = rule.timeout or listener.request_timeout
        if isinstance(rule.hedge, float) and rule.hedge >= timeout:
            yield (*place, pattern, "hedge"), f"must be less than the method's time-out, {timeout:g} s"


def _memory(listener: "Listener", place: Place, memory: int) -> Iterator[tuple[Place, str]]:
    """A request and its answer must fit at once, or one of such length would be held for ever."""
    if listener.mode == "rpc" and listener.max_frame > memory // 2:
        most, all_ = written_size(memory // 2), written_size(memory)
        yield place, f"must be at most {most}, half of gateway.rpc_memory ({all_}): lower this or raise that"


def _users(service: "Service", place: Place, listeners: Iterable["Listener"]) -> Iterator[tuple[Place, str]]:
    """Whether the listeners that lead to a service can do what it asks for."""
    name, key = service.name, service.balance.key
    for listener in listeners:
        if name not in _reached(listener):
            continue
        if service.balance.by_request and not listener.by_request:
            message = (
                f"{key!r} is part of a request, but listener {listener.name!r} forwards whole connections to "
                f"{name!r}: choose another key, or give the listener a codec that knows requests"
            )
            yield (*place, "balance", "key"), message
        if service.send_proxy and listener.by_request:
            message = (
                f"take it out: the clients of listener {listener.name!r} share connections to {name!r}, and "
                "a header names one client"
            )
            yield (*place, "send_proxy"), message
        active = service.health.active
        if active != "off" and active.type == "rpc" and listener.codec.name == "thrift-framed":
            message = (
                "must be another: an rpc check speaks MessagePack-RPC, and listener "
                f'{listener.name!r} Thrift; type = "send_expect" sends what you write'
            )
            yield (*place, "health", "active", "type"), message


def _reached(listener: "Listener") -> set[str]:
    ruled = {rule.service for rule in listener.methods.values() if rule != "deny" and rule.service}
    named = {route.service for routes in listener.sni.values() for route in routes}
    return ruled | named | {route.service for route in listener.route}


# ---- who may use a listener ----


def _guards(listener: "Listener", place: Place) -> Iterator[tuple[Place, str]]:
    """What TLS, rules and limits of one listener ask for that it cannot give."""
    yield from _passed_through(listener, place)
    yield from _without_addresses(listener, place)
    yield from _subjects(listener, (*place, "access", "subjects"))
    if listener.sni and listener.tls is None:
        message = 'needs tls: names come in its first message; write a table, or tls = "passthrough"'
        yield (*place, "sni"), message
    access = listener.access
    ruled = access.allow or access.deny or access.subjects or listener.by_credential
    if "access" in listener.model_fields_set and not ruled:
        message = (
            "has no rule, so everybody may connect: write allow, deny, api_keys or jwt, or take the table out"
        )
        yield (*place, "access"), message
    if listener.limits.per_subject is not None and not listener.by_credential:
        message = f"needs {_CREDENTIALS}: without one no client has a subject"
        yield (*place, "limits", "per_subject"), message


_CREDENTIALS = "access.api_keys, access.jwt or tls.client_ca"


def _passed_through(listener: "Listener", place: Place) -> Iterator[tuple[Place, str]]:
    if listener.tls != "passthrough":
        return
    if listener.mode == "rpc":
        message = '"passthrough" hides the frames: let TLS end here, or write mode = "tcp"'
        yield (*place, "tls"), message
    if listener.accept_proxy:
        return
    for key in ("api_keys", "jwt"):
        if getattr(listener.access, key) is not None:
            message = (
                'take it out: with tls = "passthrough" a client begins with TLS and can show nothing before '
                "it; only a PROXY header could, from networks in accept_proxy"
            )
            yield (*place, "access", key), message


def _without_addresses(listener: "Listener", place: Place) -> Iterator[tuple[Place, str]]:
    if not listener.bind.path:
        return
    message = "take it out: the clients of a Unix socket have no address; its file's permissions decide"
    for key in ("allow", "deny"):
        if getattr(listener.access, key):
            yield (*place, "access", key), message
    if listener.limits.per_source is not None:
        yield (*place, "limits", "per_source"), message


def _subjects(listener: "Listener", place: Place) -> Iterator[tuple[Place, str]]:
    subjects = listener.access.subjects
    if subjects and not listener.by_credential:
        yield place, f"needs {_CREDENTIALS}: without one no client has a name"
    if listener.by_request:
        return
    for name, permissions in subjects.items():
        if permissions.methods is not None:
            message = "take it out: this listener forwards whole connections and sees no methods"
            yield (*place, name, "methods"), message


def _known(names: Iterable[str]) -> str:
    listed = ", ".join(sorted(names))
    return f"; there is {listed}" if listed else ""


def prime(number: int) -> int:
    """Return `number`. Raises ValueError, naming the next prime, where it is none."""
    if not _is_prime(number):
        following = next(n for n in range(number, 2 * number) if _is_prime(n))
        raise ValueError(f"{number} is not prime: write {following}")
    return number


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, isqrt(number) + 1))


def dns_name(name: str) -> str:
    """Return `name`. Raises ValueError where it is no name that the DNS could hold (RFC 1035)."""
    try:
        ip_address(name)
    except ValueError:
        if len(name) <= 254 and re.fullmatch(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?", name):
            return name
        raise ValueError(f"{name!r} is no name in the DNS: write one such as redis.internal") from None
    raise ValueError(f'{name!r} is an address: use discovery type = "static"')
