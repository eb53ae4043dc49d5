"""The framed relay's promises; what it shares with the stream plane is proved in test_stream.py.

Frames are written out here, by struct, and not with tcpgw's own codecs.
"""

import asyncio
import contextlib
import random
import struct
from collections.abc import Callable

import pytest

from tcpgw.observe.histogram import Histogram
from tcpgw.relay import framed
from tcpgw.relay.framed import Latencies
from tests.support.framed import FIFO, U32BE, ask, plane, session, u32be
from tests.support.streams import SMALL, Bed, MiB, Peer, bed, refusing, until

HELD = 320 * 1024  # as in test_stream.py


def varint(body: bytes) -> bytes:
    size, head = len(body), b""
    while size > 0x7F:
        head += bytes([size & 0x7F | 0x80])
        size >>= 7
    return head + bytes([size]) + body


def dubbo(body: bytes) -> bytes:
    return b"\xda\xbb\xc2\x00" + bytes(8) + struct.pack(">I", len(body)) + body


def brpc(body: bytes) -> bytes:
    return b"PRPC" + struct.pack(">II", len(body), 0) + body


def bin32(body: bytes) -> bytes:
    return b"\xc6" + struct.pack(">I", len(body)) + body


def little(body: bytes) -> bytes:
    """Two bytes of flags, then a length of three bytes that counts all."""
    return b"\x01\x02" + (len(body) + 5).to_bytes(3, "little") + body


TABLE = '{ offset = 2, width = 3, endian = "little", includes_header = true }'
CODECS: dict[str, Callable[[bytes], bytes]] = {
    '"u32be"': u32be,
    '"kafka"': u32be,
    '"u32le"': lambda body: struct.pack("<I", len(body)) + body,
    '"varint"': varint,
    '"dubbo"': dubbo,
    '"brpc"': brpc,
    '"msgpack"': bin32,
    '{ name = "fifo", frame = "u32be" }': u32be,
    f'{{ name = "opaque", frame = {TABLE} }}': little,
}


async def send_in_pieces(peer: Peer, data: bytes, rng: random.Random) -> None:
    position = 0
    while position < len(data):
        size = rng.choice((1, 2, 3, 7, 100, 5000, 100_000))
        await peer.send(data[position : position + size])
        position += size
        if rng.random() < 0.3:
            await asyncio.sleep(0)


# ---- what passes ----


@pytest.mark.parametrize("codec", CODECS)
async def test_frames_pass_unchanged_however_they_are_cut(codec: str) -> None:
    """Every byte arrives in order in both directions, FIN last, and the line has the counts."""
    rng = random.Random(codec)
    frame = CODECS[codec]
    up = [rng.randbytes(rng.choice((0, 1, 5, 200, 70_000))) for _ in range(60)]
    down = [rng.randbytes(rng.choice((0, 1, 5, 200, 70_000))) for _ in range(50)]
    sent = {"up": b"".join(map(frame, up)), "down": b"".join(map(frame, down))}
    async with bed(listener=f'mode = "rpc"\ncodec = {codec}') as b:
        client, instance = await b.pair()

        async def send(peer: Peer, data: bytes) -> None:
            await send_in_pieces(peer, data, rng)
            peer.fin()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send(client, sent["up"]))
            tasks.create_task(send(instance, sent["down"]))
            got = [tasks.create_task(peer.read_to_end()) for peer in (instance, client)]
        assert [task.result() for task in got] == [sent["up"], sent["down"]]
        line = await b.line()
    assert (line["requests"], line["answers"]) == (60, 50)
    assert (line["bytes_in"], line["bytes_out"]) == (len(sent["up"]), len(sent["down"]))
    assert line["reason"] in {"client_fin", "instance_fin"}


@pytest.mark.parametrize("listener", [U32BE, FIFO])
async def test_a_frame_need_not_be_whole_to_pass(listener: str) -> None:
    """What has come of a frame is passed on at once: nothing is stored until its end."""
    async with bed(listener=listener) as b:
        client, instance = await b.pair()
        for from_, to in ((client, instance), (instance, client)):
            await from_.send(u32be(bytes(1000))[:500])
            assert len(await to.read(500)) == 500
            await from_.send(bytes(504))
            assert await to.read(504) == bytes(504)
        client.reset()
        line = await b.line()
    assert (line["requests"], line["answers"], line["reason"]) == (1, 1, "client_reset")


