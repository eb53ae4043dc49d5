"""Which source addresses may connect.

Two networks either contain each other or have nothing in common, so that the longest prefix wins means that
the innermost one decides. Nested networks are flattened once into ranges that follow each other, and a
look-up is one bisection, however many there are. Addresses are compared as the kernel's bytes, which sort as
their numbers do: reading one with `ipaddress` costs twenty to thirty times as much as with `inet_pton`.
"""

from bisect import bisect_right
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network
from socket import AF_INET, AF_INET6, inet_pton

Network = IPv4Network | IPv6Network

_MAPPED = bytes(10) + b"\xff\xff"  # RFC 4291, 2.5.5.2


def packed(host: str) -> bytes:
    """Return an address's bytes: 4, of an IPv4-mapped one too, or 16. Raises ValueError if it is none."""
    try:
        if ":" not in host:
            return inet_pton(AF_INET, host)
        address = inet_pton(AF_INET6, host)
    except OSError:
        raise ValueError(f"{host!r} is not an IP address") from None
    return address[12:] if address.startswith(_MAPPED) else address


class Networks:
    """A list of networks to allow and one to deny, IPv4 and IPv6 in any order.

    The longest prefix that contains an address decides; of a network in both lists, `deny` does. What is in
    none is denied if `allow` is not empty, even if all of that is of the other family; else it is allowed.
    An IPv4-mapped address or network is the IPv4 one; no other IPv6 network, not even `::/0`, contains IPv4.
    """

    def __init__(self, allow: Iterable[Network], deny: Iterable[Network]) -> None:
        verdicts = {_place(network): True for network in allow}
        otherwise = not verdicts
        verdicts |= {_place(network): False for network in deny}
        self._v4, self._v6 = (_Ranges(verdicts, size, otherwise) for size in (4, 16))

    def admits(self, host: str) -> bool:
        """Whether `host`, an address as text without a zone, may connect. Raises ValueError if it is none."""
        address = packed(host)
        return (self._v4 if len(address) == 4 else self._v6).verdict(address)


_Place = tuple[int, int, int]  # an address's bytes, a network's first address, its prefix length


def _place(network: Network) -> _Place:
    first, length = network.network_address, network.prefixlen
    if length >= 96 and first.packed.startswith(_MAPPED):
        return 4, int(first) & 0xFFFFFFFF, length - 96
    return len(first.packed), int(first), length


class _Ranges:
    """The verdict on each address of one family: on those from `_starts[i]` on, `_verdicts[i]`."""

    def __init__(self, verdicts: dict[_Place, bool], size: int, otherwise: bool) -> None:
        space = 1 << 8 * size
        changes = {0: otherwise}  # in order of address; of two at one place the later, which is inner, counts
        around = [(space, otherwise)]  # the networks that the sweep is in, as their ends; the innermost last

        def leave(until: int) -> None:
            while around[-1][0] <= until < space:
                end, _ = around.pop()
                changes[end] = around[-1][1]

        # A network comes after those around it: they begin before it, or there with a shorter prefix.
        for place in sorted(place for place in verdicts if place[0] == size):
            _, first, length = place
            leave(first)
            changes[first] = verdicts[place]
            around.append((first + (space >> length), verdicts[place]))
        leave(space - 1)
        self._starts: list[bytes] = []
        self._verdicts: list[bool] = []
        for first, verdict in changes.items():
            if not self._verdicts or verdict != self._verdicts[-1]:
                self._starts.append(first.to_bytes(size))
                self._verdicts.append(verdict)

    def verdict(self, address: bytes) -> bool:
        return self._verdicts[bisect_right(self._starts, address) - 1]
