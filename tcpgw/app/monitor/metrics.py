"""From what is known of a gateway to its metrics. Pure; each metric is declared in `observe.metrics`."""

from collections import Counter
from collections.abc import Mapping

from tcpgw.app.monitor.figures import connections, invocations, requests
from tcpgw.app.monitor.picture import Picture
from tcpgw.app.routes import Routes
from tcpgw.config import schema
from tcpgw.health.verdict import State
from tcpgw.observe import metrics as m
from tcpgw.observe.exposition import Exposition
from tcpgw.process.resources import Resources
from tcpgw.relay.reasons import DENIED

# States that an endpoint of a snapshot may be in.
_STATES = [state.value for state in State if state is not State.REMOVED]


def expose(
    picture: Picture, processes: Mapping[int, Resources], imbalances: Mapping[str, float]
) -> Exposition:
    """Return all series. `processes` are by pid, `imbalances` by service."""
    made = Exposition()
    made.set(m.BUILD_INFO, 1, picture.version)
    made.set(m.START_TIME, picture.since)
    _connections(made, picture)
    _requests(made, picture)
    for service in picture.config.service:
        _endpoints(made, picture, service.name)
        _discovery(made, picture, service)
    for name, ratio in imbalances.items():
        made.set(m.IMBALANCE, ratio, name)
    for name, cloud in picture.clouds.items():
        made.set(m.BUDGET, cloud["budget"], name)
        made.set(m.BUDGET_LEFT, cloud["left"], name)
    _gateway(made, picture)
    _processes(made, picture, processes)
    return made


def _services(picture: Picture) -> set[str]:
    """Those there are. What others came to stays in the totals, for when a reload brings them back."""
    return {service.name for service in picture.config.service}


def _connections(made: Exposition, picture: Picture) -> None:
    for name, listener in picture.totals.get("listeners", {}).items():
        made.set(m.ACCEPTED, listener["accepted"], name)
        made.set(m.PAUSES, listener["paused"], name)
        made.set(m.ACCEPT_FAILURES, listener["accept_failures"], name)
        for reason in sorted(DENIED & listener["ended"].keys()):
            made.set(m.DENIED, listener["ended"][reason], name, reason)
    there = {"", *_services(picture)}
    for name, service, one in connections(picture.totals):
        if service not in there:
            continue
        made.set(m.OPENED, one["opened"], name, service)
        made.set(m.ACTIVE, one.get("active", 0), name, service)
        made.set(m.RECEIVED, one["bytes_in"], name, service)
        made.set(m.SENT, one["bytes_out"], name, service)
        made.set_histogram(m.DURATION, one["duration"], name, service)
        for reason, count in one["ended"].items():
            made.set(m.CLOSED, count, name, service, reason)
    for listener in picture.config.listener:
        weights = Routes(listener).weights()
        for service, weight in weights.items():
            made.set(m.ROUTE_WEIGHT, weight / sum(weights.values()), listener.name, service)


def _requests(made: Exposition, picture: Picture) -> None:
    there = _services(picture)
    for listener, service, method, one in requests(picture.totals):
        if service not in there:
            continue
        for outcome, count in one.get("outcomes", {}).items():
            made.set(m.REQUESTS, count, listener, service, method, outcome)
        made.set(m.IN_FLIGHT, one.get("inflight", 0), listener, service, method)
        if "latency" in one:
            made.set_histogram(m.REQUEST_DURATION, one["latency"], listener, service, method)
    found = invocations(picture.totals)
    for settings in picture.config.service:
        ended, failed = found.get(settings.name, (0, 0))
        made.set(m.INVOCATIONS, ended, settings.name, settings.version)
        made.set(m.FAILED_INVOCATIONS, failed, settings.name, settings.version)


