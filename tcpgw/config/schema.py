"""What a configuration may say. Frozen; unknown keys refused; each default says its unit and its why.

Descriptions go to the JSON Schema (`tcpgw schema`), so editors show them beside the key. A `Config` that
exists is consistent: the checks between tables (checks.py) are part of its validation. The file is longer
than others because it is the operator's reference: declarations in one place, in a configuration's order.
"""

import os
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import jmespath
import jmespath.exceptions
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from tcpgw.config import checks
from tcpgw.config.values import (
    MAX_WEIGHT,
    BindAddress,
    Duration,
    EndpointAddress,
    FilePath,
    Name,
    Network,
    Secret,
    Size,
    StaticMember,
    Text,
    Url,
)

PRIVATE_NETWORKS: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
)
"""RFC 1918, RFC 6598 (the cloud's own services) and RFC 4193. Not loopback: an answer that names 127.0.0.1
would send clients to whatever runs beside the gateway."""


class _Table(BaseModel):
    # Inputs stay out of pydantic's own messages because they may be secrets.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


# ---- gateway ----


class Log(_Table):
    """What is logged, and how."""

    format: Literal["auto", "json", "console"] = Field(
        default="auto", description="auto: console on a terminal, else json, which log collectors read."
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info",
        description="The least important level that is logged. info has the line per connection.",
    )
    connections: StrictBool = Field(
        default=True,
        description="One line at the end of each connection. false where thousands come each second.",
    )


def _state_dir_from_systemd() -> Path | None:
    # systemd.exec(5), StateDirectory=: more than one folder would be joined by colons.
    folder = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    return Path(folder) if folder else None


class Gateway(_Table):
    """Settings of the whole process."""

    state_dir: FilePath | None = Field(
        default_factory=_state_dir_from_systemd,
        description="Folder of the last good snapshots, for a start while the cloud's API is down. "
        "Without it systemd's $STATE_DIRECTORY, and without that none is kept.",
    )
    drain: Duration = Field(
        default=30.0, description="Seconds that SIGTERM leaves connections to finish (HAProxy, Pingora: 30)."
    )
    log: Log = Log()


# ---- cloud ----


class TokenAuth(_Table):
    """A token made elsewhere. The cloud ends it after 24 hours, so this suits trials."""

    type: Literal["token"]
    token: Secret = Field(description="Sent as X-Auth-Token. A literal, env:NAME or file:PATH.")


def _list_password_env(schema: dict[str, Any]) -> None:
    schema["properties"]["password_env"] = {
        "type": "string",
        "description": 'password_env = "NAME" is the same as password = "env:NAME".',
    }
    schema["required"].remove("password")
    schema["oneOf"] = [{"required": ["password"]}, {"required": ["password_env"]}]


class PasswordAuth(_Table):
    """An IAM user's password, exchanged for tokens that are renewed before they end."""

    model_config = ConfigDict(json_schema_extra=_list_password_env)

    type: Literal["password"]
    iam: Url = Field(description="IAM's address, e.g. https://iam.cn-north-4.myhuaweicloud.com.")
    domain: Text = Field(description="The account's name.")
    user: Text = Field(description="The IAM user's name.")
    password: Secret = Field(description="A literal, env:NAME or file:PATH.")

    @model_validator(mode="before")
    @classmethod
    def _take_password_env(cls, table: Any) -> Any:
        if not isinstance(table, dict) or "password_env" not in table:
            return table
        if "password" in table:
            raise ValueError("has both password and password_env: keep one")
        if not isinstance(table["password_env"], str):
            raise ValueError("password_env must be the name of an environment variable")  # noqa: TRY004  pydantic's rule
        rest = {key: value for key, value in table.items() if key != "password_env"}
        return rest | {"password": f"env:{table['password_env']}"}


class AkSkAuth(_Table):
    """An access key and its secret key: each request is signed. Needs the extra `aksk`."""

    type: Literal["aksk"]
    access_key: Secret = Field(description="A literal, env:NAME or file:PATH.")
    secret_key: Secret = Field(description="A literal, env:NAME or file:PATH.")


class AgencyAuth(_Table):
    """The agency of the server that tcpgw runs on: no secret to keep. Needs the extra `aksk`."""

    type: Literal["agency"]
    metadata: Url = Field(
        default="http://169.254.169.254",
        description="The metadata service; the default is the same on every cloud server.",
    )


Auth = Annotated[TokenAuth | PasswordAuth | AkSkAuth | AgencyAuth, Field(discriminator="type")]


