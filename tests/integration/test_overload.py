"""A gateway with more to do than it can: it takes nothing new, and what it has goes on."""

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Self

from tests.support.flood import Crowd, crowd, echoing, served, text
from tests.support.load import Background
from tests.support.processes import PATIENCE, free_port, wait_until
from tests.support.rpc import REQUEST, Instance, bed, connected, echo, hold
from tests.support.streams import MiB, Peer, until
from tests.support.workers import Run, config_of, exchange, unharmed

LATE = 'overload = { lag = "40ms" }'


@contextlib.asynccontextmanager
async def late() -> AsyncIterator[None]:
    """Each turn of the loop takes as long as if there were far too much to do in it."""
    loop = asyncio.get_running_loop()
    busy = True

    def work() -> None:
        if busy:
            time.sleep(0.1)
            loop.call_soon(work)

    loop.call_soon(work)
    try:
        yield
    finally:
        busy = False


async def over(c: Crowd) -> None:
    await until(lambda: c.events("overload_over"))


async def test_new_clients_are_refused_and_others_go_on() -> None:
    """While the loop is late; it ends by itself, and of both the log tells once."""
    async with echoing() as endpoint, crowd(text(endpoint, gateway=LATE)) as c:
        before = c.dial()
        assert await served(before)
        async with late():
            await until(lambda: c.events("overloaded"))
            assert not any([await served(c.dial()) for _ in range(3)])
            assert await served(before)
            assert c.gateway.relays.status()["overload"] == {"active": 1, "times": 1, "shed": 0}
        await over(c)
        assert await served(before)
        assert await served(c.dial())
        assert c.ended == {"overload": 3}
        (began,) = c.events("overloaded")
        assert began["why"].startswith("the event loop is ")
        assert began["log_level"] == "error"
        assert len(c.events("overload_over")) == 1
        (denied,) = c.events("denied")
        assert denied["reason"] == "overload"
        assert c.gateway.relays.status()["overload"] == {"active": 0, "times": 1, "shed": 0}


async def test_who_waits_longest_for_an_instance_is_turned_away_first() -> None:
    """A part at each look; who is connected keeps its instance."""
    service = 'connect = { max_connections = 1, queue = 100, queue_timeout = "20s" }'
    async with echoing() as endpoint, crowd(text(endpoint, gateway=LATE, service=service)) as c:
        first = c.dial()
        assert await served(first)
        waiting = []
        line = c.gateway.relays.places.circuit(c.gateway.pools["s"])
        for number in range(1, 9):
            waiting.append(c.dial())
            await until(lambda number=number: line.waiting == number)  # type: ignore[misc]
        gone: list[int] = []
        watching = [asyncio.create_task(_note(peer, place, gone)) for place, peer in enumerate(waiting)]
        async with late():
            await until(lambda: len(gone) >= 4)
        await over(c)
        assert gone == sorted(gone)
        assert await served(first)
        shed = c.gateway.relays.status()["overload"]["shed"]
        assert shed == len(gone) == c.ended["overload"]
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)


async def _note(peer: Peer, place: int, gone: list[int]) -> None:
    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.get_running_loop().sock_recv(peer.sock, 1) == b""
    gone.append(place)


async def test_rpc_clients_are_told() -> None:
    """New ones are refused, those that wait are shed by priority and age; what is under way goes on."""
    instance = Instance(hold)
    async with bed(
        instance,
        service='rpc = { max_inflight = 1, queue_timeout = "20s" }',
        listener='methods = { "low" = { priority = "low" }, "high" = { priority = "high" } }',
        gateway=LATE,
    ) as g:
        client = await g.client()
        client.ask(0)
        await until(lambda: instance.held)
        for number, method in enumerate(["high", "m", "m", "low", "low"], 1):
            client.send(REQUEST, number, method, [number])
            await until(lambda number=number: len(g.target(instance).main.queue) == number)  # type: ignore[misc]
        async with late():
            await until(lambda: g.events("overloaded"))
            stranger = await connected(g.listener.address)
            (told,) = await stranger.got(1)
            assert told[2]["code"] == "overloaded"
            await until(stranger.ended.is_set)
            await client.got(4)
        await until(lambda: g.events("overload_over"))
        assert [number for _, number, *_ in client.answers][:4] == [4, 5, 2, 3]
        assert {error["code"] for _, _, error, _ in client.answers[:4]} == {"overloaded"}
        stranger.transport.abort()
        instance.behave = echo
        instance.answer_all()
        await client.got(6)
        assert await client.is_served()
        g.logs.append(
            {"event": "connection_closed"}
        )  # the stranger's: it was counted, and told of with others


