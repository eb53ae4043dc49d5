"""How it is found out which of a service's endpoints work."""

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    StrictBool,
    StrictFloat,
    StrictInt,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from tcpgw.config.files import NamedFile
from tcpgw.config.table import ByForm, IsTable, Off, Table
from tcpgw.config.tls import ServerName, verified
from tcpgw.config.values import Duration, Text, text_of, type_name

# ---- values ----


@dataclass(frozen=True, slots=True)
class StatusRange:
    """HTTP's status codes from `first` to `last`, both included."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `200-399` or `404`. Raises ValueError for the operator."""
        match = re.fullmatch("([1-5][0-9]{2})(-([1-5][0-9]{2}))?", text)
        if not match or int(match[3] or match[1]) < int(match[1]):
            raise ValueError(f'{text!r} is no status: write 404, or "200-399" for all from 200 to 399')
        return cls(int(match[1]), int(match[3] or match[1]))

    def __contains__(self, status: int) -> bool:
        """Whether it is one of these."""
        return self.first <= status <= self.last

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


def _status(value: Any) -> StatusRange:
    if isinstance(value, StatusRange):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1000:
        return StatusRange.parse(str(value))
    return StatusRange.parse(text_of(value, "200-399"))


Status = Annotated[
    StatusRange,
    PlainValidator(_status),
    PlainSerializer(str),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 100, "maximum": 599},
                {"type": "string", "pattern": "^[1-5][0-9]{2}(-[1-5][0-9]{2})?$"},
            ]
        }
    ),
]

_MOST_BYTES = 4096  # of one packet's order: a check is a question, not a transfer


