"""What a listener does with clients: whom it takes, when it ends them, and what it says of each."""

import asyncio
import contextlib
import socket
import time
from functools import partial
from pathlib import Path
from typing import Never

import msgpack
import pytest
from structlog.testing import capture_logs

from tcpgw.config.load import loads
from tcpgw.config.log import ConnectionLog
from tcpgw.relay.lines import ConnectionLines
from tcpgw.relay.listener import Listener
from tcpgw.relay.reasons import Reason
from tcpgw.relay.sockets import bind_socket
from tcpgw.relay.stream_plane import StreamPlane
from tests.support.streams import SMALL, bed, dial, in_time, refusing, silent, until

# ---- where clients come from ----


async def test_ipv6() -> None:
    """An IPv6 client's address stands in brackets, and so does the listener's."""
    async with bed(bind="[::1]:0") as b:
        assert b.listener.address.startswith("[::1]:")
        client, instance = await b.pair()
        port = client.sock.getsockname()[1]
        client.close()
        instance.close()
        assert (await b.line())["client"] == f"[::1]:{port}"


async def test_ipv4_on_a_dual_stack_listener() -> None:
    """An IPv4 client is the same key and the same text, whether the listener is IPv4 or `[::]`."""
    async with bed(bind="[::]:0") as b:
        client = b.dial()
        address = client.address
        client.close()
        (await b.accept()).close()
        line = await b.line()
    assert line["client"] == address


async def test_unix(tmp_path: Path) -> None:
    """A Unix socket's client has no address; FIN and bytes pass as over TCP."""
    path = tmp_path / "s"
    async with bed(bind=f"unix:{path}") as b:
        assert b.listener.address == f"unix:{path}"
        client, instance = await b.pair()
        await client.send(b"question")
        client.fin()
        assert await instance.read_to_end() == b"question"
        await instance.send(b"answer")
        instance.fin()
        assert await client.read_to_end() == b"answer"
        line = await b.line()
    assert line["client"] == "unix"
    assert line["reason"] == "client_fin"


async def test_a_unix_client_of_an_instance_that_resets(tmp_path: Path) -> None:
    """Unix sockets know no RST: the client's connection ends, and the log says why."""
    async with bed(bind=f"unix:{tmp_path / 's'}") as b:
        client, instance = await b.pair()
        instance.reset()
        await client.is_reset()
        assert (await b.line())["reason"] == "instance_reset"


async def test_small_messages_go_at_once_and_dead_peers_are_found() -> None:
    """TCP_NODELAY from the start, keepalive probes soon after, on the client's and the instance's socket."""
    async with bed(listener='keepalive = "7s"\nidle_timeout = "400ms"') as b:
        await b.pair()
        relay = await b.relay()
        for side in (relay.client, relay.instance):
            assert side.transport is not None
            sock: socket.socket = side.transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            async with asyncio.timeout(0.3):
                await until(partial(sock.getsockopt, socket.SOL_SOCKET, socket.SO_KEEPALIVE))
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 7


async def test_probes_begin_before_they_are_due() -> None:
    """Long time-outs do not put off the keepalive probes of the instance's socket."""
    async with bed(listener='keepalive = "1s"\nidle_timeout = "2h"\nfin_timeout = "1h"') as b:
        await b.pair()
        transport = (await b.relay()).instance.transport
        assert transport is not None
        sock: socket.socket = transport.get_extra_info("socket")
        async with asyncio.timeout(1.0):
            await until(lambda: sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))


# ---- connecting ----


async def test_a_dead_instance_is_not_noticed_by_clients() -> None:
    """Every client is served by the next candidate, and its line counts the tries."""
    with refusing() as first, refusing() as second:
        async with bed(endpoints=[first, second]) as b:
            for number in range(1, 9):
                b.dial(source=f"127.0.0.{number}").close()
                (await b.accept()).close()
                await b.closed(number)
            endpoint = b.endpoint()
    assert {line["endpoint"] for line in b.lines} == {endpoint}
    assert {line["reason"] for line in b.lines} <= {"client_fin", "instance_fin"}
    assert {line["tries"] for line in b.lines} <= {1, 2, 3}
    assert max(line["tries"] for line in b.lines) > 1


async def test_no_candidate_answers() -> None:
    """The client's connection is closed; the line says of each endpoint why it was not taken."""
    with refusing() as refused, silent() as nobody:
        async with bed(
            instances=0, endpoints=[refused, nobody], service='connect = { timeout = "100ms" }'
        ) as b:
            client = b.dial()
            assert await client.read_to_end() == b""
            line = await b.line()
    assert line["reason"] == "connect_failed"
    assert f"{refused}: Connection refused" in line["error"]
    assert f"{nobody}: no answer within 0.1 s" in line["error"]
    assert line["endpoint"] is None
    assert line["service"] == "s"
    assert line["connect_time"] is None
    assert line["tries"] == 2


