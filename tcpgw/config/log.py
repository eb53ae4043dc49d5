"""What is logged, how, and how much of it."""

from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictFloat, StrictInt, field_validator

from tcpgw.config.table import BySwitch, IsSwitch, IsTable, Table
from tcpgw.config.values import Threshold

# Seconds: connections are looked at in turns of a few seconds anyway, and each would be a line.
_LEAST_EVERY = 1.0


class ConnectionLog(Table):
    """Lines about connections."""

    opened: StrictBool = Field(
        default=False, description="Also one when a connection has been opened, with its endpoint."
    )
    every: Threshold = Field(
        default="off",
        description="Also one each time that a connection has been open for so long again, 1s or more; or "
        "off. For those that live for hours, of which a line at the end comes too late.",
    )
    sample: StrictFloat = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Share of connections that have lines, the same ones for all kinds. The end of one that "
        "ended badly has a line in any case.",
    )
    per_second: StrictInt = Field(
        default=1000,
        ge=1,
        le=1_000_000,
        description="Lines a second, of each worker, and as many at once. What is beyond is counted. 1000 "
        "are some 30 GB of log a day; a quarter is kept for what ended badly.",
    )

    @field_validator("every")
    @classmethod
    def _is_not_too_often(cls, every: float | Literal["off"]) -> float | Literal["off"]:
        if every != "off" and every < _LEAST_EVERY:
            raise ValueError(f"must be at least {_LEAST_EVERY:g} s: each open connection is a line as often")
        return every


class RequestLog(Table):
    """Lines about requests of rpc listeners whose codec tells them apart."""

    sample: StrictFloat = Field(
        default=0.0, ge=0, le=1, description="Share of answered requests that have a line."
    )
    slow: Threshold = Field(
        default="off",
        description="Seconds to its answer from which on each request has a line; or off: only its operator "
        "knows what is slow.",
    )
    errors: StrictBool = Field(
        default=True,
        description="A line for each that was answered with an error, by its instance or by the gateway.",
    )
    per_second: StrictInt = Field(
        default=100,
        ge=1,
        le=1_000_000,
        description="Lines a second, of each worker, and as many at once. What is beyond is counted: when an "
        "instance dies thousands may fail at once, all for the same reason.",
    )


class Log(Table):
    """What is logged, and how."""

    format: Literal["auto", "json", "console"] = Field(
        default="auto", description="auto: console on a terminal, else json, which log collectors read."
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info",
        description="The least important level that is logged. info has the line per connection.",
    )
    connections: Annotated[Annotated[StrictBool, IsSwitch] | Annotated[ConnectionLog, IsTable], BySwitch] = (
        Field(
            default=True,
            description="true: one line at the end of each connection. A table says more. false: none.",
        )
    )
    requests: RequestLog = RequestLog()

    @property
    def of_connections(self) -> ConnectionLog | None:
        """`connections` as a table; None where there are no lines."""
        if isinstance(self.connections, ConnectionLog):
            return self.connections
        return ConnectionLog() if self.connections else None
