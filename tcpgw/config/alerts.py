"""When the gateway tells somebody that something is wrong, and whom.

A rule is a table or `off`. What each one reads and says stands in alerts/rules.py.
"""

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, Field, StrictFloat, StrictInt, ValidationInfo, field_validator

from tcpgw.config.receivers import Alertmanager, LabelName, Webhook
from tcpgw.config.table import ByForm, IsTable, Off, Table
from tcpgw.config.values import Duration, Name, Text, Wait

Severity = Literal["critical", "warning"]

# ---- the forms of rules ----


def _for(seconds: float) -> Any:
    return Field(
        default=seconds, alias="for", description="Seconds that it must hold before the alert fires."
    )


def _severity(severity: Severity) -> Any:
    return Field(default=severity, description="A label, by which receivers choose whom to wake.")


class Condition(Table):
    """Something that holds or does not, and for how long it must before somebody is told."""

    # The file says `for`, as Prometheus does; Python keeps that word for itself.
    model_config = ConfigDict(serialize_by_alias=True)

    BELOW: ClassVar[bool] = False
    """Whether it is about a reading that is too low. Else too high."""

    wait: Wait = _for(0.0)
    severity: Severity = _severity("warning")


class Limit(Condition):
    """A reading beyond a threshold, up to a second one: what swings about the first is one alert."""

    RELIEF: ClassVar[float] = 0.8
    """Where `clear` is left out, it is this times the threshold."""

    threshold: float
    clear: float | None = Field(
        default=None,
        description="Where the alert is over: on the good side of the threshold, or at it.",
    )

    @property
    def clears_at(self) -> float:
        return self.threshold * self.RELIEF if self.clear is None else self.clear

    @field_validator("clear")
    @classmethod
    def _is_on_the_good_side(cls, clear: float | None, info: ValidationInfo) -> float | None:
        threshold = info.data.get("threshold")
        if clear is None or threshold is None or clear == threshold:
            return clear
        if (clear > threshold) is not cls.BELOW:
            side = "at least" if cls.BELOW else "at most"
            raise ValueError(f"must be {side} threshold, {threshold:g}: there the alert is over")
        return clear


class ShareLimit(Limit):
    """Of a part of a whole, from 0 to 1."""

    threshold: StrictFloat = Field(ge=0, le=1)
    clear: StrictFloat | None = Field(
        default=None, ge=0, le=1, description=Limit.model_fields["clear"].description
    )

    @property
    def clears_at(self) -> float:
        return min(1.0, super().clears_at)


class SecondsLimit(Limit):
    """Of a time."""

    threshold: Duration
    clear: Duration | None = Field(default=None, description=Limit.model_fields["clear"].description)


class NumberLimit(Limit):
    """Of a number of things."""

    threshold: StrictFloat = Field(ge=0, le=1_000_000_000)
    clear: StrictFloat | None = Field(
        default=None, ge=0, le=1_000_000_000, description=Limit.model_fields["clear"].description
    )


# ---- rules of services ----


class NoUsableInstance(Condition):
    """No instance of a service may be given anything."""

    BELOW = True

    wait: Wait = _for(10.0)
    severity: Severity = _severity("critical")


class InstancesBelow(NumberLimit):
    """Fewer instances of a service are usable than it needs."""

    BELOW = True
    RELIEF = 1.0

    threshold: StrictFloat = Field(
        ge=1, le=1_000_000_000, description="How many it needs: only the operator knows."
    )
    wait: Wait = _for(60.0)
    severity: Severity = _severity("critical")


class UsableShare(ShareLimit):
    """A part of a service's instances is out."""

    BELOW = True
    RELIEF = 1.2

    threshold: StrictFloat = Field(
        default=0.7,
        ge=0,
        le=1,
        description="Usable ones by all that have a weight. Above health.panic, to be told before it.",
    )
    wait: Wait = _for(60.0)


class ErrorRate(ShareLimit):
    """A part of a service's requests, or of its connections, fails."""

    RELIEF = 0.5

    threshold: StrictFloat = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Failed by all, in the last minute: one in twenty is felt by every client.",
    )
    wait: Wait = _for(60.0)
    severity: Severity = _severity("critical")


