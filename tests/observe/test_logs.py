"""Both sources of the log, configured and put back."""

import asyncio
import contextlib
import logging
import os

import pytest
import structlog

from tcpgw.errors import ConfigError
from tcpgw.observe import logs
from tests.support.pipes import Pipe

log = structlog.get_logger()


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", ["a", "A", "b", "B", "c", "C"]),
        ("info", ["b", "B", "c", "C"]),
        ("warning", ["c", "C"]),
        ("error", []),
    ],
)
def test_level_holds_for_both_sources(pipe: Pipe, level: logs.Level, expected: list[str]) -> None:
    """The level cuts structlog's and the standard library's events alike."""
    library = logging.getLogger("aiohttp.server")
    with logs.configured("json", level, pipe.writer):
        log.debug("a")
        library.debug("A")
        log.info("b")
        library.info("B")
        log.warning("c")
        library.warning("C")
    assert [line["event"] for line in pipe.lines()] == expected


async def test_the_event_loops_own_errors_are_logged(pipe: Pipe) -> None:
    """What asyncio reports through the standard library comes out in the same form, traceback and all."""
    with logs.configured("json", "info", pipe.writer):
        error = ZeroDivisionError("a task's")
        asyncio.get_running_loop().call_exception_handler({"message": "never retrieved", "exception": error})
    (line,) = pipe.lines()
    assert list(line) == ["ts", "level", "event", "logger", "exception"]
    assert (line["level"], line["logger"]) == ("error", "asyncio")
    assert line["event"].startswith("never retrieved")
    assert line["exception"].endswith("ZeroDivisionError: a task's")


def test_a_library_that_logs_badly_is_still_heard(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments that do not fit a record's text, and levels of its own, cost nobody a line."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own fails the test for such a record
    with logs.configured("json", "info", pipe.writer):
        logging.getLogger("lib").warning("%d instances", "four")
        logging.getLogger("lib").log(35, "odd")
    assert [(line["level"], line["event"]) for line in pipe.lines()] == [
        ("warning", "%d instances ['four']"),
        ("level 35", "odd"),
    ]


def test_a_workers_lines_say_so(pipe: Pipe) -> None:
    """The field stands right after the event in lines of both sources, in the console form too."""
    with logs.configured("json", "info", pipe.writer, worker=3):
        log.bind(listener="predict").info("ready", port=1)
        logging.getLogger("asyncio").warning("slow")
    ready, slow = pipe.lines()
    assert list(ready)[1:] == ["level", "event", "worker", "listener", "port"]
    assert list(slow)[1:] == ["level", "event", "worker", "logger"]
    assert (ready["worker"], slow["worker"]) == (3, 3)
    other = Pipe()
    with logs.configured("console", "info", other.writer, worker=3):
        log.info("ready", port=1)
    assert other.text().endswith(" worker=3 port=1\n")
    os.close(other.reader)


def test_the_end_puts_everything_back(pipe: Pipe) -> None:
    """Afterwards structlog and the root logger are as before, also when the block failed."""
    root = logging.getLogger()
    before = structlog.get_config(), root.level, list(root.handlers)
    with contextlib.suppress(KeyError), logs.configured("json", "debug", pipe.writer):
        assert root.level == logging.DEBUG
        raise KeyError
    assert (structlog.get_config(), root.level, list(root.handlers)) == before


def test_a_logger_follows_the_configuration(pipe: Pipe) -> None:
    """A module's logger that was used under one configuration obeys the next."""
    first = Pipe()
    with logs.configured("json", "error", first.writer):
        log.error("one")
        log.info("two")
    assert [line["event"] for line in first.lines()] == ["one"]
    os.close(first.reader)
    with logs.configured("json", "info", pipe.writer):
        log.info("three")
    assert [line["event"] for line in pipe.lines()] == ["three"]


def test_a_closed_descriptor_is_said_so(pipe: Pipe) -> None:
    """Where there is nothing to write to, the error says what to do, and nothing was configured."""
    before = structlog.get_config()
    closed = pipe.writer
    pipe.close_writer()
    with pytest.raises(ConfigError, match=rf"start with {closed}>/dev/null"), logs.configured(fd=closed):
        pass
    assert structlog.get_config() == before
