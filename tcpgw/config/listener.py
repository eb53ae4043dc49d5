"""A listener: where clients connect, what to do with their bytes, and which services they reach."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StrictBool,
    StrictInt,
    ValidationInfo,
    field_validator,
)

from tcpgw.config.access import Access, Limits
from tcpgw.config.codec import AnyCodec, Codec
from tcpgw.config.table import ByForm, IsTable, IsWord, Table
from tcpgw.config.tls import HostPattern, ServerTls
from tcpgw.config.values import (
    MAX_WEIGHT,
    BindAddress,
    Delay,
    Duration,
    FieldPath,
    Name,
    Network,
    Pattern,
    Size,
)


class Route(Table):
    """A service and its share of a listener's keys."""

    service: Name = Field(description="The name of a [[service]].")
    weight: StrictInt = Field(
        default=1,
        ge=0,
        le=MAX_WEIGHT,
        description="Its share relative to the others' weights. 0: no new connection.",
    )


def _bare_name_to_list(route: Any) -> Any:
    return [{"service": route}] if isinstance(route, str) else route


def _with_a_share(routes: tuple[Route, ...]) -> tuple[Route, ...]:
    if all(route.weight == 0 for route in routes):
        raise ValueError("every weight is 0, so nothing would be served: give one service a weight")
    return routes


Routes = Annotated[
    tuple[Route, ...],
    Field(min_length=1),
    AfterValidator(_with_a_share),
    BeforeValidator(_bare_name_to_list, json_schema_input_type=str | list[Route]),
]


# ---- methods ----


class Method(Table):
    """What is different for the requests of some methods."""

    service: Name | None = Field(
        default=None, description="The [[service]] they go to, instead of the listener's route."
    )
    timeout: Duration | None = Field(
        default=None, description="Seconds until the answer must be there, instead of request_timeout."
    )
    idempotent: StrictBool = Field(
        default=False,
        description="true: an instance may be asked twice, so a request whose connection broke is retried. "
        "Otherwise one that may have reached an instance never is.",
    )
    hedge: Delay | None = Field(
        default=None,
        description="Seconds without an answer after which a second endpoint is asked too, the first answer "
        "counts; p95: as long as 95 % of this method's answers take. Needs idempotent = true.",
    )
    priority: Literal["low", "normal", "high"] = Field(
        default="normal", description="Which of the requests that wait for an endpoint goes first."
    )
    max_inflight: StrictInt | None = Field(
        default=None,
        ge=1,
        description="Requests that all clients of this listener together may have unanswered, in equal parts "
        "for the workers; those beyond are answered `overloaded`. Without it no limit of the method's own.",
    )

    @field_validator("hedge")
    @classmethod
    def _may_run_twice(cls, hedge: float | str | None, info: ValidationInfo) -> float | str | None:
        if hedge is not None and info.data.get("idempotent") is False:
            raise ValueError("needs idempotent = true: a hedged request may run twice")
        return hedge


Rule = Annotated[Annotated[Literal["deny"], IsWord] | Annotated[Method, IsTable], ByForm]


# ---- listeners ----

Tls = Annotated[Annotated[Literal["passthrough"], IsWord] | Annotated[ServerTls, IsTable], ByForm]

_OTHER_PLANE = {"tcp": "rpc", "rpc": "stream"}
_PER_REQUEST = ("request_timeout", "deadline", "max_inflight", "methods")


