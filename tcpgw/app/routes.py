"""Where a listener's clients may go: by the host that they asked TLS for, and by their credentials."""

from collections.abc import Mapping
from typing import NamedTuple

from tcpgw.access.grant import Names, allowed
from tcpgw.config import schema
from tcpgw.relay.denials import DeniedError
from tcpgw.relay.reasons import Reason
from tcpgw.relay.session import Client

Weights = Mapping[str, int]
"""Services with a share, by name."""


class Way(NamedTuple):
    """What clients have in common that go the same way. `host` is a pattern of its `sni`, or ""."""

    host: str
    services: Names | None
    methods: Names | None


class Routes:
    """Of one listener."""

    def __init__(self, listener: schema.Listener) -> None:
        self._by_host = {"": _weights(listener.route)} | {
            host: _weights(route) for host, route in listener.sni.items()
        }
        self._by_request = listener.by_request
        # Of requests that a rule sends elsewhere, for who may use nothing else.
        self._ruled = {rule.service for rule in listener.methods.values() if rule != "deny" and rule.service}

        self.differ = len(self._by_host) > 1 or listener.by_credential
        """Whether not all clients go the same way."""

    @property
    def reached(self) -> set[str]:
        """The services that clients can come to, those of rules included."""
        return self.services | self._ruled

    @property
    def services(self) -> set[str]:
        """All that connections can come to."""
        return {name for weights in self._by_host.values() for name in weights}

    def way(self, client: Client) -> Way | None:
        """Which way a client goes; None: that of most, who asked for no host and may use all."""
        grant = client.grant
        services, methods = (grant.services, grant.methods) if grant is not None else (None, None)
        host = self._pattern(client.server_name) if client.server_name and len(self._by_host) > 1 else ""
        way = Way(host, services, methods)
        return way if any(part for part in (host, services is not None, methods is not None)) else None

    def weights(self, way: Way | None = None) -> Weights:
        """The services that a way leads to, with their shares; empty where its credential allows none."""
        if way is None:
            return self._by_host[""]
        weights = self._by_host.get(way.host, self._by_host[""])
        return {name: weight for name, weight in weights.items() if allowed(way.services, name)}

    def judge(self, client: Client) -> None:
        """As `Plane.judge`."""
        way = self.way(client)
        if way is not None and way.methods is not None and not self._by_request:
            text = "its credential is for some methods, which cannot be told apart here"
            raise DeniedError(Reason.DENIED_SERVICE, text)
        if way is None or self.weights(way) or any(allowed(way.services, name) for name in self._ruled):
            return
        raise DeniedError(Reason.DENIED_SERVICE, "its credential allows none of the services here")

    def _pattern(self, host: str) -> str:
        if host in self._by_host:
            return host
        while "." in host:
            host = host.partition(".")[2]
            if f"*.{host}" in self._by_host:
                return f"*.{host}"
        return ""


def _weights(route: tuple[schema.Route, ...]) -> Weights:
    return {one.service: one.weight for one in route if one.weight}
