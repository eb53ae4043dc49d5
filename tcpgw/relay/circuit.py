"""How many connections a service's instances may be given, who waits for one, and how much may be retried.

The place of a connection that ends is handed to the client that waits longest for it, before anybody who
comes later can see that there is room: so nobody is overtaken, and nobody is woken in vain. Which one may be
handed to whom is the policy's to say: where load may move keys, any to anybody; else a client waits for the
endpoint that its key belongs to, and has no use for another.
"""

import asyncio
from itertools import islice

from tcpgw.balancing.budgets import RetryBudget
from tcpgw.endpoints import Endpoint
from tcpgw.errors import OverloadError
from tcpgw.pool import Pool
from tcpgw.relay.tracing import Trace

# Clients that a place is offered to, the longest waiting ones first. Mostly the first takes it; but an
# endpoint may be closed to some keys, or have failed one of them before.
_OFFERED = 8


class Search:
    """A client's way through its candidates, each of which it tries once at most.

    `full` is the first that it would have tried if there had been room. `trace` is told of its steps.
    """

    __slots__ = ("candidates", "full", "position", "trace", "tried")

    def __init__(self, pool: Pool, position: int, trace: Trace | None = None) -> None:
        self.position = position
        self.trace = trace
        self.tried: list[Endpoint] = []
        self.full: Endpoint | None = None
        self.candidates = pool.candidates(position)  # that it was not shown yet

    def restart(self, pool: Pool) -> None:
        """Look at all again that were not tried."""
        self.full = None
        self.candidates = pool.candidates(self.position)


class _Waiter:
    __slots__ = ("future", "search")

    def __init__(self, search: Search) -> None:
        self.search = search
        # The endpoint with a place for it; None: it is turned away.
        self.future: asyncio.Future[Endpoint | None] = asyncio.get_running_loop().create_future()


