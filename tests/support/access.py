"""A gateway that asks for credentials: who may come in, all ways to say who one is, and what it answers."""

import asyncio
import contextlib
import struct
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from structlog.testing import capture_logs
from thrift.Thrift import TMessageType

from tcpgw.access.keys import new_key
from tcpgw.app.gateway import Gateway
from tcpgw.config.load import loads
from tcpgw.relay.listener import Listener
from tcpgw.wire import preamble, proxy_protocol
from tests.support.rpc import Client, Instance, bare, connected
from tests.support.rpc_ends import frame
from tests.support.rpc_thrift import Said, ThriftInstance, thrift_frame
from tests.support.streams import UNJUDGED, Line, Peer, dial, in_time
from tests.support.tokens import SECRET, claims, ec_key, jwks, public_ec, public_rsa, rsa_key, signed

KINDS = ("api_key", "HS256", "RS256", "ES256")
DENIED = b"TCPGW DENIED\n"
_UNAUTHENTICATED = "unauthenticated: access denied"
# Where who asks stands behind a proxy.
TRUSTED = 'accept_proxy = ["127.0.0.1"]\n'
# Of clients of which only the proxy knows.
FAR, NEAR = ("192.0.2.7", 1234), ("192.0.2.1", 443)


def now_claims(**changed: Any) -> dict[str, Any]:
    """As `claims`, for an hour from now on."""
    now = time.time()
    return claims(**{"exp": now + 3600, "iat": now, "nbf": now, **changed})


class Book:
    """What a gateway knows: a file of API keys, a secret, and a set of public keys."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = folder / "keys"
        self.jwks = folder / "jwks.json"
        self.jwks.write_text(jwks(public_rsa(), public_ec()))
        self.keys.write_text("")
        self.key = self.add("alice")
        self.expired = self.add("alice", expires=time.time() - 60)

    def add(self, subject: str, **terms: Any) -> bytes:
        """Put a new API key into the file."""
        made = new_key(subject, **terms)
        self.keys.write_text(f"{self.keys.read_text()}{made.line}\n")
        return made.key.encode()

    def token(self, kind: str, **changed: Any) -> bytes:
        """A good one of each kind, for alice."""
        return self.key if kind == "api_key" else signed(now_claims(**changed), kind)

    def access(self, more: str = "", leeway: str = "1s", seconds: str = "10s") -> str:
        """All of it, in TOML. `more` is further lines of its first table."""
        return f"""
            [listener.access]
            api_keys = "{self.keys}"
            timeout = "{seconds}"
            {more}
            [listener.access.jwt]
            algorithms = ["HS256", "RS256", "ES256"]
            secret = "{SECRET.decode()}"
            jwks = "{self.jwks}"
            audience = "tcpgw"
            leeway = "{leeway}"
        """


def bad_tokens(book: Book) -> dict[str, bytes]:
    """One for each cause that there is to refuse a token."""
    now, whole = time.time(), signed(now_claims(), "RS256")
    head, body, _ = whole.split(b".")
    return {
        "wrong key": book.key[:-1] + (b"A" if book.key[-1:] != b"A" else b"B"),
        "unknown key": new_key("alice").key.encode(),
        "expired key": book.expired,
        "no token at all": b"hello",
        "expired": signed(now_claims(exp=now - 60), "HS256"),
        "not yet valid": signed(now_claims(nbf=now + 60), "ES256"),
        "wrong signature": signed(now_claims(), "RS256", kid="r1", key=rsa_key("another")),
        "wrong secret": signed(now_claims(), "HS256", key=b"x" * 32),
        "unknown kid": signed(now_claims(), "ES256", kid="e9", key=ec_key("e9")),
        "public key for secret": signed(now_claims(), "HS256", kid="r1", key=b"y" * 40),
        "no signature": head + b"." + body + b".",
        "other audience": signed(now_claims(aud="others"), "RS256"),
        "no end": signed(now_claims(exp=None), "RS256"),
        "no subject": signed(now_claims(sub=None), "RS256"),
    }


# ---- ways to present a credential ----


class Way(Protocol):
    """`lines` are its listener's settings. A request is the number `at`, and so is its answer."""

    name: str
    lines: str

    def hello(self, token: bytes, hash_key: bytes = b"") -> bytes: ...
    @property
    def welcome(self) -> bytes: ...
    def request(self, at: int) -> bytes: ...
    def answer(self, at: int) -> bytes: ...
    def denied(self, code: str = "unauthenticated") -> bytes:
        """The last thing that who presented something wrong hears."""

    def denied_unread(self, data: bytes) -> bytes:
        """The same where only `data` came, in which no id can be read."""


