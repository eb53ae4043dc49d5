"""The rpc clients notice what a bad gateway would do to their requests."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tcpgw.demo import rpc_clients as module
from tcpgw.demo.instances import DemoError, Instance
from tcpgw.demo.rpc_clients import Failure, Load
from tcpgw.service import RpcError, Service

Predict = Callable[[Any], Awaitable[Any]]

_CLIENTS = 20


@pytest.fixture(autouse=True)
def _few_and_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLIENTS", _CLIENTS)
    monkeypatch.setattr(module, "EVERY", 0.02)


def _load(address: str) -> Load:
    host, _, port = address.rpartition(":")
    return Load((host, int(port)))


async def _one_round(predict: Predict) -> Load:
    """Let the clients meet a service of the test's own."""
    async with Service({"predict": predict}, stop_timeout=1).serving("127.0.0.1:0") as address:
        load = _load(address)
        async with load.flowing([]):
            await load.round()
    return load


async def _right(value: Any) -> Any:
    return {"instance": "a", "input": value}


async def test_right_answers_pass() -> None:
    """Each request is counted once, at the instance that answered it, and nothing is complained of."""
    load = await _one_round(_right)
    assert load.requests == load.per_instance["a"] >= _CLIENTS
    assert load.seen == dict.fromkeys(range(_CLIENTS), "a")
    assert (load.wrong, load.missing, load.lost, load.failures, load.errors) == (0, 0, 0, [], [])
    assert load.clients == set()


async def test_an_answer_of_another_client_is_wrong() -> None:
    """What one client asked is no answer for the others, though all use the same ids."""
    first: list[Any] = []

    async def predict(value: Any) -> Any:
        first.append(value)
        return {"instance": "a", "input": first[0]}

    load = await _one_round(predict)
    assert load.per_instance["a"] == 1
    assert load.wrong == load.requests - 1 > 0


@pytest.mark.parametrize("answer", [None, {}, {"instance": 1, "input": None}, "text"])
async def test_an_answer_of_another_form_is_wrong(answer: Any) -> None:
    """Whatever comes instead of an answer is counted, and no client falls over it."""

    async def predict(_: Any) -> Any:
        return answer

    load = await _one_round(predict)
    assert load.wrong == load.requests >= _CLIENTS


async def test_an_error_is_a_failure_with_its_code_and_endpoint() -> None:
    """A request that fails is answered: its client asks on, and the failure says where it was."""
    refused = 0

    async def predict(value: Any) -> Any:
        nonlocal refused
        refused += 1
        if refused <= 3:
            raise RpcError("upstream_lost", "gone", endpoint="10.0.0.1:80")
        return await _right(value)

    load = await _one_round(predict)
    assert load.failures == [Failure("upstream_lost", "10.0.0.1:80", "gone")] * 3
    assert load.requests == load.per_instance["a"] + 3
    assert (load.wrong, load.missing) == (0, 0)


@asynccontextmanager
async def _replying(reply: bytes) -> AsyncIterator[Load]:
    """A server that answers whatever comes with the same bytes, and the load that meets it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            writer.write(reply)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield Load(server.sockets[0].getsockname())


async def test_an_answer_to_nothing_is_wrong_and_its_request_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An answer with an id that the client does not wait for is not taken for its own."""
    monkeypatch.setattr(module, "_TIMEOUT", 0.3)
    async with _replying(b"\x00\x00\x00\x05\x94\x01\x07\xc0\xc0") as load:
        with pytest.raises(DemoError, match="stand still"):
            async with load.flowing([]):
                await load.round()
    assert load.missing == load.requests > 0
    assert load.wrong > 0
    assert not load.per_instance


async def test_bytes_that_are_no_answer_end_the_client() -> None:
    """A client that cannot read what it gets gives its connection up, and that counts as lost."""
    async with _replying(b"\x00\x00\x00\x01\xc1") as load, load.flowing([]):
        await load.round()
        assert load.wrong == load.lost == load.missing == load.requests == _CLIENTS
        assert "rpc client" in load.errors[0]


async def test_a_client_that_cannot_connect_is_lost() -> None:
    """A refused connection is a figure with an explanation, not an exception."""
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as server:
        address = server.sockets[0].getsockname()
    load = Load(address)
    async with load.flowing([]):
        assert load.clients == set()
    assert load.lost == len(load.errors) == _CLIENTS
    assert "could not connect" in load.errors[0]


async def test_too_few_open_files_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where so many connections cannot be, nothing begins, and the message says what to raise."""
    monkeypatch.setattr(module, "raise_open_files", lambda: 100)
    with pytest.raises(DemoError, match="ulimit"):
        async with Load(("127.0.0.1", 1)).flowing([]):
            pass


async def test_an_instance_tells_its_connections_until_it_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a gateway each client is a connection; killed, the instance takes all of them with it."""
    monkeypatch.setattr(module, "_STATS", 0.01)
    instance = await Instance.start("infer", "infer-1")
    try:
        await instance.ready()
        load = _load(str(instance.endpoint))
        async with load.flowing([instance]):
            await load.round()
            assert load.per_instance["infer-1"] >= _CLIENTS
            async with asyncio.timeout(10):
                while load.connections.get("infer-1") != _CLIENTS:  # noqa: ASYNC110 - as it says in time
                    await asyncio.sleep(0.01)
            await instance.kill()
            await load.round()  # no client is left to wait for
            assert load.lost == _CLIENTS
    finally:
        await instance.kill()
    assert [error for error in load.errors if "rpc client" not in error] == []
