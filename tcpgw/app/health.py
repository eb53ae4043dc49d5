"""The health of all services: checks and what workers tell, judged in one place, and told to who relays."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import structlog

from tcpgw.app.background import Background
from tcpgw.app.material import Contents
from tcpgw.app.routes import Routes
from tcpgw.app.secure import check_secure
from tcpgw.balancing.standing import Share
from tcpgw.config import schema
from tcpgw.endpoints import Endpoint, Snapshot
from tcpgw.health import probes, schedule
from tcpgw.health.active import Checks
from tcpgw.health.exchange import Secure
from tcpgw.health.panel import Panel
from tcpgw.health.verdict import SICK, Outcome, State, Terms
from tcpgw.observe.totals import Figures

log = structlog.get_logger()

Weigh = Callable[[str, Mapping[Endpoint, Share], frozenset[Endpoint]], None]
"""Told a service's shares (see `Pool.weigh`), and the endpoints of which also successes are to be told."""

Told = tuple[str, int, int, int, int, str]
"""An endpoint's host and port, and what came of it, as `verdict.Outcome`."""
Happened = Mapping[str, Iterable[Told]]
"""By service."""

# What is told at once in so many seconds of what checks and workers found; the rest is told together at their
# end, as each telling looks at all endpoints.
_BURST, _PAUSE = 8, 0.05

_PANIC = (
    "fewer are usable than health.panic says, so all are used, the sick too: endpoint_state said what is "
    "wrong with each. Where they work all the same, the check is wrong: see health.active"
)


