"""What a configuration may say of a service, and what it means where it says nothing."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tcpgw.config.health import Health
from tcpgw.config.service import Balance, Connect, Rpc, Service
from tcpgw.config.tls import ClientTls

SERVICE = {"name": "s", "discovery": {"type": "static", "endpoints": ["10.0.0.1:80"]}}


def test_defaults_are_those_that_operators_expect() -> None:
    """What is left out has the values of the design's table."""
    service = Service.model_validate(SERVICE)
    assert service.balance == Balance(
        policy="maglev", key="source_ip", table_size=65537, bounded_load=1.25, rebalance=0, slow_start=None
    )
    assert service.connect == Connect(
        timeout=1, candidates=3, retry_budget=0.2, max_connections=None, queue=0, queue_timeout=1
    )
    assert (service.send_proxy, service.wait, service.tls, service.health) == (None, 30, None, Health())
    assert service.rpc == Rpc(
        exclusive=False,
        connections=1,
        bulk=256 << 10,
        max_inflight=1024,
        queue=1024,
        queue_timeout=1,
        retry_budget=0.2,
        hedge_budget=0.05,
    )


@pytest.mark.parametrize(
    ("key", "by_request"),
    [
        ("source_ip", False),
        ("source_ip_port", False),
        ("listener", False),
        ("hash_key", False),
        ("subject", False),
        ("method", True),
        ("params[0].session", True),
        ('params["a"]', True),
    ],
)
def test_keys_are_of_connections_or_of_requests(key: str, by_request: bool) -> None:
    """A key stays as it is written, and says whether each request has its own."""
    balance = Balance(key=key)
    assert (balance.key, balance.by_request) == (key, by_request)


@given(st.text())
def test_other_keys_are_refused(text: str) -> None:
    """What is neither a word nor a field is refused with all that may stand there."""
    with pytest.raises(ValidationError, match=r"must be 'source_ip', .* or a field such as"):
        Balance(key=f"x{text}")


def test_only_exclusive_connections_may_be_many() -> None:
    """Shared connections are few; where each takes one request at a time there may be more."""
    assert Rpc(connections=64).connections == 64
    assert Rpc(connections=1024, exclusive=True).connections == 1024
    with pytest.raises(ValidationError, match="at most 64 where connections are shared"):
        Rpc(connections=65)
    with pytest.raises(ValidationError, match="less than or equal to 1024"):
        Rpc(connections=1025, exclusive=True)


def test_parts_can_be_switched_off() -> None:
    """0 is no bulk connection, no queue, no retry, no hedge."""
    table = {"bulk": "0B", "queue": 0, "retry_budget": 0, "hedge_budget": 0}
    assert Rpc.model_validate(table) == Rpc(bulk=0, queue=0, retry_budget=0, hedge_budget=0)


@pytest.mark.parametrize("policy", ["maglev", "ring"])
def test_keys_that_have_a_home_may_return_to_it(policy: str) -> None:
    """The rate may be a fraction, and 0 is off."""
    for rate in (0, 0.5, 20):
        assert Balance.model_validate({"policy": policy, "rebalance": rate}).rebalance == rate


@pytest.mark.parametrize("policy", ["least_request", "peak_ewma", "round_robin", "random"])
def test_where_keys_have_no_home_there_is_nothing_to_rebalance(policy: str) -> None:
    """The key would do nothing, so it is refused by name."""
    with pytest.raises(ValidationError, match=f"take it out: policy {policy} has no endpoint for a key"):
        Balance.model_validate({"policy": policy, "rebalance": 1})


def test_who_waits_waits_for_room() -> None:
    """Without a limit nobody waits, so a queue needs one; 0 is none with or without."""
    assert Connect(max_connections=1, queue=5).queue == 5
    assert Connect(queue=0) == Connect()
    with pytest.raises(ValidationError, match="needs max_connections"):
        Connect(queue=5)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (True, ClientTls()),
        (False, None),
        (None, None),
        ({"verify": False}, ClientTls(verify=False)),
        (ClientTls(), ClientTls()),
    ],
)
def test_tls_is_switched_on_or_described(written: Any, read: ClientTls | None) -> None:
    """`true` is the table with its defaults."""
    assert Service.model_validate(SERVICE | {"tls": written}).tls == read


@pytest.mark.parametrize("written", ["yes", 1, [], 1.0])
def test_other_ways_to_switch_tls_are_refused(written: Any) -> None:
    """The message says all that may stand there."""
    with pytest.raises(ValidationError, match="must be true, false or a table, not"):
        Service.model_validate(SERVICE | {"tls": written})
