"""A field that is looked for in every request: found at once where requests begin as they did before."""

from tcpgw.wire.codec import Codec, Path

# Methods whose beginnings are remembered, and bytes of one: clients choose both.
_MOST, _LONGEST = 256, 256


class Field:
    """Where a value stands in the parameters of requests, and what stood before it, by method.

    Clients write the same fields in the same order again and again, so what precedes a value is mostly the
    same bytes. Where it is, the value begins right behind them: a parser cannot have gone another way.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._before: dict[bytes, bytes] = {}

    def find(self, codec: Codec, method: bytes, data: bytes) -> tuple[int, int] | None:
        """As `codec.find`, in what follows the id of a request of this method."""
        before = self._before.get(method)
        if before is not None and data.startswith(before):
            start = len(before) - codec.lead
            end = codec.end(data, start)
            return (start, end) if end <= len(data) else None
        span = codec.find(data, 0, self.path)
        if span is not None:
            self._remember(method, data, span[0], span[0] + codec.lead)
        return span

    def _remember(self, method: bytes, data: bytes, start: int, end: int) -> None:
        # A span from the very beginning may be one that is not found by what precedes it (Thrift's lists).
        if start > 0 and end <= _LONGEST:
            if len(self._before) >= _MOST and method not in self._before:
                del self._before[next(iter(self._before))]
            self._before[method] = data[:end]