class Preamble:
    """The line, before frames or whatever else."""

    welcome = b""

    def __init__(self, name: str, lines: str = "") -> None:
        self.name, self.lines = name, lines

    def hello(self, token: bytes, hash_key: bytes = b"") -> bytes:
        return b"TCPGW AUTH " + token + (b" " + hash_key if hash_key else b"") + b"\n"

    def request(self, at: int) -> bytes:
        return frame(0, at, "m", [at])

    def answer(self, at: int) -> bytes:
        return frame(1, at, None, [at])

    def denied(self, code: str = "unauthenticated") -> bytes:  # noqa: ARG002 - the line says nothing more
        return preamble.DENIED

    def denied_unread(self, data: bytes) -> bytes:  # noqa: ARG002
        return preamble.DENIED


class Msgpack:
    """The first request, with or without lengths. Its id is 7."""

    def __init__(self, name: str, pack: Callable[..., bytes]) -> None:
        self.name, self.lines, self.pack = name, 'mode = "rpc"\n', pack

    @property
    def welcome(self) -> bytes:
        return self.pack(1, 7, None, None)

    def hello(self, token: bytes, hash_key: bytes = b"") -> bytes:
        params = [token.decode("latin-1"), *([hash_key] if hash_key else [])]
        return self.pack(0, 7, "tcpgw.auth", params)

    def request(self, at: int) -> bytes:
        return self.pack(0, at, "m", [at])

    def answer(self, at: int) -> bytes:
        return self.pack(1, at, None, [at])

    def denied(self, code: str = "unauthenticated") -> bytes:
        return self.pack(1, 7, {"code": code, "message": "access denied"}, None)

    def denied_unread(self, data: bytes) -> bytes:
        # Whether it would have had lengths its first byte tells.
        pack = self.pack if data else frame
        return pack(1, None, {"code": "unauthenticated", "message": "access denied"}, None)


class Thrift:
    """The first call, in one of both encodings. Its number is 7."""

    def __init__(self, encoding: str) -> None:
        self.name, self.encoding = f"thrift-{encoding}", encoding
        self.lines = 'mode = "rpc"\ncodec = "thrift-framed"\n'

    @property
    def welcome(self) -> bytes:
        binary = b"\x80\x01\x00\x02\x00\x00\x00\x0atcpgw.auth\x00\x00\x00\x07\x00"
        body = binary if self.encoding == "binary" else b"\x82\x41\x07\x0atcpgw.auth\x00"
        return struct.pack(">I", len(body)) + body

    def _said(self, type_: int, method: str, number: int, content: Any) -> bytes:
        return thrift_frame(Said(self.encoding, type_, method, number, content))

    def hello(self, token: bytes, hash_key: bytes = b"") -> bytes:
        return self._said(
            TMessageType.CALL, "tcpgw.auth", 7, [token.decode("latin-1"), *([hash_key] if hash_key else [])]
        )

    def call(self, method: str, at: int) -> bytes:
        return self._said(TMessageType.CALL, method, at, [at])

    def request(self, at: int) -> bytes:
        return self.call("m", at)

    def failed(self, method: str, at: int, text: str) -> bytes:
        return self._said(TMessageType.EXCEPTION, method, at, text)

    def answer(self, at: int) -> bytes:
        return self._said(TMessageType.REPLY, "m", at, [at])

    def denied(self, code: str = "unauthenticated") -> bytes:
        return self.failed("tcpgw.auth", 7, f"{code}: access denied")

    def denied_unread(self, data: bytes) -> bytes:
        told = Said(self.encoding if data else "binary", TMessageType.EXCEPTION, "", 0, _UNAUTHENTICATED)
        return thrift_frame(told)