async def test_an_instance_may_speak_by_itself() -> None:
    """Frames that nobody asked for pass, before the first request and after."""
    async with bed(listener=FIFO) as b:
        client, instance = await b.pair()
        await instance.send(u32be(b"welcome"))
        assert await client.read(11) == u32be(b"welcome")
        await client.send(u32be(b"q"))
        assert await instance.read(5) == u32be(b"q")
        await instance.send(u32be(b"a") + u32be(b"news"))
        assert await client.read(13) == u32be(b"a") + u32be(b"news")
        client.close()
        instance.close()
        line = await b.line()
    assert (line["requests"], line["answers"]) == (1, 3)


async def test_a_frame_cut_short_by_fin_or_reset() -> None:
    """A half frame arrives with the FIN or the reset behind it, as without a gateway."""
    async with bed(listener=U32BE) as b:
        client, instance = await b.pair()
        await client.send(u32be(b"whole") + b"\x00\x00\x00\x09half")
        client.fin()
        assert await instance.read_to_end() == u32be(b"whole") + b"\x00\x00\x00\x09half"
        await instance.send(b"\x00\x00")
        assert await client.read(2) == b"\x00\x00"
        instance.reset()
        assert await client.is_reset()
        line = await b.line()
    assert (line["requests"], line["answers"], line["reason"]) == (1, 0, "instance_reset")


@pytest.mark.parametrize("sender", ["client", "instance"])
async def test_a_reader_that_stalls_holds_memory_flat(sender: str) -> None:
    """As on the stream plane; afterwards everything flows again, and every frame was counted."""
    frames = u32be(bytes(60_000)) * 200
    async with bed(listener=FIFO) as b:
        client, instance = await b.pair(receive_buffer=SMALL)
        relay = await session(b)
        source, reader = (client, instance) if sender == "client" else (instance, client)
        from_, to = (relay.client, relay.instance) if sender == "client" else (relay.instance, relay.client)
        sending = asyncio.create_task(source.send(frames))
        await until(lambda: from_.held)
        received = from_.received
        await asyncio.sleep(0.05)
        assert from_.received == received
        assert to.transport is not None
        assert 0 < to.transport.get_write_buffer_size() <= HELD
        assert await reader.read(len(frames)) == frames
        await sending
        assert from_.frames == 200
        assert not from_.held


# ---- what is refused ----


@pytest.mark.parametrize("culprit", ["client", "instance"])
async def test_a_frame_above_the_limit(culprit: str) -> None:
    """What was read before it is delivered with FIN, nothing of it is, its sender is reset."""
    async with bed(listener=U32BE + '\nmax_frame = "1KiB"') as b:
        peers = dict(zip(("client", "instance"), await b.pair(), strict=True))
        sender, other = peers.pop(culprit), *peers.values()
        largest = u32be(bytes(1020))
        await sender.send(largest)
        assert await other.read(1024) == largest
        await sender.send(u32be(bytes(1021)))
        assert await other.read_to_end() == b""
        assert await sender.is_reset()
        line = await b.line()
    assert line["reason"] == "frame_too_large"
    assert line["error"].startswith(f"{culprit}: the frame at byte 1024 of the stream")
    assert line["requests" if culprit == "client" else "answers"] == 1


async def test_what_waits_for_a_slow_reader_comes_before_the_end() -> None:
    """A refused frame takes back nothing that was read before it, however late that is fetched."""
    frames = u32be(bytes(100_000)) * 300  # more than the kernel takes
    settings = '\nmax_frame = "100004B"\nbuffer = "64MiB"\nframe_timeout = "100ms"'
    async with bed(listener=U32BE + settings) as b:
        client, instance = await b.pair(receive_buffer=SMALL)
        await client.send(u32be(b"half")[:6])  # nobody waits for its end any more
        assert len(await instance.read(6)) == 6
        await instance.send(frames)
        relay = await session(b)
        await until(lambda: relay.instance.received == len(frames))
        await instance.send(u32be(bytes(100_001)))
        assert await instance.is_reset()
        await asyncio.sleep(0.25)
        assert await client.read_to_end() == frames
        assert (await b.line())["reason"] == "frame_too_large"


