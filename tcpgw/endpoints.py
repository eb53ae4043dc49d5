"""An instance's address, and the immutable list of them that everything else works on."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import NamedTuple, Self


class Endpoint(NamedTuple):
    """An instance's `ip:port`: its identity in hashing, metrics and logs.

    A tuple because it is a dictionary key on the hot path, where a dataclass's generated `__hash__`
    costs ten times as much. `host` is in canonical form, so that two gateways that were told `::1` and
    `0:0:0:0:0:0:0:1` hash the same bytes.
    """

    host: str
    port: int

    @classmethod
    def of(cls, host: str, port: int) -> Self:
        """Make an endpoint. Raises ValueError where `host` is no IP address or `port` is not 1 to 65535."""
        if not 0 < port < 65536:
            raise ValueError(f"port {port} is not between 1 and 65535")
        address = ip_address(host.strip("[]"))
        mapped = getattr(address, "ipv4_mapped", None)
        return cls(str(mapped or address), port)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `10.0.0.1:80` or `[fd00::1]:80`. Raises ValueError with a message for the operator."""
        host, colon, port = text.rpartition(":")
        if not colon or not port.isascii() or not port.isdigit() or (":" in host) != host.startswith("["):
            raise ValueError(f"{text!r} is not an endpoint: write 10.0.0.1:8080 or [fd00::1]:8080")
        return cls.of(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Member(NamedTuple):
    """An endpoint's place in a snapshot. Weight 0: known, but given no new connection."""

    endpoint: Endpoint
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A service's endpoints at one moment: immutable, versioned, replaced whole.

    `members` is sorted and holds each endpoint once, whatever the order and the repetitions of the source,
    so equal sets compare equal and build equal tables on every gateway. `version` grows by one with each
    published change, `taken_at` is the Unix time of the answer it was made from.
    """

    service: str
    version: int
    members: tuple[Member, ...]
    taken_at: float

    @classmethod
    def of(cls, service: str, members: Iterable[Member], *, taken_at: float, version: int = 1) -> Self:
        """Sort and deduplicate. Of an endpoint named twice, the last weight counts."""
        weights = {member.endpoint: member.weight for member in members}
        return cls(service, version, tuple(sorted(Member(e, w) for e, w in weights.items())), taken_at)

    def plain(self) -> tuple[object, ...]:
        """Return what `restored` takes, in values that every encoding has."""
        members = [[endpoint.host, endpoint.port, weight] for endpoint, weight in self.members]
        return self.service, self.version, members, self.taken_at

    @classmethod
    def restored(
        cls, service: str, version: int, members: Iterable[tuple[str, int, int]], taken_at: float
    ) -> Self:
        """Make the snapshot again that `plain` was asked for."""
        found = tuple(Member(Endpoint(host, port), weight) for host, port, weight in members)
        return cls(service, version, found, taken_at)

    @property
    def weights(self) -> Mapping[Endpoint, int]:
        """Endpoints that may be given new connections, with their weights."""
        return {endpoint: weight for endpoint, weight in self.members if weight > 0}
