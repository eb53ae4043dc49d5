"""Alerts as the engine has them, for those who pass them on."""

from tcpgw.alerts.engine import Alert, State

WALL = 1_750_000_000.0


def alert(
    service: str = "a",
    name: str = "TcpgwErrorRate",
    *,
    state: State = "firing",
    since: float = WALL,
    ended: float | None = None,
    severity: str = "critical",
    value: float = 0.25,
) -> Alert:
    labels = (("service", service),) if service else ()
    return Alert(name, labels, severity, state, since, value, 0.05, ended)


def over(service: str = "a", name: str = "TcpgwErrorRate", *, ended: float = WALL + 60) -> Alert:
    return alert(service, name, state="resolved", ended=ended)
