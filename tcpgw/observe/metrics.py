"""Every metric that the gateway exposes, declared once: its name, what it counts, its labels.

Names and units are those of Prometheus (https://prometheus.io/docs/practices/naming): base units, `_total`
for what only grows. No label has a value that clients choose: what is not configured, discovered or of a
closed list does not become one. Series of an endpoint end with it.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True)
class Metric:
    """`name` is as it is queried: of a counter with `_total`. `bounds` of a histogram: in microseconds."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[int, ...] = ()


# Edges of what is counted, so that no bucket is an estimate: powers of two, 64 µs to 67 s for what an
# instance takes, 1 ms to over an hour for connections.
_ANSWERS = tuple(1 << power for power in range(6, 27))
_LIVES = tuple(1 << power for power in range(10, 33, 2))

ALL: list[Metric] = []
"""In the order in which they are exposed."""


def _declared(
    name: str, kind: Kind, help_: str, labels: tuple[str, ...] = (), bounds: tuple[int, ...] = ()
) -> Metric:
    metric = Metric(f"tcpgw_{name}", kind, help_, labels, bounds)
    ALL.append(metric)
    return metric


def _counter(name: str, help_: str, *labels: str) -> Metric:
    return _declared(f"{name}_total", "counter", help_, labels)


def _gauge(name: str, help_: str, *labels: str) -> Metric:
    return _declared(name, "gauge", help_, labels)


def _histogram(name: str, help_: str, bounds: tuple[int, ...], *labels: str) -> Metric:
    return _declared(name, "histogram", help_, labels, bounds)


BUILD_INFO = _gauge("build_info", "1, with the version that runs.", "version")
START_TIME = _gauge("start_time_seconds", "Unix time at which the gateway started.")

# ---- connections ----

ACCEPTED = _counter("connections_accepted", "Clients that were accepted.", "listener")
OPENED = _counter(
    "connections_opened",
    "Connections that came to a service, when they did; without a service those that ended before.",
    "listener",
    "service",
)
ACTIVE = _gauge(
    "connections_active",
    "Connections there are; without a service those that are being set up.",
    "listener",
    "service",
)
CLOSED = _counter("connections_closed", "Connections that ended, by why.", "listener", "service", "reason")
DURATION = _histogram(
    "connection_duration_seconds", "From accept to end, of connections that ended.", _LIVES,
    "listener", "service",
)  # fmt: skip
RECEIVED = _counter("connection_received_bytes", "Bytes that came from clients.", "listener", "service")
SENT = _counter("connection_sent_bytes", "Bytes for clients.", "listener", "service")
CONNECT = _histogram(
    "connect_duration_seconds", "What instances took to accept a connection, TLS included.", _ANSWERS,
    "service",
)  # fmt: skip
PAUSES = _counter(
    "accept_pauses", "Times that max_connections or limits.handshakes stopped accepting.", "listener"
)
ACCEPT_FAILURES = _counter(
    "accept_failures", "Times that accept failed for what this host lacks.", "listener"
)
DENIED = _counter(
    "access_denied", "Clients that were turned away: rules, credentials, limits.", "listener", "reason"
)
ROUTE_WEIGHT = _gauge(
    "route_weight_ratio", "Share of new clients that the configuration gives a service.",
    "listener", "service",
)  # fmt: skip

# ---- requests of rpc listeners ----

REQUESTS = _counter(
    "requests",
    "Requests that ended: ok, error (the instance's answer says so), or the gateway's code where it answered "
    "or, with fifo, nobody did. "
    "Methods that the configuration does not name are one, *.",
    "listener", "service", "method", "outcome",
)  # fmt: skip
IN_FLIGHT = _gauge("requests_in_flight", "Requests at instances.", "listener", "service", "method")
REQUEST_DURATION = _histogram(
    "request_duration_seconds", "From a request's reading to its answer, of those that instances answered.",
    _ANSWERS, "listener", "service", "method",
)  # fmt: skip
RETRIES = _counter("retries", "Connects and requests that were tried once more.", "service")
RETRIES_REFUSED = _counter("retries_refused", "Retries that the retry budget did not allow.", "service")
HEDGES = _counter("hedges", "Requests that were sent to a second endpoint.", "service")
QUEUE_WAITING = _gauge("queue_waiting", "Connections and requests that wait for an endpoint.", "service")

# ---- what the platform's own page of a service shows ----

