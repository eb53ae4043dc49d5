"""A service: how one of its instances is chosen, and how connections and requests go to it."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from tcpgw.config import checks
from tcpgw.config.alerts import ServiceAlerts
from tcpgw.config.discovery import Discovery
from tcpgw.config.health import Health
from tcpgw.config.table import Table
from tcpgw.config.tls import ClientTls
from tcpgw.config.values import PATH_SCHEMA, Duration, Name, Size, parse_path, type_name

OF_CONNECTION = ("source_ip", "source_ip_port", "listener", "hash_key", "subject")
_WORDS = (*OF_CONNECTION, "method")


def _key(text: str) -> str:
    if text not in _WORDS:
        try:
            parse_path(text)
        except ValueError:
            words = ", ".join(map(repr, _WORDS))
            raise ValueError(
                f"must be {words} or a field such as 'params[0].session', not {text!r}"
            ) from None
    return text


Key = Annotated[
    str,
    AfterValidator(_key),
    WithJsonSchema({"anyOf": [{"type": "string", "enum": list(_WORDS)}, PATH_SCHEMA]}),
]
"""One of a few words, or a path that `parse_path` reads."""


class Balance(Table):
    """How one of a service's endpoints is chosen for a connection, or on rpc listeners for a request."""

    policy: Literal["maglev", "ring", "least_request", "peak_ewma", "round_robin", "random"] = Field(
        default="maglev",
        description="maglev and ring keep a key with its endpoint; the others look at load or nothing. "
        "peak_ewma goes by the times of answers, on tcp listeners by those of connecting.",
    )
    key: Key = Field(
        default="source_ip",
        description="What is hashed: the client's address (source_ip), its address and port "
        "(source_ip_port), the listener, what the client gave to be hashed (hash_key) or who its credential "
        "says it is (subject), and where it has none of these its address; where requests are balanced one "
        "by one also their method, or a field within the first 4 KiB of their parameters: params[0].session, "
        'params[1]["odd key"].',
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
        description="For maglev and ring: an endpoint with this times the average of connections, or of "
        "requests, is passed over. At least 1, or 0 for off. HAProxy advises 1.25 to 2.",
    )

    rebalance: StrictFloat = Field(
        default=0.0,
        ge=0,
        le=100_000,
        description="For maglev and ring: idle connections that may be closed in a second, at a quiet "
        "moment, when an endpoint was added that is now home to their keys. 0: none; they stay while their "
        "clients keep them.",
    )
    slow_start: Duration | None = Field(
        default=None,
        description="Seconds over which an endpoint that is new, or works again, gets its full share, so "
        "that caches and models are warm before the rest comes. Without it at once.",
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

    @field_validator("rebalance")
    @classmethod
    def _has_homes(cls, rate: float, info: ValidationInfo) -> float:
        if info.data.get("policy", "maglev") not in {"maglev", "ring"}:
            raise ValueError(
                f"take it out: policy {info.data['policy']} has no endpoint for a key to return to"
            )
        return rate

    @property
    def by_request(self) -> bool:
        """Whether `key` is part of a request, which listeners that forward whole connections do not read."""
        return self.key not in OF_CONNECTION


class Connect(Table):
    """How an instance is connected to."""

    timeout: Duration = Field(
        default=1.0, description="Seconds for one candidate: inside a VPC it takes milliseconds or fails."
    )
    candidates: StrictInt = Field(
        default=3, ge=1, le=100, description="Endpoints tried before the client is turned away, each once."
    )
    retry_budget: StrictFloat = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Share of a service's connections that may be tries after the first (at least 3 may), so "
        "that these cannot become the load that keeps failing instances down (Linkerd, Finagle: 0.2).",
    )
    max_connections: StrictInt | None = Field(
        default=None,
        ge=1,
        le=1_000_000_000,
        description="Connections that one endpoint may have, in equal parts for the workers; the next "
        "candidate gets those beyond. Without it no limit.",
    )
    queue: StrictInt = Field(
        default=0,
        ge=0,
        le=1_000_000_000,
        description="For max_connections: clients that may wait for an endpoint with room, in equal parts "
        "for the workers; those beyond are turned away. 0: none waits.",
    )
    queue_timeout: Duration = Field(
        default=1.0, description="Seconds that a client may wait there: as long as connecting may take."
    )

    @field_validator("queue")
    @classmethod
    def _waits_for_something(cls, queue: int, info: ValidationInfo) -> int:
        if queue and "max_connections" in info.data and info.data["max_connections"] is None:
            raise ValueError("needs max_connections: without it nobody has to wait")
        return queue