class P99Latency(SecondsLimit):
    """One of a hundred answers takes longer than a service may."""

    threshold: Duration = Field(
        description="Seconds for a request, or for connecting where there are none, that one of a hundred "
        "exceeded in the last minute: only the operator knows what is long."
    )
    wait: Wait = _for(120.0)


class DiscoveryAge(SecondsLimit):
    """It is long since a service's instances were last confirmed."""

    threshold: Duration = Field(
        default=300.0,
        description="Seconds since the source last answered: instances come and go in minutes. Never less "
        "than three times the service's refresh.",
    )


class Imbalance(NumberLimit):
    """An instance gets more than its part."""

    threshold: StrictFloat = Field(
        default=2.0,
        ge=1,
        le=1_000_000_000,
        description="How often the most used instance was chosen in the last minute, by what its weight "
        "asks for: from twice on, the others stand idle while it is full.",
    )
    clear: StrictFloat | None = Field(
        default=None, ge=1, le=1_000_000_000, description=Limit.model_fields["clear"].description
    )
    wait: Wait = _for(600.0)

    @property
    def clears_at(self) -> float:
        # 1 is even, and nothing is below: relief is a part of what is beyond.
        return 1.0 + self.RELIEF * (self.threshold - 1.0) if self.clear is None else self.clear


class Panic(Condition):
    """So few instances are usable that all are used."""

    severity: Severity = _severity("critical")


# ---- rules of the gateway ----


class CallBudget(ShareLimit):
    """A cloud's calls of a minute are nearly spent."""

    BELOW = True
    RELIEF = 2.0

    threshold: StrictFloat = Field(
        default=0.1, ge=0, le=1, description="Calls that are left, by calls_per_minute."
    )
    wait: Wait = _for(120.0)


class Denials(NumberLimit):
    """A burst of clients that are not let in."""

    RELIEF = 0.5

    threshold: StrictFloat = Field(
        default=10.0,
        ge=0,
        le=1_000_000_000,
        description="Per second and listener, over the last minute: more than people's mistakes make.",
    )
    wait: Wait = _for(30.0)


class WorkerRestarts(NumberLimit):
    """Workers die again and again."""

    RELIEF = 0.5

    threshold: StrictFloat = Field(
        default=2.0,
        ge=0,
        le=1_000_000_000,
        description="Deaths in the last ten minutes: two may be bad luck.",
    )


class CertificateExpiry(SecondsLimit):
    """A listener's certificate ends soon."""

    BELOW = True
    RELIEF = 1.0

    threshold: Duration = Field(
        default=14 * 86400.0,
        description="Seconds that are left: 14 days, half of what is left when certificates of 90 days are "
        "usually renewed.",
    )


class CrlExpiry(SecondsLimit):
    """A listener's list of revoked certificates ends soon."""

    BELOW = True
    RELIEF = 1.0

    threshold: Duration = Field(
        default=86400.0, description="Seconds that are left: a day, as some are made anew each week."
    )
    severity: Severity = _severity("critical")  # without a valid one nobody with a certificate comes in


class Overloaded(Condition):
    """Workers take no new work."""

    wait: Wait = _for(10.0)
    severity: Severity = _severity("critical")


# ---- tables ----

T = TypeVar("T")
OrOff = Annotated[Off | Annotated[T, IsTable], ByForm]

_OWN = "For this service in place of [alerts]'s, whole: {}."


class ServiceAlerts(Table):
    """Rules that are others for one service. What is left out is as in [alerts]."""

    no_usable_instance: OrOff[NoUsableInstance] | None = Field(
        default=None, description=_OWN.format("no instance is usable")
    )
    instances_below: OrOff[InstancesBelow] | None = Field(
        default=None, description=_OWN.format("fewer instances are usable than so many")
    )
    usable_share: OrOff[UsableShare] | None = Field(
        default=None, description=_OWN.format("a part of the instances is out")
    )
    error_rate: OrOff[ErrorRate] | None = Field(default=None, description=_OWN.format("a part fails"))
    p99_latency: OrOff[P99Latency] | None = Field(
        default=None, description=_OWN.format("one of a hundred takes long")
    )
    discovery_age: OrOff[DiscoveryAge] | None = Field(
        default=None, description=_OWN.format("the source has not answered for long")
    )
    imbalance: OrOff[Imbalance] | None = Field(
        default=None, description=_OWN.format("an instance gets more than its part")
    )
    panic: OrOff[Panic] | None = Field(default=None, description=_OWN.format("all instances are used"))