def _payload(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    text = text_of(value, "PING")
    if text.startswith("hex:"):
        try:
            data = bytes.fromhex(text.removeprefix("hex:"))
        except ValueError:
            raise ValueError("what follows hex: must be pairs of hexadecimal digits: hex:0d0a") from None
    else:
        data = text.encode()
    if len(data) > _MOST_BYTES:
        raise ValueError(f"has {len(data)} bytes: at most {_MOST_BYTES} may stand here")
    return data


Payload = Annotated[
    bytes,
    PlainValidator(_payload),
    PlainSerializer(lambda data: f"hex:{data.hex()}", return_type=str),
    WithJsonSchema({"type": "string"}),
]
"""Bytes: a text's in UTF-8, or those after `hex:`."""

_DEEPEST = 16  # lists and tables in one another: what real requests have, without a stack that overflows


def _part(value: Any, deep: int = _DEEPEST) -> Any:
    """Take what requests and answers can hold, and can be compared by."""
    if not deep:
        raise ValueError(f"is nested too deeply: at most {_DEEPEST} lists and tables may be in one another")
    if isinstance(value, list | tuple):
        return [_part(one, deep - 1) for one in value]
    if isinstance(value, dict):
        return {text_of(key, "key"): _part(one, deep - 1) for key, one in value.items()}
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("must be a finite number")
    elif isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 64:
            raise ValueError("must be a number of 64 bits: requests hold no longer ones")
    elif not isinstance(value, str):
        raise ValueError(f"must be what a request can hold, not {type_name(value)}")  # noqa: TRY004  pydantic's rule
    return value


Part = Annotated[Any, PlainValidator(_part), WithJsonSchema({})]
"""A text, a number, true or false, or a list or table of such: part of a request or an answer."""


# ---- active ----


class Check(Table):
    """What the kinds of check have in common."""

    type: str
    interval: Duration = Field(
        default=2.0, description="Seconds between the beginnings of two checks of an endpoint (HAProxy: 2)."
    )
    fast_interval: Duration = Field(
        default=0.5,
        validate_default=True,
        description="The same while its state is about to change, so that rise and fall take but seconds.",
    )
    timeout: Duration = Field(
        default=1.0,
        validate_default=True,
        description="Seconds for all of a check: inside a VPC it takes milliseconds or fails.",
    )
    rise: StrictInt = Field(
        default=2, ge=1, le=100, description="Checks in a row that must pass before it counts (HAProxy: 2)."
    )
    fall: StrictInt = Field(
        default=3, ge=1, le=100, description="Checks in a row that must fail before it is out (HAProxy: 3)."
    )
    jitter: StrictFloat = Field(
        default=0.1,
        ge=0,
        le=0.5,
        description="Share by which an interval may be longer or shorter, so that the checks of many "
        "gateways do not come all at once.",
    )
    port: StrictInt = Field(
        default=0,
        ge=0,
        le=65535,
        description="Where checks go, where that is not the endpoint's port. 0: it is.",
    )

    @field_validator("fast_interval", "timeout")
    @classmethod
    def _fits_interval(cls, seconds: float, info: ValidationInfo) -> float:
        interval = info.data.get("interval", seconds)
        if seconds > interval:
            raise ValueError(f"must be at most interval, {interval:g} s: it is {seconds:g} s")
        return seconds


class TcpCheck(Check):
    """A connection that comes up, and is closed."""

    type: Literal["tcp"]


class TlsCheck(Check):
    """A TLS handshake."""

    type: Literal["tls"]
    server_name: ServerName | None = Field(
        default=None, description="As in [service.tls], of which this says nothing and takes nothing."
    )
    ca: NamedFile | None = Field(
        default=None, description="A PEM file of those who may sign certificates. Without it the system's."
    )
    verify: StrictBool = Field(default=True, description="false: any certificate is good.")

    @field_validator("verify")
    @classmethod
    def _makes_use_of_authorities(cls, verify: bool, info: ValidationInfo) -> bool:
        return verified(verify, info)


def _path(text: str) -> str:
    if not re.fullmatch("/[!-~]*", text):
        raise ValueError(f"{text!r} is no path: write / and then letters, digits and signs, without spaces")
    return text


def _host(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.:\[\]-]{1,255}", text):
        raise ValueError(f"{text!r} is no host: write a.example.com or a.example.com:8080")
    return text


class HttpCheck(Check):
    """A GET request whose answer's status decides."""

    type: Literal["http"]
    path: Annotated[str, AfterValidator(_path)] = Field(
        default="/healthz", description="What is asked for: a path, and a query where one is needed."
    )
    status: tuple[Status, ...] = Field(
        default=(StatusRange(200, 399),),
        min_length=1,
        description='Which are good: ["200-399", 404] (HAProxy, Kubernetes: 200 to 399).',
        json_schema_extra={"default": ["200-399"]},
    )
    host: Annotated[str, AfterValidator(_host)] | None = Field(
        default=None, description="The header Host. Without it the endpoint."
    )


class RpcCheck(Check):
    """A request whose answer decides."""

    type: Literal["rpc"]
    method: Text = Field(
        default="tcpgw.ping",
        description="What is called. An instance that does not know it says so, which is an answer too.",
    )
    params: tuple[Part, ...] = Field(default=(), description="Its parameters.")
    expect: Part | None = Field(
        default=None, description="The result that it must have. Without it any answer is good, an error too."
    )


class SendExpectCheck(Check):
    """Bytes that are sent, and bytes that must come back."""

    type: Literal["send_expect"]
    send: Payload = Field(
        default=b"",
        description=r'What is sent: "PING\r\n", or "hex:…" for bytes that are no text. Empty: nothing, for '
        "protocols where the server speaks first.",
        json_schema_extra={"default": ""},
    )
    expect: Payload = Field(description='What the answer must contain: "+PONG", or "hex:…".')

    @field_validator("expect")
    @classmethod
    def _expects_something(cls, expect: bytes) -> bytes:
        if not expect:
            raise ValueError('must not be empty: any answer would do; type = "tcp" needs none')
        return expect


Active = Annotated[TcpCheck | TlsCheck | HttpCheck | RpcCheck | SendExpectCheck, Field(discriminator="type")]


# ---- passive ----

Failure = Literal["connect", "reset", "protocol", "timeout", "error"]


class Passive(Table):
    """What clients' connections and requests say of an endpoint, and for how long it is left out then."""

    failures: StrictInt = Field(
        default=5, ge=1, le=10_000, description="Failures in a row that eject (Envoy: 5)."
    )
    on: tuple[Failure, ...] = Field(
        default=("connect", "reset", "protocol", "timeout"),
        min_length=1,
        description="What is a failure. error, an rpc error answer, is none by itself: a client's wrong "
        "request gets one as well.",
    )
    failure_rate: StrictFloat = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of failures among the outcomes of a window that ejects as well. 0: off, since "
        "what is usual only its operator knows.",
    )
    window: Duration = Field(default=10.0, description="For failure_rate: seconds looked back (Envoy: 10).")
    min_volume: StrictInt = Field(
        default=20,
        ge=1,
        le=1_000_000,
        description="For failure_rate: outcomes in a window below which nothing is concluded.",
    )
    ejection: Duration = Field(
        default=30.0, description="Seconds out, times how often it was in a row (Envoy: 30)."
    )
    max_ejection: Duration = Field(
        default=300.0, validate_default=True, description="The most of it, in seconds (Envoy: 300)."
    )
    max_ejected: StrictFloat = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of a service's endpoints that may be ejected at a time, and never the last: one "
        "fault that hits all must not take the service away. 0: none is. More than 1 - panic defeats itself: "
        "so many ejected are a panic, which uses them.",
    )
    trial_share: StrictFloat = Field(
        default=0.1,
        gt=0,
        le=1,
        description="Share of its weight that an endpoint gets after an ejection until it has proved itself.",
    )
    trial_successes: StrictInt = Field(
        default=3, ge=1, le=10_000, description="Successes in a row that prove it; one failure ejects again."
    )
    first_byte_timeout: Duration | None = Field(
        default=None,
        description="On tcp listeners: seconds in which an instance's first byte must come, else it is a "
        "failure of kind timeout. Without it silence is none: in some protocols it is long.",
    )

    @field_validator("max_ejection")
    @classmethod
    def _is_the_most(cls, most: float, info: ValidationInfo) -> float:
        ejection = info.data.get("ejection", most)
        if most < ejection:
            raise ValueError(f"must be at least ejection, {ejection:g} s: it is {most:g} s")
        return most


class Health(Table):
    """How it is found out which endpoints work."""

    panic: StrictFloat = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Below this share of usable endpoints all are used: then the checks are more likely "
        "wrong than so many instances, and the rest would break under the load (Envoy: 0.5). 0: never. "
        "More than 1 - passive.max_ejected defeats ejections: so many ejected are a panic, which uses them.",
    )
    active: Annotated[Off | Annotated[Active, IsTable], ByForm] = Field(
        default=TcpCheck(type="tcp"),
        description="Checks that the gateway makes itself; or off. Each kind says what it needs.",
    )
    passive: Annotated[Off | Annotated[Passive, IsTable], ByForm] = Field(
        default=Passive(),
        description="What clients' own connections and requests tell; or off.",
    )
