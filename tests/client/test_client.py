"""The client against a real service, and against servers that the test plays byte by byte."""

import asyncio
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tcpgw.client import (
    CallTimeoutError,
    Client,
    Code,
    ConnectError,
    ConnectionLostError,
    FrameTooLargeError,
    RpcError,
    connect,
)
from tcpgw.errors import TcpgwError
from tcpgw.service import Service
from tests.conftest import Need
from tests.support.rpc_ends import certificate, frame, nothing_left, read_message, server
from tests.support.streams import PATIENCE, SMALL, MiB, Peer, in_time, refusing, silent, until


@pytest.fixture(autouse=True)
async def leaves_nothing() -> AsyncIterator[None]:
    async with nothing_left():
        yield


async def answer(peer: Peer, result: Any = None, error: Any = None) -> list[Any]:
    """Answer the next request, and return it."""
    message = await read_message(peer)
    await peer.send(frame(1, message[1], error, result))
    return list(message)


# ---- calls ----


async def test_call_and_notify() -> None:
    """A call gives the method's result, a notification reaches its method."""
    seen = asyncio.Queue[int]()
    service = Service({"predict": lambda request: {"label": request["a"]}, "seen": seen.put})
    async with service.serving("127.0.0.1:0") as address, connect(address) as client:
        assert await client.call("predict", {"a": "a"}, timeout=2.0) == {"label": "a"}
        await client.notify("seen", 1)
        assert await in_time(seen.get()) == 1


async def test_a_request_is_the_documented_frame() -> None:
    """What goes out is a 4-byte length and [0, id, method, params], or [2, method, params]."""
    with server() as played:
        async with connect(played.address) as client:
            peer = await played.accept()
            call = asyncio.create_task(client.call("m", 1, "two", b"3"))
            number, method, params = (await answer(peer))[1:]
            assert (method, params) == ("m", [1, "two", b"3"])
            assert 0 <= number < 2**32
            await call
            await client.notify("n", None)
            assert await read_message(peer) == [2, "n", [None]]


async def test_values_pass_unchanged() -> None:
    """Every kind of value comes back equal: byte strings, extension types, maps with keys of any kind."""
    values = [None, True, -(2**63), 2**64 - 1, 1.5, "é", b"\xff", [1, [2]], {1: 2, "k": {b"b": None}}]
    values += [msgpack.ExtType(5, b"x"), msgpack.Timestamp(1, 2), "\udcff"]

    async def echo(value: Any) -> Any:
        return value

    async with Service({"echo": echo}).serving("127.0.0.1:0") as address, connect(address) as client:
        assert [await client.call("echo", value) for value in values] == values


async def test_answers_in_any_order() -> None:
    """Concurrent calls leave together, and each gets its own answer, whatever the order."""
    with server() as played:
        async with connect(played.address) as client:
            peer = await played.accept()
            calls = [asyncio.create_task(client.call("m", n)) for n in range(50)]
            requests = [await read_message(peer) for _ in range(50)]
            for _, number, _, params in reversed(requests):
                await peer.send(frame(1, number, None, params[0] * 10))
            assert await in_time(asyncio.gather(*calls)) == [n * 10 for n in range(50)]


async def test_an_answer_in_single_bytes() -> None:
    """An answer may come in pieces of any size."""
    with server() as played:
        async with connect(played.address) as client:
            peer = await played.accept()
            call = asyncio.create_task(client.call("m"))
            number = (await read_message(peer))[1]
            for byte in frame(1, number, None, "whole"):
                await peer.send(bytes([byte]))
            assert await in_time(call) == "whole"


async def test_a_call_times_out_and_its_late_answer_is_dropped() -> None:
    """A call without an answer raises after its time-out; the connection goes on without the late answer."""
    with server() as played:
        async with connect(played.address) as client:
            peer = await played.accept()
            with pytest.raises(
                CallTimeoutError, match=rf"^slow had no answer from {played.address} in 0.05 s$"
            ):
                await client.call("slow", timeout=0.05)
            late = (await read_message(peer))[1]
            call = asyncio.create_task(client.call("next"))
            await peer.send(frame(1, late, None, "late"))
            await answer(peer, "its own")
            assert await in_time(call) == "its own"


