"""A gateway with TLS to its clients, to its instances or to both; the test plays every client and instance.

OpenSSL works on memory here as in the gateway, but nothing of the gateway's own is used for it: an end that
the test plays says close_notify, FIN and RST when it is told to and not otherwise.
"""

import asyncio
import contextlib
import os
import ssl
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Self

from structlog.testing import capture_logs

from tcpgw.app.gateway import Gateway
from tcpgw.config.load import loads
from tests.support.certificates import AUTHORITY, SERVER, Issued, client_side
from tests.support.streams import (
    SMALL,
    UNJUDGED,
    Bed,
    Line,
    MiB,
    Peer,
    Reads,
    in_time,
    listening,
    open_sockets,
    until,
)

versions = ("1.2", "1.3")


def put(folder: Path, **issued: Issued) -> None:
    """Write NAME.pem and NAME.key for each."""
    for name, one in issued.items():
        (folder / f"{name}.pem").write_bytes(one.chain)
        (folder / f"{name}.key").write_bytes(one.key)


def server_tls(*certificates: str, more: str = "") -> str:
    """The listener's `tls`, with files that `put` wrote, and further keys."""
    chains = ", ".join(f'{{ chain = "{name}.pem", key = "{name}.key" }}' for name in certificates)
    return f"tls = {{ certificates = [{chains}]{', ' if more else ''}{more} }}\n"


PLAIN_TLS = server_tls("server")
MUTUAL = 'client_ca = "ca.pem"'


def instance_side(issued: Issued = SERVER, version: str = "1.3", ca: bytes | None = None) -> ssl.SSLContext:
    """An instance's context; with `ca` it wants a certificate of the gateway's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_3 if version == "1.3" else ssl.TLSVersion.TLSv1_2
    load(context, issued)
    if ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=ca.decode())
    return context


def load(context: ssl.SSLContext, issued: Issued) -> None:
    """Python takes chains from files alone."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(issued.chain + issued.key)
        file.flush()
        context.load_cert_chain(file.name)


class Secured(Reads):
    """TLS over a Peer, played by hand: it reads as far as it is asked to, and says no end by itself."""

    END = "close_notify"

    def __init__(self, peer: Peer, context: ssl.SSLContext, name: str | None, *, server_side: bool) -> None:
        self.peer = peer
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        host = None if server_side else name
        self.ssl = context.wrap_bio(self.incoming, self.outgoing, server_side, server_hostname=host)

    async def flush(self) -> None:
        if self.outgoing.pending:
            await self.peer.send(self.outgoing.read())

    async def _fetch(self) -> None:
        data = await self.peer.read_some()
        if not data:
            raise EOFError("FIN without close_notify")
        self.incoming.write(data)

    async def shake(self) -> Self:
        """Raises ssl.SSLError, its alert sent, EOFError at FIN, or ConnectionResetError."""
        while not self.step():
            await self.flush()
            await self._fetch()
        await self.flush()
        return self

    def step(self) -> bool:
        """Go on with the handshake; returns whether it is done. What it has to say is `outgoing`."""
        try:
            self.ssl.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    async def send(self, data: bytes) -> None:
        view = memoryview(data)
        for at in range(0, len(view), MiB):
            self.ssl.write(view[at : at + MiB])
            await self.flush()

    async def read_some(self, size: int = 65536) -> bytes:
        """What is there or comes next; empty at close_notify. Raises EOFError at FIN without."""
        while True:
            try:
                return self.ssl.read(size)
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLWantReadError:
                await self._fetch()

    async def alert(self) -> str:
        """Why the gateway refuses, by the alert that comes in place of a handshake or of the first bytes."""
        try:
            await self.shake()
            await self.read_some()
        except ssl.SSLError as exc:
            return str(exc.reason)
        return ""

    async def is_reset(self) -> bool:
        """Whether RST ends it, without close_notify before."""
        try:
            await self.read_to_end()
        except ConnectionResetError:
            return True
        except EOFError:
            pass
        return False

    async def say_goodbye(self) -> None:
        """Send close_notify, and read nothing."""
        with contextlib.suppress(ssl.SSLError):
            self.ssl.unwrap()
        await self.flush()

    async def end(self) -> None:
        """Send close_notify and FIN."""
        await self.say_goodbye()
        self.peer.fin()


async def send_until_stalled(one: Secured, quiet: float = 0.3) -> int:
    """Send zeros until nothing moves for `quiet` seconds. Returns how many bytes of records the kernel took.

    The last record is cut: nothing can be sent after this.
    """
    loop, sent, block = asyncio.get_running_loop(), 0, bytes(16384)
    last, waiting = loop.time(), memoryview(b"")
    async with asyncio.timeout(20):
        while loop.time() - last < quiet:
            if not waiting:
                one.ssl.write(block)
                waiting = memoryview(one.outgoing.read())
            try:
                done = one.peer.sock.send(waiting)
            except BlockingIOError:
                await asyncio.sleep(0.002)
            else:
                waiting, sent, last = waiting[done:], sent + done, loop.time()
                await asyncio.sleep(0)
    return sent


