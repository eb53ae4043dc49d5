"""An address that clients connect to: accept, find out who it is, hand over to a plane, log once.

The listener accepts from its socket itself rather than through `loop.create_server`. That makes
`max_connections` exact (what is beyond waits in the kernel's queue, not in ours), costs no more CPU, and lets
the client's bytes wait in the kernel until an instance is connected. asyncio's streams were tried for this
conversation and left out: it reads at most one PROXY header, and a reader and writer per connection cost
more than everything else here.
"""

import asyncio
import errno
import itertools
import socket
import time
from collections import Counter
from functools import partial
from ipaddress import ip_address

import structlog

from tcpgw.address import Address as Bound
from tcpgw.config.schema import Listener as Settings
from tcpgw.errors import ConnectError, OverloadError, ProtocolError
from tcpgw.relay.reasons import Reason
from tcpgw.relay.session import Address, Connection, Plane, canonical
from tcpgw.relay.sockets import adopt_socket, listen
from tcpgw.relay.upstream import NoEndpointError
from tcpgw.wire import proxy_protocol

log = structlog.get_logger()

# Accepts per turn of the loop: enough that a burst costs few turns, few enough that relays get theirs.
_ACCEPT_BATCH = 32
# Seconds after a failed accept: mostly the process is out of descriptors, which only ending connections cure.
_ACCEPT_PAUSE = 0.1
# Seconds between two lines that say so: a full listener pauses at each connection's end.
_SAY_FULL_EVERY = 60.0
# A quiet connection is found at the latest this share of its time-out late.
_SWEEPS_PER_TIMEOUT = 8
# Connections looked at in one turn of the loop: about a third of a millisecond.
_SWEEP_BATCH = 256
# A PROXY header comes in one segment; what follows it in the same read is the instance's.
_HEADER_READ = 4096


