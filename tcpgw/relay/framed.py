"""The framed relay: as the stream plane, one connection to an instance for each of a client's, but its frames
are seen.

What passes, passes as on the stream plane, at once and in the pieces that it comes in; only where frames end
is looked for. So there are a limit on their size and on the time that one takes, counts, and a moment at
which a connection can be ended without loss.

- A frame above the limit, or no frame at all, ends the connection. What had been read before is delivered;
  of the read in which it was noticed nothing is, frames before it in the same read included. So at most a
  header's first bytes of a refused frame get through, and then only where the network had cut the header.
- Whoever sent it is reset, the other gets FIN. Every other end is the stream plane's.
- Frames are taken for requests where the client sends them and for answers where the instance does. That is
  a guess about protocols in general and only counts, delays a drain and, for `fifo`, times.
"""

import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from typing import Any

from tcpgw.config.schema import Listener as Settings
from tcpgw.errors import Code, ConnectError, FrameTooLargeError, OverloadError, ProtocolError
from tcpgw.observe.histogram import Histogram
from tcpgw.relay.outcomes import Kind
from tcpgw.relay.reasons import FAILED, Reason
from tcpgw.relay.session import Connection, OnEnd
from tcpgw.relay.sockets import drop
from tcpgw.relay.stream import Side
from tcpgw.relay.stream_plane import (
    Choose,
    Explain,
    Judge,
    StreamPlane,
    StreamSession,
    admit_all,
    explain_nothing,
)
from tcpgw.relay.tally import Tallies
from tcpgw.relay.upstream import Upstream
from tcpgw.wire.frames import Splitter

# Requests without an answer after which a client is not read, for `fifo`: their times take 32 to 100 bytes.
MOST_OUTSTANDING = 65536
# Ends of the client's own: what it did not wait for has not failed.
_LEFT = {Reason.CLIENT_FIN, Reason.CLIENT_RESET}
# As for a stream, but where it is known that no answer is owed, and where one seems to be.
_STILL, _STILL_OWED = 1, 100


class Latencies:
    """Times the requests of one connection, whose answers come in their order.

    Requests of one read share an entry, so that many small ones cost little. An answer to nothing (the
    instance spoke by itself) is passed over.
    """

    __slots__ = ("_histogram", "_runs", "outstanding")

    def __init__(self, histogram: Histogram) -> None:
        self.outstanding = 0
        self._histogram = histogram
        self._runs: deque[tuple[float, int]] = deque()

    def waiting(self, now: float) -> float:
        """Seconds that the oldest request waits; 0 without any."""
        return now - self._runs[0][0] if self._runs else 0.0

    def asked(self, count: int, now: float) -> None:
        self._runs.append((now, count))
        self.outstanding += count

    def answered(self, count: int, now: float) -> None:
        runs = self._runs
        while count and runs:
            asked, waiting = runs.popleft()
            done = min(count, waiting)
            if done < waiting:
                runs.appendleft((asked, waiting - done))
            self._histogram.add(now - asked, done)
            self.outstanding -= done
            count -= done


class FramedSide(Side):
    """A side whose frames are counted. `full`: it takes no more bytes; `held`: it is not read from."""

    __slots__ = ("_frame", "_since", "frames", "full", "held", "splitter")

    relay: "FramedSession"
    other: "FramedSide"

    def __init__(self, relay: "FramedSession", fin: Reason, reset: Reason, splitter: Splitter) -> None:
        super().__init__(relay, fin, reset)
        self.splitter = splitter
        self.frames = 0  # that have ended
        self.full = False
        self.held = False
        self._frame: int | None = None  # which frame had begun at the last look, by those that had ended
        self._since = 0.0

    def data_received(self, data: bytes) -> None:
        relay = self.relay
        if relay.reason is not None:  # over: only read on so that nobody is reset
            return
        self.received += len(data)
        try:
            ends = self.splitter.feed(data)
        except ProtocolError as exc:
            relay.refuse(self, exc)
            return
        self.write(data)
        if ends:
            count = len(ends)
            self.frames += count
            relay.count(self, count)

    def pause_writing(self) -> None:
        self.full = True
        self.relay.regulate(self.other)

    def resume_writing(self) -> None:
        self.full = False
        self.relay.regulate(self.other)

    def is_late(self, now: float, timeout: float) -> bool:
        """Whether a frame has begun `timeout` seconds ago and is not whole, as far as looks can tell.

        Time in which we did not read does not count: then somebody else is slow. Nor does that after FIN,
        which is the relay's own business.
        """
        begun = self.splitter.partial and not self.held and not self.ended
        frame = self.frames if begun else None
        if frame is None or frame != self._frame:
            self._frame, self._since = frame, now
            return False
        return now - self._since >= timeout


