"""The log: one line per event on stderr, and never a reason for the event loop to wait.

A line is formatted where it is logged (lines.py), and written by a thread (writer.py).

stderr, because stdout belongs to what a command prints (`tcpgw endpoints --json | jq`).
"""

import contextlib
import logging
from collections.abc import Iterator
from typing import Literal

import structlog
from structlog.typing import EventDict

from tcpgw.observe.lines import Format, Render, of_worker, plain, renderer
from tcpgw.observe.writer import LineWriter

Level = Literal["debug", "info", "warning", "error"]


@contextlib.contextmanager
def configured(
    format: Format = "auto",  # noqa: A002  # the setting's name
    level: Level = "info",
    fd: int = 2,
    worker: int | None = None,
) -> Iterator[None]:
    """Send structlog's and the standard library's logs to `fd`; put both back as they were at the end.

    "auto" is "console" on a terminal and "json" elsewhere. `worker` stands in every line, right after its
    event: which of the processes with one log it came from. The end waits at most two seconds for what is
    still unwritten. The writing thread does not survive a fork: configure in the child. A process that is
    killed loses the last 100 ms. Raises ConfigError where `fd` is not open.

    Loggers are not cached (`cache_logger_on_first_use`): a cached one would keep the first level and the
    first `fd` for ever. Who logs per connection binds a logger once and so saves the same microsecond.
    """
    render = renderer(format, fd)
    if worker is not None:
        render = of_worker(worker, render)
    number = logging.getLevelNamesMapping()[level.upper()]

    def report(count: int) -> str:
        return render(None, "warning", {"event": "log_lines_dropped", "count": count})

    with (
        contextlib.closing(LineWriter(fd, report)) as writer,
        _structlog(writer, render, number),
        _standard_library(writer, render, number),
    ):
        yield


@contextlib.contextmanager
def _structlog(writer: LineWriter, render: Render, level: int) -> Iterator[None]:
    before = structlog.get_config()
    structlog.configure(
        processors=[render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: writer,
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**before)


@contextlib.contextmanager
def _standard_library(writer: LineWriter, render: Render, level: int) -> Iterator[None]:
    root = logging.getLogger()
    before, handler = root.level, _Handler(writer, render)
    root.addHandler(handler)
    root.setLevel(level)
    try:
        yield
    finally:
        root.setLevel(before)
        root.removeHandler(handler)


class _Handler(logging.Handler):
    """Gives records of asyncio, aiohttp and the like the same form and the same way out."""

    def __init__(self, writer: LineWriter, render: Render) -> None:
        super().__init__()
        self._writer = writer
        self._render = render

    def emit(self, record: logging.LogRecord) -> None:
        fields: EventDict = {"event": _message(record), "logger": record.name}
        if record.exc_info:
            fields["exc_info"] = record.exc_info
        self._writer.write(self._render(None, record.levelname.lower(), fields))


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001  # arguments that do not fit the text: somebody's bug, but still news
        return f"{record.msg} {plain(record.args)}"
