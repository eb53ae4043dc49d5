"""The host that a client asks for: which certificate it is shown, and which service it comes to."""

import asyncio
import ssl
from pathlib import Path

import pytest

from tests.support.certificates import AUTHORITY, SERVER, Authority, client_side
from tests.support.framed import U32BE
from tests.support.hellos import openssl_hello
from tests.support.secure import PLAIN_TLS, SecureBed, Secured, bed, instance_side, server_tls, versions
from tests.support.streams import Peer

A = AUTHORITY.issue("a.example.com")
WILD = AUTHORITY.issue("*.b.example.com")
SNI = 'sni = { "a.example.com" = "a", "*.b.example.com" = "b", "x.b.example.com" = "x" }\n'
# Of "s" there is instance 0; then come these.
OTHERS = ("a", "b", "x")
ROUTES = {
    "a.example.com": 1,
    "A.Example.COM": 1,
    "y.b.example.com": 2,
    "deep.below.b.example.com": 2,
    "x.b.example.com": 3,
    "b.example.com": 0,
    "elsewhere.example.com": 0,
    None: 0,
}
PASSTHROUGH = 'tls = "passthrough"\n'

anyone = client_side()
anyone.check_hostname = False


# ---- TLS that ends here ----


async def test_the_certificate_for_the_name(tmp_path: Path) -> None:
    """Of several the one that has it, by itself or by a wildcard of one label; else the first."""
    listener = server_tls("server", "a", "wild")
    async with bed(tmp_path, listener=listener, a=A, wild=WILD) as b:
        for name, shown in (
            ("a.example.com", A),
            ("A.EXAMPLE.com", A),
            ("y.b.example.com", WILD),
            ("z.y.b.example.com", SERVER),
            ("elsewhere", SERVER),
            (None, SERVER),
        ):
            client = await b.client(anyone, name)
            got = client.ssl.getpeercert(binary_form=True)
            assert got == ssl.PEM_cert_to_DER_cert(shown.chain.decode().partition("-----END")[0] + _END), name


_END = "-----END CERTIFICATE-----\n"


@pytest.mark.parametrize("mode", ["", U32BE], ids=["stream", "framed"])
@pytest.mark.parametrize("version", versions)
async def test_the_service_for_the_name(tmp_path: Path, version: str, mode: str) -> None:
    """An exact name, else the longest end of it, else the listener's route; however it is written."""
    context = client_side(version=version)
    context.check_hostname = False
    async with bed(tmp_path, listener=f"{mode}\n{PLAIN_TLS}{SNI}", others=OTHERS) as b:
        for name, number in ROUTES.items():
            client = await b.client(context, name)
            await client.send(b"\0\0\0\1x")
            instance = await b.accept(number)
            assert await instance.read(5) == b"\0\0\0\1x", name


# ---- TLS that passes through ----


async def through(b: SecureBed, name: str | None, number: int, version: str = "1.3") -> Secured:
    """Shake hands with an instance through the gateway, and exchange a few bytes."""
    context = client_side(version=version)
    context.check_hostname = False
    client = b.secured(context, name)
    _, instance = await asyncio.gather(client.shake(), b.instance(instance_side(A), number))
    assert client.ssl.getpeercert(binary_form=True) == ssl.PEM_cert_to_DER_cert(A.chain.decode())
    await client.send(b"question")
    assert await instance.read(8) == b"question"
    await instance.send(b"answer")
    assert await client.read(6) == b"answer"
    return client


@pytest.mark.parametrize("version", versions)
async def test_tls_of_the_instance(tmp_path: Path, version: str) -> None:
    """It reaches the instance as it was sent, and the name says which one; the gateway has no key."""
    async with bed(tmp_path, listener=f"{PASSTHROUGH}{SNI}", others=OTHERS) as b:
        for name, number in ROUTES.items():
            await through(b, name, number, version)


@pytest.mark.parametrize("size", [1, 3, 100])
async def test_a_hello_in_several_segments(tmp_path: Path, size: int) -> None:
    """However it is cut, it is read as far as the name and passed on whole."""
    hello = openssl_hello("a.example.com")
    async with bed(tmp_path, listener=f"{PASSTHROUGH}{SNI}", others=OTHERS) as b:
        client = b.dial()
        for at in range(0, len(hello), size):
            await client.send(hello[at : at + size])
            await asyncio.sleep(0)
        instance = await b.accept(1)
        assert await instance.read(len(hello)) == hello