class FramedSession(StreamSession):
    """A relay that sees frames. `latencies`, where answers come in order, times them."""

    __slots__ = ("_plane", "latencies")

    client: FramedSide
    instance: FramedSide

    def __init__(
        self, plane: "FramedPlane", settings: Settings, upstream: Upstream, on_end: OnEnd, now: float
    ) -> None:
        self._plane = plane
        self.latencies = Latencies(plane.latencies[upstream.service]) if plane.in_order else None
        super().__init__(settings, upstream, on_end, now)

    def _new_side(self, fin: Reason, reset: Reason) -> FramedSide:
        return FramedSide(self, fin, reset, self._plane.new_splitter())

    # ---- bytes ----

    def count(self, side: FramedSide, count: int) -> None:
        """`side` has ended so many frames."""
        latencies = self.latencies
        if latencies is None:
            return
        if side is self.client:
            latencies.asked(count, time.monotonic())
        else:
            latencies.answered(count, time.monotonic())
            ending = self._ending
            if ending is not None and not latencies.outstanding and self._between_frames:
                self.end(ending)
                return
        if latencies.outstanding > MOST_OUTSTANDING or self.client.held:
            self.regulate(self.client)

    def regulate(self, side: FramedSide) -> None:
        """Read from `side`, or hold it: while the other is full, and a client while it is owed too much."""
        hold = side.other.full or (
            side is self.client
            and self.latencies is not None
            and self.latencies.outstanding > MOST_OUTSTANDING
        )
        transport = side.transport
        if hold == side.held or transport is None or transport.is_closing():
            return
        side.held = hold
        if hold:
            transport.pause_reading()
        else:
            transport.resume_reading()

    def refuse(self, side: FramedSide, exc: ProtocolError) -> None:
        """End for a frame of `side`'s. The other gets what was passed on before, and FIN."""
        too_large = isinstance(exc, FrameTooLargeError)
        self._over(Reason.FRAME_TOO_LARGE if too_large else Reason.PROTOCOL_ERROR, side, str(exc))
        if side is self.instance:
            self._fail(Kind.PROTOCOL)
        other = side.other.transport
        if other is not None and not other.is_closing():
            other.close()
        if side.transport is not None:
            drop(side.transport, reset=True)

    def _over(self, reason: Reason, side: FramedSide, error: str = "") -> None:
        """Settle the reason. What comes now is dropped, and who does not take the rest has fin_timeout."""
        self.reason = reason
        self._first_fin = self._first_fin or side.fin
        if error:
            self.error = f"{'client' if side is self.client else 'instance'}: {error}"

    def _finish(self, reason: Reason) -> None:
        if self.latencies is not None and reason not in _LEFT:
            self._plane.lost[self.upstream.service] += self.latencies.outstanding
            if reason in FAILED and (self.client.splitter.partial or not self.client.frames):
                self._plane.broken[self.upstream.service] += 1
        super()._finish(reason)

    # ---- the listener's side ----

    def tend(self, now: float) -> None:
        super().tend(now)
        timeout = self._settings.frame_timeout
        for side in (self.client, self.instance):
            if self.reason is None and side.is_late(now, timeout):
                error = f"{side.splitter.partial} bytes of a frame within {timeout:g} s, and not its end"
                self._over(Reason.FRAME_TIMEOUT, side, error)
                self.abort(Reason.FRAME_TIMEOUT, reset=True)

    def owed(self, now: float) -> tuple[int | None, float | None]:
        """Exactly where answers come in order, else by how many frames went each way."""
        if self.latencies is not None:
            return self.latencies.outstanding, self.latencies.waiting(now)
        return max(0, self.client.frames - self.instance.frames), super().owed(now)[1]

    def facts(self) -> dict[str, object]:
        return {**super().facts(), "requests": self.client.frames, "answers": self.instance.frames}

    def drain(self, reason: Reason = Reason.DRAINED) -> None:
        """End between two frames, in both directions: both sides get FIN, and what they send then is lost.

        No byte has moved for 0.1 to 0.2 s then. Where answers come in order, none is owed; a busy connection
        ends right behind the last. Elsewhere that is a guess: with fewer answers than requests it takes 10 s
        without a byte, and a busy connection goes on.
        """
        super().drain(reason)

    def _patience(self) -> float:
        if not self._between_frames:
            return math.inf
        if self.latencies is not None:
            return math.inf if self.latencies.outstanding else _STILL
        return _STILL_OWED if self.client.frames > self.instance.frames else _STILL

    @property
    def _between_frames(self) -> bool:
        return not self.client.splitter.partial and not self.instance.splitter.partial


