"""What a listener asks of clients while what it asks changes: over a plane that the test plays."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from structlog.testing import capture_logs

from tcpgw.access.credentials import Credentials
from tcpgw.access.grant import Permissions, Subjects
from tcpgw.access.guard import OPEN, Guard
from tcpgw.access.jwt import JwtTerms, Verifier
from tcpgw.access.keys import Keys, new_key, parse
from tcpgw.config.load import loads
from tcpgw.relay.listener import Listener
from tcpgw.relay.reasons import Reason
from tcpgw.relay.session import Connection
from tcpgw.relay.sockets import bind_socket
from tests.relay.test_listener_plane import Plane
from tests.support.streams import Line, Peer, dial, in_time, new_lines, until
from tests.support.tokens import AUDIENCE, claims, signed

KEY, OTHER = new_key("alice"), new_key("bob")
HELLO = f"TCPGW AUTH {KEY.key}\n".encode()


def asking(*lines: str, subjects: Subjects | None = None, **terms: Any) -> Guard:
    keys = Keys(parse("\n".join(lines)))
    return Guard(credentials=Credentials(keys, None, subjects, "l"), **terms)


class Door:
    """A listener that can be given other guards, its plane, and what it logs."""

    def __init__(self, listener: Listener, settings: Any, plane: Plane, logs: list[Line]) -> None:
        self.listener = listener
        self.plane = plane
        self.logs = logs
        self.peers: list[Peer] = []
        self._settings = settings

    def change(self, guard: Guard) -> None:
        self.listener.change(self._settings, self.plane, guard)

    async def client(self, data: bytes = b"") -> Peer:
        """One that has connected and has sent `data`."""
        accepted = self.listener.accepted
        host, _, port = self.listener.address.rpartition(":")
        peer = dial((host, int(port)))
        self.peers.append(peer)
        await until(lambda: self.listener.accepted > accepted)
        await peer.send(data)
        return peer

    async def connection(self) -> Connection:
        """The only one, once it has been let in."""
        (connection,) = self.listener.connections.values()
        await until(lambda: connection.setup is None)
        return connection


@asynccontextmanager
async def door(guard: Guard) -> AsyncIterator[Door]:
    text = """
        [[service]]
        name = "s"
        discovery = { type = "static", endpoints = ["127.0.0.1:1"] }
        [[listener]]
        name = "l"
        bind = "127.0.0.1:0"
        route = "s"
    """
    settings = loads(text, Path()).listener[0]
    plane = Plane()
    with capture_logs() as logs:
        listener = Listener(
            settings, (bind_socket(settings.bind, settings.keepalive),), plane, guard, lines=new_lines()
        )
        made = Door(listener, settings, plane, logs)
        listener.start()
        try:
            yield made
        finally:
            await in_time(listener.close())
            for peer in made.peers:
                peer.close()
    assert not listener.connections
    assert listener._admission.talking == 0


async def test_credentials_are_not_asked_for_any_more() -> None:
    """Who was just about to show one is let in by what it showed, whatever it was."""
    async with door(asking(KEY.line)) as at:
        at.plane.may_open.set()
        good, bad = await at.client(HELLO[:-9]), await at.client(b"TCPGW AUTH wro")
        at.change(OPEN)
        await good.send(HELLO[-9:])
        await bad.send(b"ng\n")
        await until(lambda: len(at.plane.sessions) == 2)
        assert {session.connection.grant for session in at.plane.sessions} == {None}
        assert not at.listener.ended


async def test_credentials_are_others_meanwhile() -> None:
    """A credential is judged by the keys that are in force when it is whole."""
    async with door(asking(OTHER.line)) as at:
        at.plane.may_open.set()
        one = await at.client(HELLO[:-9])
        at.change(asking(KEY.line))
        await one.send(HELLO[-9:])
        await until(lambda: at.plane.sessions)
        two = await at.client(HELLO[:-9])
        at.change(asking(OTHER.line))
        await two.send(HELLO[-9:])
        assert await two.read_to_end() == b"TCPGW DENIED\n"


async def test_a_key_is_taken_out_while_its_client_is_connected() -> None:
    """Who was let in by it, and has no instance yet, is asked to return as all others are."""
    async with door(asking(KEY.line)) as at:
        await at.client(HELLO)
        await until(lambda: [one for one in at.listener.connections.values() if one.grant])
        at.change(asking(OTHER.line))
        at.plane.may_open.set()
        assert await at.connection() in at.listener.draining


async def test_a_key_stays_while_its_client_is_connected() -> None:
    """Whose key gives the same as before is left alone."""
    async with door(asking(KEY.line)) as at:
        await at.client(HELLO)
        await until(lambda: [one for one in at.listener.connections.values() if one.grant])
        at.change(asking(KEY.line, OTHER.line, subjects=Subjects({"bob": Permissions()})))
        at.plane.may_open.set()
        assert await at.connection() not in at.listener.draining


async def test_newer_keys_that_do_not_come() -> None:
    """Who shows a token of an unknown key waits as long as a credential may take; not with an API key."""
    asked = 0

    async def never() -> None:
        nonlocal asked
        asked += 1
        await asyncio.Event().wait()

    verifier = Verifier(JwtTerms(("RS256",), AUDIENCE))
    credentials = Credentials(Keys(()), verifier, None, "l")
    async with door(Guard(credentials=credentials, credentials_timeout=0.05, renew=never)) as at:
        for token, times in ((KEY.key.encode(), 0), (signed(claims()), 1)):
            peer = await at.client(b"TCPGW AUTH " + token + b"\n")
            assert await peer.read_to_end() == b"TCPGW DENIED\n"
            assert asked == times


async def test_one_line_tells_of_many() -> None:
    """Of clients that are denied for one reason the log tells one each ten seconds, and all are counted."""
    async with door(asking(KEY.line)) as at:
        for _ in range(20):
            peer = await at.client(b"TCPGW AUTH wrong\n")
            assert await peer.read_to_end() == b"TCPGW DENIED\n"
            peer.close()
        await until(lambda: at.listener.ended[Reason.DENIED_CREDENTIALS] == 20)
        assert [line["event"] for line in at.logs] == ["denied"]
        assert "wrong" not in repr(at.logs)
