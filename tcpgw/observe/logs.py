"""The log: one line per event on stderr, and never a reason for the event loop to wait.

A line is formatted where it is logged and put into a bounded queue; one thread writes what has gathered with
one call. When the reader of the log stalls (a full pipe, a paused terminal, a slow journal) the queue fills,
and lines are dropped and counted instead of traffic delayed. Processes that share the descriptor take turns.

stderr, because stdout belongs to what a command prints (`tcpgw endpoints --json | jq`).
"""

import contextlib
import fcntl
import json
import logging
import os
import re
import select
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from queue import SimpleQueue
from typing import Any, Literal

import orjson
import structlog
from structlog.typing import EventDict

from tcpgw.errors import ConfigError, Fault

Format = Literal["auto", "json", "console"]
Level = Literal["debug", "info", "warning", "error"]
Render = Callable[[Any, str, EventDict], str]  # a structlog processor

# About 3.5 MB of connection lines, and as much again in a write that stalls: at 8,000 connections a second
# that bridges a stall of more than a second.
MAX_LINES = 10_000
# Seconds that a line may wait for others to share its write call. For each batch the thread asks for the
# interpreter five times, each time for up to 5 ms of a busy loop, and meanwhile every system call of the
# loop costs a futex more: with 10 ms here, 8 % of a short connection. A person does not notice 100 ms.
_GATHER = 0.1
_FLUSH_TIMEOUT = 2.0  # seconds at exit for a reader that stalls; process supervisors wait longer than this
# Seconds that a batch waits for its turn, and between two looks whether it is there. Who writes for longer is
# stopped, or its reader stalls; two waits, the last batch's and that before it, are still within a flush.
# Each look asks for the interpreter once more, so not too often.
_TURN, _LOOK = 0.5, 0.01


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
    render = _renderer(format, fd)
    if worker is not None:
        render = _of_worker(worker, render)
    number = logging.getLevelNamesMapping()[level.upper()]

    def report(count: int) -> str:
        return render(None, "warning", {"event": "log_lines_dropped", "count": count})

    with (
        contextlib.closing(LineWriter(fd, report)) as writer,
        _structlog(writer, render, number),
        _standard_library(writer, render, number),
    ):
        yield


class LineWriter:
    """Lines into a file descriptor, by a thread of its own.

    `report` makes the line that tells how many lines were dropped. A descriptor and not `sys.stderr`: a
    thread stuck in a write would hold that object's lock, and the interpreter's exit wants it. A copy of
    the descriptor: a thread that `close` gave up on must not write to whoever gets the number next.

    Raises ConfigError where `fd` is not open.
    """

    def __init__(self, fd: int, report: Callable[[int], str]) -> None:
        try:
            self._fd = os.dup(fd)
        except OSError as error:
            hint = (
                f"no log: descriptor {fd} cannot be used ({error}); to have none, start with {fd}>/dev/null"
            )
            raise ConfigError([Fault("", hint)]) from error
        self._report = report
        self._mixes = _mixes(self._fd)
        # Not Queue: SimpleQueue.put cannot deadlock when a finaliser logs in the middle of another put.
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._dropped = 0  # ever; several threads add to it, and a count lost between them would harm nobody
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Take a line, without its newline. Never blocks, never raises; drops it where MAX_LINES wait."""
        if self._lines.qsize() < MAX_LINES:
            self._lines.put(line)
        else:
            self._dropped += 1

    # What structlog calls a logger's methods.
    debug = info = warning = error = critical = write

    def close(self, timeout: float = _FLUSH_TIMEOUT) -> None:
        """Write what waits, for at most `timeout` seconds. Idempotent. Later lines go nowhere."""
        if not self._closed:
            self._closed = True
            self._lines.put(None)
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            self._write_batches()
        finally:
            os.close(self._fd)

    def _write_batches(self) -> None:
        reported = 0
        closing = False
        while not closing:
            batch = [self._lines.get()]
            time.sleep(_GATHER)
            batch += [self._lines.get_nowait() for _ in range(self._lines.qsize())]
            closing = None in batch
            lines = [line for line in batch if line is not None]
            dropped = self._dropped
            news = [self._report(dropped - reported)] if dropped > reported else []
            if unwritten := self._write_out(lines + news):
                self._dropped += unwritten - len(news)  # and what the report told of stays to be told
            else:
                reported = dropped

    def _write_out(self, lines: list[str]) -> int:
        """Write the lines; return how many were not: nobody reads them any more, or the disk is full."""
        rest = memoryview("".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"))
        try:
            with self._turn():
                while rest:
                    rest = rest[self._write_some(rest) :]
        except OSError:
            return bytes(rest).count(b"\n")
        return 0

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Keep the batches of several processes apart, or where that fails let them mix: lines cut in two are
        better than none. The kernel takes the lock back from who dies.
        """
        if not (self._mixes and self._locked()):
            yield
            return
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def _locked(self) -> bool:
        # Looks again and again: a wait in the kernel has no end where the owner of the lock was stopped.
        until = time.monotonic() + _TURN
        while time.monotonic() < until:
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(_LOOK)
            except OSError:  # a descriptor or a kernel without locks
                return False
            else:
                return True
        return False

    def _write_some(self, data: memoryview) -> int:
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            # O_NONBLOCK belongs to the open file, so any process that shares our terminal can have set it.
            poll = select.poll()
            poll.register(self._fd, select.POLLOUT)
            poll.poll()
            return 0


