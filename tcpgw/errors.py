"""The one tree of errors. Each class says whose fault it is and whether trying again is safe.

`OSError` and library exceptions are translated where they arise; above that line only these are caught.
"""

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
    """The configuration cannot be used; the one in force stays. Carries every fault found, not just the first."""

    blame = "operator"

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults = faults


class DiscoveryError(TcpgwError):
    """A source could not say which instances a service has. The last good snapshot stays in force."""

    blame = "cloud"
    retry_safe = True


class ApiError(DiscoveryError):
    """The cloud answered a call with an error, readable and with what to do.

    `status` is the HTTP status, `code` the cloud's own code (`APIG.0301`, `ModelArts.0101`, …) or "",
    `retry_after` the seconds that the cloud asked to wait, or None.
    """

    def __init__(self, message: str, *, status: int, code: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after = retry_after


class AnswerError(DiscoveryError):
    """The source answered, but what it said cannot be read as a list of instances."""


class CredentialError(DiscoveryError):
    """No token or signature could be made: the operator's credentials are missing, wrong or expired."""

    blame = "operator"


class ProtocolError(TcpgwError):
    """A client sent bytes that its protocol does not allow. Its connection is closed, nobody else's."""

    blame = "client"


class ConnectError(TcpgwError):
    """An instance could not be connected to. Nothing was sent, so the next candidate may be tried."""

    blame = "instance"
    retry_safe = True
