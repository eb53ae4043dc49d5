"""What one source, or one subject, may use: connections, new ones per second, bytes per second.

Connections that have their limits in common have one *name*. What is known of a name is forgotten when it is
worth nothing: it has no connection, and its buckets are full again. So names that come and go leave nothing
behind, and what a flood of them can cost is bounded. Each name has buckets of its own, and a refusal takes
nothing from any: nobody is worse off for what another one does.

The time is that of any one monotonic clock, in seconds. Where it stands still or is late, nothing is filled.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from math import ceil, inf
from socket import AF_INET, AF_INET6, inet_ntop

from tcpgw.access.cidr import packed

_LEAST_BYTES = 64 * 1024  # one read of a relay: less would put each one of them into debt


@dataclass(frozen=True, slots=True)
class Quota:
    """What each name may use; None: without a limit. All rates are above 0.

    `burst` is how many connections may come at once after a pause, by default what comes in a second; bytes
    may be those of a second at once, and at least 64 KiB.
    """

    connections: int | None = None
    new_per_second: float | None = None
    burst: int | None = None
    bytes_in: float | None = None  # per second
    bytes_out: float | None = None


class Limit(StrEnum):
    """Which one refused a connection."""

    CONNECTIONS = "connections"
    RATE = "rate"


class Rate:
    """The terms of many buckets, in tokens: changed in one place when they change.

    With infinite ones a bucket that somebody still has takes anything.
    """

    __slots__ = ("burst", "per_second")

    def __init__(self) -> None:
        self.per_second = inf
        self.burst = inf

    def become(self, per_second: float | None, burst: float) -> None:
        """Take new terms; None: no limit."""
        self.per_second, self.burst = (inf, inf) if per_second is None else (per_second, burst)


class Bucket:
    """A token bucket: it begins full, and is filled by `rate.per_second` up to `rate.burst`.

    It counts tokens. The moment at which it is full would be one number instead of two, but after adding up
    the time of each token a burst of n might be n - 1.
    """

    __slots__ = ("_at", "_rate", "_tokens")

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._tokens = 0.0
        self._at = -inf  # so it is full whenever it is first looked at

    def take(self, n: float, now: float) -> float:
        """Take `n` tokens, there or not. Return in how many seconds the debt is paid; 0.0: there is none."""
        self._fill(now)
        self._tokens -= n
        return 0.0 if self._tokens >= 0.0 else -self._tokens / self._rate.per_second

    def spend(self, now: float) -> bool:
        """Take one token if it is there, else nothing."""
        self._fill(now)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def full(self, now: float) -> bool:
        """Whether it is as good as a new one."""
        self._fill(now)
        return self._tokens >= self._rate.burst

    def _fill(self, now: float) -> None:
        if now > self._at:
            rate = self._rate
            self._tokens = min(rate.burst, self._tokens + (now - self._at) * rate.per_second)
            self._at = now


class _Account:
    """What one name uses. A bucket is None where there is no limit."""

    __slots__ = ("bytes_in", "bytes_out", "connections", "name", "new")

    def __init__(self, name: str, rates: tuple[Rate, Rate, Rate]) -> None:
        self.name = name
        self.connections = 0
        self.new: Bucket | None = None
        self.bytes_in: Bucket | None = None
        self.bytes_out: Bucket | None = None
        self.fit(rates)

    def fit(self, rates: tuple[Rate, Rate, Rate]) -> None:
        """Have a bucket for each rate that is a limit, and none else."""
        new, bytes_in, bytes_out = rates
        self.new = _fitting(self.new, new)
        self.bytes_in = _fitting(self.bytes_in, bytes_in)
        self.bytes_out = _fitting(self.bytes_out, bytes_out)

    def worthless(self, now: float) -> bool:
        """Whether, without a connection, a new one would do as well."""
        buckets = (self.new, self.bytes_in, self.bytes_out)
        return all(bucket is None or bucket.full(now) for bucket in buckets)


def _fitting(bucket: Bucket | None, rate: Rate) -> Bucket | None:
    return None if rate.burst == inf else bucket or Bucket(rate)


class Usage:
    """That a connection was admitted; its end is told by `leave`.

    The buckets are those of all connections of its name; one that is kept over a `Limiter.change` goes by the
    new terms, but only who asks again hears of a limit where there was none. After `leave` they are None.
    """

    __slots__ = ("_account", "_limiter")

    def __init__(self, limiter: "Limiter", account: _Account) -> None:
        self._limiter = limiter
        self._account: _Account | None = account

    @property
    def bytes_in(self) -> Bucket | None:
        """What comes from the client; None: without a limit."""
        return None if self._account is None else self._account.bytes_in

    @property
    def bytes_out(self) -> Bucket | None:
        """What goes to the client; None: without a limit."""
        return None if self._account is None else self._account.bytes_out

    def leave(self, now: float) -> None:
        """Give the connection back. Idempotent."""
        account, self._account = self._account, None
        if account is not None:
            self._limiter.leave(account.name, now)


class Limiter:
    """Counts what each name uses, and says no to what is beyond `quota`.

    At most `most` names are remembered, or as many as have connections: beyond that, of those without one the
    longest idle is forgotten first, and has full buckets when it comes again.

    Connections in other processes count too, as last heard: `hear`. What those are to know of this one is
    `news`: of who has a `share` of the limit here (see `divide`), and of who has connections there. `heard`
    is called when there are the first news since they were taken.
    """

    def __init__(self, quota: Quota, most: int) -> None:
        self.heard: Callable[[], None] = _nothing
        self._elsewhere: dict[str, int] = {}
        self._most = most
        self._rates = Rate(), Rate(), Rate()
        self._busy: dict[str, _Account] = {}  # those with connections
        # Those without, who was heard of last at the end. (The first of a plain dict is not found in O(1).)
        self._idle: OrderedDict[str, _Account] = OrderedDict()
        self._share = inf
        self._told: dict[str, int] = {}  # what others know, once they have the news
        self._news: dict[str, int] = {}
        self.change(quota)

    @property
    def remembered(self) -> int:
        """How many names there are accounts of."""
        return len(self._busy) + len(self._idle)

    def change(self, quota: Quota) -> None:
        """Go by another quota from now on. Who is connected stays, and counts; debts stay too."""
        self._connections = inf if quota.connections is None else quota.connections
        new, bytes_in, bytes_out = self._rates
        new.become(quota.new_per_second, quota.burst or max(1, ceil(quota.new_per_second or 0)))
        bytes_in.become(quota.bytes_in, max(quota.bytes_in or 0, _LEAST_BYTES))
        bytes_out.become(quota.bytes_out, max(quota.bytes_out or 0, _LEAST_BYTES))
        for account in chain(self._busy.values(), self._idle.values()):
            account.fit(self._rates)

    def admit(self, name: str, now: float) -> Usage | Limit:
        """Count a new connection of `name`, or say which limit is reached: then nothing is counted."""
        account = self._busy.get(name) or self._idle.get(name) or _Account(name, self._rates)
        if account.connections + self._elsewhere.get(name, 0) >= self._connections:
            return Limit.CONNECTIONS
        if account.new is not None and not account.new.spend(now):
            if name in self._idle:  # who goes on trying is not idle: its empty bucket is not to be forgotten
                self._idle.move_to_end(name)
            return Limit.RATE
        if not account.connections:
            self._idle.pop(name, None)
            self._busy[name] = account
        account.connections += 1
        self._weigh(name)
        self._forget(now)
        return Usage(self, account)

    def leave(self, name: str, now: float) -> None:
        """Give back one connection of `name`, which must have one. `Usage.leave` does that once."""
        account = self._busy[name]
        account.connections -= 1
        if not account.connections:
            del self._busy[name]
            if not account.worthless(now):
                self._idle[name] = account
        self._weigh(name)
        self._forget(now)

    # ---- with other processes ----

    def divide(self, share: float) -> None:
        """Let others know of names with at least `share` (1 or more) connections here; inf: of no more.

        Of several processes that share a limit evenly, one has its share of it before it is reached; and then
        all tell what they have of that name. So none is admitted beyond the limit that all know of.
        """
        self._share = share
        self._weigh(*self._told.keys(), *self._busy, anew=True)

    def news(self) -> dict[str, int]:
        """Return the names of which others know a wrong number, and the right ones; 0: not to be counted."""
        news, self._news = self._news, {}
        return news

    def all_told(self) -> dict[str, int]:
        """As `news`, for those who know nothing."""
        self._news = {}
        return self._told.copy()

    def hear(self, elsewhere: Mapping[str, int]) -> None:
        """Count with so many connections of these names in all other processes, in place of what was told."""
        for name, connections in elsewhere.items():
            if connections:
                self._elsewhere[name] = connections
            else:
                self._elsewhere.pop(name, None)
        self._weigh(*elsewhere)

    def _weigh(self, *names: str, anew: bool = False) -> None:
        for name in names:
            account = self._busy.get(name)
            connections = account.connections if account is not None else 0
            # Who was told of is until it has no connection here: two processes that each tell because the
            # other does, and cease because the other does, could go on with that for ever.
            kept = name in self._told and not anew
            told = connections if kept or connections >= self._share or name in self._elsewhere else 0
            if told == self._told.get(name, 0):
                continue
            if told:
                self._told[name] = told
            else:
                del self._told[name]
            first = not self._news
            self._news[name] = told
            if first:
                self.heard()

    def _forget(self, now: float) -> None:
        # A connection that comes or ends makes one name too many at most. With two at a time they get fewer
        # after a flood too, without one connection that pays for all of it. A name that is in debt keeps
        # those behind it until it has paid.
        for _ in range(2):
            account = next(iter(self._idle.values()), None)
            if account is None or not (self.remembered > self._most or account.worthless(now)):
                return
            del self._idle[account.name]


def _nothing() -> None:
    """Nobody wants to know."""


def source_of(host: str, ipv6_prefix: int = 64) -> str:
    """Return the name of a source: its IPv4 address, or the network of `ipv6_prefix` bits it is in.

    Who has one IPv6 address has 2^64 of them: a link is given a whole /64 (RFC 4291, 2.5.4). The name is the
    same in each process. `host` is canonical text, without a zone; raises ValueError for other IPv6 text.
    """
    if ":" not in host:
        return host
    address = packed(host)
    if len(address) == 4:
        return inet_ntop(AF_INET, address)
    rest = 128 - ipv6_prefix
    network = int.from_bytes(address) >> rest << rest
    return f"{inet_ntop(AF_INET6, network.to_bytes(16))}/{ipv6_prefix}"