def test_a_call_timeout_is_a_timeout_error() -> None:
    """Whoever catches TimeoutError catches a call's, and may not take it for harmless to repeat."""
    assert issubclass(CallTimeoutError, TimeoutError)
    assert not CallTimeoutError("x").retry_safe


async def test_a_cancelled_call_leaves_nothing_behind() -> None:
    """A cancelled call gives its place to the next one, and its late answer to nobody."""
    with server() as played:
        async with connect(played.address, max_inflight=1) as client:
            peer = await played.accept()
            call = asyncio.create_task(client.call("first"))
            late = (await read_message(peer))[1]
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            call = asyncio.create_task(client.call("second"))
            await peer.send(frame(1, late, "late", None))
            await answer(peer, 2)
            assert await in_time(call) == 2


async def test_at_most_max_inflight_calls_are_with_the_server() -> None:
    """Calls beyond max_inflight wait here; beyond 16 times as many, they are refused unsent."""
    with server() as played:
        async with connect(played.address, max_inflight=2) as client:
            peer = await played.accept()
            calls = [asyncio.create_task(client.call("m", n)) for n in range(34)]
            requests = [await read_message(peer) for _ in range(2)]
            with pytest.raises(RpcError, match="32 calls of this client wait already") as refused:
                await client.call("one more")
            assert (refused.value.code, refused.value.retry_safe) == (Code.OVERLOADED, True)
            with pytest.raises(BlockingIOError):
                peer.sock.recv(1)
            for number in [request[1] for request in requests]:
                await peer.send(frame(1, number, None, None))
            for _ in range(32):
                await answer(peer)
            await in_time(asyncio.gather(*calls))


@pytest.mark.parametrize("seconds", [None, 0, -1, math.inf, math.nan, "1"])
async def test_every_call_has_a_timeout(seconds: Any) -> None:
    """A time-out that is none is refused: nothing waits for ever."""
    client = Client("127.0.0.1:1")
    with pytest.raises(ValueError, match="timeout must be a number of seconds above 0"):
        await client.call("m", timeout=seconds)
    with pytest.raises(ValueError, match="timeout must be"):
        await client.notify("m", timeout=seconds)
    with pytest.raises(ValueError, match="connect_timeout must be"):
        Client("127.0.0.1:1", connect_timeout=seconds)


@pytest.mark.parametrize("value", [object(), 2**64, "\ud800", {1, 2}])
async def test_what_cannot_be_sent_is_refused_here(value: Any) -> None:
    """A parameter that MessagePack has no form of raises ValueError, connection or not."""
    with pytest.raises(ValueError, match="MessagePack has no form of it"):
        await Client("127.0.0.1:1").call("m", value)


@pytest.mark.parametrize("option", ["max_inflight", "max_frame"])
def test_limits_are_above_zero(option: str) -> None:
    """A limit of 0 would let nothing pass, ever."""
    options: Any = {option: 0}
    with pytest.raises(ValueError, match=option):
        Client("127.0.0.1:1", **options)


# ---- errors as answers ----


@pytest.mark.parametrize(
    ("error", "code", "message", "endpoint", "data"),
    [
        ({"code": "no_endpoint", "message": "none"}, Code.NO_ENDPOINT, "none", None, None),
        ({"code": "upstream_lost", "endpoint": "10.0.0.1:80"}, Code.UPSTREAM_LOST, "", "10.0.0.1:80", None),
        ({"code": "bad_input", "message": "m", "data": [1]}, "bad_input", "m", None, [1]),
        ({"code": 7, "message": b"m"}, "7", "m", None, None),
        ([0, "text"], "0", "text", None, [0, "text"]),
        ("text", "instance_error", "text", None, "text"),
        (b"\xff", "instance_error", "�", None, b"\xff"),
        (["a", "b", "c"], "instance_error", "['a', 'b', 'c']", None, ["a", "b", "c"]),
        (False, "instance_error", "False", None, False),
    ],
)
async def test_errors_of_every_form_are_read(
    error: Any, code: str, message: str, endpoint: str | None, data: Any
) -> None:
    """The gateway's errors, a service's, and those of servers nobody here wrote become one RpcError."""
    with server() as played:
        async with connect(played.address) as client:
            peer = await played.accept()
            call = asyncio.create_task(client.call("m"))
            await answer(peer, error=error)
            with pytest.raises(RpcError) as raised:
                await in_time(call)
    found = raised.value
    assert (found.code, found.message, found.endpoint, found.data) == (code, message, endpoint, data)
    assert isinstance(found.code, Code) == (code in list(Code))