class Health:
    """Judges the services of one gateway. Used in one running event loop."""

    def __init__(
        self, weigh: Weigh, background: Background, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._weigh = weigh
        self._background = background
        self._clock = clock
        self._judges: dict[str, _Judge] = {}
        self._weights: dict[str, Mapping[Endpoint, int]] = {}  # also of services that are to come

    def follow(self, config: schema.Config, contents: Contents) -> None:
        """Judge the services of this configuration, and no others any more. What is known of them stays."""
        # Instances whose listeners speak without lengths are asked without.
        bare = {
            name
            for listener in config.listener
            if listener.mode == "rpc" and listener.codec.name == "msgpack-rpc-stream"
            for name in Routes(listener).reached
        }
        named = {service.name for service in config.service}
        for name in self._judges.keys() - named:
            self._judges.pop(name).close()
        self._weights = {name: weights for name, weights in self._weights.items() if name in named}
        for index, service in enumerate(config.service):
            judge = self._judges.get(service.name)
            if judge is None:
                tell = partial(self._weigh, service.name)
                judge = self._judges[service.name] = _Judge(service.name, tell, self._background, self._clock)
                if service.name in self._weights:  # else the first snapshot is still to come
                    judge.retain(self._weights[service.name])
            judge.change(service, f"service[{index}]", contents, framed=service.name not in bare)

    def publish(self, snapshot: Snapshot) -> None:
        """Take a service's snapshot."""
        weights = self._weights[snapshot.service] = dict(snapshot.members)
        judge = self._judges.get(snapshot.service)
        if judge is not None:
            judge.retain(weights)

    def happened(self, told: Happened) -> None:
        """Take what one worker tells of its work."""
        for service, outcomes in told.items():
            judge = self._judges.get(service)
            if judge is not None:
                judge.happened(outcomes)

    def close(self) -> None:
        """Judge no more. Idempotent."""
        for judge in self._judges.values():
            judge.close()

    def status(self) -> dict[str, Figures]:
        """By service: `states` by endpoint, and what it came to since the start."""
        return {name: judge.status() for name, judge in self._judges.items()}


class _Judge:
    """Of one service: its panel, its checks, and the timer for what time alone changes."""

    def __init__(
        self,
        service: str,
        tell: Callable[[Mapping[Endpoint, Share], frozenset[Endpoint]], None],
        background: Background,
        clock: Callable[[], float],
    ) -> None:
        self._service = service
        self._tell = tell
        self._background = background
        self._clock = clock
        self._terms = Terms()
        self._panel = Panel(self._terms)
        self._shares: Mapping[Endpoint, Share] = {}
        self._waited_for: frozenset[Endpoint] = frozenset()
        self._checks: Checks | None = None
        self._checking: asyncio.Task[None] | None = None
        self._check: object = None
        self._weights: Mapping[Endpoint, int] = {}
        self._left: Mapping[Endpoint, Share] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._failed: dict[Endpoint, float] = {}  # when it last did
        self._told: object = None  # anything: who heard of a service of this name before is told anew
        self._panic = False
        self._why: dict[Endpoint, str] = {}  # of those that are not as they should be
        self._burst_until = -math.inf
        self._burst = 0  # changes since _PAUSE before that
        self._hurried = False  # whether the timer is for what was found, and not for time's own changes

    def change(self, service: schema.Service, place: str, contents: Contents, *, framed: bool) -> None:
        terms = _terms(service)
        if terms != self._terms:
            self._terms = terms
            self._panel.change(terms, self._clock())
        active = service.health.active
        check = _made_of(service, place, contents, framed=framed)
        if check != self._check:
            self._check = check
            self._stop_checks()
            if active != "off":
                self._start_checks(
                    active, _probe(active, check_secure(service, place, contents), framed=framed)
                )
        self._settle()

    def retain(self, weights: Mapping[Endpoint, int]) -> None:
        # Shares are told before the snapshot that they are for: until that stands, those that leave are what
        # they were.
        self._left = {one: share for one, share in self._shares.items() if one not in weights}
        self._weights = weights
        self._panel.retain(weights, self._clock())
        self._failed = {one: at for one, at in self._failed.items() if one in weights}
        if self._checks is not None:
            self._checks.follow(self._checked())
        self._settle()

    def happened(self, outcomes: Iterable[Told]) -> None:
        now = self._clock()
        for host, port, successes, failures, streak, last in outcomes:
            endpoint, outcome = Endpoint(host, port), Outcome(successes, failures, streak, last)
            if outcome.failures and endpoint in self._weights:
                self._failed[endpoint] = now
            self._panel.happened(endpoint, outcome, now)
        self._settle_soon()

    def status(self) -> Figures:
        panel = self._panel
        return {
            "states": {str(endpoint): state.value for endpoint, state in panel.states.items()},
            "why": {str(endpoint): why for endpoint, why in self._why.items()},
            "panic": panel.panic,
            "panics": panel.panics,
            "ejections": panel.ejections,
            "spared": panel.spared,
        }

    def close(self) -> None:
        """Judge no more. Idempotent."""
        self._stop_checks()
        if self._timer is not None:
            self._timer.cancel()

    # ---- checks ----

    def _start_checks(self, active: schema.Check, probe: probes.Probe) -> None:
        terms = schedule.Terms(
            interval=active.interval,
            fast_interval=active.fast_interval,
            timeout=active.timeout,
            jitter=active.jitter,
            port=active.port,
        )
        self._checks = Checks(probe, terms, self._report, service=self._service)
        self._checks.follow(self._checked())
        self._checking = self._background.start(self._checks.run(), f"checks of {self._service}")

    def _stop_checks(self) -> None:
        if self._checking is not None:
            self._checking.cancel()
        self._checks = self._checking = None

    def _checked(self) -> list[Endpoint]:
        return [endpoint for endpoint, weight in self._weights.items() if weight > 0]

    def _report(self, endpoint: Endpoint, why: str | None) -> bool:
        self._panel.checked(endpoint, why is None, self._clock(), why or "")
        self._settle_soon()
        return self._panel.in_transition(endpoint)

    # ---- what follows ----

    def _settle_soon(self) -> None:
        """Tell what changed: at once where few things do, else some times a second, the rest together."""
        self._say()
        now = self._clock()
        if now >= self._burst_until:
            self._burst_until, self._burst = now + _PAUSE, 0
        self._burst += 1
        if self._burst <= _BURST:
            self._settle()
        elif not self._hurried:
            self._hurried = True
            self._call_in(self._burst_until - now)

    def _settle(self) -> None:
        """Tell what changed, and see to it that this is called when time changes more."""
        now = self._clock()
        self._hurried = False
        shares = self._panel.shares(now)
        self._say()
        if shares is not self._shares:
            self._shares, self._waited_for = shares, self._unproved()
        watched = self._watched(now)
        told = {**self._left, **shares}, watched
        if told != self._told:
            self._told = told
            self._tell(*told)
        moments = [at + self._terms.window for at in self._failed.values()]
        if self._panel.next_at is not None:
            moments.append(self._panel.next_at)
        self._call_in(max(0.0, min(moments) - now) if moments else None)

    def _call_in(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._settle)

    def _watched(self, now: float) -> frozenset[Endpoint]:
        """Of whom successes count: also of those that failed a moment ago, perhaps elsewhere."""
        if self._failed:
            self._failed = {one: at for one, at in self._failed.items() if now < at + self._terms.window}
        return self._waited_for.union(self._failed) if self._failed else self._waited_for

    def _unproved(self) -> frozenset[Endpoint]:
        """Those that successes make healthy: in trial, and unknown where no checks would tell.

        With a rate all that are judged: it is of all outcomes, also those before anybody failed.
        """
        states = {State.TRIAL}
        if self._terms.passive and not self._terms.active:
            states.add(State.UNKNOWN)
        if self._terms.passive and self._terms.failure_rate:
            states |= {State.UNKNOWN, State.HEALTHY}
        return frozenset(one for one, state in self._panel.states.items() if state in states)

    def _say(self) -> None:
        for endpoint, before, after, why in self._panel.changes():
            self._why.pop(endpoint, None)
            if after in SICK or after is State.TRIAL:
                self._why[endpoint] = why
            if State.REMOVED in (before, after):  # snapshot_published has it
                continue
            event = "endpoint_spared" if before == after else "endpoint_state"
            say = log.warning if after in SICK or before == after else log.info
            if (before, after) == (State.UNKNOWN, State.HEALTHY):  # a line for each of them at every start
                say = log.debug
            say(
                event, service=self._service, endpoint=str(endpoint), before=before.value, after=after.value,
                why=why,
            )  # fmt: skip
        if self._panel.panic != self._panic:
            self._panic = self._panel.panic
            if self._panic:
                log.error("panic", service=self._service, **self._counted(), hint=_PANIC)
            else:
                log.warning("panic_over", service=self._service, **self._counted())

    def _counted(self) -> dict[str, int]:
        """How many endpoints there are that do not drain, and how many of them work."""
        states = Counter(self._panel.states.values())
        usable = states[State.UNKNOWN] + states[State.HEALTHY]
        return {"usable": usable, "endpoints": states.total() - states[State.DRAINING]}


def _terms(service: schema.Service) -> Terms:
    health = service.health
    active = {} if health.active == "off" else {"rise": health.active.rise, "fall": health.active.fall}
    passive = (
        {} if health.passive == "off" else health.passive.model_dump(exclude={"on", "first_byte_timeout"})
    )
    return Terms(
        active=health.active != "off",
        passive=health.passive != "off",
        panic=health.panic,
        slow_start=service.balance.slow_start or 0.0,
        **active,
        **passive,
    )


def _made_of(service: schema.Service, place: str, contents: Contents, *, framed: bool) -> object:
    """Return what checks are made of, to be compared: where it stays the same they go on undisturbed."""
    active = service.health.active
    if active == "off":
        return None
    own = {key: value for key, value in active if key not in {"rise", "fall"}}  # the panel's
    if isinstance(active, schema.TcpCheck):
        return own
    # What `check_secure` makes use of; without the service's place, which other services may change.
    tls, used = None, ""
    if isinstance(active, schema.TlsCheck):
        used = f"{place}.health.active."
    elif service.tls is not None and not active.port:
        tls, used = service.tls, f"{place}.tls."
    files = {key.removeprefix(used): data for key, data in contents.items() if used and key.startswith(used)}
    return own, tls, files, framed and isinstance(active, schema.RpcCheck)


def _probe(active: schema.Check, secure: Secure | None, *, framed: bool) -> probes.Probe:
    match active:
        case schema.TlsCheck():
            assert secure is not None  # noqa: S101 - `check_secure` makes it
            return probes.tls(secure)
        case schema.HttpCheck():
            statuses = [range(one.first, one.last + 1) for one in active.status]
            return probes.http(active.path, host=active.host or "", statuses=statuses, secure=secure)
        case schema.RpcCheck():
            return probes.rpc(
                active.method, active.params, expect=active.expect, framed=framed, secure=secure
            )
        case schema.SendExpectCheck():
            return probes.send_expect(active.send, active.expect, secure=secure)
    return probes.tcp
