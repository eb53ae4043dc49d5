"""The client: calls over one connection, which is made anew when a call needs it."""

import asyncio
import math
import random
import ssl
from itertools import count
from types import TracebackType
from typing import Any, Self, TypedDict

from tcpgw.address import Address
from tcpgw.client.connection import Connection, ConnectionLostError, UnsentError
from tcpgw.errors import Code, ConnectError, TcpgwError
from tcpgw.wire.codec import Kind
from tcpgw.wire.messages import MAX_FRAME, RpcError, pack_frame

TIMEOUT = 60.0
"""Seconds: as of a request that the gateway has no rule for."""

# Calls that may wait for one of `max_inflight`, for each of these. Beyond, more waiting is only more late.
_WAITING = 16
# Seconds between tries to connect: doubled each time, less up to half of it, so that clients that lost the
# same gateway do not come back as one.
_FIRST_DELAY, _LONGEST_DELAY = 0.05, 1.0
# Seconds that a close may take to write what waits; TLS has its own goodbye, which not every peer answers.
_CLOSE = 5.0
_TLS_SHUTDOWN = 1.0
_AUTH = "tcpgw.auth"


class CallTimeoutError(TcpgwError, TimeoutError):
    """No answer came in time. The call may have been done, or be done yet; an answer is dropped."""

    blame = "instance"


class Options(TypedDict, total=False):
    """The options of Client, which says what they mean."""

    tls: ssl.SSLContext | bool
    server_name: str
    token: str
    connect_timeout: float
    max_inflight: int
    max_frame: int