def test_an_error_reads_as_a_sentence() -> None:
    """An RpcError's text has code, message and endpoint, as far as there are any."""
    assert str(RpcError("denied")) == "denied"
    assert str(RpcError(Code.DENIED, "not for you")) == "denied: not for you"
    assert str(RpcError("x", "y", endpoint="10.0.0.1:80")) == "x: y (endpoint 10.0.0.1:80)"


def test_only_what_was_not_sent_is_safe_to_retry() -> None:
    """Of the gateway's codes, those are retry_safe with which nothing reached an instance."""
    safe = {code for code in Code if RpcError(code).retry_safe}
    assert safe == {Code.UNAUTHENTICATED, Code.DENIED, Code.NO_ENDPOINT, Code.OVERLOADED}
    assert not RpcError("instance_error").retry_safe


# ---- losing the server ----


async def test_calls_in_flight_raise_when_the_server_dies() -> None:
    """Every call in flight raises at once, not safe to retry; the next one connects anew."""
    with server() as played:
        async with connect(played.address) as client:
            peer = await played.accept()
            calls = [asyncio.create_task(client.call("m", timeout=60)) for _ in range(3)]
            for _ in calls:
                await read_message(peer)
            peer.reset()
            for outcome in await in_time(asyncio.gather(*calls, return_exceptions=True)):
                assert isinstance(outcome, ConnectionLostError)
                assert played.address in str(outcome)
                assert not outcome.retry_safe
            call = asyncio.create_task(client.call("again"))
            await answer(await played.accept(), "back")
            assert await in_time(call) == "back"


async def test_a_server_that_closes_politely_is_lost_as_well() -> None:
    """FIN with a call in flight ends that call; an idle client just connects for the next one."""
    with server() as played:
        async with connect(played.address) as client:
            peer = await played.accept()
            call = asyncio.create_task(client.call("m"))
            await answer(peer)
            await in_time(call)
            peer.fin()
            assert await in_time(peer.read_to_end()) == b""
            call = asyncio.create_task(client.call("again"))
            peer = await played.accept()
            await read_message(peer)
            peer.fin()
            with pytest.raises(ConnectionLostError):
                await in_time(call)


async def test_a_call_that_waits_for_its_turn_is_sent_on_the_next_connection() -> None:
    """What was not written when the connection was lost is not lost with it."""
    with server() as played:
        async with connect(played.address, max_inflight=1) as client:
            peer = await played.accept()
            first = asyncio.create_task(client.call("first"))
            await read_message(peer)
            second = asyncio.create_task(client.call("second"))
            await asyncio.sleep(0)
            peer.reset()
            with pytest.raises(ConnectionLostError):
                await in_time(first)
            assert (await answer(await played.accept(), 2))[2] == "second"
            assert await in_time(second) == 2


async def test_a_call_that_waits_for_room_is_sent_on_the_next_connection() -> None:
    """A server that reads nothing holds calls back here, from where they can still go elsewhere."""
    with server(receive_buffer=SMALL) as played:
        async with connect(played.address) as client:
            peer = await played.accept()
            large = asyncio.create_task(client.call("large", bytes(12 * MiB)))
            await peer.read(SMALL)
            small = asyncio.create_task(client.call("small"))
            await asyncio.sleep(0.01)
            peer.reset()
            with pytest.raises(ConnectionLostError):
                await in_time(large)
            assert (await answer(await played.accept(), "here"))[2] == "small"
            assert await in_time(small) == "here"


