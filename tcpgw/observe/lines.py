"""A line of the log: what was given to it as JSON, or as coloured text for people.

Any value gives one readable line, however long it is and whoever sent it, and none breaks the log.
"""

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import islice
from textwrap import indent
from typing import Any, Literal

import orjson
import structlog
from structlog.typing import EventDict

Format = Literal["auto", "json", "console"]
Render = Callable[[Any, str, EventDict], str]  # a structlog processor

# Characters of a text in a line: longer than any name, path or error that we make.
MAX_TEXT = 2048
# Characters of a line: journald parts lines at 48 KiB (LineMax=), and a pipe holds 64 KiB.
MAX_LINE = 32 * 1024
# Characters of a text, entries of a list or table, and characters of a traceback, at first and where the line
# is still too long. Of a traceback the last ones: its end says what was wrong. Each can be twelve in ASCII.
_CUTS = ((MAX_TEXT, 500, 8 * MAX_TEXT), (128, 20, MAX_TEXT))


def renderer(format_: Format, fd: int) -> Render:
    """Make what turns events into lines: "auto" is "console" on a terminal and "json" elsewhere."""
    terminal = os.isatty(fd)
    if format_ == "json" or (format_ == "auto" and not terminal):
        return _json
    return _console(colors=terminal and not os.environ.get("NO_COLOR"))  # https://no-color.org


def of_worker(worker: int, render: Render) -> Render:
    """Put the worker right after the event of every line."""

    def render_worker(logger: object, level: str, fields: EventDict) -> str:
        return render(logger, level, {"event": fields.pop("event", None), "worker": worker, **fields})

    return render_worker


def _json(_: object, level: str, fields: EventDict) -> str:
    line = _line(level, fields)
    text = _dump(line)
    # Nothing in it can be longer than the whole: so it costs most lines no look at each value.
    return text if len(text) <= MAX_TEXT else _dump(_bounded(line))


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


def _bounded(line: EventDict) -> EventDict:
    """Cut what is too long, so that the line's JSON has at most MAX_LINE characters."""
    for most, entries, trace in _CUTS:
        cut = {
            key: _cut_trace(value, trace) if key == "exception" else _cut(value, most, entries)
            for key, value in line.items()
        }
        if len(_dump(cut)) <= MAX_LINE:
            return cut
    kept: EventDict = {}
    room = MAX_LINE - len(_dump({"left_out": len(cut)}))
    for key, value in cut.items():
        size = len(_dump({key: value}))
        if size <= room:
            kept[key] = value
            room -= size
    return {**kept, "left_out": len(cut) - len(kept)}


def _cut_trace(value: Any, most: int) -> Any:
    if isinstance(value, str) and len(value) > most:
        return f"({len(value) - most} more) ...{value[-most:]}"
    return value


def _cut(value: Any, most: int, entries: int) -> Any:
    """Of what `plain` made: say how much is left out."""
    if isinstance(value, str) and len(value) > most:
        return f"{value[:most]}... ({len(value) - most} more)"
    if isinstance(value, dict):
        some = islice(value.items(), entries)
        table = {_cut(key, most, entries): _cut(inner, most, entries) for key, inner in some}
        return table | ({"...": f"{len(value) - entries} more"} if len(value) > entries else {})
    if isinstance(value, list):
        kept = [_cut(inner, most, entries) for inner in value[:entries]]
        return kept + ([f"... {len(value) - entries} more"] if len(value) > entries else [])
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
        line = {key: _visible(key, value) for key, value in _bounded(_line(level, fields)).items()}
        try:
            return pretty(None, level, line.copy())
        except Exception:  # noqa: BLE001  # an integer of 5,000 digits
            return _dump(line)

    return render


def _visible(key: str, value: object) -> object:
    """Escape what a terminal would obey: nobody's bytes move the operator's cursor, or begin a line.

    What is nested is shown by `repr`, which does the same. Lines of a traceback are set in instead.
    """
    if not isinstance(value, str):
        return value
    if key == "exception":
        return indent(_escaped(value, but="\n\t"), "    ")
    return value if value.isprintable() else _escaped(value)


def _escaped(text: str, but: str = "") -> str:
    return "".join(c if c.isprintable() or c in but else c.encode("unicode_escape").decode() for c in text)


# Types that every renderer prints as they are. Exact types: an Endpoint is a tuple, but stands as its text.
_PLAIN = frozenset({str, int, float, bool, type(None)})
_DEPTH = 5  # what is nested deeper is no longer read in a line, or holds itself


def _line(level: str, fields: EventDict) -> EventDict:
    """Put the three fields first that every line has, make the others printable, mask secrets."""
    if "exc_info" in fields:
        fields = structlog.processors.format_exc_info(None, level, fields)
    line = {"ts": _now(), "level": level, "event": fields.pop("event", None), **fields}
    if not _PLAIN.issuperset(map(type, line.values())):
        line = {key: value if type(value) in _PLAIN else plain(value) for key, value in line.items()}
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


def plain(value: Any, depth: int = 0) -> Any:
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
            shown = {str(key): plain(inner, depth + 1) for key, inner in value.items()}
            return shown | {key: _masked(shown[key]) for key in _secrets(tuple(shown))}
        if type(value) in (list, tuple, set, frozenset):
            return [plain(inner, depth + 1) for inner in value]
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
