"""The service: methods by name, where they are served, and how serving ends."""

import asyncio
import contextlib
import inspect
import signal
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import structlog
import uvloop

from tcpgw.address import Address
from tcpgw.errors import TcpgwError
from tcpgw.observe import logs
from tcpgw.service.connection import Connection, Method, Shared
from tcpgw.wire.messages import MAX_FRAME

log = structlog.get_logger()

F = TypeVar("F", bound=Callable[..., Any])

# A burst of reconnecting clients; the kernel cuts it to net.core.somaxconn.
_BACKLOG = 1024
# How often within stall_timeout the connections are looked at.
_CHECKS = 4
# Seconds that a cancelled method has for its clean-up.
_CLEANUP = 1.0


class ListenError(TcpgwError):
    """The address cannot be listened on: taken, not this host's, or not permitted."""

    blame = "operator"


class Service:
    """Functions, served by name. Async ones run on the loop, all others in a pool of `threads` threads
    (Python's default: four more than there are CPUs, at most 32).

    Each gets the request's parameters; what it returns is the answer, and nothing is for a notification. The
    method `tcpgw.ping`, if not among `methods`, answers "pong" without waiting for anything, for health
    checks. A request whose client is seen to be gone is cancelled, unless it runs in a thread; a
    notification is not.

    At most `per_connection` requests of a connection are in work or wait to be written, at most
    `max_inflight` methods run in all; beyond, no more is read. `max_frame` bounds messages in bytes, both
    ways. A connection on which a frame, or an unread answer, has not moved for `stall_timeout` seconds is
    cut. A stop waits `stop_timeout` seconds for what is in work.
    """

    def __init__(
        self,
        methods: Mapping[str, Callable[..., Any]] | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        threads: int | None = None,
        per_connection: int = 256,
        max_inflight: int = 1024,
        max_frame: int = MAX_FRAME,
        stall_timeout: float = 30.0,
        stop_timeout: float = 30.0,
    ) -> None:
        if min(per_connection, max_inflight, max_frame) < 1 or min(stall_timeout, stop_timeout) <= 0:
            raise ValueError("limits and time-outs must be above 0")
        self._methods = dict(methods or {})
        self._tls = tls
        self._threads = threads
        self._per_connection = per_connection
        self._max_inflight = max_inflight
        self._max_frame = max_frame
        self._stall_timeout = stall_timeout
        self._stop_timeout = stop_timeout

    def method(self, function: F) -> F:
        """Serve a function under its own name, as a decorator. Raises ValueError where there is one already.

        For other names, give `methods`.
        """
        name = function.__name__
        if name in self._methods:
            raise ValueError(f"there is a method {name!r} already")
        self._methods[name] = function
        return function

    def run(self, address: str) -> None:
        """Serve until SIGTERM or SIGINT, then stop as `serving` does; a second signal cuts that short.

        Logs as the gateway does, unless structlog is configured already. To be called in the main thread.
        Raises ValueError and ListenError.
        """
        ours = contextlib.nullcontext() if structlog.is_configured() else logs.configured()
        with ours, contextlib.suppress(asyncio.CancelledError):
            uvloop.run(self._run(address))

    async def _run(self, address: str) -> None:
        loop = asyncio.get_running_loop()
        main = asyncio.current_task(loop)
        asked = asyncio.Event()

        def end() -> None:
            if asked.is_set() and main is not None:
                main.cancel()
            asked.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end)
        async with self.serving(address) as bound:
            log.info("service_ready", address=bound, methods=sorted(self._methods))
            await asked.wait()
            log.info("service_stopping", seconds=self._stop_timeout)
        log.info("service_stopped")

    @asynccontextmanager
    async def serving(self, address: str) -> AsyncIterator[str]:
        """Serve for as long as the context lasts, and give the address, with the port that 0 became.

        At the end no connection is accepted and no request begun any more (those that come are answered with
        `overloaded`), what is in work is finished and answered, for at most `stop_timeout` seconds, and then
        cancelled; a thread cannot be. Raises ValueError and ListenError.
        """
        where = Address.parse(address)
        with self._pool() as pool:
            shared = Shared(
                methods={name: _method(function, pool) for name, function in self._methods.items()},
                max_frame=self._max_frame,
                per_connection=self._per_connection,
                free=self._max_inflight,
                stall_timeout=self._stall_timeout,
            )
            server = await self._listen(where, shared)
            checks = asyncio.create_task(_check(shared))
            try:
                yield str(_bound(where, server))
            finally:
                server.close()
                if where.path:
                    Path(where.path).unlink(missing_ok=True)  # noqa: ASYNC240 - one entry of a directory
                try:
                    await self._stop(shared)
                finally:
                    checks.cancel()

    @contextlib.contextmanager
    def _pool(self) -> Iterator[ThreadPoolExecutor]:
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="tcpgw-service")
        try:
            yield pool
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    async def _listen(self, where: Address, shared: Shared) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        options: dict[str, Any] = {"backlog": _BACKLOG}
        if self._tls is not None:
            options |= {"ssl": self._tls, "ssl_shutdown_timeout": self._stall_timeout}
        try:
            if where.path:
                return await loop.create_unix_server(lambda: Connection(shared), where.path, **options)
            return await loop.create_server(lambda: Connection(shared), where.host, where.port, **options)
        except OSError as exc:
            raise ListenError(f"cannot listen on {where}: {exc.strerror or exc}") from exc

    async def _stop(self, shared: Shared) -> None:
        shared.stopping = True
        shared.waiting.clear()  # what these hold is refused, as all that comes now
        for connection in list(shared.connections):
            connection.proceed()
        try:
            async with asyncio.timeout(self._stop_timeout):
                while shared.connections or shared.tasks:
                    shared.changed.clear()
                    await shared.changed.wait()
        except TimeoutError:
            log.warning("stop_cut_short", seconds=self._stop_timeout, in_work=len(shared.tasks))
        finally:
            for connection in list(shared.connections):
                connection.abort("the service stopped")
            for task in shared.tasks:
                task.cancel()
            if shared.tasks:
                await asyncio.wait(shared.tasks, timeout=_CLEANUP)


async def _check(shared: Shared) -> None:
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(shared.stall_timeout / _CHECKS)
        for connection in list(shared.connections):
            connection.check(loop.time())


def _method(function: Callable[..., Any], pool: Executor) -> Method:
    """Make an async function of any."""
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
        return function

    def guarded(*params: Any) -> Any:
        try:
            return function(*params)
        except StopIteration as exc:  # which a future cannot hold
            raise RuntimeError("StopIteration") from exc

    async def threaded(*params: Any) -> Any:
        result = await asyncio.get_running_loop().run_in_executor(pool, guarded, *params)
        return await result if inspect.isawaitable(result) else result

    return threaded


def _bound(where: Address, server: asyncio.Server) -> Address:
    return where if where.path else Address(*server.sockets[0].getsockname()[:2])
