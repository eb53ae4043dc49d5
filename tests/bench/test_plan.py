"""What a run is told."""

import pytest

from tcpgw.address import Address
from tcpgw.bench.plan import Mode, Plan, Share, format_size


def test_a_share_survives_json() -> None:
    """A worker process does exactly what its parent was told."""
    plan = Plan(mode=Mode.RPC, method="predict", rate=0.5, sizes=(0, 1024), processes=3, timeout=1.5)
    for target in (Address("fd00::1", 9000), Address("gateway", 1), Address(path="/run/x.sock")):
        share = Share(plan, target, 2)
        assert Share.from_json(share.to_json()) == share


@pytest.mark.parametrize(("connections", "processes"), [(1, 1), (10, 3), (4, 4), (7, 2)])
def test_every_connection_belongs_to_one_process(connections: int, processes: int) -> None:
    """Processes share the connections evenly, and each has one."""
    plan = Plan(connections=connections, processes=processes)
    shares = [list(plan.connections_of(process)) for process in range(processes)]
    assert sorted(number for share in shares for number in share) == list(range(connections))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert all(shares)


def test_only_echoes_are_verified() -> None:
    """Raw TCP and the method echo must return the payload, other methods need not."""
    assert Plan(mode=Mode.TCP).verified
    assert Plan(mode=Mode.RPC).verified
    assert not Plan(mode=Mode.RPC, method="predict").verified


def test_a_plan_says_what_it_does() -> None:
    """The title names protocol, sizes, connections, loop and duration."""
    assert Plan(connections=1, depth=4).describe() == "tcp, 64 B, 1 connection, depth 4, closed loop, 10 s"
    plan = Plan(mode=Mode.RPC, sizes=(1024, 3 << 20, 1500), rate=2500, duration=0.5)
    assert plan.describe() == (
        "rpc echo, 1 KiB, 3 MiB, 1500 B, 10 connections, 2,500 requests/s, open loop, 0.5 s"
    )
    assert format_size(0) == "0 B"