def _mixes(fd: int) -> bool:
    """Whether a long write can have another process's in its midst, as in pipes beyond PIPE_BUF.

    Files and terminals take a write as one; and a lock of /dev/null would be the whole machine's.
    """
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


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
        return f"{record.msg} {_plain(record.args)}"


def _renderer(format_: Format, fd: int) -> Render:
    terminal = os.isatty(fd)
    if format_ == "json" or (format_ == "auto" and not terminal):
        return _json
    return _console(colors=terminal and not os.environ.get("NO_COLOR"))  # https://no-color.org


def _of_worker(worker: int, render: Render) -> Render:
    def render_worker(logger: object, level: str, fields: EventDict) -> str:
        return render(logger, level, {"event": fields.pop("event", None), "worker": worker, **fields})

    return render_worker


def _json(_: object, level: str, fields: EventDict) -> str:
    return _dump(_line(level, fields))


_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode  # ASCII: a line stays one line


def _dump(line: EventDict) -> str:
    # orjson takes a tenth of the standard library's time, on a path that every connection takes.
    with contextlib.suppress(TypeError):  # half a surrogate pair, an integer of more than 64 bits
        encoded = orjson.dumps(line)
        if encoded.isascii():
            return encoded.decode()
    try:
        return _encode(line)
    except ValueError:
        # Not a number, or an integer of 5,000 digits: rare, and no reason to lose the line.
        return _encode({key: _encodable(value) for key, value in line.items()})


def _encodable(value: object) -> object:
    try:
        _encode(value)
    except ValueError:
        return _shown(value, repr)
    return value


def _console(*, colors: bool) -> Render:
    """For people. structlog's default would print the local variables of a traceback, secrets among them."""
    pretty = structlog.dev.ConsoleRenderer(
        colors=colors,
        sort_keys=False,
        timestamp_key="ts",
        exception_formatter=structlog.dev.plain_traceback,
    )

    def render(_: object, level: str, fields: EventDict) -> str:
        line = {key: _visible(value) for key, value in _line(level, fields).items()}
        try:
            return pretty(None, level, line.copy())
        except Exception:  # noqa: BLE001  # an integer of 5,000 digits
            return _dump(line)

    return render


def _visible(value: object) -> object:
    """Escape what a terminal would obey: nobody's bytes move the operator's cursor."""
    if not isinstance(value, str) or value.isprintable():
        return value
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in value
    )


# Types that every renderer prints as they are. Exact types: an Endpoint is a tuple, but stands as its text.
_PLAIN = frozenset({str, int, float, bool, type(None)})
_DEPTH = 5  # what is nested deeper is no longer read in a line, or holds itself


def _line(level: str, fields: EventDict) -> EventDict:
    """Put the three fields first that every line has, make the others printable, mask secrets."""
    if "exc_info" in fields:
        fields = structlog.processors.format_exc_info(None, level, fields)
    line = {"ts": _now(), "level": level, "event": fields.pop("event", None), **fields}
    if not _PLAIN.issuperset(map(type, line.values())):
        line = {key: value if type(value) in _PLAIN else _plain(value) for key, value in line.items()}
    for key in _secrets(tuple(line)):
        line[key] = _masked(line[key])
    return line


def _now() -> str:
    # Twice as fast as datetime.isoformat, on a path that every connection takes.
    now = time.time()
    return f"{_whole_second(int(now))}.{int(now % 1 * 1000):03d}Z"


@lru_cache(maxsize=2)
def _whole_second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _plain(value: Any, depth: int = 0) -> Any:
    """Text, numbers, lists and dictionaries of them, whatever the value is and does."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, bytes | bytearray):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, BaseException):
        return _shown(value, lambda error: f"{type(error).__name__}: {error}")
    if depth == _DEPTH:
        return "..."
    try:
        if isinstance(value, Mapping):
            plain = {str(key): _plain(inner, depth + 1) for key, inner in value.items()}
            return plain | {key: _masked(plain[key]) for key in _secrets(tuple(plain))}
        if type(value) in (list, tuple, set, frozenset):
            return [_plain(inner, depth + 1) for inner in value]
    except Exception:  # noqa: BLE001  # another thread changes it meanwhile, a key cannot be shown
        return _shown(value, repr)
    return _shown(value, str)


def _shown(value: object, how: Callable[[Any], str]) -> str:
    try:
        return how(value)
    except Exception as error:  # noqa: BLE001  # anything can be in a __str__
        return f"<{type(value).__name__}: {type(error).__name__} when shown>"


# The second line of defence: the first is that nobody logs them. Only a name's end tells (`iam_password`,
# `X-Auth-Token`): `token_expires_at` and `password_env` are no secrets.
_SECRET = re.compile(
    r"(password|passwd|passphrase|secret|token|authorization|cookie|(access|api|private|secret|signing)[_-]?key)s?$",
    re.IGNORECASE,
)


@lru_cache(maxsize=1024)  # one entry per place in the code that logs: asking costs one hash of the names
def _secrets(keys: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(key for key in keys if _SECRET.search(key))


def _masked(value: object) -> object:
    """A number is a count (`tokens=3` in a bucket), not a secret."""
    return value if isinstance(value, int | float | None) else "***"
