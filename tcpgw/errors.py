"""The one tree of errors. Each class says whose fault it is and whether trying again is safe.

`OSError` and library exceptions are translated where they arise; above that line only these are caught.
"""

from enum import StrEnum
from typing import ClassVar, Literal, NamedTuple

Blame = Literal["operator", "cloud", "client", "instance", "gateway"]


class TcpgwError(Exception):
    """Base of every error that tcpgw raises on purpose.

    `blame` is who can mend it. `retry_safe` is True when nothing has happened yet that a second try would
    repeat (no byte reached an instance, no state changed in the cloud).
    """

    blame: ClassVar[Blame] = "gateway"
    retry_safe: ClassVar[bool] = False


class Fault(NamedTuple):
    """One thing wrong with a configuration: where (`listener[0].bind`) and what to do about it."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ConfigError(TcpgwError):
    """The configuration cannot be used; the one in force stays. `faults` has all that were found."""

    blame = "operator"

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults = faults


class DiscoveryError(TcpgwError):
    """A source could not say which instances a service has. The last good snapshot stays in force."""

    blame: ClassVar[Blame] = "cloud"
    retry_safe = True

    @property
    def repeated(self) -> str:
        """The text less what differs each time: equal ones are one failure that goes on."""
        return str(self)


class ApiError(DiscoveryError):
    """The cloud answered a call with an error, readable and with what to do.

    `status` is the HTTP status, `code` the cloud's own code (`APIG.0301`, `ModelArts.0101`, …) or "",
    `retry_after` the seconds that the cloud asked to wait, or None, `request_id` the cloud's, or "".
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str = "",
        retry_after: float | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after = retry_after
        self.request_id = request_id

    @property
    def repeated(self) -> str:
        return str(self.args[0])

    def __str__(self) -> str:
        return f"{self.args[0]} (request {self.request_id})" if self.request_id else self.repeated


class AnswerError(DiscoveryError):
    """The source answered, but what it said cannot be read as a list of instances."""


class CredentialError(DiscoveryError):
    """No token or signature could be made: the operator's credentials are missing, wrong or expired."""

    blame = "operator"


class TlsError(TcpgwError):
    """A certificate, key or list cannot be used. `where` is its place in the settings, `why` the rest."""

    blame = "operator"

    def __init__(self, where: str, why: str) -> None:
        super().__init__(f"{where}: {why}")
        self.where = where
        self.why = why


class ProtocolError(TcpgwError):
    """A client sent bytes that its protocol does not allow. Its connection is closed, nobody else's."""

    blame = "client"


class FrameTooLargeError(ProtocolError):
    """A frame says that it is longer than the listener's `max_frame`."""


class Code(StrEnum):
    """What an rpc client is told, in its own protocol, where the gateway answers in an instance's stead.

    A closed and documented list: clients branch on it, and it is a metric label.
    """

    UNAUTHENTICATED = "unauthenticated"  # no credentials, or none that are known
    DENIED = "denied"  # the method is not for this client
    NO_ENDPOINT = "no_endpoint"  # no instance that takes requests; nothing was sent
    OVERLOADED = "overloaded"  # a limit or a queue is full; nothing was sent
    DEADLINE_EXCEEDED = "deadline_exceeded"  # the instance may still be at work on it
    UPSTREAM_LOST = "upstream_lost"  # its connection or its answer was lost; it may have done the work
    FRAME_TOO_LARGE = "frame_too_large"  # a request, and the connection ends; or an answer, which is done
    BAD_FRAME = "bad_frame"  # from the gateway: the connection ends after it


class ConnectError(TcpgwError):
    """No instance could be connected to, in `tries` tries. Nothing was sent, so another try is safe."""

    blame = "instance"
    retry_safe = True

    def __init__(self, message: str, *, tries: int = 0) -> None:
        super().__init__(message)
        self.tries = tries


class OverloadError(TcpgwError):
    """A limit, or the lack of a descriptor, of a port or of memory, forbids another connection now.

    No instance is to blame.
    """

    retry_safe = True