async def test_who_does_not_fetch_the_rest_is_cut_off() -> None:
    """After a refused frame, the other side has fin_timeout, and the reason stays.

    The first sweep comes when the instance is gone already.
    """
    settings = '\nmax_frame = "100004B"\nbuffer = "64MiB"\nfin_timeout = "1s"'
    async with bed(listener=U32BE + settings) as b:
        client, instance = await b.pair(receive_buffer=SMALL)
        await instance.send(u32be(bytes(100_000)) * 300)  # more than the kernel takes
        relay = await session(b)
        await until(lambda: relay.instance.frames == 300)
        await instance.send(u32be(bytes(100_001)))
        assert (await b.line())["reason"] == "frame_too_large"
        assert await client.is_reset()


async def test_a_header_that_the_network_cut() -> None:
    """Of a refused frame at most the header's first bytes get through, and then FIN in mid-frame."""
    async with bed(listener=U32BE + '\nmax_frame = "1KiB"') as b:
        client, instance = await b.pair()
        await client.send(b"\x00\x00")
        assert await instance.read(2) == b"\x00\x00"
        await client.send(b"\xff\xff" + bytes(100))
        assert await instance.read_to_end() == b""
        assert await client.is_reset()
        assert (await b.line())["reason"] == "frame_too_large"


@pytest.mark.parametrize(
    ("codec", "garbage"),
    [("dubbo", b"GET / HTTP/1.1\r\n"), ("msgpack", b"\xc1"), ("varint", b"\xff" * 10), ("brpc", b"\x00")],
)
async def test_what_is_no_frame(codec: str, garbage: bytes) -> None:
    """Bytes that begin no frame of the codec end the connection; the instance sees none of them."""
    async with bed(listener=f'mode = "rpc"\ncodec = "{codec}"') as b:
        client, instance = await b.pair()
        await client.send(garbage)
        assert await instance.read_to_end() == b""
        assert await client.is_reset()
        line = await b.line()
    assert line["reason"] == "protocol_error"
    assert line["error"].startswith("client: ")
    assert "byte 0 of the stream" in line["error"]


@pytest.mark.parametrize("body", [b"fine", bytes(2000)])
async def test_bytes_right_behind_a_proxy_header_are_frames(body: bytes) -> None:
    """They are counted and limited as all others, although they were read before there was an instance."""
    async with bed(listener=U32BE + '\nmax_frame = "1KiB"\naccept_proxy = ["127.0.0.0/8"]') as b:
        client = b.dial()
        await client.send(b"PROXY UNKNOWN\r\n" + u32be(body))
        instance = await b.accept()
        if body == b"fine":
            assert await instance.read(8) == u32be(body)
            client.reset()
        else:
            with contextlib.suppress(ConnectionResetError):
                assert await instance.read_to_end() == b""
            assert await client.is_reset()
        line = await b.line()
    assert line["reason"] == ("client_reset" if body == b"fine" else "frame_too_large")
    assert line["requests"] == (body == b"fine")
    assert line["bytes_in"] == 4 + len(body)


async def test_an_instance_that_begins_with_too_much() -> None:
    """Refused before the client's transport stands or just after: its client is cut off, once."""
    async with bed(listener=U32BE + '\nmax_frame = "1KiB"') as b:
        loop = asyncio.get_running_loop()

        def accept_and_send() -> None:
            peer = Peer(b.instances[0].accept()[0])
            peer.sock.send(u32be(bytes(2000)))
            b._keep(peer)

        loop.add_reader(b.instances[0], accept_and_send)
        for number in range(1, 31):
            client = b.dial()
            with contextlib.suppress(ConnectionResetError):
                assert await client.read_to_end() == b""
            client.close()
            await b.closed(number)
        loop.remove_reader(b.instances[0])
    assert {line["reason"] for line in b.lines} <= {"frame_too_large", "client_reset", "client_fin"}
    assert "frame_too_large" in {line["reason"] for line in b.lines}


# ---- frames that take too long ----


@pytest.mark.parametrize("culprit", ["client", "instance"])
async def test_a_frame_that_drips(culprit: str) -> None:
    """A frame that is not whole in time ends its connection with a reset, although bytes keep coming."""
    async with bed(listener=U32BE + '\nframe_timeout = "200ms"') as b:
        peers = dict(zip(("client", "instance"), await b.pair(), strict=True))
        sender, other = peers.pop(culprit), *peers.values()
        began = asyncio.get_running_loop().time()
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            for byte in u32be(bytes(1000)):
                await sender.send(bytes([byte]))
                await asyncio.sleep(0.01)
        assert 0.19 <= asyncio.get_running_loop().time() - began < 1.5
        assert await other.is_reset()
        line = await b.line()
    assert line["reason"] == "frame_timeout"
    assert line["error"].startswith(f"{culprit}: ")
    assert "of a frame within 0.2 s" in line["error"]


