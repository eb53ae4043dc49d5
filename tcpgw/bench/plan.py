"""What a run does: the settings that the command makes and that each worker process gets as JSON."""

import dataclasses
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from tcpgw.address import Address
from tcpgw.errors import TcpgwError

MAX_TIMEOUT = 60.0
"""Seconds. The histogram's highest value: no latency is longer than the time-out."""
MAX_SIZE = 64 << 20
"""Bytes of a payload: four times the gateway's default limit of a frame, to be able to go past it."""


class BenchError(TcpgwError):
    """The load could not be put on the target, or a process of the generator failed."""


class Mode(StrEnum):
    """What the target speaks."""

    TCP = "tcp"  # it sends back every byte
    RPC = "rpc"  # msgpack-rpc in frames of a 32-bit big-endian length


@dataclass(frozen=True, slots=True)
class Plan:
    """One run. Sizes in bytes, times in seconds, `rate` in requests per second of all processes together.

    With a rate the loop is open: requests go when they are due, whatever was answered. Without one it is
    closed: each connection keeps `depth` requests in flight. Requests take turns through `sizes`.
    """

    mode: Mode = Mode.TCP
    method: str = "echo"
    connections: int = 10
    depth: int = 1
    rate: float | None = None
    sizes: tuple[int, ...] = (64,)
    warm_up: float = 2.0
    duration: float = 10.0
    timeout: float = 5.0
    processes: int = 1

    @property
    def verified(self) -> bool:
        """Whether an answer must be the request's own payload."""
        return self.mode is Mode.TCP or self.method == "echo"

    def connections_of(self, process: int) -> range:
        """The connections that this process opens, by number: as many as any other's, or one more."""
        return range(process, self.connections, self.processes)

    def describe(self) -> str:
        """The load in one line, for titles."""
        what = "tcp" if self.mode is Mode.TCP else f"rpc {self.method}"
        sizes = ", ".join(map(format_size, self.sizes))
        connections = f"{self.connections:,} connection{'s' if self.connections > 1 else ''}"
        how = (
            f"depth {self.depth}, closed loop"
            if self.rate is None
            else f"{self.rate:,g} requests/s, open loop"
        )
        return f"{what}, {sizes}, {connections}, {how}, {self.duration:g} s"

    def to_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON has."""
        return dataclasses.asdict(self) | {"sizes": list(self.sizes)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read what `to_dict` made, from JSON or not."""
        return cls(**data | {"mode": Mode(data["mode"]), "sizes": tuple(data["sizes"])})


def format_size(size: int) -> str:
    """Bytes as they are written on the command line: `64 B`, `1 KiB`."""
    for unit, width in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= width and size % width == 0:
            return f"{size // width} {unit}"
    return f"{size} B"


@dataclass(frozen=True, slots=True)
class Share:
    """What one worker process is told: the run, where it goes, and which of the plan's processes it is."""

    plan: Plan
    target: Address
    process: int

    def to_json(self) -> str:
        return json.dumps({"plan": self.plan.to_dict(), "target": str(self.target), "process": self.process})

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        data = json.loads(text)
        return cls(Plan.from_dict(data["plan"]), Address.parse(data["target"]), data["process"])
