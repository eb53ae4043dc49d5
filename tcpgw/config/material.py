"""What a configuration names and does not hold: the files and URLs that are read after it. Pure.

The supervisor reads them, and again when they change, and hands what workers need to them; they read nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tcpgw.config.access import Access
from tcpgw.config.health import TlsCheck
from tcpgw.config.schema import Config, Listener, Service
from tcpgw.config.tls import ClientTls, ServerTls

Kind = Literal["api_keys", "jwks", "chain", "key", "client_ca", "client_crl", "ca"]
"""What is in it: lines of API keys, public keys of tokens, or PEM."""


@dataclass(frozen=True)
class Material:
    """Something to be read.

    `key` is where the configuration names it, such as `listener[0].access.api_keys`: unique, for messages.
    `source` is an absolute or relative path, or a URL as text, which only a jwks may be.
    """

    key: str
    source: Path | str
    kind: Kind


def material(config: Config) -> tuple[Material, ...]:
    """List everything that is to be read, in the file's order. One file may be named more than once."""
    return tuple(_all(config))


def _all(config: Config) -> Iterator[Material]:
    for index, service in enumerate(config.service):
        yield from _service(f"service[{index}]", service)
    for index, listener in enumerate(config.listener):
        yield from _listener(f"listener[{index}]", listener)


def _service(place: str, service: Service) -> Iterator[Material]:
    if service.tls is not None:
        yield from _client_tls(f"{place}.tls", service.tls)
    if isinstance(service.health.active, TlsCheck):
        yield from _one(f"{place}.health.active.ca", service.health.active.ca, "ca")


def _client_tls(place: str, tls: ClientTls) -> Iterator[Material]:
    yield from _one(f"{place}.ca", tls.ca, "ca")
    yield from _one(f"{place}.certificate", tls.certificate, "chain")
    yield from _one(f"{place}.key", tls.key, "key")


def _listener(place: str, listener: Listener) -> Iterator[Material]:
    if isinstance(listener.tls, ServerTls):
        yield from _server_tls(f"{place}.tls", listener.tls)
    yield from _access(f"{place}.access", listener.access)


def _server_tls(place: str, tls: ServerTls) -> Iterator[Material]:
    for index, certificate in enumerate(tls.certificates):
        yield from _one(f"{place}.certificates[{index}].chain", certificate.chain, "chain")
        yield from _one(f"{place}.certificates[{index}].key", certificate.key, "key")
    yield from _one(f"{place}.client_ca", tls.client_ca, "client_ca")
    yield from _one(f"{place}.client_crl", tls.client_crl, "client_crl")


def _access(place: str, access: Access) -> Iterator[Material]:
    yield from _one(f"{place}.api_keys", access.api_keys, "api_keys")
    if access.jwt is not None:
        yield from _one(f"{place}.jwt.jwks", access.jwt.jwks, "jwks")


def _one(key: str, source: Path | str | None, kind: Kind) -> Iterator[Material]:
    if source is not None:
        yield Material(key, source, kind)