INVOCATIONS = _counter(
    "invocations",
    "Requests that ended, and connections that ended where requests are not told apart (tcp listeners, "
    "opaque codecs), by the service's version.",
    "service", "version",
)  # fmt: skip
FAILED_INVOCATIONS = _counter(
    "failed_invocations",
    "Of these, those that were answered with an error or not at all, or whose instance could not be reached "
    "or broke off.",
    "service", "version",
)  # fmt: skip

# ---- endpoints ----

ENDPOINTS = _gauge("endpoints", "Endpoints of the snapshot, by the state they are in.", "service", "state")
ENDPOINT_STATE = _gauge(
    "endpoint_state", "1 for the state that an endpoint is in.", "service", "endpoint", "state"
)
ENDPOINT_WEIGHT = _gauge("endpoint_weight", "Weight in force.", "service", "endpoint")
ENDPOINT_IN_FLIGHT = _gauge(
    "endpoint_in_flight", "Connections or requests that it has.", "service", "endpoint"
)
ENDPOINT_PICKS = _counter(
    "endpoint_picks", "Connections or requests that were sent to it.", "service", "endpoint"
)
ENDPOINT_CONNECTS = _counter("endpoint_connects", "Connections made to it.", "service", "endpoint")
ENDPOINT_FAILURES = _counter("endpoint_failures", "Its failures.", "service", "endpoint", "kind")
IMBALANCE = _gauge(
    "hash_imbalance_ratio",
    "What the endpoint that was picked most got in the last minute, against its weight's share among those "
    "in use.",
    "service",
)
EJECTIONS = _counter("ejections", "Endpoints that were put out for their failures.", "service")
SPARED = _counter("ejections_spared", "Ejections that did not happen, as too many were out.", "service")
PANICS = _counter("panics", "Times that too few endpoints were usable, so all were used.", "service")
PANIC = _gauge("panic", "1 while that is so.", "service")

# ---- discovery ----

SNAPSHOT_VERSION = _gauge("snapshot_version", "Version of the snapshot in force.", "service")
SNAPSHOT_TAKEN = _gauge(
    "snapshot_taken_timestamp_seconds",
    "Unix time of the answer with which the snapshot in force changed last.",
    "service",
)
DISCOVERY_CALLS = _counter("discovery_calls", "Times that a service's endpoints were asked for.", "service")
DISCOVERY_ERRORS = _counter("discovery_errors", "Of these, those that failed.", "service")
DISCOVERY_SUCCESS = _gauge(
    "discovery_last_success_timestamp_seconds",
    "Unix time of the last answer of a source that is asked again and again; before the first one, at "
    "which the stored snapshot was taken.",
    "service",
)
DISCOVERY_REFRESH = _gauge(
    "discovery_refresh_seconds",
    "Time between two questions to such a source, by the configuration.",
    "service",
)
BUDGET = _gauge("cloud_budget_calls", "Calls that the cloud allows in a minute.", "cloud")
BUDGET_LEFT = _gauge("cloud_budget_left_calls", "Calls that may be made now.", "cloud")

# ---- the gateway itself ----

OVERLOADED = _gauge("overloaded", "Workers that take nothing new at present.")
OVERLOADS = _counter("overloads", "Times that a worker was overloaded.")
SHED = _counter("shed", "Connections and requests that an overloaded worker let go.")
LAG = _gauge("event_loop_lag_seconds", "Greatest lateness of an event loop in the last second.", "process")
WORKERS = _gauge("workers", "Worker processes.", "state")
WORKER_DEATHS = _counter("worker_restarts", "Workers that died and were replaced.")
CPU = _counter("process_cpu_seconds", "CPU time of a process.", "process")
MEMORY = _gauge("process_resident_memory_bytes", "Memory of a process.", "process")
FILES = _gauge("process_open_fds", "Open file descriptors of a process.", "process")
RELOADS = _counter("config_reloads", "Times that the configuration was read again.", "result")
RELOADED = _gauge(
    "config_last_reload_timestamp_seconds", "Unix time at which the configuration in force was taken."
)
CERTIFICATE = _gauge(
    "certificate_expiry_timestamp_seconds", "Unix time at which it expires.", "listener", "kind"
)
ALERTS = _gauge("alerts", "Alerts that fire.", "alert", "severity")
NOTIFICATIONS = _counter(
    "alert_notifications",
    "Messages to who is told of alerts: sent, or dropped; failed counts tries.",
    "receiver", "result",
)  # fmt: skip
