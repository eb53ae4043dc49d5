"""From accept to route: who a client is, and whether it may come in.

In this order: PROXY header (from trusted sources) → networks and limits of its source → TLS, or a look at the
TLS that is the instance's → credentials → limits of its subject. Each step is left out where nothing asks for
it, and a client of whom nothing is asked costs nothing here.
"""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from functools import partial
from ipaddress import ip_address

from tcpgw.access.denial import Denied, UnknownKey
from tcpgw.access.grant import Grant
from tcpgw.access.guard import Guard
from tcpgw.access.limits import Limit, Limiter, Usage, source_of
from tcpgw.config.schema import Listener as Settings
from tcpgw.errors import Code, ProtocolError
from tcpgw.relay.conversation import Conversation, SecureConversation
from tcpgw.relay.denials import DeniedError
from tcpgw.relay.handshake import TlsHandshakeError, accept_tls
from tcpgw.relay.lines import shown
from tcpgw.relay.metering import Metered
from tcpgw.relay.reasons import Reason
from tcpgw.relay.session import Address, Connection, Plane, canonical
from tcpgw.relay.tracing import Trace, Tracer
from tcpgw.wire import client_hello, proxy_protocol
from tcpgw.wire.greeting import Presented

# A fatal access_denied in a record of its own (RFC 8446, 6): right before a handshake, where OpenSSL cannot
# be asked for one.
_ACCESS_DENIED = b"\x15\x03\x03\x00\x02\x02\x31"
# Seconds that a client that is turned away has to read why, and to stop sending; and that it has while others
# wait for its place: with 1024 places, 100,000 can be turned away in a second.
_PATIENCE, _HURRY = 1.0, 0.01
# Seconds that a client waits for a newer set of keys, in which the one that it names may be.
_RENEWAL = 2.0
# What a client is told of why; UNAUTHENTICATED whatever was wrong with its credential.
_CODES = {
    Reason.DENIED_CIDR: Code.DENIED,
    Reason.DENIED_SERVICE: Code.DENIED,
    Reason.LIMIT_SOURCE: Code.OVERLOADED,
    Reason.LIMIT_SUBJECT: Code.OVERLOADED,
    Reason.OVERLOAD: Code.OVERLOADED,
}
# What a trace calls the TLVs that are taken; what is in them may be secret.
_TLVS = {proxy_protocol.TLV_TOKEN: "token", proxy_protocol.TLV_HASH_KEY: "hash_key"}
_NOTHING_SHOWN = "no certificate was shown, and nothing else is taken"


