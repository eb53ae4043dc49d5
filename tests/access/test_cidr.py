from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tcpgw.access.cidr import Network, Networks, packed

# Few networks, close together and at the ends of the address space, so that they nest, touch and repeat.
_V4_PLACES = st.sampled_from([0, 0x0A000000, 0x0A0000F8, 0xFFFFFFF8]).flatmap(
    lambda base: st.integers(base, base + 7)
)
_V6_PLACES = st.sampled_from([0, 0xFFFF0A000000, 0x20010DB8 << 96, (1 << 128) - 8]).flatmap(
    lambda base: st.integers(base, base + 7)
)
v4_networks = st.builds(
    lambda first, length: IPv4Network((first, length), strict=False),
    _V4_PLACES,
    st.sampled_from([0, 1, 8, 24, 28, 29, 30, 31, 32]),
)
v6_networks = st.builds(
    lambda first, length: IPv6Network((first, length), strict=False),
    _V6_PLACES,
    st.sampled_from([0, 1, 32, 64, 96, 104, 125, 126, 127, 128]),
)
networks = st.lists(st.one_of(v4_networks, v6_networks), max_size=12)


def plain(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    return getattr(address, "ipv4_mapped", None) or address


def plain_network(network: Network) -> Network:
    mapped = plain(network.network_address)
    if mapped == network.network_address or network.prefixlen < 96:
        return network
    return ip_network((str(mapped), network.prefixlen - 96))


def oracle(allow: list[Network], deny: list[Network], host: str) -> bool:
    """The rule, word by word."""
    address = plain(ip_address(host))
    lengths = [
        max((n.prefixlen for n in map(plain_network, networks) if address in n), default=-1)
        for networks in (allow, deny)
    ]
    if lengths == [-1, -1]:
        return not allow
    return lengths[0] > lengths[1]


def edges(network: Network) -> list[str]:
    """The addresses at both sides of a network's two ends, and what an IPv4 one is when mapped."""
    first = int(network.network_address)
    last = first + network.num_addresses - 1
    family = type(network.network_address)
    space = 1 << network.max_prefixlen
    return [str(family(place % space)) for place in (first - 1, first, last, last + 1)]


@given(networks, networks, st.lists(st.one_of(v4_networks, v6_networks), max_size=3))
@example([IPv4Network("0.0.0.0/0")], [IPv4Network("0.0.0.0/0")], [])
@example([IPv6Network("::ffff:0:0/96")], [IPv6Network("::/0")], [])
def test_the_longest_prefix_decides(allow: list[Network], deny: list[Network], more: list[Network]) -> None:
    """At every edge of every network, the verdict is that of a search through both lists."""
    found = Networks(allow, deny)
    for network in allow + deny + more:
        for host in edges(network):
            assert found.admits(host) is oracle(allow, deny, host), host


def test_lists_nest() -> None:
    """An exception within an exception counts, and the networks around it go on behind it."""
    found = Networks(
        [IPv4Network("10.0.0.0/8"), IPv4Network("10.9.1.0/24")],
        [IPv4Network("10.9.0.0/16"), IPv4Network("10.9.1.7/32")],
    )
    hosts = {"10.8.255.255": True, "10.9.0.255": False, "10.9.1.6": True, "10.9.1.7": False}
    hosts |= {"10.9.1.8": True, "10.9.2.0": False, "10.10.0.0": True, "11.0.0.0": False}
    assert {host: found.admits(host) for host in hosts} == hosts


def test_a_network_in_both_lists_is_denied() -> None:
    """Where the lists contradict each other, nobody gets in."""
    both = [IPv4Network("10.0.0.0/8")]
    assert not Networks(both, both).admits("10.1.2.3")


@pytest.mark.parametrize(
    ("allow", "deny", "expected"),
    [
        ([], [], [True, True]),
        ([], ["10.0.0.0/8"], [False, True]),
        (["10.0.0.0/8"], [], [True, False]),
        (["0.0.0.0/0"], [], [True, False]),
        (["::/0"], [], [False, True]),
        ([], ["::/0"], [True, False]),
    ],
)
def test_who_is_in_no_list(allow: list[str], deny: list[str], expected: list[bool]) -> None:
    """As soon as anything is allowed the rest is denied, of the other family too."""
    found = Networks(map(ip_network, allow), map(ip_network, deny))
    assert [found.admits(host) for host in ("10.0.0.1", "2001:db8::1")] == expected


def test_a_mapped_address_is_ipv4() -> None:
    """However an IPv4 address is written, as client or in a list, it is one address."""
    for network in (IPv4Network("10.0.0.0/8"), IPv6Network("::ffff:10.0.0.0/104")):
        found = Networks([network], [])
        assert found.admits("10.1.2.3")
        assert found.admits("::ffff:10.1.2.3")
        assert found.admits("::ffff:a01:203")
        assert not found.admits("::ffff:11.1.2.3")
        assert not found.admits("::a01:203")


@pytest.mark.parametrize("host", ["", "localhost", "10.0.0", "10.0.0.256", "::1%lo", "1::2::3", "[::1]"])
def test_what_is_no_address_is_an_error(host: str) -> None:
    """A look-up of anything else raises, and names it: there is no verdict on it."""
    with pytest.raises(ValueError, match="is not an IP address"):
        Networks([], []).admits(host)


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_addresses_are_packed_as_ipaddress_does(address: IPv4Address | IPv6Address) -> None:
    """The bytes of any address are those of the standard library."""
    assert packed(str(address)) == plain(address).packed