class Listener(Table):
    """An address that the gateway accepts connections on."""

    name: Name = Field(description="What logs and metrics call it.")
    bind: BindAddress = Field(
        description='"0.0.0.0:9000", "[::]:9000" or "unix:/run/x.sock"; port 0: any free one.'
    )
    mode: Literal["tcp", "rpc"] = Field(
        default="tcp",
        description="tcp: bytes are relayed as they are. rpc: frames are seen, and requests balanced one by "
        "one where the codec knows them.",
    )
    plane: Literal["auto", "stream", "rpc"] = Field(
        default="auto", description="How bytes move. auto: the fastest that fits the mode."
    )
    route: Routes = Field(
        description='A service\'s name, or a weighted split: [ { service = "a", weight = 90 }, … ].',
    )
    sni: dict[HostPattern, Routes] = Field(
        default={},
        description='Other routes by the name that a client asks for in TLS: { "a.example.com" = "a" }. An '
        "exact name, else the longest *.example.com; other clients take route. Needs tls.",
    )
    tls: Tls | None = Field(
        default=None,
        description="A table: TLS ends here. passthrough: instances end it, and the gateway only looks at "
        "the name that is asked for. Without it none is expected.",
    )
    access: Access = Access()
    limits: Limits = Limits()
    max_connections: StrictInt = Field(
        default=10_000,
        ge=1,
        description="Connections at a time, in equal parts for the workers; beyond, accepting pauses. Each "
        "takes 2 descriptors: `ulimit -n`.",
    )
    idle_timeout: Duration = Field(
        default=3600.0,
        description="Seconds without a byte either way until the connection is closed (Envoy: 1 h).",
    )
    max_age: Duration | None = Field(
        default=None,
        description="Seconds, give or take a tenth, after which a connection is ended at a quiet moment, or "
        "reset 30 s later: so that clients which never reconnect spread over instances that were added. "
        "Without it none is.",
    )
    fin_timeout: Duration = Field(
        default=30.0, description="Seconds of silence that one direction may stay open after the other ended."
    )
    keepalive: Duration = Field(
        default=60.0,
        ge=1,
        le=32767,  # tcp(7): TCP_KEEPIDLE is whole seconds in 16 bits
        description="Seconds of silence before TCP probes: below the 350 s of common NAT paths.",
    )
    buffer: Size = Field(
        default=65536,
        ge=4096,
        le=1 << 30,
        description="Bytes that may wait for a side that reads slowly before the other is read no more: "
        "memory for each connection and direction, with one read on top (64KiB: asyncio's).",
    )
    accept_proxy: tuple[Network, ...] = Field(
        default=(),
        description="Networks whose connections must begin with a PROXY header; others are taken as is.",
    )
    proxy_timeout: Duration = Field(
        default=5.0, description="Seconds until the PROXY header must be there; its sender has it at hand."
    )
    codec: AnyCodec = Field(
        default=Codec(name="msgpack-rpc"),
        description="For mode rpc. msgpack-rpc, msgpack-rpc-stream (without lengths in front) and "
        "thrift-framed correlate: requests are balanced one by one. u32be, u32le, u16be, varint, brpc, "
        'dubbo, kafka, msgpack and tables such as { name = "fifo", frame = "u32be" } tell where frames '
        "end: connections are forwarded, with limits on their frames.",
        json_schema_extra={"default": "msgpack-rpc"},
    )
    max_frame: Size = Field(
        default=16 << 20,
        ge=64,
        le=1 << 30,
        description="For mode rpc: bytes of the longest frame. 16MiB is above the platform's limit for a "
        "body, 12 MB. At most half of gateway.rpc_memory.",
    )
    frame_timeout: Duration = Field(
        default=30.0,
        description="For mode rpc: seconds in which a frame that has begun must be whole. 16 MiB take 13 s "
        "at 10 Mbit/s; what drips in more slowly only holds memory. Also the time in which a client that "
        "has answers waiting must read as much as its buffer.",
    )
    request_timeout: Duration = Field(
        default=60.0,
        description="For correlating codecs: seconds until the answer must be there, else the client gets "
        "`deadline_exceeded` (nginx: 60 s). methods may say another.",
    )
    deadline: FieldPath | None = Field(
        default=None,
        description="For correlating codecs: the field of a request that says how many milliseconds are "
        "left, such as params[1].deadline_ms. It can only shorten the time-out; instances are told the rest.",
    )
    max_inflight: StrictInt = Field(
        default=256,
        ge=1,
        description="For correlating codecs: requests that one connection may have unanswered; beyond, it is "
        "not read. A quarter of what an endpoint takes, so that no client has one to itself.",
    )
    methods: dict[Pattern, Rule] = Field(
        default={},
        description='For correlating codecs: { "predict" = { timeout = "2s" }, "admin.*" = "deny" }. A name, '
        "or a prefix ended by *. One rule counts: that of the exact name, else that of the longest prefix.",
    )

    @field_validator("plane")
    @classmethod
    def _suits_mode(cls, plane: str, info: ValidationInfo) -> str:
        mode = info.data.get("mode", "")
        if plane == _OTHER_PLANE.get(mode):
            raise ValueError(f'plane {plane!r} cannot serve mode {mode!r}: write "auto" or take it out')
        return plane

    # Before the value is read: in the wrong mode it does not matter what it is.
    @field_validator("codec", "max_frame", "frame_timeout", *_PER_REQUEST, mode="before")
    @classmethod
    def _is_for_this_mode(cls, value: Any, info: ValidationInfo) -> Any:
        codec = info.data.get("codec")
        if info.data.get("mode") == "tcp":
            raise ValueError(
                'take it out, or write mode = "rpc": a listener of mode "tcp" does not see frames'
            )
        if info.field_name in _PER_REQUEST and codec and not codec.correlates:
            raise ValueError(f"take it out: codec {codec} forwards whole connections and sees no requests")
        return value

    @property
    def ends_tls(self) -> bool:
        """Whether clients' TLS ends here."""
        return isinstance(self.tls, ServerTls)

    @property
    def by_credential(self) -> bool:
        """Whether clients may, or must, show who they are: an API key, a JWT or a certificate."""
        mutual = isinstance(self.tls, ServerTls) and self.tls.client_ca is not None
        return mutual or self.access.by_token

    @property
    def by_request(self) -> bool:
        """Whether requests are balanced one by one, rather than connections."""
        return self.mode == "rpc" and self.codec.correlates