class SecureBed(Bed):
    """A Bed whose clients and instances may speak TLS."""

    def secured(self, context: ssl.SSLContext | None = None, name: str | None = "localhost") -> Secured:
        """Connect a client, which has not sent anything yet."""
        return Secured(self.dial(), context or client_side(), name, server_side=False)

    async def client(self, context: ssl.SSLContext | None = None, name: str | None = "localhost") -> Secured:
        return await self.secured(context, name).shake()

    async def instance(self, context: ssl.SSLContext | None = None, number: int = 0) -> Secured:
        """Take the gateway's next connection to an instance, and shake hands with it."""
        peer = await self.accept(number)
        return await Secured(peer, context or instance_side(), None, server_side=True).shake()

    async def denied(self, count: int = 1) -> Line:
        """The line that tells of a denial, the last of so many, as soon as there is one."""
        await until(lambda: len(self.events("denied")) >= count)
        return self.events("denied")[count - 1]

    def events(self, name: str) -> list[Line]:
        return [line for line in self.logs if line["event"] == name]


def open_files() -> set[str]:
    """This process' files, those in memory among them."""
    found = set()
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found.add(str(fd.readlink()))
    return {link for link in found if link.startswith("/")} - {f"/proc/{os.getpid()}/fd"}


@contextlib.asynccontextmanager
async def bed(
    folder: Path,
    *,
    listener: str = PLAIN_TLS,
    service: str = "",
    others: Sequence[str] = (),
    instances: int = 1,
    endpoints: Sequence[str] = (),
    balance: str = "table_size = 1021",
    health: str = UNJUDGED,
    route: str = '"s"',
    **issued: Issued,
) -> AsyncIterator[SecureBed]:
    """Run a gateway whose files are in `folder`: `issued` there, server.pem and ca.pem at least.

    `others` are further services of an instance each, numbered behind those of `s`. At the end everything is
    ended and these must hold: every connection accounted for, in a closing line or as a denial; no load, no
    task, no socket and no other file left; nothing raised where nobody hears it.
    """
    put(folder, **{"server": SERVER, **issued})
    if not (folder / "ca.pem").exists():
        (folder / "ca.pem").write_bytes(AUTHORITY.pem)
    before, files, tasks = open_sockets(), open_files(), asyncio.all_tasks()
    bugs: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: bugs.append(context))
    with contextlib.ExitStack() as stack, capture_logs() as logs:
        sockets = [
            stack.enter_context(listening(receive_buffer=SMALL)) for _ in range(instances + len(others))
        ]
        addresses = ["{}:{}".format(*sock.getsockname()) for sock in sockets]
        text = _service("s", [*endpoints, *addresses[:instances]], balance, health, service)
        for name, address in zip(others, addresses[instances:], strict=True):
            text += _service(name, [address], balance, health, "")
        text += f'[[listener]]\nname = "l"\nroute = {route}\nbind = "127.0.0.1:0"\n{listener}\n'
        gateway = Gateway(loads(text, folder))
        running = SecureBed(gateway, sockets, logs)
        await in_time(gateway.__aenter__())
        try:
            yield running
        finally:
            await in_time(gateway.__aexit__(None, None, None))
            running.close_peers()
    _check_accounts(running)
    await asyncio.sleep(0.01)
    assert not bugs, bugs
    assert asyncio.all_tasks() == tasks
    assert open_sockets() <= before
    assert open_files() <= files


def _service(name: str, addresses: Sequence[str], balance: str, health: str, more: str) -> str:
    members = ", ".join(f'"{address}"' for address in addresses)
    return f"""
        [[service]]
        name = "{name}"
        discovery = {{ type = "static", endpoints = [{members}] }}
        balance = {{ {balance} }}
        health = {{ {health} }}
        {more}
    """


def _check_accounts(running: SecureBed) -> None:
    listener = running.listener
    assert not listener.connections
    assert not listener.draining
    assert listener._admission.talking == 0
    assert listener.accepted == listener.ended.total()
    told = len(running.lines) + len(running.events("denied"))
    assert told <= listener.accepted  # of many denials of one reason, one is told
    for name in ("bytes_in", "bytes_out"):
        assert listener.status()[name] == sum(line[name] for line in running.lines)
    for pool in running.gateway.pools.values():
        assert pool.loads.total == 0
        assert not any(pool.loads.inflight(member.endpoint) for member in pool.members)
