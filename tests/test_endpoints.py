from ipaddress import IPv6Address, ip_address

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgw.endpoints import Endpoint, Member, Snapshot

ports = st.integers(1, 65535)
endpoints = st.builds(Endpoint.of, st.ip_addresses().map(str), ports)
members = st.builds(Member, endpoints, st.integers(0, 65535))


@given(st.ip_addresses(), ports)
def test_text_and_endpoint_are_one(address: object, port: int) -> None:
    """Whatever address: its text is read back as the same endpoint."""
    endpoint = Endpoint.of(str(address), port)
    assert Endpoint.parse(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("10.0.0.1:80", "10.0.0.1:80"),
        ("[FD00:0:0::1]:80", "[fd00::1]:80"),
        ("[0:0:0:0:0:0:0:1]:080", "[::1]:80"),
        ("[::ffff:10.0.0.1]:80", "10.0.0.1:80"),
    ],
)
def test_one_instance_has_one_name(written: str, canonical: str) -> None:
    """However an address is written, the endpoint is the same and its text is the canonical one."""
    assert str(Endpoint.parse(written)) == canonical
    assert Endpoint.parse(written) == Endpoint.parse(canonical)


@given(st.ip_addresses(v=4), ports)
def test_an_ipv4_mapped_address_is_the_ipv4_address(address: object, port: int) -> None:
    """A dual-stack socket's form of an address names the same instance."""
    assert Endpoint.of(f"::ffff:{address}", port) == Endpoint.of(str(address), port)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10.0.0.1", "write 10.0.0.1:8080"),
        (":80", "does not appear to be an IPv4 or IPv6 address"),
        ("fd00::1:80", r"write 10.0.0.1:8080 or \[fd00::1\]:8080"),
        ("[10.0.0.1]:80", "write 10.0.0.1:8080"),
        ("10.0.0.1:http", "write 10.0.0.1:8080"),
        ("10.0.0.1:²", "write 10.0.0.1:8080"),
        ("10.0.0.1:-1", "write 10.0.0.1:8080"),
        ("10.0.0.1:0", "port 0 is not between 1 and 65535"),
        ("10.0.0.1:65536", "port 65536 is not between 1 and 65535"),
        ("redis.internal:6379", "'redis.internal' does not appear to be an IPv4 or IPv6 address"),
        ("010.0.0.1:80", "does not appear to be an IPv4 or IPv6 address"),
    ],
)
def test_what_is_no_endpoint_is_refused(text: str, message: str) -> None:
    """The message says what is wrong or how to write it."""
    with pytest.raises(ValueError, match=message):
        Endpoint.parse(text)


@given(st.text())
def test_no_text_breaks_the_reader(text: str) -> None:
    """Any text is an endpoint or a ValueError."""
    try:
        endpoint = Endpoint.parse(text)
    except ValueError:
        return
    assert str(ip_address(endpoint.host)) == endpoint.host
    assert 0 < endpoint.port < 65536


def test_an_endpoint_is_a_dictionary_key() -> None:
    """Equal endpoints hash equal, and an IPv6 text has its brackets."""
    assert {Endpoint("10.0.0.1", 80): 1}[Endpoint.parse("10.0.0.1:80")] == 1
    assert str(Endpoint("fd00::1", 80)) == "[fd00::1]:80"


@given(st.data(), st.lists(members, unique_by=lambda member: member.endpoint))
def test_a_snapshot_does_not_depend_on_the_order(data: st.DataObject, found: list[Member]) -> None:
    """Sets of members make equal snapshots in whatever order and however often they come."""
    again = data.draw(st.permutations(found + found))
    one, other = (Snapshot.of("s", each, taken_at=1.0) for each in (found, again))
    assert one == other
    assert sorted(found) == list(one.members)


def test_the_last_weight_counts() -> None:
    """An endpoint named twice stands once, with the weight that came last."""
    endpoint = Endpoint("10.0.0.1", 80)
    snapshot = Snapshot.of("s", [Member(endpoint, 2), Member(endpoint, 7)], taken_at=1.0, version=3)
    assert snapshot.members == (Member(endpoint, 7),)
    assert (snapshot.service, snapshot.version, snapshot.taken_at) == ("s", 3, 1.0)


def test_an_endpoint_without_weight_is_known_and_not_used() -> None:
    """Weight 0 stands among the members and not among those that may be given connections."""
    used, unused = Member(Endpoint("10.0.0.1", 80)), Member(Endpoint("10.0.0.2", 80), 0)
    snapshot = Snapshot.of("s", [used, unused], taken_at=1.0)
    assert snapshot.members == (used, unused)
    assert snapshot.weights == {used.endpoint: 1}


def test_a_snapshot_cannot_be_changed() -> None:
    """It is replaced whole."""
    snapshot = Snapshot.of("s", [Member(Endpoint(str(IPv6Address(1)), 80))], taken_at=1.0)
    with pytest.raises(AttributeError):
        snapshot.version = 2  # type: ignore[misc]


def test_a_snapshot_passes_through_an_encoding() -> None:
    """Another process makes the same of what it is told."""
    members = (Member(Endpoint("10.0.0.1", 80), 3), Member(Endpoint("fd00::1", 443), 0))
    snapshot = Snapshot("s", 7, members, 12.5)
    service, version, plain, taken_at = msgpack.unpackb(msgpack.packb(snapshot.plain()))
    assert Snapshot.restored(service, version, plain, taken_at) == snapshot
