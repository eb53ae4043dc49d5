"""Steps of connections as operators and programs read them."""

import json
import re
import time
from typing import Any

import pytest

from tcpgw.operate.steps import Steps

AT = 1_700_000_000.25
WHO = {"worker": 1, "pid": 100, "listener": "l", "conn": 7, "client": "10.0.0.7:51234"}


def event(name: str, after: float = 0.0, **more: Any) -> dict[str, Any]:
    return {"at": AT + after, "event": name, "after": after, **WHO, **more}


def shown(capsys: pytest.CaptureFixture[str], *events: dict[str, Any], as_json: bool = False) -> list[str]:
    steps = Steps(as_json=as_json)
    for one in events:
        steps.show(one)
    return capsys.readouterr().out.splitlines()


KEY = {"key": "source_ip", "value": "10.0.0.7", "position": "0x0000009a"}


def test_a_connection_s_life_is_a_column_of_words(capsys: pytest.CaptureFixture[str]) -> None:
    """When, whose, how long after the accept, what, and the rest in words; nothing behind it."""
    lines = shown(
        capsys,
        event("accepted", to="10.0.0.1:9000"),
        event("allowed", 0.0001, subject="alice", credential="api_key", key="ak1"),
        event("routed", 0.0002, service="v1", split={"v1": 90, "v2": 10}, split_position="0x01"),
        event("candidates", 0.0003, endpoints=["b:1", "a:1"], home="a:1", **KEY),
        event("connecting", 0.0004, endpoint="b:1", tries=1),
        event("connect_failed", 0.0005, endpoint="b:1", seconds=0.0001, error="Connection refused"),
        event("connecting", 0.0006, endpoint="a:1", tries=2),
        event("connected", 0.0007, endpoint="a:1", seconds=0.0001),
        event("first_byte", 0.5),
        event("asked_to_end", 1.0, cause="max_age"),
        event("closed", 75.0, reason="client_reset", error="gone", bytes_in=2048, bytes_out=10),
    )
    clock = time.strftime("%H:%M:%S", time.localtime(AT))
    accepted = "accepted       10.0.0.7:51234 at 10.0.0.1:9000; listener l, worker 1, conn 7"
    assert lines[0] == f"{clock}.250 #1{' ' * 14}{accepted}"
    assert all(re.fullmatch(r"[\d:.]{12} #1     .{7}  \S.*\S", line) for line in lines)
    assert {line.find("a:1 in") for line in lines} == {-1, 44}
    assert [line[19:].split(maxsplit=2)[2] for line in lines[1:3]] == [
        "allowed        as alice, by api_key ak1",
        "routed         service v1 of v1 90, v2 10 (at 0x01)",
    ]
    said = [line[44:] for line in lines[3:]]
    assert said == [
        "b:1, a:1; a:1, its home, comes later; key source_ip 10.0.0.7 at 0x0000009a",
        "b:1",
        "b:1 after 100 µs: Connection refused",
        "a:1, try 2",
        "a:1 in 100 µs",
        "from the instance",
        "cause max_age",
        "client_reset: gone; 2.00 KiB in, 10 B out",
    ]


def test_requests_have_their_connection_s_number_and_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    """Each with its method, key and outcome."""
    what = {"service": "s", "key": "method", "position": "0x1"}
    lines = shown(
        capsys,
        event("placed", 0.1, by="request", service="s", key="method"),
        event("request", 0.1, request=12, method="m", bytes=2048, notification=False, **what),
        event("candidates", 0.1, request=12, endpoints=[], home=None),
        event("waiting", 0.1, request=12, endpoint="a:1"),
        event("sent", 0.1, request=12, endpoint="a:1", tries=1),
        event("retrying", 0.1, request=12, error="it broke"),
        event("answered", 0.1, request=12, endpoint="a:1", seconds=0.0042, error=True),
        event("failed", 0.1, request=13, code="overloaded", error="too many", endpoint=None),
    )
    assert [line[13:18].rstrip() for line in lines] == ["#1", *["#1.12"] * 6, "#1.13"]
    assert [line[44:] for line in lines] == [
        "service s; each request by its own key",
        "m, 2.00 KiB, to s; key method at 0x1",
        "none",
        "for a place at a:1",
        "a:1",
        "it broke",
        "by a:1 in 4.20 ms with an error",
        "overloaded: too many",
    ]


def test_connections_are_numbered_over_all_workers(capsys: pytest.CaptureFixture[str]) -> None:
    """Their ids are each worker's own, and may come again once a connection or a worker is gone."""
    gone = {"at": AT, "event": "worker_gone", "worker": 1, "pid": 101}
    closed = event("closed", reason="client_fin", bytes_in=0, bytes_out=0)
    lines = shown(
        capsys, event("x"), event("x") | {"pid": 101}, closed, event("x"), gone, event("x") | {"pid": 101}
    )
    assert [line[13:19].strip() for line in lines] == ["#1", "#2", "#1", "#3", "", "#4"]
    assert lines[4].endswith("worker gone    worker 1, and with it what connections it had left")


def test_what_was_not_told_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Where it was, and all of it at the end."""
    steps = Steps(as_json=False)
    lost = {"at": AT, "event": "dropped", "worker": 1, "pid": 100}
    steps.show(event("accepted", to="x"))
    assert steps.summary() == "1 connections, 1 events"
    steps.show(lost | {"connections": 3, "requests": 0, "events": 5})
    steps.show(lost | {"connections": 1, "requests": 2, "events": 0})
    assert "3 connections, 5 events were too many to be told" in capsys.readouterr().out
    assert steps.summary() == "1 connections, 1 events; not told: 4 connections, 2 requests, 5 events"


def test_programs_get_events_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """One JSON object a line."""
    events = [event("accepted", to="10.0.0.1:9000"), event("x", 0.5, names=["a", "b"])]
    assert [json.loads(line) for line in shown(capsys, *events, as_json=True)] == events


def test_a_client_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """What it says of itself is shown, and nothing else happens."""
    (line,) = shown(capsys, event("tls", server_name="\x1b[2Ja\nb", certificate=["x", "y"], alpn=""))
    assert line[44:] == r"server name \x1b[2Ja\nb, certificate x y"