async def test_no_endpoint() -> None:
    """A service whose endpoints have weight 0 turns clients away at once."""
    async with bed(weight=0) as b:
        assert await b.dial().read_to_end() == b""
        line = await b.line()
    assert line["reason"] == "no_endpoint"
    assert line["error"] == "service s has no endpoint that takes connections"
    assert (line["endpoint"], line["tries"]) == (None, 0)


@pytest.mark.parametrize("how", ["fin", "reset"])
async def test_a_client_that_leaves_during_the_connect(how: str) -> None:
    """Its instance, when there is one at last, hears of the end; the line says how the client left."""
    with silent() as nobody:
        async with bed(endpoints=[nobody], service='connect = { timeout = "100ms" }') as b:
            for number in range(1, 41):  # until one has the silent endpoint first
                client = b.dial(source=f"127.0.0.{number}")
                await client.send(b"never mind")
                client.close() if how == "fin" else client.reset()
                instance = await b.accept()
                with contextlib.suppress(ConnectionResetError):
                    assert await instance.read_to_end() == b"never mind"
                instance.close()
                await b.closed(number)
                if b.lines[-1]["tries"] == 2:
                    break
    assert b.lines[-1]["tries"] == 2
    assert b.lines[-1]["reason"] == f"client_{how}"


async def test_an_instance_that_leaves_at_once() -> None:
    """Closing or resetting right after the handshake ends the client's connection in the same way."""
    async with bed() as b:
        for number, how in enumerate(("fin", "reset"), 1):
            client, instance = await b.pair()
            instance.close() if how == "fin" else instance.reset()
            assert await client.is_reset() == (how == "reset")
            client.close()
            await b.closed(number)
            assert b.lines[-1]["reason"] == f"instance_{how}"


# ---- time-outs ----


async def test_idle_timeout() -> None:
    """A quiet connection is closed on both sides, with FIN; one with bytes either way is not."""
    async with bed(listener='idle_timeout = "200ms"') as b:
        client, instance = await b.pair()
        for number in range(8):
            from_, to = (client, instance) if number % 2 else (instance, client)
            await from_.send(b"x")
            assert await to.read(1) == b"x"
            await asyncio.sleep(0.05)
        quiet_since = time.monotonic()
        assert await client.read_to_end() == b""
        assert await instance.read_to_end() == b""
        assert 0.1 <= time.monotonic() - quiet_since < 1.0
        assert (await b.line())["reason"] == "idle_timeout"


async def test_idle_timeout_of_a_stalled_reader() -> None:
    """A sender that cannot send is quiet too; since bytes are dropped, both sides see a reset."""
    async with bed(listener='idle_timeout = "200ms"') as b:
        client, instance = await b.pair(receive_buffer=SMALL)
        await instance.send_until_stalled(quiet=0.05)
        assert await instance.is_reset()
        assert await client.is_reset()
        assert (await b.line())["reason"] == "idle_timeout"


@pytest.mark.parametrize("first", ["client", "instance"])
async def test_fin_timeout(first: str) -> None:
    """Whoever neither sends nor ends after the other's FIN is cut off, long before idle_timeout."""
    async with bed(listener='fin_timeout = "200ms"') as b:
        peers = dict(zip(("client", "instance"), await b.pair(), strict=True))
        ended, silent_one = peers.pop(first), *peers.values()
        ended.fin()
        for _ in range(8):  # bytes put it off
            await silent_one.send(b"x")
            assert await ended.read(1) == b"x"
            await asyncio.sleep(0.05)
        assert await ended.is_reset()
        assert (await b.line())["reason"] == "fin_timeout"


async def test_fin_timeout_is_for_half_closed_connections() -> None:
    """One that nobody has ended may be quiet for longer."""
    async with bed(listener='fin_timeout = "50ms"') as b:
        client, instance = await b.pair()
        await asyncio.sleep(0.2)
        await client.send(b"x")
        assert await instance.read(1) == b"x"


async def test_fin_timeout_of_a_stalled_reader() -> None:
    """Both have ended, but the client does not fetch its answer: it is not kept for ever."""
    async with bed(listener='fin_timeout = "200ms"') as b:
        client, instance = await b.pair(receive_buffer=SMALL)
        client.fin()
        await instance.send_until_stalled(quiet=0.05)
        assert await instance.is_reset() or await client.is_reset()
        assert (await b.line())["reason"] == "fin_timeout"


