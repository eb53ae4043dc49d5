"""What whoever traces a client is told of its connections, on each plane and for each way that they end."""

import json
import time
from ipaddress import ip_network
from pathlib import Path

import pytest

from tcpgw.app.gateway import Gateway
from tcpgw.config.load import loads
from tcpgw.relay.listener import Listener
from tcpgw.relay.tracing import Event
from tests.relay.test_listener_proxy import V1, V2
from tests.support.access import Book, configuration, gate
from tests.support.certificates import AUTHORITY, client_side
from tests.support.secure import MUTUAL, SecureBed, server_tls
from tests.support.secure import bed as secure_bed
from tests.support.streams import bed, dial, in_time, refusing, silent, until
from tests.support.tracing import Told

TRUST_LOOPBACK = 'accept_proxy = ["127.0.0.0/8"]'
LIFE = ["accepted", "allowed", "routed", "candidates", "connecting", "connected", "first_byte", "closed"]


def untraced(listener: Listener) -> bool:
    return listener._admission.tracer is None and all(
        connection.trace is None for connection in listener.connections.values()
    )


# ---- a life ----


async def test_the_steps_of_a_good_connection() -> None:
    """In their order, each with its time, and with the same id as in the log."""
    async with bed() as b:
        told = Told(b.gateway)
        client, instance = await b.pair()
        await instance.send(b"answer")
        assert await client.read(6) == b"answer"
        await client.send(b"question")
        assert await instance.read(8) == b"question"
        client.fin()
        instance.fin()
        line = await b.line()
        await told.until("closed")
        assert told.names() == LIFE
        times = [event["after"] for event in told.events]
        assert times == sorted(times)
        assert times[0] == 0.0
        assert abs(told.events[0]["at"] - time.time()) < 60.0
        assert {event["client"] for event in told.events} == {client.address}
        assert {(event["listener"], event["conn"]) for event in told.events} == {("l", line["conn"])}
        assert told.one("accepted")["to"] == b.listener.address
        assert told.one("connected")["endpoint"] == b.endpoint()
        candidates = told.one("candidates")
        assert candidates["endpoints"] == [candidates["home"]] == [b.endpoint()]
        assert (candidates["key"], candidates["value"]) == ("source_ip", "127.0.0.1")
        closed = told.one("closed")
        for name in ("reason", "bytes_in", "bytes_out", "service", "endpoint", "tries"):
            assert closed[name] == line[name]


async def test_without_a_trace_no_connection_has_one() -> None:
    """Nor has the listener a tracer, before the first trace and after the last."""
    async with bed() as b:
        await b.pair()
        assert untraced(b.listener)
        told = Told(b.gateway, "192.0.2.0/24")
        await b.pair()
        assert all(one.trace is None for one in b.listener.connections.values())
        assert told.names() == []
        told.stop()
        await b.pair()
        assert untraced(b.listener)


async def test_who_was_there_before_is_not_traced() -> None:
    """And who is traced may outlive its trace."""
    async with bed() as b:
        before, _ = await b.pair()
        told = Told(b.gateway)
        client, instance = await b.pair()
        before.reset()
        await until(lambda: len(b.lines) == 1)
        assert {event["client"] for event in told.events} <= {client.address}
        told.stop()
        await instance.send(b"answer")
        assert await client.read(6) == b"answer"
        assert "first_byte" not in told.names()


async def test_the_first_byte_is_told_once() -> None:
    """However many follow, and all arrive, the first one too."""
    async with bed() as b:
        told = Told(b.gateway)
        client, instance = await b.pair()
        await until(lambda: "connected" in told.names())
        for piece in (b"one", b"two", b"three"):
            await instance.send(piece)
            assert await client.read(len(piece)) == piece
        assert told.names().count("first_byte") == 1


# ---- tries ----


async def test_a_failed_try_and_the_next() -> None:
    """The candidate that refused, why, and the one that was connected to instead."""
    with refusing() as dead:
        async with bed(endpoints=[dead], health='active = "off", passive = "off"') as b:
            told = Told(b.gateway)
            sources = [f"127.0.1.{number}" for number in range(1, 40)]
            for source in sources:
                b.dial(source=source)
                await b.accept()
                await until(lambda: told.names()[-1] == "connected")
                if "connect_failed" in told.names():
                    break
            of = told.one("connect_failed")["client"]
            steps = [event for event in told.events if event["client"] == of]
            assert [event["event"] for event in steps][3:] == [
                "candidates", "connecting", "connect_failed", "connecting", "connected",
            ]  # fmt: skip
            first, failed, second = steps[4:7]
            assert steps[3]["endpoints"] == [dead, b.endpoint()]
            assert (first["endpoint"], first["tries"]) == (failed["endpoint"], 1) == (dead, 1)
            assert failed["error"] == "Connection refused"
            assert (second["endpoint"], second["tries"]) == (b.endpoint(), 2)


