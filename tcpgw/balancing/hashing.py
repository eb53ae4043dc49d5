"""From a key to its position: 32 bits that every hash policy, the split and the kernel plane share.

A position becomes a bucket by scaling, not by modulo: `bucket = (position * size) >> 32` is what the kernel
does for `jhash … mod size` (`reciprocal_scale`), it favours no bucket where the size divides nothing, and it
needs no division. Source addresses are hashed with the kernel's own `jhash`, so that nftables, this process
and every other gateway of a fleet choose the same instance for a client; all other keys with xxhash64.

The seeds are part of the contract between gateways of different versions: a change moves nearly every client.
They are public on purpose. Who could choose its source address freely could aim at one instance, but such a
sender cannot complete a TCP handshake.
"""

from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from struct import Struct

from xxhash import xxh64_intdigest

SEED = 0x7C9  # for the choice of an endpoint; the kernel plane's rules carry the same number
SPLIT_SEED = (
    0x5B1D0C4F  # for the choice of a service: another one, else each service would see half the buckets
)

# Clients in one VPC are thousands at most; 65536 entries are 12 MB when full.
_CACHED_HOSTS = 65536

_MASK = 0xFFFFFFFF
_block = Struct("<3I").unpack_from


def bucket(position: int, size: int) -> int:
    """Scale a position to 0 … size - 1. Equal to the kernel's for every `size` up to 2**32."""
    return position * size >> 32


@lru_cache(maxsize=_CACHED_HOSTS)
def source_ip(host: str, seed: int = SEED) -> int:
    """The position of a client's address, as of nft's `jhash ip saddr` or `jhash ip6 saddr`.

    `host` is IPv4 or IPv6 text in canonical form (an IPv4-mapped address as IPv4). Raises ValueError where
    it is no address.
    """
    return jhash(_packed(host), seed)


def source_ip_port(host: str, port: int, seed: int = SEED) -> int:
    """The position of a client's address and port, as of nft's `jhash ip saddr . tcp sport`.

    nft pads each part of a concatenation to four bytes. `host` as for `source_ip`. Raises ValueError where it
    is no address and OverflowError where `port` does not fit 16 bits.
    """
    return jhash(_packed_cached(host) + port.to_bytes(2, "big") + b"\0\0", seed)


def other(key: bytes, seed: int = SEED) -> int:
    """The position of any other key: the upper half of its xxhash64."""
    return xxh64_intdigest(key, seed) >> 32


def _packed(host: str) -> bytes:
    return (IPv6Address(host) if ":" in host else IPv4Address(host)).packed


# Only for `source_ip_port`: behind `source_ip` a second cache would hold everything twice.
_packed_cached: Callable[[str], bytes] = lru_cache(maxsize=_CACHED_HOSTS)(_packed)


def jhash(data: bytes, seed: int) -> int:
    """Jenkins' lookup3 as in the Linux kernel (`include/linux/jhash.h`) on a little-endian machine.

    `seed` is 32 bits unsigned. Checked against nftables (tests/data/vectors/nft_jhash.json).
    """
    length = len(data)
    a = b = c = 0xDEADBEEF + length + seed & _MASK
    if not length:
        return c
    # The kernel adds the bytes of a short last block one by one: the same as padding it with zeros.
    data += bytes(-length % 12)
    offset = 0
    while length > 12:
        x, y, z = _block(data, offset)
        a, b, c = _mix(a + x, b + y, c + z & _MASK)
        offset += 12
        length -= 12
    x, y, z = _block(data, offset)
    return _final(a + x & _MASK, b + y & _MASK, c + z & _MASK)


# Below, a value is cut to 32 bits only where the next step shifts it right: sums, differences and exclusive
# ors leave the low 32 bits of a longer number correct, and each cut left out is time saved per connection.


def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    a = (a - c ^ (c << 4 | c >> 28)) & _MASK
    c += b
    b = (b - a ^ (a << 6 | a >> 26)) & _MASK
    a += c
    c = (c - b ^ (b << 8 | b >> 24)) & _MASK
    b += a
    a = (a - c ^ (c << 16 | c >> 16)) & _MASK
    c += b
    b = (b - a ^ (a << 19 | a >> 13)) & _MASK
    a += c
    c = (c - b ^ (b << 4 | b >> 28)) & _MASK
    return a, b + a, c


def _final(a: int, b: int, c: int) -> int:
    c = (c ^ b) - (b << 14 | b >> 18) & _MASK
    a = (a ^ c) - (c << 11 | c >> 21) & _MASK
    b = (b ^ a) - (a << 25 | a >> 7) & _MASK
    c = (c ^ b) - (b << 16 | b >> 16) & _MASK
    a = (a ^ c) - (c << 4 | c >> 28) & _MASK
    b = (b ^ a) - (a << 14 | a >> 18) & _MASK
    return (c ^ b) - (b << 24 | b >> 8) & _MASK
