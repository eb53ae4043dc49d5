"""What a client notices of others that ask much, send much, read little or misbehave: next to nothing.

By the order of things, not by time, wherever there is an order.
"""

import asyncio
import contextlib
import ctypes
import gc
import random
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.support.rpc import ANSWER, NOTIFY, REQUEST, Bed, Client, Instance, Link, Request, bed, echo, hold
from tests.support.rpc_ends import frame
from tests.support.streams import MiB, Peer, until

FLOOD = 3000
DEEP = "max_inflight = 4096"
RULED = 'methods = { "other" = { timeout = "10s" } }'
NARROW = 'rpc = { max_inflight = 4, queue = 16384, queue_timeout = "30s" }'


def flood(client: Client, count: int = FLOOD, method: str = "m") -> None:
    """In one write, as who pipelines does."""
    client.transport.write(b"".join(frame(REQUEST, n, method, ["flood", n]) for n in range(count)))


def waiting(g: Bed, instance: Instance) -> int:
    return len(g.target(instance).main.queue)


def queued(g: Bed, instance: Instance, count: int) -> bool:
    return waiting(g, instance) == count


# ---- turns ----


@pytest.mark.parametrize("rules", ["", RULED])
@pytest.mark.parametrize("flooders", [1, 4])
async def test_a_flood_takes_turns(rules: str, flooders: int) -> None:
    """However much the others have waiting, a single request is sent after at most one of each of theirs."""
    instance = Instance(hold)
    async with bed(instance, listener=f"{DEEP}\n{rules}", service=NARROW) as g:
        floods, single = [await g.client() for _ in range(flooders)], await g.client()
        for client in floods:
            flood(client)
        await until(lambda: waiting(g, instance) == flooders * FLOOD - 4)
        for place in range(20):
            left = waiting(g, instance)
            single.ask(1, "single", place)
            await until(partial(queued, g, instance, left + 1))
            sent = len(instance.requests)
            for _ in range(2):
                instance.answer_all()
                await until(lambda: len(instance.held) == 4)
            assert "single" in [r.params[0] for r in instance.requests[sent:]][: flooders + 1]
        instance.behave = echo
        instance.answer_all()
        for client in floods:
            answers = await client.got(FLOOD)
            assert [result[1] for _, _, _, result in answers] == list(range(FLOOD))
        assert [result[1] for _, _, _, result in await single.got(20)] == list(range(20))


@pytest.mark.parametrize("rules", ["", RULED])
async def test_single_requests_beside_a_flood_that_goes_on(rules: str) -> None:
    """With the limits that are the defaults: single requests keep their pace while thousands are answered."""
    instance = Instance()
    async with bed(instance, listener=rules, service="rpc = { max_inflight = 8 }") as g:
        flooder, single = await g.client(), await g.client()
        flood(flooder, 4 * FLOOD)
        singles = 0
        while len(flooder.answers) < 4 * FLOOD:
            assert await single.call("single", singles) == ["single", singles]
            singles += 1
        order = [r.params[0] for r in instance.requests]
        assert singles >= 20
        places = [place for place, what in enumerate(order) if what == "single"][:singles]
        # At most what one client may have in flight passes between two of them, twice where they just missed.
        assert max(after - before for before, after in pairwise(places)) <= 2 * 256 + 8


async def test_high_priority_passes_a_flood() -> None:
    """Requests of a high priority go before all of others that wait, whoever asks, and take turns too."""
    instance = Instance(hold)
    rules = 'methods = { "urgent" = { priority = "high" }, "later" = { priority = "low" } }'
    async with bed(instance, listener=f"{DEEP}\n{rules}", service=NARROW) as g:
        low, normal, high, other = [await g.client() for _ in range(4)]
        flood(low, 500, "later")
        await until(lambda: waiting(g, instance) == 496)
        flood(normal, 500)
        await until(lambda: waiting(g, instance) == 996)
        flood(high, 100, "urgent")
        await until(lambda: waiting(g, instance) == 1096)
        other.ask(1, "other", method="urgent")
        await until(lambda: waiting(g, instance) == 1097)
        instance.behave = echo
        instance.answer_all()
        for client, count in ((low, 500), (normal, 500), (high, 100), (other, 1)):
            await client.got(count)
        methods = [r.method for r in instance.requests]
        assert methods == ["later"] * 4 + ["urgent"] * 101 + ["m"] * 500 + ["later"] * 496
        assert [r.params[0] for r in instance.requests].index("other") <= 4 + 1


# ---- large frames ----


def bulk_link(g: Bed, instance: Instance) -> Link:
    """The instance's end of the connection for bulk."""
    bulk = g.target(instance).bulk
    assert bulk is not None
    (channel,) = bulk.channels
    name = channel._transport.get_extra_info("sockname")
    return next(link for link in instance.links if link.transport.get_extra_info("peername") == name)


