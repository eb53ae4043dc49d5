"""TLS to instances: whom a gateway believes, and what it says of the others."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator

import pytest

from tcpgw.access.tls import client_context, server_context
from tcpgw.relay.handshake import accept_tls
from tcpgw.relay.tls import TlsConnectError, connect_tls
from tests.support.certificates import AUTHORITY, HOUR, SERVER, Authority, Issued, client_side, now
from tests.support.layering import Above
from tests.support.streams import in_time, until
from tests.support.tls import closing_layers, layer_on

EXPIRED = AUTHORITY.issue("127.0.0.1", "old.example", expires=now() - HOUR)
CLIENT = AUTHORITY.issue("gateway")


@contextlib.asynccontextmanager
async def instance(
    shown: Issued | None = None, *, host: str = "127.0.0.1", mutual: bool = False
) -> AsyncIterator[tuple[int, Above]]:
    """One that greets who connects, and shows another certificate where it is asked for by no name."""
    loop, above = asyncio.get_running_loop(), Above()
    tls = server_context([shown or SERVER], client_ca=AUTHORITY.pem if mutual else None)

    async def serve() -> None:
        sock, _ = await loop.sock_accept(listening)
        with sock, contextlib.suppress(OSError, Exception):
            await layer_on(sock, await accept_tls(loop, sock, tls), above)
            above.transport.write(b"hello")
            await above.lost.wait()

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listening:
        listening.setblocking(False)
        async with closing_layers():
            task = loop.create_task(serve())
            yield listening.getsockname()[1], above
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def connect(port: int, context: ssl.SSLContext, name: str = "", host: str = "127.0.0.1") -> Above:
    loop = asyncio.get_running_loop()
    layer, above = await in_time(connect_tls(loop, Above, host, port, context, name))
    assert above.transport is layer
    return above


@pytest.mark.parametrize("name", ["", "localhost"])
async def test_an_instance_is_known_by_its_address_or_a_name(name: str) -> None:
    """The protocol hears of its connection when hands are shaken, and then of the first bytes."""
    async with instance() as (port, _):
        above = await connect(port, client_side(), name)
        assert above.events[0] == "made"
        await until(lambda: above.data)
        assert above.data == b"hello"
        sock = above.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        above.transport.close()
        await in_time(above.lost.wait())
        assert above.error is None


async def test_over_ipv6() -> None:
    """An address of either kind; this one is not in the certificate."""
    async with instance(host="::1") as (port, _):
        above = await connect(port, client_side(), "localhost", host="::1")
        above.transport.abort()
        await in_time(above.lost.wait())


async def test_one_that_is_believed_unseen() -> None:
    """Without verification an expired certificate of a stranger's for another name is good."""
    async with instance(Authority().issue("other", expires=now() - HOUR)) as (port, _):
        above = await connect(port, client_context(verify=False))
        above.transport.abort()
        await in_time(above.lost.wait())


async def test_an_instance_that_wants_a_certificate_of_ours() -> None:
    """It gets it."""
    async with instance(mutual=True) as (port, other):
        above = await connect(port, client_side(CLIENT))
        await until(lambda: other.events)
        assert other.transport.get_extra_info("ssl_object").getpeercert()
        above.transport.abort()
        await in_time(above.lost.wait())


@pytest.mark.parametrize(
    ("shown", "name", "context", "expected"),
    [
        (EXPIRED, "", client_side(), "TLS: the certificate is refused: certificate has expired"),
        (
            None,
            "other.example",
            client_side(),
            "Hostname mismatch, certificate is not valid for 'other.example'.",
        ),
        (
            AUTHORITY.issue("a.example"),
            "",
            client_side(),
            "IP address mismatch, certificate is not valid for '127.0.0.1'.",
        ),
        (None, "", client_context(ca=Authority().pem), "unable to get local issuer certificate"),
        (None, "", client_context(), "unable to get local issuer certificate"),
    ],
)
async def test_who_is_not_believed(
    shown: Issued | None, name: str, context: ssl.SSLContext, expected: str
) -> None:
    """The error is an OSError with a sentence for the operator and no number, and nothing is left open."""
    async with instance(shown) as (port, _):
        with pytest.raises(TlsConnectError) as caught:
            await connect(port, context, name)
    assert isinstance(caught.value, OSError)
    assert (caught.value.errno, caught.value.strerror) == (None, None)
    assert str(caught.value).endswith(expected)
    assert caught.value.blame == "instance"


@pytest.mark.parametrize("version", ["1.2", "1.3"])
async def test_an_instance_that_refuses_us(version: str) -> None:
    """With TLS 1.2 the handshake fails, with 1.3 the connection; either says why."""
    async with instance(mutual=True) as (port, _):
        try:
            above = await connect(port, client_side(version=version))
        except TlsConnectError as exc:
            why: Exception | None = exc
        else:
            await in_time(above.lost.wait())
            why = above.error
    assert "alert " + {"1.2": "handshake failure", "1.3": "certificate required"}[version] in str(why)


async def test_an_instance_without_tls() -> None:
    """It says something else, or goes."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        for answer, expected in (
            (b"+PONG\r\n", "something else than TLS"),
            (b"", "closed the connection within"),
        ):
            connecting = asyncio.ensure_future(connect(listening.getsockname()[1], client_side()))
            await asyncio.sleep(0.01)
            with listening.accept()[0] as sock:
                sock.send(answer)
                sock.shutdown(socket.SHUT_WR)
                with pytest.raises(TlsConnectError, match=expected):
                    await connecting


async def test_nobody_listens() -> None:
    """The system's error, with its own words."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(ConnectionRefusedError) as caught:
        await connect(port, client_side())
    assert caught.value.strerror == "Connection refused"


async def test_a_time_out_leaves_nothing_open() -> None:
    """An instance that accepts and is silent holds no descriptor once its time is over."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await connect(listening.getsockname()[1], client_side())
        with listening.accept()[0] as sock:
            sock.settimeout(10)
            hello = await asyncio.to_thread(sock.recv, 16384)
            assert hello[:1] == b"\x16"
            assert await asyncio.to_thread(sock.recv, 1) == b""
