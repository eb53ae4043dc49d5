"""What lines look like, read from the other end of real pipes and terminals."""

import json
import os
import pty
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from tcpgw.endpoints import Endpoint
from tcpgw.observe import logs
from tcpgw.observe.lines import MAX_LINE, MAX_TEXT, Format, renderer
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
    assert "\n    ConnectionError: no route\\x1b[2J, 7\n" in text
    assert "hunter2" not in text
    assert "\x1b" not in text


def test_on_the_console_nothing_of_an_error_begins_a_line(pipe: Pipe) -> None:
    """A text with line breaks in it cannot pass for another event."""
    forged = "2026-11-28T20:52:00.446Z [info     ] ready"
    with logs.configured("console", "info", pipe.writer):
        try:
            fail(f"no route\n{forged}")
        except ConnectionError:
            log.exception("check_failed")
    lines = pipe.text().splitlines()
    assert [line.strip() for line in lines if forged in line] == [f"{forged}, 7"]
    assert all(line.startswith("    ") for line in lines[1:])


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


# ---- what strangers send ----

TEXT = st.text(st.characters(exclude_categories=()), max_size=60)  # half surrogate pairs among them
LONG = st.builds(lambda text, times: text * times, TEXT, st.integers(0, 2000))
LEAF = st.one_of(TEXT, LONG, st.binary(max_size=60), st.integers(), st.floats(), st.booleans(), st.none())
VALUE = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT | st.integers(), inner, max_size=5)
)
FIELDS = st.dictionaries(st.sampled_from("abcdefgh"), VALUE | st.lists(LONG, max_size=600))


@settings(deadline=None)
@given(event=VALUE, fields=FIELDS)
def test_a_line_of_anything_is_one_bounded_json_object(event: object, fields: dict[str, object]) -> None:
    """Whatever stands in it: one line of ASCII, an object that says when and what, within the bound."""
    line = renderer("json", 2)(None, "info", {"event": event, **fields})
    assert line.isascii()
    assert not set(line) & set(map(chr, range(32)))
    assert len(line) <= MAX_LINE
    read = json.loads(line)
    assert list(read)[:3] == ["ts", "level", "event"]


@settings(deadline=None)
@given(event=VALUE, fields=FIELDS)
def test_a_line_of_anything_moves_no_cursor(event: object, fields: dict[str, object]) -> None:
    """For people, too, it is one line, and of what is printed only."""
    with Path(os.devnull).open() as no_terminal:
        render = renderer("console", no_terminal.fileno())
    line = render(None, "info", {"event": event, **fields})
    assert line.isprintable()
    assert len(line) <= 2 * MAX_LINE


def rendered(**fields: object) -> dict[str, Any]:
    line = renderer("json", 2)(None, "info", {"event": "e", **fields})
    assert len(line) <= MAX_LINE
    read: dict[str, Any] = json.loads(line)
    return read


def test_long_texts_are_cut() -> None:
    """What is left out is said, in whatever it stands; what is just not too long stays whole."""
    long, cut = "x" * 1_000_000, f"{'x' * MAX_TEXT}... ({1_000_000 - MAX_TEXT} more)"
    assert rendered(a="x" * MAX_TEXT)["a"] == "x" * MAX_TEXT
    line = rendered(a=long, b=[long.encode()], c={long: {"d": long}}, d="short")
    assert line["a"] == line["b"][0] == line["c"][cut]["d"] == cut
    assert line["d"] == "short"


def test_long_lists_are_cut() -> None:
    """Of lists and tables the first entries are shown."""
    line = rendered(a=list(range(10_000)), b={str(number): number for number in range(10_000)})
    assert (line["a"][:3], line["a"][-1]) == ([0, 1, 2], "... 9500 more")
    assert (len(line["b"]), line["b"]["..."]) == (501, "9500 more")


def test_long_lines_are_cut() -> None:
    """With many long values less is shown of each; with too many, fields are left out, and that is said."""
    line = rendered(**{f"f{number}": "x" * 2000 for number in range(50)})
    assert len(line) == 53
    assert line["f49"] == f"{'x' * 128}... (1872 more)"
    line = rendered(**{f"f{number}": "x" * 100 for number in range(1000)})
    assert line["f0"] == "x" * 100
    assert len(line) - 1 + line["left_out"] == 1003


def test_of_a_long_traceback_the_end_is_shown() -> None:
    """There it says what was wrong."""
    try:
        fail(f"{'x' * 100_000}, the end")
    except ConnectionError:
        line = rendered(exc_info=True)
    assert re.fullmatch(r"\(\d+ more\) \.\.\.x{16000,}, the end, 7", line["exception"])


@pytest.mark.parametrize("letter", ["模", "\U0001f525"])
def test_of_a_traceback_in_any_script_the_end_is_shown(letter: str) -> None:
    """Less of it where its characters are longer in ASCII, but as with others there is what was wrong."""
    try:
        fail(f"{letter * 100_000}, the end")
    except ConnectionError:
        line = rendered(exc_info=True)
    assert re.fullmatch(rf"\(\d+ more\) \.\.\.{letter}{{2000,}}, the end, 7", line["exception"])
    assert "left_out" not in line