@pytest.mark.parametrize("size", [8 * MiB, 16 * MiB - 100])
async def test_pings_beside_a_large_request(size: int) -> None:
    """While the instance has not read a large request, small ones pass by, its sender's too."""
    instance = Instance()
    async with bed(instance) as g:
        bulky, other = await g.client(), await g.client()
        await until(lambda: len(instance.links) == 2)
        link = bulk_link(g, instance)
        link.transport.pause_reading()
        payload = random.Random(size).randbytes(size)
        bulky.ask(1, payload)
        bulky.ask(2, "small")
        await bulky.got(1)
        for place in range(20):
            assert await other.call(place) == [place]
        assert [answer[1] for answer in bulky.answers] == [2]
        link.transport.resume_reading()
        assert (await bulky.got(2))[1] == [ANSWER, 1, None, [payload]]


@pytest.mark.parametrize("size", [8 * MiB, 16 * MiB - 100])
async def test_pings_beside_a_large_answer(size: int) -> None:
    """While half of a large answer has come, small ones of all clients pass by."""
    instance = Instance(hold)
    async with bed(instance) as g:
        bulky, other = await g.client(), await g.client()
        await until(lambda: len(instance.links) == 2)
        bulky.ask(1, bytes(300_000))  # large, so that its answer comes by the bulk connection
        await until(lambda: instance.held)
        (request,) = instance.held
        assert request.link is bulk_link(g, instance)
        instance.behave = echo
        answer = frame(ANSWER, request.id, None, [bytes(size)])
        request.link.transport.write(answer[: size // 2])
        await until(lambda: not request.link.transport.get_write_buffer_size())
        for place in range(20):
            assert await other.call(place) == [place]
        assert not bulky.answers
        request.link.transport.write(answer[size // 2 :])
        ((_, number, error, result),) = await bulky.got(1)
        assert (number, error, result == [bytes(size)]) == (1, None, True)


async def test_pings_among_large_transfers() -> None:
    """Where three clients send and get 8 to 16 MiB at a time, pings are answered between and within these."""
    rng = random.Random(7)
    done: list[str] = []

    async def transfer(client: Client) -> None:
        for place in range(3):
            payload = bytes([rng.randrange(256)]) * rng.randrange(8 * MiB, 16 * MiB - 100)
            assert await client.call(place, payload) == [place, payload]
            client.answers[-1] = []
            done.append("bulk")

    instance = Instance(lambda request: (request.answer(), instance.requests.pop()))
    async with bed(instance) as g:
        ping = await g.client()
        tasks = [asyncio.create_task(transfer(await g.client())) for _ in range(3)]
        while done.count("bulk") < 9:
            assert await ping.is_served()
            done.append("ping")
        await asyncio.gather(*tasks)
    assert done.count("ping") >= 9
    assert "bulk bulk bulk bulk" not in " ".join(done)


# ---- slow readers ----

# A quarter of it is a client's share: 4 MiB.
LITTLE = 'rpc_memory = "16MiB"'
SHORT = 'max_frame = "1MiB"'


async def stuck(g: Bed, instance: Instance, unread: int) -> tuple[Client, list[Request]]:
    """A client that does not read, with so many bytes of its answers in the gateway, and what it waits for.

    The kernel has some more, nobody knows how many.
    """
    client = await g.client(receive_buffer=4096)
    client.transport.pause_reading()
    before, instance.behave = g.unread, hold
    for place in range(250):
        client.ask(place, place)
    await until(lambda: len(instance.held) == 250)
    instance.behave = echo
    held, instance.held = instance.held, []
    while held and g.unread - before < unread and not g.lines:
        expected = g.pool.loads.total - 5
        answer(held[:5])
        del held[:5]
        await until(lambda: g.pool.loads.total == expected)  # noqa: B023 - awaited here
    return client, held


def answer(held: list[Request]) -> None:
    for request in held:
        request.link.send(ANSWER, request.id, None, [request.params[0], bytes(60_000)])


def is_large(answer: list[Any]) -> bool:
    """Whether it is one of `answer`'s, or stands for one that found no room."""
    _, _, error, result = answer
    return "rpc_memory" in error["message"] if error else len(result) == 2


async def answer_at_its_pace(client: Client, held: list[Request]) -> None:
    """Some more whenever it has read all large answers: also a client that reads is cut, where more come."""
    while held:
        sent = 250 - len(held)
        await until(lambda: sum(map(is_large, client.answers)) == sent)  # noqa: B023
        answer(held[:5])
        del held[:5]


async def test_a_slow_reader_is_cut() -> None:
    """Who leaves more than its share of rpc_memory unread is cut, and says why; nobody else is disturbed."""
    instance = Instance()
    async with bed(instance, gateway=LITTLE, listener=SHORT) as g:
        other = await g.client()
        slow, held = await stuck(g, instance, 3 * MiB)
        assert not g.lines
        answer(held)
        for place in range(50):
            assert await other.call(place) == [place]
        line = await g.line()
        assert (line["reason"], line["requests"]) == ("slow_reader", 250)
        assert "unread" in line["error"]
        slow.transport.resume_reading()
        await asyncio.wait_for(slow.ended.wait(), 10)
        assert len(slow.answers) < 250
        await until(lambda: not g.pool.loads.total)
        assert g.unread == g.held == 0
        assert await other.is_served()
        assert len(g.lines) == 1


async def test_a_slow_reader_within_its_share() -> None:
    """Who reads late, and has less than its share unread, gets everything; what it asks more waits."""
    instance = Instance()
    async with bed(instance, gateway=LITTLE, listener=SHORT) as g:
        other = await g.client()
        slow, held = await stuck(g, instance, 3 * MiB)
        for place in range(100):
            slow.ask(1000 + place, 1000 + place)
        for place in range(20):
            assert await other.call(place) == [place]
        assert not any(r.params[0] >= 1000 for r in instance.requests)
        slow.transport.resume_reading()
        await answer_at_its_pace(slow, held)
        answers = await slow.got(350)
        assert sorted(number for _, number, _, _ in answers) == [*range(250), *range(1000, 1100)]
        assert all(result[0] == number for _, number, _, result in answers)
        await until(lambda: not g.unread)
        assert not g.lines


async def test_many_slow_readers() -> None:
    """Together they cannot leave more than rpc_memory unread: one is cut, the others get all.

    For all but who was growing when it was full that means every result.
    """
    instance = Instance()
    async with bed(instance, gateway=LITTLE, listener=SHORT) as g:
        other = await g.client()
        slow: list[tuple[Client, list[Request]]] = []
        while not g.lines:
            assert len(slow) < 7
            slow.append(await stuck(g, instance, 3 * MiB))
            assert await other.is_served()
            assert g.unread <= 16 * MiB
        (line,) = g.lines
        assert line["reason"] == "slow_reader"
        for client, held in slow:
            if "{}:{}".format(*client.transport.get_extra_info("sockname")) == line["client"]:
                continue
            client.transport.resume_reading()
            await answer_at_its_pace(client, held)
            await client.got(250)
            assert client is slow[-1][0] or not any(error for _, _, error, _ in client.answers)
        assert await other.is_served()
        assert len(g.lines) == 1


# ---- abuse, again and again ----


def rss() -> int:
    """Bytes, without what malloc keeps for later.

    That varies by 100 MiB here, where this process is all clients and the instance too.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def send_and_reset(peer: Peer, data: bytes) -> None:
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        await peer.send(data)
    await asyncio.sleep(0.02)
    peer.reset()


async def abuse(g: Bed, kind: int, rng: random.Random) -> None:
    """One abusive client, from its connecting to its end."""
    peer = g.dial()
    small = b"".join(frame(REQUEST, n, "m", ["abuse", n]) for n in range(2000))
    match kind % 7:
        case 0:  # garbage
            await send_and_reset(peer, b"\x93" + rng.randbytes(5000))
        case 1:  # a large frame that never gets whole
            await send_and_reset(peer, frame(REQUEST, 1, "m", [bytes(6 * MiB)])[: 3 * MiB])
        case 2:  # a flood, gone before its answers
            await send_and_reset(peer, small)
        case 3:  # methods that are never the same
            names = (frame(REQUEST, n, rng.randbytes(200).hex(), []) for n in range(500))
            await send_and_reset(peer, b"".join(names))
        case 4:  # large answers that nobody reads
            await send_and_reset(peer, frame(REQUEST, 1, "m", ["abuse", bytes(500_000)]) * 20)
        case 5:  # deeply nested, without lengths
            await send_and_reset(peer, b"\x94\x00\x01\xa1m" + b"\x91" * 100_000)
        case _:  # notifications, and a frame that says it is too large
            await send_and_reset(peer, frame(NOTIFY, "n", [1]) * 1000 + b"\x0f\xff\xff\xff")


async def test_memory_is_flat() -> None:
    """What abusive clients make the gateway hold is free when they are gone, round after round."""
    rng = random.Random(5)

    def forget(request: Request) -> None:
        request.answer()
        instance.requests.clear()
        instance.notifications.clear()

    instance = Instance(forget)
    after: list[int] = []
    # Who does not read is cut off before its own patience with the gateway ends.
    async with bed(instance, gateway=LITTLE, listener=f'{SHORT}\nframe_timeout = "3s"\n{RULED}') as g:
        stays = await g.client()
        for round_ in range(1, 7):
            await asyncio.gather(*(abuse(g, kind, rng) for kind in range(50)))
            await until(partial(lambda count: len(g.lines) == count, 50 * round_))
            await until(lambda: not g.pool.loads.total)
            assert g.held == g.unread == 0
            assert await stays.is_served()
            g._peers.clear()
            after.append(rss())
        assert len({line["reason"] for line in g.lines}) >= 3
    assert max(after[1:]) - after[0] < 10 * MiB, after
