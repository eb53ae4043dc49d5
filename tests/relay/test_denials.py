"""The log lines of those who are turned away."""

from typing import Any

from tcpgw.relay.denials import Denials
from tcpgw.relay.reasons import Reason


def test_a_flood_is_some_lines() -> None:
    """The first of a reason is told at once, the next ones as a number; another by itself."""
    now = 100.0
    lines: list[dict[str, Any]] = []
    denials = Denials(lambda: now, lambda event, **fields: lines.append({"event": event, **fields}))
    for _ in range(1000):
        denials.add(Reason.DENIED_CIDR, "10.0.0.1:1", "no")
    denials.add(Reason.DENIED_CREDENTIALS, "10.0.0.1:1", "", conn=3)
    assert lines == [
        {"event": "denied", "client": "10.0.0.1:1", "reason": "denied_cidr", "error": "no"},
        {"event": "denied", "client": "10.0.0.1:1", "reason": "denied_credentials", "conn": 3},
    ]
    now += 10.0
    denials.add(Reason.DENIED_CIDR, "10.0.0.2:1", "no")
    assert lines[-1]["more"] == 999
    now += 10.0
    denials.add(Reason.DENIED_CIDR, "10.0.0.2:1", "no")
    assert "more" not in lines[-1]
