"""The order of endpoints along a table: what Maglev and the ring have in common."""

from collections.abc import Iterator, Sequence

from tcpgw.endpoints import Endpoint

# Entries looked at before the walk gives up: 0.1 ms at most, and enough to meet nearly all of 200 endpoints
# of equal weight. Without a bound, a caller that finds every endpoint dead would search the whole table for
# the last ones of very small weight, on the event loop.
_LONGEST = 1024


def walk(endpoints: Sequence[Endpoint], owners: Sequence[int], start: int) -> Iterator[Endpoint]:
    """Yield the owners of the entries from `start` on, round the end of the table, each endpoint once.

    `owners` holds indexes into `endpoints`. Neighbours in the table are unrelated, so that the keys of an
    endpoint that fails spread over all others. Those not met within the bound come last, in a fixed order
    that begins at another one for each `start`.
    """
    if not endpoints:
        return
    size = len(owners)
    first = owners[start % size]
    yield endpoints[first]  # before anything else is made ready: mostly nothing else is asked for
    met = {first}
    for entry in range(start + 1, start + min(size, _LONGEST)):
        owner = owners[entry % size]
        if owner not in met:
            met.add(owner)
            yield endpoints[owner]
        if len(met) == len(endpoints):
            return
    rest = [endpoint for owner, endpoint in enumerate(endpoints) if owner not in met]
    turn = start % len(rest)
    yield from rest[turn:]
    yield from rest[:turn]