async def test_nobody_answers() -> None:
    """Each try is told with the time that it took, and the end says that none was left."""
    with silent() as dead:
        service = 'connect = { timeout = "50ms" }'
        async with bed(instances=0, endpoints=[dead], service=service) as b:
            told = Told(b.gateway)
            client = b.dial()
            assert await client.read_to_end() == b""
            await told.until("closed")
            failed = told.one("connect_failed")
            assert (failed["endpoint"], failed["error"]) == (dead, "no answer within 0.05 s")
            assert 0.04 < failed["seconds"] < 5.0
            assert told.one("closed")["reason"] == "connect_failed"


async def test_who_waits_for_a_place() -> None:
    """It is told that it waits, and for which endpoint."""
    async with bed(service="connect = { max_connections = 1, queue = 1 }") as b:
        first, _ = await b.pair()
        told = Told(b.gateway)
        b.dial()
        assert (await told.until("waiting"))["endpoint"] == b.endpoint()
        first.reset()
        await b.accept()
        await told.until("connected")
        assert told.names()[3:] == ["candidates", "waiting", "connecting", "connected"]


# ---- who it is ----


@pytest.mark.parametrize("header", [V1, V2])
async def test_behind_a_proxy_the_true_source_counts(header: bytes) -> None:
    """Whoever traces the client is told of all from the accept on, whoever traces the proxy of nothing."""
    async with bed(listener=TRUST_LOOPBACK) as b:
        told = Told(b.gateway, "203.0.113.0/24")
        told.tracer.begin("proxy", ip_network("127.0.0.0/8"), 60.0)
        client = b.dial()
        await client.send(header)
        await b.accept()
        await told.until("connected")
        assert told.names()[:4] == ["accepted", "proxy_header", "allowed", "routed"]
        assert {event["client"] for event in told.events} == {"203.0.113.7:51234"}
        said = told.one("proxy_header")
        assert (said["peer"], said["to"]) == (client.address, "198.51.100.1:443")
        assert said["after"] > 0.0
        assert told.one("candidates")["value"] == "203.0.113.7"
        assert "proxy" not in told.tracer.take()


async def test_a_proxy_that_sends_no_header_is_the_client() -> None:
    """Nobody else can be meant, and its operator wants to know."""
    async with bed(listener=TRUST_LOOPBACK) as b:
        told = Told(b.gateway)
        client = b.dial()
        await client.send(b"GET / HTTP/1.1\r\n")
        closed = await told.until("closed")
        assert told.names() == ["accepted", "closed"]
        assert closed["client"] == client.address
        assert closed["reason"] == "protocol_error"
        assert "PROXY header" in closed["error"]


async def test_a_unix_listener_has_no_client_to_match(tmp_path: Path) -> None:
    """Unless a PROXY header names one."""
    async with bed(bind=f"unix:{tmp_path / 's'}", listener='accept_proxy = ["127.0.0.0/8"]') as b:
        told = Told(b.gateway, "0.0.0.0/0")
        client = b.dial()
        await client.send(V2)
        await b.accept()
        await told.until("connected")
        assert told.one("proxy_header")["peer"] == "unix"
        assert told.one("accepted")["to"] == f"unix:{tmp_path / 's'}"
    async with bed(bind=f"unix:{tmp_path / 'other'}") as b:
        told = Told(b.gateway, "0.0.0.0/0")
        b.dial()
        await b.accept()
        assert told.names() == []


# ---- whether it may ----


async def test_a_network_that_is_not_allowed() -> None:
    """The decision, its reason, and the end."""
    async with gate(configuration(["127.0.0.1:9"], 'access = { deny = ["127.0.0.0/8"] }')) as g:
        told = Told(g.gateway)
        g.dial()
        await told.until("closed")
        assert told.names() == ["accepted", "denied", "closed"]
        denied = told.one("denied")
        assert (denied["reason"], denied["why"]) == ("denied_cidr", "its network is not allowed")


async def test_an_overloaded_gateway() -> None:
    """Who is turned away at once is told of as well, also where a PROXY header was to come."""
    async with gate(configuration(["127.0.0.1:9"], TRUST_LOOPBACK)) as g:
        told = Told(g.gateway)
        g.listener.shedding = True
        g.dial()
        await told.until("closed")
        assert told.names() == ["accepted", "denied", "closed"]
        assert told.one("denied")["reason"] == "overload"


def keys(book: Book) -> str:
    return f'[listener.access]\napi_keys = "{book.keys}"\n'


async def test_a_credential_that_is_good_and_one_that_is_not(tmp_path: Path) -> None:
    """Whose it was, or what was wrong with it in full; never what it was."""
    book = Book(tmp_path)
    async with secure_bed(tmp_path, listener=server_tls("server") + keys(book)) as b:
        told = Told(b.gateway)
        client = await b.client(client_side())
        await client.send(b"TCPGW AUTH " + book.key + b"\n")
        instance = await b.accept()
        await told.until("connected")
        assert told.names()[:3] == ["accepted", "tls", "allowed"]
        allowed = told.one("allowed")
        assert (allowed["subject"], allowed["credential"]) == ("alice", "api_key")
        assert book.keys.read_text().startswith(f"{allowed['key']} alice ")
        assert told.one("tls")["version"] == "TLSv1.3"
        client.peer.reset()
        instance.close()
        await told.until("closed")

        wrong = await b.client(client_side())
        await wrong.send(b"TCPGW AUTH " + book.expired + b"\n")
        denied = await told.until("denied")
        assert (denied["reason"], denied["why"].partition(":")[0]) == ("denied_credentials", "expired")
        assert await wrong.read_to_end() == b"TCPGW DENIED\n"
        await wrong.end()
        await b.denied()
        await until(lambda: told.names().count("closed") == 2)
        said = json.dumps(told.events)
        for secret in (book.key, book.expired):
            assert secret.decode() not in said
            assert secret.decode()[-20:] not in said


