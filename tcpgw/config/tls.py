"""TLS towards clients and towards instances, and the host names that clients ask for."""

import re
from ipaddress import ip_address
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StrictBool, ValidationInfo, WithJsonSchema, field_validator

from tcpgw.config.files import NamedFile
from tcpgw.config.table import Table
from tcpgw.config.values import Duration


def _hosts(letters: str) -> str:
    label = f"[{letters}0-9_]([{letters}0-9_-]{{0,61}}[{letters}0-9_])?"
    return rf"{label}(\.{label})*"


_HOST = _hosts("A-Za-z")


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _host_pattern(text: str) -> str:
    if _is_address(text):
        raise ValueError(f"{text!r} is an address: in TLS clients ask for names alone (RFC 6066, section 3)")
    if len(text) > 255 or not re.fullmatch(rf"(\*\.)?{_HOST}", text):
        raise ValueError(
            f"{text!r} is no host name: write a.example.com, or *.example.com for those below it"
        )
    if text != text.lower():
        raise ValueError(f"must be in lower case, as clients' names are compared: write {text.lower()!r}")
    return text


HostPattern = Annotated[
    str,
    AfterValidator(_host_pattern),
    WithJsonSchema({"type": "string", "pattern": rf"^(\*\.)?{_hosts('a-z')}$"}),
]
"""A host name in lower case, or `*.` and the end of some: `*.example.com`."""


def _server_name(text: str) -> str:
    if _is_address(text) or (len(text) <= 253 and re.fullmatch(_HOST, text)):
        return text
    raise ValueError(f"{text!r} is neither a host name nor an address: write what the certificate names")


ServerName = Annotated[
    str, AfterValidator(_server_name), WithJsonSchema({"type": "string", "pattern": "^[A-Za-z0-9_.:-]+$"})
]


def _alpn(text: str) -> str:
    if not re.fullmatch("[!-~]{1,255}", text):
        raise ValueError(f"{text!r} is no protocol's name: write one such as h2 or http/1.1 (RFC 7301)")
    return text


Alpn = Annotated[str, AfterValidator(_alpn), WithJsonSchema({"type": "string", "pattern": "^[!-~]{1,255}$"})]


class Certificate(Table):
    """A certificate of the gateway's own."""

    chain: NamedFile = Field(
        description="A PEM file: the certificate, then those of its issuers. Relative to the configuration's "
        "folder."
    )
    key: NamedFile | None = Field(
        default=None, description="A PEM file with its private key. Without it the key stands in chain."
    )


class ServerTls(Table):
    """TLS that ends at a listener."""

    certificates: tuple[Certificate, ...] = Field(
        min_length=1,
        description="The first is the default; another is taken where its names fit what a client asks for.",
    )
    client_ca: NamedFile | None = Field(
        default=None,
        description="Mutual TLS: a PEM file of those whose certificates clients may show. What the names in "
        "them may use stands in access.subjects; without that everything.",
    )
    client_crl: NamedFile | None = Field(
        default=None, description="A PEM file of revoked certificates of clients (RFC 5280)."
    )
    client_certificate: Literal["required", "optional"] = Field(
        default="required",
        description="Whether clients must show one. optional: another credential may stand for it.",
    )
    alpn: tuple[Alpn, ...] = Field(
        default=(),
        description='Protocols that clients may ask for, the best first, such as ["h2", "http/1.1"] '
        "(RFC 7301). Without it none is agreed on.",
    )
    min_version: Literal["1.2", "1.3"] = Field(
        default="1.2", description="Older versions are broken (RFC 8996), this one is not."
    )
    handshake_timeout: Duration = Field(
        default=5.0, description="Seconds for the handshake: two round trips and a signature."
    )

    @field_validator("client_crl", "client_certificate")
    @classmethod
    def _needs_authorities(cls, value: object, info: ValidationInfo) -> object:
        if value is not None and "client_ca" in info.data and info.data["client_ca"] is None:
            raise ValueError("needs client_ca: without it clients show no certificates")
        return value


class ClientTls(Table):
    """TLS to a service's instances. `tls = true` is this with its defaults."""

    ca: NamedFile | None = Field(
        default=None,
        description="A PEM file of those who may sign the instances' certificates. Without it the system's.",
    )
    server_name: ServerName | None = Field(
        default=None,
        description="The name that is asked for, and that the certificates must have. Without it they must "
        "have the instance's address, and no name is asked for.",
    )
    verify: StrictBool = Field(
        default=True,
        description="false: any certificate is taken, so whoever can answer for an instance can read all.",
    )
    certificate: NamedFile | None = Field(
        default=None, description="A PEM file: the gateway's own certificate, then those of its issuers."
    )
    key: NamedFile | None = Field(
        default=None, description="A PEM file with its private key. Without it the key stands in certificate."
    )
    strict: StrictBool = Field(
        default=False,
        description="true: a FIN without close_notify is a reset, so that a cut-off answer never looks like "
        "a finished one. Many servers end that way (Python's http.server); HAProxy and nginx take it for an "
        "end.",
    )

    @field_validator("verify")
    @classmethod
    def _makes_use_of_authorities(cls, verify: bool, info: ValidationInfo) -> bool:
        return verified(verify, info)

    @field_validator("key")
    @classmethod
    def _has_a_certificate(cls, key: object, info: ValidationInfo) -> object:
        if key is not None and "certificate" in info.data and info.data["certificate"] is None:
            raise ValueError("needs certificate: a key alone proves nothing")
        return key


def verified(verify: bool, info: ValidationInfo) -> bool:
    """Return `verify`. Raises ValueError where it makes the key `ca` beside it useless."""
    if not verify and info.data.get("ca") is not None:
        raise ValueError("false makes ca useless, and any certificate good: take out one of the two")
    return verify
