"""The kinds of value in a configuration: how each is written, read, shown and described to editors.

Each reader takes what TOML gives (or the finished value, for configurations made in Python) and raises
ValueError with a message for the operator. A message repeats what the operator wrote, except for URLs, which
may hold a password.
"""

import json
import math
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    PlainSerializer,
    PlainValidator,
    StringConstraints,
    WithJsonSchema,
)

from tcpgw.endpoints import Endpoint as _Endpoint
from tcpgw.endpoints import Member as _Member

_TYPE_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a fraction",
    str: "text",
    list: "a list",
    dict: "a table",
}


def type_name(value: object) -> str:
    """What an operator calls a TOML value's type."""
    return _TYPE_NAMES.get(type(value), "a date or time")


def text_of(value: Any, example: str) -> str:
    """Return `value`. Raises ValueError, with an example, where it is no text."""
    if not isinstance(value, str):
        raise ValueError(f"must be text such as {example!r}, not {type_name(value)}")  # noqa: TRY004  pydantic's rule
    return value


# ---- durations ----

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = "^" + "".join(rf"([0-9]+(\.[0-9]+)?{unit})?" for unit in ("h", "m", "s", "ms")) + "$"

_DURATION_SCHEMA: dict[str, Any] = {
    "type": ["string", "number"],
    "minLength": 2,
    "pattern": _DURATION,
    "exclusiveMinimum": 0,
}


def _duration(value: Any) -> float:
    wanted = "write 10s, 500ms, 1h30m or a number of seconds, more than 0"
    if isinstance(value, str) and value and re.fullmatch(_DURATION, value):
        seconds = sum(float(n) * _UNITS[unit] for n, unit in re.findall(r"([0-9.]+)(ms|[hms])", value))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        try:
            seconds = float(value)
        except OverflowError:  # TOML as Python reads it has integers of any size
            seconds = math.inf
    elif isinstance(value, str):
        raise ValueError(f"{value!r} is not a duration: {wanted}")
    else:
        raise ValueError(f"must be a duration, not {type_name(value)}: {wanted}")
    if not 0 < seconds < math.inf:
        raise ValueError(f"{value!r} is no usable duration: {wanted}")
    return seconds


Duration = Annotated[float, BeforeValidator(_duration), WithJsonSchema(_DURATION_SCHEMA)]
"""Seconds, more than 0 and finite."""


Wait = Annotated[
    float,
    BeforeValidator(lambda value: 0.0 if value in (0, "0s") and value is not False else _duration(value)),
    WithJsonSchema({"anyOf": [{"const": 0}, _DURATION_SCHEMA]}),
]
"""As Duration, or 0."""


def _duration_or(word: str, value: Any) -> Any:
    try:
        return value if value == word else _duration(value)
    except ValueError as error:
        raise ValueError(f'{error}; or "{word}"') from None


Delay = Annotated[
    Literal["p95"] | float,
    PlainValidator(partial(_duration_or, "p95")),
    WithJsonSchema({"anyOf": [{"const": "p95"}, _DURATION_SCHEMA]}),
]
"""Seconds, or `p95`: the 95th percentile of what was measured."""

Threshold = Annotated[
    Literal["off"] | float,
    PlainValidator(partial(_duration_or, "off")),
    WithJsonSchema({"anyOf": [{"const": "off"}, _DURATION_SCHEMA]}),
]
"""Seconds, or `off`."""


# ---- sizes ----

_SIZES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_SIZE = "^[0-9]{1,12}(B|KiB|MiB|GiB)$"


def _size(value: Any) -> int:
    wanted = "write 64KiB, 16MiB, 1GiB or a number of bytes"
    if isinstance(value, str) and (match := re.fullmatch(_SIZE, value)):
        return int(value.removesuffix(match[1])) * _SIZES[match[1]]
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError(f"{value!r} is not a size: {wanted}")


Size = Annotated[
    int, BeforeValidator(_size), WithJsonSchema({"type": ["string", "integer"], "pattern": _SIZE})
]
"""Bytes."""


def written_size(size: int) -> str:
    """Write a size as an operator would: in the largest unit that gives a whole number."""
    unit = next(unit for unit, bytes_ in reversed(_SIZES.items()) if size % bytes_ == 0)
    return f"{size // _SIZES[unit]}{unit}"


# ---- addresses ----


