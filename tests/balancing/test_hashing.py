import json
from ipaddress import AddressValueError, ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgw.balancing.hashing import SEED, SPLIT_SEED, bucket, jhash, other, source_ip, source_ip_port

# Recorded from nftables on real connections; see `test_the_kernel_agrees`.
VECTORS = Path(__file__).parents[1] / "data/vectors/nft_jhash.json"

seeds = st.integers(0, 2**32 - 1)


def slow_jhash(key: bytes, seed: int) -> int:
    """Jenkins' lookup3 word by word and byte by byte, every step cut to 32 bits."""

    def rotated(value: int, by: int) -> int:
        return (value << by | value >> 32 - by) % 2**32

    state = [(0xDEADBEEF + len(key) + seed) % 2**32] * 3
    while True:
        for place, byte in enumerate(key[:12]):
            state[place // 4] = (state[place // 4] + (byte << 8 * (place % 4))) % 2**32
        if len(key) <= 12:
            break
        key = key[12:]
        for step, by in enumerate((4, 6, 8, 16, 19, 4)):
            x, y, z = step % 3, (step + 1) % 3, (step + 2) % 3
            state[x] = (state[x] - state[z]) % 2**32 ^ rotated(state[z], by)
            state[z] = (state[z] + state[y]) % 2**32
    if key:
        for step, by in enumerate((14, 11, 25, 16, 4, 14, 24)):
            x, y = (step + 2) % 3, (step + 1) % 3
            state[x] = ((state[x] ^ state[y]) - rotated(state[y], by)) % 2**32
    return state[2]


def test_the_kernel_agrees() -> None:
    """Every key that nftables hashed on a real connection has the same hash and the same bucket here."""
    vectors: list[dict[str, Any]] = json.loads(VECTORS.read_text())
    assert len(vectors) == 120
    for vector in vectors:
        host, port, seed = vector["saddr"], vector["sport"], vector["seed"]
        position = jhash(bytes.fromhex(vector["key"]), seed)
        assert position == vector["hash"]
        assert bucket(position, vector["mod"]) == vector["bucket"]
        assert position == (source_ip(host, seed) if port is None else source_ip_port(host, port, seed))


@given(st.binary(max_size=50), seeds)
def test_jhash_is_lookup3_for_every_length(key: bytes, seed: int) -> None:
    """The unrolled hash equals the textbook's, for lengths on both sides of each block border."""
    assert jhash(key, seed) == slow_jhash(key, seed)


def test_an_empty_key_is_not_mixed() -> None:
    """Of an empty key the kernel returns the initial value."""
    assert jhash(b"", 0x21524111) == 0


@given(st.ip_addresses(), st.integers(0, 65535))
def test_source_keys_are_packed_addresses(address: Any, port: int) -> None:
    """A source key is the packed address, with a port the port in network order and two zero bytes."""
    assert source_ip(str(address)) == jhash(address.packed, SEED)
    key = address.packed + port.to_bytes(2, "big") + b"\0\0"
    assert source_ip_port(str(address), port) == jhash(key, SEED)


def test_the_address_cache_is_bounded() -> None:
    """A flood of distinct sources cannot fill the memory."""
    assert source_ip.cache_info().maxsize == 65536


def test_what_is_no_address_is_refused() -> None:
    """Text that is no IP address, or a port out of range, raises instead of hashing nonsense."""
    for host in ("", "10.0.0", "localhost", "fd00::x"):
        with pytest.raises(AddressValueError):
            source_ip(host)
    with pytest.raises(OverflowError):
        source_ip_port("10.0.0.1", 65536)


def test_other_is_the_upper_half_of_xxhash64() -> None:
    """Other keys take the high 32 bits of xxhash64 (its published value for the empty input)."""
    assert other(b"", 0) == 0xEF46DB37
    assert other(b"key") != other(b"key", SPLIT_SEED)


@given(seeds, st.integers(1, 2**32))
def test_buckets_cover_the_table_in_order(position: int, size: int) -> None:
    """A bucket lies in the table, and positions in order give buckets in order."""
    assert 0 <= bucket(position, size) < size
    assert bucket(0, size) == 0
    assert bucket(2**32 - 1, size) == (size - 1 if size < 2**32 else 2**32 - 1)
    assert bucket(position, size) <= bucket(min(position + 1, 2**32 - 1), size)


def test_the_split_says_nothing_about_the_endpoint() -> None:
    """The clients of one service of a split still spread over all buckets."""
    first = int(ip_address("10.0.0.0"))
    hosts = [str(ip_address(first + n)) for n in range(20_000)]
    chosen = [host for host in hosts if bucket(source_ip(host, SPLIT_SEED), 10) == 0]
    counts = [0] * 10
    for host in chosen:
        counts[bucket(source_ip(host), 10)] += 1
    assert len(chosen) == pytest.approx(2000, rel=0.1)
    assert counts == pytest.approx([200] * 10, rel=0.25)