class ModelArtsCloud(_Table):
    """One IAM user's access to ModelArts: the budget of calls belongs to the user."""

    endpoint: Url = Field(
        description="ModelArts' address, e.g. https://modelarts.cn-north-4.myhuaweicloud.com."
    )
    project_id: Text = Field(description="The project's ID (32 hexadecimal digits, under My Credentials).")
    auth: Auth
    calls_per_minute: StrictInt = Field(
        default=20,
        ge=1,
        le=2000,
        description="Calls a minute that all services of this user share. 20 is the cloud's limit for an IAM "
        "user, 2000 that for the whole account; take less where others use the same user.",
    )
    timeout: Duration = Field(
        default=10.0, description="Seconds for one call, connecting included: no longer than a refresh."
    )


# ---- services ----


class StaticDiscovery(_Table):
    """Instances that never change."""

    type: Literal["static"]
    endpoints: tuple[StaticMember, ...] = Field(
        min_length=1,
        description='"10.0.0.1:8080" or { address = "10.0.0.1:8080", weight = 2 }; 0: no new connection.',
    )


class FileDiscovery(_Table):
    """Instances that another program lists in a file, followed without restart."""

    type: Literal["file"]
    path: FilePath = Field(description="A .json or .toml file. Relative to the configuration's folder.")
    refresh: Duration = Field(default=1.0, description="Seconds between looks at the file: cheap, so often.")

    @field_validator("path")
    @classmethod
    def _has_known_format(cls, path: Path) -> Path:
        if path.suffix not in {".json", ".toml"}:
            raise ValueError(f"{str(path)!r} must end in .json or .toml, which says how it is read")
        return path


class DnsDiscovery(_Table):
    """Instances that a name in the DNS stands for."""

    type: Literal["dns"]
    name: str = Field(description="E.g. redis.internal, or _redis._tcp.internal for SRV.")
    record: Literal["A", "AAAA", "SRV"] = Field(
        default="A", description="SRV brings ports and weights with it."
    )
    port: StrictInt | None = Field(
        default=None,
        ge=1,
        le=65535,
        validate_default=True,
        description="The instances' port; for A and AAAA alone.",
    )
    resolvers: tuple[EndpointAddress, ...] = Field(
        default=(), description='E.g. "10.0.0.2:53". Without it those of the system (/etc/resolv.conf).'
    )
    refresh: Duration = Field(
        default=10.0, description="Seconds between questions at most; a shorter TTL is honoured, down to 1 s."
    )
    timeout: Duration = Field(
        default=5.0,
        description="Seconds for one question, all resolvers and repetitions included (resolv.conf(5): 5).",
    )

    @field_validator("name")
    @classmethod
    def _is_host_name(cls, name: str) -> str:
        return checks.dns_name(name)

    @field_validator("port")
    @classmethod
    def _suits_record(cls, port: int | None, info: ValidationInfo) -> int | None:
        record = info.data.get("record")
        if record == "SRV" and port is not None:
            raise ValueError("take it out: SRV records say the ports themselves")
        if record in {"A", "AAAA"} and port is None:
            raise ValueError(f"missing: {record} records hold no port, so it must stand here")
        return port


class ModelArtsDiscovery(_Table):
    """The instances of a ModelArts online service, asked from its API."""

    type: Literal["modelarts"]
    service_id: Text = Field(description="The online service's ID, from its page in the console.")
    cloud: Name = Field(default="modelarts", description="Which [cloud.NAME] table holds the credentials.")
    refresh: Duration = Field(
        default=10.0,
        description="Seconds between calls, jittered by 10 %; longer where the budget of calls is small.",
    )
    jmespath: Text | None = Field(
        default=None,
        description="Picks the list of instances out of the API's answer; without it tcpgw looks for it.",
    )
    networks: tuple[Network, ...] = Field(
        default_factory=lambda: PRIVATE_NETWORKS,  # as a default it has no form in older pydantic's schemas
        min_length=1,
        description="Addresses outside these are refused. Without it the private ranges, as the high-speed "
        "channel has: 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 100.64.0.0/10, fc00::/7.",
    )

    @field_validator("jmespath")
    @classmethod
    def _compiles(cls, expression: str) -> str:
        try:
            jmespath.compile(expression)
        except (jmespath.exceptions.JMESPathError, RecursionError) as error:
            reason = str(error).partition("\n")[0].rstrip(":")
            raise ValueError(f"is not JMESPath (see jmespath.org): {reason}") from None
        return expression


Discovery = Annotated[
    StaticDiscovery | FileDiscovery | DnsDiscovery | ModelArtsDiscovery, Field(discriminator="type")
]


