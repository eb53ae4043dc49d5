"""Which rule, which service and which position a request has: what the configuration says of a listener."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tcpgw.relay.tracing import key_told
from tcpgw.wire.codec import Codec
from tcpgw.wire.field import Field

if TYPE_CHECKING:
    from tcpgw.relay.rpc.service import RpcService
    from tcpgw.relay.session import Client

# Names beside the rules' own that are looked up once and remembered; clients choose them, so it is bounded.
_REMEMBERED = 1024


class Rule:
    """What holds for the requests of a method of one listener's. What they come to is counted by service.

    `hedge`: None, seconds, or "p95". `priority`: 0 before 1 before 2. `limit`: requests in flight, or None.
    """

    __slots__ = (
        "denied", "hedge", "idempotent", "inflight", "limit", "listener", "name", "priority", "service",
        "timeout",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        *,
        listener: str = "",
        timeout: float,
        service: RpcService | None = None,
        idempotent: bool = False,
        hedge: float | str | None = None,
        priority: int = 1,
        limit: int | None = None,
        denied: bool = False,
    ) -> None:
        self.name = name
        self.listener = listener
        self.inflight = 0  # of requests that a Call remembers
        self.change(
            timeout=timeout,
            service=service,
            idempotent=idempotent,
            hedge=hedge,
            priority=priority,
            limit=limit,
            denied=denied,
        )

    def change(
        self,
        *,
        timeout: float,
        service: RpcService | None = None,
        idempotent: bool = False,
        hedge: float | str | None = None,
        priority: int = 1,
        limit: int | None = None,
        denied: bool = False,
    ) -> None:
        """Say something else of the requests that come from now on. Make the Routing anew after it.

        Those under way keep their deadlines.
        """
        self.service = service  # None: the listener's route
        self.timeout = timeout
        self.idempotent = idempotent
        self.hedge = hedge
        self.priority = priority
        self.limit = limit
        self.denied = denied

    @property
    def ordinary(self) -> bool:
        """Whether it only says how long its requests may take and which of those that wait comes first.

        They can pass in runs then. Where they have to wait, a Call remembers each, and its rule.
        """
        special = self.denied or self.idempotent or self.service is not None or self.limit is not None
        return not special


class Rules:
    """A method's rule: the one of its exact name, else of the longest prefix that fits, else `default`."""

    def __init__(self, default: Rule, patterns: Mapping[str, Rule]) -> None:
        self.default = default
        self.patterns = patterns
        self.all = (default, *patterns.values())
        self._known = {name.encode(): rule for name, rule in patterns.items() if not name.endswith("*")}
        self._prefixes = sorted(
            ((name[:-1].encode(), rule) for name, rule in patterns.items() if name.endswith("*")),
            key=lambda item: -len(item[0]),
        )
        self._most = len(self._known) + _REMEMBERED

    def of(self, method: bytes) -> Rule:
        return self._known.get(method) or self._find(method)

    def _find(self, method: bytes) -> Rule:
        found = next((rule for prefix, rule in self._prefixes if method.startswith(prefix)), self.default)
        if len(self._known) < self._most:
            self._known[method] = found
        return found


class PermittedRules(Rules):
    """The rules of a listener for clients whose credential permits some of it: all else is denied.

    `permits` says whether a method may be called by its name, `services` are those that it may reach, and
    `routed` tells whether the listener's route leads to any of these. Rules count where their listener does.
    """

    def __init__(
        self,
        rules: Rules,
        permits: Callable[[bytes], bool] | None,
        services: Collection[RpcService],
        *,
        routed: bool,
    ) -> None:
        super().__init__(rules.default, rules.patterns)
        self._rules = rules
        self._permits = permits
        default = rules.default
        self._barred = Rule("", listener=default.listener, timeout=default.timeout, denied=True)
        self._off = {
            rule for rule in rules.all if (rule.service not in services if rule.service else not routed)
        }
        if permits is not None or self._off:
            self.all = (*rules.all, self._barred)

    def of(self, method: bytes) -> Rule:
        rule = self._rules.of(method)
        barred = rule in self._off or (self._permits is not None and not self._permits(method))
        return self._barred if barred else rule


