"""Alerts and silences as an operator sees them."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import tcpgw
from tests.support.control import answering


def alert(name: str, state: str, **more: Any) -> dict[str, Any]:
    return {
        "alert": name, "labels": {"service": "s"}, "severity": "warning", "state": state,
        "since": time.time() - 125, "value": 0.12345678, "summary": f"{name} of s", "hint": "",
        "silenced_until": None,
        **more,
    }  # fmt: skip


def alerts() -> list[dict[str, Any]]:
    return [
        alert("resolved_one", "resolved"),
        alert("silenced_one", "firing", severity="critical", silenced_until=time.time() + 60),
        alert("pending_one", "pending"),
        alert("warning_one", "firing", hint="look at the log"),
        alert("critical_one", "firing", severity="critical", labels={}),
    ]


def test_what_matters_most_comes_first(config: Path) -> None:
    """With for how long it stands, and what to do."""
    with answering(config, {"alerts": alerts, "silences": list}):
        code, out, err = tcpgw("alerts", "-c", config)
    assert (code, err) == (0, "")
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")
    ]
    assert [row[2] for row in rows] == [
        "critical_one",
        "warning_one",
        "pending_one",
        "resolved_one",
        "silenced_one",
    ]
    assert rows[1] == ["firing", "warning", "warning_one", "service=s", "2 min", "0.1235", "warning_one of s"]
    assert rows[3][4] == "2 min ago"
    assert rows[4][0] == "firing, silenced"
    assert out.endswith("\nwarning_one: look at the log\n")


def test_what_others_wrote_commands_no_terminal(config: Path) -> None:
    """Neither an alert nor a silence, whatever it quotes; nor what this one was told to silence."""
    found = [alert("a", "firing", summary="s\x1b[2J", hint="h\x1b[2J", labels={"l": "\x1b[2J"})]
    silences = [{"alert": "*", "labels": {"x": "\x1b[3J"}, "until": 0.0, "comment": "c\x1b[3J\nd"}]
    methods: dict[str, Any] = {"alerts": lambda: found, "silences": lambda: silences}
    with answering(config, {**methods, "silence": lambda *_: None}):
        _, out, _ = tcpgw("alerts", "-c", config)
        _, silenced, _ = tcpgw("silence", "x", "--label", "a=\x1b\udcfc", "-c", config)
    assert "\x1b" not in out + silenced
    for text in (r"s\x1b[2J", r"a: h\x1b[2J", r"l=\x1b[2J", r"(x=\x1b[3J)", r": c\x1b[3J\nd"):
        assert text in out
    assert silenced.startswith(r"x (a=\x1b\udcfc) is silenced until ")


def test_none_is_said(config: Path) -> None:
    """Programs get an empty array."""
    with answering(config, {"alerts": list, "silences": list}):
        assert tcpgw("alerts", "-c", config) == (0, "no alerts\n", "")
        assert json.loads(tcpgw("alerts", "-c", config, "--json").out) == []


def test_silences_are_listed(config: Path) -> None:
    """With what they are of, their end and their reason, whether anything fires or not."""
    listed = [
        {"alert": "*", "labels": {}, "until": 1_750_000_000.0, "comment": ""},
        {"alert": "x", "labels": {"a": "b"}, "until": 1_750_000_060.0, "comment": "known"},
    ]
    with answering(config, {"alerts": list, "silences": lambda: listed}):
        first, second, third = tcpgw("alerts", "-c", config).out.splitlines()
    assert first == "no alerts"
    assert second.startswith("silence of * until 2025-06-1")
    assert third.startswith("silence of x (a=b) until 2025-06-1")
    assert third.endswith(": known")


def test_a_silence_has_labels_an_end_and_a_reason(config: Path) -> None:
    """Two hours where nothing else is said."""
    asked: list[tuple[Any, ...]] = []
    with answering(config, {"silence": lambda *params: asked.append(params)}):
        labels = ["--label", "service=a=b", "--label", "x="]
        told = tcpgw("silence", "few_endpoints", *labels, "--for", "30m", "--comment", "known", "-c", config)
        assert told.code == 0
        assert told.out.startswith("few_endpoints (service=a=b, x=) is silenced until ")
        assert tcpgw("silence", "few_endpoints", "-c", config).code == 0
    assert asked == [
        ("few_endpoints", {"service": "a=b", "x": ""}, 1800.0, "known"),
        ("few_endpoints", {}, 7200.0, ""),
    ]


def test_the_end_of_a_silence_says_how_many(config: Path) -> None:
    """None is no error: it is as was asked for."""
    with answering(config, {"unsilence": lambda _, labels: len(labels)}):
        told = tcpgw("unsilence", "x", "--label", "a=b", "-c", config)
        assert told == (0, "x (a=b): 1 silence ended\n", "")
        told = tcpgw("unsilence", "x", "--label", "a=b", "--label", "c=d", "-c", config)
        assert told == (0, "x (a=b, c=d): 2 silences ended\n", "")
        told = tcpgw("unsilence", "x", "-c", config)
        assert told == (0, "no silence of x stands: see `tcpgw alerts`\n", "")


@pytest.mark.parametrize("label", ["service", "=a", ""])
def test_what_is_no_label_is_refused(config: Path, label: str) -> None:
    """Before anybody is asked."""
    for command in ("silence", "unsilence"):
        code, out, err = tcpgw(command, "x", "--label", label, "-c", config)
        assert (code, out) == (2, "")
        assert "is no label: write --label service=resnet-v1" in err