async def test_a_half_closed_connection_in_use_is_not_timed_out() -> None:
    """A long answer to a client that ended its request goes on for as long as it flows."""
    async with bed(listener='fin_timeout = "100ms"\nidle_timeout = "150ms"') as b:
        client, instance = await b.pair()
        client.fin()
        for _ in range(10):
            await instance.send(b"tick")
            assert await client.read(4) == b"tick"
            await asyncio.sleep(0.03)
        instance.fin()
        assert await client.read_to_end() == b""
        assert (await b.line())["reason"] == "client_fin"


# ---- figures ----


async def test_figures_hold_what_ended_and_what_goes_on() -> None:
    """Bytes of both, reasons of the ended; all in types that any codec can carry."""
    async with bed(listener="max_connections = 2") as b:
        status = b.listener.status()
        (none,) = status["services"].values()
        assert (none["opened"], none["active"], none["ended"]) == (0, 0, {})
        assert status | {"services": {}} == {
            "accepted": 0, "active": 0, "paused": 0, "accept_failures": 0, "bytes_in": 0, "bytes_out": 0,
            "ended": {}, "drains": {}, "services": {}, "invocations": {},
            "ages": {"1": 0, "10": 0, "60": 0, "600": 0, "3600": 0, "86400": 0, "": 0},
        }  # fmt: skip
        for number in range(2):
            client, instance = await b.pair()
            await client.send(b"question")
            assert await instance.read(8) == b"question"
            await instance.send(b"answer")
            assert await client.read(6) == b"answer"
            if number == 0:
                client.close()
                instance.close()
                await b.closed(1)
        status = b.listener.status()
        assert status["services"].pop("") == none
        service = status["services"]["s"]
        assert service.pop("duration")["count"] == 1
        assert status == {
            "accepted": 2, "active": 1, "paused": 0, "accept_failures": 0, "bytes_in": 16, "bytes_out": 12,
            "ended": {"client_fin": 1}, "drains": {},
            "invocations": {"s": {"opened": 2, "ended": 1, "failed": 0}},
            "services": {
                "s": {
                    "opened": 2, "active": 1, "bytes_in": 16, "bytes_out": 12, "ended": {"client_fin": 1}
                },
            },
            "ages": {"1": 1, "10": 0, "60": 0, "600": 0, "3600": 0, "86400": 0, "": 0},
        }  # fmt: skip
        assert msgpack.unpackb(msgpack.packb(status)) == status
        (outcome,) = b.gateway.relays.reports.outcomes(b.pool).values()
        assert (outcome.connected, outcome.failed) == (2, 0)


# ---- log ----


async def test_times_are_measured_from_the_accept() -> None:
    """`duration` is the connection's whole life in seconds, with the connect's time in it."""
    async with bed() as b:
        client, instance = await b.pair()
        await asyncio.sleep(0.2)
        client.close()
        instance.close()
        line = await b.line()
    assert 0.19 < line["duration"] < 2
    assert line["connect_time"] < 0.19


@pytest.mark.parametrize("told", [True, False])
async def test_a_bug_costs_one_connection(told: bool) -> None:
    """An unexpected exception ends its client alone, as `internal`, and is logged with its traceback.

    Once for some time, with how many more there were: clients may know how to have it. Without
    `log.connections` the closing lines are left out; the bug and the counters are not.
    """

    def choose(_: object) -> Never:
        raise RuntimeError("a bug")

    settings = loads(_SMALLEST, Path()).listener[0]
    with capture_logs() as logs:
        sock = bind_socket(settings.bind, settings.keepalive)
        lines = ConnectionLines(ConnectionLog() if told else None)
        listener = Listener(settings, (sock,), StreamPlane(settings, choose), lines=lines)
        listener.start()
        for _ in range(3):
            client = dial(sock.getsockname())
            assert await client.read_to_end() == b""
            client.close()
        await in_time(listener.close())
        lines.close()
    bug, more = [line for line in logs if line["event"] == "connection_error"]
    assert (bug["listener"], bug["conn"], str(bug["exc_info"])) == ("l", 1, "a bug")
    assert more == {"event": "connection_error", "log_level": "error", "more": 2}
    closed = [line["reason"] for line in logs if line["event"] == "connection_closed"]
    assert closed == (["internal"] * 3 if told else [])
    assert listener.ended == {Reason.INTERNAL: 3}


_SMALLEST = """
[[service]]
name = "s"
discovery = { type = "static", endpoints = ["127.0.0.1:1"] }
[[listener]]
name = "l"
bind = "127.0.0.1:0"
route = "s"
"""
