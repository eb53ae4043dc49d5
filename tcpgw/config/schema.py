"""What a configuration may say. Frozen; unknown keys refused; each default says its unit and its why.

Descriptions go to the JSON Schema (`tcpgw schema`), so editors show them beside the key. A `Config` that
exists is consistent: the checks between tables (checks.py) are part of its validation. The tables
stand in modules of their own (access, admin, alerts, codec, discovery, health, listener, log, receivers,
service, tls); their users take all of them from here.
"""

import os
from pathlib import Path
from typing import Self

from pydantic import Field, StrictInt, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from tcpgw.config import checks
from tcpgw.config.access import Access, Jwt, Limits, Permissions, Quota, SourceQuota
from tcpgw.config.admin import Admin, AnyAdmin
from tcpgw.config.alerts import (
    Alerts,
    CallBudget,
    CertificateExpiry,
    CrlExpiry,
    Denials,
    DiscoveryAge,
    ErrorRate,
    Imbalance,
    InstancesBelow,
    NoUsableInstance,
    Overloaded,
    P99Latency,
    Panic,
    ServiceAlerts,
    UsableShare,
    WorkerRestarts,
)
from tcpgw.config.codec import Codec, Frame
from tcpgw.config.discovery import (
    PRIVATE_NETWORKS,
    AgencyAuth,
    AkSkAuth,
    Auth,
    Discovery,
    DnsDiscovery,
    FileDiscovery,
    ModelArtsCloud,
    ModelArtsDiscovery,
    PasswordAuth,
    StaticDiscovery,
    TokenAuth,
)
from tcpgw.config.files import FilePath
from tcpgw.config.health import (
    Check,
    Health,
    HttpCheck,
    Passive,
    RpcCheck,
    SendExpectCheck,
    TcpCheck,
    TlsCheck,
)
from tcpgw.config.listener import Listener, Method, Route, Rule
from tcpgw.config.log import ConnectionLog, Log, RequestLog
from tcpgw.config.receivers import Alertmanager, Webhook
from tcpgw.config.service import Balance, Connect, Rpc, Service
from tcpgw.config.table import Table
from tcpgw.config.tls import Certificate, ClientTls, ServerTls
from tcpgw.config.values import Duration, Name, Size, Threshold

__all__ = [
    "LEAST_MEMORY",
    "LEAST_RPC_MEMORY",
    "PRIVATE_NETWORKS",
    "Access",
    "Admin",
    "AgencyAuth",
    "AkSkAuth",
    "Alertmanager",
    "Alerts",
    "Auth",
    "Balance",
    "CallBudget",
    "Certificate",
    "CertificateExpiry",
    "Check",
    "ClientTls",
    "Codec",
    "Config",
    "Connect",
    "ConnectionLog",
    "CrlExpiry",
    "Denials",
    "Discovery",
    "DiscoveryAge",
    "DnsDiscovery",
    "ErrorRate",
    "FileDiscovery",
    "Frame",
    "Gateway",
    "Health",
    "HttpCheck",
    "Imbalance",
    "InstancesBelow",
    "Jwt",
    "Limits",
    "Listener",
    "Log",
    "Method",
    "ModelArtsCloud",
    "ModelArtsDiscovery",
    "NoUsableInstance",
    "Overload",
    "Overloaded",
    "P99Latency",
    "Panic",
    "Passive",
    "PasswordAuth",
    "Permissions",
    "Quota",
    "RequestLog",
    "Route",
    "Rpc",
    "RpcCheck",
    "Rule",
    "SendExpectCheck",
    "ServerTls",
    "Service",
    "ServiceAlerts",
    "SourceQuota",
    "StaticDiscovery",
    "TcpCheck",
    "TlsCheck",
    "TokenAuth",
    "UsableShare",
    "Webhook",
    "WorkerRestarts",
]


LEAST_RPC_MEMORY = 16 << 20  # bytes: for a request and its answer, 8 MiB each
# Bytes: a worker has 70 MiB resident before its first client, some 15 more where it verifies tokens, and
# would shed everything with less.
LEAST_MEMORY = 128 << 20


def _state_dir_from_systemd() -> Path | None:
    # systemd.exec(5), StateDirectory=: more than one folder would be joined by colons.
    folder = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    return Path(folder) if folder else None


class Overload(Table):
    """When new work is turned away, so that what was begun can be finished in time."""

    lag: Threshold = Field(
        default=0.5,
        description="Seconds by which a worker's event loop is late, from which on it takes no new work; or "
        "off. Half a second is felt in every answer, and beyond the pauses of a healthy loop.",
    )
    memory: Size | None = Field(
        default=None,
        ge=LEAST_MEMORY,
        le=1 << 50,
        description="Resident bytes of all workers together, in equal parts for them but no less than "
        "128MiB each, from which on no new work is taken. Without it no limit: only the operator knows what "
        "else runs there.",
    )


class Gateway(Table):
    """Settings of the whole gateway."""

    workers: StrictInt = Field(
        default=0,
        ge=0,
        le=1024,
        description="Processes that accept and relay. 0: one per CPU that the gateway may use; more than "
        "that would only take turns.",
    )
    unsupervised: Duration = Field(
        default=60.0,
        description="Seconds that workers whose supervisor died go on accepting, with the instances they "
        "know, before they drain. One that systemd restarts is back within seconds and accepts beside them; "
        "who runs it without systemd has time to notice.",
    )
    state_dir: FilePath | None = Field(
        default_factory=_state_dir_from_systemd,
        description="Folder of the last good snapshots, for a start while the cloud's API is down, and of "
        "what operators said of endpoints (tcpgw drain). Without it systemd's $STATE_DIRECTORY, and without "
        "that nothing is kept.",
    )
    drain: Duration = Field(
        default=30.0,
        description="Seconds over which SIGTERM spreads the ends of connections, each at a quiet moment, so "
        "that their clients do not all connect elsewhere at once (HAProxy, Pingora: 30).",
    )
    hard_stop: Duration = Field(
        default=60.0,
        description="Seconds after SIGTERM at which connections that are left are reset. At least drain; "
        "where only that is set, and longer, as long as it.",
    )
    rpc_memory: Size = Field(
        default=256 << 20,
        ge=LEAST_RPC_MEMORY,
        description="Bytes of rpc frames that are held at a time, those of all clients together, in equal "
        "parts for the workers, but room for the longest request and answer in each. At the "
        "bound, who sends more is read later, and who has most unread is cut off. A quarter is kept for "
        "answers; the default holds 12 of the longest requests.",
    )
    admin: AnyAdmin = Field(
        default=Admin(),
        description="The server of the status page, of metrics and probes: its address, off, or a table with "
        "a token. On loopback, so that nobody else reads what is not guarded.",
    )
    log: Log = Log()
    overload: Overload = Overload()

    @property
    def cut_after(self) -> float:
        """Seconds from the beginning of a drain until what is left is reset."""
        return max(self.drain, self.hard_stop)


class Config(Table):
    """A configuration of tcpgw."""

    gateway: Gateway = Field(default_factory=Gateway)
    alerts: Alerts = Alerts()
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
