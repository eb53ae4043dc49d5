"""Tracing: the lives of some clients' connections, told step by step for as long as an operator looks.

While nobody looks, listeners have no Tracer and a connection's `trace` is None: a test for that at the few
steps of a set-up is all that it costs, and nothing where bytes pass. While somebody does, everybody else's
connections cost one look at their address.

What is told is bounded: so many connections and so many requests a second of this process, whoever traces
them, and so many events of each trace that wait to be taken. What is beyond is counted, and told as the event
`dropped`. A flood is cut by whole connections and requests first, since half of a life explains nothing.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import chain, islice
from typing import Any

from tcpgw.access.cidr import Network, Networks
from tcpgw.access.limits import Bucket, Rate
from tcpgw.endpoints import Endpoint
from tcpgw.pool import Pool
from tcpgw.relay.lines import shown

Event = dict[str, Any]
"""Plain values: `at` (Unix time), `event`, and of a connection `after` (seconds since its accept),
`listener`, `conn` (as in the log) and `client`, of a request its number there; the rest is its own."""

MOST_EVENTS = 2000
"""Of a trace, that wait: ten times what the connections of a tenth of a second come to, so that a drain of
many at once is told too."""
PER_SECOND, BURST = 100.0, 200.0
"""Connections of a process that begin to be traced, and requests: more than anybody reads, and 0.5 % of a
core each."""

# Of a text and of a list: what clients say of themselves (names in a certificate) is as long as they like.
_LONGEST_TEXT, _LONGEST_LIST = 300, 16
# Stands where there was more, in tables as a name.
_CUT = "…"
# Candidates that are named: more than are tried.
_NAMED = 8


class Trace:
    """What is told of one connection, to all who trace its client."""

    __slots__ = ("_began", "_clock", "_opened", "_requests", "_watches", "_who")

    def __init__(
        self,
        who: Mapping[str, Any],
        opened: float,
        began: float,
        clock: Callable[[], float],
        watches: "tuple[_Watch, ...]",
        requests: Bucket,
    ) -> None:
        self._who = who
        self._opened = opened
        self._began = began  # the same moment as Unix time
        self._clock = clock
        self._watches = watches
        self._requests = requests

    @property
    def over(self) -> bool:
        """Whether nobody looks any more."""
        return all(watch.over for watch in self._watches)

    def add(self, event: str, **fields: object) -> None:
        """Tell of a step that is taken now. Costs next to nothing once nobody looks any more."""
        self.add_past(self._clock() - self._opened, event, fields)

    def add_past(self, after: float, event: str, fields: Mapping[str, object]) -> None:
        """Tell of a step that was taken so many seconds after the accept."""
        if self.over:
            return
        told = {"at": round(self._began + after, 6), "event": event, "after": round(after, 6), **self._who}
        told |= {name: _plain(value) for name, value in fields.items()}
        for watch in self._watches:
            watch.add(told)

    # ---- requests ----

    def may_tell_request(self) -> bool:
        """Whether there were not too many lately; the next one is counted as one of them then."""
        return self._requests.spend(self._clock())

    def of_request(self, number: int) -> "RequestTrace":
        """What is told of its client's request of that number, from 1."""
        return RequestTrace(self, number)

    def missed_requests(self, count: int) -> None:
        """So many were not told."""
        for watch in self._watches:
            watch.missed_requests += count


class RequestTrace:
    """What is told of one request of an rpc client."""

    __slots__ = ("_number", "_trace")

    def __init__(self, trace: Trace, number: int) -> None:
        self._trace = trace
        self._number = number

    def add(self, event: str, **fields: object) -> None:
        """As `Trace.add`."""
        self._trace.add(event, request=self._number, **fields)


