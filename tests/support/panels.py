"""Panels of five endpoints, what they are told, and their states in short."""

from tcpgw.balancing.standing import Share
from tcpgw.endpoints import Endpoint
from tcpgw.health.panel import Panel
from tcpgw.health.verdict import Outcome, State, Terms

NOW = 1000.0
A, B, C, D, E = (Endpoint("10.0.0.1", port) for port in range(1, 6))
OUT = Share(0.0, by_key=False)
TRIAL = Share(0.1, by_key=False)


def panel_of(*endpoints: Endpoint, terms: Terms | None = None, checks: str = "+", now: float = NOW) -> Panel:
    """Make a panel whose endpoints have all been checked: `+` passed, `-` failed, "" not at all."""
    panel = Panel(terms or Terms())
    panel.retain(dict.fromkeys(endpoints, 1), now)
    for sign in checks:
        check(panel, sign, *endpoints, now=now)
    panel.changes()
    return panel


def check(panel: Panel, signs: str, *endpoints: Endpoint, now: float = NOW) -> None:
    for sign in signs:
        for endpoint in endpoints:
            panel.checked(endpoint, sign == "+", now, "" if sign == "+" else "refused")


def fail(panel: Panel, *endpoints: Endpoint, count: int = 5, now: float = NOW) -> None:
    for endpoint in endpoints:
        panel.happened(endpoint, Outcome(0, count, count), now)


def succeed(panel: Panel, *endpoints: Endpoint, count: int = 3, now: float = NOW) -> None:
    for endpoint in endpoints:
        panel.happened(endpoint, Outcome(count, 0, 0), now)


def states(panel: Panel) -> str:
    """Return the states of the endpoints in order, by their first letter; `x` is ejected, `?` unknown."""
    letters = {State.EJECTED: "x", State.UNKNOWN: "?", State.UNHEALTHY: "u", State.TRIAL: "t"}
    return "".join(letters.get(state, state[0]) for _, state in sorted(panel.states.items()))
