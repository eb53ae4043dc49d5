"""rpc_memory: what large and waiting requests may take, of all clients together."""

from tests.support.rpc import Client, Instance, bed, echo, hold
from tests.support.streams import MiB, until


def overloaded(client: Client) -> int:
    return sum(bool(error) and error["code"] == "overloaded" for _, _, error, _ in client.answers)


async def test_large_requests_beyond_rpc_memory_wait() -> None:
    """Clients whose large requests find no memory are read later: nothing is lost, the bound holds."""
    instance = Instance(hold)
    most = 16 * MiB
    async with bed(
        instance,
        gateway='rpc_memory = "16MiB"',
        listener='max_frame = "8MiB"\nmethods = { "m" = { idempotent = true } }',
    ) as g:
        clients = [await g.client() for _ in range(6)]
        for place, client in enumerate(clients):
            client.ask(place, bytes([place]) * (6 * MiB))
        answered = 0
        while answered < len(clients):
            await until(lambda: len(instance.held) >= 1)
            assert g.held <= most
            assert len(instance.held) <= 2  # kept, since they may be sent again
            answered += instance.answer_all()
        for place, client in enumerate(clients):
            (answer,) = await client.got(1)
            assert answer[2] is None
            assert answer[3][0] == bytes([place]) * (6 * MiB)
        assert g.held == 0


async def test_messages_without_lengths_hold_what_they_have() -> None:
    """Before it is whole nobody knows how large such a message gets; from then on it counts as what it is."""
    instance = Instance(hold)
    rules = 'max_frame = "8MiB"\nmethods = { "m" = { idempotent = true } }'
    async with bed(instance, gateway='rpc_memory = "16MiB"', listener=rules) as g:
        clients = [await g.client(framed=False) for _ in range(5)]
        for client in clients:
            client.ask(1, bytes(300_000))
        await until(lambda: len(instance.held) == len(clients))
        assert 5 * 300_000 <= g.held < 6 * 300_000
        instance.answer_all()
        for client in clients:
            await client.got(1)


async def test_requests_that_wait_beyond_rpc_memory() -> None:
    """What waits for an endpoint counts; where there is no memory for small ones, their clients are told."""
    instance = Instance(hold)
    async with bed(
        instance,
        gateway='rpc_memory = "16MiB"',
        listener='max_frame = "8MiB"',
        service='rpc = { max_inflight = 1, queue = 10000, queue_timeout = "10s" }',
    ) as g:
        clients = [await g.client() for _ in range(12)]
        clients[0].ask(0, "first")
        await until(lambda: instance.held)
        for client in clients:
            for place in range(250):
                client.ask(place, bytes(7000))
        await until(lambda: sum(map(overloaded, clients)) > 0)
        assert g.held <= 16 * MiB
        assert "rpc_memory" in str([client.answers for client in clients])
        instance.behave = echo
        instance.answer_all()
        for client in clients:
            await client.got(250)
        await until(lambda: g.held == 0)
