"""Whose answer is whose: ids, notifications, and instances that answer wrongly or ask themselves."""

import asyncio
import struct
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from tests.support.rpc import ANSWER, NOTIFY, REQUEST, Instance, Request, bare, bed, echo, hold
from tests.support.rpc_ends import frame
from tests.support.streams import until

KiB, MiB = 1 << 10, 1 << 20

# As clients may encode them: each form of an integer, the same one twice included.
IDS = [b"\x00", b"\x7f", b"\xe0", b"\xcc\x05", b"\xcd\x00\x05", b"\xce\x00\x01\x00\x00", b"\xcf" + bytes(8)]
IDS += [b"\xd0\x85", b"\xd1\x80\x00", b"\xd2\xff\xff\xff\xff", b"\xd3" + b"\xff" * 8, b"\x05", b"\x05"]


@pytest.mark.parametrize("framed", [True, False])
async def test_ids_come_back_as_they_were(framed: bool) -> None:
    """Whatever form a client's id has, and however often it is in use, its answer has the same bytes."""
    instance = Instance(hold)
    async with bed(instance) as g:
        client = g.dial()
        for place, number in enumerate(IDS):
            body = b"\x94\x00" + number + msgpack.packb("m") + msgpack.packb([place])
            await client.send((struct.pack(">I", len(body)) if framed else b"") + body)
        await until(lambda: len(instance.held) == len(IDS))
        instance.held.reverse()
        instance.answer_all()
        answers = [b"\x94\x01" + number + b"\xc0\x91" + bytes([place]) for place, number in enumerate(IDS)]
        lengths = [struct.pack(">I", len(answer)) if framed else b"" for answer in answers]
        expected = b"".join(a + b for a, b in zip(reversed(lengths), reversed(answers), strict=True))
        assert await client.read(len(expected)) == expected


async def test_numbers_are_the_gateways_own() -> None:
    """Clients that use the same ids at the same time get each their own answer, from one connection."""
    instance = Instance(hold)
    async with bed(instance) as g:
        clients = [await g.client() for _ in range(20)]
        for place, client in enumerate(clients):
            client.ask(1, place)
            client.ask(1, -place)
        await until(lambda: len(instance.held) == 40)
        instance.held.sort(key=lambda request: abs(request.params[0] - 10))
        instance.answer_all()
        for place, client in enumerate(clients):
            answers = await client.got(2)
            assert sorted(result[0] for _, _, _, result in answers) == sorted([place, -place])
        assert instance.accepted <= 2  # one for bulk


