"""What one worker may use: together they may use what the configuration says, and hardly more."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgw.config.load import load, loads
from tcpgw.config.schema import Config, Limits, Method, Quota, SourceQuota
from tcpgw.config.share import share
from tcpgw.config.transfer import plain, restored

VALID = sorted((Path(__file__).parent.parent / "data" / "valid").glob("*.toml"))
MIB = 1 << 20


def config(**keys: Any) -> Config:
    """A configuration with these lines for its rpc service, its rpc listener and [gateway]."""
    return loads(
        f"""
        [gateway]
        {keys.get("gateway", "")}
        [[service]]
        name = "s"
        discovery = {{ type = "static", endpoints = ["10.0.0.1:80"] }}
        rpc = {{ {keys.get("rpc", "")} }}
        connect = {{ {keys.get("connect", "")} }}
        [[listener]]
        name = "rpc"
        bind = "127.0.0.1:1"
        mode = "rpc"
        route = "s"
        {keys.get("listener", "")}
        [[listener]]
        name = "tcp"
        bind = "127.0.0.1:2"
        route = "s"
        max_connections = 10
        """,
        Path("/"),
    )


@pytest.mark.parametrize("sample", VALID, ids=lambda sample: sample.stem)
def test_one_worker_may_use_everything(sample: Path) -> None:
    """Alone, a worker has the configuration as it is."""
    assert share(load(sample), 1) == load(sample)


@pytest.mark.parametrize("sample", VALID, ids=lambda sample: sample.stem)
@pytest.mark.parametrize("workers", [2, 1024])
def test_what_is_shared_is_a_configuration(sample: Path, workers: int) -> None:
    """Every check holds for a worker's part too, so it can be sent; parts of 0 are not made."""
    part = share(load(sample), workers)
    assert plain(restored(plain(part))) == plain(part)


@given(st.integers(1, 100_000), st.integers(1, 1024))
def test_parts_are_rounded_up(whole: int, workers: int) -> None:
    """All together have what was said, and less than one for each more."""
    (listener, _) = share(config(listener=f"max_connections = {whole}"), workers).listener
    assert whole <= workers * listener.max_connections < whole + workers


def test_limits_of_the_gateway_are_shared() -> None:
    """Connections, requests of a method, of an endpoint and of its queue."""
    whole = config(
        rpc="max_inflight = 100, queue = 10",
        listener="""
        max_connections = 7
        methods = { a = { max_inflight = 9 }, b = { timeout = 1 }, c = "deny" }
        """,
    )
    part = share(whole, 4)
    assert [listener.max_connections for listener in part.listener] == [2, 3]
    assert (part.service[0].rpc.max_inflight, part.service[0].rpc.queue) == (25, 3)
    assert part.listener[0].methods == {"a": Method(max_inflight=3), "b": Method(timeout=1), "c": "deny"}


def test_what_a_client_may_have_is_shared() -> None:
    """Rates in equal parts; connections of one source or subject as they are: workers tell each other."""
    whole = config(
        listener="""
        access = { api_keys = "keys" }
        [listener.limits]
        handshakes = 10
        first_byte_timeout = 9
        per_subject = { connections = 7, bytes_in = 1 }
        [listener.limits.per_source]
        connections = 7
        new_per_second = 10
        burst = 5
        bytes_in = 9
        bytes_out = 8
        ipv6_prefix = 56
        """
    )
    source = SourceQuota(connections=7, new_per_second=2.5, burst=2, bytes_in=3, bytes_out=2, ipv6_prefix=56)
    assert share(whole, 4).listener[0].limits == Limits(
        handshakes=3,
        first_byte_timeout=9,
        per_source=source,
        per_subject=Quota(connections=7, bytes_in=1),
    )


def test_what_an_endpoint_may_have_is_shared() -> None:
    """Connections and who waits for them; without a limit there is none in a part."""
    connect = (
        share(config(connect="max_connections = 10, queue = 5, retry_budget = 0.5"), 4).service[0].connect
    )
    assert (connect.max_connections, connect.queue, connect.retry_budget) == (3, 2, 0.5)
    assert share(config(), 4).service[0].connect == config().service[0].connect


@pytest.mark.parametrize(("memory", "workers", "part"), [("1GiB", 4, 256 * MIB), ("1GiB", 100, 128 * MIB)])
def test_resident_memory_is_shared_as_far_as_a_worker_lives(memory: str, workers: int, part: int) -> None:
    """A worker that has no more than its own code would turn everybody away; no limit stays none."""
    overload = f'[gateway.overload]\nmemory = "{memory}"\nlag = "1s"'
    shared = share(config(gateway=overload), workers).gateway.overload
    assert (shared.memory, shared.lag) == (part, 1)
    assert share(config(), workers).gateway.overload.memory is None


def test_limits_of_a_connection_are_not() -> None:
    """What is said of each client, and of times and shares, is a worker's as well."""
    whole = config(
        rpc="connections = 2, retry_budget = 0.5, queue = 1, max_inflight = 1",
        listener="max_inflight = 5\nbuffer = 5000\nmax_connections = 1",
        gateway='rpc_memory = "32MiB"',
    )
    part = share(whole, 2)
    assert part.listener[0].model_copy(update={"limits": whole.listener[0].limits}) == whole.listener[0]
    assert part.service == whole.service
    assert part.gateway == whole.gateway


def test_no_queue_stays_none() -> None:
    """Where no request may wait, none may wait at a worker."""
    assert share(config(rpc="queue = 0"), 3).service[0].rpc.queue == 0


def test_exclusive_connections_are_shared() -> None:
    """Each worker opens its own, and an instance has threads for so many."""
    assert share(config(rpc="exclusive = true, connections = 64"), 3).service[0].rpc.connections == 22
    assert share(config(rpc="exclusive = false, connections = 64"), 3).service[0].rpc.connections == 64


@pytest.mark.parametrize(
    ("frame", "workers", "part"),
    [("1KiB", 4, 250 * MIB), ("1KiB", 1000, 16 * MIB), ("100MiB", 4, 250 * MIB), ("300MiB", 4, 600 * MIB)],
)
def test_memory_is_shared_as_far_as_frames_fit(frame: str, workers: int, part: int) -> None:
    """A worker can hold the longest request and its answer, and what the key asks for at least."""
    whole = config(gateway='rpc_memory = "1000MiB"', listener=f'max_frame = "{frame}"')
    assert share(whole, workers).gateway.rpc_memory == part


def test_a_rate_is_shared_too() -> None:
    """Connections that workers close for a rebalance are as many a second as one gateway's."""
    text = """
        [[service]]
        name = "s"
        discovery = { type = "static", endpoints = ["10.0.0.1:80"] }
        balance = { rebalance = 10 }
        [[listener]]
        name = "l"
        bind = "127.0.0.1:1"
        route = "s"
    """
    assert share(loads(text, Path()), 4).service[0].balance.rebalance == 2.5
