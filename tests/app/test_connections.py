"""Which connections there are, as far as each plane knows, and of all workers together."""

import asyncio
from types import MappingProxyType, SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from tcpgw.app.connections import gathered, listed
from tcpgw.app.control import RefusedError
from tcpgw.errors import TcpgwError
from tcpgw.process.worker import WorkerProcess
from tests.support.rpc import Bed, Instance, bed, hold
from tests.support.rpc_ends import frame
from tests.support.streams import until

TCP = '\n[[listener]]\nname = "tcp"\nbind = "127.0.0.1:0"\nroute = "s"\n'


async def rows(made: Bed, *, service: str | None = None, slowest: bool = True, count: int = 10) -> Any:
    return (await made.gateway.relays.connections(service, slowest, count))["connections"]


async def test_rpc_clients_are_listed_with_what_they_wait_for() -> None:
    """By their oldest request, be it at an instance or in a queue; none waits where all is answered."""
    instance = Instance(hold)
    async with bed(instance, service="rpc = { max_inflight = 2 }") as made:
        idle, first, queued = [await made.client() for _ in range(3)]
        first.ask(1)
        first.ask(2)
        await until(lambda: len(instance.requests) == 2)
        queued.ask(1)
        await until(lambda: made.service.waiting == 1)
        await asyncio.sleep(0.05)
        found = await rows(made)
        assert [one["in_flight"] for one in found] == [2, 1, 0]
        assert found[0]["waiting"] > found[1]["waiting"] > 0.04 > found[2]["waiting"] == 0.0
        assert [one["conn"] for one in found] == [2, 3, 1]
        known = {"listener": "l", "service": "s", "endpoint": None, "connect_time": None, "state": "open"}
        assert known.items() <= found[0].items()
        assert found[0]["client"].startswith("127.0.0.1:")
        instance.answer_all()
        await until(lambda: made.service.waiting == 0)
        instance.answer_all()
        await queued.got(1)
        assert {one["in_flight"] for one in await rows(made)} == {0}
        assert idle is not None


async def test_streams_are_listed_with_who_sent_last() -> None:
    """Who sent last is taken to wait for an answer; what is in flight there is nobody's to know."""
    instance = Instance(hold)
    async with bed(instance, more=TCP) as made:
        connections = made.gateway.listeners["tcp"].connections.values
        silent, asking = made.dial(listener="tcp"), made.dial(listener="tcp")
        await until(lambda: len(connections()) == 2)
        await asking.send(b"ping")
        await until(lambda: {one.session and one.session.received for one in connections()} == {0, 4})
        await rows(made)  # a first look sees the bytes, a second how long it was
        await asyncio.sleep(0.05)
        found = [one for one in await rows(made, service="s") if one["listener"] == "tcp"]
        assert [one["bytes_in"] for one in found] == [4, 0]
        assert found[0]["waiting"] > 0.04
        assert found[1]["waiting"] == 0.0
        assert {one["in_flight"] for one in found} == {None}
        assert {one["endpoint"] for one in found} == {instance.endpoint}
        assert all(0 < one["connect_time"] < 5 for one in found)
        assert silent is not None


@pytest.mark.parametrize("codec", ["fifo", "opaque"])
async def test_frames_tell_what_is_owed(codec: str) -> None:
    """Exactly where answers come in order, else by how many went each way."""
    more = f'{TCP}mode = "rpc"\ncodec = {{ name = "{codec}", frame = "u32be" }}\n'
    instance = Instance(hold)
    async with bed(instance, more=more) as made:
        peer = made.dial(listener="tcp")
        await peer.send(frame(0, 1, "m", []) + frame(0, 2, "m", []))
        await until(lambda: len(instance.requests) == 2)
        (found,) = await rows(made)
        assert found["in_flight"] == 2
        instance.answer_all()
        await peer.read(8)
        (found,) = await rows(made)
        assert (found["in_flight"], found["waiting"]) == (0, 0.0)


# ---- however many ----


class Session:
    received = sent = 0

    def __init__(self, service: str) -> None:
        self._service = service

    def owed(self, _: float) -> tuple[int, float]:
        return 0, 0.0

    def facts(self) -> dict[str, object]:
        return {"service": self._service}


def listener(count: int) -> Any:
    """So many connections, the first the oldest, each second of another service."""
    connections = {
        number: SimpleNamespace(
            id=number,
            session=Session("ab"[number % 2]),
            facts=MappingProxyType({}),
            address=None,
            opened=float(number),
        )
        for number in range(count)
    }
    return SimpleNamespace(name="l", connections=connections, draining=())


async def test_ten_thousand_do_not_stall_what_is_relayed() -> None:
    """Others have their turn all the while; the best are kept, and all counted."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    task = asyncio.create_task(other())
    found = await listed([listener(10_000)], [], "b", slowest=False, count=3)
    task.cancel()
    assert turns >= 10_000 // 64 - 1
    assert found["total"] == 5_000
    assert [one["conn"] for one in found["connections"]] == [1, 3, 5]


async def test_what_ends_meanwhile_is_not_listed() -> None:
    """Nor does it harm the rest."""
    many = listener(600)
    asyncio.get_running_loop().call_soon(many.connections.clear)
    found = await listed([many], [], None, slowest=True, count=1000)
    assert found["total"] == len(found["connections"]) == 63


# ---- several workers ----


def worker(slot: int, answer: Any, *, accepting: bool = True) -> WorkerProcess:
    async def call(*asked: Any, timeout: float) -> Any:  # noqa: ASYNC109
        assert asked[0] == "connections"
        assert timeout > 0
        if isinstance(answer, Exception):
            raise answer
        return {"connections": answer, "total": len(answer) + 5}

    event = SimpleNamespace(is_set=lambda: accepting)
    return cast("WorkerProcess", SimpleNamespace(slot=slot, accepting=event, call=call))


def row(age: float, waiting: float | None = None, connect: float | None = None) -> dict[str, Any]:
    return {"age": age, "waiting": waiting, "connect_time": connect}


async def test_all_workers_are_listed_together() -> None:
    """In one order; one that does not answer is named, and the others are there."""
    workers = [
        worker(0, [row(9.0), row(1.0, 3.0)]),
        worker(1, [row(5.0, 7.0), row(2.0, None, 0.5)]),
        worker(2, TcpgwError("no answer within 3 s")),
        worker(3, [row(100.0)], accepting=False),
    ]
    with capture_logs() as logs:
        slowest = await gathered(workers, ["s"], None, slowest=True, count=3)
    assert [(one["worker"], one["age"]) for one in slowest["connections"]] == [(1, 5.0), (0, 1.0), (1, 2.0)]
    assert (slowest["total"], slowest["unheard"]) == (14, [2])
    assert [line["event"] for line in logs] == ["worker_not_heard"]
    oldest = await gathered(workers[:2], ["s"], "s", slowest=False, count=2)
    assert [one["age"] for one in oldest["connections"]] == [9.0, 5.0]


@pytest.mark.parametrize(("service", "count"), [("x", 5), (None, 0), (None, 1_001), (None, "many")])
async def test_a_question_that_makes_no_sense_is_refused(service: str | None, count: Any) -> None:
    """Before any worker is asked."""
    with pytest.raises(RefusedError):
        await gathered([worker(0, TcpgwError())], ["s"], service, slowest=False, count=count)