@dataclass(frozen=True, slots=True)
class Bind:
    """Where a listener accepts: `host` (an IP address in canonical form) and `port` (0: the kernel chooses),
    or, where `path` is not empty, a Unix socket.
    """

    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def is_any(self) -> bool:
        """Whether the kernel chooses: two such are two places."""
        return not self.path and not self.port

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `0.0.0.0:9000`, `[::]:9000` or `unix:/run/x.sock`. Raises ValueError for the operator."""
        if text.startswith("unix:"):
            return cls(path=_socket_path(text.removeprefix("unix:")))
        host, colon, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or (":" in host) != bracketed:
            raise ValueError(
                f"{text!r} is no address to bind: write 0.0.0.0:9000, [::]:9000 or unix:/run/x.sock"
            )
        if int(port) > 65535:
            raise ValueError(f"port {port} is not between 0 and 65535")
        try:
            return cls(str(ip_address(host.strip("[]"))), int(port))
        except ValueError:
            raise ValueError(
                f"{host!r} is not an IP address: write 0.0.0.0 or [::] for every address of this machine, "
                "127.0.0.1 for this machine alone"
            ) from None

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _socket_path(path: str) -> str:
    if not path.startswith("/") or "\0" in path:
        raise ValueError(f"{path!r} is no absolute path: write unix:/run/tcpgw/x.sock")
    if len(os.fsencode(path)) > 107:  # sun_path of unix(7): 108 bytes with the closing NUL
        raise ValueError(
            f"the path of a Unix socket may have 107 bytes, this one has {len(os.fsencode(path))}"
        )
    return path


def _bind(value: Any) -> Bind:
    return value if isinstance(value, Bind) else Bind.parse(text_of(value, "0.0.0.0:9000"))


BindAddress = Annotated[
    Bind,
    PlainValidator(_bind),
    PlainSerializer(str),
    WithJsonSchema(
        {"type": "string", "pattern": r"^(unix:/.+|[0-9.]+:[0-9]{1,5}|\[[0-9A-Fa-f:.%]+\]:[0-9]{1,5})$"}
    ),
]


def _endpoint(value: Any) -> _Endpoint:
    return value if isinstance(value, _Endpoint) else _Endpoint.parse(text_of(value, "10.0.0.2:53"))


_ENDPOINT_SCHEMA = {"type": "string", "pattern": r"^([0-9.]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$"}

EndpointAddress = Annotated[
    _Endpoint, PlainValidator(_endpoint), PlainSerializer(str), WithJsonSchema(_ENDPOINT_SCHEMA)
]

MAX_WEIGHT = 65535  # SRV's (RFC 2782): one scale for every source of weights
_MEMBER_FORM = '"10.0.0.1:8080" or { address = "10.0.0.1:8080", weight = 2 }'


def _member(value: Any) -> _Member:
    if isinstance(value, _Member):
        return value
    table = {"address": value} if isinstance(value, str) else value
    if not isinstance(table, dict) or "address" not in table or not table.keys() <= {"address", "weight"}:
        raise ValueError(f"must be {_MEMBER_FORM}")
    weight = table.get("weight", 1)
    if not isinstance(weight, int) or isinstance(weight, bool) or not 0 <= weight <= MAX_WEIGHT:
        raise ValueError(f"weight must be a whole number from 0 to {MAX_WEIGHT}")
    address = text_of(table["address"], "10.0.0.1:8080")
    if re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?:[0-9]+", address) and re.search(
        r"[A-Za-z]", address
    ):
        raise ValueError(
            f'{address!r} has a host name: use discovery type = "dns", which follows its changes'
        )
    return _Member(_Endpoint.parse(address), weight)


def _written_member(member: _Member) -> dict[str, Any]:
    return {"address": str(member.endpoint), "weight": member.weight}


StaticMember = Annotated[
    _Member,
    PlainValidator(_member),
    PlainSerializer(_written_member),
    WithJsonSchema(
        {
            "anyOf": [
                _ENDPOINT_SCHEMA,
                {
                    "type": "object",
                    "properties": {
                        "address": _ENDPOINT_SCHEMA,
                        "weight": {"type": "integer", "minimum": 0, "maximum": MAX_WEIGHT, "default": 1},
                    },
                    "required": ["address"],
                    "additionalProperties": False,
                },
            ]
        }
    ),
]


def _network(value: Any) -> IPv4Network | IPv6Network:
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    text = text_of(value, "10.0.0.0/8")
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is not a network: write 10.0.0.0/8, fd00::/8 or one address") from None
    address = text.partition("/")[0]
    if ip_address(address) != network.network_address:
        # Taking it as the network would let in more than some operators meant, as the address fewer.
        raise ValueError(
            f"{text!r} is an address inside a network: write {network}, or {address} for it alone"
        )
    return network


Network = Annotated[
    IPv4Network | IPv6Network,
    PlainValidator(_network),
    PlainSerializer(str),
    WithJsonSchema({"type": "string", "pattern": r"^[0-9A-Fa-f.:]+(/[0-9.]+)?$"}),
]


# ---- fields of a request ----

_STEP = r"""\.([A-Za-z_][A-Za-z0-9_]*)|\[(0|[1-9][0-9]{0,8})\]|\[("([^"\\]|\\.)+")\]"""
_PATH = rf"^params({_STEP})+$"


