"""Many clients at once: max_connections, and what it does with those beyond."""

import asyncio
import contextlib
import random

import pytest

from tests.support.streams import Peer, bed, in_time, until


async def test_clients_beyond_the_limit_wait_for_their_turn() -> None:
    """The third of two is not refused and not connected; it is served, with what it sent, when one leaves."""
    async with bed(listener="max_connections = 2") as b:
        clients = [b.dial() for _ in range(4)]
        for number, client in enumerate(clients):
            await client.send(b"%d" % number)
        first, second = await b.accept(), await b.accept()
        with pytest.raises(TimeoutError):
            await in_time(b.accept(), 0.1)
        assert len(b.listener.connections) == b.listener.accepted == 2
        assert b.listener.paused == 1

        served = {await first.read(1): first, await second.read(1): second}
        assert served.keys() == {b"0", b"1"}
        clients[1].reset()
        third = await b.accept()
        assert await third.read(1) == b"2"
        with pytest.raises(TimeoutError):
            await in_time(b.accept(), 0.1)
        assert b.listener.accepted == 3
        assert b.listener.paused == 2

        clients[0].reset()
        clients[2].reset()
        assert await (await b.accept()).read(1) == b"3"


async def test_the_limit_holds_under_a_crowd() -> None:
    """However many come and go: never more connections to the instance than allowed, and none is lost."""
    limit, crowd = 3, 60
    async with bed(listener=f"max_connections = {limit}") as b:
        now = most = 0

        async def serve() -> None:
            nonlocal now, most
            for _ in range(crowd):
                instance = await b.accept()
                now += 1
                most = max(most, now)
                tasks.create_task(answer(instance))

        async def answer(instance: Peer) -> None:
            nonlocal now
            request = await instance.read_to_end()
            now -= 1  # before the gateway can know that it ended
            await instance.send(request.upper())
            instance.close()

        async def ask(client: Peer) -> bytes:
            await client.send(b"ping")
            client.fin()
            return await client.read_to_end()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(serve())
            answers = [tasks.create_task(ask(b.dial())) for _ in range(crowd)]
        assert {task.result() for task in answers} == {b"PING"}
        assert most == limit


async def test_a_client_that_leaves_the_queue_does_no_harm() -> None:
    """One that gave up while it waited is accepted, found gone, and the next is served."""
    async with bed(listener="max_connections = 1") as b:
        _, first = await b.pair()
        gone, patient = b.dial(), b.dial()
        gone.reset()
        await patient.send(b"still here")
        first.reset()
        for _ in range(2):  # the kernel may or may not have forgotten the one that left
            instance = await b.accept()
            with contextlib.suppress(ConnectionResetError, EOFError):
                assert await instance.read(10) == b"still here"
                break
        else:
            pytest.fail("the patient client was not served")


async def test_a_crowd_without_manners() -> None:
    """Ends of every kind on both sides, at random moments: each connection is ended and logged once."""
    rng = random.Random(7)
    loop = asyncio.get_running_loop()

    async def behave(peer: Peer) -> None:
        with contextlib.suppress(OSError):
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0 if rng.random() < 0.7 else 0.002)
                if rng.random() < 0.5:
                    await peer.send(bytes(rng.choice((1, 1000, 200_000))))
            match rng.randrange(3):
                case 0:
                    peer.reset()
                case 1:
                    peer.fin()
                    await peer.read_to_end()
        peer.close()

    async with bed(listener="max_connections = 20") as b:

        def accept() -> None:
            with contextlib.suppress(BlockingIOError):
                tasks.create_task(behave(Peer(b.instances[0].accept()[0])))

        async with asyncio.TaskGroup() as tasks:
            loop.add_reader(b.instances[0], accept)
            for _ in range(30):
                for _ in range(10):
                    tasks.create_task(behave(b.dial()))
                await asyncio.sleep(0.005)
            # Those that left while they waited for their turn were perhaps never seen.
            await until(lambda: b.listener.accepted >= 250 and not b.listener.connections)
            loop.remove_reader(b.instances[0])
    # Which of them win their races is for the machine to say.
    assert {line["reason"] for line in b.lines} <= {
        "client_fin", "client_reset", "instance_fin", "instance_reset",
    }  # fmt: skip
