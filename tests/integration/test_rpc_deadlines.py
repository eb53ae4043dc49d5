"""Time-outs of listeners and methods, and the field of a request that says how long it may take."""

import asyncio
import struct
import time
from typing import Any

import msgpack
import pytest

from tests.support.rpc import Instance, bed, echo, hold
from tests.support.streams import until

FIELD = 'deadline = "params[1].deadline_ms"\n'
# Seconds that a machine with much else to do may be late.
SLACK = 0.6


class Watch:
    """How long something took."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began


@pytest.mark.parametrize("rules", ["", 'methods = { "other" = { timeout = "10s" } }'])
@pytest.mark.parametrize("framed", [True, False])
async def test_request_timeout(rules: str, framed: bool) -> None:
    """Without an answer in time the client is told so; the answer that comes later is dropped and counted."""
    instance = Instance(hold)
    async with bed(instance, listener=f'request_timeout = "200ms"\n{rules}') as g:
        client, watch = await g.client(framed=framed), Watch()
        for place in range(3):
            client.ask(place, place)
        answers = await client.got(3)
        assert 0.2 <= watch.seconds < 0.2 + SLACK
        for _, _, error, _ in answers:
            assert (error["code"], error["endpoint"]) == ("deadline_exceeded", instance.endpoint)
        assert g.service.deadlines.expired == 3
        assert g.target(instance).load.inflight == 0
        instance.behave = echo
        instance.answer_all()
        await until(lambda: g.dropped == 3)
        assert await client.is_served()
        assert len(client.answers) == 4


async def test_a_methods_own_timeout() -> None:
    """A rule's timeout counts instead of the listener's, shorter or longer."""
    rules = 'methods = { "short" = { timeout = "100ms" }, "long" = { timeout = "20s" } }'
    instance = Instance(hold)
    async with bed(instance, listener=f'request_timeout = "400ms"\n{rules}') as g:
        client, watch = await g.client(), Watch()
        for number, method in enumerate(("long", "other", "short")):
            client.ask(number, number, method=method)
        assert (await client.got(1))[0][1] == 2
        assert 0.1 <= watch.seconds < 0.4
        assert (await client.got(2))[1][1] == 1
        assert 0.4 <= watch.seconds < 0.4 + SLACK
        instance.answer_all()
        assert (await client.got(3))[2] == [1, 0, None, [0]]


async def test_waiting_counts() -> None:
    """The time that a request waits for an endpoint is part of its time."""
    instance = Instance(hold)
    service = 'rpc = { max_inflight = 1, queue_timeout = "20s" }'
    times = 'request_timeout = "1s"\nmethods = { "hasty" = { timeout = "400ms" } }'
    async with bed(instance, service=service, listener=times) as g:
        client, watch = await g.client(), Watch()
        client.ask(1, "a")
        client.ask(2, "b")
        client.ask(3, "c", method="hasty")  # over before there is room
        await until(lambda: instance.held)
        await asyncio.sleep(0.7)
        instance.answer_all()
        await client.got(3)
        assert watch.seconds < 1.0 + SLACK
        errors = {number: error and error["code"] for _, number, error, _ in client.answers}
        assert errors == {1: None, 2: "deadline_exceeded", 3: "deadline_exceeded"}
        assert "c" not in instance.seen


# ---- a request's own ----


def seen(instance: Instance) -> list[Any]:
    """What instances were told of how long they have."""
    return [request.params[1]["deadline_ms"] for request in instance.requests]


@pytest.mark.parametrize("framed", [True, False])
@pytest.mark.parametrize("left", [300, 300.0])
async def test_a_deadline_is_kept_and_passed_on(left: float, framed: bool) -> None:
    """The client's own deadline is enforced, and the instance sees what is left of it, in its own type."""
    instance = Instance(hold)
    async with bed(instance, listener=FIELD) as g:
        client, watch = await g.client(framed=framed), Watch()
        answer = await client.call("a", {"deadline_ms": left, "more": "x"})
        assert answer["code"] == "deadline_exceeded"
        assert 0.3 <= watch.seconds < 0.3 + SLACK
        (told,) = seen(instance)
        assert 0 < told <= left
        assert type(told) is type(left)
        assert instance.requests[0].params[1]["more"] == "x"