async def test_a_call_of_this_moment_is_sent_on_the_next_connection() -> None:
    """A call made while the end of the connection is on its way, and not written yet, is not lost."""
    with server() as played:
        async with connect(played.address) as client:
            peer = await played.accept()

            async def answer_next() -> Any:
                return await answer(await played.accept(), "there")

            answering = asyncio.create_task(answer_next())
            await asyncio.sleep(0)
            peer.sock.send(bytes(4))  # no answer: it ends the connection, before this turn's write
            assert await client.call("m", timeout=PATIENCE) == "there"
            assert (await in_time(answering))[2] == "m"
            assert await in_time(peer.read_to_end()) == b""


async def test_a_server_that_does_not_read_bounds_what_is_buffered() -> None:
    """Calls to a server that reads nothing time out, and few of them are held in memory meanwhile."""
    with server(receive_buffer=SMALL) as played:
        async with connect(played.address) as client:
            peer = await played.accept()
            calls = [client.call("m", bytes(MiB), timeout=0.3) for _ in range(100)]
            outcomes = await in_time(asyncio.gather(*calls, return_exceptions=True))
            assert all(isinstance(outcome, CallTimeoutError) for outcome in outcomes)
            with pytest.raises(CallTimeoutError, match="could not be sent"):
                await client.notify("n", timeout=0.05)
            closing = asyncio.create_task(client.close())
            assert len(await in_time(peer.read_to_end())) < 8 * MiB
            await in_time(closing)


@pytest.mark.parametrize(
    ("garbage", "reason"),
    [
        (b"\xff\xff\xff\xff", "at most 16777216 are taken"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "at most 16777216 are taken"),
        (b"\0\0\0\0", "incomplete input"),
        (b"\0\0\0\1\xc1", "not MessagePack"),
        (b"\0\0\0\2\x01\x02", "not MessagePack"),
        (b"\0\0\0\1\x94", "not MessagePack"),
        (frame(1, 2, 3), "no answer"),
        (frame(0, 1, "m", []), "no answer"),
        (frame(1, "1", None, None), "no answer"),
        (b"\0\0\x13\x88" + b"\x91" * 5000, "not MessagePack"),
        (b"\0\0\x13\x88" + b"\xdd\0\0\x10\0" * 1000, "ends within a value"),
        (
            frame(1, None, {"code": "bad_frame", "message": "why"}, None),
            "ended the connection: bad_frame: why",
        ),
    ],
)
async def test_garbage_ends_the_connection_and_not_the_client(garbage: bytes, reason: str) -> None:
    """Bytes that are no answer end the calls in flight with the reason; the next call connects anew."""
    with server() as played:
        async with connect(played.address) as client:
            peer = await played.accept()
            call = asyncio.create_task(client.call("m"))
            await read_message(peer)
            await peer.send(garbage)
            with pytest.raises(ConnectionLostError, match=reason):
                await in_time(call)
            call = asyncio.create_task(client.call("again"))
            await answer(await played.accept(), 1)
            assert await in_time(call) == 1


async def test_what_answers_nothing_is_ignored() -> None:
    """A notification from the server and an answer to an unknown id disturb nobody."""
    with server() as played:
        async with connect(played.address) as client:
            peer = await played.accept()
            call = asyncio.create_task(client.call("m"))
            await peer.send(frame(2, "news", []) + frame(1, 4_000_000_000, None, "whose?"))
            await answer(peer, "mine")
            assert await in_time(call) == "mine"


async def test_frames_have_a_limit_both_ways() -> None:
    """A request above max_frame is not sent; an answer above it ends the connection before it comes."""
    with server() as played:
        async with connect(played.address, max_frame=100) as client:
            peer = await played.accept()
            with pytest.raises(FrameTooLargeError, match=r"at most 100 are taken \(max_frame\)"):
                await client.call("m", bytes(100))
            call = asyncio.create_task(client.call("m"))
            await read_message(peer)
            await peer.send(b"\0\0\0\x65")
            with pytest.raises(ConnectionLostError, match="a frame of 101 bytes"):
                await in_time(call)


