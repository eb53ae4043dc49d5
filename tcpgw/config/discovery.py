"""Where a service's instances come from: the kinds of discovery, and the cloud that one of them asks."""

from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

import jmespath
import jmespath.exceptions
from pydantic import ConfigDict, Field, StrictInt, ValidationInfo, field_validator, model_validator

from tcpgw.config import checks
from tcpgw.config.files import FilePath
from tcpgw.config.secret import Secret
from tcpgw.config.table import Table
from tcpgw.config.values import Duration, EndpointAddress, Name, Network, StaticMember, Text, Url

PRIVATE_NETWORKS: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
)
"""RFC 1918, RFC 6598 (the cloud's own services) and RFC 4193. Not loopback: an answer that names 127.0.0.1
would send clients to whatever runs beside the gateway."""


# ---- cloud ----


class TokenAuth(Table):
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


class PasswordAuth(Table):
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


class AkSkAuth(Table):
    """An access key and its secret key: each request is signed. Needs the extra `aksk`."""

    type: Literal["aksk"]
    access_key: Secret = Field(description="A literal, env:NAME or file:PATH.")
    secret_key: Secret = Field(description="A literal, env:NAME or file:PATH.")


class AgencyAuth(Table):
    """The agency of the server that tcpgw runs on: no secret to keep. Needs the extra `aksk`."""

    type: Literal["agency"]
    metadata: Url = Field(
        default="http://169.254.169.254",
        description="The metadata service; the default is the same on every cloud server.",
    )


Auth = Annotated[TokenAuth | PasswordAuth | AkSkAuth | AgencyAuth, Field(discriminator="type")]


class ModelArtsCloud(Table):
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


# ---- discovery ----


class StaticDiscovery(Table):
    """Instances that never change."""

    type: Literal["static"]
    endpoints: tuple[StaticMember, ...] = Field(
        min_length=1,
        description='"10.0.0.1:8080" or { address = "10.0.0.1:8080", weight = 2 }; 0: no new connection.',
    )


class FileDiscovery(Table):
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


class DnsDiscovery(Table):
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


class ModelArtsDiscovery(Table):
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