async def test_many_frames_in_a_row_are_none_that_takes_long() -> None:
    """Each frame has the time-out for itself, even when none of the reads ends where a frame does."""
    async with bed(listener=U32BE + '\nframe_timeout = "200ms"') as b:
        client, instance = await b.pair()
        await client.send(b"\x00")
        for _ in range(40):
            await client.send(u32be(b"xy")[1:] + b"\x00")
            await asyncio.sleep(0.02)
        await client.send(u32be(b"z")[1:])
        assert await instance.read(245) == u32be(b"xy") * 40 + u32be(b"z")
        client.reset()
        line = await b.line()
    assert (line["reason"], line["requests"]) == ("client_reset", 41)


async def test_silence_between_frames_is_none_within_one() -> None:
    """At a frame's boundary only idle_timeout counts."""
    async with bed(listener=U32BE + '\nframe_timeout = "50ms"') as b:
        client, instance = await b.pair()
        await client.send(u32be(b"one"))
        await asyncio.sleep(0.3)
        await client.send(u32be(b"two"))
        assert await instance.read(14) == u32be(b"one") + u32be(b"two")


async def test_the_sender_is_not_blamed_for_a_slow_reader() -> None:
    """While the gateway does not read a frame because nobody takes it, its time stands still."""
    frame = u32be(bytes(8 * MiB))
    async with bed(listener=U32BE + '\nframe_timeout = "150ms"') as b:
        client, instance = await b.pair(receive_buffer=SMALL)
        sending = asyncio.create_task(instance.send(frame))
        await asyncio.sleep(0.6)
        assert not b.lines
        assert await client.read(len(frame)) == frame
        await sending


async def test_fin_within_a_frame_is_not_waited_for() -> None:
    """Nothing more can come, so the other direction goes on for as long as fin_timeout allows."""
    async with bed(listener=U32BE + '\nframe_timeout = "50ms"') as b:
        client, instance = await b.pair()
        await client.send(b"\x00\x00")
        client.fin()
        assert await instance.read_to_end() == b"\x00\x00"
        await asyncio.sleep(0.2)
        await instance.send(u32be(b"still"))
        assert await client.read(9) == u32be(b"still")


# ---- answers in order ----


def counts(histogram: Histogram) -> dict[float, int]:
    """The upper bounds, in ms, of what was counted."""
    return {round(upper * 1e3, 1): count for upper, count in histogram.buckets() if count}


def test_latencies_are_those_of_requests_in_order() -> None:
    """Whatever is read together, each answer belongs to the first request that has none."""
    histogram = Histogram()
    latencies = Latencies(histogram)
    latencies.asked(2, 10.0)
    latencies.asked(3, 10.004)
    latencies.answered(1, 10.008)  # 8 ms
    assert latencies.outstanding == 4
    latencies.answered(2, 10.020)  # 20 and 16 ms
    latencies.answered(2, 10.020)  # 16 ms both
    assert latencies.outstanding == 0
    assert histogram.count == 5
    assert histogram.total == pytest.approx(0.008 + 0.020 + 3 * 0.016)
    assert list(counts(histogram).values()) == [1, 3, 1]


def test_an_answer_to_nothing_is_not_timed() -> None:
    """What the instance sends by itself counts nowhere, and takes nothing from the request after it."""
    histogram = Histogram()
    latencies = Latencies(histogram)
    latencies.answered(3, 1.0)
    latencies.asked(1, 2.0)
    latencies.answered(2, 2.5)
    assert latencies.outstanding == 0
    assert (histogram.count, histogram.total) == (1, 0.5)


async def test_latencies_are_measured_from_end_to_end() -> None:
    """From a request's last byte to its answer's last byte, connections of all clients together."""
    async with bed(listener=FIFO) as b:
        for _ in range(2):
            client, instance = await b.pair()
            await client.send(u32be(b"question")[:6])
            await asyncio.sleep(0.1)  # a slow request is no slow answer
            await client.send(u32be(b"question")[6:] + u32be(b"another"))
            await instance.read(23)
            await asyncio.sleep(0.05)
            await instance.send(u32be(b"a") + u32be(b"answer")[:7])
            await asyncio.sleep(0.05)
            await instance.send(u32be(b"answer")[7:])
            assert await client.read(15) == u32be(b"a") + u32be(b"answer")
        histogram = plane(b).latencies["s"]
    assert histogram.count == 4
    # Timers may be early by the tick of the loop.
    assert 2 * (0.05 + 0.1) - 0.01 <= histogram.total < 2 * (0.05 + 0.1) + 0.2


