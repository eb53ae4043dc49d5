"""From a key to a connected instance: the candidates, one after another."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from tcpgw.endpoints import Endpoint
from tcpgw.errors import ConnectError, OverloadError
from tcpgw.pool import Pool
from tcpgw.relay.circuit import Circuit, Search
from tcpgw.relay.dial import InstanceTls, dial
from tcpgw.relay.outcomes import Kind, Outcomes, blames, is_our_own
from tcpgw.relay.session import Client
from tcpgw.relay.stream import Side
from tcpgw.relay.tracing import Trace, key_told, told_candidates

Hash = Callable[[Client], int]
"""The key of a client's connection, as a 32-bit position."""


class NoEndpointError(ConnectError):
    """The service has no endpoint that takes new connections."""


class Connected(NamedTuple):
    """`tries` counts the candidates asked, `seconds` is the time that the last of them took to answer.

    `position` is that of the client's key.
    """

    endpoint: Endpoint
    side: Side
    seconds: float
    tries: int
    position: int


class Upstream:
    """A service as the relay sees it: where its connections go and how they are made.

    `outcomes` and `circuit` are those of the service, which all of its Upstreams share. `first_byte_timeout`
    is how many seconds an instance may say nothing at all to a client that has; None: for ever. `key` is what
    `hash_` hashes, as the configuration calls it.
    """

    def __init__(
        self,
        pool: Pool,
        hash_: Hash,
        *,
        timeout: float,
        tries: int,
        outcomes: Outcomes,
        circuit: Circuit,
        send_proxy: Literal["v1", "v2"] | None = None,
        tls: InstanceTls | None = None,
        first_byte_timeout: float | None = None,
        key: str = "",
    ) -> None:
        self.pool = pool
        self.outcomes = outcomes
        self.circuit = circuit
        self.first_byte_timeout = first_byte_timeout
        self.facts: Mapping[str, object] = {"service": pool.service}  # for closing lines
        self.send_proxy = send_proxy
        self._tls = tls
        self._hash = hash_
        self._key = key
        self._timeout = timeout
        self._tries = tries
        # Who is connecting, and until when; the oldest first, since the time-out is the same for all.
        self._deadlines: dict[asyncio.Task[object], float] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def service(self) -> str:
        return self.pool.service

    async def connect(
        self,
        client: Client,
        new_side: Callable[[], Side],
        first: bytes = b"",
        trace: Trace | None = None,
    ) -> Connected:
        """Connect to the first candidate that answers, and count it as loaded until `release`.

        `first` is sent to it before anything else, `trace` is told of each step. Each try has a side of its
        own, so that what a given-up one still reports reaches nobody. Raises NoEndpointError, ConnectError
        when every try failed, or OverloadError where a limit or something of the gateway's own is in the way;
        then, and when cancelled, nothing is left open or counted.
        """
        search = Search(self.pool, self._hash(client), trace)
        if trace is not None:
            key = key_told(self._key, search.position, client.address)
            search.candidates = told_candidates(trace, self.pool, search.position, search.candidates, key)
        endpoint = await self._place(search)
        if endpoint is None:
            raise NoEndpointError(f"service {self.service} has no endpoint that takes connections")
        failures: list[str] = []
        opening = client.alpn, first
        connected = await self._try(endpoint, new_side, search, failures, opening)
        return connected or await self._retry(new_side, search, failures, opening)

    async def _retry(
        self, new_side: Callable[[], Side], search: Search, failures: list[str], opening: tuple[str, bytes]
    ) -> Connected:
        """Go on after the first try, within the budget that is for the retries of all clients."""
        retries = self.circuit.retries
        error = ""
        while len(failures) < self._tries and (endpoint := await self._place(search)) is not None:
            if not retries.begin(self.pool.loads.total):
                self.release(endpoint)
                error = "; the retry budget is spent (retry_budget)"
                break
            self.outcomes.retried += 1
            try:
                if connected := await self._try(endpoint, new_side, search, failures, opening):
                    return connected
            finally:
                retries.end()
        raise ConnectError("; ".join(failures) + error, tries=len(failures))

    async def _place(self, search: Search) -> Endpoint | None:
        endpoint = self.circuit.take(search)
        if endpoint is None and search.full is not None:
            return await self.circuit.wait(search)
        return endpoint

    async def _try(
        self,
        endpoint: Endpoint,
        new_side: Callable[[], Side],
        search: Search,
        failures: list[str],
        opening: tuple[str, bytes],
    ) -> Connected | None:
        """Connect there, and release it where that fails."""
        began = time.monotonic()
        if search.trace is not None:
            search.trace.add("connecting", endpoint=endpoint, tries=len(failures) + 1)
        try:
            side = await self._dial(endpoint, new_side, opening)
        except (OSError, TimeoutError) as exc:
            self.release(endpoint)
            if search.trace is not None:
                took = round(time.monotonic() - began, 6)
                search.trace.add(
                    "connect_failed", endpoint=endpoint, seconds=took, error=_why(exc, self._timeout)
                )
            if is_our_own(exc):
                raise OverloadError(f"cannot open a connection: {exc.strerror}") from exc
            outcome = self.outcomes[endpoint]
            outcome.picked += 1
            outcome.failed += 1
            if blames(exc):
                self.outcomes.fail(endpoint, Kind.CONNECT)
            # The whole timeout, however fast the refusal: a dead instance must not look quick.
            self.pool.loads.observe(endpoint, self._timeout)
            failures.append(f"{endpoint}: {_why(exc, self._timeout)}")
            return None
        except BaseException:
            self.release(endpoint)
            raise
        seconds = time.monotonic() - began
        self.pool.loads.observe(endpoint, seconds)
        self.outcomes.connecting.add(seconds)
        outcome = self.outcomes[endpoint]
        outcome.picked += 1
        outcome.connected += 1
        if search.trace is not None:
            search.trace.add("connected", endpoint=endpoint, seconds=round(seconds, 6))
        return Connected(endpoint, side, seconds, len(failures) + 1, search.position)

    async def _dial(
        self, endpoint: Endpoint, new_side: Callable[[], Side], opening: tuple[str, bytes]
    ) -> Side:
        """Connect within the time-out, or raise TimeoutError.

        One timer serves all dials of this upstream: `asyncio.timeout` makes one for each, which costs 6 µs or
        4 % of a short connection.
        """
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None  # noqa: S101 - a coroutine that runs has one
        self._deadlines[task] = loop.time() + self._timeout
        if self._timer is None:
            self._timer = loop.call_later(self._timeout, self._expire, loop)
        try:
            return await dial(loop, new_side, endpoint, self._tls, *opening)
        except asyncio.CancelledError:
            if task not in self._deadlines and not task.uncancel():
                raise TimeoutError from None
            raise
        finally:
            self._deadlines.pop(task, None)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        for task, deadline in list(self._deadlines.items()):
            if deadline > now:
                self._timer = loop.call_later(deadline - now, self._expire, loop)
                return
            del self._deadlines[task]
            task.cancel()

    def release(self, endpoint: Endpoint) -> None:
        """A connection that `connect` made has ended. Call once for each."""
        self.circuit.release(endpoint)


def _why(exc: Exception, timeout: float) -> str:
    if isinstance(exc, TimeoutError) and not exc.args:
        return f"no answer within {timeout:g} s"
    return (isinstance(exc, OSError) and exc.strerror) or str(exc)