# ---- connecting ----


async def test_a_wrong_address_shows_at_once() -> None:
    """The first connection is tried once: nobody waits for a port that refuses."""
    with refusing() as address:
        with pytest.raises(ConnectError, match=f"cannot connect to {address}: .*refused") as refused:
            await in_time(connect(address, connect_timeout=60).__aenter__())
        assert (refused.value.tries, refused.value.retry_safe) == (1, True)


async def test_a_silent_address_is_given_up() -> None:
    """Connecting takes no longer than connect_timeout."""
    with silent() as address, pytest.raises(ConnectError, match=r"within 0\.1 s"):
        await in_time(connect(address, connect_timeout=0.1).__aenter__())


@pytest.mark.parametrize("address", ["", "127.0.0.1", ":80", "::1:80", "host:x", "host:70000", "unix:"])
def test_an_address_that_is_none(address: str) -> None:
    """What cannot be an address is refused before anything is tried."""
    with pytest.raises(ValueError, match="is no address"):
        Client(address)


async def test_reconnecting_backs_off_and_gives_up() -> None:
    """A call that finds its server gone tries for connect_timeout, ever less often, then raises."""
    with server() as played:
        client = connect(played.address, connect_timeout=0.4)
        await client.__aenter__()
        (await played.accept()).reset()
    try:
        calls = [client.call("m") for _ in range(10)]
        outcomes = await in_time(asyncio.gather(*calls, return_exceptions=True))
        for outcome in outcomes:
            assert isinstance(outcome, ConnectError)
            assert outcome.retry_safe
            # 0 s, then 50, 100, 200 ms, each less up to half: shared by the ten calls
            assert 2 <= outcome.tries <= 6
    finally:
        await client.close()


async def test_a_call_waits_for_a_server_that_comes_back() -> None:
    """A restart shorter than connect_timeout costs time and no call."""
    service = Service({"m": lambda: "back"})
    async with service.serving("127.0.0.1:0") as address:
        client = connect(address)
        await client.__aenter__()
    try:
        call = asyncio.create_task(client.call("m"))
        await asyncio.sleep(0.05)
        async with service.serving(address):
            assert await in_time(call) == "back"
    finally:
        await client.close()


async def test_a_server_that_hangs_up_at_once_sees_no_storm() -> None:
    """A caller that repeats as fast as it can does not connect as fast as it can."""
    accepted = 0

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        writer.close()

    hanging = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    client = connect("{}:{}".format(*hanging.sockets[0].getsockname()), connect_timeout=0.2)
    end = asyncio.get_running_loop().time() + 0.5
    while asyncio.get_running_loop().time() < end:
        with pytest.raises(TcpgwError):
            await client.call("m")
    assert accepted < 12
    await client.close()
    hanging.close()


async def test_unix_sockets(tmp_path: Path) -> None:
    """An address `unix:/path` is a Unix socket."""
    address = f"unix:{tmp_path / 's'}"
    async with Service().serving(address) as bound, connect(bound) as client:
        assert bound == address
        assert await client.call("tcpgw.ping") == "pong"


async def test_a_client_connects_at_its_first_call_too() -> None:
    """Without `async with` the first call connects; `close` ends it, twice without harm."""
    async with Service().serving("127.0.0.1:0") as address:
        client = Client(address)
        assert await client.call("tcpgw.ping") == "pong"
        await client.close()
        await client.close()


# ---- the token ----


async def test_the_token_goes_first() -> None:
    """With a token, `tcpgw.auth` is answered before anything else is sent, on each connection."""
    with server() as played:
        entering = asyncio.create_task(connect(played.address, token="secret").__aenter__())
        peer = await played.accept()
        assert (await answer(peer))[2:] == ["tcpgw.auth", ["secret"]]
        client = await in_time(entering)
        peer.reset()
        call = asyncio.create_task(client.call("m"))
        peer = await played.accept()
        assert (await read_message(peer))[1:] == [0, "tcpgw.auth", ["secret"]]
        await asyncio.sleep(0.01)
        with pytest.raises(BlockingIOError):
            peer.sock.recv(1)
        await peer.send(frame(1, 0, None, None))
        assert (await answer(peer, "in"))[2] == "m"
        assert await in_time(call) == "in"
        await client.close()