class Circuit:
    """The limits of a service's connections, for all Upstreams of it in this process: one for each Pool.

    An endpoint has room while it has fewer than `max_connections` (None: always) from here. At most `queue`
    clients wait, each for at most `queue_timeout` seconds. Used in one running event loop.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        retry_budget: float = 0.2,
        max_connections: int | None = None,
        queue: int = 1024,
        queue_timeout: float = 1.0,
    ) -> None:
        self.retries = RetryBudget(retry_budget)
        self.waited = 0  # clients that had to
        self.refused = 0  # of whom there were too many
        self.expired = 0  # that waited too long
        self.turned_away = 0  # by `shed`
        self._retries_refused = 0  # by earlier budgets
        self._share = retry_budget
        self._most = max_connections
        self._queue = queue
        self._queue_timeout = queue_timeout
        self._pool = pool
        # Not what `pool.loads` says: requests of rpc listeners count there as well.
        self._open: dict[Endpoint, int] = {}
        self._waiting: dict[_Waiter, Endpoint | None] = {}  # in the order of their coming
        # The same, by the endpoint that they wait for; None: for any.
        self._lines: dict[Endpoint | None, dict[_Waiter, None]] = {}
        pool.subscribe(self._look)

    def change(
        self, *, retry_budget: float, max_connections: int | None, queue: int, queue_timeout: float
    ) -> None:
        """Take other limits. Who waits already is not turned away by them; what is connected stays."""
        if retry_budget != self._share:
            self._retries_refused += self.retries.refused
            self.retries = RetryBudget(retry_budget)  # those under way end in the old one
        self._share = retry_budget
        self._most = max_connections
        self._queue = queue
        self._queue_timeout = queue_timeout
        self._look()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def status(self) -> dict[str, int]:
        """Who waits, and what became of clients and retries since the start."""
        return {
            "waiting": len(self._waiting),
            "waited": self.waited,
            "refused": self.refused,
            "expired": self.expired,
            "turned_away": self.turned_away,
            "retries_refused": self._retries_refused + self.retries.refused,
        }

    # ---- places ----

    def take(self, search: Search) -> Endpoint | None:
        """Take a place at the next candidate with room, to be given back by `release`; None without any.

        Where load may not move a key, one that is full is not passed over.
        """
        for endpoint in search.candidates:
            if endpoint in search.tried:
                continue
            connections = self._open.get(endpoint, 0)
            if self._most is None or connections < self._most:
                search.tried.append(endpoint)
                self._open[endpoint] = connections + 1
                self._pool.loads.begin(endpoint)
                return endpoint
            search.full = search.full or endpoint
            if not self._pool.spills:
                break
        return None

    def release(self, endpoint: Endpoint) -> None:
        """Give a place back: to who waits longest for it. Call once for each."""
        self._pool.loads.end(endpoint)
        connections = self._open.pop(endpoint) - 1
        if connections:
            self._open[endpoint] = connections
        if self._waiting:
            self._hand_on(endpoint)

    async def wait(self, search: Search) -> Endpoint:
        """Wait until there is a place at a candidate, after `take` has said that one is `full`; take it.

        Raises OverloadError. Then, and when cancelled, what it was given has gone on to the next.
        """
        search.restart(self._pool)  # something may have ended while others were tried
        endpoint = self.take(search)
        if endpoint is not None:
            return endpoint
        waiter = self._enqueue(search)
        if search.trace is not None:
            search.trace.add("waiting", endpoint=search.full)
        most, seconds = self._most, self._queue_timeout
        try:
            async with asyncio.timeout(seconds):
                endpoint = await waiter.future
        except BaseException as exc:
            self._leave(waiter)
            if isinstance(exc, TimeoutError):
                self.expired += 1
                raise OverloadError(
                    f"service {self._pool.service}: no endpoint for this client had fewer than {most} "
                    f"connections (max_connections) within {seconds:g} s (queue_timeout)"
                ) from None
            raise
        if endpoint is None:
            raise OverloadError("the gateway is overloaded")
        return endpoint

    def shed(self, count: int) -> int:
        """Turn away those that wait longest, at most `count`. Returns how many."""
        oldest = list(islice((one for one in self._waiting if not one.future.done()), count))
        for waiter in oldest:
            self._forget(waiter)
            waiter.future.set_result(None)
        self.turned_away += len(oldest)
        return len(oldest)

    # ---- who waits ----

    def _enqueue(self, search: Search) -> _Waiter:
        if len(self._waiting) >= self._queue:
            self.refused += 1
            raise OverloadError(
                f"service {self._pool.service}: no endpoint for this client has fewer than {self._most} "
                f"connections (max_connections), and {len(self._waiting)} clients wait already (queue)"
            )
        self.waited += 1
        waiter = _Waiter(search)
        self._add(waiter)
        return waiter

    def _add(self, waiter: _Waiter) -> None:
        wanted = None if self._pool.spills else waiter.search.full
        self._waiting[waiter] = wanted
        self._lines.setdefault(wanted, {})[waiter] = None

    def _forget(self, waiter: _Waiter) -> None:
        """Idempotent."""
        if waiter not in self._waiting:
            return
        wanted = self._waiting.pop(waiter)
        line = self._lines[wanted]
        del line[waiter]
        if not line:
            del self._lines[wanted]

    def _leave(self, waiter: _Waiter) -> None:
        """It waits no more; what was just handed to it goes on to the next."""
        self._forget(waiter)
        future = waiter.future
        given = future.result() if future.done() and not future.cancelled() else None
        if given is not None:
            self.release(given)

    def _hand_on(self, endpoint: Endpoint) -> None:
        for wanted in (endpoint, None):
            line = (waiter for waiter in self._lines.get(wanted, ()) if not waiter.future.done())
            for waiter in islice(line, _OFFERED):
                if self._offer(waiter):
                    return

    def _offer(self, waiter: _Waiter) -> bool:
        """Hand it a place if there is one for it. Where that succeeds, `_lines` have changed."""
        waiter.search.restart(self._pool)
        endpoint = self.take(waiter.search)
        if endpoint is None:
            return False
        self._forget(waiter)
        waiter.future.set_result(endpoint)
        return True

    def _look(self) -> None:
        """Endpoints or limits are other ones: sort anew who waits for what, and hand out what there is."""
        waiting = [waiter for waiter in self._waiting if not waiter.future.done()]
        self._waiting, self._lines = {}, {}
        in_vain = 0
        for waiter in waiting:
            # Where any may have any place, what the first ones have no use for is nobody's.
            offered = not self._pool.spills or in_vain < _OFFERED
            if not offered or not self._offer(waiter):
                in_vain += offered
                self._add(waiter)