class Rpc(Table):
    """How requests go to a service's instances: for listeners that balance requests one by one alone."""

    exclusive: StrictBool = Field(
        default=False,
        description="true: one request at a time on each connection, for instances that have a thread for "
        "each connection and so would answer shared ones one after the other. Raise connections with it.",
    )
    connections: StrictInt = Field(
        default=1,
        ge=1,
        le=1024,
        description="Connections of each worker to each endpoint, shared by its clients: 1 or 2 are fastest, "
        "since requests that come together go out in one write; at most 64. With exclusive, how many all "
        "workers may have in equal parts (at most 1024): how many requests an instance works on at a time.",
    )
    bulk: Size = Field(
        default=256 << 10,
        ge=0,
        le=1 << 30,
        description="Bytes above which a frame goes by a connection for such alone, so that small ones do "
        "not wait behind it: beside frames of 1 MiB they took 47 ms instead of 0.3. 0: off.",
    )
    max_inflight: StrictInt = Field(
        default=1024,
        ge=1,
        description="Requests that one endpoint may have unanswered, in equal parts for the workers; more "
        "wait in the queue (Envoy: 1024).",
    )
    queue: StrictInt = Field(
        default=1024,
        ge=0,
        description="Requests of all clients that may wait for an endpoint with room, in equal parts for the "
        "workers (Envoy: 1024). Beyond, the newest of the client that has most there is answered "
        "`overloaded`. 0: none waits.",
    )
    queue_timeout: Duration = Field(
        default=1.0,
        description="Seconds that a request may wait there, then it is answered `overloaded`: as long as a "
        "connection may take to come up.",
    )
    retry_budget: StrictFloat = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Share of the requests in flight that may be retries (at least 3 may), so that retries "
        "cannot become the load that keeps a failing service down (Linkerd, Envoy: 0.2).",
    )
    hedge_budget: StrictFloat = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Share of the requests that may be sent to a second endpoint as well. 0.05 goes with "
        "p95, which by its meaning hedges that many (Dean and Barroso, The Tail at Scale).",
    )

    @field_validator("connections")
    @classmethod
    def _suits_sharing(cls, connections: int, info: ValidationInfo) -> int:
        if connections > 64 and info.data.get("exclusive") is False:
            raise ValueError("must be at most 64 where connections are shared: 1 or 2 are fastest")
        return connections


def _switch(tls: Any) -> Any:
    """`true` is the table with its defaults, `false` none."""
    if isinstance(tls, bool):
        return {} if tls else None
    if tls is not None and not isinstance(tls, dict | ClientTls):
        raise ValueError(f"must be true, false or a table, not {type_name(tls)}")
    return tls


class Service(Table):
    """A set of interchangeable instances."""

    name: Name = Field(description="What routes, logs and metrics call it.")
    version: str = Field(
        default="",
        max_length=64,
        pattern=r"^[A-Za-z0-9._+-]*$",
        description="Which version of a model it is: the label `version` of its invocations, so that the "
        "versions of a split are told apart as on the platform's page of a service.",
    )
    discovery: Discovery
    balance: Balance = Balance()
    connect: Connect = Connect()
    tls: Annotated[ClientTls | None, BeforeValidator(_switch, json_schema_input_type=bool | ClientTls)] = (
        Field(
            default=None,
            description="TLS to the instances: true, or a table where their certificates are not of the "
            "system's authorities, or have names.",
        )
    )
    health: Health = Health()
    rpc: Rpc = Rpc()
    alerts: ServiceAlerts = ServiceAlerts()
    send_proxy: Literal["v1", "v2"] | None = Field(
        default=None,
        description="Begin each connection to an instance with a PROXY header that names the client; with "
        "tls before the handshake, as HAProxy and nginx do.",
    )
    wait: Duration = Field(
        default=30.0,
        description="Seconds that a start waits for the first snapshot: a token and a few slow calls.",
    )
