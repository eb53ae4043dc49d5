"""Alerts put together: the configuration's rules and receivers, what is read, and who asks about them."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from tcpgw.alerts.engine import Alert, Changed, Engine
from tcpgw.alerts.rules import Readings, Rule, rules
from tcpgw.alerts.silences import Silence, Silences, until
from tcpgw.app.background import Background
from tcpgw.app.monitor.receivers import Receivers
from tcpgw.config import schema

log = structlog.get_logger()

_LEFT_OUT = "the first ones of a rule keep their places, and the others are counted"


class Alerting:
    """The alerts of one gateway. Used in one running event loop; `look` is to be called once a second.

    All that fires and is over stands in the log, whoever else is told: receivers are from the first `follow`
    on, which starts what sends to them.
    """

    def __init__(
        self,
        config: schema.Config,
        background: Background,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._wall = wall
        self._silences = Silences()
        self._receivers = Receivers(background)
        self._left_out: Mapping[str, int] = {}
        self._engine = Engine(_rules(config), config.alerts.keep_firing_for)

    def follow(self, config: schema.Config) -> None:
        """Take a configuration's rules and receivers. Alerts, silences and receivers that stay go on."""
        self._engine.change(_rules(config), config.alerts.keep_firing_for)
        self._receivers.follow(config.alerts)

    def look(self, readings: Readings) -> None:
        """Judge what is read now, and have told what follows. Never waits."""
        now, wall = self._clock(), self._wall()
        changed = self._engine.look(readings, now, wall)
        _say(changed)
        self._say_left_out()
        silences = self._silences.listed(now)
        heard = [alert for alert in self._engine.firing if until(alert, silences) is None]
        self._receivers.look(heard, changed.resolved, self._left_out, now, wall)

    async def close(self) -> None:
        """Tell nobody any more, what waits included. Idempotent."""
        await self._receivers.close()

    # ---- questions ----

    def alerts(self) -> list[dict[str, Any]]:
        """Those that fire, that may soon, and that did, in this order."""
        silences = self._silences.listed(self._clock())
        return [_shown(alert, until(alert, silences)) for alert in self._engine.alerts]

    def receivers(self) -> list[dict[str, Any]]:
        """What each has been sent, and how well."""
        return self._receivers.status()

    # ---- silences ----

    def silence(self, alert: str, labels: Mapping[str, str], seconds: float, comment: str) -> dict[str, Any]:
        """Tell nobody of an alert of that name (`*`: any) with these labels. Raises SilenceError."""
        silence = self._silences.add(alert, labels, seconds, comment, self._clock(), self._wall())
        listed = _listed(silence)
        log.info(
            "alert_silenced", name=alert, labels=listed["labels"], seconds=seconds, comment=listed["comment"]
        )
        return listed

    def unsilence(self, alert: str, labels: Mapping[str, str]) -> int:
        """End the silence of that name with just these labels, without any all of that name.

        Return how many that were.
        """
        ended = self._silences.remove(alert, labels, self._clock())
        if ended:
            log.info("alert_silence_ended", name=alert, labels=dict(labels), ended=ended)
        return ended

    def silences(self) -> list[dict[str, Any]]:
        """Those in force, in the order of their ends."""
        return [_listed(silence) for silence in self._silences.listed(self._clock())]

    def _say_left_out(self) -> None:
        for name in self._engine.left_out.keys() - self._left_out.keys():
            log.warning("alerts_left_out", name=name, more=self._engine.left_out[name], hint=_LEFT_OUT)
        self._left_out = self._engine.left_out


def _rules(config: schema.Config) -> tuple[Rule, ...]:
    return rules(
        config.alerts,
        {service.name: service.alerts for service in config.service},
        {service.name: getattr(service.discovery, "refresh", 0.0) for service in config.service},
    )


def _say(changed: Changed) -> None:
    for alert in changed.fired:
        log.warning("alert_firing", **_told(alert), hint=alert.hint)
    for alert in changed.resolved:
        log.info("alert_resolved", **_told(alert), seconds=round((alert.ended or 0.0) - alert.since, 1))


def _told(alert: Alert) -> dict[str, Any]:
    return {
        "name": alert.name,
        "severity": alert.severity,
        "labels": dict(alert.labels),
        "value": alert.value,
        "threshold": alert.threshold,
        "summary": alert.summary,
    }


def _shown(alert: Alert, silenced_until: float | None) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "labels": dict(alert.labels),
        "severity": alert.severity,
        "state": alert.state,
        "since": alert.since if alert.ended is None else alert.ended,
        "value": alert.value,
        "summary": alert.summary,
        "hint": alert.hint,
        "silenced_until": silenced_until,
    }


def _listed(silence: Silence) -> dict[str, Any]:
    return {
        "alert": silence.alert,
        "labels": dict(silence.labels),
        "until": silence.until,
        "comment": silence.comment,
    }