@pytest.mark.parametrize("framed", [True, False])
@pytest.mark.parametrize("size", [0, 1, 8 * KiB, 100 * KiB, 3 * MiB])
async def test_sizes(framed: bool, size: int) -> None:
    """Requests and answers of all sizes pass whole, from clients with and without lengths in front."""
    async with bed(Instance()) as g:
        client = await g.client(framed=framed)
        payload = bytes(range(256)) * (size // 256 + 1)
        for _ in range(2):
            assert await client.call(payload[:size]) == [payload[:size]]


async def test_instances_without_lengths() -> None:
    """Behind msgpack-rpc-stream instances speak the original form, whatever their clients speak."""
    instance = Instance(framed=False)
    async with bed(instance, listener='codec = "msgpack-rpc-stream"') as g:
        for framed in (True, False):
            client = await g.client(framed=framed)
            for size in (0, 10 * KiB, MiB):
                assert await client.call(bytes(size)) == [bytes(size)]
            client.send(NOTIFY, "n", [framed])
            assert await client.is_served()
            assert instance.notifications[-1] == ("n", [framed])


# ---- notifications, and requests the other way ----


@pytest.mark.parametrize("framed", [True, False])
async def test_notifications_pass(framed: bool) -> None:
    """They go to an instance once, in their order, large ones too, and get no answer."""
    instance = Instance()
    async with bed(instance, service="rpc = { bulk = 0 }") as g:
        client = await g.client(framed=framed)
        sent = [("n", [place, bytes(size)]) for place, size in enumerate((0, 10, 20 * KiB, 10, MiB, 0))]
        for method, params in sent:
            client.send(NOTIFY, method, params)
        assert await client.is_served()
        assert instance.notifications == sent
        assert (len(client.answers), client.others) == (1, [])
        client.transport.close()
        line = await g.line()
    assert (line["requests"], line["notifications"], line["reason"]) == (1, len(sent), "client_fin")


async def test_an_instances_requests_are_refused() -> None:
    """An instance that asks is told `denied`; what it tells goes nowhere; its clients notice nothing."""

    def ask(request: Request) -> None:
        request.link.send(REQUEST, 7, "who are you", [])
        request.link.send(NOTIFY, "news", [])
        request.answer()

    instance = Instance(ask)
    async with bed(instance) as g:
        client = await g.client()
        for place in range(5):
            assert await client.call(place) == [place]
        await until(lambda: len(instance.answers) == 5)
        assert not client.others
    for kind, number, error, result in instance.answers:
        assert (kind, number, error["code"], result) == (ANSWER, 7, "denied", None)


async def test_an_instance_that_asks_without_end() -> None:
    """One that floods with requests and reads no refusals loses its connection: they would pile up here."""
    instance = Instance()
    async with bed(instance, service="rpc = { bulk = 0 }") as g:
        client = await g.client()
        assert await client.is_served()
        (link,) = instance.links
        link.transport.pause_reading()
        (channel,) = g.target(instance).channels
        flood = frame(REQUEST, 7, "m" * 20, []) * 10_000
        async with asyncio.timeout(20):
            while not link.ended.is_set():
                if link.transport.get_write_buffer_size() < MiB:
                    link.transport.write(flood)
                assert channel._transport.get_write_buffer_size() < 4 * MiB
                await asyncio.sleep(0.001)
        await until(lambda: instance.links)
        assert await client.is_served()
    (event,) = g.events("channel_lost")[:1]
    assert "requests" in event["why"]


# ---- wrong answers ----


def twice(request: Request) -> None:
    request.answer()
    request.answer()


def to_others_too(request: Request) -> None:
    for number in (0, 65, request.id + 1, request.id - 1, 1 << 40, -1):
        request.link.send(ANSWER, number, None, ["not yours"])
    request.answer()


def in_another_form(request: Request) -> None:
    body = b"\x94\x01\xcf" + struct.pack(">Q", request.id) + b"\xc0" + msgpack.packb(request.params)
    request.link.transport.write(struct.pack(">I", len(body)) + body)


@pytest.mark.parametrize(
    ("behave", "dropped"), [(echo, 0), (twice, 1), (to_others_too, 6), (in_another_form, 0)]
)
async def test_answers_to_nobody(behave: Callable[[Request], None], dropped: int) -> None:
    """Second answers and those under unknown numbers are dropped and counted, and reach no client."""
    async with bed(Instance(behave)) as g:
        first, second = await g.client(), await g.client()
        for place in range(10):
            assert await first.call(place) == [place]
            assert await second.call(-place) == [-place]
        assert (len(first.answers), len(second.answers)) == (10, 10)
        assert g.dropped == 20 * dropped


GARBAGE: list[bytes] = [
    b"\x00\x00\x00\x02\xc1\xc1",
    b"\x00\x00\x00\x00",
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    frame(ANSWER, None, "no id", None),
    frame(ANSWER, "text", None, None),
    frame(9, 1, None, None),
]


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_an_instance_that_breaks_the_protocol(garbage: bytes) -> None:
    """Its connection is replaced, who waited there is told which endpoint it was, others are not touched."""
    bad, good = Instance(hold), Instance()
    async with bed(bad, good) as g:
        clients = [await g.client() for _ in range(4)]
        for client in clients:
            client.ask(1, "x")
        await until(lambda: len(bad.held) == 2)
        bad.held[0].link.transport.write(garbage)
        answers = [(await client.got(1))[0] for client in clients]
        assert sum(error is None for _, _, error, _ in answers) == 2
        for _, _, error, _ in answers:
            if error:
                assert (error["code"], error["endpoint"]) == ("upstream_lost", bad.endpoint)
                assert "broke the protocol" in error["message"]
        bad.behave = echo
        await until(lambda: len(bad.links) == 2)
        for client in clients:
            assert await client.is_served()
    assert len(g.events("channel_lost")) >= 1


async def test_answers_before_garbage_count() -> None:
    """What an instance answered before it broke the protocol is delivered, in one read with it or not."""
    instance = Instance(hold)
    async with bed(instance) as g:
        client = await g.client()
        client.ask(1, "a")
        client.ask(2, "b")
        await until(lambda: len(instance.held) == 2)
        request: Any = instance.held[0]
        request.link.transport.write(frame(ANSWER, request.id, None, "mine") + GARBAGE[0])
        async with asyncio.timeout(2):
            (_, number, error, result), (_, other, lost, _) = await client.got(2)
        assert (number, error, result) == (1, None, "mine")
        assert (other, lost["code"]) == (2, "upstream_lost")


async def test_bare_messages_in_one_read() -> None:
    """A client without lengths may send many messages at once, cut anywhere."""
    async with bed(Instance()) as g:
        client = await g.client(framed=False)
        stream = b"".join(bare(REQUEST, place, "m", [place, "x" * place]) for place in range(50))
        for place in range(0, len(stream), 97):
            client.transport.write(stream[place : place + 97])
            await asyncio.sleep(0)
        answers = await client.got(50)
        assert sorted(result[0] for _, _, _, result in answers) == list(range(50))
