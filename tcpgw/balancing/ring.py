"""A ring of points, as in libmemcached's weighted ketama.

What is compatible: the points. An endpoint's digests are MD5 of "10.0.0.1:8000-0", "…-1" and so on (IPv6 in
brackets), each gives four points of four bytes, little-endian, and a key belongs to the first point at or
after its position. Checked against `uhashring` in the tests.

What is not: a key's position, which is ours (32 bits of jhash or xxhash64, see hashing.py; libmemcached takes
MD5 of the key); the port, which libmemcached leaves out where it is 11211; and how weights are scaled.
libmemcached gives endpoints 160 points on average, so that a change of one weight moves points of all;
here, as in nginx, it is 160 per unit of weight, and only that endpoint's points come or go. For weights whose
mean is 1 both are the same.
"""

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from hashlib import md5
from math import inf
from struct import Struct

from tcpgw.balancing.passing import Passing
from tcpgw.balancing.policy import Policy
from tcpgw.balancing.standing import Share
from tcpgw.balancing.walk import walk
from tcpgw.endpoints import Endpoint

# DNS knows weights up to 65535, and 160 points for each unit would fill the memory. From here on (8 MB, a
# second or two to build) all endpoints get fewer points, in proportion.
_MOST_POINTS = 1 << 20

_four_points = Struct("<4I").unpack


class Ring:
    """A ketama ring with `points` per unit of weight, of each endpoint at least four.

    Depends on nothing but the endpoints, their weights and `points`. Where two points are equal, the lower
    endpoint has it. `breathe` is called about every millisecond of the build, see `Maglev`.
    """

    spills = False

    def __init__(
        self,
        weights: Mapping[Endpoint, float],
        points: int = 160,
        breathe: Callable[[], None] = lambda: None,
    ) -> None:
        ordered = sorted(weights.items())
        self._endpoints = [endpoint for endpoint, _ in ordered]
        per_weight = min(points, _MOST_POINTS / (sum(weights.values()) or 1))
        self._points = array("I")
        self._owners = array("I")
        # Sorted in 256 parts by the highest byte, because one sort of everything would keep the interpreter
        # from the event loop for tens of milliseconds. Point and owner stand in one number: the garbage
        # collector does not have to visit numbers as it would tuples.
        parts: list[list[int]] = [[] for _ in range(256)]
        made = 0
        for owner, (endpoint, weight) in enumerate(ordered):
            name = str(endpoint).encode()
            # The small addend is libmemcached's, against 39.999999 for 40.
            for number in range(max(1, int(per_weight * weight / 4 + 1e-10))):
                for point in _four_points(md5(b"%s-%d" % (name, number), usedforsecurity=False).digest()):
                    parts[point >> 24].append(point << 32 | owner)
                made += 1
                if made % 256 == 0:
                    breathe()
        for part in parts:
            part.sort()
            self._points.extend([entry >> 32 for entry in part])
            self._owners.extend([entry & 0xFFFFFFFF for entry in part])
            part.clear()  # all at once, at the end, is a long moment too
            breathe()

    def candidates(self, position: int) -> Iterator[Endpoint]:
        """The owner of the first point at or after the position, then those of the points after it."""
        return walk(self._endpoints, self._owners, bisect_left(self._points, position))

    def home(self, position: int) -> Endpoint | None:
        """Return the owner of the first point at or after the position."""
        if not self._endpoints:
            return None
        return self._endpoints[self._owners[bisect_left(self._points, position) % len(self._owners)]]

    def share(self, endpoint: Endpoint) -> float:  # noqa: ARG002  # the interface's
        """Return no bound: a hash looks at no load."""
        return inf

    def under(self, shares: Mapping[Endpoint, Share]) -> Policy:
        return Passing(self, shares) if shares else self

    def explain(self, position: int) -> str:
        count = len(self._points)
        return f"ring: point {bisect_left(self._points, position) % max(1, count)} of {count}"