class FramedPlane(StreamPlane):
    """Relays for an rpc listener whose codec knows frames but not which answer belongs to which request.

    `new_splitter` makes what finds the ends of frames, one for each direction. `in_order`: answers come in
    the order of their requests, so `latencies` (seconds from a request's last byte to its answer's) are
    measured; to the read, not to the byte. Then `lost` is how many had none when their connection ended, but
    for what a client left, and `broken` how many connections failed before a request was whole.
    """

    def __init__(
        self,
        settings: Settings,
        choose: Choose,
        new_splitter: Callable[[], Splitter],
        first_byte_timeout: float = math.inf,
        *,
        judge: Judge = admit_all,
        explain: Explain = explain_nothing,
        in_order: bool,
    ) -> None:
        super().__init__(settings, choose, first_byte_timeout, judge=judge, explain=explain)
        self.new_splitter = new_splitter
        self.in_order = in_order
        # By service.
        self.latencies: defaultdict[str, Histogram] = defaultdict(Histogram)
        self.lost: Counter[str] = Counter()
        self.broken: Counter[str] = Counter()

    def count_on(self, before: "FramedPlane") -> None:
        """Count where that one was, whose place this one takes."""
        self.latencies, self.lost, self.broken = before.latencies, before.lost, before.broken

    def figures(self, tallies: Tallies) -> dict[str, Any]:
        """Where requests are timed also `requests`, by service: as of a method in `rpc.figures`."""
        if not self.in_order:
            return super().figures(tallies)
        broken = {
            name: dict.fromkeys(("opened", "ended", "failed"), one) for name, one in self.broken.items()
        }
        requests = {name: self._requests(name, one) for name, one in self.latencies.items()}
        return {"invocations": broken, "requests": requests}

    def _requests(self, service: str, latency: Histogram) -> dict[str, Any]:
        outcomes = {"ok": latency.count, Code.UPSTREAM_LOST.value: self.lost[service]}
        counted = {name: count for name, count in outcomes.items() if count}
        return {"outcomes": counted, "latency": latency.figures()}

    async def open(self, connection: Connection, early: bytes, on_end: OnEnd) -> StreamSession:
        try:
            return await super().open(connection, early, on_end)
        except (ConnectError, OverloadError):
            if service := connection.facts.get("service"):
                self.broken[str(service)] += 1
            raise

    def _new_session(self, upstream: Upstream, on_end: OnEnd, now: float) -> FramedSession:
        return FramedSession(self, self._settings, upstream, on_end, now)
