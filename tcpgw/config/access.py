"""Who may connect to a listener, as whom, and how much of it one client may have."""

from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    SecretStr,
    StrictFloat,
    StrictInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from tcpgw.config.files import NamedFile, Source
from tcpgw.config.secret import Secret
from tcpgw.config.table import Table
from tcpgw.config.values import Duration, Network, Pattern, Size, Text

# RFC 7518, section 3.2: the key of an HMAC is at least as long as its hash.
_LEAST_SECRET = 32
# Far above what one gateway can do; configurations travel to workers, where numbers have 64 bits.
_MOST = 1_000_000_000
_MOST_BYTES = 1 << 40


# ---- credentials ----


class Permissions(Table):
    """What a subject may use."""

    services: tuple[Pattern, ...] | None = Field(
        default=None,
        description="Names of services, or beginnings ended by *. Without it all that the listener leads to.",
    )
    methods: tuple[Pattern, ...] | None = Field(
        default=None,
        description="For correlating codecs: names of methods, or beginnings ended by *. Without it all.",
    )


def _once(algorithms: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(algorithms)) < len(algorithms):
        raise ValueError("must name each algorithm once")
    return algorithms


class Jwt(Table):
    """Which JSON Web Tokens (RFC 7519) are taken, and what their claims mean."""

    algorithms: Annotated[tuple[Literal["HS256", "RS256", "ES256"], ...], AfterValidator(_once)] = Field(
        min_length=1,
        description="How tokens may be signed. No default: what the tokens themselves say must not decide.",
    )
    secret: Secret | None = Field(
        default=None,
        validate_default=True,
        description="For HS256, at least 32 bytes: a literal, env:NAME or file:PATH.",
    )
    jwks: Source | None = Field(
        default=None,
        validate_default=True,
        description="For RS256 and ES256: the public keys (RFC 7517), a file or https://….",
    )
    issuer: Text | None = Field(
        default=None, description="What the claim iss must be. Without it any: the keys decide."
    )
    audience: Text = Field(
        description="What the claim aud must be or have in its list, so that a token for another of the "
        "issuer's services opens nothing here."
    )
    leeway: Duration = Field(
        default=30.0, description="Seconds that the clocks of issuer and gateway may differ by."
    )
    subject: Text = Field(default="sub", description="The claim that says who it is.")
    permissions: Text = Field(
        default="tcpgw",
        description="The claim that may narrow what the token is good for: an object with lists of patterns "
        "as listeners, services and methods.",
    )

    @field_validator("secret")
    @classmethod
    def _is_for_hs256(cls, secret: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        algorithms = info.data.get("algorithms")
        if algorithms is None:
            return secret
        if secret is None:
            if "HS256" in algorithms:
                raise ValueError("missing: HS256 needs it: write env:NAME or file:PATH")
            return secret
        if "HS256" not in algorithms:
            raise ValueError(f"take it out: {' and '.join(algorithms)} need jwks; only HS256 has a secret")
        if len(secret.get_secret_value().encode()) < _LEAST_SECRET:
            raise ValueError(
                f"the secret is too short to be safe: HS256 needs at least {_LEAST_SECRET} bytes "
                "(RFC 7518, section 3.2); `openssl rand -hex 32` makes one"
            )
        return secret

    @field_validator("jwks")
    @classmethod
    def _is_for_key_pairs(cls, jwks: object, info: ValidationInfo) -> object:
        algorithms = info.data.get("algorithms")
        if algorithms is None:
            return jwks
        pairs = [name for name in algorithms if name != "HS256"]
        if pairs and jwks is None:
            raise ValueError(
                f"missing: {' and '.join(pairs)} {'needs' if len(pairs) == 1 else 'need'} it: write the path "
                "of a file with public keys, or https://…"
            )
        if not pairs and jwks is not None:
            raise ValueError("take it out: HS256 has a secret and no public keys")
        return jwks


class Access(Table):
    """Who may use a listener: everybody without this table; once any rule stands, who passes them all."""

    allow: tuple[Network, ...] = Field(
        default=(),
        description="Networks whose clients may connect. Of allow and deny the longest prefix counts; where "
        "none fits, clients are denied if allow has any.",
    )
    deny: tuple[Network, ...] = Field(default=(), description="Networks whose clients may not.")
    api_keys: NamedFile | None = Field(
        default=None, description="A file of API keys. Relative to the configuration's folder."
    )
    jwt: Jwt | None = Field(
        default=None, description="Tokens of an issuer. One valid credential of any kind is enough."
    )
    subjects: dict[Pattern, Permissions] = Field(
        default={},
        description='What subjects of tokens and certificates may use: { "alice" = { services = ["resnet*"] '
        "} }. An exact name, else the longest beginning ended by *. It only narrows what an API key or a "
        "token allows by itself.",
    )
    timeout: Duration = Field(
        default=5.0,
        description="Seconds until the credential must be there; clients have it at hand. With passthrough, "
        "until it is known to which host the TLS is.",
    )

    @field_validator("deny")
    @classmethod
    def _contradicts_nothing(cls, deny: tuple[Network, ...], info: ValidationInfo) -> tuple[Network, ...]:
        both = [str(network) for network in deny if network in info.data.get("allow", ())]
        if both:
            raise ValueError(
                f"{', '.join(both)} {'stands' if len(both) == 1 else 'stand'} in allow too: keep one of them"
            )
        return deny

    @property
    def by_token(self) -> bool:
        """Whether clients may show a credential of their own, an API key or a JWT."""
        return self.api_keys is not None or self.jwt is not None


# ---- limits ----


class Quota(Table):
    """How much one may have of a listener."""

    connections: StrictInt | None = Field(
        default=None, ge=1, le=_MOST, description="Connections at a time, at all workers together."
    )
    new_per_second: StrictFloat | None = Field(
        default=None,
        gt=0,
        le=_MOST,
        description="Connections that may be begun in a second, in equal parts for the workers.",
    )
    burst: StrictInt | None = Field(
        default=None,
        ge=1,
        le=_MOST,
        description="Connections that may be begun at once after a while without any, in equal parts for "
        "the workers. Without it those of one second.",
    )
    bytes_in: Size | None = Field(
        default=None,
        ge=1,
        le=_MOST_BYTES,
        description="Bytes a second from clients, in equal parts for the workers; beyond, they are read "
        "more slowly.",
    )
    bytes_out: Size | None = Field(
        default=None, ge=1, le=_MOST_BYTES, description="Bytes a second to clients, likewise."
    )

    @field_validator("burst")
    @classmethod
    def _has_a_rate(cls, burst: int | None, info: ValidationInfo) -> int | None:
        if burst is not None and info.data.get("new_per_second", 0) is None:
            raise ValueError("needs new_per_second: a burst is what may go beyond it")
        return burst

    @model_validator(mode="after")
    def _limits_something(self) -> "Quota":
        limits = (self.connections, self.new_per_second, self.bytes_in, self.bytes_out)
        if all(limit is None for limit in limits):
            raise ValueError(
                "limits nothing: write connections, new_per_second, bytes_in or bytes_out, or take it out"
            )
        return self


class SourceQuota(Quota):
    """How much the clients of one source address may have of a listener."""

    ipv6_prefix: StrictInt = Field(
        default=64,
        ge=1,
        le=128,
        description="Bits of an IPv6 address that count as one source: 64 is what one subnet has, within "
        "which a host may take any address it likes (RFC 4291).",
    )


class Limits(Table):
    """What clients may have of a listener before, and besides, what they are allowed to use."""

    handshakes: StrictInt = Field(
        default=1024,
        ge=1,
        le=_MOST,
        description="Connections at a time that have no route yet (PROXY header, TLS, credentials), in equal "
        "parts for the workers; beyond, accepting pauses. Each costs memory before anybody is known.",
    )
    first_byte_timeout: Duration | None = Field(
        default=None,
        description="Seconds in which a client must send something at all. Without it idle_timeout, since "
        "in some protocols the server speaks first.",
    )
    per_source: SourceQuota | None = Field(
        default=None, description="For the clients of one address. Without it no limit."
    )
    per_subject: Quota | None = Field(
        default=None, description="For the clients of one subject, wherever they are. Without it no limit."
    )