async def test_the_names_of_a_certificate(tmp_path: Path) -> None:
    """Whom a client showed itself to be, and what TLS agreed on."""
    alice = AUTHORITY.issue("alice.example.com", cn="alice")
    async with secure_bed(tmp_path, listener=server_tls("server", more=MUTUAL)) as b:
        told = Told(b.gateway)
        client = await b.client(client_side(alice))
        await b.accept()
        tls = await told.until("tls")
        assert tls["certificate"] == ["alice.example.com", "alice"]
        assert tls["server_name"] == "localhost"
        assert told.one("allowed")["subject"] == "alice.example.com"
        client.peer.reset()
        await b.line()


async def test_hands_that_are_not_shaken(tmp_path: Path) -> None:
    """The end says what was wrong with the handshake."""
    async with secure_bed(tmp_path) as b:
        told = Told(b.gateway)
        await plain(b)
        closed = await told.until("closed")
        assert (closed["reason"], closed["error"]) == ("tls_error", "plain HTTP instead of TLS")
        assert told.names() == ["accepted", "closed"]


async def plain(b: SecureBed) -> None:
    client = b.dial()
    await client.send(b"GET / HTTP/1.1\r\n\r\n")
    client.fin()
    await client.is_reset()
    await b.denied()


# ---- where it goes ----


def split(mode: str, *, first: int, second: int) -> str:
    return f"""
        [[service]]
        name = "v1"
        discovery = {{ type = "static", endpoints = ["127.0.0.1:{first}"] }}
        health = {{ active = "off" }}
        [[service]]
        name = "v2"
        discovery = {{ type = "static", endpoints = ["127.0.0.1:{second}"] }}
        health = {{ active = "off" }}
        [[listener]]
        name = "l"
        bind = "127.0.0.1:0"
        {mode}
        route = [ {{ service = "v1", weight = 90 }}, {{ service = "v2", weight = 10 }} ]
    """


async def told_of_one(config: str, event: str) -> Event:
    """What is told of a client's only connection to a gateway whose instances are not there."""
    async with Gateway(loads(config, Path())) as gateway:
        told = Told(gateway)
        host, _, port = gateway.listeners["l"].address.rpartition(":")
        client = dial((host, int(port)))
        try:
            return await told.until(event)
        finally:
            client.close()


async def test_a_split_tells_its_shares() -> None:
    """And where in it the client's key is."""
    routed = await told_of_one(split("", first=9, second=10), "routed")
    assert routed["service"] in {"v1", "v2"}
    assert routed["split"] == {"v1": 90, "v2": 10}
    assert int(routed["split_position"], 16) < 1 << 32


async def test_requests_have_a_place_of_their_client() -> None:
    """On rpc listeners: the service, the key, and the endpoint that it belongs to."""
    placed = await told_of_one(split('mode = "rpc"', first=9, second=10), "placed")
    port = {"v1": 9, "v2": 10}[placed["service"]]
    assert (placed["key"], placed["value"]) == ("source_ip", "127.0.0.1")
    assert placed["endpoint"] == f"127.0.0.1:{port}"
    assert placed["split"] == {"v1": 90, "v2": 10}


@pytest.mark.parametrize("key", ["method", "params[0].session"])
async def test_requests_that_have_keys_of_their_own(key: str) -> None:
    """Then a connection has no place."""
    one = f"""
        [[service]]
        name = "s"
        discovery = {{ type = "static", endpoints = ["127.0.0.1:9"] }}
        health = {{ active = "off" }}
        balance = {{ key = "{key}" }}
        [[listener]]
        name = "l"
        bind = "127.0.0.1:0"
        mode = "rpc"
        route = "s"
    """
    placed = await told_of_one(one, "placed")
    assert (placed["service"], placed["by"], placed["key"]) == ("s", "request", key)
    assert "endpoint" not in placed


# ---- its end ----


async def test_who_is_asked_to_end() -> None:
    """What for, when it is asked, and then what became of it."""
    async with bed() as b:
        told = Told(b.gateway)
        client, instance = await b.pair()
        await b.relay()
        b.listener.drain()
        assert (await told.until("asked_to_end"))["cause"] == "shutdown"
        assert await in_time(client.read_to_end()) == b""
        assert await instance.read_to_end() == b""
        closed = await told.until("closed")
        assert closed["reason"] == "drained"
