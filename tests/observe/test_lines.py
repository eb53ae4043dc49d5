"""What lines look like, read from the other end of real pipes and terminals."""

import json
import os
import pty
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import ANY

import pytest
import structlog

from tcpgw.endpoints import Endpoint
from tcpgw.observe import logs
from tcpgw.observe.lines import Format
from tests.support.pipes import Pipe

log = structlog.get_logger()


def terminal_output(format_: Format = "auto") -> str:
    """What one event looks like on a terminal."""
    leader, follower = pty.openpty()
    try:
        with logs.configured(format_, "info", follower):
            log.info("ready", listener="predict")
        return os.read(leader, 65536).decode()
    finally:
        os.close(leader)
        os.close(follower)


class Unshowable:
    """What some library's exception argument may turn out to be."""

    def __str__(self) -> str:
        raise RuntimeError("no")


def test_a_line_is_one_json_object(pipe: Pipe) -> None:
    """Into a pipe, "auto" is JSON: time, level and event, then the rest in the order given, bound first."""
    before = datetime.now(UTC)
    with logs.configured("auto", "info", pipe.writer):
        log.bind(listener="predict").info(
            "connection_closed", client="10.0.0.9:1", bytes_in=3, reason="client_fin"
        )
    (line,) = pipe.lines()
    assert list(line) == ["ts", "level", "event", "listener", "client", "bytes_in", "reason"]
    assert list(line.values())[1:] == ["info", "connection_closed", "predict", "10.0.0.9:1", 3, "client_fin"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["ts"])
    # Cut to milliseconds, so up to one early.
    assert before - timedelta(milliseconds=1) <= datetime.fromisoformat(line["ts"]) <= datetime.now(UTC)


def test_auto_is_coloured_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal "auto" writes coloured text for people, unless NO_COLOR asks for plain text."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = terminal_output()
    assert "\x1b[" in coloured
    assert "ready" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert re.fullmatch(r"\S+Z \[info +\] ready +listener=predict\r\n", terminal_output())
    assert json.loads(terminal_output("json"))["event"] == "ready"


def test_console_into_a_pipe_is_plain(pipe: Pipe) -> None:
    """Asked for by name where there is no terminal, the console form comes without colours."""
    with logs.configured("console", "info", pipe.writer):
        log.warning("snapshot_suspect", service="resnet", was=4)
    assert re.fullmatch(r"\S+Z \[warning +\] snapshot_suspect +service=resnet was=4\n", pipe.text())


CYCLE: list[object] = []
CYCLE.append(CYCLE)

VALUES: dict[str, tuple[object, object]] = {
    "endpoint": (Endpoint("10.0.0.1", 80), "10.0.0.1:80"),
    "unicode": ("模型 \x1b[2J\u2028", "模型 \x1b[2J\u2028"),
    "surrogate": ("\ud800", "\ud800"),
    "bytes": (b"caf\xc3\xa9 \xff", "café \\xff"),
    "error": (ConnectionResetError(104, "reset"), "ConnectionResetError: [Errno 104] reset"),
    "path": (Path("/etc/tcpgw"), "/etc/tcpgw"),
    "nan": (float("nan"), None),
    "5000 digits": (10**5000, "<int: ValueError when shown>"),
    "unshowable": (Unshowable(), "<Unshowable: RuntimeError when shown>"),
    "unshowable in an error": (ValueError(Unshowable()), "<ValueError: RuntimeError when shown>"),
    "unshowable key": ({Unshowable(): 1}, ANY),  # with an address in it
    "mapping": ({("a", 1): {2}}, {"('a', 1)": [2]}),
    "list in itself": (CYCLE, [[[[["..."]]]]]),
    "plain list": ([None, True, 1.5], [None, True, 1.5]),
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("format_", ["json", "console"])
def test_no_value_breaks_the_log(pipe: Pipe, format_: Format, name: str) -> None:
    """Any value gives one readable line, and the lines around it are whole."""
    value, expected = VALUES[name]
    with logs.configured(format_, "info", pipe.writer):
        log.info("before")
        log.info("odd", value=value, next=7)
        log.info(value)
        log.info("after")
    text = pipe.text()
    assert text.count("\n") == 4
    if format_ == "json":
        lines = [json.loads(line) for line in text.splitlines()]
        assert [line["event"] for line in (lines[0], lines[1], lines[3])] == ["before", "odd", "after"]
        assert lines[1]["next"] == 7
        assert lines[1]["value"] == lines[2]["event"] == expected
    else:
        assert "\x1b" not in text
        assert re.search(r"odd +value=.* next=7\n|\"next\":7\}\n", text)


def fail(text: str) -> None:
    held = "hunter" + "2"
    raise ConnectionError(f"{text}, {len(held)}")


def test_a_traceback_is_one_line_of_json(pipe: Pipe) -> None:
    """log.exception carries the traceback in the same object, as text."""
    with logs.configured("json", "info", pipe.writer):
        try:
            fail("no route")
        except ConnectionError:
            log.exception("check_failed", endpoint="10.0.0.1:80")
    (line,) = pipe.lines()
    assert (line["level"], line["endpoint"]) == ("error", "10.0.0.1:80")
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ConnectionError: no route, 7")


def test_a_traceback_on_the_console_shows_no_variables(pipe: Pipe) -> None:
    """The console's traceback shows no local variables, which may be secrets; no terminal obeys it."""
    with logs.configured("console", "info", pipe.writer):
        try:
            fail("no route\x1b[2J")
        except ConnectionError:
            log.exception("check_failed")
    text = pipe.text()
    assert "\nConnectionError: no route\\x1b[2J, 7\n" in text
    assert "hunter2" not in text
    assert "\x1b" not in text


def test_secrets_are_masked(pipe: Pipe) -> None:
    """Values whose names say that they are secret never come out, nested ones either; counts and names do."""
    with logs.configured("json", "info", pipe.writer):
        log.info(
            "request",
            iam_password="hunter2",
            api_keys=["hunter2"],
            Authorization="hunter2",
            headers={"X-Auth-Token": "hunter2", "Accept": "*/*"},
            nested=[{"secret_key": b"hunter2"}],
            tokens=3,
            token_expires_at="2026-01-01",
            password_env="TCPGW_IAM_PASSWORD",
            key="10.0.0.1",
            credential="iam",
        )
    (line,) = pipe.lines()
    assert "hunter2" not in json.dumps(line)
    assert line["headers"] == {"X-Auth-Token": "***", "Accept": "*/*"}
    assert list(line.values())[8:] == [3, "2026-01-01", "TCPGW_IAM_PASSWORD", "10.0.0.1", "iam"]
