"""Why a credential was refused: for the log and for counters, never for the client."""

from enum import StrEnum
from typing import ClassVar

from tcpgw.errors import Blame, TcpgwError

_SHOWN = 64  # characters of a client's own text that a message repeats


class Reason(StrEnum):
    """A closed and documented list, because it is a metric label."""

    MALFORMED = "malformed"  # neither an API key nor a JWT that can be read
    UNKNOWN = "unknown"  # no such API key, no such signing key, or a kind that the listener does not take
    ALGORITHM = "algorithm"  # a JWT signed in a way that the listener does not take
    SIGNATURE = "signature"
    EXPIRED = "expired"
    NOT_YET = "not_yet"  # a JWT whose time has not come
    CLAIMS = "claims"  # a JWT for another audience, of another issuer, or without what it must say
    SUBJECT = "subject"  # the listener's `subjects` have no rule for it
    LISTENER = "listener"  # it is good, but not for this listener


class Denied(TcpgwError):  # noqa: N818  # an answer, nobody's mistake
    """A credential gives nothing. The text is for the log: a client must not learn which part was wrong."""

    blame: ClassVar[Blame] = "client"

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class UnknownKey(Denied):
    """A JWT names a signing key that the set does not hold.

    Whoever holds the set may fetch it anew and ask once more: issuers change their keys. Who cannot treats it
    as any other denial.
    """

    def __init__(self, text: str) -> None:
        super().__init__(Reason.UNKNOWN, text)


def shown(value: object) -> str:
    """Give what a client said as one short printable text."""
    text = ascii(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
