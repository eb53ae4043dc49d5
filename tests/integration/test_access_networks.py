"""Who may connect by its address: the true one behind a trusted proxy, the peer's otherwise."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tcpgw.wire import proxy_protocol
from tests.support.access import (
    DENIED,
    NEAR,
    TRUSTED,
    WAYS,
    Book,
    Gate,
    configuration,
    gate,
    proxied,
    started,
)
from tests.support.rpc import Instance
from tests.support.rpc_ends import frame
from tests.support.streams import until

TCP, RPC = "", 'mode = "rpc"\n'
CLOSED = b""
REFUSED = frame(1, None, {"code": "denied", "message": "access denied"}, None)
ASK, ANSWER = frame(0, 1, "m", [1]), frame(1, 1, None, [1])

each_mode = pytest.mark.parametrize(("mode", "denied"), [(TCP, CLOSED), (RPC, REFUSED)], ids=["tcp", "rpc"])


@contextlib.asynccontextmanager
async def guarded(listener: str, access: str, bind: str = "127.0.0.1:0") -> AsyncIterator[Gate]:
    instance = Instance()
    text = f"{listener}\n[listener.access]\n{access}"
    async with gate(configuration(await started(instance), text, bind=bind), instance) as made:
        yield made


async def is_served(g: Gate, hello: bytes = b"", source: str = "") -> None:
    peer = g.dial(hello + ASK, source=source)
    assert await peer.read(len(ANSWER)) == ANSWER


@each_mode
async def test_of_the_peer(mode: str, denied: bytes) -> None:
    """The longest prefix counts; who is not allowed is told so where its protocol can, and is not served."""
    access = 'allow = ["127.0.0.0/24"]\ndeny = ["127.0.0.2", "127.0.0.128/25"]'
    async with guarded(mode, access) as g:
        await is_served(g)
        await is_served(g, source="127.0.0.3")
        for source in ("127.0.0.2", "127.0.0.200", "127.0.1.1"):
            assert await g.told(source=source) == denied
        await until(lambda: g.ended() == {"denied_cidr": 3})
        (line,) = g.events("denied")
        assert (line["reason"], line["client"].partition(":")[0]) == ("denied_cidr", "127.0.0.2")


@each_mode
async def test_who_only_denies_lets_all_others_in(mode: str, denied: bytes) -> None:
    """Without `allow` everybody may come but who is denied."""
    async with guarded(mode, 'deny = ["127.0.0.2"]') as g:
        await is_served(g)
        assert await g.told(source="127.0.0.2") == denied


@each_mode
async def test_of_a_peer_by_ipv6(mode: str, denied: bytes) -> None:
    """IPv6 likewise; on a listener of both, IPv4 clients are known by their IPv4 address."""
    async with guarded(mode, 'allow = ["::1"]', bind="[::1]:0") as g:
        await is_served(g)
    async with guarded(mode, 'allow = ["2001:db8::/32"]', bind="[::1]:0") as g:
        assert await g.told() == denied


@each_mode
async def test_of_who_is_behind_a_proxy(mode: str, denied: bytes) -> None:
    """What the header of a trusted peer says counts, in both families; the peer where it says none."""
    access = 'allow = ["192.0.2.0/24", "2001:db8::/32"]\ndeny = ["192.0.2.128/25", "2001:db8:1::/48"]'
    async with guarded(mode + TRUSTED, access) as g:
        for host in ("192.0.2.7", "2001:db8::7", "::ffff:192.0.2.7"):
            await is_served(g, proxied(source=(host, 1)))
        for host in ("192.0.2.200", "198.51.100.1", "2001:db8:1::7", "2001:db9::1", "::1"):
            assert await g.told(proxied(source=(host, 1))) == denied, host
        assert await g.told(proxy_protocol.build_v1(("192.0.2.200", 1), NEAR)) == denied
        assert await g.told(proxy_protocol.build_v2(None, None)) == denied
        await until(lambda: g.ended() == {"denied_cidr": 7})
        (line,) = g.events("denied")
        assert line["client"] == "192.0.2.200:1"


@each_mode
async def test_a_header_of_a_peer_that_is_not_trusted(mode: str, denied: bytes) -> None:
    """It proves nothing: the peer's own address counts, before a byte of it is read."""
    async with guarded(mode + TRUSTED, 'allow = ["192.0.2.0/24"]') as g:
        assert await g.told(source="127.0.0.2") == denied
        await until(lambda: g.ended() == {"denied_cidr": 1})


@pytest.mark.parametrize("name", ["tcp", "msgpack", "opaque"])
async def test_with_credentials(name: str, tmp_path: Path) -> None:
    """An address that is not allowed needs no credential to be refused, and a good one does not help."""
    way, book = WAYS[name], Book(tmp_path)
    instance = Instance()
    text = way.lines + TRUSTED + book.access('deny = ["192.0.2.7"]')
    nobody = REFUSED if name == "msgpack" else DENIED
    async with gate(configuration(await started(instance), text), instance) as g:
        assert await g.told(proxied(book.key)) == nobody
        assert await g.told(proxied() + way.hello(book.key)) == way.denied("denied")
        peer = g.dial(proxied(source=("192.0.2.8", 1)) + way.hello(book.key) + way.request(1))
        answer = way.welcome + way.answer(1)
        assert await peer.read(len(answer)) == answer
        assert g.ended() == {"denied_cidr": 2}


@pytest.mark.parametrize("codec", ["opaque", "fifo"])
async def test_frames_of_others(codec: str) -> None:
    """Where clients know of nobody but the instance, nothing of the gateway's is put in its place."""
    async with guarded(WAYS[codec].lines, 'allow = ["192.0.2.0/24"]') as g:
        assert await g.told() == CLOSED