class Balance(_Table):
    """How one of a service's endpoints is chosen for a connection."""

    policy: Literal["maglev", "ring", "least_request", "peak_ewma", "round_robin", "random"] = Field(
        default="maglev",
        description="maglev and ring keep a key with its endpoint; the others look at load or nothing. "
        "peak_ewma goes by connect times.",
    )
    key: Literal["source_ip", "source_ip_port", "listener"] = Field(
        default="source_ip",
        description="What is hashed: the client's address, its address and port, or the listener.",
    )
    table_size: StrictInt = Field(
        default=65537,
        ge=2,
        le=5_000_011,
        description="Entries of Maglev's table: a prime, 100 times the endpoints or more. 65537 and the "
        "greatest value are Envoy's; memory and building time grow with it.",
    )
    bounded_load: StrictFloat = Field(
        default=1.25,
        description="For maglev and ring: an endpoint with this times the average of connections is passed "
        "over. At least 1, or 0 for off. HAProxy advises 1.25 to 2.",
    )

    @field_validator("table_size")
    @classmethod
    def _suits_maglev(cls, size: int, info: ValidationInfo) -> int:
        if info.data.get("policy", "maglev") != "maglev":
            raise ValueError(f"take it out: policy {info.data['policy']} has no table")
        return checks.prime(size)

    @field_validator("bounded_load")
    @classmethod
    def _suits_policy(cls, load: float, info: ValidationInfo) -> float:
        if info.data.get("policy", "maglev") not in {"maglev", "ring"}:
            raise ValueError(f"take it out: it bounds maglev and ring, not policy {info.data['policy']}")
        if load != 0 and not 1 <= load <= 1000:
            raise ValueError("must be 0 (off) or from 1 to 1000")
        return load


class Connect(_Table):
    """How an instance is connected to."""

    timeout: Duration = Field(
        default=1.0, description="Seconds for one candidate: inside a VPC it takes milliseconds or fails."
    )
    candidates: StrictInt = Field(
        default=3, ge=1, le=100, description="Endpoints tried before the client is turned away, each once."
    )


class Service(_Table):
    """A set of interchangeable instances."""

    name: Name = Field(description="What routes, logs and metrics call it.")
    discovery: Discovery
    balance: Balance = Balance()
    connect: Connect = Connect()
    send_proxy: Literal["v1", "v2"] | None = Field(
        default=None,
        description="Begin each connection to an instance with a PROXY header that names the client.",
    )
    wait: Duration = Field(
        default=30.0,
        description="Seconds that a start waits for the first snapshot: a token and a few slow calls.",
    )


# ---- listeners ----


class Route(_Table):
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


Routes = Annotated[
    tuple[Route, ...], BeforeValidator(_bare_name_to_list, json_schema_input_type=str | list[Route])
]


class Listener(_Table):
    """An address that the gateway accepts connections on."""

    name: Name = Field(description="What logs and metrics call it.")
    bind: BindAddress = Field(
        description='"0.0.0.0:9000", "[::]:9000" or "unix:/run/x.sock"; port 0: any free one.'
    )
    mode: Literal["tcp"] = Field(default="tcp", description="tcp: bytes are relayed as they are.")
    plane: Literal["auto", "stream"] = Field(
        default="auto", description="How bytes move. auto: the fastest that fits."
    )
    route: Routes = Field(
        min_length=1,
        description='A service\'s name, or a weighted split: [ { service = "a", weight = 90 }, … ].',
    )
    max_connections: StrictInt = Field(
        default=10_000,
        ge=1,
        description="Connections at a time; beyond, accepting pauses. Each takes 2 descriptors: `ulimit -n`.",
    )
    idle_timeout: Duration = Field(
        default=3600.0,
        description="Seconds without a byte either way until the connection is closed (Envoy: 1 h).",
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

    @field_validator("route")
    @classmethod
    def _has_a_share(cls, routes: tuple[Route, ...]) -> tuple[Route, ...]:
        if all(route.weight == 0 for route in routes):
            raise ValueError("every weight is 0, so nothing would be served: give one service a weight")
        return routes


class Config(_Table):
    """A configuration of tcpgw."""

    gateway: Gateway = Field(default_factory=Gateway)
    cloud: dict[Name, ModelArtsCloud] = Field(default={}, description="[cloud.NAME]: one for each IAM user.")
    service: tuple[Service, ...] = Field(min_length=1, description="[[service]]: what can be routed to.")
    listener: tuple[Listener, ...] = Field(min_length=1, description="[[listener]]: where clients connect.")

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        faults = [
            InitErrorDetails(
                type=PydanticCustomError("consistency", "{message}", {"message": message}),
                loc=loc,
                input=None,
            )
            for loc, message in checks.between_tables(self)
        ]
        if faults:
            raise ValidationError.from_exception_data("Config", faults)
        return self