async def test_a_proxy_header_and_a_hello(tmp_path: Path) -> None:
    """The header is the gateway's, one of its own goes in front of the hello."""
    hello = openssl_hello("a.example.com")
    header = b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n"
    listener = f'accept_proxy = ["127.0.0.0/8"]\n{PASSTHROUGH}'
    async with bed(tmp_path, listener=listener, service='send_proxy = "v1"') as b:
        client = b.dial()
        await client.send(header + hello)
        instance = await b.accept()
        assert await instance.read(len(header + hello)) == header + hello


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05hello", b"\0" * 600])
async def test_something_else_than_tls(tmp_path: Path, said: bytes) -> None:
    """It is closed, no instance is asked, and the log says what was wrong."""
    async with bed(tmp_path, listener=PASSTHROUGH) as b:
        client = b.dial()
        await client.send(said)
        assert await _ended(client)
        line = await b.denied()
        assert (line["reason"], "ClientHello" in line["error"]) == ("tls_error", True), line
        assert b.pool.loads.total == 0


async def test_a_client_that_leaves_within_its_hello(tmp_path: Path) -> None:
    """No instance is asked."""
    async with bed(tmp_path, listener=PASSTHROUGH) as b:
        client = b.dial()
        await client.send(openssl_hello("a.example.com")[:50])
        client.fin()
        assert await _ended(client)
        assert "closed at byte 50" in (await b.denied())["error"]


async def test_a_hello_that_never_ends(tmp_path: Path) -> None:
    """It has access.timeout."""
    access = '[listener.access]\nallow = ["127.0.0.0/8"]\ntimeout = "200ms"'
    async with bed(tmp_path, listener=f"{PASSTHROUGH}{access}") as b:
        client = b.dial()
        await client.send(openssl_hello("a.example.com")[:50])
        assert await _ended(client)
        assert (await b.denied())["reason"] == "handshake_timeout"


async def _ended(client: Peer) -> bool:
    """Whether the gateway ends it with no more said than an alert."""
    try:
        said = await client.read_to_end()
    except ConnectionResetError:
        return True
    return said == b"" or (said[0] == 0x15 and len(said) == 7)


# ---- networks ----


@pytest.mark.parametrize("tls", [PLAIN_TLS, PASSTHROUGH], ids=["ends here", "passes"])
async def test_a_network_that_is_not_allowed(tmp_path: Path, tls: str) -> None:
    """The client reads why in an alert: of a TLS client anything else would be a fault."""
    async with bed(tmp_path, listener=f'{tls}[listener.access]\ndeny = ["127.0.0.1/32"]') as b:
        client = b.secured()
        assert await client.alert() == "TLSV1_ALERT_ACCESS_DENIED"
        assert (await b.denied())["reason"] == "denied_cidr"


@pytest.mark.parametrize("tls", [PLAIN_TLS, PASSTHROUGH], ids=["ends here", "passes"])
async def test_a_source_behind_a_proxy_that_is_not_allowed(tmp_path: Path, tls: str) -> None:
    """The same, by what the PROXY header says; though the hello has been sent."""
    listener = f'accept_proxy = ["127.0.0.0/8"]\n{tls}[listener.access]\nallow = ["10.0.0.0/8"]'
    async with bed(tmp_path, listener=listener) as b:
        client = b.secured()
        await client.peer.send(b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n")
        assert await client.alert() == "TLSV1_ALERT_ACCESS_DENIED"
        line = await b.denied()
        assert (line["reason"], line["client"]) == ("denied_cidr", "192.0.2.7:4711")


async def test_an_instance_of_another_authority(tmp_path: Path) -> None:
    """Whom it believes is the client's own business where TLS passes through."""
    other = Authority().issue("a.example.com")
    async with bed(tmp_path, listener=PASSTHROUGH) as b:
        client = b.secured(name="a.example.com")

        async def refuse() -> None:
            instance = Secured(await b.accept(), instance_side(other), None, server_side=True)
            assert await instance.alert() == "TLSV1_ALERT_UNKNOWN_CA"

        async def disbelieve() -> None:
            with pytest.raises(ssl.SSLCertVerificationError):
                await client.shake()
            await client.flush()

        await asyncio.gather(refuse(), disbelieve())