@dataclass(frozen=True)
class Key:
    """What is hashed: something of the client's that stays, or something of each request.

    `name` is what the configuration calls it.
    """

    of_client: Callable[[Client], int]
    of_bytes: Callable[[bytes], int]
    by_method: bool = False
    field: Field | None = None
    name: str = ""

    @property
    def stays(self) -> bool:
        """Whether all requests of a client have one key."""
        return not self.by_method and self.field is None

    def position(self, codec: Codec, method: bytes, head: bytes) -> int | None:
        """Of a key that does not stay: the request's own position, or None where it has no such field."""
        if self.field is None:
            return self.of_bytes(method)
        span = self.field.find(codec, method, head)
        key = codec.key(head, span) if span else None
        return self.of_bytes(key) if key is not None else None


class Routing:
    """A listener's route, keys and rules. `choose` is the split: from its position to a service.

    `keys` has each service's key, with the seed for endpoints; `split_key` the same for the split.
    `deadline` is where a request says how many milliseconds it has left.
    """

    def __init__(
        self,
        rules: Rules,
        choose: Callable[[int], RpcService],
        split_key: Key,
        keys: Mapping[RpcService, Key],
        *,
        deadline: Field | None = None,
    ) -> None:
        self.rules = rules
        self.deadline = deadline
        self._choose = choose
        self._split_key = split_key
        self._keys = keys
        stays = split_key.stays and all(key.stays for key in keys.values())
        # Where only the names of requests need looking at, all of a client's go the same way, in runs; where
        # not even these, in longer ones.
        self.by_name = stays and deadline is None
        self.looks = not self.by_name  # whether the parameters are
        self.plain = rules.default if self.by_name and len(rules.all) == 1 else None
        self._by_name: dict[bytes, Rule | None] = {}

    @property
    def services(self) -> Collection[RpcService]:
        """All that requests may go to."""
        return self._keys.keys()

    def home(self, client: Client) -> tuple[RpcService, int]:
        """The service and the position of a client whose requests all have one key."""
        service = self._choose(self._split_key.of_client(client))
        return service, self._keys[service].of_client(client)

    def placement(self, client: Client, home: tuple[RpcService, int]) -> dict[str, object]:
        """What a trace tells of where a client's requests go, whose `home` it is.

        `by` request: each has a key of its own.
        """
        service, position = home
        if not self._split_key.stays:
            return {"by": "request"}
        key = self._keys[service]
        if not key.stays:
            return {"service": service.name, "by": "request", "key": key.name}
        told = {"service": service.name, **key_told(key.name, position, client.address)}
        return {**told, "endpoint": service.pool.home(position)}

    def request_told(self, service: RpcService, position: int, client: Client) -> dict[str, object]:
        """What a trace tells of a request that `find` gave this service and position."""
        return {"service": service.name, **key_told(self._keys[service].name, position, client.address)}

    def ordinary(self, codec: Codec, name: bytes) -> Rule | None:
        """The rule of requests with this name, as encoded, where they can pass in runs."""
        known = self._by_name
        if name in known:
            return known[name]
        if not name:
            return None
        rule = self.rules.of(codec.method(name))
        found = rule if rule.ordinary else None
        if len(known) < _REMEMBERED:
            known[name] = found
        return found

    def find(
        self,
        codec: Codec,
        method: bytes,
        head: bytes,
        rule: Rule,
        home: tuple[RpcService, int],
        client: Client,
    ) -> tuple[RpcService, int]:
        """The service and the position of one request. Without a key of its own it has its client's.

        `head` is what follows its id: all, or at least so much that whole requests and those in pieces are
        told by the same bytes.
        """
        service, position = home
        if rule.service is not None:
            service = rule.service
        elif not self._split_key.stays:
            split = self._split_key.position(codec, method, head)
            if split is not None:
                service = self._choose(split)
        key = self._keys[service]
        if not key.stays:
            own = key.position(codec, method, head)
            return service, key.of_client(client) if own is None else own
        return service, position if service is home[0] else key.of_client(client)
