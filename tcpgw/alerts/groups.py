"""What one receiver is told of alerts, and when: by name, not one by one. Pure: time is an argument.

Of each name:

1. `wait` seconds after the first alert that the receiver does not know, it is told of all that fire.
2. What comes or goes later is told together, at least `interval` seconds after the last notification.
3. Where nothing changes it is told again after `repeat` seconds, as long as something fires.
4. That an alert is over is told to who was told that it fires, and to nobody else: also where it was silenced
   meanwhile. One that comes and goes between two notifications is in neither.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tcpgw.alerts.engine import Alert
from tcpgw.alerts.rules import Labels


@dataclass(frozen=True, slots=True)
class Rhythm:
    """In seconds."""

    wait: float
    interval: float
    repeat: float


@dataclass(frozen=True, slots=True)
class Notification:
    """All alerts of one name that fire, and those that are over since the last one."""

    name: str
    firing: tuple[Alert, ...]
    resolved: tuple[Alert, ...]
    left_out: int = 0


@dataclass(slots=True)
class _Group:
    told: dict[Labels, Alert] = field(default_factory=dict)  # those that fire, as far as it knows
    ended: dict[Labels, Alert] = field(default_factory=dict)  # of these
    due: float | None = None
    last: float | None = None


class Groups:
    """What one receiver knows."""

    def __init__(self, rhythm: Rhythm) -> None:
        self.rhythm = rhythm
        self._groups: dict[str, _Group] = {}

    def remind(self) -> None:
        """Tell at the next look again of what fires: perhaps the receiver has not heard of it."""
        for group in self._groups.values():
            if group.last is not None:
                group.last = -math.inf

    def look(
        self, firing: Iterable[Alert], resolved: Iterable[Alert], left_out: Mapping[str, int], now: float
    ) -> list[Notification]:
        """Return what is to be told. `firing` without what is silenced, `resolved` since the last look."""
        by_name: dict[str, dict[Labels, Alert]] = {}
        for alert in firing:
            by_name.setdefault(alert.name, {})[alert.labels] = alert
        for alert in resolved:
            group = self._groups.get(alert.name)
            if group is not None and alert.labels in group.told:
                group.ended[alert.labels] = alert
        notifications = []
        for name in [*self._groups, *(name for name in by_name if name not in self._groups)]:
            current = by_name.get(name, {})
            group = self._groups.setdefault(name, _Group())
            if self._is_due(group, current, now):
                notifications.append(self._told(name, group, current, left_out.get(name, 0), now))
            if not group.told and group.due is None and not self._is_recent(group, now):
                del self._groups[name]
        return notifications

    def _is_due(self, group: _Group, current: Mapping[Labels, Alert], now: float) -> bool:
        for labels in current.keys() & group.ended.keys():  # it fires again, and nobody missed it
            del group.ended[labels]
        news = current.keys() - group.told.keys()
        if news or group.ended:
            if group.due is None:
                soonest = now + self.rhythm.wait if news else now
                group.due = soonest if group.last is None else max(soonest, group.last + self.rhythm.interval)
            return now >= group.due
        group.due = None
        return bool(current) and group.last is not None and now - group.last >= self.rhythm.repeat

    def _is_recent(self, group: _Group, now: float) -> bool:
        return group.last is not None and now < group.last + self.rhythm.interval

    def _told(
        self, name: str, group: _Group, current: dict[Labels, Alert], left_out: int, now: float
    ) -> Notification:
        resolved = tuple(group.ended.values())
        group.told = {key: one for key, one in group.told.items() if key not in group.ended} | current
        group.ended, group.due, group.last = {}, None, now
        return Notification(name, tuple(current.values()), resolved, left_out)
