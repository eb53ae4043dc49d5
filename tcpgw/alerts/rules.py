"""The rules that the gateway has: what each reads, what it says, and what says the same in PromQL. Pure.

Thresholds are the configuration's (config/alerts.py); here is all the rest of a rule, once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from string import Formatter
from types import MappingProxyType

from tcpgw.config.alerts import Alerts, Condition, DiscoveryAge, Limit, ServiceAlerts, Severity

Labels = tuple[tuple[str, str], ...]
"""Pairs of a name and a value, such as `(("service", "ranker"),)`."""

Readings = Mapping[str, Mapping[Labels, float]]
"""By name of a reading and its labels. Absent is what nothing can be said of."""

# Where sources are asked less often, this many answers that stay out are what is told of.
_MISSED = 3


class Unit(Enum):
    """Of a reading: how a value is shown, with its template in Prometheus."""

    SHARE = "humanizePercentage"
    SECONDS = "humanizeDuration"
    NUMBER = "humanize"

    def shown(self, value: float) -> str:
        if self is Unit.SHARE:
            return f"{100 * value:.3g} %"
        return _time(value) if self is Unit.SECONDS else f"{value:.4g}"


# From how many seconds on a time is told in a unit, and that unit's seconds: 90 s says more than 2 min.
_TIMES = ((172_800, 86_400, "days"), (7_200, 3_600, "h"), (120, 60, "min"), (1, 1, "s"))


def _time(seconds: float) -> str:
    for least, of, name in _TIMES:
        if abs(seconds) >= least:
            return f"{seconds / of:.3g} {name}"
    return f"{1000 * seconds:.3g} ms"


@dataclass(frozen=True)
class Kind:
    """What is settled of a rule. `key` is that of `[alerts]`, `alert` the name that everybody reads.

    `only` are labels that a reading must have to be its. `fixed` is the threshold of one that has none in the
    configuration. `summary` has the labels in braces, and {value} and {threshold}. `expr` is what Prometheus
    compares with the threshold, of which `guard` is a further condition.
    """

    key: str
    alert: str
    reading: str
    summary: str
    hint: str
    expr: str
    unit: Unit = Unit.NUMBER
    only: Labels = ()
    fixed: float = 0.0
    guard: str = ""

    @property
    def labels(self) -> frozenset[str]:
        """Names of the labels that its alerts have."""
        named = {name for _, name, _, _ in Formatter().parse(self.summary) if name}
        return frozenset(named - {"value", "threshold"}) | {name for name, _ in self.only}


# A service's endpoints that may be given something, as the reading of that name counts them.
_USABLE = 'sum without (state) (tcpgw_endpoints{state=~"unknown|healthy|trial"})'
_CONFIRMED = "time() - tcpgw_discovery_last_success_timestamp_seconds"
_INVOCATIONS = "sum without (version) ({}(tcpgw{}_invocations_total[1m]))"

KINDS = (
    Kind(
        "no_usable_instance",
        "TcpgwNoUsableInstance",
        "usable_endpoints",
        "No instance of {service} is usable",
        "Its clients are turned away, or tried at instances that do not work. `tcpgw status` has the state "
        "of each, the log says why (endpoint_state). Where the instances work, the check is wrong: see "
        "health.active.",
        _USABLE,
        fixed=1.0,
    ),
    Kind(
        "instances_below",
        "TcpgwInstancesBelow",
        "usable_endpoints",
        "{service} has {value} usable instances, fewer than {threshold}",
        "The rest has more load than planned. `tcpgw status` has the state of each; where some are missing "
        "there altogether, the service was scaled down or does not start them.",
        _USABLE,
    ),
    Kind(
        "usable_share",
        "TcpgwUsableShare",
        "usable_share",
        "Only {value} of the instances of {service} are usable",
        "`tcpgw status` has the state of each, the log says why (endpoint_state). Below health.panic all are "
        "used again, the sick too.",
        f'{_USABLE} / sum without (state) (tcpgw_endpoints{{state!="draining"}})',
        Unit.SHARE,
    ),
    Kind(
        "error_rate",
        "TcpgwErrorRate",
        "error_ratio",
        "{value} of what {service} is asked fails",
        "`tcpgw status` has the reasons, and how often each endpoint failed: one of many is a sick instance, "
        "all of them a new version or what they depend on.",
        f"{_INVOCATIONS.format('rate', '_failed')} / {_INVOCATIONS.format('rate', '')}",
        Unit.SHARE,
        guard=f"{_INVOCATIONS.format('increase', '')} >= {{min_volume}}",
    ),
    Kind(
        "p99_latency",
        "TcpgwP99Latency",
        "p99_latency",
        "One of a hundred requests to {service} (connects to its instances, where requests are not seen) "
        "takes {value} or more",
        "Where requests wait in the gateway's queue, more instances help; where they do not, the instances "
        "are slow: `tcpgw connections --slowest` names the endpoints.",
        "(histogram_quantile(0.99, sum without (listener, method) "
        "(rate(tcpgw_request_duration_seconds_bucket[1m]))) or "
        "histogram_quantile(0.99, rate(tcpgw_connect_duration_seconds_bucket[1m])))",
        Unit.SECONDS,
    ),
    Kind(
        "discovery_age",
        "TcpgwDiscoveryAge",
        "discovery_age",
        "The instances of {service} were last confirmed {value} ago",
        "The last good snapshot is used: instances that came since get nothing, those that are gone are "
        "found by checks alone. The log has the source's answer (discovery_failed).",
        _CONFIRMED,
        Unit.SECONDS,
        guard=f"{_CONFIRMED} > {_MISSED} * tcpgw_discovery_refresh_seconds",
    ),
    Kind(
        "imbalance",
        "TcpgwImbalance",
        "imbalance",
        "An instance of {service} gets {value} times its part",
        "One client, or one key, has most of the traffic. Another balance.key spreads it, and a lower "
        "balance.bounded_load bounds it.",
        "tcpgw_hash_imbalance_ratio",
    ),
    Kind(
        "panic",
        "TcpgwPanic",
        "panic",
        "So few instances of {service} are usable that all are used, the sick too",
        "A part of its clients fails. `tcpgw status` has the state of each, the log says why "
        "(endpoint_state). Where they work, the check is wrong: see health.active.",
        "tcpgw_panic",
    ),
    Kind(
        "call_budget",
        "TcpgwCallBudget",
        "budget_left_ratio",
        "{value} of the calls of a minute are left to cloud {cloud}",
        "Services are asked for less often than refresh says. A longer refresh, or some services on an IAM "
        "user of their own, leave room.",
        "tcpgw_cloud_budget_left_calls / tcpgw_cloud_budget_calls",
        Unit.SHARE,
    ),
    Kind(
        "denials",
        "TcpgwDenials",
        "denials_rate",
        "{value} clients a second are not let in at listener {listener}",
        "The closing lines of the log have their addresses and the reason: a key or token that has expired, "
        "a network that is missing in access.allow, or somebody who tries keys.",
        "sum without (reason) (rate(tcpgw_access_denied_total[1m]))",
    ),
    Kind(
        "worker_restarts",
        "TcpgwWorkerRestarts",
        "worker_deaths",
        "{value} workers died in the last ten minutes",
        "Their connections were lost. The log says how each ended (worker_died): by the kernel for want of "
        "memory, or by a bug, with its traceback.",
        "increase(tcpgw_worker_restarts_total[10m])",
    ),
    Kind(
        "certificate_expiry",
        "TcpgwCertificateExpiry",
        "certificate_left",
        "A certificate of listener {listener} ends in {value}",
        "Put a new one into the files that tls.certificates names: they are read again when they change.",
        'tcpgw_certificate_expiry_timestamp_seconds{kind="certificate"} - time()',
        Unit.SECONDS,
        only=(("kind", "certificate"),),
    ),
    Kind(
        "crl_expiry",
        "TcpgwCrlExpiry",
        "certificate_left",
        "The revocation list of listener {listener} ends in {value}",
        "Afterwards no client that shows a certificate is let in. Put a new one into the file that "
        "tls.client_crl names: it is read again when it changes.",
        'tcpgw_certificate_expiry_timestamp_seconds{kind="crl"} - time()',
        Unit.SECONDS,
        only=(("kind", "crl"),),
    ),
    Kind(
        "overloaded",
        "TcpgwOverloaded",
        "overloaded",
        "Workers take no new work",
        "New clients are turned away so that what was begun is finished. The log says what is short "
        "(overloaded): more workers or a larger machine, a higher gateway.overload.memory, or fewer clients.",
        "tcpgw_overloaded",
    ),
)
"""Of services first, then the gateway's own."""

