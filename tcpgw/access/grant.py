"""What a verified credential gives, and how it is narrowed.

A pattern is a name, or a prefix followed by `*`. The patterns that match what two sets of them both match are
patterns again, so however often a grant is narrowed it stays three plain sets.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

# As long as a DNS name can be (RFC 1035), and short enough for a log line and a metric label.
MAX_SUBJECT = 255


@dataclass(frozen=True, slots=True)
class Names:
    """A set of patterns; an empty one matches nothing."""

    patterns: frozenset[str]
    # Bytes, because methods come as bytes, once for each request.
    _exact: frozenset[bytes] = field(init=False, repr=False, compare=False)
    _prefixes: tuple[bytes, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        encoded = frozenset(map(_bytes, self.patterns))
        prefixes = tuple(pattern[:-1] for pattern in encoded if pattern.endswith(b"*"))
        object.__setattr__(self, "_exact", encoded)
        object.__setattr__(self, "_prefixes", prefixes)

    @classmethod
    def of(cls, patterns: Iterable[str]) -> "Names":
        return cls(frozenset(patterns))

    def match(self, name: str | bytes) -> bool:
        """Whether a pattern is equal to `name`, or ends in `*` and `name` begins with the rest."""
        text = _bytes(name)
        return text in self._exact or text.startswith(self._prefixes)

    def __and__(self, other: "Names") -> "Names":
        # Of two patterns that both match something, one covers the other.
        mine = {pattern for pattern in self.patterns if other.covers(pattern)}
        return Names.of(mine.union(pattern for pattern in other.patterns if self.covers(pattern)))

    def covers(self, pattern: str) -> bool:
        """Whether a pattern here matches all that `pattern` does."""
        if pattern.endswith("*"):
            return _bytes(pattern[:-1]).startswith(self._prefixes)
        return self.match(pattern)


@dataclass(frozen=True, slots=True)
class Permissions:
    """What may be used; None: all."""

    listeners: Names | None = None
    services: Names | None = None
    methods: Names | None = None


class Kind(StrEnum):
    """Of credentials."""

    API_KEY = "api_key"
    JWT = "jwt"
    CERTIFICATE = "certificate"


@dataclass(frozen=True, slots=True)
class Grant:
    """Who a client is and what it may use; None: all. `expires` is a Unix time, None: never.

    `basis` is what its credential says itself, where that was narrowed; `kind` which one it was, and of an
    API key `key_id` its id and `digest` its hash.
    """

    subject: str
    listeners: Names | None = None
    services: Names | None = None
    methods: Names | None = None
    expires: float | None = None
    kind: Kind = field(default=Kind.API_KEY, compare=False)
    key_id: str = field(default="", compare=False)
    digest: bytes = field(default=b"", compare=False, repr=False)
    basis: "Grant | None" = field(default=None, compare=False, repr=False)

    def expired(self, now: float) -> bool:
        """Whether it has ended at the Unix time `now`."""
        return self.expires is not None and now >= self.expires


class Subjects:
    """Permissions by the pattern of a subject: of an equal one, else of the longest prefix."""

    def __init__(self, table: Mapping[str, Permissions]) -> None:
        self._exact = dict(table)
        self._prefixes = {pattern[:-1]: rule for pattern, rule in table.items() if pattern.endswith("*")}
        # One look-up for each length, however many subjects there are.
        self._lengths = sorted({len(prefix) for prefix in self._prefixes}, reverse=True)

    def of(self, name: str) -> Permissions | None:
        """Find the one rule that counts for `name`, or None."""
        if name in self._exact:
            return self._exact[name]
        for length in self._lengths:
            if length <= len(name) and (rule := self._prefixes.get(name[:length])) is not None:
                return rule
        return None


def narrowed(grant: Grant, permissions: Permissions) -> Grant:
    """Give what the grant and the permissions both allow. It ends when `grant` does."""
    return replace(
        grant,
        listeners=_both(grant.listeners, permissions.listeners),
        services=_both(grant.services, permissions.services),
        methods=_both(grant.methods, permissions.methods),
    )


def allowed(names: Names | None, name: str | bytes) -> bool:
    """Whether `name` may be used, by one of the three sets of a grant."""
    return names is None or names.match(name)


def is_subject(name: str) -> bool:
    """Whether `name` can be a subject: 1 to MAX_SUBJECT printable characters. It stands in logs."""
    return 0 < len(name) <= MAX_SUBJECT and name.isprintable()


def _both(one: Names | None, other: Names | None) -> Names | None:
    if one is None or other is None:
        return other if one is None else one
    return one & other


def _bytes(name: str | bytes) -> bytes:
    # surrogatepass: a name from JSON can hold half a surrogate pair; it matches nobody's and must not raise.
    return name if isinstance(name, bytes) else name.encode("utf-8", "surrogatepass")