async def test_opaque_frames_are_not_timed() -> None:
    """Where answers come in any order, nothing is said about their time."""
    async with bed(listener=U32BE) as b:
        await ask(*await b.pair())
        assert not plane(b).latencies


def counted(b: Bed) -> tuple[dict[str, int], tuple[int, int]]:
    """What requests came to, and the connections that count as one each: how many, and how many failed."""
    status = b.listener.status()
    requests = status["requests"].get("s", {"outcomes": {}})
    invoked = status["invocations"].get("s", {"ended": 0, "failed": 0})
    return requests["outcomes"], (invoked["ended"], invoked["failed"])


async def test_an_instance_that_breaks_off_has_failed_what_it_owed() -> None:
    """By a reset as by FIN; what was answered before stays so, and a connection at rest owes nothing."""
    async with bed(listener=FIFO) as b:
        for number, end in enumerate((Peer.reset, Peer.close, Peer.reset), 1):
            client, instance = await b.pair()
            await ask(client, instance)
            if number < 3:
                await client.send(u32be(b"q") * 2)
                assert await instance.read(10)
            end(instance)
            client.close()
            await b.closed(number)
        assert counted(b) == ({"ok": 3, "upstream_lost": 4}, (0, 0))


async def test_who_leaves_first_wants_no_answer() -> None:
    """What a client did not wait for says nothing of the instance."""
    async with bed(listener=FIFO) as b:
        for number, end in enumerate((Peer.reset, Peer.close), 1):
            client, instance = await b.pair()
            await client.send(u32be(b"q"))
            assert await instance.read(5)
            end(client)
            assert await instance.is_reset() if end is Peer.reset else not await instance.read_to_end()
            instance.close()
            await b.closed(number)
        assert counted(b) == ({}, (0, 0))


@pytest.mark.parametrize("sent", [b"", u32be(b"question")[:6]])
async def test_a_connection_that_fails_before_a_request_is_whole_counts_as_one(sent: bytes) -> None:
    """Nobody knows how many there would have been."""
    async with bed(listener=FIFO) as b:
        client, instance = await b.pair()
        await client.send(sent)
        await instance.read(len(sent))
        instance.reset()
        assert await client.is_reset()
        await b.closed(1)
        assert counted(b) == ({}, (1, 1))


async def test_a_connection_that_finds_no_instance_counts_as_one() -> None:
    """Or a service that is down would look well."""
    with refusing() as dead:
        async with bed(listener=FIFO, instances=0, endpoints=[dead]) as b:
            client = b.dial()
            assert await client.read_to_end() == b""
            await b.closed(1)
            assert counted(b)[1] == (1, 1)


async def test_requests_without_answers_are_bounded() -> None:
    """A client that asks and asks is not read until it is answered; then it goes on, and all are timed."""
    most = framed.MOST_OUTSTANDING
    empty = bytes(4)
    async with bed(listener=FIFO) as b:
        client, instance = await b.pair()
        relay = await session(b)
        sending = asyncio.create_task(client.send(empty * 4 * most))
        forwarded = 0
        while not relay.client.held or relay.instance.full:
            forwarded += len(await instance.read_some())
        assert relay.latencies is not None
        received = relay.client.received
        await asyncio.sleep(0.05)
        assert relay.client.received == received
        assert most < relay.latencies.outstanding <= 2 * most  # one read more

        async def answer() -> None:
            nonlocal forwarded
            answered = 0
            while answered < len(empty) * 4 * most:
                size = forwarded - answered
                await instance.send(bytes(size))
                answered += size
                if answered < len(empty) * 4 * most:
                    forwarded += len(await instance.read_some())

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(answer())
            got = tasks.create_task(client.read(len(empty) * 4 * most))
        assert len(got.result()) == len(empty) * 4 * most
        await sending
        assert relay.latencies.outstanding == 0
        assert plane(b).latencies["s"].count == 4 * most