class Listener:
    """Owns its socket, its connections and the tasks that set them up. `plane` moves their bytes.

    Made and used in one running event loop. `outlived`: somebody else keeps the socket open too, and will
    serve who still waits in its queue.
    """

    def __init__(
        self,
        settings: Settings,
        sock: socket.socket,
        plane: Plane,
        *,
        log_connections: bool = True,
        outlived: bool = False,
    ) -> None:
        self.name = settings.name
        self.accepted = 0
        self.paused = 0  # how often max_connections stopped the accepting
        self.ended: Counter[Reason] = Counter()
        self.bytes_in = 0  # from clients, of connections that have ended
        self.bytes_out = 0
        self.connections: dict[int, Connection] = {}
        self._settings = settings
        self._socket = sock
        self._plane = plane
        self._log_connections = log_connections
        self.outlived = outlived
        # Bound and kept because both are asked for with every connection, and the asking costs microseconds.
        self._log = log.bind(listener=self.name)
        self._loop = asyncio.get_running_loop()
        self._ids = itertools.count(1)
        self._sweeper: asyncio.Task[None] | None = None
        self._accepting = False
        self._stopped = False
        self._draining = False
        self._next_full = 0.0
        self._backing_off: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def address(self) -> str:
        """Where clients connect, with the port that the kernel chose where the configuration says 0."""
        return str(Bound.of_socket(self._socket))

    # ---- life ----

    def start(self) -> None:
        """Listen and accept. Call once. Raises BindError where another one listens here since the bind."""
        listen(self._socket, self.address)
        self._sweeper = self._loop.create_task(self._sweep())
        self._resume()

    def change(self, settings: Settings, plane: Plane, *, log_connections: bool) -> None:
        """Take other settings and another plane for the connections that come from now on.

        Of the same name, bind, mode and codec; `max_connections` and the time-outs looked at here hold for
        all. Connections that are there keep their plane, which may be the same one.
        """
        self._settings = settings
        self._plane = plane
        self._log_connections = log_connections
        if not self._stopped:
            adopt_socket(self._socket, settings.keepalive)
        if self._sweeper and self._backing_off is None:
            self._resume()  # more of them may be allowed

    def duplicate(self) -> socket.socket:
        """The same socket once more, for a listener that takes its place.

        Set `outlived` before this one drains, so that who waits in the queue is the other's.
        """
        return self._socket.dup()

    def stop_accepting(self) -> None:
        """Close the listening socket: new clients are refused, connections go on. Idempotent.

        Who already waits in the kernel's queue is let in, up to max_connections: they have been told that
        they are connected, and would be reset. Unless the socket outlives this.
        """
        accepted = -1
        while not self.outlived and self._accepting and accepted != self.accepted:
            accepted = self.accepted
            self._accept()
        self._stopped = True
        self._pause()
        if self._backing_off:
            self._backing_off.cancel()
        self._socket.close()

    def drain(self) -> None:
        """Stop accepting, and let each session end when nothing would be lost. Idempotent.

        Those that are being set up are drained once they stand.
        """
        self.stop_accepting()
        self._draining = True
        for connection in list(self.connections.values()):
            if connection.session:
                connection.session.drain()

    async def drained(self) -> None:
        """Return when no connection is left."""
        await self._empty.wait()

    async def close(self) -> None:
        """Stop accepting and end every connection now. Idempotent; nothing is left open."""
        self.stop_accepting()
        tasks = [connection.setup for connection in self.connections.values() if connection.setup]
        if self._sweeper:
            tasks.append(self._sweeper)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in list(self.connections.values()):
            if connection.session:
                connection.session.abort(Reason.SHUTDOWN, reset=True)
            else:  # its task was cancelled before its first step
                self._end(connection, Reason.SHUTDOWN)
        await self._empty.wait()

    # ---- accept ----

    def _resume(self) -> None:
        if not self._accepting and not self._stopped:
            self._accepting = True
            self._loop.add_reader(self._socket, self._accept)

    def _pause(self) -> None:
        if self._accepting:
            self._accepting = False
            self._loop.remove_reader(self._socket)

    def _accept(self) -> None:
        for _ in range(_ACCEPT_BATCH):
            if len(self.connections) >= self._settings.max_connections:
                self._pause_full()
                return
            try:
                sock, address = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as exc:
                self._back_off(exc)
                return
            self._open(sock, address)

    def _pause_full(self) -> None:
        self.paused += 1
        self._pause()
        now = time.monotonic()
        if now >= self._next_full:
            self._next_full = now + _SAY_FULL_EVERY
            self._log.warning("accept_paused", connections=len(self.connections), times=self.paused)

    def _back_off(self, exc: OSError) -> None:
        out_of_files = exc.errno == errno.EMFILE
        hint = "raise LimitNOFILE= or ulimit -n: a connection needs two" if out_of_files else None
        self._log.error("accept_failed", error=exc.strerror, connections=len(self.connections), hint=hint)
        self._pause()
        self._backing_off = self._loop.call_later(_ACCEPT_PAUSE, self._retry)

    def _retry(self) -> None:
        self._backing_off = None
        self._resume()

    def _open(self, sock: socket.socket, address: tuple[str, int] | str) -> None:
        self.accepted += 1
        self._empty.clear()
        peer = None if isinstance(address, str) else (canonical(address[0]), address[1])
        connection = Connection(next(self._ids), sock, peer, time.monotonic())
        self.connections[connection.id] = connection
        connection.setup = self._loop.create_task(self._serve(connection))

    # ---- one connection ----

    async def _serve(self, connection: Connection) -> None:
        """From accept to session, which owns the connection and its end from then on."""
        reason, error = Reason.SHUTDOWN, ""
        try:
            early = await self._identify(connection)
            on_end = partial(self._on_end, connection)
            connection.session = await self._plane.open(connection, early, on_end)
        except ProtocolError as exc:
            reason, error = Reason.PROTOCOL_ERROR, str(exc)
        except TimeoutError:
            reason = Reason.HEADER_TIMEOUT
        except NoEndpointError as exc:
            reason, error = Reason.NO_ENDPOINT, str(exc)
        except OverloadError as exc:
            reason, error = Reason.OVERLOAD, str(exc)
        except ConnectError as exc:
            reason, error = Reason.CONNECT_FAILED, str(exc)
            connection.facts["tries"] = exc.tries
        except OSError as exc:  # the client's own socket
            reason, error = Reason.CLIENT_RESET, str(exc)
        except Exception:  # noqa: BLE001 - a bug that one connection meets must not end the others
            reason = Reason.INTERNAL
            self._log.exception("connection_error", id=connection.id)
        finally:
            connection.setup = None
            if connection.session is None:
                self._end(connection, reason, error)
            elif connection.over:
                self._end(connection, *connection.over)
            elif self._draining:
                connection.session.drain()

    async def _identify(self, connection: Connection) -> bytes:
        """Read the PROXY header where the peer must send one, and return what came behind it."""
        if not self._settings.accept_proxy or not self._trusts(connection.peer):
            return b""
        data = b""
        connection.socket.setblocking(False)  # otherwise the transport sees to it
        async with asyncio.timeout(self._settings.proxy_timeout):
            while (header := proxy_protocol.parse(data)) is None:
                chunk = await self._loop.sock_recv(connection.socket, _HEADER_READ)
                if not chunk:
                    raise ProtocolError(f"closed at byte {len(data)}, before the end of its PROXY header")
                data += chunk
        connection.client = header.source or connection.peer
        connection.destination = header.destination
        return data[header.size :]

    def _trusts(self, peer: Address | None) -> bool:
        # Whoever may open the socket file of a Unix listener was let in by its owner and mode.
        return peer is None or any(ip_address(peer[0]) in network for network in self._settings.accept_proxy)

    # ---- ends ----

    async def _sweep(self) -> None:
        """Let every session look at its time-outs. One pass for all instead of a timer for each."""
        while True:
            settings = self._settings  # of now: they may change
            shortest = min(
                settings.idle_timeout, settings.fin_timeout, settings.keepalive, settings.frame_timeout
            )
            await asyncio.sleep(shortest / _SWEEPS_PER_TIMEOUT)
            for count, connection in enumerate(list(self.connections.values()), 1):
                if count % _SWEEP_BATCH == 0:
                    await asyncio.sleep(0)
                if connection.session is None:
                    continue
                try:
                    connection.session.tend(time.monotonic())
                except Exception as exc:  # noqa: BLE001 - a fault in one must not end the time-outs of all
                    context = {"message": f"connection {connection.id} was not tended", "exception": exc}
                    self._loop.call_exception_handler(context)

    def _on_end(self, connection: Connection, reason: Reason, error: str) -> None:
        if connection.setup:  # it is not known yet whose figures to log
            connection.over = reason, error
        else:
            self._end(connection, reason, error)

    def _end(self, connection: Connection, reason: Reason, error: str = "") -> None:
        """Count and log a connection's end. Idempotent: set-up and session may both find that it is over."""
        if self.connections.pop(connection.id, None) is None:
            return
        self.ended[reason] += 1
        session = connection.session
        connection.session = None  # it knows this connection: no cycle for the collector
        if session is None:
            connection.socket.close()
        bytes_in = session.received if session else 0
        bytes_out = session.sent if session else 0
        self.bytes_in += bytes_in
        self.bytes_out += bytes_out
        if not self.connections:
            self._empty.set()
        if self._backing_off is None:
            self._resume()
        if self._log_connections:
            line = {
                "id": connection.id,
                "client": _text(connection.client),
                "service": None,
                "bytes_in": bytes_in,
                "bytes_out": bytes_out,
                "duration": round(time.monotonic() - connection.opened, 6),
                **self._plane.unknown,
                **connection.facts,
                **(session.facts() if session else {}),
                "reason": reason.value,
            }
            if error:
                line["error"] = error
            if connection.peer != connection.client:
                line["peer"] = _text(connection.peer)
            self._log.info("connection_closed", **line)


def _text(address: Address | None) -> str:
    """For the log. A client of a Unix socket has no address."""
    if address is None:
        return "unix"
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
