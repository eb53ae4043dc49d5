"""Checks that need more than one value: pure functions over a configuration that is right in each part."""

import re
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address
from math import isqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tcpgw.config.schema import Config, Listener, ModelArtsCloud

Place = tuple[str | int, ...]
"""Keys and indices from the configuration's root: `("listener", 0, "bind")`."""


def between_tables(config: "Config") -> Iterator[tuple[Place, str]]:
    """Yield each contradiction between tables with its place. A `Config` calls this on itself when made."""
    yield from _repeated("service", (service.name for service in config.service))
    yield from _repeated("listener", (listener.name for listener in config.listener))
    yield from _shared_binds(config.listener)
    yield from _shared_users(config.cloud)
    for index, service in enumerate(config.service):
        cloud = getattr(service.discovery, "cloud", None)
        if cloud is not None and cloud not in config.cloud:
            yield (
                ("service", index, "discovery", "cloud"),
                f"there is no [cloud.{cloud}] table{_known(config.cloud)}",
            )
    keys = {service.name: service.balance.key for service in config.service}
    for index, listener in enumerate(config.listener):
        yield from _route(listener, ("listener", index, "route"), keys)


def _repeated(table: str, names: Iterable[str]) -> Iterator[tuple[Place, str]]:
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        if first.setdefault(name, index) != index:
            yield (table, index, "name"), f"{table}[{first[name]}] has the name {name!r} already"


def _shared_binds(listeners: Iterable["Listener"]) -> Iterator[tuple[Place, str]]:
    first: dict[str, int] = {}
    for index, listener in enumerate(listeners):
        chosen_by_kernel = not listener.bind.path and listener.bind.port == 0
        if not chosen_by_kernel and first.setdefault(str(listener.bind), index) != index:
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


def _route(listener: "Listener", place: Place, keys: Mapping[str, str]) -> Iterator[tuple[Place, str]]:
    seen: set[str] = set()
    for index, route in enumerate(listener.route):
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