# ---- memory ----


class Sink:
    """An instance that accepts and does not read, in a thread of its own."""

    def __enter__(self) -> Self:
        self._sock = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.address = self._sock.getsockname()
        self._ends: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()
        return self

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._ends.append(self._sock.accept()[0])

    def cut(self) -> None:
        while self._ends:
            self._ends.pop().close()

    def __exit__(self, *_: object) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)
        self._sock.close()
        self.cut()


def _stalled(address: tuple[str, int]) -> socket.socket:
    """A client that sends for as long as somebody reads."""
    client = socket.create_connection(address, PATIENCE)
    client.settimeout(0.01)
    with contextlib.suppress(OSError):
        for _ in range(16):
            client.send(bytes(MiB))
    return client


def test_memory(tmp_path: Path) -> None:
    """From its mark on nobody comes in; it ends with those who held it, though heap is kept. Status tells."""
    gateway_lines = 'overload = { memory = "128MiB", lag = "off" }'
    listener = 'buffer = "1MiB"'
    with Sink() as sink, contextlib.ExitStack() as held:
        run = Run(
            tmp_path, config_of([sink.address], free_port(), workers=1, gateway=gateway_lines, more=listener)
        )
        with run.started() as gateway:
            with contextlib.ExitStack() as clients:
                for _ in range(400):
                    clients.enter_context(contextlib.closing(_stalled(run.address)))
                    if gateway.events("overloaded"):
                        break
                wait_until(lambda: gateway.events("overloaded"))
                assert "MiB of memory are in use" in gateway.events("overloaded")[0]["why"]
                status = run.status()
                assert (status["overload"]["active"], status["overload"]["times"]) == (1, 1)
                assert "overload" in run.command("status").stdout
                refused = held.enter_context(socket.create_connection(run.address, PATIENCE))
                with contextlib.suppress(ConnectionResetError):
                    assert refused.recv(1) == b""
            sink.cut()
            wait_until(lambda: gateway.events("overload_over"))
            assert run.status()["overload"]["active"] == 0
            assert len(gateway.events("overloaded")) == len(gateway.events("overload_over")) == 1


# ---- what is none ----


def test_a_crowd_is_no_overload(tmp_path: Path) -> None:
    """Hundreds that come at once, bulk, and a table of a million entries that is built meanwhile."""
    with Background() as background, contextlib.ExitStack() as held:
        text_ = config_of(background.instances, free_port(), gateway='unsupervised = "5s"')
        run = Run(tmp_path, text_)
        with run.started() as gateway, background.load(run.address, long=4) as load:
            crowd_ = [socket.create_connection(run.address, PATIENCE) for _ in range(500)]
            for client in crowd_:
                held.enter_context(client)
                client.sendall(b"x")
            assert all(client.recv(1) == b"x" for client in crowd_)
            run.file.write_text(text_.replace("bounded_load = 0", "bounded_load = 0, table_size = 1000003"))
            reload = threading.Thread(target=run.command, args=("reload",))
            reload.start()
            while reload.is_alive():
                _bulk(run.address)
            reload.join()
            exchange(run.address, os.urandom(1000))
            assert gateway.events("reloaded")
            assert not gateway.events("overloaded")
        unharmed(load)


def _bulk(address: tuple[str, int]) -> None:
    data = bytes(4 * MiB)
    with socket.create_connection(address, PATIENCE) as client:
        sending = threading.Thread(target=client.sendall, args=(data,))
        sending.start()
        got = 0
        while got < len(data):
            got += len(client.recv(MiB))
        sending.join()