class Admission:
    """Of one listener's clients. What it was made with may be replaced at any time."""

    def __init__(self, settings: Settings, guard: Guard, plane: Plane) -> None:
        self.settings = settings
        self.guard = guard
        self.plane = plane
        self.talking = 0  # how many clients are at it
        self.tracer: Tracer | None = None  # while somebody traces clients

    def upholds(self, connection: Connection) -> bool:
        """Whether a client that was let in would be now, and be given the same."""
        credentials, networks = self.guard.credentials, self.guard.networks
        address, grant = connection.address, connection.grant
        if networks is not None and address is not None and not networks.admits(address[0]):
            return False
        if credentials is None:
            return True
        return grant is not None and credentials.upholds(grant, time.time())

    def enter(self, connection: Connection, *, shedding: bool) -> bool:
        """Look at a client's source, unless a PROXY header is to say what it is: True. Raises DeniedError.

        `shedding`: nobody may come in, as the process has too much to do.
        """
        if self.tracer is not None and (shedding or not self._trusts(connection.peer)):
            self._trace(connection)
        if shedding:
            raise DeniedError(Reason.OVERLOAD, "the gateway is overloaded")
        if self._trusts(connection.peer):
            return True
        self._judge_source(connection)
        if not self.guard.talks:
            _let_in(connection)
        return False

    async def admit(self, connection: Connection, *, trusted: bool) -> bytes:
        """Have the conversation that lets a client in; returns the first of its bytes that are no part of it.

        `trusted` is what `enter` said, whatever has changed since. Raises DeniedError when the client was
        told, ProtocolError, TimeoutError for its PROXY header, or OSError for its socket; whatever happens,
        `connection.uses` are to be left at its end.
        """
        talk = Conversation(connection.socket)
        tlvs: dict[int, bytes] = {}
        if trusted:
            tlvs = await self._read_header(connection, talk)
            try:
                self._judge_source(connection)
            except DeniedError as exc:
                tell_denied(connection, exc)
                await self._dismiss(talk, self.farewell(exc.reason, talk.data))
                raise
        if self.guard.passthrough:
            await self._look_at_hello(connection, talk)
        elif self.guard.tls is not None:
            talk = await self._shake_hands(connection, talk)
        try:
            presented = None
            if self.guard.credentials is not None:
                presented = await self._identify(connection, talk, tlvs)
            self._judge_subject(connection)
            self.plane.judge(connection)
        except DeniedError as exc:
            tell_denied(connection, exc)
            await self._dismiss(talk, self._last_words(exc.reason, talk.data))
            raise
        if presented is not None:  # not before: a denial is the answer to the same request
            talk.data = talk.data[presented.size :]
            if presented.welcome:
                await talk.say(presented.welcome)
        _let_in(connection)
        return talk.data

    # ---- source ----

    def _trusts(self, peer: Address | None) -> bool:
        networks = self.settings.accept_proxy
        if not networks:
            return False
        # Whoever may open the socket file of a Unix listener was let in by its owner and mode.
        return peer is None or any(ip_address(peer[0]) in network for network in networks)

    async def _read_header(self, connection: Connection, talk: Conversation) -> dict[int, bytes]:
        """Read the PROXY header that the peer must send, and return its TLVs."""
        try:
            async with asyncio.timeout(self.settings.proxy_timeout):
                while (header := proxy_protocol.parse(talk.data)) is None:
                    await talk.read("PROXY header")
            connection.address = header.source or connection.peer
        finally:  # whose header does not come is the peer itself
            self._trace(connection)
        connection.destination = header.destination
        talk.data = talk.data[header.size :]
        tlvs = dict(header.tlvs)
        connection.hash_key = tlvs.get(proxy_protocol.TLV_HASH_KEY, b"")
        if connection.trace is not None:
            _tell_header(connection.trace, connection, tlvs)
        return tlvs

    def _judge_source(self, connection: Connection) -> None:
        guard, address = self.guard, connection.address
        if address is None:
            return
        host = address[0]
        if guard.networks is not None and not guard.networks.admits(host):
            raise DeniedError(Reason.DENIED_CIDR, "its network is not allowed")
        if guard.sources is not None:
            name = source_of(host, guard.ipv6_prefix)
            self._count(connection, guard.sources, name, Reason.LIMIT_SOURCE)

    def _judge_subject(self, connection: Connection) -> None:
        if self.guard.subjects is not None and connection.grant is not None:
            self._count(connection, self.guard.subjects, connection.grant.subject, Reason.LIMIT_SUBJECT)

    def _count(self, connection: Connection, limiter: Limiter, name: str, reason: Reason) -> None:
        use = limiter.admit(name, time.monotonic())
        if isinstance(use, Limit):
            raise DeniedError(reason, f"{name} is at its limit of {use.value}")
        connection.uses = (*connection.uses, use)

    def _trace(self, connection: Connection) -> None:
        """Have its life told from here on, if somebody traces clients of its address."""
        if self.tracer is None or connection.address is None:
            return
        connection.trace = self.tracer.follow(
            self.settings.name, connection.id, connection.address, connection.opened, to=_reached(connection)
        )

    # ---- TLS ----

    async def _look_at_hello(self, connection: Connection, talk: Conversation) -> None:
        """Read to which host the TLS is that passes through, and leave it as it is."""
        try:
            async with asyncio.timeout(self.guard.handshake_timeout):
                while (hello := client_hello.parse(talk.data)) is None:
                    await talk.read("ClientHello")
        except TimeoutError:
            raise DeniedError(Reason.HANDSHAKE_TIMEOUT) from None
        except ProtocolError as exc:
            raise DeniedError(Reason.TLS_ERROR, str(exc)) from None
        connection.server_name = hello.server_name
        if connection.trace is not None:
            connection.trace.add("client_hello", server_name=hello.server_name)

    async def _shake_hands(self, connection: Connection, talk: Conversation) -> Conversation:
        assert self.guard.tls is not None  # noqa: S101
        try:
            async with asyncio.timeout(self.guard.handshake_timeout):
                loop = asyncio.get_running_loop()
                patience = _HURRY if self._crowded else _PATIENCE
                tls = await accept_tls(loop, connection.socket, self.guard.tls, talk.data, patience)
        except TimeoutError:
            raise DeniedError(Reason.HANDSHAKE_TIMEOUT) from None
        except TlsHandshakeError as exc:
            raise DeniedError(Reason.TLS_ERROR, str(exc)) from None
        secured = SecureConversation(connection.socket, tls)
        connection.server_name, connection.alpn = tls.server_name, tls.alpn
        connection.layers = (secured.layer,)
        if connection.trace is not None:
            version, shown = tls.ssl.version(), {"certificate": tls.names} if tls.names else {}
            connection.trace.add("tls", version=version, server_name=tls.server_name, alpn=tls.alpn, **shown)
        return secured

    # ---- credentials ----

    async def _identify(
        self, connection: Connection, talk: Conversation, tlvs: dict[int, bytes]
    ) -> Presented | None:
        """Find out who a client is. Returns what it said for that with its own bytes, if anything."""
        token = tlvs.get(proxy_protocol.TLV_TOKEN)
        if token is not None:
            connection.grant = await self._verify(token)
            return None
        assert self.guard.credentials is not None  # noqa: S101
        names = talk.names
        try:
            grant = self.guard.credentials.certificate(names) if names else None
        except Denied as exc:
            raise DeniedError(Reason.DENIED_CREDENTIALS, f"{exc.reason}: {exc}") from None
        if grant is not None:
            connection.grant = grant
            return None
        if not self.guard.credentials.takes_tokens:
            text = "no rule is for the names of its certificate" if names else _NOTHING_SHOWN
            raise DeniedError(Reason.DENIED_CREDENTIALS, text)
        presented = await self._listen(talk)
        connection.grant = await self._verify(presented.token)
        connection.hash_key = presented.hash_key or connection.hash_key
        return presented

    async def _listen(self, talk: Conversation) -> Presented:
        try:
            async with asyncio.timeout(self.guard.credentials_timeout):
                while not talk.data or (presented := self.plane.greeting.parse(talk.data)) is None:
                    await talk.read("credentials")
        except TimeoutError:
            raise DeniedError(Reason.CREDENTIALS_TIMEOUT) from None
        except ProtocolError as exc:
            raise DeniedError(Reason.DENIED_CREDENTIALS, str(exc)) from None
        return presented

    async def _verify(self, token: bytes) -> Grant | None:
        """Give what the token grants; None where no credentials are asked for any more, since it came."""
        try:
            try:
                return self._judge_token(token)
            except UnknownKey:
                if self.guard.renew is None:
                    raise
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_RENEWAL):
                        await self.guard.renew()
                return self._judge_token(token)  # by the guard that stands now
        except Denied as exc:
            raise DeniedError(Reason.DENIED_CREDENTIALS, f"{exc.reason}: {exc}") from None

    def _judge_token(self, token: bytes) -> Grant | None:
        credentials = self.guard.credentials
        return credentials.verify(token, time.time()) if credentials is not None else None

    # ---- no ----

    async def _dismiss(self, talk: Conversation, last: bytes) -> None:
        """Those that are turned away and stay must not take all places from those that come."""
        await talk.dismiss(last, _HURRY if self._crowded else _PATIENCE)

    @property
    def _crowded(self) -> bool:
        return 2 * self.talking > self.settings.limits.handshakes

    def farewell(self, reason: Reason, data: bytes = b"") -> bytes:
        """What is said to a client that is turned away before anything was said to it."""
        if self.guard.tls is not None or self.guard.passthrough:
            return _ACCESS_DENIED
        return self._last_words(reason, data)

    def _last_words(self, reason: Reason, data: bytes) -> bytes:
        if self.guard.passthrough:
            return _ACCESS_DENIED
        # Nothing of ours where clients know of nobody but the instance: they would take it for its answer.
        if self.guard.credentials is None and not self.settings.by_request:
            return b""
        return self.plane.greeting.denial(data, _CODES.get(reason, Code.UNAUTHENTICATED))


