"""Clients that break the protocol: each loses its own connection, is told why, and disturbs nobody."""

import asyncio
import contextlib
import random
import struct
from collections.abc import AsyncIterator
from typing import Any

import msgpack
import pytest

from tests.support.rpc import ANSWER, REQUEST, Bed, Client, Instance, bare, bed, hold
from tests.support.rpc_ends import frame, read_message
from tests.support.streams import MiB, Peer, until

# The reason on the closing line, and the code that the client is told.
TOO_LARGE = ("frame_too_large", "frame_too_large")
BAD = ("protocol_error", "bad_frame")
Case = tuple[bytes, tuple[str, str]]


def framed(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


def request(params: bytes, method: bytes = b"\xa1m", number: bytes = b"\x01") -> bytes:
    return b"\x94\x00" + number + method + params


FRAMED: dict[str, Case] = {
    "no frame at all": (b"GET / HTTP/1.1\r\n\r\n", TOO_LARGE),
    "zero length": (bytes(4), BAD),
    "too large": (struct.pack(">I", 1 << 20 | 1) + b"\x94", TOO_LARGE),
    "largest length": (b"\x00\xff\xff\xff", TOO_LARGE),
    "reserved byte": (framed(b"\xc1" * 9), BAD),
    "no array": (framed(b"\x81\xa1x\x01" + bytes(20)), BAD),
    "array of another length": (framed(b"\x95\x00\x01\xa1m\x90\x90"), BAD),
    "unknown type": (framed(b"\x94\x03\x01\xa1m\x90"), BAD),
    "id is text": (framed(request(b"\x90", number=b"\xa1x")), BAD),
    "id is nil": (framed(request(b"\x90", number=b"\xc0")), BAD),
    "method longer than its frame": (framed(b"\x93\x02\xdb\xff\xff\xff\xff\xff"), BAD),
    "ends after the id": (framed(b"\x94\x00\x01"), BAD),
    "an answer": (frame(ANSWER, 1, None, "?"), BAD),
    "a large answer": (frame(ANSWER, 65536, None, bytes(100_000)), BAD),
}  # fmt: skip
BARE: dict[str, Case] = {
    "reserved byte": (b"\x94\x00\x01\xa1m\x91\xc1", BAD),
    "too deep": (b"\x94\x00\x01\xa1m" + b"\x91" * 600, BAD),
    "deeper yet": (b"\x94\x00\x01\xa1m" + b"\x91" * 1_000_000, BAD),
    "endless arrays": (b"\x94\x00\x01\xa1m" + b"\xdd\xff\xff\xff\xff" * 100, TOO_LARGE),
    "laughs": (b"\x94\x00\x01\xa1m" + b"\xdd\x00\x0f\x00\x00" * 600, BAD),
    "a long text": (b"\x94\x00\x01\xa1m\x91\xdb\x7f\xff\xff\xff", TOO_LARGE),
    "too many bytes": (b"\x94\x00\x01\xa1m\xdc\xff\xff" + (b"\xc5\x00\xf0" + bytes(240)) * 8000, TOO_LARGE),
    "another array": (b"\x93\x05\x01\x02", BAD),
    "an answer": (bare(ANSWER, 1, None, "?"), BAD),
}  # fmt: skip

LIMITS = 'max_frame = "1MiB"\nframe_timeout = "400ms"\n'


@contextlib.asynccontextmanager
async def undisturbed(g: Bed) -> AsyncIterator[Client]:
    """Another client calls all the time, over the same connection, and must get its answers."""
    client = await g.client()
    calls = 0

    async def call() -> None:
        nonlocal calls
        while True:
            for place in range(4):
                client.ask(place, calls + place)
            await client.got(calls + 4)
            calls += 4
            await asyncio.sleep(0)

    task = asyncio.create_task(call())
    try:
        yield client
    finally:
        before = calls
        await until(lambda: calls > before or task.done())
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert all(error is None for _, _, error, _ in client.answers)
    assert sorted(result[0] for _, _, _, result in client.answers)[:calls] == list(range(calls))


async def told(peer: Peer, *, bare: bool) -> list[Any]:
    """What the client reads up to FIN: RST instead would be an error here."""
    data = await peer.read_to_end()
    if not bare:
        (size,) = struct.unpack_from(">I", data)
        assert size == len(data) - 4
        data = data[4:]
    message: list[Any] = msgpack.unpackb(data)
    return message


@pytest.mark.parametrize("speaks_bare", [False, True], ids=["framed", "bare"])
@pytest.mark.parametrize("in_pieces", [False, True], ids=["at once", "in pieces"])
async def test_what_breaks_the_protocol(speaks_bare: bool, in_pieces: bool) -> None:
    """The client is told a code and where, gets FIN, and its line says why; another's calls go on."""
    instance = Instance()
    cases = BARE if speaks_bare else FRAMED
    async with bed(instance, listener=LIMITS) as g, undisturbed(g):
        for done, (name, (data, (reason, code))) in enumerate(cases.items(), 1):
            peer = g.dial()
            if in_pieces and len(data) < 1000:
                for place in range(len(data)):
                    await peer.send(data[place : place + 1])
                    await asyncio.sleep(0.0005)
            else:
                # What is read no more may have filled the kernel's buffers.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(peer.send(data), 1)
            kind, number, error, result = await told(peer, bare=speaks_bare)
            assert (kind, number, result) == (ANSWER, None, None), name
            assert error["code"] == code, (name, error)
            peer.close()
            line = await g.line(done)
            assert (line["reason"], line["requests"]) == (reason, 0), (name, line)
            assert error["message"] == line["error"], name
            assert line["error"].startswith("at byte "), name
            assert line["bytes_out"] > 0
        assert instance.malformed == 0
        assert instance.accepted <= 2
        assert g.held == 0


METHODS = {
    "a number": request(b"\x90", method=b"\x05"),
    "a map": request(b"\x90", method=b"\x81\xa1a\xa1b"),
    "longer than its frame": request(b"", method=b"\xdb\xff\xff\xff\xff"),
    "too long": request(b"\x90", method=b"\xda\x04\x01" + b"x" * 1025),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
async def test_what_is_no_method(method: bytes) -> None:
    """Where methods have rules, one that is no name is refused."""
    async with bed(Instance(), listener=f"{LIMITS}methods = {{ 'other' = {{}} }}") as g, undisturbed(g):
        peer = g.dial()
        await peer.send(framed(method))
        assert (await told(peer, bare=False))[2]["code"] == "bad_frame"
        peer.close()
        line = await g.line()
        assert (line["reason"], line["requests"]) == ("protocol_error", 0)


async def test_requests_before_the_bad_frame_are_not_taken_back() -> None:
    """What stood before it was passed on; its answers go nowhere and disturb nobody."""
    instance = Instance(hold)
    async with bed(instance, listener=LIMITS) as g:
        peer, other = g.dial(), await g.client()
        await peer.send(frame(REQUEST, 1, "m", ["a"]) + frame(REQUEST, 2, "m", ["b"]) + bytes(4))
        message = await read_message(peer)
        assert (message[1], message[2]["code"]) == (None, "bad_frame")
        assert "at byte 24 " in message[2]["message"]
        await until(lambda: len(instance.held) == 2)
        instance.answer_all()
        other.ask(1, "c")
        await until(lambda: instance.held)
        instance.answer_all()
        await other.got(1)
        assert await peer.read_some() == b""
        peer.close()
        line = await g.line()
        assert (line["requests"], line["reason"]) == (2, "protocol_error")
        assert line["bytes_out"] == 4 + len(msgpack.packb(message))


@pytest.mark.parametrize("speaks_bare", [False, True], ids=["framed", "bare"])
async def test_who_goes_on_sending(speaks_bare: bool) -> None:
    """What a refused client sends on is thrown away for a while; then it is cut."""
    async with bed(Instance(), listener=LIMITS) as g, undisturbed(g):
        peer = g.dial()
        await peer.send(b"\x94\x00\xc1" if speaks_bare else bytes(4))
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            async with asyncio.timeout(8):
                while True:
                    await peer.send(bytes(MiB))
        line = await g.line()
        assert line["reason"] == "protocol_error"
        assert line["duration"] < 6


# ---- within a frame ----

DRIPS = {"framed": frame(REQUEST, 1, "m", ["x" * 200]), "bare": bare(REQUEST, 1, "m", ["x" * 200])}


@pytest.mark.parametrize("drip", DRIPS.values(), ids=DRIPS)
async def test_a_dripping_frame(drip: bytes) -> None:
    """A frame that is not whole in frame_timeout ends its connection, however regularly its bytes come."""
    async with bed(Instance(), listener=LIMITS) as g, undisturbed(g):
        peer = g.dial()
        await peer.send(drip * 2)  # those before do not matter
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            for place in range(len(drip) - 1):
                await peer.send(drip[place : place + 1])
                await asyncio.sleep(0.02)
        line = await g.line()
        assert line["reason"] == "frame_timeout"
        assert line["requests"] == 2
        assert 0.4 <= line["duration"] < 2


async def test_a_large_frame_that_stops() -> None:
    """What it has reserved is free when it ends."""
    async with bed(Instance(), listener=LIMITS) as g, undisturbed(g):
        peer = g.dial()
        await peer.send(frame(REQUEST, 1, "m", [bytes(500_000)])[:400_000])
        await until(lambda: g.held > 500_000)
        line = await g.line()
        assert (line["reason"], line["bytes_in"]) == ("frame_timeout", 400_000)
        assert g.held == 0


@pytest.mark.parametrize("drip", DRIPS.values(), ids=DRIPS)
@pytest.mark.parametrize("size", [3, 10, 150])
async def test_a_frame_that_ends_early(drip: bytes, size: int) -> None:
    """FIN within a frame ends the connection at once, when what came before is answered."""
    instance = Instance(hold)
    async with bed(instance, listener='frame_timeout = "20s"') as g:
        peer = g.dial()
        await peer.send(drip + drip[:size])
        peer.fin()
        await until(lambda: instance.held)
        instance.answer_all()
        assert len(await peer.read_to_end()) > 200
        peer.close()
        line = await g.line()
        assert line["reason"] == "protocol_error"
        assert "within a frame" in line["error"]
        assert line["duration"] < 5


async def test_random_bytes() -> None:
    """Whatever comes, only its own connection ends, and for a reason that says so."""
    rng = random.Random(3)
    leads = (b"", b"\x00\x00\x00", b"\x94\x00", b"\x00\x00\x00\x20\x94\x00", b"\x93\x02", b"\xdc\x00\x04\x00")
    async with bed(Instance(), listener=LIMITS) as g, undisturbed(g):
        peers = [g.dial() for _ in range(60)]
        for peer in peers:
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                await peer.send(rng.choice(leads) + rng.randbytes(rng.randrange(1, 200)))
                if rng.random() < 0.5:
                    peer.fin()
        await until(lambda: len(g.lines) == len(peers))
        reasons = {line["reason"] for line in g.lines}
        assert reasons <= {"protocol_error", "frame_too_large", "frame_timeout", "client_fin"}
        assert len(reasons) >= 3


# ---- what only instances can judge ----

MALFORMED = {
    "ends early": request(b"\x91\xda\x00\x20ab"),
    "reserved byte": request(b"\x91\xc1"),
    "too deep": request(b"\x91" * 3000),
    "laughs": request(b"\xdd\xff\xff\xff\xff" * 100),
    "too much": request(b"\x90\x90\x90"),
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
async def test_malformed_parameters_in_frames(body: bytes) -> None:
    """The gateway does not decode parameters: within its frame anything passes, and the answer comes back."""
    instance = Instance()
    async with bed(instance, listener=LIMITS) as g, undisturbed(g):
        client = await g.client()
        for _ in range(3):
            client.transport.write(framed(body))
        for _, number, error, _ in await client.got(3):
            assert (number, error) == (1, "malformed parameters")


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("large", [False, True])
async def test_malformed_parameters_where_instances_have_no_lengths(body: bytes, large: bool) -> None:
    """Behind msgpack-rpc-stream what is not one whole message would run into the next: it is refused."""
    instance = Instance(framed=False)
    if large:
        body = body[:5] + msgpack.packb(bytes(300_000)) + body[5:]
    async with bed(instance, listener=f'{LIMITS}codec = "msgpack-rpc-stream"') as g, undisturbed(g):
        peer = g.dial()
        await peer.send(framed(body))
        message = await told(peer, bare=False)
        assert (message[1], message[2]["code"]) == (None, "bad_frame")
        peer.close()
        assert (await g.line())["reason"] == "protocol_error"