def parse_path(text: str) -> tuple[int | str, ...]:
    """Read `params[0].session` as `(0, "session")` and `params[1]["odd key"]` as `(1, "odd key")`.

    Raises ValueError for the operator.
    """
    if re.fullmatch(_PATH, text):
        with suppress(ValueError):
            steps = re.findall(_STEP, text)
            path = tuple(name or json.loads(index or quoted) for name, index, quoted, _ in steps)
            "".join(map(str, path)).encode()  # JSON can say half of a surrogate pair, which no request holds
            return path
    raise ValueError(
        f'{text!r} is no field of a request: write params[0], params[0].session or params[0]["odd key"]'
    )


def _field_path(value: Any) -> tuple[int | str, ...]:
    return value if isinstance(value, tuple) else parse_path(text_of(value, "params[0].session"))


def _written_path(path: tuple[int | str, ...]) -> str:
    return "params" + "".join(f"[{json.dumps(step)}]" for step in path)


PATH_SCHEMA = {"type": "string", "pattern": _PATH}

FieldPath = Annotated[
    tuple[int | str, ...],
    PlainValidator(_field_path),
    PlainSerializer(_written_path),
    WithJsonSchema(PATH_SCHEMA),
]
"""The steps from a request's parameters to one field of them."""


# ---- texts ----

# A name as in the DNS (RFC 1035) or an address: what else urlsplit lets through, the HTTP client breaks on.
_LABEL = "[0-9A-Za-z_-]{1,63}"
_NETLOC = rf"({_LABEL}(\.{_LABEL})*\.?|\[[0-9A-Fa-f:.]+\])(:[0-9]*)?"


def url_of(value: Any) -> str:
    """Return a URL as `Url` has it. Raises ValueError, without any of it, for the operator."""
    text = text_of(value, "https://modelarts.cn-north-4.myhuaweicloud.com")
    try:
        parts = urlsplit(text)
        port_given_right = parts.port != 0
    except ValueError:
        raise ValueError("is not a URL: write https://host, https://host:port or https://host/path") from None
    if parts.username is not None or parts.password is not None:
        raise ValueError("holds a user name or password: take them out of the URL")
    if parts.scheme not in {"http", "https"} or not parts.hostname or not port_given_right:
        raise ValueError("is not a URL: write https://host, https://host:port or https://host/path")
    if parts.query or parts.fragment or not re.fullmatch(r"[!-\[\]-~]+", text):
        raise ValueError("may hold a host, a port and a path alone: no query, fragment, space or backslash")
    if not re.fullmatch(_NETLOC, parts.netloc):
        raise ValueError("has no possible host name: between dots stand 1 to 63 letters, digits, - or _")
    return text.rstrip("/?#")


URL_SCHEMA = {"type": "string", "format": "uri", "pattern": "^https?://[^@]+$"}

Url = Annotated[str, BeforeValidator(url_of), WithJsonSchema(URL_SCHEMA)]
"""`http://` or `https://`, without user, query, fragment and closing slash."""

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"


def is_name(value: object) -> bool:
    """Whether `value` can be the name of a service, a listener or a cloud."""
    return isinstance(value, str) and re.fullmatch(_NAME, value) is not None


def _name(text: str) -> str:
    if not is_name(text):
        raise ValueError(
            f"{text!r} cannot be a name: letters, digits and . _ - alone, a letter or digit first, at most 63"
        )
    return text


Name = Annotated[str, AfterValidator(_name), WithJsonSchema({"type": "string", "pattern": _NAME})]
"""Stands in logs, metric labels, file names and on command lines, hence the narrow alphabet."""

Text = Annotated[str, StringConstraints(min_length=1)]


def _pattern(text: str) -> str:
    if not text or "*" in text[:-1]:
        raise ValueError(f"{text!r} cannot be a pattern: write a name, or its beginning and then one *")
    return text


Pattern = Annotated[str, AfterValidator(_pattern), WithJsonSchema({"type": "string", "pattern": r"^[^*]*.$"})]
"""A name of methods, services or subjects, or a prefix of such ended by `*`."""
