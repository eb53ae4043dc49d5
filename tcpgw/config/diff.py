"""What differs between two configurations: pure, and the only place that decides what a reload touches."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from tcpgw.config.schema import Config, Discovery, Listener, Service, StaticDiscovery
from tcpgw.config.table import Table, keys
from tcpgw.endpoints import Endpoint, Member

# Characters of a value in a line: a list of a hundred endpoints would hide the line beside it.
_LONGEST = 60
# Loggers are made once, when a process starts.
_AT_START = (("gateway", "log", "format"), ("gateway", "log", "level"))
# Has no influence on a service's connections and requests.
_ELSEWHERE = {"alerts", "discovery", "wait"}

Path = tuple[str, ...]


@dataclass(frozen=True)
class ListenerChanges:
    """Names of listeners. One with another `bind` is in `removed` and in `added`.

    `changed` take their settings in place, certificates, rules and limits among them. `replaced` have another
    mode or codec at the same bind, or begin or cease to end TLS: their connections cannot go on under these,
    so a new listener takes the sockets over.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()


@dataclass(frozen=True)
class ServiceChanges:
    """Names of services. `changed` says nothing of discovery and alerts."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Changes:
    """All that differs. Names are sorted.

    `admin`: whether the admin server is opened anew, be it only for another token.
    `discovery`: services, in both configurations, whose source must be asked anew. `restart`: key paths of
    what a running process cannot take. `lines`: one for each difference, with its key path, for operators;
    no secret stands in them.
    """

    listeners: ListenerChanges = ListenerChanges()
    services: ServiceChanges = ServiceChanges()
    admin: bool = False
    discovery: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether anything differs."""
        return bool(self.lines)


def diff(old: Config, new: Config) -> Changes:
    """Tell what becomes of `old` where `new` takes its place. The order of tables is no difference."""
    differing = list(_differing(_dumped(old), _dumped(new)))
    restart = [path for path, *_ in differing if path in _AT_START]
    return Changes(
        _listeners(old, new),
        _services(old, new),
        old.gateway.admin != new.gateway.admin,
        tuple(sorted(_asked_anew(old, new))),
        tuple(map(".".join, restart)),
        tuple(_line(*difference) for difference in differing),
    )


# ---- tables ----


def _listeners(old: Config, new: Config) -> ListenerChanges:
    before = {listener.name: listener for listener in old.listener}
    after = {listener.name: listener for listener in new.listener}
    both = sorted(before.keys() & after.keys())
    moved = {name for name in both if before[name].bind != after[name].bind}
    replaced = [name for name in both if name not in moved and _spoken(before[name]) != _spoken(after[name])]
    return ListenerChanges(
        added=tuple(sorted(moved | after.keys() - before.keys())),
        removed=tuple(sorted(moved | before.keys() - after.keys())),
        changed=tuple(
            name for name in both if name not in {*moved, *replaced} and before[name] != after[name]
        ),
        replaced=tuple(replaced),
    )


def _spoken(listener: Listener) -> object:
    return listener.mode, listener.codec, listener.tls == "passthrough", listener.ends_tls


def _services(old: Config, new: Config) -> ServiceChanges:
    before = {service.name: service for service in old.service}
    after = {service.name: service for service in new.service}
    return ServiceChanges(
        added=tuple(sorted(after.keys() - before.keys())),
        removed=tuple(sorted(before.keys() - after.keys())),
        changed=tuple(
            name
            for name in sorted(before.keys() & after.keys())
            if before[name].model_dump(exclude=_ELSEWHERE) != after[name].model_dump(exclude=_ELSEWHERE)
        ),
    )


def _asked_anew(old: Config, new: Config) -> Iterator[str]:
    before = {service.name: service for service in old.service}
    for service in new.service:
        if service.name in before and _source(old, before[service.name]) != _source(new, service):
            yield service.name


def _source(config: Config, service: Service) -> object:
    """Everything that decides whom its watcher asks, how, and where it keeps what it was told."""
    discovery: Discovery = service.discovery
    stored = None if isinstance(discovery, StaticDiscovery) else config.gateway.state_dir
    return discovery, config.cloud.get(getattr(discovery, "cloud", "")), stored


# ---- lines ----


class _Absent:
    def __repr__(self) -> str:
        return "unset"


_ABSENT = _Absent()


def _dumped(config: Config) -> dict[str, Any]:
    """The configuration with its tables by name, so that their order does not count."""
    dumped = _fields(config)
    for table in ("service", "listener"):
        dumped[table] = {one["name"]: one for one in map(_fields, dumped[table])}
    return dumped


def _fields(table: Table) -> dict[str, Any]:
    return {key: getattr(table, name) for key, name in keys(type(table)).items()}


def _differing(
    old: Mapping[str, Any], new: Mapping[str, Any], path: Path = ()
) -> Iterator[tuple[Path, Any, Any]]:
    """Yield each key path that differs, as deep as both have tables, with both values."""
    for key in [*old, *(key for key in sorted(new) if key not in old)]:
        before, after = old.get(key, _ABSENT), new.get(key, _ABSENT)
        if before == after:
            continue
        here = (*path, key)
        if type(before) is type(after) and isinstance(before, Table):
            yield from _differing(_fields(before), _fields(after), here)
        elif isinstance(before, dict) and isinstance(after, dict):
            yield from sorted(_differing(before, after, here), key=lambda difference: difference[0])
        else:
            yield here, before, after


def _line(path: Path, old: Any, new: Any) -> str:
    where = ".".join(_quoted(key) for key in path)
    if new is _ABSENT:
        return f"{where}: removed"
    if old is _ABSENT:
        return f"{where}: added"
    if isinstance(new, SecretStr):
        return f"{where}: another secret"
    return f"{where}: {_shown(old)} -> {_shown(new)}"


def _quoted(key: str) -> str:
    return key if key and all(char.isalnum() or char in "_-" for char in key) else f'"{key}"'


def _shown(value: Any) -> str:
    text = _text(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 2]} …"


def _text(value: Any) -> str:
    match value:
        case None:
            return "unset"
        case bool():
            return str(value).lower()
        case bytes():  # what a check sends may hold a password
            return f"{len(value)} bytes"
        case float():
            return f"{value:g}"
        case Table():
            named = ", ".join(f"{key} = {_text(one)}" for key, one in _fields(value).items())
            return f"{{ {named} }}"
        case Member(endpoint=endpoint, weight=weight):
            return str(endpoint) if weight == 1 else f"{endpoint} (weight {weight})"
        case tuple() if not isinstance(value, Endpoint):
            return f"[{', '.join(map(_text, value))}]"
        case _:
            return str(value)