BY_ALERT = MappingProxyType({kind.alert: kind for kind in KINDS})


@dataclass(frozen=True)
class Terms:
    """When an alert fires, and when it is over. Times in seconds."""

    threshold: float
    clear: float
    below: bool
    wait: float
    severity: Severity

    def breached(self, value: float) -> bool:
        """Whether it is on the bad side of the threshold."""
        return value < self.threshold if self.below else value > self.threshold

    def cleared(self, value: float) -> bool:
        """Whether it is so far on the good side that the alert is over."""
        return value >= self.clear if self.below else value <= self.clear


@dataclass(frozen=True)
class Rule:
    """A kind with its terms, and those of services that have their own. None: it is off."""

    kind: Kind
    terms: Terms | None
    own: Mapping[str, Terms | None] = field(default_factory=dict)

    def terms_of(self, labels: Labels) -> Terms | None:
        """Those for a reading, or None where the rule does not concern it."""
        if not set(self.kind.only) <= set(labels):
            return None
        return self.own.get(dict(labels).get("service", ""), self.terms)


def rules(
    alerts: Alerts,
    own: Mapping[str, ServiceAlerts] = MappingProxyType({}),
    refresh: Mapping[str, float] = MappingProxyType({}),
) -> tuple[Rule, ...]:
    """All rules, with those that services have of their `own`.

    `refresh` has seconds between two questions to a service's source: who is asked once an hour is not late
    after five minutes.
    """
    return tuple(
        Rule(
            kind,
            _terms(kind, alerts.of(kind.key)),
            {
                service: _terms(kind, alerts.of(kind.key, own.get(service)), refresh.get(service, 0.0))
                for service in own.keys() | refresh.keys()
                if kind.key in ServiceAlerts.model_fields
            },
        )
        for kind in KINDS
    )


def _terms(kind: Kind, condition: Condition | None, refresh: float = 0.0) -> Terms | None:
    if condition is None:
        return None
    threshold = clear = kind.fixed
    if isinstance(condition, Limit):
        threshold, clear = condition.threshold, condition.clears_at
    least = _MISSED * refresh
    if isinstance(condition, DiscoveryAge) and threshold < least:
        threshold, clear = least, least * condition.RELIEF
    return Terms(threshold, clear, condition.BELOW, condition.wait, condition.severity)


def summary(kind: Kind, labels: Labels, value: float, threshold: float) -> str:
    """What happened, in one sentence."""
    shown = {"value": kind.unit.shown(value), "threshold": kind.unit.shown(threshold)}
    return kind.summary.format_map(_Known({**dict(labels), **shown}))


class _Known(dict[str, str]):
    """Labels that a reading should have had stay in braces: an alert without one is better than none."""

    def __missing__(self, key: str) -> str:
        return f"{{{key}}}"