class Proxied:
    """By whoever relays for the client, in its PROXY header; what follows is the protocol's own."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.name, self.lines = f"proxy-{inner.name}", inner.lines + TRUSTED
        self.welcome = b""

    def hello(self, token: bytes, hash_key: bytes = b"") -> bytes:
        return proxied(token, hash_key)

    def request(self, at: int) -> bytes:
        made: bytes = self.inner.request(at)
        return made

    def answer(self, at: int) -> bytes:
        made: bytes = self.inner.answer(at)
        return made

    def denied(self, code: str = "unauthenticated") -> bytes:
        if isinstance(self.inner, Preamble):
            return preamble.DENIED
        # The first request is a call like others here: 1, in these tests.
        return frame(1, 1, {"code": code, "message": "access denied"}, None)


def proxied(token: bytes = b"", hash_key: bytes = b"", source: tuple[str, int] = FAR) -> bytes:
    """A PROXY header for a client."""
    said = {proxy_protocol.TLV_TOKEN: token, proxy_protocol.TLV_HASH_KEY: hash_key}
    return proxy_protocol.build_v2(source, NEAR, [(kind, value) for kind, value in said.items() if value])


_TCP = Preamble("tcp")
_FRAMED = Msgpack("msgpack", frame)
WAYS: dict[str, Any] = {
    way.name: way
    for way in (
        _TCP,
        Preamble("opaque", 'mode = "rpc"\ncodec = { name = "opaque", frame = "u32be" }\n'),
        Preamble("fifo", 'mode = "rpc"\ncodec = { name = "fifo", frame = "u32be" }\n'),
        _FRAMED,
        Msgpack("bare", bare),
        Thrift("binary"),
        Thrift("compact"),
        Proxied(_TCP),
        Proxied(_FRAMED),
    )
}


# ---- the gateway ----


class Gate:
    """A running gateway whose first listener is `l`, and what it logs."""

    def __init__(self, gateway: Gateway, logs: list[Line]) -> None:
        self.gateway = gateway
        self.logs = logs
        self._peers: list[Peer] = []
        self._clients: list[Client] = []

    @property
    def listener(self) -> Listener:
        return self.gateway.listeners["l"]

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.listener.address.rpartition(":")
        host = host.strip("[]")
        return host, int(port)

    def ended(self) -> dict[str, int]:
        return {reason.value: count for reason, count in self.listener.ended.items()}

    def events(self, name: str) -> list[Line]:
        return [line for line in self.logs if line["event"] == name]

    def dial(self, data: bytes = b"", *, source: str = "") -> Peer:
        """Connect a client that has sent `data`, which the kernel takes."""
        peer = dial(self.address, source=source)
        self._peers.append(peer)
        if data:
            assert peer.sock.send(data) == len(data)
        return peer

    async def told(self, data: bytes = b"", *, source: str = "", fin: bool = False) -> bytes:
        """All that a client hears that sends `data`, up to FIN. Raises ConnectionResetError at RST."""
        peer = self.dial(data, source=source)
        if fin:
            peer.fin()
        heard = await peer.read_to_end()
        peer.close()
        return heard

    async def client(self, token: bytes = b"", *, hash_key: bytes = b"", framed: bool = True) -> Client:
        """An rpc client that was let in."""
        client = await connected(self.listener.address, framed)
        self._clients.append(client)
        if token:
            params = [token.decode(), *([hash_key] if hash_key else [])]
            assert await client.call(*params, method="tcpgw.auth", number=0) is None
            client.answers.clear()
        return client

    def close_clients(self) -> None:
        for client in self._clients:
            client.transport.abort()
        for peer in self._peers:
            peer.close()


def service(name: str, *endpoints: str, balance: str = "") -> str:
    members = ", ".join(f'"{endpoint}"' for endpoint in endpoints)
    return f"""
        [[service]]
        name = "{name}"
        discovery = {{ type = "static", endpoints = [{members}] }}
        balance = {{ {balance or 'policy = "round_robin"'} }}
        health = {{ {UNJUDGED} }}
    """


def configuration(
    endpoints: Sequence[str],
    listener: str,
    *,
    balance: str = "",
    route: str = '"s"',
    more: str = "",
    bind: str = "127.0.0.1:0",
) -> str:
    """A service `s` behind a listener `l`. `listener` is further lines of it, and `more` further tables."""
    return f"""
        {service("s", *endpoints, balance=balance)}
        {more}
        [[listener]]
        name = "l"
        bind = "{bind}"
        route = {route}
        {listener}
    """


@contextlib.asynccontextmanager
async def gate(text: str, *instances: Any) -> AsyncIterator[Gate]:
    """Run a gateway by its configuration, and end the `instances`, which run already.

    At the end these must hold: each connection is counted under one reason; no task and no socket is left;
    nothing raised where nobody hears it.
    """
    tasks = asyncio.all_tasks()
    bugs: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: bugs.append(context))
    async with contextlib.AsyncExitStack() as stack:
        logs = stack.enter_context(capture_logs())
        for instance in instances:
            stack.callback(instance.kill)
        made = Gate(Gateway(loads(text, Path())), logs)
        await in_time(made.gateway.__aenter__())
        stack.push_async_callback(made.gateway.__aexit__, None, None, None)
        stack.callback(made.close_clients)
        yield made
    await asyncio.sleep(0.01)
    for listener in made.gateway.listeners.values():
        assert not listener.connections
        assert listener.accepted == listener.ended.total()
        assert listener._admission.talking == 0
    assert not bugs, bugs
    assert asyncio.all_tasks() == tasks


def instance_of(way: Way) -> Instance:
    """One that answers what `way` asks."""
    return ThriftInstance() if isinstance(way, Thrift) else Instance()


async def started(*instances: Instance) -> list[str]:
    """Start rpc instances, and return their endpoints."""
    for instance in instances:
        await instance.start()
    return [instance.endpoint for instance in instances]
