"""What an Alertmanager must hear, and when. Pure: time is an argument.

It takes an alert for over that it has not heard of for some time (its `endsAt`), and groups, silences and
repeats by itself. So it is told of each alert at once, again each RESEND seconds while it fires (Prometheus:
a minute), and once when it is over. Should that be lost, `endsAt` says it: LASTING seconds after the last
time, so that some may be lost before (Prometheus: four times).
"""

import math
from collections.abc import Iterable
from dataclasses import replace

from tcpgw.alerts.engine import Alert
from tcpgw.alerts.rules import Labels

RESEND = 60.0
LASTING = 4 * RESEND


class Upkeep:
    """What one Alertmanager knows."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, Labels, str], Alert] = {}
        self._last = 0.0

    def remind(self) -> None:
        """Tell at the next look again of what fires: perhaps it has not heard of it."""
        self._last = -math.inf

    def look(self, firing: Iterable[Alert], now: float, wall: float) -> list[Alert]:
        """Return what is to be told. `firing` without what is silenced: that is over for Alertmanager."""
        # Its severity too, since all labels are an alert's identity there.
        current = {(alert.name, alert.labels, alert.severity): alert for alert in firing}
        told, self._told = self._told, current
        over = [
            replace(alert, state="resolved", ended=wall) for key, alert in told.items() if key not in current
        ]
        if current and (not told or now - self._last >= RESEND):
            self._last = now
            return [*current.values(), *over]
        fresh = [alert for key, alert in current.items() if key not in told or told[key].since != alert.since]
        return [*fresh, *over]