class Alerts(Table):
    """What is told of, and to whom. All of it stands in the log as well."""

    webhook: dict[Name, Webhook] = Field(
        default={}, description="[alerts.webhook.NAME]: programs that take alerts as JSON."
    )
    alertmanager: Alertmanager | None = Field(
        default=None, description="[alerts.alertmanager]: Prometheus' Alertmanager, one or several."
    )
    labels: dict[LabelName, Text] = Field(
        default={},
        description="Labels that each alert gets on its way. Without `instance` among them that is the "
        "host's name, since several gateways have alerts of the same names.",
    )
    group_wait: Wait = Field(
        default=10.0,
        description="For webhooks: seconds from the first alert of a name to the notification of all that "
        "fire by then.",
    )
    group_interval: Duration = Field(
        default=60.0, description="For webhooks: seconds at least between two notifications of a name."
    )
    repeat: Duration = Field(
        default=4 * 3600.0,
        description="For webhooks: seconds after which they are told again of what still fires "
        "(Alertmanager: 4 hours).",
    )
    keep_firing_for: Wait = Field(
        default=30.0,
        description="Seconds that a condition must be over before its alert is: what comes and goes is one "
        "alert.",
    )
    min_volume: StrictInt = Field(
        default=20,
        ge=1,
        le=1_000_000_000,
        description="For error_rate: requests or connections of the last minute below which nothing is "
        "concluded.",
    )
    no_usable_instance: OrOff[NoUsableInstance] = Field(
        default=NoUsableInstance(), description="No instance of a service is usable; or off."
    )
    instances_below: OrOff[InstancesBelow] = Field(
        default="off", description="Fewer instances of a service are usable than `threshold`; or off."
    )
    usable_share: OrOff[UsableShare] = Field(
        default=UsableShare(), description="A part of a service's instances is out; or off."
    )
    error_rate: OrOff[ErrorRate] = Field(
        default=ErrorRate(), description="A part of a service's requests or connections fails; or off."
    )
    p99_latency: OrOff[P99Latency] = Field(
        default="off", description="One of a hundred answers of a service takes long; or off."
    )
    discovery_age: OrOff[DiscoveryAge] = Field(
        default=DiscoveryAge(), description="A service's source has not answered for long; or off."
    )
    imbalance: OrOff[Imbalance] = Field(
        default=Imbalance(), description="An instance of a service gets more than its part; or off."
    )
    panic: OrOff[Panic] = Field(
        default=Panic(), description="All instances of a service are used, the sick too; or off."
    )
    call_budget: OrOff[CallBudget] = Field(
        default=CallBudget(), description="A cloud's calls of a minute are nearly spent; or off."
    )
    denials: OrOff[Denials] = Field(
        default=Denials(), description="A burst of clients that are not let in; or off."
    )
    worker_restarts: OrOff[WorkerRestarts] = Field(
        default=WorkerRestarts(), description="Workers die again and again; or off."
    )
    certificate_expiry: OrOff[CertificateExpiry] = Field(
        default=CertificateExpiry(), description="A listener's certificate ends soon; or off."
    )
    crl_expiry: OrOff[CrlExpiry] = Field(
        default=CrlExpiry(), description="A listener's list of revoked certificates ends soon; or off."
    )
    overloaded: OrOff[Overloaded] = Field(
        default=Overloaded(), description="Workers take no new work; or off."
    )

    def of(self, key: str, own: ServiceAlerts | None = None) -> Condition | None:
        """The rule of that key, or that of a service with `own` rules. None: it is off."""
        rule = (own and getattr(own, key, None)) or getattr(self, key)
        return rule if isinstance(rule, Condition) else None