class Tracer:
    """Who is traced in this process. `clock` is the connections' (monotonic), `wall` gives Unix time."""

    def __init__(self, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._clock = clock
        self._wall = wall
        self._watches: dict[str, _Watch] = {}
        rate = Rate()
        rate.become(PER_SECOND, BURST)
        self._connections, self._requests = Bucket(rate), Bucket(rate)

    @property
    def active(self) -> bool:
        """Whether anybody looks."""
        return bool(self._watches)

    def begin(self, name: str, network: Network, seconds: float) -> None:
        """Trace who connects from a network, from now on and for so long. Idempotent."""
        if name not in self._watches:
            self._watches[name] = _Watch(Networks([network], []), self._clock() + seconds)

    def end(self, name: str) -> list[Event]:
        """End a trace, and return what was not taken of it. Idempotent."""
        watch = self._watches.pop(name, None)
        if watch is None:
            return []
        watch.over = True
        return watch.take(self._wall())

    def take(self) -> dict[str, list[Event]]:
        """Return the events since the last time, by trace; none of a trace without any. Ends what is due."""
        now = self._clock()
        due = [name for name, watch in self._watches.items() if now >= watch.ends]
        told = {name: self.end(name) for name in due}
        told |= {name: watch.take(self._wall()) for name, watch in self._watches.items()}
        return {name: events for name, events in told.items() if events}

    def follow(
        self, listener: str, id_: int, address: tuple[str, int], opened: float, **fields: object
    ) -> Trace | None:
        """Begin to tell of a connection, if somebody traces its client and there were not too many lately.

        `fields` are what is told of its accept.
        """
        watches = tuple(watch for watch in self._watches.values() if watch.networks.admits(address[0]))
        if not watches:
            return None
        if not self._connections.spend(self._clock()):
            for watch in watches:
                watch.missed += 1
            return None
        who = {"listener": listener, "conn": id_, "client": shown(address)}
        began = self._wall() - (self._clock() - opened)
        trace = Trace(who, opened, began, self._clock, watches, self._requests)
        trace.add_past(0.0, "accepted", fields)
        return trace


class _Watch:
    """One trace."""

    __slots__ = ("dropped", "ends", "events", "missed", "missed_requests", "networks", "over")

    def __init__(self, networks: Networks, ends: float) -> None:
        self.networks = networks
        self.ends = ends
        self.over = False
        self.events: list[Event] = []
        self.dropped = 0  # events
        self.missed = 0  # connections
        self.missed_requests = 0

    def add(self, event: Event) -> None:
        if self.over:
            return
        if len(self.events) < MOST_EVENTS:
            self.events.append(event)
        else:
            self.dropped += 1

    def take(self, at: float) -> list[Event]:
        events, self.events = self.events, []
        if self.dropped or self.missed or self.missed_requests:
            missed = {"connections": self.missed, "requests": self.missed_requests}
            events.append(dropped(at, **missed, events=self.dropped))
            self.dropped = self.missed = self.missed_requests = 0
        return events


def dropped(at: float, *, connections: int, requests: int, events: int) -> Event:
    """The event that tells how much was not told: connections and requests as a whole, events of others."""
    lost = {"connections": connections, "requests": requests, "events": events}
    return {"at": round(at, 6), "event": "dropped", **lost}


def told_candidates(
    trace: Trace | RequestTrace,
    pool: Pool,
    position: int,
    candidates: Iterator[Endpoint],
    fields: Mapping[str, object],
) -> Iterator[Endpoint]:
    """Tell where a key belongs while all is well, and the order in force now; return `candidates` anew.

    They are not asked for once more, as that may use up somebody's turn. So who is at its bound, and
    whose turn it is to prove itself, is decided for the first of them now, not as each is tried. `fields` are
    told with it.
    """
    first = list(islice(candidates, _NAMED))
    home = pool.tables.home(position) if pool.tables is not None else None
    trace.add("candidates", **fields, home=home, endpoints=first)
    return chain(first, candidates)


def key_told(key: str, position: int, address: tuple[str, int] | None) -> dict[str, object]:
    """What is told of a key: which one the service goes by, and where it is hashed to.

    What it is only where that is the address, which each event has anyway: others may be somebody's secret.
    """
    told: dict[str, object] = {"key": key, "position": f"{position:#010x}"}
    if address is not None and key in {"source_ip", "source_ip_port"}:
        told["value"] = address[0] if key == "source_ip" else shown(address)
    return told


def _plain(value: object) -> object:
    """What every encoding has, and not without end."""
    match value:
        case None | bool() | int() | float():
            return value
        case Mapping():
            told = {str(key): _plain(one) for key, one in islice(value.items(), _LONGEST_LIST)}
            more = len(value) - len(told)
            return told | {_CUT: f"{more} more"} if more else told
        case list() | tuple() if not isinstance(value, Endpoint):
            listed = [_plain(one) for one in value[:_LONGEST_LIST]]
            more = len(value) - len(listed)
            return [*listed, f"{_CUT} {more} more"] if more else listed
    text = str(value)
    if len(text) > _LONGEST_TEXT:
        text = f"{text[:_LONGEST_TEXT]}{_CUT}"
    # Half of a surrogate pair, which a client's text may have, can be sent to nobody.
    return text.encode(errors="replace").decode()
