"""TLS to instances: the contexts that connections and checks use, out of what was read for them."""

import ssl
from collections.abc import Callable, Mapping
from functools import partial

from tcpgw.access.tls import client_context
from tcpgw.app.material import Contents
from tcpgw.config import schema
from tcpgw.errors import ConfigError, Fault, TlsError
from tcpgw.health.exchange import Secure
from tcpgw.relay.dial import InstanceTls


class Contexts:
    """Makes contexts, and keeps those for which nothing changed: who has one need not connect anew."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[object, InstanceTls]] = {}

    def of(self, config: schema.Config, contents: Contents) -> dict[str, InstanceTls]:
        """By service, for those with TLS. Raises ConfigError, with all faults."""
        made: dict[str, tuple[object, InstanceTls]] = {}
        faults: list[Fault] = []
        for index, service in enumerate(config.service):
            tls, place = service.tls, f"service[{index}].tls"
            if tls is None:
                continue
            own = _files(place, contents)
            before = self._made.get(service.name)
            if before is not None and before[0] == (tls, own):
                made[service.name] = before
                continue
            try:
                instance = InstanceTls(partial(_context, tls, own), tls.server_name or "", strict=tls.strict)
            except TlsError as exc:
                faults.append(Fault(f"{place}.{exc.where}" if exc.where else place, exc.why))
                continue
            made[service.name] = (tls, own), instance
        if faults:
            raise ConfigError(faults)
        self._made = made
        return {name: tls for name, (_, tls) in made.items()}


def check_secure(service: schema.Service, place: str, contents: Contents) -> Secure | None:
    """TLS of a service's active checks: that of its own table, or the one that its instances speak.

    Where a check has a port of its own, what listens there need not speak TLS. Raises ConfigError.
    """
    active, tls = service.health.active, service.tls
    if active == "off" or active.type == "tcp":
        return None
    if isinstance(active, schema.TlsCheck):
        key = f"{place}.health.active.ca"
        return _made(
            f"{place}.health.active",
            lambda: Secure(
                client_context(ca=contents.get(key), verify=active.verify), active.server_name or ""
            ),
        )
    if tls is None or active.port:
        return None
    own = _files(f"{place}.tls", contents)
    return _made(f"{place}.tls", lambda: Secure(_context(tls, own), tls.server_name or ""))


def _files(place: str, contents: Contents) -> Mapping[str, bytes | None]:
    return {key: contents.get(f"{place}.{key}") for key in ("ca", "certificate", "key")}


def _context(tls: schema.ClientTls, files: Mapping[str, bytes | None], alpn: str = "") -> ssl.SSLContext:
    return client_context(
        ca=files["ca"],
        verify=tls.verify,
        certificate=files["certificate"],
        key=files["key"],
        alpn=(alpn,) if alpn else (),
    )


def _made(place: str, make: Callable[[], Secure]) -> Secure:
    try:
        return make()
    except TlsError as exc:
        raise ConfigError([Fault(f"{place}.{exc.where}" if exc.where else place, exc.why)]) from exc
