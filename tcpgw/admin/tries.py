"""How often a source may show a wrong token. Reads no clock."""

from collections import OrderedDict
from ipaddress import IPv6Address, IPv6Network, ip_address

# A person mistypes a few times; what guesses gets ten tries, and then one in six seconds.
BURST = 10
SECONDS_EACH = 6.0
# Sources that are remembered; beyond, the one that was wrong longest ago is forgotten.
MOST = 1024


class Tries:
    """A bucket for each source, which wrong tokens fill. `now` is a clock that only goes forward."""

    def __init__(self) -> None:
        self._empty_at: OrderedDict[str, float] = OrderedDict()

    def wait(self, source: str, now: float) -> float:
        """Return the seconds until a source may try again, 0 where it may now."""
        ahead = self._empty_at.get(_network(source), now) - now
        return max(0.0, ahead - (BURST - 1) * SECONDS_EACH)

    def failed(self, source: str, now: float) -> None:
        """Count a wrong token."""
        network = _network(source)
        self._empty_at[network] = max(now, self._empty_at.pop(network, now)) + SECONDS_EACH
        if len(self._empty_at) > MOST:
            self._empty_at.popitem(last=False)


def _network(source: str) -> str:
    """Who has one IPv6 address has its network's others too."""
    try:
        address = ip_address(source.partition("%")[0])
    except ValueError:  # a Unix socket's client has none
        return source
    if isinstance(address, IPv6Address) and address.ipv4_mapped is None:
        return str(IPv6Network((address, 64), strict=False))
    return str(address)