async def test_waiting_shortens_a_deadline() -> None:
    """An instance is told the deadline less the time that the request waited here."""
    instance = Instance(hold)
    service = 'rpc = { max_inflight = 1, queue_timeout = "10s" }'
    async with bed(instance, service=service, listener=FIELD) as g:
        client = await g.client()
        client.ask(1, "first", {"deadline_ms": 9000})
        client.ask(2, "second", {"deadline_ms": 9000})
        await until(lambda: instance.held)
        await asyncio.sleep(0.5)
        instance.answer_all()
        await until(lambda: instance.held)
        first, second = seen(instance)
        assert 9000 - 400 < first <= 9000
        assert 9000 - 500 - 1000 * SLACK < second <= 9000 - 490
        instance.answer_all()
        await client.got(2)


async def test_a_deadline_only_shortens() -> None:
    """More than the time-out allows is cut to that, for the instance too."""
    instance = Instance()
    async with bed(instance, listener=f'{FIELD}request_timeout = "2s"') as g:
        client = await g.client()
        await client.call("a", {"deadline_ms": 10**9})
        await client.call("b", {"deadline_ms": 1 << 63})
        assert all(1500 < told <= 2000 for told in seen(instance))


@pytest.mark.parametrize("left", [0, -5, -1e9, 0.0])
async def test_a_deadline_that_has_passed(left: float) -> None:
    """Nobody is asked any more."""
    instance = Instance()
    async with bed(instance, listener=FIELD) as g:
        client = await g.client()
        error = await client.call("a", {"deadline_ms": left})
        assert error["code"] == "deadline_exceeded"
        assert await client.is_served()
        assert len(instance.requests) == 1


@pytest.mark.parametrize(
    "params",
    [
        [],
        ["a"],
        ["a", 5],
        ["a", {}],
        ["a", {"deadline_ms": "soon"}],
        ["a", {"deadline_ms": None}],
        ["a", {"deadline_ms": float("nan")}],
        ["a", {"deadline_ms": float("inf")}],
        ["a" * 10_000, {"deadline_ms": 1}],
    ],
)
async def test_what_is_no_deadline(params: list[Any]) -> None:
    """A request without the field, or with something else in it, passes as it is."""
    instance = Instance()
    async with bed(instance, listener=FIELD) as g:
        client = await g.client()
        client.ask(1, *params)
        await client.got(1)
        assert repr(instance.requests[0].params) == repr(params)


@pytest.mark.parametrize("path", ["params[1].deadline_ms", "params[0].deadline_ms"])
async def test_a_deadline_beyond_its_frame(path: str) -> None:
    """A malformed request whose field would be within the next one changes neither: nor what others send."""
    instance = Instance()
    async with bed(instance, listener=f'deadline = "{path}"') as g:
        client, other = await g.client(), await g.client()
        # Its parameters claim a text that reaches into the next frame, to just before a map there.
        inner = msgpack.packb([0, 2, "m", ["x", {"deadline_ms": 5000}]])
        claim = 4 + len(inner) - len(msgpack.packb({"deadline_ms": 5000}))
        lead = b"\x92" if "[1]" in path else b"\x91"
        text = b"\xd9" + bytes([claim]) if "[1]" in path else b""
        body = b"\x94\x00\x01\xa1m" + lead + text
        client.transport.write(struct.pack(">I", len(body)) + body + struct.pack(">I", len(inner)) + inner)
        for place in range(20):
            assert await other.call(place, {"deadline_ms": 9000}) is not None
        await client.got(2)
        assert {number for _, number, _, _ in client.answers} == {1, 2}
        assert instance.malformed == 1


@pytest.mark.parametrize("setting", [FIELD, 'methods = { "a" = {} }'])
async def test_looking_for_fields_takes_no_time_from_others(setting: str) -> None:
    """Thousands of small requests that claim endless parameters are each looked at for their own length."""
    instance = Instance(lambda request: request.refuse("no"))
    body = b"\x94\x00\x01\xa1m\xdd\xff\xff\xff\xff\xdd\xff\xff\xff\xff"
    async with bed(instance, listener=f"{setting}\nmax_inflight = 100000") as g:
        hostile, other = await g.client(), await g.client()
        watch = Watch()
        hostile.transport.write((struct.pack(">I", len(body)) + body) * 3000)
        await other.call("x")
        await hostile.got(3000)
        assert watch.seconds < 3
