"""The client for programs without asyncio."""

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import uvloop

from tcpgw.client.client import TIMEOUT, Client, Options
from tcpgw.errors import ConnectError

T = TypeVar("T")


class SyncClient:
    """A Client whose loop runs in a thread of its own; any number of threads may call at a time.

    Connects when it is made, and raises ConnectError then. Close it, or use it as a context. Not to be used
    after a fork.
    """

    def __init__(self, address: str, **options: Unpack[Options]) -> None:
        self._client = Client(address, **options)
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._loop = self._runner.get_loop()
        self._ending = asyncio.Event()
        self._lock = threading.Lock()  # nothing may be given to the loop after its end
        self._ended = False
        self._thread = threading.Thread(target=self._serve, name="tcpgw-client", daemon=True)
        self._thread.start()
        try:
            self._run(self._client.__aenter__)
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def call(self, method: str, *params: Any, timeout: float = TIMEOUT) -> Any:
        """As Client.call."""
        return self._run(lambda: self._client.call(method, *params, timeout=timeout))

    def notify(self, method: str, *params: Any, timeout: float = TIMEOUT) -> None:
        """As Client.notify."""
        self._run(lambda: self._client.notify(method, *params, timeout=timeout))

    def close(self) -> None:
        """As Client.close, from any thread."""
        with contextlib.suppress(ConnectError):  # another thread was first
            self._run(self._client.close)
        self._end()

    def _serve(self) -> None:
        with self._runner:
            self._runner.run(self._ending.wait())

    def _end(self) -> None:
        with self._lock:
            if not self._ended:
                self._ended = True
                self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join()

    def _run(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        with self._lock:
            if self._ended:
                raise ConnectError("this client is closed")
            future = asyncio.run_coroutine_threadsafe(make(), self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise ConnectError("this client was closed") from None
        except BaseException:  # an interrupt: the call must not go on behind the program's back
            future.cancel()
            raise