class Client:
    """A client of one address; calls run concurrently over one connection.

    `async with` connects at once, in one try, so that a wrong address shows there. After a loss the next call
    connects, in as many tries as `connect_timeout` (seconds, all of them together) has room for.

    `tls`: True trusts the system's authorities; a context says otherwise. `server_name` is the name that the
    certificate must be for, by default the address's host. `token` is presented on each connection before
    anything else, as the request `tcpgw.auth` with it as parameter; a server that does not know that method
    refuses it. It is sent as it is: use TLS with it. At most `max_inflight` calls are with the server at a
    time. `max_frame` bounds each message in bytes, both ways.

    Raises ValueError for an address or an option that cannot be. Belongs to one event loop.
    """

    def __init__(
        self,
        address: str,
        *,
        tls: ssl.SSLContext | bool = False,
        server_name: str = "",
        token: str = "",
        connect_timeout: float = 5.0,
        max_inflight: int = 1024,
        max_frame: int = MAX_FRAME,
    ) -> None:
        self._address = Address.parse(address)
        if max_inflight < 1 or max_frame < 1:
            raise ValueError("max_inflight and max_frame must be 1 or more")
        self._tls = tls
        self._server_name = server_name or self._address.host
        self._token = token
        self._connect_timeout = _seconds("connect_timeout", connect_timeout)
        self._max_inflight = max_inflight
        self._max_frame = max_frame
        self._slots = asyncio.Semaphore(max_inflight)
        self._calls = 0  # in flight and waiting
        self._numbers = count(1)
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[Connection] | None = None
        self._failures = 0  # connections since the last one that carried an answer
        self._closed = False

    async def __aenter__(self) -> Self:
        try:
            await self._connected(patient=False)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def call(self, method: str, *params: Any, timeout: float = TIMEOUT) -> Any:  # noqa: ASYNC109
        """Call a method and return its result. `timeout` is in seconds, for everything: the queue, connecting
        and the answer.

        The server does not learn of it: where the gateway reads a deadline from the parameters, put it there.
        Raises what the package names. A call that raises or is cancelled leaves nothing behind here; once it
        is sent, the server may do the work all the same. What could not be written before a connection was
        lost is sent on the next one; what was written is never sent again.
        """
        seconds = _seconds("timeout", timeout)
        number = next(self._numbers) & 0xFFFFFFFF
        frame = pack_frame((Kind.REQUEST, number, method, params), self._max_frame)
        if self._calls >= self._max_inflight * (1 + _WAITING):
            waiting = self._calls - self._max_inflight
            raise RpcError(Code.OVERLOADED, f"{waiting} calls of this client wait already (max_inflight)")
        self._calls += 1
        try:
            async with asyncio.timeout(seconds), self._slots:
                return await self._exchange(number, frame)
        except TimeoutError:
            raise CallTimeoutError(f"{method} had no answer from {self._address} in {seconds:g} s") from None
        finally:
            self._calls -= 1

    async def notify(self, method: str, *params: Any, timeout: float = TIMEOUT) -> None:  # noqa: ASYNC109
        """Send a notification, which nobody answers: it returns when the kernel or its queue has it.

        Raises as `call` does, except RpcError.
        """
        seconds = _seconds("timeout", timeout)
        frame = pack_frame((Kind.NOTIFY, method, params), self._max_frame)
        try:
            async with asyncio.timeout(seconds):
                connection = await self._with_room()
        except TimeoutError:
            raise CallTimeoutError(
                f"{method} could not be sent to {self._address} in {seconds:g} s"
            ) from None
        connection.notify(frame)

    async def close(self) -> None:
        """Write what waits and close. Calls in flight raise ConnectionLostError, later ones ConnectError.

        Takes at most 5 seconds. Calling it again does nothing.
        """
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait((self._connecting,))
        if self._connection is not None:
            await self._connection.close(_CLOSE)

    async def _exchange(self, number: int, frame: bytes) -> Any:
        while True:
            connection = await self._with_room()
            try:
                return await connection.request(number, frame)
            except UnsentError:
                continue
            finally:
                connection.forget(number)

    async def _with_room(self) -> Connection:
        while True:
            connection = await self._connected()
            await connection.room()
            if connection.usable:
                return connection
            if refusal := connection.refusal:
                raise refusal

    # ---- connecting ----

    async def _connected(self, *, patient: bool = True) -> Connection:
        """Return the connection, or wait for the one task that makes it. Raises ConnectError or RpcError."""
        connection = self._connection
        if connection is not None and connection.usable:
            return connection
        if self._closed:
            raise ConnectError(f"this client of {self._address} is closed")
        if connection is not None:
            self._connection = None
            self._failures = 0 if connection.answered else self._failures + 1
            if refusal := connection.refusal:
                raise refusal
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect(patient=patient))
            self._connecting.add_done_callback(self._made)
        making = self._connecting
        # Not `await making`: who is cancelled here must not cancel it for the others.
        await asyncio.wait((making,))
        if making.cancelled():
            raise ConnectError(f"this client of {self._address} was closed")
        return making.result()

    def _made(self, making: asyncio.Task[Connection]) -> None:
        self._connecting = None
        # Asking for the exception also marks it as seen: all who waited for it may have gone.
        if not making.cancelled() and making.exception() is None:
            self._connection = making.result()

    async def _connect(self, *, patient: bool) -> Connection:
        tries = 0
        failure = "no answer"
        try:
            async with asyncio.timeout(self._connect_timeout):
                while patient or not tries:
                    await asyncio.sleep(self._delay())
                    tries += 1
                    try:
                        return await self._open()
                    except RpcError:
                        self._failures += 1
                        raise
                    except (OSError, ConnectionLostError) as exc:
                        self._failures += 1
                        failure = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
        except TimeoutError:
            failure = f"{failure} within {self._connect_timeout:g} s"
        raise ConnectError(f"cannot connect to {self._address}: {failure} (tries: {tries})", tries=tries)

    def _delay(self) -> float:
        if not self._failures:
            return 0
        longest = min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** min(self._failures - 1, 10))
        return random.uniform(longest / 2, longest)

    async def _open(self) -> Connection:
        """Make one try. Raises OSError, ConnectionLostError, and RpcError where the token is refused."""
        loop = asyncio.get_running_loop()
        connection = Connection(str(self._address), self._max_frame)
        tls: dict[str, Any] = {}
        if self._tls is not False:
            if self._tls is True:  # reads the system's authorities, which takes long enough to notice
                self._tls = await asyncio.to_thread(ssl.create_default_context)
            tls = {
                "ssl": self._tls,
                "server_hostname": self._server_name,
                "ssl_shutdown_timeout": _TLS_SHUTDOWN,
            }
        if self._address.path:
            await loop.create_unix_connection(lambda: connection, self._address.path, **tls)
        else:
            await loop.create_connection(lambda: connection, self._address.host, self._address.port, **tls)
        try:
            if self._token:
                frame = pack_frame((Kind.REQUEST, 0, _AUTH, (self._token,)), self._max_frame)
                await connection.request(0, frame)
                connection.answered = False  # a server that takes tokens and no calls is of no use either
        except BaseException:
            connection.abort()
            raise
        return connection


connect = Client
"""Reads as what it does: `async with connect("127.0.0.1:9000") as client`."""


def _seconds(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a number of seconds above 0, not {value!r}")
    return float(value)
