"""The client for programs without asyncio."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tcpgw.client import CallTimeoutError, ConnectError, ConnectionLostError, RpcError, SyncClient
from tcpgw.service import Service
from tests.support.rpc_ends import served
from tests.support.streams import PATIENCE, refusing


def test_call_and_notify() -> None:
    """The same calls with the same results and errors, without `await`."""
    seen = threading.Event()
    service = Service({"add": lambda a, b: a + b, "seen": seen.set})
    with served(service) as address, SyncClient(address) as client:
        assert client.call("add", 1, 2) == 3
        with pytest.raises(RpcError, match="unknown_method"):
            client.call("nothing")
        with pytest.raises(ValueError, match="timeout must be"):
            client.call("add", 1, 2, timeout=0)
        client.notify("seen")
        assert seen.wait(PATIENCE)


def test_several_threads_share_a_client() -> None:
    """Calls from many threads at a time each get their own answer."""
    with (
        served(Service({"double": lambda n: 2 * n})) as address,
        SyncClient(address) as client,
        ThreadPoolExecutor(8) as threads,
    ):
        assert list(threads.map(lambda n: client.call("double", n), range(200))) == list(range(0, 400, 2))


def test_a_time_out() -> None:
    """A call's time-out holds here as well."""
    release = threading.Event()
    with served(Service({"slow": lambda: release.wait(PATIENCE)})) as address, SyncClient(address) as client:
        with pytest.raises(CallTimeoutError):
            client.call("slow", timeout=0.05)
        release.set()


def test_close_ends_the_calls_of_other_threads() -> None:
    """A call in flight raises when another thread closes the client; later ones raise ConnectError."""
    begun, release = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        release.wait(PATIENCE)

    with served(Service({"slow": slow})) as address, ThreadPoolExecutor(1) as other:
        client = SyncClient(address)
        call = other.submit(client.call, "slow")
        assert begun.wait(PATIENCE)
        client.close()
        client.close()
        assert isinstance(call.exception(PATIENCE), ConnectionLostError)
        with pytest.raises(ConnectError, match="is closed"):
            client.call("slow")
        release.set()


def test_a_client_that_cannot_connect_leaves_no_thread() -> None:
    """Making a client connects, and where that fails nothing is left of it."""
    before = set(threading.enumerate())
    with refusing() as address, pytest.raises(ConnectError, match="refused"):
        SyncClient(address)
    with pytest.raises(ValueError, match="is no address"):
        SyncClient("nowhere")
    assert set(threading.enumerate()) <= before


def test_options_reach_the_client() -> None:
    """SyncClient takes the options of Client, and no others."""
    with served(Service({"tcpgw.auth": len, "m": len})) as address:
        with SyncClient(address, token="t", max_inflight=1, connect_timeout=PATIENCE) as client:
            assert client.call("m", b"four") == 4
        with pytest.raises(TypeError, match="colour"):
            SyncClient(address, colour="red")  # type: ignore[call-arg]
