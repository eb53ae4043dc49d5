"""API keys: what they look like, the file of their hashes, and how one is verified.

A key is `tcpgw_<id>_<secret>`: the id finds its line of the file, the secret is 32 random bytes in base64url.
It has no dot, so nobody takes it for a JWT. The file has one key on a line:

    # who, since when
    k3v9x2mq7bta alice sha256:9f86…0a08 expires=2027-01-01 services=resnet*,bert methods=predict

that is, the id, the subject and the hash of the whole key, then options: `expires` (a day, from whose
beginning in UTC on the key is refused, or a second such as 2027-01-01T12:00:00Z), `listeners`, `services` and
`methods` (patterns with commas between them; without the option: all). Two keys of one subject are how one
replaces the other: add the new one, change the clients, take the old one out.
"""

import hashlib
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hmac import compare_digest
from itertools import takewhile
from typing import NamedTuple

from tcpgw.access.grant import MAX_SUBJECT, Grant, Names, is_subject
from tcpgw.errors import ConfigError, Fault

_ID = "[A-Za-z0-9-]{8,16}"
_SECRET = "[A-Za-z0-9_-]{43}"  # noqa: S105  # what one looks like: 32 bytes in base64url
_KEY = re.compile(f"tcpgw_({_ID})_{_SECRET}".encode())
# With a character or two more or less it is as much of a leak.
_LEAKED = re.compile(r"tcpgw_[A-Za-z0-9-]+_[A-Za-z0-9_-]{16}")
_HASH = re.compile("sha256:([0-9a-fA-F]{64})")
_MOMENT = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}:[0-9]{2}:[0-9]{2}Z)?")

# Without what looks alike; 12 of 31 are 59 bits, so ids of one file do not meet by chance.
_ID_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
_ID_LENGTH = 12
_SETS = ("listeners", "services", "methods")
# A file that is none at all must not fill the log.
_MAX_FAULTS = 20
# What an unknown id is compared with. No key is known that has this hash.
_NOBODY = bytes(32)


