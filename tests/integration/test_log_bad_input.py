"""What strangers send, in the log of a gateway as operators run it: whole lines, bounded, and no secrets."""

import contextlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tcpgw.observe.lines import MAX_LINE, renderer
from tcpgw.wire import proxy_protocol
from tests.support import hellos
from tests.support.access import (
    NEAR,
    WAYS,
    Book,
    bad_tokens,
    gate,
    instance_of,
    now_claims,
    proxied,
    service,
    started,
)
from tests.support.access import configuration as configuration_of_one
from tests.support.certificates import SERVER
from tests.support.processes import GatewayProcess, gateway
from tests.support.rpc import Instance
from tests.support.secure import put, server_tls
from tests.support.streams import dial
from tests.support.tokens import SECRET, signed

# Escapes that clear a terminal, name its window and turn text round; the ends of lines, and of a JSON text.
WILD = '\x1b[2J\x1b]0;mine\x07\x9b2J\u202e\u2028\r\n\0\x7f"}\n{"event":"forged"}'
NAMES = {
    "wild": WILD.encode(),
    "1 MB": b"m" * 1_000_000,
    "1 MB wild": WILD.encode() * (1_000_000 // len(WILD)),
    "1 MB no UTF-8": b"\xff" * 1_000_000,
    "no UTF-8": bytes(range(256)),
    "half a surrogate pair": b"\xed\xa0\x80",
    "longer than a line shows": b"m" * 200,
}
# Subjects are of printable characters only, or their tokens are refused.
PRINTABLE = '模型"},{"event":"forged"}\\'
MSGPACK, LINE = WAYS["msgpack"], WAYS["tcp"]
# What a line about one connection is called.
OF_CONNECTIONS = {"connection_opened", "connection_open", "connection_closed", "denied", "request"}


def named(method: bytes) -> bytes:
    """A request with a method of any bytes."""
    body = b"\x94\0\1" + b"\xdb" + struct.pack(">I", len(method)) + method + b"\x90"
    return struct.pack(">I", len(body)) + body


def hello(name: bytes) -> bytes:
    """A ClientHello that asks for a host of any bytes."""
    message = hellos.message(hellos.server_name(name))
    return hellos.records(message, *range(16_000, len(message), 16_000))


def configuration(book: Book, endpoint: str) -> str:
    tls = server_tls("server").replace('"server.', f'"{book.folder}/server.')
    listener = '[[listener]]\nbind = "127.0.0.1:0"\nroute = "s"\n'
    return f"""
        {service("s", endpoint)}
        {listener} name = "methods"
        mode = "rpc"
        accept_proxy = ["127.0.0.1"]
        methods = {{ "*" = {{ idempotent = true }}, "m*" = "deny" }}
        {listener} name = "subjects"
        mode = "rpc"
        {book.access()}
        {listener} name = "bytes"
        {listener} name = "preambles"
        {book.access()}
        {listener} name = "headers"
        accept_proxy = ["127.0.0.1"]
        {book.access()}
        {listener} name = "hosts"
        {tls}
        [gateway.log]
        level = "debug"
        format = "json"
        connections = {{ opened = true }}
        requests = {{ sample = 1, per_second = 1000 }}
    """.replace('" name = ', '"\nname = ')


def presented(book: Book, tokens: Sequence[bytes]) -> Mapping[str, Sequence[bytes]]:
    """What is sent to each listener, by one client each."""
    wild = WILD.encode()
    header = proxy_protocol.build_v2(("192.0.2.7", 5), NEAR, [])
    kinds = (proxy_protocol.TLV_ALPN, proxy_protocol.TLV_AUTHORITY, proxy_protocol.TLV_HASH_KEY)
    tlvs = proxy_protocol.build_v2(("192.0.2.7", 5), NEAR, [(kind, wild * 20) for kind in kinds])
    strange = [wild, wild * 50, *NAMES.values(), b"tcpgw_" + wild, book.key + wild, b"\xff.\xff.\xff"]
    return {
        "methods": [
            *(header + named(name) for name in NAMES.values()),
            tlvs + named(b"n"),
            header + wild,
            header + b"\0\0\1\0" + wild,
            b"PROXY TCP4 " + wild + b"\r\n",
            wild,
        ],
        "subjects": [
            *(MSGPACK.hello(token) + MSGPACK.request(1) for token in (*tokens, *strange)),
            *map(named, NAMES.values()),
            wild,
        ],
        "bytes": list(NAMES.values()),
        "preambles": [
            *(LINE.hello(token) for token in (*tokens, *strange)),
            LINE.hello(book.key, wild),
            *NAMES.values(),
        ],
        "headers": [
            *(proxied(token) for token in (*tokens, *strange) if len(token) < 4_000),
            proxied(book.key, wild),
        ],
        "hosts": [*(hello(name[:60_000]) for name in NAMES.values()), *NAMES.values()],
    }


async def send(process: GatewayProcess, listener: str, data: bytes) -> None:
    """As a client that says all that it has to say, and waits for the end, whatever that is."""
    peer = dial(process.address(listener))
    try:
        with contextlib.suppress(ConnectionError):
            await peer.send(data)
            peer.fin()
            await peer.read_to_end()
    except OSError:  # the FIN, where the gateway was faster
        pass
    finally:
        peer.close()


async def log_of(tmp_path: Path, book: Book, tokens: Sequence[bytes]) -> str:
    """The whole log of a gateway to which all of it was sent."""
    put(tmp_path, server=SERVER)
    instance = Instance()
    await instance.start()
    try:
        with gateway(tmp_path, configuration(book, instance.endpoint)) as process:
            for listener, clients in presented(book, tokens).items():
                for data in clients:
                    await send(process, listener, data)
    finally:
        instance.kill()
    return (tmp_path / "tcpgw.log").read_text()


def checked(text: str) -> Iterator[dict[str, Any]]:
    """Each line, which is one of ours."""
    assert text.endswith("\n")
    for line in text.removesuffix("\n").split("\n"):
        assert line.isascii()
        assert not set(line) & set(map(chr, range(32)))
        assert len(line) <= MAX_LINE
        read = json.loads(line)
        assert list(read)[:3] == ["ts", "level", "event"]
        assert read["event"] != "forged"
        yield read


async def test_whatever_clients_send(tmp_path: Path) -> None:
    """Each line is one JSON object, with its connection's number, and no credential is in any."""
    book = Book(tmp_path)
    subjects = (PRINTABLE, WILD, "\ud800", "x" * 3_000, "a\u202eb")
    tokens = [
        *(signed(now_claims(sub=subject), "HS256") for subject in subjects),
        *(signed(now_claims(aud=subject), "HS256") for subject in subjects),
        *bad_tokens(book).values(),
        book.key,
    ]
    text = await log_of(tmp_path, book, tokens)
    lines = list(checked(text))
    seen = {(line["event"], line.get("listener")) for line in lines}
    names = {"methods", "subjects", "bytes", "preambles", "headers"}
    assert {("connection_closed", name) for name in names} <= seen
    assert {("denied", name) for name in ("subjects", "preambles", "headers", "hosts")} <= seen
    assert ("request", "methods") in seen
    assert {type(line.get("conn")) for line in lines if line["event"] in OF_CONNECTIONS} == {int}
    told = {(line["event"], line.get("subject")) for line in lines}
    assert {("connection_closed", PRINTABLE), ("request", PRINTABLE)} <= told
    called = {line.get("called") for line in lines}
    assert {WILD, f"{'m' * 128}..."} <= called
    assert shown_of((SECRET, *tokens), text) == []


def shown_of(secrets: Sequence[bytes], text: str) -> list[bytes]:
    """Which of them stand in a text, or their ends, which are signatures; short ones are none."""
    return [one for one in secrets if len(one) > 20 and one.decode("latin-1")[-20:] in text]


@pytest.mark.parametrize("name", ["tcp", "msgpack", "thrift-binary", "proxy-tcp"])
async def test_a_credential_that_is_refused_is_not_shown(tmp_path: Path, name: str) -> None:
    """Whatever is wrong with it, and however it was presented: the line says what, and not the credential."""
    book, way, instance = Book(tmp_path), WAYS[name], instance_of(WAYS[name])
    (endpoint,) = await started(instance)
    secrets = [*bad_tokens(book).values(), book.key]
    async with gate(configuration_of_one([endpoint], way.lines + book.access()), instance) as g:
        for token in secrets:
            g.listener._denials._next.clear()  # else most are only counted
            with contextlib.suppress(ConnectionError):
                await g.told(way.hello(token), fin=True)
        told = g.events("denied")
    assert len(told) == len(secrets) - 1
    render = renderer("json", 2)
    text = "".join(render(None, line.pop("log_level"), line) for line in g.logs)
    assert shown_of([SECRET, *secrets], text) == []