async def test_a_refused_token_is_said_so() -> None:
    """What the server says about the token is what the call raises, and it is not tried over and over."""
    asked: list[str] = []

    async def auth(token: str) -> None:
        asked.append(token)
        raise RpcError(Code.UNAUTHENTICATED, "unknown token")

    async with Service({"tcpgw.auth": auth}).serving("127.0.0.1:0") as address:
        client = connect(address, token="wrong")
        with pytest.raises(RpcError, match="unauthenticated: unknown token"):
            await client.__aenter__()
        assert asked == ["wrong"]
    async with Service().serving("127.0.0.1:0") as address:
        with pytest.raises(RpcError, match="unknown_method"):
            await connect(address, token="t").__aenter__()


# ---- TLS ----


async def test_tls(need: Need, tmp_path: Path) -> None:
    """Over TLS everything is as without it, with the authority that the context says."""
    made = certificate(need("openssl"), tmp_path, "IP:127.0.0.1")
    service = Service({"length": len}, tls=made.server())
    async with (
        service.serving("127.0.0.1:0") as address,
        connect(address, tls=made.client()) as client,
    ):
        sizes = [0, 1, 100_000, 8 * MiB]
        assert await asyncio.gather(*(client.call("length", bytes(size)) for size in sizes)) == sizes


async def test_tls_checks_authority_and_name(need: Need, tmp_path: Path) -> None:
    """An unknown authority or another name refuses; `server_name` says which name is meant."""
    made = certificate(need("openssl"), tmp_path, "DNS:gateway")
    async with Service(tls=made.server()).serving("127.0.0.1:0") as address:
        with pytest.raises(ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await connect(address, tls=True).__aenter__()
        with pytest.raises(ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await connect(address, tls=made.client()).__aenter__()
        async with connect(address, tls=made.client(), server_name="gateway") as client:
            assert await client.call("tcpgw.ping") == "pong"


# ---- closing ----


async def test_close_ends_what_is_in_flight() -> None:
    """Calls in flight raise when their client is closed, and later ones without being sent."""
    with server() as played:
        client = connect(played.address)
        await client.__aenter__()
        peer = await played.accept()
        call = asyncio.create_task(client.call("m"))
        await read_message(peer)
        closing = asyncio.create_task(client.close())
        with pytest.raises(ConnectionLostError, match="the client was closed"):
            await in_time(call)
        assert await in_time(peer.read_to_end()) == b""
        peer.close()
        await in_time(closing)
        with pytest.raises(ConnectError, match="is closed"):
            await client.call("m")


async def test_close_ends_what_waits_for_a_connection() -> None:
    """Calls that wait for a connection raise ConnectError when their client is closed, not a cancellation."""
    with silent() as address:
        client = Client(address)
        calls = [asyncio.create_task(client.call("m")) for _ in range(2)]
        await asyncio.sleep(0.01)
        await in_time(client.close())
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(outcome, ConnectError)


async def test_a_cancelled_call_does_not_cancel_the_connection_of_others() -> None:
    """Several calls wait for one connection, and each may give up without the others."""
    with server() as played:
        client = Client(played.address, token="t")
        first = asyncio.create_task(client.call("first"))
        second = asyncio.create_task(client.call("second"))
        peer = await played.accept()
        first.cancel()
        await answer(peer)
        assert (await answer(peer, 2))[2] == "second"
        assert await in_time(second) == 2
        await client.close()


async def test_what_was_notified_before_the_close_arrives() -> None:
    """`close` writes what still waits."""
    lengths: list[int] = []
    async with Service({"take": lambda data: lengths.append(len(data))}).serving("127.0.0.1:0") as address:
        async with connect(address) as client:
            for _ in range(3):
                await client.notify("take", bytes(4 * MiB))
        await until(lambda: lengths == [4 * MiB] * 3)