class KeyFileError(ConfigError):
    """A key file cannot be used. `faults` names lines (`line 3`), and never holds a key or part of one."""


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A line of a key file. `digest` is SHA-256 of the whole key.

    A fast hash suffices: what slow ones guard against is guessing, and nobody guesses 256 random bits.
    """

    id: str
    digest: bytes = field(repr=False)
    grant: Grant


class NewKey(NamedTuple):
    """A key, to be shown once, and the line to store."""

    key: str
    line: str


class Keys:
    """The keys of one file. Immutable: a file that changed gives another one."""

    def __init__(self, stored: Iterable[StoredKey]) -> None:
        self._by_id = {key.id.encode(): key for key in stored}

    def __len__(self) -> int:
        return len(self._by_id)

    def find(self, token: str | bytes) -> Grant | None:
        """Give what a key grants, though it may have expired; None where it is not one of these.

        An unknown id takes as long as a wrong secret, so timing does not tell which ids there are.
        """
        key = _encoded(token)
        form = _KEY.fullmatch(key)
        if form is None:
            return None
        stored = self._by_id.get(form[1])
        same = compare_digest(hashlib.sha256(key).digest(), stored.digest if stored else _NOBODY)
        return stored.grant if stored and same else None

    def of(self, key_id: str) -> Grant | None:
        """Give what the key of that id grants; None where there is none."""
        stored = self._by_id.get(key_id.encode())
        return stored.grant if stored else None

    def verify(self, token: str | bytes, now: float) -> Grant | None:
        """Give what a key grants at the Unix time `now`, or None."""
        grant = self.find(token)
        return None if grant is None or grant.expired(now) else grant


def is_api_key(token: str | bytes) -> bool:
    """Whether `token` has the form of an API key."""
    return _KEY.fullmatch(_encoded(token)) is not None


def new_key(
    subject: str,
    *,
    expires: float | None = None,
    listeners: Sequence[str] = (),
    services: Sequence[str] = (),
    methods: Sequence[str] = (),
) -> NewKey:
    """Make a key from the system's random numbers. `expires` is a Unix time, an empty sequence means all.

    Raises ValueError for what cannot stand in a key file.
    """
    _check_subject(subject)
    identity = "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH))
    key = f"tcpgw_{identity}_{secrets.token_urlsafe(32)}"
    fields = [identity, subject, f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"]
    if expires is not None:
        fields.append(f"expires={datetime.fromtimestamp(int(expires), UTC):%Y-%m-%dT%H:%M:%SZ}")
    for name, patterns in zip(_SETS, (listeners, services, methods), strict=True):
        for pattern in patterns:
            _check_pattern(pattern)
        if patterns:
            fields.append(f"{name}={','.join(patterns)}")
    return NewKey(key, " ".join(fields))


def moment(text: str) -> float:
    """Read a day (its beginning in UTC) or a second as a Unix time. Raises ValueError with what to write."""
    try:
        if _MOMENT.fullmatch(text):
            return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
    except ValueError:  # the 30th of February
        pass
    raise ValueError("is not a time: write 2027-01-01 or 2027-01-01T12:00:00Z (UTC)")


def parse(text: str) -> tuple[StoredKey, ...]:
    """Read a key file. Raises KeyFileError with what is wrong, line by line."""
    found: dict[str, tuple[int, StoredKey]] = {}
    faults = []
    # Not splitlines: it would also cut at characters that editors do not count as the end of a line.
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        try:
            stored = _stored(line)
        except ValueError as error:
            faults.append(Fault(f"line {number}", str(error)))
            continue
        if stored is None:
            continue
        first, _ = found.setdefault(stored.id, (number, stored))
        if first != number:
            taken = f"id {stored.id} is on line {first} already: make another key"
            faults.append(Fault(f"line {number}", taken))
    if faults:
        more = len(faults) - _MAX_FAULTS
        rest = [Fault("", f"and {more} more lines")] if more > 0 else []
        raise KeyFileError(faults[:_MAX_FAULTS] + rest)
    return tuple(stored for _, stored in found.values())


def _stored(line: str) -> StoredKey | None:
    """Read a line. Raises ValueError, whose text repeats nothing that could be a secret."""
    # Comments too: a key that was noted there has leaked as well.
    if _LEAKED.search(line):
        raise ValueError(
            "holds an API key where only its hash may be. Who has read this file has the key: make a new one "
            "with `tcpgw key new`, and store the line that it prints"
        )
    fields = list(takewhile(lambda field: not field.startswith("#"), line.split()))
    if not fields:
        return None
    if len(fields) < 3:
        raise ValueError("must be ID SUBJECT sha256:HASH, then options; `tcpgw key new` makes such a line")
    identity, subject, hashed, *options = fields
    if not re.fullmatch(_ID, identity):
        raise ValueError("the id must be 8 to 16 letters, digits and -; `tcpgw key new` makes one")
    _check_subject(subject)
    digest = _HASH.fullmatch(hashed)
    if digest is None:
        raise ValueError("the third field must be sha256: and the 64 hexadecimal digits of the key's hash")
    hashed_key = bytes.fromhex(digest[1])
    return StoredKey(identity, hashed_key, _grant(identity, subject, options, hashed_key))


def _grant(identity: str, subject: str, options: Iterable[str], digest: bytes) -> Grant:
    sets: dict[str, Names] = {}
    expires: float | None = None
    seen: set[str] = set()
    for option in options:
        name, _, value = option.partition("=")
        if name not in {"expires", *_SETS}:
            raise ValueError(f"an option must be expires=, {'=, '.join(_SETS)}=; a comment begins with #")
        if name in seen:
            raise ValueError(f"{name}= is there twice: patterns of one option have commas between them")
        seen.add(name)
        try:
            if name == "expires":
                expires = moment(value)
            else:
                sets[name] = _names(value)
        except ValueError as error:
            raise ValueError(f"{name}= {error}") from None
    sets_ = sets.get("listeners"), sets.get("services"), sets.get("methods")
    return Grant(subject, *sets_, expires=expires, key_id=identity, digest=digest)


def _names(value: str) -> Names:
    patterns = value.split(",")
    for pattern in patterns:
        _check_pattern(pattern)
    return Names.of(patterns)


def _check_subject(subject: str) -> None:
    if not is_subject(subject) or subject.startswith("#") or " " in subject:
        raise ValueError(
            f"the subject must be 1 to {MAX_SUBJECT} printable characters without spaces, the first not a #"
        )


def _check_pattern(pattern: str) -> None:
    if not pattern.isprintable() or not pattern or "," in pattern or " " in pattern:
        raise ValueError(
            "patterns must be names, or beginnings of names with a * at their end, with commas and no spaces "
            "between them; leave the option out for all"
        )


def _encoded(token: str | bytes) -> bytes:
    return token if isinstance(token, bytes) else token.encode("utf-8", "replace")
