"""What is sent to receivers."""

import json
from typing import Any

from tcpgw.alerts.groups import Notification
from tcpgw.alerts.notices import BATCH, alertmanager, webhook, written
from tests.support.alerts import WALL, alert, over

EXTRA = {"instance": "gw-1", "team": "ml"}


def sent(notification: Notification) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(webhook(notification, "on-call", EXTRA))
    return message


def test_a_webhook_gets_what_alertmanager_sends() -> None:
    """All keys of its version 4, with everything of each alert."""
    message = sent(Notification("TcpgwErrorRate", (alert("a"),), (over("b"),), left_out=3))
    fingerprints = [one.pop("fingerprint") for one in message["alerts"]]
    assert len(set(fingerprints)) == 2
    assert message == {
        "version": "4",
        "groupKey": '{}:{alertname="TcpgwErrorRate"}',
        "truncatedAlerts": 3,
        "status": "firing",
        "receiver": "on-call",
        "groupLabels": {"alertname": "TcpgwErrorRate"},
        "commonLabels": {
            "alertname": "TcpgwErrorRate",
            "severity": "critical",
            "instance": "gw-1",
            "team": "ml",
        },
        "commonAnnotations": {"description": alert().hint, "value": "0.25"},
        "externalURL": "",
        "alerts": [
            {
                "status": "firing",
                "labels": {
                    "alertname": "TcpgwErrorRate",
                    "severity": "critical",
                    "instance": "gw-1",
                    "team": "ml",
                    "service": "a",
                },
                "annotations": {
                    "summary": "25 % of what a is asked fails",
                    "description": alert().hint,
                    "value": "0.25",
                },
                "startsAt": "2025-06-15T15:06:40.000Z",
                "endsAt": "0001-01-01T00:00:00Z",
                "generatorURL": "",
            },
            {
                "status": "resolved",
                "labels": message["alerts"][0]["labels"] | {"service": "b"},
                "annotations": message["alerts"][0]["annotations"]
                | {"summary": "Over: 25 % of what b is asked fails"},
                "startsAt": "2025-06-15T15:06:40.000Z",
                "endsAt": "2025-06-15T15:07:40.000Z",
                "generatorURL": "",
            },
        ],
    }


def test_a_group_is_over_when_all_are() -> None:
    """Then its status says so, and the alert is the one that was told of before."""
    before, after = sent(Notification("x", (alert("a"),), ())), sent(Notification("x", (), (over("a"),)))
    assert (before["status"], after["status"]) == ("firing", "resolved")
    assert before["alerts"][0]["fingerprint"] == after["alerts"][0]["fingerprint"]


def test_alertmanager_gets_its_own_form() -> None:
    """What fires ends in a while unless it is told of again; what is over has its end."""
    (body,) = alertmanager([alert("a"), over("b")], EXTRA, WALL + 60, 240)
    firing, resolved = json.loads(body)
    assert firing.keys() == resolved.keys() == {"labels", "annotations", "startsAt", "endsAt"}
    assert firing["labels"] | {"service": "b"} == resolved["labels"]
    assert firing["endsAt"] == "2025-06-15T15:11:40.000Z"
    assert resolved["endsAt"] == "2025-06-15T15:07:40.000Z"


def test_many_are_several_messages() -> None:
    """And none is none."""
    bodies = list(alertmanager([alert(str(number)) for number in range(BATCH + 1)], {}, WALL, 240))
    assert [len(json.loads(body)) for body in bodies] == [BATCH, 1]
    assert list(alertmanager([], {}, WALL, 240)) == []


def test_times_are_as_in_rfc_3339() -> None:
    """In UTC, to the millisecond."""
    assert written(0.0005) == "1970-01-01T00:00:00.000Z"
    assert written(WALL + 0.25) == "2025-06-15T15:06:40.250Z"