def _let_in(connection: Connection) -> None:
    """Have its bytes taken from the buckets of its source and of its subject, from now on."""
    for use in connection.uses:
        if use.bytes_in is not None or use.bytes_out is not None:
            connection.layers = (partial(_metered, use), *connection.layers)
    if connection.trace is not None:
        connection.trace.add("allowed", **_told_grant(connection.grant))


def _metered(use: Usage, protocol: asyncio.Protocol) -> Metered:
    return Metered(protocol, asyncio.get_running_loop(), use.bytes_in, use.bytes_out)


# ---- tracing ----


def tell_denied(connection: Connection, why: DeniedError) -> None:
    """Tell of a decision when it is made: who is turned away may stay for a while."""
    if connection.trace is not None:
        connection.trace.add("denied", reason=why.reason, why=str(why))


def _tell_header(trace: Trace, connection: Connection, tlvs: Mapping[int, bytes]) -> None:
    names = [name for number, name in _TLVS.items() if number in tlvs]
    to = connection.destination
    trace.add("proxy_header", peer=shown(connection.peer), to=shown(to) if to else None, tlvs=names)


def _told_grant(grant: Grant | None) -> dict[str, object]:
    if grant is None:
        return {}
    key = {"key": grant.key_id} if grant.key_id else {}
    return {"subject": grant.subject, "credential": grant.kind, **key}


def _reached(connection: Connection) -> str:
    """Where it was accepted."""
    try:
        address = connection.socket.getsockname()
    except OSError:
        return ""
    return shown((canonical(address[0]), address[1])) if isinstance(address, tuple) else f"unix:{address}"
