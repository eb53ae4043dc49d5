"""What is sent: JSON for webhooks, in the form of Alertmanager's own, and for Alertmanager's API v2. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

import orjson

from tcpgw.alerts.engine import Alert
from tcpgw.alerts.groups import Notification

# Alertmanager's for what has not ended: Go's zero time.
_NEVER = "0001-01-01T00:00:00Z"
# Alerts in one message to Alertmanager: Prometheus' number, far below what it takes at a time.
BATCH = 64


def webhook(notification: Notification, receiver: str, extra: Mapping[str, str]) -> bytes:
    """A notification as Alertmanager's webhooks have it (version 4), so that what reads those reads this."""
    alerts = [_alert(alert, extra) for alert in (*notification.firing, *notification.resolved)]
    labels = [alert["labels"] for alert in alerts]
    return orjson.dumps(
        {
            "version": "4",
            "groupKey": f'{{}}:{{alertname="{notification.name}"}}',
            "truncatedAlerts": notification.left_out,
            "status": "firing" if notification.firing else "resolved",
            "receiver": receiver,
            "groupLabels": {"alertname": notification.name},
            "commonLabels": _common(labels),
            "commonAnnotations": _common([alert["annotations"] for alert in alerts]),
            "externalURL": "",
            "alerts": alerts,
        }
    )


def _alert(alert: Alert, extra: Mapping[str, str]) -> dict[str, Any]:
    labels = _labels(alert, extra)
    return {
        "status": alert.state,
        "labels": labels,
        "annotations": _annotations(alert),
        "startsAt": written(alert.since),
        "endsAt": _NEVER if alert.ended is None else written(alert.ended),
        "generatorURL": "",
        "fingerprint": _fingerprint(labels),
    }


def alertmanager(
    alerts: Sequence[Alert], extra: Mapping[str, str], wall: float, lasting: float
) -> Iterable[bytes]:
    """Bodies of `POST /api/v2/alerts`. What fires does so for `lasting` seconds more, unless told again."""
    messages = [
        {
            "labels": _labels(alert, extra),
            "annotations": _annotations(alert),
            "startsAt": written(alert.since),
            "endsAt": written(wall + lasting if alert.ended is None else alert.ended),
        }
        for alert in alerts
    ]
    for first in range(0, len(messages), BATCH):
        yield orjson.dumps(messages[first : first + BATCH])


def _labels(alert: Alert, extra: Mapping[str, str]) -> dict[str, str]:
    return {"alertname": alert.name, "severity": alert.severity, **extra, **dict(alert.labels)}


def _annotations(alert: Alert) -> dict[str, str]:
    return {"summary": alert.summary, "description": alert.hint, "value": f"{alert.value:.6g}"}


def _common(tables: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What all of them have alike."""
    first, *others = tables
    return {key: value for key, value in first.items() if all(one.get(key) == value for one in others)}


def _fingerprint(labels: Mapping[str, str]) -> str:
    """Tells alerts apart, as their labels do."""
    return blake2b(orjson.dumps(sorted(labels.items())), digest_size=8).hexdigest()


def written(at: float) -> str:
    """Unix time as RFC 3339 has it."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
