"""Who is told of alerts: where they are sent, and with which credentials."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr, ValidationInfo, WithJsonSchema, field_validator

from tcpgw.config.secret import Secret
from tcpgw.config.table import Table
from tcpgw.config.values import Duration, Url, url_of

# What alerts have of themselves; `instance` an operator may say.
_TAKEN = frozenset({"alertname", "severity", "service", "listener", "cloud", "kind"})
_LABEL = "^[a-zA-Z_][a-zA-Z0-9_]*$"


def _label_name(text: str) -> str:
    if not re.fullmatch(_LABEL, text) or text.startswith("__"):
        raise ValueError(f"{text!r} cannot be a label: letters, digits and _ alone, a letter or _ first")
    if text in _TAKEN:
        raise ValueError(f"{text!r} is a label that alerts have of themselves: choose another")
    return text


LabelName = Annotated[str, AfterValidator(_label_name), WithJsonSchema({"type": "string", "pattern": _LABEL})]
"""Of a label, as Prometheus takes it."""

_HEADER = "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"
# The sender's own, or the connection's (RFC 9110, section 7.6.1).
_OURS = frozenset(
    {"connection", "content-length", "content-type", "host", "te", "transfer-encoding", "upgrade"}
)


def _header_name(text: str) -> str:
    if not re.fullmatch(_HEADER, text):
        raise ValueError(f"{text!r} cannot be a header's name (RFC 9110, section 5.1)")
    if text.lower() in _OURS:
        raise ValueError(f"{text!r} is a header that the gateway writes itself: take it out")
    return text


HeaderName = Annotated[
    str, AfterValidator(_header_name), WithJsonSchema({"type": "string", "pattern": _HEADER})
]


def _holds_url(secret: SecretStr) -> SecretStr:
    address, _, query = secret.get_secret_value().partition("?")
    url_of(address)
    if not re.fullmatch(r"[!$-;=?-~]*", query):
        raise ValueError("has a query with signs that no URL may have: write them as %20 and so on")
    return secret


SecretUrl = Annotated[Secret, AfterValidator(_holds_url)]
"""A URL that is a secret, as those of many chat services are. May have a query."""


class Receiver(Table):
    """What the kinds of receiver have in common."""

    bearer: Secret | None = Field(
        default=None,
        description="Sent as `Authorization: Bearer …`. A literal, env:NAME or file:PATH.",
    )
    headers: dict[HeaderName, Secret] = Field(
        default={}, description='Further headers: { X-Key = "env:NAME" }. Their values are secrets.'
    )
    timeout: Duration = Field(
        default=5.0, description="Seconds for one try. There are several, further and further apart."
    )

    @field_validator("headers")
    @classmethod
    def _has_one_authorization(
        cls, headers: dict[str, SecretStr], info: ValidationInfo
    ) -> dict[str, SecretStr]:
        names = [name.lower() for name in headers]
        if info.data.get("bearer") is not None and "authorization" in names:
            raise ValueError("holds Authorization, which bearer is too: take out one of the two")
        if len(set(names)) < len(names):
            raise ValueError("holds a name twice: upper and lower case are the same here")
        return headers


class Webhook(Receiver):
    """A program that takes notifications: JSON of Alertmanager's form, by POST."""

    url: SecretUrl = Field(
        description="Where to. A secret, as it may be one for who has it: a literal, env:NAME or file:PATH."
    )


class Alertmanager(Receiver):
    """Prometheus' Alertmanager, which groups, silences and routes by itself."""

    urls: tuple[Url, ...] = Field(
        min_length=1,
        description="Its addresses, as http://10.0.0.5:9093: each of a cluster, since each is told.",
    )
