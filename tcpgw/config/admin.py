"""The admin server: where it listens, and what it asks of who comes."""

import re
from ipaddress import ip_address
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from tcpgw.config.secret import Secret
from tcpgw.config.table import ByForm, IsTable, IsWord, Table
from tcpgw.config.tls import ServerName
from tcpgw.config.values import Bind, BindAddress, type_name

# Characters. With 16 of hexadecimal digits, guessing takes longer than any machine lives, however fast.
_SHORTEST, _LONGEST = 16, 512


def _fit_for_a_header(token: SecretStr, info: ValidationInfo) -> SecretStr:
    """No message holds any part of it."""
    if (info.context or {}).get("fetched"):  # checked where it was, and asterisks here
        return token
    if not re.fullmatch(f"[!-~]{{{_SHORTEST},{_LONGEST}}}", token.get_secret_value()):
        raise ValueError(
            f"must have {_SHORTEST} to {_LONGEST} visible ASCII characters and no space: "
            "`openssl rand -hex 32` makes one"
        )
    return token


Token = Annotated[
    Secret,
    AfterValidator(_fit_for_a_header),
    WithJsonSchema({"type": "string", "minLength": 1, "writeOnly": True}),
]


def _in_lower_case(name: str) -> str:
    if name != name.lower():
        raise ValueError(f"must be in lower case, as browsers send it: write {name.lower()!r}")
    return name


class Admin(Table):
    """The server of the status page, of metrics and probes."""

    bind: BindAddress = Field(
        default=Bind("127.0.0.1", 9080),
        description='"127.0.0.1:9080", "[::1]:9080" or "unix:/run/x.sock", for its owner and group.',
    )
    token: Token | None = Field(
        default=None,
        description='What clients must show (Authorization: Bearer): "env:NAME", "file:PATH" or the token. '
        "Without it a TCP address must be on loopback, and who reaches it may read, and change nothing.",
    )
    hosts: tuple[Annotated[ServerName, AfterValidator(_in_lower_case)], ...] = Field(
        default=(),
        description="Names beside localhost and addresses by which browsers may call it, such as that of a "
        "reverse proxy in front. Others are refused on loopback, so that no web page can point its own name "
        "here.",
    )

    @model_validator(mode="after")
    def _is_guarded(self) -> Self:
        if self.is_local or self.token is not None:
            return self
        table = f'{{ bind = "{self.bind}", token = "env:TCPGW_ADMIN_TOKEN" }}'
        raise ValueError(f"{self.bind} can be reached from elsewhere, so it needs a token: write {table}")

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        return bool(self.bind.path) or ip_address(self.bind.host).is_loopback


def _table_of(admin: Any) -> Any:
    """What a bare address stands for."""
    if isinstance(admin, str) and admin != "off":
        return {"bind": Bind.parse(admin)}
    if not isinstance(admin, str | dict | Admin):
        raise ValueError(  # noqa: TRY004  pydantic's rule
            f'must be an address such as "127.0.0.1:9080", "off", or a table, not {type_name(admin)}'
        )
    return admin


AnyAdmin = Annotated[
    Annotated[Literal["off"], IsWord] | Annotated[Admin, IsTable],
    ByForm,
    BeforeValidator(_table_of, json_schema_input_type=str | Admin),
]