def _endpoints(made: Exposition, picture: Picture, service: str) -> None:
    figures, states, snapshot = (
        picture.service(service),
        picture.states(service),
        picture.snapshots.get(service),
    )
    known = figures.get("endpoints", {})
    for member, weight in snapshot.members if snapshot else ():
        endpoint = str(member)
        one = known.get(endpoint, {})
        if endpoint in states:
            made.set(m.ENDPOINT_STATE, 1, service, endpoint, states[endpoint])
        made.set(m.ENDPOINT_WEIGHT, weight, service, endpoint)
        made.set(m.ENDPOINT_IN_FLIGHT, one.get("inflight", 0), service, endpoint)
        made.set(m.ENDPOINT_PICKS, one.get("picked", 0), service, endpoint)
        made.set(m.ENDPOINT_CONNECTS, one.get("connected", 0), service, endpoint)
        for kind, count in one.get("failures", {}).items():
            made.set(m.ENDPOINT_FAILURES, count, service, endpoint, kind)
    if picture.is_known(service):
        counted = Counter(states.values())
        for state in _STATES:
            made.set(m.ENDPOINTS, counted[state], service, state)
    rpc, circuit = figures.get("rpc", {}), figures.get("circuit", {})
    if "connect" in figures:
        made.set_histogram(m.CONNECT, figures["connect"], service)
    made.set(m.RETRIES, figures.get("retried", 0) + rpc.get("retried", 0), service)
    made.set(m.RETRIES_REFUSED, circuit.get("retries_refused", 0) + rpc.get("retries_refused", 0), service)
    made.set(m.HEDGES, rpc.get("hedged", 0), service)
    made.set(m.QUEUE_WAITING, circuit.get("waiting", 0) + rpc.get("waiting", 0), service)
    health = picture.health.get(service, {})
    made.set(m.EJECTIONS, health.get("ejections", 0), service)
    made.set(m.SPARED, health.get("spared", 0), service)
    made.set(m.PANICS, health.get("panics", 0), service)
    made.set(m.PANIC, int(health.get("panic", False)), service)


def _discovery(made: Exposition, picture: Picture, settings: schema.Service) -> None:
    service = settings.name
    snapshot, asked = picture.snapshots.get(service), picture.discovery.get(service)
    if snapshot is not None:
        made.set(m.SNAPSHOT_VERSION, snapshot.version, service)
        made.set(m.SNAPSHOT_TAKEN, snapshot.taken_at, service)
    if asked is not None:
        made.set(m.DISCOVERY_CALLS, asked["calls"], service)
        made.set(m.DISCOVERY_ERRORS, asked["errors"], service)
    confirmed_at = picture.confirmed_at(settings)
    if confirmed_at is not None:
        made.set(m.DISCOVERY_SUCCESS, confirmed_at, service)
    discovery = settings.discovery
    if isinstance(discovery, schema.DnsDiscovery | schema.ModelArtsDiscovery):
        made.set(m.DISCOVERY_REFRESH, discovery.refresh, service)


def _processes(made: Exposition, picture: Picture, processes: Mapping[int, Resources]) -> None:
    """One that leaves counts with its successor in the same slot: series by pid would be without end.

    But for what only grows: that is the one's that accepts, or of the last to start. A sum would fall.
    """
    named = {"supervisor": [(picture.pid, picture.lag)]}
    current = {"supervisor": picture.pid}
    for worker in sorted(picture.workers, key=lambda worker: worker.state == "accepting"):
        name = f"worker {worker.slot}"
        named.setdefault(name, []).append((worker.pid, worker.lag))
        current[name] = worker.pid
    for name, members in named.items():
        made.set(m.LAG, max(lag for _, lag in members), name)
        taken = [processes[pid] for pid, _ in members if pid in processes]
        if current[name] in processes:
            made.set(m.CPU, processes[current[name]].cpu, name)
        if taken:
            made.set(m.MEMORY, sum(one.memory for one in taken), name)
            made.set(m.FILES, sum(one.files for one in taken), name)


def _gateway(made: Exposition, picture: Picture) -> None:
    overload = picture.totals.get("overload", {})
    made.set(m.OVERLOADED, overload.get("active", 0))
    made.set(m.OVERLOADS, overload.get("times", 0))
    made.set(m.SHED, overload.get("shed", 0))
    states = Counter(worker.state for worker in picture.workers)
    for state in ("starting", "accepting", "leaving"):
        made.set(m.WORKERS, states[state], state)
    made.set(m.WORKER_DEATHS, picture.deaths)
    for result in ("ok", "refused"):
        made.set(m.RELOADS, picture.reloads.get(result, 0), result)
    made.set(m.RELOADED, picture.reloaded_at)
    for name, kinds in picture.certificates.items():
        for kind, at in kinds.items():
            made.set(m.CERTIFICATE, at, name, kind)
    firing = Counter(
        (str(one["alert"]), str(one["severity"])) for one in picture.alerts if one["state"] == "firing"
    )
    for labels, count in firing.items():
        made.set(m.ALERTS, count, *labels)
    told: Counter[tuple[str, str]] = Counter()  # an Alertmanager of several is one receiver
    for one in picture.receivers:
        told.update({(one["receiver"], result): one[result] for result in ("sent", "failed", "dropped")})
    for labels, count in told.items():
        made.set(m.NOTIFICATIONS, count, *labels)
